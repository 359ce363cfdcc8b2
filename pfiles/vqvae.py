"""The VQ-GAN's autoencoder: images to a grid of codebook vectors and back."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfiles.blocks import DownBlock, MidBlock, UpBlock
from pfiles.settings import AutoencoderSettings


class VQVAE(nn.Module):
    """Vector-quantised autoencoder (van den Oord et al. 2017, with the blocks of Esser et al. 2021).

    Images (B, im_channels, H, W) in [0, 1] become latents (B, z_channels, h, w), where each of the h * w vectors is
    one of `codebook_size` codebook entries and h = H / (enlarge * 2^(len(down_channels) - 1)). The defaults are the
    paper's (2,516,019 parameters, 3 x 128 x 128 -> 16 x 32 x 32) and load the published checkpoint.

    down_channels: width at each resolution, finest first.
    norm_channels: groups of every GroupNorm; must divide every width.
    upsampling: of the decoder, see `blocks.UpBlock`.
    enlarge: a power of two, by which the decoder's images are larger than what the encoder sees: images averaged over
        enlarge x enlarge pixels. The decoder adds the detail, of which the codes say nothing. 1 is the published
        network.
    """

    def __init__(
        self,
        im_channels: int = 3,
        down_channels: Sequence[int] = (32, 64, 128),
        z_channels: int = 16,
        codebook_size: int = 128,
        num_heads: int = 16,
        norm_channels: int = 32,
        upsampling: str = "transposed",
        enlarge: int = 1,
    ):
        super().__init__()
        self.z_channels, self.enlarge = z_channels, enlarge
        self.downscale = enlarge * 2 ** (len(down_channels) - 1)
        widths = list(pairwise(down_channels))
        finest, deepest = down_channels[0], down_channels[-1]
        enlarging = [(finest, finest)] * (enlarge.bit_length() - 1)
        args = {"t_emb_dim": None, "num_heads": num_heads, "num_layers": 1, "norm_channels": norm_channels}

        self.encoder_conv_in = nn.Conv2d(im_channels, down_channels[0], 3, padding=1)
        self.encoder_layers = nn.ModuleList(
            DownBlock(fine, coarse, down_sample=True, attn=False, **args) for fine, coarse in widths
        )
        self.encoder_mids = nn.ModuleList([MidBlock(deepest, deepest, **args)])
        self.encoder_norm_out = nn.GroupNorm(norm_channels, deepest)
        self.encoder_conv_out = nn.Conv2d(deepest, z_channels, 3, padding=1)

        self.pre_quant_conv = nn.Conv2d(z_channels, z_channels, 1)
        self.embedding = nn.Embedding(codebook_size, z_channels)
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, 1)

        self.decoder_conv_in = nn.Conv2d(z_channels, deepest, 3, padding=1)
        self.decoder_mids = nn.ModuleList([MidBlock(deepest, deepest, **args)])
        self.decoder_layers = nn.ModuleList(
            UpBlock(coarse, fine, up_sample=True, attn=False, upsampling=upsampling, **args)
            for fine, coarse in [*reversed(widths), *enlarging]
        )
        self.decoder_norm_out = nn.GroupNorm(norm_channels, down_channels[0])
        self.decoder_conv_out = nn.Conv2d(down_channels[0], im_channels, 3, padding=1)

    @property
    def enlarging(self) -> list[str]:
        """The names of the weights that a network without `enlarge` lacks."""
        count = self.enlarge.bit_length() - 1
        first = len(self.decoder_layers) - count
        names = tuple(f"decoder_layers.{place}." for place in range(first, first + count))
        return [name for name in self.state_dict() if name.startswith(names)]

    def latent_shape(self, image_size_px: int) -> tuple[int, int, int]:
        """(z_channels, h, w) of the latents of square images of that side."""
        side = image_size_px // self.downscale
        return self.z_channels, side, side

    def encode_continuous(self, x: Tensor) -> Tensor:
        """Images (B, im_channels, H, W) -> what `quantize` takes, (B, z, h, w)."""
        out = self.encoder_conv_in(F.avg_pool2d(x, self.enlarge))
        for layer in (*self.encoder_layers, *self.encoder_mids):
            out = layer(out)
        out = self.encoder_conv_out(F.silu(self.encoder_norm_out(out)))
        return self.pre_quant_conv(out)

    def _nearest_codes(self, x: Tensor) -> Tensor:
        vectors = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, h*w, z)
        return torch.cdist(vectors, self.embedding.weight).argmin(-1).view(-1, *x.shape[2:])  # (B, h, w)

    def quantize(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Replace each vector of x (B, z, h, w) by its nearest codebook entry.

        Returns the quantised latents, whose gradient passes straight through to `x`; the two losses of van den Oord
        et al. 2017, equation 3, as means over all elements: "codebook_loss" moves the entries, "commitment_loss" the
        encoder; and the entries' indices (B, h, w).
        """
        codes = self._nearest_codes(x)
        quantised = self.embed(codes)
        losses = {
            "codebook_loss": F.mse_loss(quantised, x.detach()),
            "commitment_loss": F.mse_loss(x, quantised.detach()),
        }
        return x + (quantised - x).detach(), losses, codes

    def encode(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (B, im_channels, H, W) -> quantised latents (B, z, h, w) and the losses of `quantize`."""
        z, losses, _ = self.quantize(self.encode_continuous(x))
        return z, losses

    def encode_codes(self, x: Tensor) -> Tensor:
        """Images (B, im_channels, H, W) -> codebook indices (B, h, w), all that `embed` needs to give the latents."""
        return self._nearest_codes(self.encode_continuous(x))

    def embed(self, codes: Tensor) -> Tensor:
        """Codebook indices (B, h, w) of any integer type -> latents (B, z, h, w)."""
        return F.embedding(codes.int(), self.embedding.weight).permute(0, 3, 1, 2)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, z, h, w) -> images (B, im_channels, H, W), not clamped."""
        out = self.decoder_conv_in(self.post_quant_conv(z))
        for layer in (*self.decoder_mids, *self.decoder_layers):
            out = layer(out)
        return self.decoder_conv_out(F.silu(self.decoder_norm_out(out)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Images -> reconstructions, quantised latents, quantisation losses."""
        z, losses = self.encode(x)
        return self.decode(z), z, losses


def make_vqvae(settings: AutoencoderSettings) -> VQVAE:
    """The autoencoder that the settings describe, untrained."""
    sizes: dict[str, Any] = dict(settings.vqvae)
    return VQVAE(**sizes, upsampling=settings.upsampling)
