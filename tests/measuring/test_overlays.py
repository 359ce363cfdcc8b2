"""Overlays: a warped copy is laid back where it came from, and the likeness is what its definition says."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from pfiles.measuring import overlays, planted
from tests.measuring.conftest import tissue

TILES = tissue(30)
LIBRARY = overlays.make_library([*overlays.shrunk(TILES).split(16)])


def structure(grey):
    """Over windows of 21 px of 64, cut off at the border: less the mean, over the deviation of that."""
    inside = np.ones_like(grey)

    def total(x):
        return ndimage.convolve(x, np.ones((21, 21)), mode="constant")

    less = grey - total(grey) / total(inside)
    return less / np.sqrt(total(less**2) / total(inside) + 10**2)


def test_likeness_of_a_tile_laid_as_it_is_by_hand():
    one, other = (overlays.shrunk(TILES[i : i + 1]) for i in (0, 1))
    pose = torch.eye(3)[None, :2]
    likeness = overlays._compare(overlays._structure(one), other, pose).likeness
    a, b = (structure(grey[0].numpy().astype(float)) for grey in (one, other))
    assert float(likeness) == pytest.approx((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()), abs=1e-4)


def test_likeness_counts_what_lies_outside_as_unlike():
    """A tile moved by a half accounts for half of its own structure: the root of the share is told."""
    grey = overlays.shrunk(TILES[:1])
    image = torch.cat([grey[:, :, 32:], overlays.shrunk(TILES[1:2])[:, :, 32:]], dim=2)
    pose = torch.tensor([[[1.0, 0, 1], [0, 1, 0]]])  # half a tile is 1, as places go from -1 to 1
    likeness = float(overlays._compare(overlays._structure(image), grey, pose).likeness)
    assert likeness == pytest.approx(0.5**0.5, abs=0.1)


@pytest.mark.parametrize(("degrees", "zoom"), [(10, 1.0), (45, 1.0), (-70, 1.2), (0, 4 / 3), (25, 0.9)])
def test_a_warped_copy_is_laid_back(degrees, zoom):
    found = overlays.best_overlays(LIBRARY, planted.warped(TILES[:8], degrees, zoom))
    assert found.tile.tolist() == [*range(8)]
    assert found.likeness.min() > 0.6
    matrix = planted._matrix(degrees, zoom)
    assert (found.pose - matrix).abs().max() < 0.05


@pytest.mark.slow
def test_copies_stand_out_from_unlike_tiles():
    unlike = overlays.best_overlays(LIBRARY, tissue(30, seed=3)).likeness
    random = torch.Generator().manual_seed(0)
    for kind in ("elastic", "neighbour that overlaps by 60 %", "JPEG", "middle of 0.75, enlarged"):
        copies = planted.KINDS[kind](TILES, tissue(30, seed=3), random)
        assert (overlays.best_overlays(LIBRARY, copies).likeness > unlike.max()).double().mean() >= 0.8, kind


def test_little_structure_is_no_evidence():
    """A tile that is empty but for a corner can be laid over anything that has such a corner."""
    corner = torch.full((1, 3, 64, 64), 230, dtype=torch.uint8)
    corner[:, :, :14, :14] = TILES[:1, :, :14, :14]
    assert overlays.best_overlays(LIBRARY, corner).likeness == 0


def test_small_tiles_are_not_laid():
    assert overlays.make_library([overlays.shrunk(TILES[:2, :, :12, :12])]) is None
