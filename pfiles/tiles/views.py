"""Views of a tile: turned, mirrored, moved a little."""

import torch
from torch import Tensor


def random_dihedral(images: Tensor, rng: torch.Generator) -> Tensor:
    """Each of the square images (B, C, S, S) in one of its eight views: quarter turns, mirrored or not.

    `rng` lives on the images' device.
    """
    return dihedral(images, torch.randint(8, (len(images),), generator=rng, device=images.device))


def dihedral(images: Tensor, view: Tensor) -> Tensor:
    """Each of the square images (B, C, S, S) in the view (B,) of that number, 0 ... 7; 0 is the image as it is."""
    flip_x, flip_y, transpose = ((view.view(-1, 1, 1, 1) >> bit) & 1 for bit in range(3))
    images = torch.where(flip_x.bool(), images.flip(3), images)
    images = torch.where(flip_y.bool(), images.flip(2), images)
    return torch.where(transpose.bool(), images.transpose(2, 3), images)


def random_affine(
    images: Tensor,
    rng: torch.Generator,
    degrees: float = 5.0,
    translate: float = 0.05,
    scale: tuple[float, float] = (0.95, 1.05),
    fill: tuple[int, int, int] = (130, 97, 154),
) -> Tensor:
    """A random rotation, shift and zoom of each tile, with the distribution of the published augmentation.

    images: uint8 (B, C, H, W) on any device; each draws its own angle in +-degrees, its own shift of up to
    `translate` of the side in whole pixels, and its own scale. Nearest neighbour, `fill` outside; equals
    torchvision's RandomAffine on PIL images for the same parameters. `rng` lives on the images' device.
    """
    b, _, h, w = images.shape
    u = torch.rand(4, b, generator=rng, dtype=torch.float64, device=images.device) * 2 - 1
    angle = torch.deg2rad(degrees * u[0])
    shift_x, shift_y = (translate * w * u[1]).round(), (translate * h * u[2]).round()
    zoom = (scale[0] + scale[1]) / 2 + (scale[1] - scale[0]) / 2 * u[3]
    return affine(images, angle, shift_x, shift_y, zoom, fill)


def affine(
    images: Tensor, angle: Tensor, shift_x: Tensor, shift_y: Tensor, zoom: Tensor, fill: tuple[int, int, int]
) -> Tensor:
    """Rotate each of the images (B, C, H, W) by its angle (radians), zoom about the centre and shift (pixels).

    angle, shift_x, shift_y, zoom: (B,) float64, on the images' device.
    """
    b, c, h, w = images.shape
    device = images.device
    x = torch.arange(w, device=device, dtype=torch.float64) + 0.5 - w / 2  # pixel centres, from the image's centre
    y = torch.arange(h, device=device, dtype=torch.float64) + 0.5 - h / 2
    x, y = x[None, None, :], y[None, :, None]
    cos, sin, shift_x, shift_y = (v[:, None, None] for v in (angle.cos() / zoom, angle.sin() / zoom, shift_x, shift_y))
    # the inverse map: where in the source each pixel of the result comes from
    source_x = (cos * (x - shift_x) + sin * (y - shift_y) + w / 2).floor().long()  # (B, H, W)
    source_y = (-sin * (x - shift_x) + cos * (y - shift_y) + h / 2).floor().long()
    inside = (source_x >= 0) & (source_x < w) & (source_y >= 0) & (source_y < h)
    index = (source_y.clamp(0, h - 1) * w + source_x.clamp(0, w - 1)).view(b, 1, h * w).expand(b, c, h * w)
    affine_views = images.flatten(2).gather(2, index).view(b, c, h, w)
    outside = ~inside
    for channel, value in enumerate(fill):
        affine_views[:, channel].masked_fill_(outside, value)
    return affine_views
