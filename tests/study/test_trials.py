"""The tiles of a study: how many of each kind, catch tiles made as they should be, orders that tell nothing."""

import numpy as np
import pytest
import torch

from pfiles.errors import InputError
from pfiles.study import trials
from tests.study.conftest import SIDE, made_trials


def test_a_study_has_as_many_tiles_as_asked_and_catch_tiles_on_top():
    counts, every, _ = made_trials(tiles=60)
    assert counts == (30, 30, 6, 3, 3, 0)
    kinds = [trial.kind for trial in every if trial.repeats is None]
    assert {kind: kinds.count(kind) for kind in kinds} == {"real": 30, "generated": 30, "blurred": 3, "shuffled": 3}
    repeats = [trial for trial in every if trial.repeats is not None]
    assert [trial.kind for trial in repeats] == ["real"] * 3 + ["generated"] * 3  # being shown twice tells nothing
    for trial in repeats:
        assert torch.equal(trial.image, every[trial.repeats].image)


def test_altered_tiles_are_of_no_other_trial_and_altered():
    _, every, _ = made_trials(tiles=60)
    real = torch.stack([trial.image for trial in every if trial.kind == "real"])
    roughness = {
        kind: np.mean([trial.image.float().diff(dim=-1).square().mean() for trial in every if trial.kind == kind])
        for kind in ("real", "blurred", "shuffled")
    }
    for trial in every:
        if trial.kind in ("blurred", "shuffled"):
            assert not (trial.image == real).flatten(1).all(1).any()
    assert roughness["blurred"] < 0.6 * roughness["real"] < roughness["shuffled"]


def test_the_cluster_question_asks_examples_instead_of_altered_tiles():
    _, every, examples = made_trials("cluster")
    assert {trial.kind for trial in every} == {"real", "generated", "example"}
    examples_shown = [trial for trial in every if trial.kind == "example"]
    assert all(any(trial is example for example in examples) for trial in examples_shown)
    assert len(examples_shown) == 2


@pytest.mark.parametrize("tiles", [0, 18, 21, 1002])
def test_too_few_too_many_and_odd_numbers_are_refused(tiles):
    with pytest.raises(InputError, match="--tiles must be an even number from 20 to 1000"):
        trials.counts_of("real", tiles)


def test_real_tiles_are_of_the_wanted_clusters_while_there_are_any():
    cluster_ids = np.array([0, 0, 0, 1, 2, 2])
    places = trials.pick_real(cluster_ids, np.array([0, 1, 1, 2]), seed=3)
    assert len(set(places)) == 4
    assert cluster_ids[places[[0, 1, 3]]].tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="needs 7 held-out tiles, but the run has 6"):
        trials.pick_real(cluster_ids, np.zeros(7, int), seed=3)


def test_each_reader_has_an_order_in_which_repeats_come_late():
    _, every, _ = made_trials(tiles=60)
    orders = [trials.order_of(every, reader, 1) for reader in range(1, 41)]
    assert len({tuple(order) for order in orders}) == 40
    repeats = [i for i, trial in enumerate(every) if trial.repeats is not None]
    for order in orders:
        assert sorted(order) == list(range(len(every)))
        for i in repeats:
            assert order.index(every[i].repeats) < len(every) / 2 <= order.index(i)


def test_small_tiles_are_refused():
    small = [trials.Trial(torch.zeros(3, 16, 16, dtype=torch.uint8), "real", 1, "") for _ in range(40)]
    with pytest.raises(InputError, match="at least 32 px, but these have 16 px"):
        trials.make_trials(trials.counts_of("real", 20), small[:12], small[:10], [], 1)
    assert SIDE >= 32
