"""CAS: real tiles are worth as much as real tiles, noise is worth nothing, and labels go by the cluster's majority."""

import numpy as np
import pytest
import torch

from pfiles.errors import InputError
from pfiles.measuring import usefulness
from pfiles.measuring.usefulness import BOTH, GENERATED, REAL

K = 3


def kinds(n, seed, side=16):
    """Tiles whose class, 0 ... 2, is which colour their grain has; and the classes."""
    rng = np.random.default_rng(seed)
    classes = torch.arange(n) % K
    tiles = rng.normal(128, 10, (n, 3, side, side))
    tiles[np.arange(n), classes.numpy()] += rng.normal(0, 50, (n, side, side))
    return torch.from_numpy(np.clip(tiles, 0, 255).astype(np.uint8)), classes


@pytest.fixture
def sets():
    return kinds(90, 1), kinds(90, 2), kinds(60, 3)


def test_real_tiles_are_worth_what_real_tiles_are(sets):
    result = usefulness.cas(*sets[0], *sets[1], *sets[2], K, 0, "cpu")
    assert list(result.table.index) == [REAL, GENERATED]
    assert result.table.accuracy.min() > 0.9
    assert result.of_real == pytest.approx(1, abs=0.1)
    assert (result.table.tiles == 90).all()
    assert (result.table.trainings == 3).all()
    row = result.table.loc[GENERATED]
    assert row["of real, low"] <= row["of real"] <= row["of real, high"]
    assert row.low <= row.accuracy <= row.high <= 1
    assert np.isnan(result.table.loc[REAL, "of real"])
    assert result.test_tiles == 60
    assert list(result.by_class.index) == ["cluster 1", "cluster 2", "cluster 3"]
    assert result.by_class["held-out tiles"].tolist() == [20, 20, 20]
    assert result.by_class[REAL].mean() == pytest.approx(result.table.accuracy[REAL])


def test_tiles_that_ignore_what_they_were_asked_for_are_worth_chance(sets):
    tiles, requested = sets[0]
    result = usefulness.cas(tiles, requested.roll(1), *sets[1], *sets[2], K, 0, "cpu", trials=2)
    assert result.table.accuracy[GENERATED] < 0.1  # each is called the next
    assert result.table.accuracy[REAL] > 0.9
    assert result.of_real < 0.15


def test_as_many_real_tiles_as_generated_ones(sets):
    few = sets[0][0][:30], sets[0][1][:30]
    result = usefulness.cas(*few, *sets[1], *sets[2], K, 0, "cpu", trials=1)
    assert (result.table.tiles == 30).all()
    assert result.table.low.isna().all()  # one training says nothing of its spread


def test_interval_of_three_trainings_by_hand():
    mean, low, high = usefulness._interval(np.array([0.5, 0.6, 0.7]))
    half = 4.302653 * 0.1 / 3**0.5  # Student's t with 2 degrees of freedom
    assert (mean, low, high) == pytest.approx((0.6, 0.6 - half, 0.6 + half))


def test_labels_by_the_majority_of_the_cluster(sets):
    """Clusters 0 and 1 are mostly "tumour", cluster 2 "stroma", cluster 3 has no training tile."""
    (generated, requested), (real, clusters), (held_out, test) = sets
    tissue = np.array(["tumour", "tumour", "stroma"])
    labels = tissue[clusters.numpy()]
    labels[:3] = "stroma"  # a minority
    requested = requested.clone()
    requested[:5] = 3
    result = usefulness.with_labels(
        generated, requested, real, clusters, labels, held_out, tissue[test.numpy()], 0, "cpu"
    )
    assert list(result.table.index) == [REAL, GENERATED, BOTH]
    assert result.table.tiles.tolist() == [90, 85, 175]
    assert result.table.accuracy.min() > 0.9
    assert set(result.by_class.index) == {"stroma", "tumour"}
    assert result.table["of real"].tolist()[1:] == pytest.approx([1, 1], abs=0.1)


def test_the_result_follows_from_the_seed(sets):
    before = torch.get_rng_state()
    tables = [usefulness.cas(*sets[0], *sets[1], *sets[2], K, 5, "cpu", trials=1).table for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert tables[0].equals(tables[1])


def test_what_cannot_be_asked(sets):
    (a, requested), real, test = sets
    cases = (
        ((a[:19], requested[:19], *real, *test), "at least 20 generated tiles, but there are 19"),
        ((a, requested[:5], *real, *test), "Each of the generated tiles needs a class, but there are 5 for 90"),
        ((a, requested, *real, test[0][:3], test[1][:3]), "at least 20 held-out tiles, but there are 3"),
        ((a.float(), requested, *real, *test), "uint8 tiles"),
        ((a.repeat(1, 1, 2, 2), requested, *real, *test), "have 32 px and held-out tiles 16 px"),
    )
    for arguments, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            usefulness.cas(*arguments, K, 0, "cpu")
    with pytest.raises(InputError, match="label 9, which no training tile has"):
        usefulness.with_labels(a, requested, *real, real[1].numpy(), test[0], np.full(60, 9), 0, "cpu")
