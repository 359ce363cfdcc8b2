"""Fields of known worth: one piece of noise, the same cut into tiles, with a gradient, with a copy in it."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pfiles.errors import InputError
from pfiles.measuring.field_check import Joints, drift, read_back, repetition, seams, window_corners


def noise(side=704, seed=0, blur=1.5):
    rough = np.random.default_rng(seed).normal(size=(side, side, 3))
    smooth = gaussian_filter(rough, (blur, blur, 0))
    return (128 + 40 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)


def cut(image, corners, side):
    tiles = np.stack([image[y : y + side, x : x + side] for x, y in corners])
    return torch.from_numpy(tiles).permute(0, 3, 1, 2).contiguous()


def test_places_read_back_are_counted_by_cluster():
    painted, read = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 0])
    tables = read_back(painted, read, np.array([1, 1, 1, 1, 0.6]), 3)
    assert tables["all"].right.to_dict() == {"cluster 1": 2, "cluster 2": 1, "cluster 3": 0, "all": 3}
    assert tables["inside"].tiles.to_dict() == {"cluster 1": 3, "cluster 2": 1, "all": 4}
    assert "inside" not in read_back(painted, read, np.full(5, 0.9), 3)


def test_windows_are_whole_and_have_neighbours():
    corners = window_corners((300, 200), Joints(20, 10, 64))
    assert corners[:, 0].max() + 2 * 64 <= 300
    assert corners[:, 1].max() + 2 * 64 <= 200
    assert ((corners - (20, 10)) % 64 == 0).all()
    assert len(window_corners((64, 64), Joints(0, 0, 64))) == 0


def test_joints_of_tiles_side_by_side_are_told_and_those_of_one_piece_are_not():
    whole = noise()
    corners = window_corners(whole.shape[:2], Joints(0, 0, 64))
    tests = seams(cut(whole, corners, 128), 64, 3, "cpu")
    assert tests.across_joints.learned
    assert tests.across_joints.accuracy < 0.7
    assert tests.side_by_side.accuracy > 0.9
    with pytest.raises(InputError, match="at least 40 windows of 32 px"):
        seams(cut(whole, corners[:39], 128), 64, 3, "cpu")


def test_a_gradient_is_found_and_clusters_are_none():
    """The left half is 50 levels darker, which its cluster explains; green rises by 20 levels from top to bottom."""
    places = np.stack(np.meshgrid(np.arange(12), np.arange(10)), -1).reshape(-1, 2) * 64
    ids = (places[:, 0] >= 6 * 64).astype(int)
    colours = np.full((120, 3), 100.0)
    colours += 50 * ids[:, None] + np.random.default_rng(0).normal(size=(120, 3))
    colours[:, 1] += 20 * places[:, 1] / (9 * 64)
    tiles = torch.from_numpy(colours.round().astype(np.uint8))[:, :, None, None].expand(-1, -1, 8, 8)
    shares = drift(tiles, places, ids)
    assert shares["levels"] == pytest.approx(20, abs=1.5)
    assert shares["standard_error"] == pytest.approx(0.33, abs=0.15)
    assert shares["spread"] == pytest.approx(1.0, abs=0.2)


def test_a_piece_that_comes_twice_is_found():
    whole = noise(512, blur=3)
    corners = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2) * 64
    tiles, real = cut(whole, corners, 64), cut(noise(512, 1, 3), corners, 64)
    pairs = repetition(tiles, real)
    assert (pairs["searched"], pairs["copies"]) == (32, 0)
    tiles[7] = tiles[40].flip(2)
    pairs = repetition(tiles, real)
    assert pairs["copies"] == 1
    assert pairs["closer"] == pytest.approx(1 / 32, abs=0.07)
    assert repetition(tiles)["closer"] is None
