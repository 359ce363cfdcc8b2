"""Levels and numbers of tiles."""

import torch

from pfiles.tiles.pixels import evenly_spaced, to_uint8, to_unit


def test_unit_range_round_trip():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(levels)), levels)
    assert to_uint8(torch.tensor([-0.2, 1.3])).tolist() == [0, 255]


def test_evenly_spaced():
    assert evenly_spaced(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly_spaced(3, 10).tolist() == [0, 1, 2]
