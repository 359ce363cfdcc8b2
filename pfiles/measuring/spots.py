"""Spots of tiles that stand out, and which spots of other tiles look like them, however turned, mirrored or enlarged.

Each spot proposes one way to lay one tile over another. Spots are looked up in cells of like patches, see `cells`, so
that the time of a lookup grows with the square root of the number of tiles.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from torch import Tensor

from pfiles.machine.runtime import make_rng
from pfiles.measuring.cells import Cells, learn_cells

SIDE = 64  # pixels at most of the tiles in which spots are looked for
NUMBER = 64  # spots of a tile
LEVELS = (1.41, 1.19, 1.0, 0.84, 0.71, 0.6, 0.5)  # sizes at which an image is looked at, of its own
SMALLEST = 16  # pixels: no image is looked at smaller
FEWEST = 14  # spots of an image at one size
MARGIN = 5  # pixels from the border that have no spots
APART = 5  # pixels: of spots in a window of so many the one that stands out most counts
FINE, COARSE, WIDE = 1.2, 2.3, 3.4  # pixels: Gaussians whose difference finds spots, and that turns them
PATCH, REACH = 7, 6.0  # samples along the side of a patch, and pixels from its middle to its border
DIMENSIONS = 24  # of a patch that are compared
LOOKED_INTO = 4  # cells, the nearest ones
LEVELS_OF_PATCH = 127  # of an int8
LEARNT_FROM = 64  # patches for each cell
ONE_IN_COMMON = 1e-4  # share of the variance below which a dimension of patches is noise


class Spots(NamedTuple):
    """Of N images K spots each.

    place: (N, K, 2), x and y from -1 to 1, as `affine_grid` counts them. angle: (N, K), radians, in which it becomes
    brighter around the spot. patch: (N, K, 49), turned by that angle, of mean 0 and length 1.
    """

    place: Tensor
    angle: Tensor
    patch: Tensor


class Matches(NamedTuple):
    """Of B images C spots of tiles each that look like one of theirs.

    tile: (B, C), its index. pose: (B, C, 2, 3), the matrix that takes places of the image to places of the tile.
    likeness: (B, C), the correlation of both patches, from -1 to 1.
    """

    tile: Tensor
    pose: Tensor
    likeness: Tensor


class Described(NamedTuple):
    """The spots of some tiles, n in all, in 32 bytes each.

    place: (tiles, K, 2) and angle: (tiles, K), as in `Spots`. patch: (n, D) int8, 127 being 1. cell: (n,) int32.
    """

    place: Tensor
    angle: Tensor
    patch: Tensor
    cell: Tensor


@dataclass(frozen=True)
class Description:
    """How patches are told apart: by D numbers each, and sorted into cells. mean: (49,). basis: (49, D)."""

    mean: Tensor
    basis: Tensor
    cells: Cells

    def vectors(self, patches: Tensor) -> Tensor:
        """(..., 49) -> (..., D), of length 1."""
        return F.normalize((patches - self.mean) @ self.basis, dim=-1)

    def __call__(self, spots: Spots) -> Described:
        vectors = self.vectors(spots.patch.flatten(0, 1))
        patch = (LEVELS_OF_PATCH * vectors).round().to(torch.int8)
        return Described(spots.place.half(), spots.angle.half(), patch, self.cells.of(vectors).int())


@dataclass(frozen=True)
class SpotIndex:
    """The spots of M tiles, sorted into cells of like patches.

    place, angle: as in `Described`, of all tiles. patch: (M K, D), by cell. at: (M K,), which spot each is. begins:
    where each cell begins in `patch`, and the end of the last.
    """

    description: Description
    place: Tensor
    angle: Tensor
    patch: Tensor
    at: Tensor
    begins: list[int]

    @property
    def per_tile(self) -> int:
        return self.angle.shape[1]


def find_spots(grey: Tensor, number: int = NUMBER) -> Spots:
    """The spots of float images (N, S, S) that stand out most from their surroundings: local maxima of the difference
    of two Gaussians, at most `number`."""
    side = grey.shape[1]
    fine, coarse, wide = _smoothed(grey.numpy())
    contrast = np.abs(fine - coarse)
    contrast[contrast < scipy.ndimage.maximum_filter(contrast, (1, APART, APART))] = 0
    inner = torch.from_numpy(contrast)[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    spot = inner.flatten(1).topk(min(number, inner[0].numel())).indices  # (N, K)
    y, x = spot // inner.shape[2] + MARGIN, spot % inner.shape[2] + MARGIN
    up, down, left, right = (
        wide.flatten(1).gather(1, (y + dy) * side + x + dx) for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1))
    )
    angle = torch.atan2(down - up, right - left)
    place = (2 * torch.stack([x, y], dim=2) + 1) / side - 1
    steps = torch.linspace(-REACH, REACH, PATCH) * 2 / side
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=2).flatten(0, 1)  # (49, 2)
    where = place[:, :, None] + offsets @ _turn(angle).transpose(2, 3)
    patch = F.grid_sample(
        torch.from_numpy(fine)[:, None], where, padding_mode="reflection", align_corners=False
    )  # (N, 1, K, 49)
    patch = patch[:, 0] - patch[:, 0].mean(2, keepdim=True)
    return Spots(place, angle, F.normalize(patch, dim=2))


def _smoothed(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """The images behind three Gaussians, each applied to the result of the one before."""
    fine = scipy.ndimage.gaussian_filter(grey, (0, FINE, FINE), truncate=3)
    more, most = (COARSE**2 - FINE**2) ** 0.5, (WIDE**2 - COARSE**2) ** 0.5
    coarse = scipy.ndimage.gaussian_filter(fine, (0, more, more), truncate=3)
    return fine, coarse, torch.from_numpy(scipy.ndimage.gaussian_filter(coarse, (0, most, most), truncate=3))


def _turn(angle: Tensor) -> Tensor:
    """(...,) -> (..., 2, 2): the matrix that turns x and y by an angle."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], dim=-1), torch.stack([sin, cos], dim=-1)], dim=-2)


def learn_description(spots: Spots, number: int) -> Description:
    """What tells the patches of `spots` apart, with cells for `number` spots like these."""
    patches = spots.patch.flatten(0, 1)
    cells = max(1, round(number**0.5))
    rng = make_rng("cells of patches")
    patches = patches[torch.randperm(len(patches), generator=rng)[: LEARNT_FROM * cells]]
    mean = patches.mean(0)
    _, spread, axes = torch.linalg.svd(patches - mean, full_matrices=False)
    variance = spread.square() / spread.square().sum().clamp_min(1e-12)
    basis = (axes.T / (variance + ONE_IN_COMMON) ** 0.25)[:, :DIMENSIONS]  # halfway to equal variances
    return Description(mean, basis, learn_cells(F.normalize((patches - mean) @ basis, dim=1), cells))


def index_spots(description: Description, parts: Iterable[Described]) -> SpotIndex:
    """The index of the spots of all tiles, from which images are then matched."""
    place, angle, patch, cell = map(torch.cat, zip(*parts, strict=True))
    order = cell.argsort(stable=True)
    begins = [0, *cell.bincount(minlength=description.cells.number).cumsum(0).tolist()]
    return SpotIndex(description, place, angle, patch[order], order.int(), begins)


def match_spots(index: SpotIndex, grey: Tensor) -> Matches:
    """The spots of tiles that look like spots of the images (B, S, S), seen at seven sizes and in a mirror."""
    levels = [(level, round(level * grey.shape[1])) for level in LEVELS]
    levels = [(level, side) for level, side in levels if side >= SMALLEST]
    at_levels = [
        find_spots(_resized(grey, side), max(FEWEST, round(NUMBER * min(1.0, level) ** 1.5))) for level, side in levels
    ]
    spots = Spots(*(torch.cat(parts, dim=1) for parts in zip(*at_levels, strict=True)))
    size = torch.cat(
        [torch.full_like(one.angle, level) for one, (level, _) in zip(at_levels, levels, strict=True)], dim=1
    )
    mirrored = spots.patch.unflatten(2, (PATCH, PATCH)).flip(2).flatten(2)  # about the direction of the angle
    patches = torch.stack([spots.patch, mirrored], dim=2)  # (B, n, 2, 49)
    likeness, at = _look_up(index, index.description.vectors(patches).flatten(0, 2))
    likeness, at = likeness.view(*patches.shape[:3], -1), at.view(*patches.shape[:3], -1)  # (B, n, 2, cells)
    pose = _poses(index, spots, size, at)
    return Matches((at // index.per_tile).flatten(1), pose.flatten(1, 3), likeness.flatten(1))


def _resized(grey: Tensor, side: int) -> Tensor:
    if side == grey.shape[1]:
        return grey
    smaller = side < grey.shape[1]
    return F.interpolate(grey[:, None], (side, side), mode="bilinear", antialias=smaller, align_corners=False)[:, 0]


def _look_up(index: SpotIndex, patches: Tensor) -> tuple[Tensor, Tensor]:
    """For each of Q patches (Q, D) the most alike spot of each of the nearest cells. -> (Q, L) likeness, and spots"""
    cell = index.description.cells.nearest(patches, LOOKED_INTO)
    order = cell.flatten().argsort()
    ends = [0, *cell.flatten().bincount(minlength=index.description.cells.number).cumsum(0).tolist()]
    sorted_patches = patches[order // cell.shape[1]]
    likeness, best = torch.full((len(order),), -1.0), torch.zeros(len(order), dtype=torch.long)
    for i in cell.unique().tolist():
        begin, end = index.begins[i : i + 2]
        if begin < end:
            near = slice(ends[i], ends[i + 1])
            there = index.patch[begin:end].float() / LEVELS_OF_PATCH
            likeness[near], at = (sorted_patches[near] @ there.T).max(1)
            best[near] = at + begin
    back = order.argsort()
    return likeness[back].view(cell.shape), index.at[best[back]].long().view(cell.shape)


def _poses(index: SpotIndex, spots: Spots, size: Tensor, at: Tensor) -> Tensor:
    """The matrices that lay the spots `at` (B, n, 2, L) over those of the images. -> (B, n, 2, L, 2, 3)"""
    of_tile = _turn(index.angle.flatten()[at].float())  # (B, n, 2, L, 2, 2)
    back = (_turn(-spots.angle) * size[..., None, None])[:, :, None, None]
    mirror = torch.tensor([[[1.0, 0], [0, 1]], [[1, 0], [0, -1]]])[:, None]  # (2, 1, 2, 2)
    matrix = of_tile @ mirror @ back
    shift = index.place.flatten(0, 1)[at].float()[..., None] - matrix @ spots.place[:, :, None, None, :, None]
    return torch.cat([matrix, shift], dim=-1)
