"""The patch discriminators of the VQ-GAN: the published one, and the one that its decoder is polished against."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from pfiles.machine.processes import BatchNorm2d
from pfiles.settings import AutoencoderSettings, PolishSettings


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


def make_discriminator(settings: AutoencoderSettings) -> Discriminator:
    """The discriminator of the VQ-GAN that the settings describe, untrained."""
    sizes: dict[str, Any] = dict(settings.discriminator)
    return Discriminator(**sizes)


def make_polish_discriminator(settings: PolishSettings) -> PolishDiscriminator:
    """That of the polish, likewise."""
    sizes: dict[str, Any] = dict(settings.discriminator)
    return PolishDiscriminator(**sizes)
