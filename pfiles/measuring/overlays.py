"""A training tile laid over an image, turned, enlarged, moved or stretched: where does one show what the other shows?

Like spots propose overlays, see `spots`; each is compared at 32 x 32 px, and the best few are fitted by Gauss-Newton
steps, as images are registered (Lucas and Kanade 1981; Baker and Matthews 2004).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pfiles.measuring.spots import (
    SIDE,
    SMALLEST,
    Matches,
    SpotIndex,
    Spots,
    find_spots,
    index_spots,
    learn_description,
    match_spots,
)  # fmt: skip
from pfiles.tiles.mapped import Images
from pfiles.tiles.pixels import evenly_spaced

LAYOUT = 5 / 16  # of the side: structure coarser than this, such as an empty corner, does not count
COMPARED = 32  # pixels: the side at which proposals are compared and fitted first
FLAT = 10.0  # levels of 255: where tissue deviates less, its structure counts less
LIKE, ALIKE = 0.5, 64  # correlation from which on like spots vote for a tile, and the votes of an image that count
LEARNT = 2**11  # tiles at most from which it is learnt what tells spots apart
PROPOSALS, FITTED = 48, 4  # of an image, compared and fitted
VOTED = 48  # tiles of an image that most spots agree on
STEPS, LAST_STEPS = 5, 2  # of the fit at 32 px, and at the full 64 px
FARTHEST = 0.15  # that a step may change a number of the matrix by
SEEN = 1 / 4  # of the image must have structure and lie where the tile lies, at least
# which quarters of an image make it up, its halves and its quarters: (4, 9), of upper left, upper right and so on
PARTS = torch.tensor([[1, 1, 0, 1, 0, 1, 0, 0, 0], [1, 1, 0, 0, 1, 0, 1, 0, 0],
                      [1, 0, 1, 1, 0, 0, 0, 1, 0], [1, 0, 1, 0, 1, 0, 0, 0, 1]]).float()  # fmt: skip
CERTAIN = 0.999  # correlation beyond which none counts as higher
FAINT = 0.2  # contrast of the image, of the tile's, below which a step is not made larger


class Overlays(NamedTuple):
    """The best overlay of each of B images.

    tile: (B,). pose: (B, 2, 3), the matrix that takes places of the image to places of the tile, both from -1 to 1.
    likeness: (B,), tanh(arctanh(c) sqrt(e)), the highest of the image, its four halves and its four quarters. c: the
    correlation of image and tile there, where the tile counts as 0 beyond its border; e: the share of the image's
    structure that lies there. So a part must be the more like the tile, the smaller it is: by chance Fisher's z,
    arctanh(c), spreads as 1 / sqrt(e). voted: (B, V), the tiles that have most spots like the image's.
    """

    tile: Tensor
    pose: Tensor
    likeness: Tensor
    voted: Tensor


class Library(NamedTuple):
    """M tiles that can be laid over images, and their spots. The tiles stay where they are; those wanted are read."""

    tiles: Images
    spots: SpotIndex

    def grey(self, places: Tensor) -> Tensor:
        """The grey values of the tiles at some places (N,), see `shrunk`. -> (N, P, P)"""
        places, back = places.unique(return_inverse=True)
        return shrunk(self.tiles[places.numpy()])[back]


def shrunk(images: Tensor) -> Tensor:
    """uint8 (N, 3, S, S) -> float (N, P, P): grey, of 64 px at most."""
    grey = images.float().mean(1)
    return F.adaptive_avg_pool2d(grey[:, None], min(SIDE, grey.shape[1]))[:, 0]


def make_library(tiles: Images, places: Sequence[slice], map_parts: Callable = map) -> Library | None:
    """Of uint8 tiles (M, 3, S, S); None for tiles smaller than 16 px.

    places: of all tiles, in parts that are read at once. map_parts: as `map`, in threads if it likes.
    """
    if tiles.shape[2] < SMALLEST:
        return None
    learnt = evenly_spaced(len(tiles), LEARNT)
    spots = Spots(*map(torch.cat, zip(*map_parts(lambda part: _spots(tiles[part]), _in_parts(learnt)), strict=True)))
    description = learn_description(spots, len(tiles) * spots.angle.shape[1])
    return Library(tiles, index_spots(description, map_parts(lambda part: description(_spots(tiles[part])), places)))


def _spots(tiles: Tensor) -> Spots:
    return find_spots(shrunk(tiles))


def _in_parts(places: np.ndarray) -> list[np.ndarray]:
    return np.array_split(places, -(-len(places) // 32))


def best_overlays(library: Library, images: Tensor) -> Overlays:
    """The overlay of a tile that accounts for most of each image's structure; images: uint8 (B, 3, S, S).

    Approximate: where no tile accounts for half of it, a better overlay than the one returned may exist.
    """
    grey = shrunk(images)
    tile, pose, voted = _proposals(match_spots(library.spots, grey))  # (B, T)
    small = _structure(F.adaptive_avg_pool2d(grey[:, None], COMPARED)[:, 0])

    def per_image(x: Tensor) -> Tensor:
        return x.unflatten(0, (len(images), -1))

    likeness = per_image(_compare(small, library.grey(tile.flatten()), pose.flatten(0, 1)).likeness)
    best = likeness.topk(min(FITTED, likeness.shape[1])).indices
    tile, pose = tile.gather(1, best), pose[torch.arange(len(pose))[:, None], best]
    likeness, pose = map(per_image, _fit(small, library.grey(tile.flatten()), pose.flatten(0, 1), STEPS))
    best = likeness.argmax(1, keepdim=True)
    tile, pose = tile.gather(1, best)[:, 0], pose[torch.arange(len(pose)), best[:, 0]]
    likeness, pose = _fit(_structure(grey), library.grey(tile), pose, LAST_STEPS)
    return Overlays(tile, pose, likeness, voted)


def _proposals(matches: Matches) -> tuple[Tensor, Tensor, Tensor]:
    """Of each image the T like spots that most others agree with on the tile, and the V tiles of most agreement. ->
    (B, T) tiles, (B, T, 2, 3) poses, (B, V) tiles

    Only the 64 likest spots of an image vote: among all of them, the many that are a little like it by chance outvote
    those of a copy, wherever tissue repeats itself.
    """
    likeness, place = matches.likeness.topk(min(ALIKE, matches.likeness.shape[1]))
    tile, image = matches.tile.gather(1, place), torch.arange(len(place))[:, None]
    weight = (likeness - LIKE).clamp_min(0) ** 4
    same = tile[:, :, None] == tile[:, None]  # (B, 64, 64)
    votes = (same * weight[:, None]).sum(2)
    is_first = ~same.tril(-1).any(2)  # of its tile
    best = place.gather(1, (votes + weight).topk(min(PROPOSALS, place.shape[1])).indices)
    voted = torch.where(is_first, votes, -1).topk(min(VOTED, place.shape[1])).indices
    return matches.tile.gather(1, best), matches.pose[image, best], tile.gather(1, voted)


def _structure(grey: Tensor, inside: Tensor | None = None) -> Tensor:
    """(N, P, P) less the local mean, over the local deviation, of what is inside; 0 elsewhere and where all is even."""
    inside = torch.ones_like(grey[:1]) if inside is None else inside
    at = torch.arange(grey.shape[1])
    near = ((at[:, None] - at).abs() <= round(LAYOUT * grey.shape[1]) // 2).float()
    number = (near @ inside @ near).clamp_min(1)
    grey = (grey - near @ (grey * inside) @ near / number) * inside
    return grey / (near @ grey.square() @ near / number + FLAT**2).sqrt()


class _Comparison(NamedTuple):
    """likeness: (N,), see `Overlays`. laid: (N, P, P), the structure of the tile where it lies. inside: where that is,
    0 or 1."""

    likeness: Tensor
    laid: Tensor
    inside: Tensor


def _compare(structure: Tensor, grey: Tensor, pose: Tensor) -> _Comparison:
    """Of images (B, P, P) with n tiles each, (B n, P, P), laid by poses (B n, 2, 3)."""
    side = structure.shape[1]
    grid = F.affine_grid(pose, [len(pose), 1, side, side], align_corners=False)
    inside = (grid.abs() <= 1).all(3).float()
    laid = _structure(F.grid_sample(grey[:, None], grid, padding_mode="border", align_corners=False)[:, 0], inside)
    image = structure.repeat_interleave(len(pose) // len(structure), 0)
    strength = (image.square() * inside).mean((1, 2))
    return _Comparison(torch.where(strength < SEEN, 0, _likeness(image, laid)), laid, inside)


def _likeness(image: Tensor, laid: Tensor) -> Tensor:
    """Of structures (N, P, P), see `Overlays`. -> (N,)"""
    products, of_images, of_tiles = (
        F.adaptive_avg_pool2d(x[:, None], 2).flatten(1) @ PARTS for x in (image * laid, image.square(), laid.square())
    )  # (N, 9)
    correlation = products / (of_images * of_tiles).sqrt().clamp_min(1e-6)
    share = of_images / of_images[:, :1].clamp_min(1e-6)
    return (correlation.clamp(-CERTAIN, CERTAIN).atanh() * share.sqrt()).amax(1).tanh()


def _fit(structure: Tensor, grey: Tensor, pose: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The best likeness (N,) and pose (N, 2, 3) on the way of so many Gauss-Newton steps from `pose`."""
    best = _compare(structure, grey, pose)
    likeness, now, fitted = best.likeness, pose, pose
    for _ in range(steps):
        now = _step(structure, best, now)
        best = _compare(structure, grey, now)
        better = best.likeness > likeness
        likeness = torch.where(better, best.likeness, likeness)
        fitted = torch.where(better[:, None, None], now, fitted)
    return likeness, fitted


def _step(structure: Tensor, there: _Comparison, pose: Tensor) -> Tensor:
    """The pose at which the tile, stretched and moved by the slopes of its structure, would fit the image best.

    Least squares: the image is a multiple of the tile, a constant, and the change that each number of a matrix brings.
    """
    side = structure.shape[1]
    image = structure.repeat_interleave(len(pose) // len(structure), 0) * there.inside
    padded = F.pad(there.laid[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    along_x = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) * side / 4
    along_y = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) * side / 4
    x = (2 * torch.arange(side) + 1) / side - 1
    y = x[:, None]
    changes = [slope * by for slope in (along_x, along_y) for by in (x, y, 1)]
    columns = (torch.stack([there.laid, there.inside, *changes], dim=3) * there.inside[..., None]).flatten(1, 2)
    products = columns.transpose(1, 2) @ columns
    products = products + torch.diag_embed(1e-3 * products.diagonal(dim1=1, dim2=2) + 1e-6)
    weights = torch.linalg.solve(products, columns.transpose(1, 2) @ image.flatten(1)[..., None])[..., 0]  # (N, 8)
    change = (weights[:, 2:] / weights[:, :1].clamp_min(FAINT)).clamp(-FARTHEST, FARTHEST).view(-1, 2, 3)
    matrix = pose[:, :, :2]
    return pose + torch.cat([matrix @ change[:, :, :2], matrix @ change[:, :, 2:]], dim=2)
