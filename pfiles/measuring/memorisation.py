"""Does a generator repeat its training tiles? The nearest tile of each image, and a gate that keeps copies back.

A distance alone says nothing: any two tiles share something, and how much depends on tissue and on the number of tiles.
So the nearest distances of generated images are held against those of held-out real tiles to the same training tiles,
found in the same way. An honest generator's images lie no closer to the training tiles than tissue never trained on.
"""

from typing import TypedDict

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from pfiles.errors import InputError
from pfiles.machine.processes import progress
from pfiles.measuring.fidelity import wilson_interval
from pfiles.measuring.overlays import Overlays, best_overlays
from pfiles.measuring.shortlist import Index, make_index, propose, structure, views_of
from pfiles.tiles.mapped import Images

Pose = tuple[tuple[float, ...], ...] | None  # 2 x 3 numbers, see `overlays.Overlays`

CLOSEST = 0.01  # share of the held-out tiles, the closest ones, whose distance is too close for a generated image
COPY = 0.1  # distance; copies of tissue saved as JPEG, moved and 5 % brighter come out below it
OUTRIGHT = 1 / 2  # of the usual distance of held-out tiles: anyone would call closer ones a copy
UNLIKELY = 0.01  # chance of so many images near to training tiles, below which they count as remembered
LEFT_OUT = 0.02  # share of the held-out tiles that may be outright copies, which then have no say in the threshold
NEAR = 2  # pixels: shifts of up to so much, up, down, left and right, always count
FAR = 1 / 4  # of the side: shifts of up to so much are told to the pixel
FLAT = 2.0  # levels of 255: a tile whose grey values deviate less shows nothing that could be compared
EVIDENT = 0.5  # correlation, or likeness of an overlay, from which far shifts, inverted grey and overlays count
CLEARLY = 0.01  # by which an overlay must be better than a shifted view to count instead
SEEN = 1 / 4  # of the energy of either tile that must lie where they overlap
STRAIGHT = 0.1  # by which the numbers of an overlay's matrix may differ from those of a view for it to be a far shift
BATCH_SIZE = 32  # images at once; changes memory and speed only
DISTANCES = 10**8  # in memory at once; changes memory and speed only
AT_ONCE = 2**13  # training tiles that have candidates of their own in an exhaustive search


def nearest_tiles(images: Tensor, train: Images, exhaustive: bool = False) -> pd.DataFrame:
    """The nearest training tile of each image, in pixel space.

    images, train: uint8 (N, 3, S, S) and (M, 3, S, S), the second also where it is not in memory. Both are made grey
    (mean of the colours), and their local mean over windows of 5/16 of the side is taken off, so that brightness,
    contrast and the coarse layout do not count. The distance of two tiles is 1 - c, where c is the correlation of what
    is left, the highest of the 8 views of the image (quarter turns, mirrored or not) and of the 25 shifts of up to 2 px
    each way: 0 for a copy, about 1 for tiles that share nothing, and 1 where one of them has no structure at all.

    Where it reaches 0.5, so does the likeness of an overlay: a tile turned by any angle, up to twice as large, moved or
    stretched, see `overlays.Overlays`; among so many, unrelated tissue comes close to that by chance. Where the overlay
    is a shift of a view by up to a quarter of the side, it is told to the pixel, and c is that over the part that both
    tiles show. Tiles with inverted grey values count from 0.5 on as well.

    Exact for 120 candidates of each image, see `shortlist`: the 64 training tiles whose versions of 12 x 12 px are most
    like the image in some view, the 48 that have most spots like its own, and the 8 whose small versions are least like
    it, are compared by c at full resolution, at all shifts. Overlays are proposed by like spots too. A copy leads by
    far, so that it is seldom missed; among tiles that share next to nothing, the nearest of all can be missed for one
    nearly as near.

    exhaustive: of more than 8,192 training tiles, so many at a time have candidates of their own, 120 for each image.

    Returns a row for each image: tile (index into train), distance, view (0 ... 7), shift_y and shift_x (pixels), pose
    (the 2 x 3 numbers of an overlay, or None), to be shown by `aligned`.
    """
    if images.shape[1:] != train.shape[1:] or images.shape[2] != images.shape[3]:
        raise InputError(
            f"Generated and training images must be square and of one size, but are {tuple(images.shape[1:])} and "
            f"{tuple(train.shape[1:])}: bring them to one size first."
        )
    tables = [nearest_in(make_index(part), images) for part in (train.split(AT_ONCE) if exhaustive else [train])]
    best = tables[0]
    for number, other in enumerate(tables[1:], start=1):
        nearer = other.distance < best.distance
        best[nearer] = other[nearer].assign(tile=other.tile[nearer] + number * AT_ONCE)
    return best


def nearest_in(index: Index, images: Tensor) -> pd.DataFrame:
    """`nearest_tiles` among the training tiles of an index."""
    train, rows = index.tiles, []
    for batch in progress(images.split(BATCH_SIZE), desc="nearest tiles", unit="batch", leave=False):
        views = views_of(structure(batch))  # (B, 8, S, S)
        overlays = None if index.library is None else best_overlays(index.library, batch)
        candidates = propose(index, views, None if overlays is None else overlays.voted)
        for i, (image, tile, view) in enumerate(zip(views, candidates.tile, candidates.view, strict=True)):
            tiles = structure(train[tile.numpy()])
            correlation = _correlate(image[view], tiles, _energy(tiles))
            first = len(tile) - candidates.unlike
            inverse = -correlation[first:]
            correlation[first:] = torch.where(inverse < EVIDENT, -1, inverse)
            peak, place, shift_y, shift_x = _peak(correlation)
            best = _row(tile[place], peak, view[place], shift_y, shift_x)
            if overlays is not None and overlays.likeness[i] > max(EVIDENT, peak + CLEARLY):
                best = _overlaid(image, train, Overlays(*(of_all[i] for of_all in overlays)))
            rows.append(best)
    return pd.DataFrame(rows)


def _row(tile: Tensor, likeness: float, view: Tensor | int, shift_y: int, shift_x: int, pose: Pose = None) -> dict:
    return {
        "tile": int(tile), "distance": max(0.0, 1 - likeness), "view": int(view), "shift_y": shift_y,
        "shift_x": shift_x, "pose": pose,
    }  # fmt: skip


def _overlaid(views: Tensor, train: Images, overlay: Overlays) -> dict:
    """The row of the overlay of one image, whose views (8, S, S) are given: to the pixel where it is a far shift."""
    matrix = overlay.pose[:, :2].flip(0, 1)  # of y and x
    apart = (_turns() - matrix).abs().amax((1, 2))
    if apart.min() < STRAIGHT:
        view = apart.argmin()
        peak, _, shift_y, shift_x = _peak(
            _correlate_far(views[view][None], structure(train[overlay.tile.numpy()[None]]))
        )
        if peak >= overlay.likeness - CLEARLY:
            return _row(overlay.tile, peak, view, shift_y, shift_x)
    pose = tuple(tuple(row) for row in overlay.pose.tolist())
    return _row(overlay.tile, float(overlay.likeness), 0, 0, 0, pose)


def _energy(structure: Tensor) -> Tensor:
    """(N, S, S) -> (N, 5, 5): the sum of squares over the window at each shift."""
    side = structure.shape[1]
    shift, at = torch.arange(2 * NEAR + 1)[:, None], torch.arange(side)
    inside = ((at >= shift) & (at < side - 2 * NEAR + shift)).float()  # (5, S)
    return inside @ structure.square() @ inside.T


def _peak(correlation: Tensor) -> tuple[float, int, int, int]:
    """Of correlations (C, 2 R + 1, 2 R + 1) at shifts of up to R the highest, its place among the C, and its shifts."""
    place, y, x = map(int, np.unravel_index(int(correlation.argmax()), correlation.shape))
    radius = correlation.shape[1] // 2
    return float(correlation[place, y, x]), place, y - radius, x - radius


def _correlate(images: Tensor, tiles: Tensor, energy: Tensor) -> Tensor:
    """The correlation of each image's inner part with every window of its tile, for C pairs (C, S, S). -> (C, 5, 5)"""
    inner = images[:, NEAR:-NEAR, NEAR:-NEAR]
    products = F.conv2d(tiles[None], inner[:, None], groups=len(tiles))[0]
    return products / (inner.square().sum((1, 2))[:, None, None] * energy).sqrt().clamp_min(1e-6)


def _correlate_far(images: Tensor, tiles: Tensor) -> Tensor:
    """Of C pairs (C, S, S), the correlation of image and tile where they overlap, at every shift of up to R = S / 4.

    Products at all shifts at once through Fourier transforms. -> (C, 2 R + 1, 2 R + 1), with -1 for the shifts that
    `_correlate` looks at, and where the overlap holds less than a quarter of the energy of either.
    """
    side = images.shape[1]
    radius = int(FAR * side)
    padded = (side + radius, side + radius)  # what wraps around meets zeros
    products = torch.fft.irfft2(torch.fft.rfft2(tiles, padded) * torch.fft.rfft2(images, padded).conj(), padded)
    products = products.roll((radius, radius), (1, 2))[:, : 2 * radius + 1, : 2 * radius + 1]
    shift, at = torch.arange(-radius, radius + 1)[:, None], torch.arange(side)
    inside = ((at >= shift) & (at < side + shift)).float()  # (2 R + 1, S): which rows of a tile overlap at each shift
    of_tiles, of_images = (
        rows @ x.square() @ rows.T for rows, x in ((inside, tiles), (inside.flip(0), images))
    )  # (C, 2 R + 1, 2 R + 1)
    correlation = products / (of_tiles * of_images).sqrt().clamp_min(1e-6)
    for energy, x in ((of_tiles, tiles), (of_images, images)):
        correlation[energy < SEEN * x.square().sum((1, 2))[:, None, None]] = -1
    correlation[:, radius - NEAR : radius + NEAR + 1, radius - NEAR : radius + NEAR + 1] = -1
    return correlation


def _turns() -> Tensor:
    """(8, 2, 2): the matrices that take y and x, from the middle, to where they are in each view."""
    quarter, mirror = torch.tensor([[0.0, -1], [1, 0]]), torch.tensor([[1.0, 0], [0, -1]])
    turned = torch.stack([torch.linalg.matrix_power(quarter, n) for n in range(4)])
    return torch.cat([turned, mirror @ turned])


def aligned(tile: Tensor, view: int, shift_y: int, shift_x: int, pose: Pose = None) -> tuple[Tensor, Tensor]:
    """A training tile (3, S, S), laid as the image lies that `nearest_tiles` found it for: by a view and a shift, or by
    a `pose`.

    Beside it, as bool (S, S), where the tile reaches; its border is drawn on to fill the rest.
    """
    if pose is not None:
        grid = F.affine_grid(torch.tensor([pose]), [1, *tile.shape], align_corners=False)
        laid = F.grid_sample(tile[None].float(), grid, padding_mode="border", align_corners=False)[0]
        return laid.round().to(torch.uint8), (grid[0].abs() <= 1).all(2)
    rows, columns = (torch.arange(tile.shape[1]) + shift for shift in (shift_y, shift_x))
    last = tile.shape[1] - 1
    moved = tile[:, rows.clamp(0, last)][:, :, columns.clamp(0, last)]
    inside = ((rows >= 0) & (rows <= last))[:, None] & (columns >= 0) & (columns <= last)

    def turned(image: Tensor) -> Tensor:
        return (image.flip(-1) if view >= 4 else image).rot90(-(view % 4), (-2, -1))

    return turned(moved), turned(inside)


def nearest_features(features: np.ndarray, train_features: np.ndarray) -> pd.DataFrame:
    """The nearest training tile of each image in any feature space: columns tile (index into train) and distance.

    features, train_features: (N, d) and (M, d) of any one extractor. Exact; the distance is Euclidean.
    """
    train = torch.from_numpy(train_features).double()
    parts = torch.from_numpy(features).double().split(max(1, min(1000, DISTANCES // len(train))))
    distance, tile = map(torch.cat, zip(*(torch.cdist(part, train).min(dim=1) for part in parts), strict=True))
    return pd.DataFrame({"tile": tile, "distance": distance})


class Closeness(TypedDict):
    """What `against_held_out` returns."""

    threshold: float
    closer: float
    low: float
    high: float
    expected: float | None
    chance: float | None


class Judgement(Closeness):
    """What `judge` returns."""

    outright: float
    left_out: int


def against_held_out(distances: np.ndarray, held_out: np.ndarray) -> Closeness:
    """How many of the nearest distances (N,) of images are closer than those of the closest 1 % of held-out tiles (M,).

    threshold: the distance below which those 1 % lie, the smallest of all where there are fewer than 99;
    closer: the share of `distances` below it, and low, high, its 95 % Wilson interval;
    expected: that share for images as far from the training tiles as held-out ones, 1 % or 1 of M + 1;
    chance: how probable it is for such images to show this share or a larger one. Unlike the interval, this
        allows for a threshold that few held-out tiles leave uncertain.
    """
    from scipy.stats import betabinom

    limit = float(np.quantile(held_out, CLOSEST, method="weibull"))
    n, count, m = len(distances), int((np.asarray(distances) < limit).sum()), len(held_out)
    rank = max(1.0, CLOSEST * (m + 1))  # of the threshold among the held-out distances
    low, high = wilson_interval(count, n)
    return {
        "threshold": limit,
        "closer": count / n,
        "low": low,
        "high": high,
        "expected": rank / (m + 1),
        "chance": float(betabinom.sf(count - 1, n, rank, m + 1 - rank)),
    }


def is_flat(images: Images) -> Tensor:
    """Which of the tiles, uint8 (N, 3, S, S), show one colour only, such as empty background. -> bool (N,)"""
    return torch.cat([part.float().mean(1).flatten(1).std(1) < FLAT for part in images.split(BATCH_SIZE)])


def repeated(images: Tensor, limit: float = COPY) -> float:
    """The share of every second image that repeats one of the others, closer than `limit`; 0 of fewer than 2 images."""
    if len(images) < 2:
        return 0.0
    return float((nearest_tiles(images[1::2], images[::2]).distance < limit).mean())


def outright_limit(held_out: np.ndarray) -> float:
    """The distance below which anyone would call an image a copy: half of the median of held-out tiles, or COPY."""
    return max(COPY, OUTRIGHT * float(np.median(held_out)))


def search_and_judge(
    images: Tensor, train: Images, held_out: Tensor, source: str
) -> tuple[pd.DataFrame, pd.DataFrame, Judgement, str]:
    """`nearest_tiles` among `train` of images and of held-out tiles, and what `judge` says of their distances."""
    nearest = nearest_tiles(torch.cat([images, held_out]), train)
    nearest, nearest_held_out = nearest[: len(images)], nearest[len(images) :].reset_index(drop=True)
    return nearest, nearest_held_out, *judge(nearest.distance, nearest_held_out.distance, source)


def judge(distances: np.ndarray, held_out: np.ndarray, source: str) -> tuple[Judgement, str]:
    """`against_held_out` for distances of `nearest_tiles`, and a sentence where the held-out tiles cannot say so much.

    Besides, outright: the distance below which an image is an outright copy, that of `outright_limit`, but at most the
    threshold. left_out: how many held-out tiles are outright copies themselves. They show what a training tile shows,
    and have no say in the threshold where they are at most 2 % of all.

    The sentence is for sets in which more of them are: where the closest 1 % of the held-out tiles are closer than
    COPY, how close is too close is unknown. The threshold becomes COPY, below which an image is a copy whatever the
    tissue, and expected and chance become None. The sentence, which names the `source` of the tiles, is empty
    otherwise.
    """
    held_out = np.asarray(held_out)
    limit = outright_limit(held_out)
    is_copy = held_out < limit
    left_out = int(is_copy.sum()) if is_copy.mean() <= LEFT_OUT else 0
    closeness = against_held_out(distances, held_out[~is_copy] if left_out else held_out)
    if closeness["threshold"] >= COPY:
        return {**closeness, "outright": min(limit, closeness["threshold"]), "left_out": left_out}, ""
    count, n = int((np.asarray(distances) < COPY).sum()), len(distances)
    low, high = wilson_interval(count, n)
    outright: Judgement = {
        "threshold": COPY, "closer": count / n, "low": low, "high": high, "expected": None, "chance": None,
        "outright": COPY, "left_out": 0,
    }  # fmt: skip
    return outright, (
        f"The closest 1 % of the held-out tiles of {source} are themselves copies of training tiles (distance "
        f"{closeness['threshold']:.3f}): remove duplicates, or name files so that no slide is on both sides of the "
        "split."
    )
