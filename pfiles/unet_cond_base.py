"""The latent UNet that predicts the noise, or the velocity, conditioned on time and cluster."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfiles.blocks import DownBlock, MidBlock, UpBlockUNet, get_time_embedding
from pfiles.settings import DiffusionSettings


class UNet(nn.Module):
    """Denoising in latent space (Ho et al. 2020), with an embedding of the cluster added to that of the time.

    What it predicts, the noise or the velocity, is decided by its training alone.

    The defaults are the paper's (23,288,336 parameters with 14 clusters) and load the published checkpoints.

    im_channels: channels of the latent.
    cls: number of clusters.
    down_channels: widths from fine to coarse; the resolution halves after each but the last two, so the latent's
        height and width must be multiples of fold * 2^(len(down_channels) - 2).
    norm_channels: groups of every GroupNorm; must divide every width.
    fold: the network works on blocks of fold x fold latent vectors, whose channels it stacks (Shi et al. 2016): a
        quarter of the places for fold=2, and nearly a quarter of the time. 1 is the published network.
    """

    def __init__(
        self,
        im_channels: int = 16,
        cls: int = 14,
        down_channels: Sequence[int] = (128, 256, 256, 256),
        t_emb_dim: int = 256,
        num_layers: int = 2,
        num_heads: int = 16,
        norm_channels: int = 32,
        conv_out_channels: int = 128,
        fold: int = 1,
    ):
        super().__init__()
        self.t_emb_dim, self.fold = t_emb_dim, fold
        im_channels = im_channels * fold**2  # from here on those of the folded latent
        levels = range(len(down_channels) - 1)
        down_sample = [level != levels[-1] for level in levels]  # the coarsest level keeps its resolution
        args = {"t_emb_dim": t_emb_dim, "num_heads": num_heads, "num_layers": num_layers}
        args["norm_channels"] = norm_channels

        self.class_emb = nn.Embedding(cls, t_emb_dim)
        self.conv_in = nn.Conv2d(im_channels, down_channels[0], 3, padding=1)
        self.t_proj = nn.Sequential(nn.Linear(t_emb_dim, t_emb_dim), nn.SiLU(), nn.Linear(t_emb_dim, t_emb_dim))
        self.downs = nn.ModuleList(
            DownBlock(down_channels[i], down_channels[i + 1], down_sample=down_sample[i], attn=True, **args)
            for i in levels
        )
        self.mids = nn.ModuleList([MidBlock(down_channels[-1], down_channels[-2], **args)])
        up_channels = [conv_out_channels, *down_channels]
        self.ups = nn.ModuleList(
            UpBlockUNet(2 * down_channels[i], up_channels[i], up_sample=down_sample[i], **args)
            for i in reversed(levels)
        )
        self.norm_out = nn.GroupNorm(norm_channels, conv_out_channels)
        self.conv_out = nn.Conv2d(conv_out_channels, im_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor | int, cond_input: Tensor | None = None) -> Tensor:
        """Noisy latents x (B, C, h, w) at time steps t (B,) or one for all -> predicted noise (B, C, h, w).

        cond_input: cluster ids (B,), 0-based; None, or a negative id for single latents, predicts without a condition.
        """
        t = torch.as_tensor(t, device=x.device).reshape(-1)
        t_emb = self.t_proj(get_time_embedding(t, self.t_emb_dim))
        if cond_input is not None:
            conditioned = (cond_input >= 0)[:, None]
            t_emb = t_emb + torch.where(conditioned, self.class_emb(cond_input.clamp_min(0)), 0.0)

        out = self.conv_in(F.pixel_unshuffle(x, self.fold))  # (B, C * fold^2, h / fold, w / fold)
        skips = []
        for down in self.downs:
            skips.append(out)
            out = down(out, t_emb)
        for mid in self.mids:
            out = mid(out, t_emb)
        for up in self.ups:
            out = up(out, skips.pop(), t_emb)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(out))), self.fold)

    def with_clusters(self, first: int, number: int) -> "UNet":
        """A UNet of its own, a copy that knows `number` of these clusters, from `first` on, and draws them the same."""
        part = copy.deepcopy(self)
        rows = self.class_emb.weight[first : first + number].detach().clone()
        part.class_emb = nn.Embedding.from_pretrained(rows, freeze=False)
        return part


def make_unet(settings: DiffusionSettings, im_channels: int, cls: int) -> UNet:
    """The UNet that the settings describe, untrained, for latents of so many channels and so many clusters."""
    sizes: dict[str, Any] = dict(settings.unet)
    return UNet(im_channels, cls, **sizes)
