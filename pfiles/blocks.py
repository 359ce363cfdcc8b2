"""The building blocks of the VQ-GAN and the UNet: time embedding, self-attention, down, mid and up blocks.

The four blocks are one stack of residual units, each followed by self-attention where there is any; they differ
in what happens to the resolution before or after. Attribute names are the keys of the published checkpoints and
the order of construction decides the seeded initial weights, so neither may change.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CPU_HEAD_DIM = 16  # narrower heads are filled up with zeros there: the fused kernel is then up to 1.6 times faster
CPU_BF16_PLACES = 256  # up to so many the fused kernel's gradient in bfloat16 takes longer there than plain products


def get_time_embedding(time_steps: Tensor, t_emb_dim: int) -> Tensor:
    """Sinusoidal embedding of diffusion time steps: (B,) -> (B, t_emb_dim), sines first, then cosines.

    Ho et al. 2020 (after Vaswani et al. 2017, section 3.5), wavelengths from 2 pi to 10,000 * 2 pi.
    """
    if t_emb_dim % 2:
        raise ValueError(f"t_emb_dim must be even, but is {t_emb_dim}.")
    half = t_emb_dim // 2
    frequencies = 10000 ** (-torch.arange(half, dtype=torch.float32, device=time_steps.device) / half)
    angles = time_steps[:, None] * frequencies  # (B, half)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class SelfAttention(nn.MultiheadAttention):
    """Multi-head self-attention over the pixels of a feature map: (B, C, H, W) -> (B, C, H, W).

    Inherits the parameters (`in_proj_weight`, `in_proj_bias`, `out_proj`) and their initialisation from torch's
    module and computes with the fused kernel, which never materialises the (H*W, H*W) weights; the exception are few
    places in bfloat16 on a CPU.
    """

    def __init__(self, channels: int, num_heads: int):
        super().__init__(channels, num_heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # less than torch's
        b, c, h, w = x.shape
        qkv = _pointwise(x, self.in_proj_weight, self.in_proj_bias).movedim(1, -1)  # (B, H, W, 3 C)
        heads = [part.reshape(b, h * w, self.num_heads, self.head_dim).transpose(1, 2) for part in qkv.chunk(3, dim=-1)]
        on_cpu, scale = x.device.type == "cpu", self.head_dim**-0.5
        if on_cpu and self.head_dim < CPU_HEAD_DIM:
            heads = [F.pad(part, (0, CPU_HEAD_DIM - self.head_dim)) for part in heads]
        q, k, v = heads
        if on_cpu and qkv.dtype == torch.bfloat16 and h * w <= CPU_BF16_PLACES:
            out = ((q * scale) @ k.mT).float().softmax(-1).to(v.dtype) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, scale=scale)  # (B, heads, H*W, C/heads or more)
        out = out[..., : self.head_dim].transpose(1, 2).reshape(b, h, w, c).movedim(-1, 1)
        return _pointwise(out, self.out_proj.weight, self.out_proj.bias)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer (C', C) at every place: (B, C, H, W) -> (B, C', H, W)."""
    # on a CPU convolutions come from a faster library than matrix products; for 1 x 1 it is used from 16 images on
    if x.device.type == "cpu" and len(x) >= 16:
        return F.conv2d(x, weight[:, :, None, None], bias)
    return F.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)


def _norm_act_conv(norm_channels: int, in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.GroupNorm(norm_channels, in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
    )


class ResidualStack(nn.Module):
    """`num_resnets` residual units; the first `num_attentions` of them are followed by self-attention.

    t_emb_dim: width of the time embedding added inside each unit, or None for a network without time.
    norm_channels: number of groups of every GroupNorm; it must divide `in_channels` and `out_channels`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        t_emb_dim: int | None,
        num_heads: int,
        num_resnets: int,
        num_attentions: int,
        norm_channels: int,
    ):
        super().__init__()
        widths = [in_channels] + [out_channels] * (num_resnets - 1)
        self.resnet_conv_first = nn.ModuleList(_norm_act_conv(norm_channels, c, out_channels) for c in widths)
        if t_emb_dim is not None:
            self.t_emb_layers = nn.ModuleList(
                nn.Sequential(nn.SiLU(), nn.Linear(t_emb_dim, out_channels)) for _ in widths
            )
        self.resnet_conv_second = nn.ModuleList(
            _norm_act_conv(norm_channels, out_channels, out_channels) for _ in widths
        )
        self.attention_norms = nn.ModuleList(nn.GroupNorm(norm_channels, out_channels) for _ in range(num_attentions))
        self.attentions = nn.ModuleList(SelfAttention(out_channels, num_heads) for _ in range(num_attentions))
        self.residual_input_conv = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in widths)

    def stack(self, x: Tensor, t_emb: Tensor | None) -> Tensor:
        for i, shortcut in enumerate(self.residual_input_conv):
            h = self.resnet_conv_first[i](x)
            if t_emb is not None:
                h = h + self.t_emb_layers[i](t_emb)[:, :, None, None]
            x = shortcut(x) + self.resnet_conv_second[i](h)
            if i < len(self.attentions):
                x = x + self.attentions[i](self.attention_norms[i](x))
        return x


class DownBlock(ResidualStack):
    """Residual units (with attention where `attn`), then half the resolution where `down_sample`."""

    def __init__(self, in_channels, out_channels, t_emb_dim, down_sample, num_heads, num_layers, attn, norm_channels):
        super().__init__(
            in_channels, out_channels, t_emb_dim, num_heads, num_layers, num_layers if attn else 0, norm_channels
        )
        self.down_sample_conv = nn.Conv2d(out_channels, out_channels, 4, 2, 1) if down_sample else nn.Identity()

    def forward(self, x: Tensor, t_emb: Tensor | None = None) -> Tensor:
        return self.down_sample_conv(self.stack(x, t_emb))


class MidBlock(ResidualStack):
    """One residual unit, then `num_layers` times self-attention and another unit."""

    def __init__(self, in_channels, out_channels, t_emb_dim, num_heads, num_layers, norm_channels):
        super().__init__(in_channels, out_channels, t_emb_dim, num_heads, num_layers + 1, num_layers, norm_channels)

    def forward(self, x: Tensor, t_emb: Tensor | None = None) -> Tensor:
        return self.stack(x, t_emb)


class ResizeConv(nn.Conv2d):
    """Nearest-neighbour enlargement and a convolution: twice the resolution without the grid that a transposed
    convolution leaves, whose kernel overlaps itself at every second pixel (Odena et al. 2016).

    Each of the four new pixels that repeat an old one sees 2 x 2 old pixels only, so that the nine weights add up to
    four. One transposed convolution with these sums gives the same in less than half of the multiplications.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        sums = self.weight.flip(2, 3).transpose(0, 1)
        for axis in (2, 3):  # of neighbouring weights, which meet the same old pixel: 3 x 3 -> 4 x 4
            zero = torch.zeros_like(sums.narrow(axis, 0, 1))
            sums = torch.cat([sums, zero], axis) + torch.cat([zero, sums], axis)
        return F.conv_transpose2d(x, sums, self.bias, stride=2, padding=1)


class UpBlock(ResidualStack):
    """Twice the resolution where `up_sample`, then residual units (with attention where `attn`).

    upsampling: "transposed", a transposed convolution as published, or "resize", see `ResizeConv`.
    """

    def __init__(
        self, in_channels, out_channels, t_emb_dim, up_sample, num_heads, num_layers, attn, norm_channels,
        upsampling="transposed",
    ):  # fmt: skip
        super().__init__(
            in_channels, out_channels, t_emb_dim, num_heads, num_layers, num_layers if attn else 0, norm_channels
        )
        width = self.up_sampled_channels(in_channels)
        if not up_sample:
            self.up_sample_conv = nn.Identity()
        elif upsampling == "resize":
            self.up_sample_conv = ResizeConv(width)
        else:
            self.up_sample_conv = nn.ConvTranspose2d(width, width, 4, 2, 1)

    @staticmethod
    def up_sampled_channels(in_channels: int) -> int:
        return in_channels

    def forward(self, x: Tensor, out_down: Tensor | None = None, t_emb: Tensor | None = None) -> Tensor:
        x = self.up_sample_conv(x)
        if out_down is not None:
            x = torch.cat([x, out_down], dim=1)
        return self.stack(x, t_emb)


class UpBlockUNet(UpBlock):
    """The UNet's up block, always with attention: half of `in_channels` comes from below, half from the skip."""

    def __init__(self, in_channels, out_channels, t_emb_dim, up_sample, num_heads, num_layers, norm_channels):
        super().__init__(in_channels, out_channels, t_emb_dim, up_sample, num_heads, num_layers, True, norm_channels)

    @staticmethod
    def up_sampled_channels(in_channels: int) -> int:
        return in_channels // 2
