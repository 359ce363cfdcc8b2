"""Spots: the same ones in a turned, mirrored or smaller image, and a lookup that finds what a full search finds."""

import numpy as np
import pytest
import torch

from pfiles.measuring import overlays, spots
from tests.measuring.conftest import tissue

GREY = overlays.shrunk(tissue(6))


def indexed(spots_of_images):
    """The index of spots, in two parts."""
    description = spots.learn_description(spots_of_images, spots_of_images.angle.numel())
    parts = [spots.Spots(*(of_all[part] for of_all in spots_of_images)) for part in (slice(0, 2), slice(2, None))]
    return spots.index_spots(description, map(description, parts))


def test_a_turned_image_has_the_same_spots_turned():
    for quarters in range(4):
        here, turned = spots.find_spots(GREY[:1], 12), spots.find_spots(GREY[:1].rot90(quarters, (1, 2)), 12)
        likeness = (turned.patch[0] @ here.patch[0].T).max(1)
        assert likeness.values.min() > 0.999
        angle = (here.angle[0, likeness.indices] - turned.angle[0]) % (2 * np.pi)
        assert (angle - quarters * np.pi / 2).abs().max() < 1e-2 or (angle - 2 * np.pi).abs().max() < 1e-2
        for at, place in zip(likeness.indices, turned.place[0], strict=True):
            x, y = here.place[0, at].tolist()
            for _ in range(quarters):
                x, y = y, -x  # against the clock, with y downwards
            assert place.tolist() == pytest.approx([x, y], abs=1e-5)


def test_a_lookup_in_all_cells_is_a_full_search(monkeypatch):
    index = indexed(spots.find_spots(GREY, 30))
    patches = torch.nn.functional.normalize(torch.randn(50, spots.DIMENSIONS), dim=1)
    monkeypatch.setattr(spots, "LOOKED_INTO", 10**6)
    likeness, at = spots._look_up(index, patches)
    everything = patches @ index.patch.float().T / 127
    assert torch.allclose(likeness.max(1).values, everything.max(1).values, atol=1e-6)
    best = at.gather(1, likeness.argmax(1, keepdim=True))[:, 0]
    assert torch.equal(best, index.at[everything.argmax(1)])


def test_each_spot_is_in_the_index_once():
    index = indexed(spots.find_spots(GREY, 30))
    assert sorted(index.at.tolist()) == list(range(180))
    assert index.begins[-1] == 180
    assert index.per_tile == 30


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_pose_of_a_match_leads_from_the_image_to_the_tile(mirrored):
    """Of a turned, perhaps mirrored copy; the matrix is worked out by hand."""
    image = GREY[2:3].rot90(1, (1, 2))
    image = image.flip(2) if mirrored else image
    matches = spots.match_spots(indexed(spots.find_spots(GREY)), image)
    sure = matches.likeness[0] > 0.99
    assert sure.sum() > 10
    assert (matches.tile[0, sure] == 2).float().mean() > 0.9
    expected = torch.tensor([[0.0, -1, 0], [-1 if mirrored else 1, 0, 0]])  # rot90: x of the tile is -y of the image
    apart = (matches.pose[0, sure] - expected).abs().amax((1, 2))
    assert (apart < 0.25).float().mean() > 0.5  # the others are of another size


def test_a_flat_tile_has_no_like_spots():
    flat = torch.full((1, 64, 64), 200.0)
    index = indexed(spots.find_spots(torch.cat([GREY, flat])))
    assert torch.isfinite(spots.match_spots(index, flat).pose).all()
