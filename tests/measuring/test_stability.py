"""How stable clusters are: numbers worked by hand, and the sentence on what they support."""

import numpy as np
import pandas as pd
import pytest

from pfiles.measuring import stability


def test_agreement_by_hand():
    a, b = np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])
    assert stability.adjusted_rand(a, b) == 1  # names do not matter
    assert stability.adjusted_rand(a, np.array([0, 1, 0, 1])) == pytest.approx(-0.5)
    assert stability.between_seeds(np.stack([a, b, [0, 1, 0, 1]])) == pytest.approx((1 - 0.5 - 0.5) / 3)
    assert np.isnan(stability.between_seeds(a[None]))


def test_nested_by_hand():
    coarse = np.array([0, 0, 0, 1, 1, 1])
    assert stability.nested(coarse, np.array([0, 0, 2, 1, 1, 3])) == 1  # a pure split
    assert stability.nested(coarse, np.array([0, 0, 2, 2, 2, 1])) == pytest.approx(5 / 6)  # one tile came over
    assert stability.contingency(coarse, np.array([0, 0, 2, 2, 2, 1])).tolist() == [[2, 0, 1], [0, 1, 2]]


def test_unmoved_by_hand():
    assert stability.unmoved(np.array([[0, 1, 2, 2], [0, 1, 1, 2], [0, 0, 2, 2]])) == 0.5


def test_interval_by_hand():
    """Three values 1, 2, 3: mean 2, standard error 1 / sqrt(3), and 4.30265 is Student's t for two degrees."""
    mean, low, high = stability.mean_interval([1, 2, 3])
    assert (mean, low, high) == pytest.approx((2, 2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), rel=1e-5)
    assert np.isnan(stability.mean_interval([1.0])[1:]).all()


def table(values, spread=0.1, clusters_used=None):
    """Three seeds for each k, for which all five indices say the same: higher `values` are better."""
    rows = {}
    for k, value in values.items():
        for seed, off in enumerate((-spread, 0, spread)):
            indices = {
                name: (value if stability.INDICES[name].direction == "higher" else -value) + off
                for name in stability.FIVE
            }
            rows[k, seed] = indices | {"clusters used": (clusters_used or {}).get(k, k)}
    rows = pd.DataFrame.from_dict(rows, orient="index")
    rows.index = pd.MultiIndex.from_tuples(rows.index, names=["k", "seed"])
    return stability.over_seeds(rows)


AGREE = {10: 0.5, 11: 0.625, 12: 0.375}


def test_a_clear_winner_and_a_range():
    clear = table({10: 1.0, 11: 5.0, 12: 2.0})
    assert set(map(tuple, stability.supported(clear).values())) == {(11,)}
    assert stability.verdict(clear, AGREE).startswith("The numbers support k = 11: only it")
    close = table({10: 1.0, 11: 5.0, 12: 4.9})
    assert stability.supported(close)["c"] == [11, 12]
    said = stability.verdict(close, AGREE)
    assert said.startswith("The numbers support k = 11, 12 and no single one")
    assert "0.38 (k = 12) ... 0.62 (k = 11)" in said
    assert "do not single out a k: k = 10 ... 12" in stability.verdict(table({10: 1, 11: 1.1, 12: 1.05}), AGREE)


def test_indices_that_disagree_and_clusters_that_stay_empty():
    mixed = table({10: 1.0, 11: 5.0, 12: 2.0}, clusters_used={12: 11})
    better = mixed["dunn"].copy()
    better.loc[10] += 100
    mixed[[("dunn", part) for part in better]] = better.to_numpy()
    said = stability.verdict(mixed, AGREE)
    assert "support no k in common" in said
    assert "Dunn k = 10" in said
    assert "C k = 11" in said
    assert "k = 12 left clusters empty" in said


def test_one_seed_or_one_k_supports_nothing():
    rows = pd.DataFrame({**{name: [1.0, 2.0] for name in stability.FIVE}, "clusters used": [3, 4]})
    rows.index = pd.MultiIndex.from_tuples([(3, 0), (4, 0)], names=["k", "seed"])
    assert "One seed has no spread" in stability.verdict(stability.over_seeds(rows), {3: float("nan"), 4: float("nan")})
    assert "alone cannot be compared" in stability.verdict(table({10: 1.0}), {10: 0.5})
