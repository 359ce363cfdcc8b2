"""Does a generator repeat its training tiles? The nearest tile of each image, and a gate that keeps copies back.

A distance alone says nothing: any two tiles share something, and how much depends on tissue and on the number of tiles.
So the nearest distances of generated images are held against those of held-out real tiles to the same training tiles,
found in the same way. An honest generator's images lie no closer to the training tiles than tissue never trained on.
"""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor
from tqdm.auto import tqdm

from pfiles.errors import InputError
from pfiles.measuring.fidelity import wilson_interval

CLOSEST = 0.01  # share of the held-out tiles, the closest ones, whose distance is too close for a generated image
MAX_SHIFT = 2  # pixels that a copy may be moved by, up, down, left and right
LAYOUT = 5 / 16  # of the side: structure coarser than this, such as an empty corner, does not count
COARSE_SIDE = 24  # pixels of the small images that make the shortlist
SHORTLIST = 64  # (view, training tile) pairs compared at full resolution for each image
BATCH_SIZE = 32  # images at once; changes memory and speed only


def nearest_tiles(images: np.ndarray, train: np.ndarray) -> pd.DataFrame:
    """The nearest training tile of each image, in pixel space.

    images, train: uint8 (N, S, S, 3) and (M, S, S, 3). Both are made grey (mean of the colours), and their local mean
    over windows of 5/16 of the side is taken off, so that brightness, contrast and the coarse layout do not count.
    The distance of two tiles is 1 - c, where c is the correlation of what is left, the highest of the 8 views of the
    image (quarter turns, mirrored or not) and of the 25 shifts of up to 2 px each way: 0 for a copy, about 1 for tiles
    that share nothing, and 1 where one of them has no structure at all.

    Exact: c at full resolution, of all shifts, for the pairs on the shortlist. Shortlist: the 64 pairs of a view and a
    training tile whose versions of 24 x 24 px correlate best. A copy leads it by far, so that it is not missed; among
    tiles that share next to nothing, the nearest of all can be missed for one that is nearly as near. Not looked for:
    copies that are zoomed or turned by other angles, and copies of tiles without structure.

    Returns a row for each image: tile (index into train), distance, view (0 ... 7), shift_y and shift_x (pixels), to
    be shown by `aligned`. Memory: 4 bytes for each pixel of `train`.
    """
    if images.shape[1:] != train.shape[1:] or images.shape[1] != images.shape[2]:
        raise InputError(
            f"Generated and training images must be square and of one size, but are {images.shape[1:]} and "
            f"{train.shape[1:]}: bring them to one size first."
        )
    structure = torch.cat([_structure(part) for part in np.array_split(train, -(-len(train) // BATCH_SIZE))])
    energy = torch.cat([_energy(part) for part in structure.split(BATCH_SIZE)])
    coarse = _coarse(structure)
    rows = []
    for start in tqdm(range(0, len(images), BATCH_SIZE), desc="nearest tiles", unit="batch", leave=False):
        views = _views(_structure(images[start : start + BATCH_SIZE]))  # (B, 8, S, S)
        scores = _coarse(views.flatten(0, 1)).unflatten(0, views.shape[:2]) @ coarse.T  # (B, 8, M)
        best = scores.flatten(1).topk(min(SHORTLIST, scores[0].numel())).indices  # (B, C)
        for image, view, tile in zip(views, best // len(train), best % len(train), strict=True):
            correlation = _correlate(image[view], structure[tile], energy[tile])  # (C, 5, 5)
            place, shift_y, shift_x = np.unravel_index(int(correlation.argmax()), correlation.shape)
            rows.append(
                {
                    "tile": int(tile[place]),
                    "distance": max(0.0, 1 - float(correlation[place, shift_y, shift_x])),
                    "view": int(view[place]),
                    "shift_y": int(shift_y) - MAX_SHIFT,
                    "shift_x": int(shift_x) - MAX_SHIFT,
                }
            )
    return pd.DataFrame(rows)


def _structure(images: np.ndarray) -> Tensor:
    """uint8 (N, S, S, 3) -> float32 (N, S, S): grey less its local mean."""
    grey = images.mean(axis=3, dtype=np.float32)
    side = round(images.shape[1] * LAYOUT) | 1  # odd, so that turned images give turned results
    return torch.from_numpy(grey - ndimage.uniform_filter(grey, (0, side, side)))


def _coarse(structure: Tensor) -> Tensor:
    """(N, S, S) -> (N, 576): 24 x 24 px, scaled to length 1."""
    return F.normalize(F.adaptive_avg_pool2d(structure[:, None], COARSE_SIDE).flatten(1))


def _energy(structure: Tensor) -> Tensor:
    """(N, S, S) -> (N, 5, 5): the sum of squares over the window at each shift."""
    window = structure.shape[1] - 2 * MAX_SHIFT
    return F.avg_pool2d(structure.square()[:, None], window, stride=1)[:, 0] * window**2


def _views(images: Tensor) -> Tensor:
    """(N, S, S) -> (N, 8, S, S): turned by 0, 1, 2, 3 quarters, then the same mirrored left to right."""
    turned = torch.stack([images.rot90(quarters, (1, 2)) for quarters in range(4)], dim=1)
    return torch.cat([turned, turned.flip(3)], dim=1)


def _correlate(images: Tensor, tiles: Tensor, energy: Tensor) -> Tensor:
    """Of C pairs (C, S, S), the correlation of the image's inner part with every window of its tile. -> (C, 5, 5)"""
    inner = images[:, MAX_SHIFT:-MAX_SHIFT, MAX_SHIFT:-MAX_SHIFT]
    products = F.conv2d(tiles[None], inner[:, None], groups=len(tiles))[0]
    return products / (inner.square().sum((1, 2))[:, None, None] * energy).sqrt().clamp_min(1e-6)


def aligned(tile: np.ndarray, view: int, shift_y: int, shift_x: int) -> np.ndarray:
    """A training tile (S, S, 3), shifted and turned as the image lies that `nearest_tiles` found it for."""
    side, pad = tile.shape[0], MAX_SHIFT
    padded = np.pad(tile, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    moved = padded[pad + shift_y : pad + shift_y + side, pad + shift_x : pad + shift_x + side]
    return np.rot90(moved[:, ::-1] if view >= 4 else moved, -(view % 4))


def nearest_features(features: np.ndarray, train_features: np.ndarray) -> pd.DataFrame:
    """The nearest training tile of each image in any feature space: columns tile (index into train) and distance.

    features, train_features: (N, d) and (M, d) of any one extractor. Exact; the distance is Euclidean.
    """
    train = torch.from_numpy(train_features).double()
    parts = torch.from_numpy(features).double().split(1000)  # of which the distances to all of `train` fit in memory
    distance, tile = map(torch.cat, zip(*(torch.cdist(part, train).min(dim=1) for part in parts), strict=True))
    return pd.DataFrame({"tile": tile, "distance": distance})


def against_held_out(distances: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
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
