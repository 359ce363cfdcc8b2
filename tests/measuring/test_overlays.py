"""Overlays: a warped copy is laid back where it came from, and the likeness is what its definition says."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from pfiles.measuring import overlays, planted
from tests.measuring.conftest import tissue

TILES = tissue(30)
LIBRARY = overlays.make_library(TILES, [slice(0, 16), slice(16, 30)])


def structure(grey, inside=None):
    """Over windows of 21 px of 64, cut off at the border: less the mean, over the deviation of that."""
    inside = np.ones_like(grey) if inside is None else inside

    def total(x):
        return ndimage.convolve(x, np.ones((21, 21)), mode="constant")

    less = (grey - total(grey) / total(inside).clip(1)) * inside
    return less / np.sqrt(total(less**2) / total(inside).clip(1) + 10**2)


def likeness_by_hand(a, b):
    """The highest of all, of four halves and of four quarters, each by Fisher's z and its share of what a shows."""
    near, far, every = slice(32), slice(32, 64), slice(64)
    windows = [(rows, columns) for rows in (every, near, far) for columns in (every, near, far)]
    scores = []
    for window in windows:
        one, other = a[window], b[window]
        correlation = (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())
        scores.append(np.arctanh(np.clip(correlation, -0.999, 0.999)) * np.sqrt((one**2).sum() / (a**2).sum()))
    return np.tanh(max(scores))


@pytest.mark.parametrize("parts", [None, (slice(64), slice(32)), (slice(32, 64), slice(32, 64))])
def test_likeness_of_a_tile_laid_as_it_is_by_hand(parts):
    """Of another tile, and of one that shows a half or a quarter of it."""
    one, other = (overlays.shrunk(TILES[i : i + 1]) for i in (0, 1))
    if parts is not None:
        one[0][parts] = other[0][parts]
    likeness = overlays._compare(overlays._structure(one), other, torch.eye(3)[None, :2]).likeness
    a, b = (structure(grey[0].numpy().astype(float)) for grey in (one, other))
    assert float(likeness) == pytest.approx(likeness_by_hand(a, b), abs=1e-3)


def test_likeness_counts_what_lies_outside_as_unlike():
    """Of a tile that reaches into three quarters of another one."""
    one, other = (overlays.shrunk(TILES[i : i + 1]) for i in (0, 1))
    one[:, :, :40] = other[:, :, 16:56]
    pose = torch.tensor([[[1.0, 0, 0.5], [0, 1, 0]]])  # 16 px, as places go from -1 to 1
    likeness = overlays._compare(overlays._structure(one), other, pose).likeness
    laid, inside = np.zeros((64, 64)), np.zeros((64, 64))
    laid[:, :48], inside[:, :48] = other[0, :, 16:].numpy(), 1
    by_hand = likeness_by_hand(structure(one[0].numpy().astype(float)), structure(laid, inside))
    assert float(likeness) == pytest.approx(by_hand, abs=1e-3)


@pytest.mark.parametrize(("degrees", "zoom"), [(10, 1.0), (45, 1.0), (-70, 1.2), (0, 4 / 3), (25, 0.9)])
def test_a_warped_copy_is_laid_back(degrees, zoom):
    best = overlays.best_overlays(LIBRARY, planted.warped(TILES[:8], degrees, zoom))
    assert best.tile.tolist() == [*range(8)]
    assert best.likeness.min() > 0.6
    matrix = planted._matrix(degrees, zoom)
    assert (best.pose - matrix).abs().max() < 0.05


@pytest.mark.slow
def test_copies_stand_out_from_unlike_tiles():
    unlike = overlays.best_overlays(LIBRARY, tissue(30, seed=3)).likeness
    random = torch.Generator().manual_seed(0)
    kinds = ("elastic", "neighbour that overlaps by 60 %", "JPEG", "middle of 0.75, enlarged", "half a tile",
             "a quarter beside three others")  # fmt: skip
    for kind in kinds:
        copies = planted.KINDS[kind](TILES, tissue(30, seed=3), random)
        assert (overlays.best_overlays(LIBRARY, copies).likeness > unlike.max()).double().mean() >= 0.8, kind


def test_little_structure_is_no_evidence():
    """A tile that is empty but for a corner can be laid over anything that has such a corner."""
    corner = torch.full((1, 3, 64, 64), 230, dtype=torch.uint8)
    corner[:, :, :14, :14] = TILES[:1, :, :14, :14]
    assert overlays.best_overlays(LIBRARY, corner).likeness == 0


def test_small_tiles_are_not_laid():
    assert overlays.make_library(TILES[:2, :, :12, :12], [slice(0, 2)]) is None
