"""The patch discriminators of the VQ-GAN: the published one, and those that its decoder is polished against."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from pfiles.machine.processes import BatchNorm2d
from pfiles.settings import AutoencoderSettings


class Discriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): images (B, im_channels, H, W) -> one logit per patch (B, 1, h, w).

    128 px images give 15 x 15 patches. 663,360 parameters with the paper's widths.
    """

    def __init__(self, im_channels: int = 3, conv_channels: Sequence[int] = (64, 128, 256)):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(im_channels, conv_channels[0], 4, 2, 1), nn.LeakyReLU(0.2))]
        )
        for wide, wider in pairwise(conv_channels):
            conv = nn.Conv2d(wide, wider, 4, 2, 1, bias=False)
            self.layers.append(nn.Sequential(conv, BatchNorm2d(wider), nn.LeakyReLU(0.2)))
        self.layers.append(nn.Sequential(nn.Conv2d(conv_channels[-1], 1, 4, 1, 1, bias=False)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class PolishDiscriminator(nn.Sequential):
    """PatchGAN with group norm: images (B, im_channels, H, W) -> one logit per patch (B, 1, h, w).

    Group norm judges each image by itself, so that a batch of real and one of generated tiles are seen alike.

    norm_channels: groups of every GroupNorm; must divide every width but the first.
    """

    def __init__(self, im_channels: int = 3, conv_channels: Sequence[int] = (32, 64, 128), norm_channels: int = 8):
        layers = [nn.Conv2d(im_channels, conv_channels[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for wide, wider in pairwise(conv_channels):
            layers += [nn.Conv2d(wide, wider, 4, 2, 1), nn.GroupNorm(norm_channels, wider), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(conv_channels[-1], 1, 4, 1, 1))


class FeatureDiscriminator(nn.Module):
    """Judges feature maps of a frozen network in place of pixels (projected GAN, Sauer et al. 2021).

    Images (B, 3, H, W) in [0, 1] -> the logits of all patches at four resolutions (B, n). A fixed random 1 x 1
    convolution mixes the channels of each map, so that no single one can be ignored; a head judges the mixture.

    maps: of images, coarser and coarser, as `EfficientNetLite.maps` gives them; their network is no part of this one.
    channels: of each mixture, a multiple of `norm_channels`, the groups of every GroupNorm.
    """

    LEVELS = ((1, 16, 2), (2, 24, 1), (3, 40, 1), (5, 112, 0))  # map, its channels, how often its head halves it

    def __init__(self, maps: Callable[[Tensor], list[Tensor]], channels: int = 64, norm_channels: int = 8):
        super().__init__()
        self.maps = maps
        self.mixtures, self.heads = nn.ModuleList(), nn.ModuleList()
        for _, width, halvings in self.LEVELS:
            mixture = nn.Conv2d(width, channels, 1).requires_grad_(False)
            nn.init.kaiming_normal_(mixture.weight)
            layers: list[nn.Module] = []
            for kernel, stride in [(4, 2)] * halvings + [(3, 1)]:
                conv = spectral_norm(nn.Conv2d(channels, channels, kernel, stride, 1))
                layers += [conv, nn.GroupNorm(norm_channels, channels), nn.LeakyReLU(0.2)]
            self.mixtures.append(mixture)
            self.heads.append(nn.Sequential(*layers, spectral_norm(nn.Conv2d(channels, 1, 1))))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.maps(x)
        levels = zip(self.LEVELS, self.mixtures, self.heads, strict=True)
        return torch.cat([head(mixture(maps[level])).flatten(1) for (level, *_), mixture, head in levels], dim=1)


def make_discriminator(settings: AutoencoderSettings) -> Discriminator:
    """The discriminator of the VQ-GAN that the settings describe, untrained."""
    sizes: dict[str, Any] = dict(settings.discriminator)
    return Discriminator(**sizes)
