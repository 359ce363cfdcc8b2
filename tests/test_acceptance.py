"""Tiles drawn until they pass."""

import numpy as np
import pytest
import torch

from pfiles.acceptance import MOST_DRAWS, Acceptance, spread, until_accepted
from pfiles.errors import InputError
from pfiles.measuring import quality

K = 2


class Bright:
    """Stands for a standard: tiles pass whose brightness is not among the lowest."""

    def odds(self, features):
        return features[:, 0].copy()

    def passes(self, odds, cluster_ids, accept):
        return odds >= 255 * (1 - accept)


@pytest.fixture(autouse=True)
def brightness(monkeypatch):
    monkeypatch.setattr(quality, "own_features", lambda vqvae, images: images[:, 0, :1, 0].double().numpy())


def flat(cluster_ids, seeds):
    levels = [np.random.default_rng(seed).integers(0, 256) for seed in seeds]
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 32, 32)


def test_tiles_are_drawn_anew_until_they_pass():
    ids, seeds = torch.arange(200) % K, list(range(200))
    acceptance = Acceptance(0.8)
    images = until_accepted(flat, Bright(), None, acceptance)(ids, seeds=seeds)
    assert images.min() >= 51
    first = flat(ids, seeds)
    passing = first[:, 0, 0, 0] >= 51
    assert torch.equal(images[passing], first[passing])  # what passes stays
    assert sum(map(len, acceptance.accepted)) == 200
    assert np.concatenate(acceptance.odds).tolist() == images[:, 0, 0, 0].tolist()  # of what was taken, in its order
    rejected = sum(map(len, acceptance.rejected))
    assert rejected >= (~passing).sum()
    assert str(acceptance).startswith(
        f"200 tiles passed of {200 + rejected} that were drawn, and {rejected} were thrown away"
    )
    assert "Diversity" in str(acceptance)
    # a tile depends on its own seed, not on those beside it
    assert torch.equal(until_accepted(flat, Bright(), None, Acceptance(0.8))(ids[7:9], seeds=seeds[7:9]), images[7:9])


def test_what_never_passes_is_the_best_of_its_draws():
    acceptance = Acceptance(0.8)
    dark = until_accepted(lambda ids, seeds: flat(ids, seeds) // 8, Bright(), None, acceptance)
    images = dark(torch.zeros(3, dtype=torch.int64), seeds=[1, 2, 3])
    assert acceptance.never == 3
    assert sum(map(len, acceptance.rejected)) == 3 * (MOST_DRAWS - 1)
    assert images.min() > 20
    assert "3 tiles passed in none of 20 draws" in str(acceptance)


def test_all_pass_without_a_choice():
    assert until_accepted(flat, None, None, Acceptance(1)) is flat
    with pytest.raises(InputError, match="something to compare them with"):
        until_accepted(flat, None, None, Acceptance(0.8))
    for share in (0, 1.1, float("nan")):
        with pytest.raises(InputError, match="share of tiles that pass"):
            Acceptance(share)


def test_spread_is_the_mean_distance_of_two_tiles():
    features = np.array([[0.0, 0], [3, 0], [0, 4]])
    unit = np.array([[1.0, 1], [-1, -1]])  # of deviation 1
    assert spread(features, unit) == pytest.approx((3 + 4 + 5) / 3)
    assert spread(features, 2 * unit) == pytest.approx(2)
