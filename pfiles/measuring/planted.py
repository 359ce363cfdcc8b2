"""Copies that are planted to see whether a search finds them: tiles, changed in every way that a copier might.

Each kind takes the tiles that are copied, as many others that they are mixed with, both uint8 (N, 3, S, S), and a
generator of random numbers, and gives copies of the same shape. What comes in beyond a tile's border is the tile
mirrored there, unless a kind says otherwise.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pfiles.measuring.two_sample import blur
from pfiles.tiles import encoding
from pfiles.tiles.pixels import to_uint8, to_unit

OVERLAP = 0.6  # of a neighbour: the share of its area that the tile shows too
MOVED = 1 / 8  # of the side, down and right
BLURRED = 1 / 64  # of the side: 2 px of 128, 1 px of 64
JPEG_QUALITY = 10
ELASTIC, KNOTS = 0.02, 6  # standard deviation of the shifts, of the side, at so many places along it
RUIFROK = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105))  # optical density of haematoxylin and eosin (2001)
MACENKO = ((0.563, 0.720, 0.406), (0.216, 0.801, 0.558))  # the same in another laboratory (2009)
AMOUNTS = (0.6, 1.5)  # by which the two stains are multiplied

Kind = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def exact(tiles: Tensor, others: Tensor, rng: torch.Generator) -> Tensor:
    return tiles.clone()


def in_another_view(tiles: Tensor, others: Tensor, rng: torch.Generator) -> Tensor:
    """The tile turned by quarters, mirrored, or both: one of the seven other views."""
    views = torch.randint(1, 8, (len(tiles),), generator=rng).tolist()
    turned = [tile.rot90(view % 4, (1, 2)) for tile, view in zip(tiles, views, strict=True)]
    return torch.stack([tile.flip(2) if view >= 4 else tile for tile, view in zip(turned, views, strict=True)])


def moved(tiles: Tensor, others: Tensor, rng: torch.Generator) -> Tensor:
    px = round(MOVED * tiles.shape[2])
    return F.pad(tiles.float(), (px, 0, px, 0), mode="reflect")[:, :, :-px, :-px].to(torch.uint8)


def neighbour(tiles: Tensor, others: Tensor, rng: torch.Generator) -> Tensor:
    """The right part of a tile on the left, and beside it another tile, as a neighbour would show other tissue."""
    px = round(OVERLAP * tiles.shape[3])
    return torch.cat([tiles[..., -px:], others[..., px:]], dim=3)


def half_of_a_tile(tiles: Tensor, others: Tensor, rng: torch.Generator) -> Tensor:
    half = tiles.shape[3] // 2
    return torch.cat([tiles[..., :half], others[..., half:]], dim=3)


def composite(tiles: Tensor, others: Tensor, rng: torch.Generator) -> Tensor:
    """The upper left quarter of a tile, and one quarter of each of three others: of its own, and of the two before."""
    half = tiles.shape[2] // 2
    pieces = tiles.clone()
    pieces[:, :, :half, half:] = others[:, :, :half, half:]
    pieces[:, :, half:, :half] = others.roll(1, 0)[:, :, half:, :half]
    pieces[:, :, half:, half:] = others.roll(2, 0)[:, :, half:, half:]
    return pieces


def mixture(tiles: Tensor, others: Tensor, rng: torch.Generator) -> Tensor:
    return ((tiles.float() + others) / 2).round().to(torch.uint8)


def as_jpeg(tiles: Tensor, others: Tensor, rng: torch.Generator) -> Tensor:
    return encoding.as_jpeg(tiles, JPEG_QUALITY)


def blurred(tiles: Tensor, others: Tensor, rng: torch.Generator) -> Tensor:
    return blur(tiles, BLURRED * tiles.shape[2])


def other_colours(tiles: Tensor, others: Tensor, rng: torch.Generator) -> Tensor:
    """Each colour by a factor of 0.7 to 1.3, and brightness to a power of 0.7 to 1.3."""
    factor = 0.7 + 0.6 * torch.rand((len(tiles), 3, 1, 1), generator=rng)
    power = 0.7 + 0.6 * torch.rand((len(tiles), 1, 1, 1), generator=rng)
    return to_uint8(to_unit(tiles) ** power * factor)


def inverted(tiles: Tensor, others: Tensor, rng: torch.Generator) -> Tensor:
    return 255 - tiles


def other_stain(tiles: Tensor, others: Tensor, rng: torch.Generator) -> Tensor:
    """Less haematoxylin and more eosin, both in another laboratory's hues."""
    density = -torch.log((tiles.float() + 1) / 256).movedim(1, 3)
    amounts = density @ torch.linalg.pinv(torch.tensor(RUIFROK))
    stained = (amounts * torch.tensor(AMOUNTS)) @ torch.tensor(MACENKO)
    return to_uint8((256 * torch.exp(-stained) - 1).movedim(3, 1) / 255)


def elastic(tiles: Tensor, others: Tensor, rng: torch.Generator) -> Tensor:
    side = tiles.shape[2]
    knots = 2 * ELASTIC * torch.randn((len(tiles), 2, KNOTS, KNOTS), generator=rng)  # grids go from -1 to 1
    shifts = F.interpolate(knots, (side, side), mode="bicubic", align_corners=True).movedim(1, 3)
    return _sampled(tiles, F.affine_grid(_matrix(0, 1).expand(len(tiles), 2, 3), list(tiles.shape), False) + shifts)


def _turned(degrees: float) -> Kind:
    return lambda tiles, others, rng: warped(tiles, degrees=degrees)


def _crop(part: float) -> Kind:
    return lambda tiles, others, rng: warped(tiles, zoom=1 / part)


KINDS: dict[str, Kind] = {
    "exact": exact,
    "in another view": in_another_view,
    "moved by an eighth": moved,
    "JPEG": as_jpeg,
    "blurred": blurred,
    "other colours": other_colours,
    "mixed with another tile": mixture,
    "a quarter beside three others": composite,
    "elastic": elastic,
    "middle of 0.75, enlarged": _crop(0.75),
    "middle of 0.5, enlarged": _crop(0.5),
    "turned by 10 degrees": _turned(10),
    "turned by 45 degrees": _turned(45),
    "inverted": inverted,
    "other stain": other_stain,
    "half a tile": half_of_a_tile,
    "neighbour that overlaps by 60 %": neighbour,
}


def warped(tiles: Tensor, degrees: float = 0.0, zoom: float = 1.0) -> Tensor:
    """Turned and zoomed about the middle, bilinear; uint8 (N, 3, S, S)."""
    grid = F.affine_grid(_matrix(degrees, zoom).expand(len(tiles), 2, 3), list(tiles.shape), align_corners=False)
    return _sampled(tiles, grid)


def _matrix(degrees: float, zoom: float) -> Tensor:
    cos, sin = (f(math.radians(degrees)) / zoom for f in (math.cos, math.sin))
    return torch.tensor([[cos, sin, 0], [-sin, cos, 0]])


def _sampled(tiles: Tensor, grid: Tensor) -> Tensor:
    return to_uint8(F.grid_sample(to_unit(tiles), grid, padding_mode="reflection", align_corners=False))
