"""Test tiles that show a part of a training tile, shifted, turned or mirrored: as of one slide cut twice.

Blobs, such as nuclei, are found where they lie, whatever the tile's edges. Where what surrounds one in a test tile is
what surrounds one in a training tile, the two tiles are laid over each other there and compared.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pfiles.tiles.mapped import Images
from pfiles.tiles.pixels import evenly_spaced

MOST = 256, 4096  # test and training tiles that are searched, evenly spaced
LARGEST = 64  # px of a side: larger tiles are averaged to less than twice that
BLOBS = 6  # of a tile, the strongest
INNER, OUTER, APART = 5, 13, 9  # px of the squares whose means differ at a blob, and least distance of two blobs
REACH = 8  # px around a blob that are compared
SURROUNDED, SAME = 0.9, 0.9  # correlation of what surrounds two blobs, and of the tiles where one lies over the other
LEAST = 0.25  # of a tile's area that both must show
PLAIN = 3.0  # levels by which that must differ within itself, else it says nothing
PART = 256  # tiles, or blobs, at once


class _Blobs(NamedTuple):
    """Of N tiles: rows and columns (N, BLOBS, 2), and what surrounds each (N, BLOBS, 9, 9), of mean 0 and length 1."""

    places: Tensor
    around: Tensor


def shifted_copies(images: Images, test: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Pairs (M, 2) of a test tile and a training tile that show the same in a quarter of their area or more.

    images: (N, 3, S, S) uint8; test, train: indices into them. Of very many tiles some are searched, see `MOST`.
    """
    test, train = (part[evenly_spaced(len(part), most)] for part, most in zip((test, train), MOST, strict=True))
    if images.shape[2] < 4 * REACH or not len(test) or not len(train):
        return np.empty((0, 2), int)
    ours, theirs = _smooth(images, test), _smooth(images, train)
    of_test, of_train = _blobs(ours), _blobs(theirs)
    likeness, match, way = most_alike(of_test.around.flatten(0, 1), of_train.around.flatten(0, 1).flatten(1).T)
    pairs = []
    for i, of_tile in enumerate(likeness.view(-1, BLOBS)):
        for blob in of_tile.argsort(descending=True)[: (of_tile > SURROUNDED).sum()].tolist():
            at = i * BLOBS + blob
            j, other = divmod(int(match[at]), BLOBS)
            if _overlap(ours[i], theirs[j], of_test.places[i, blob], of_train.places[j, other], int(way[at])):
                pairs.append((test[i], train[j]))
                break
    return np.array(pairs, int).reshape(-1, 2)


def _smooth(images: Images, indices: np.ndarray) -> Tensor:
    """Tiles in grey and without their finest detail, (N, 1, s, s) float."""
    factor = max(1, images.shape[2] // LARGEST)
    parts = (images[part].float().mean(1, keepdim=True) for part in torch.as_tensor(indices).split(PART))
    return torch.cat([_mean_around(F.avg_pool2d(part, factor), 3) for part in parts])


def _blobs(tiles: Tensor) -> _Blobs:
    places, around = [], []
    step = torch.arange(-REACH, REACH + 1, 2)
    for part in tiles.split(PART):
        strength = (_mean_around(part, INNER) - _mean_around(part, OUTER)).abs()
        inside = F.pad(torch.ones_like(strength[..., 2 * REACH :, 2 * REACH :]), [REACH] * 4)
        strongest = F.max_pool2d(strength, (APART, 1), 1, (APART // 2, 0))
        strongest = F.max_pool2d(strongest, (1, APART), 1, (0, APART // 2))
        strength = strength * inside * (strength == strongest)
        side = part.shape[-1]
        flat = strength.flatten(1).topk(BLOBS).indices
        here = torch.stack([flat // side, flat % side], dim=2).clamp(REACH, side - 1 - REACH)
        rows, columns = (here[..., axis, None, None] + step.view(shape) for axis, shape in ((0, (-1, 1)), (1, (1, -1))))
        window = part[torch.arange(len(part))[:, None, None, None], 0, rows, columns]
        window = window - window.mean((2, 3), keepdim=True)
        length = window.flatten(2).norm(dim=2)[..., None, None]
        around.append(torch.where(length > PLAIN * len(step), window / length.clamp(min=1e-9), 0))
        places.append(here)
    return _Blobs(torch.cat(places), torch.cat(around))


def _mean_around(images: Tensor, side: int) -> Tensor:
    """The mean of the square of `side` px, an odd number, around each pixel of images (N, C, S, S)."""
    half = side // 2
    for kernel, margin in (((side, 1), (half, 0)), ((1, side), (0, half))):
        images = F.avg_pool2d(images, kernel, 1, margin, count_include_pad=False)
    return images


def most_alike(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest correlation of each of `ours` (N, ..., s, s), turned or mirrored, with one of `theirs` (d, M).

    All have length 1. Returns it, which of `theirs` it is, and the way to turn, see `turned`; each (N,).
    """
    likeness = torch.full((len(ours),), -1.0)
    match, way = torch.zeros(len(ours), dtype=torch.long), torch.zeros(len(ours), dtype=torch.long)
    for first in range(0, len(ours), PART):
        part = slice(first, first + PART)
        for number in range(8):
            best, at = (turned(ours[part], number).flatten(1) @ theirs).max(1)
            match[part] = torch.where(best > likeness[part], at, match[part])
            way[part] = torch.where(best > likeness[part], number, way[part])
            likeness[part] = torch.maximum(best, likeness[part])
    return likeness, match, way


def turned(images: Tensor, way: int) -> Tensor:
    """Images (..., S, S) turned by `way` % 4 quarters, and mirrored from 4 on."""
    quarters = torch.rot90(images, way % 4, (-2, -1))
    return quarters.flip(-1) if way >= 4 else quarters


def _overlap(ours: Tensor, theirs: Tensor, place: Tensor, other: Tensor, way: int) -> bool:
    """Whether two grey tiles (1, S, S) show the same where one lies over the other.

    place, other: the blob of each, which lie on each other. way: how the first is turned before that.
    """
    side = ours.shape[-1]
    mark = torch.zeros(side, side)
    mark[place[0], place[1]] = 1
    row, column = divmod(int(turned(mark, way).argmax()), side)
    down, right = int(other[0]) - row, int(other[1]) - column
    height, width = side - abs(down), side - abs(right)
    if height * width < LEAST * side**2:
        return False
    ours = turned(ours, way)[:, max(0, -down) :, max(0, -right) :][:, :height, :width]
    theirs = theirs[:, max(0, down) :, max(0, right) :][:, :height, :width]
    first, second = (part - _mean_around(part, OUTER) for part in (ours, theirs))  # its details, not its shading
    length = [float(part.norm()) for part in (first, second)]
    if min(length) <= PLAIN * first.numel() ** 0.5:
        return False
    return float((first * second).sum()) > SAME * length[0] * length[1]
