"""Intervals: against SciPy, published examples, numbers worked by hand and the jackknife."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from pfiles.study import intervals
from pfiles.study.intervals import Spread

FLEISS = [  # fourteen readers, ten subjects, five answers: the worked example of the measure, kappa 0.210
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


@pytest.fixture
def ratings():
    rng = np.random.default_rng(0)
    return rng.integers(-3, 4, (3, 12)) + 1, rng.integers(-3, 4, (3, 9))


@pytest.mark.parametrize(("right", "of"), [(0, 10), (3, 10), (17, 30), (10, 10)])
def test_a_share_has_wilsons_interval(right, of):
    low, high = stats.binomtest(right, of).proportion_ci(method="wilson")
    assert intervals.share_interval(right / of, of) == pytest.approx((right / of, low, high))


def test_the_placements_average_to_the_area_under_each_curve(ratings):
    generated, real = ratings
    parts = intervals.placements(generated, real)
    for reader in range(3):
        area = roc_auc_score([1] * 12 + [0] * 9, [*generated[reader], *real[reader]])
        assert [part[reader].mean() for part in parts] == pytest.approx([area, area])


def test_the_covariance_of_areas_is_about_that_of_the_jackknife(ratings):
    """Leaving out one tile after the other is another way to the same covariance; they agree as 1 / tiles falls."""
    generated, real = (np.tile(part, 8) for part in ratings)
    exact = intervals.covariance_of(*intervals.placements(generated, real))
    jackknifed = np.zeros((3, 3))
    for part, other, swap in ((generated, real, False), (real, generated, True)):
        n = part.shape[1]
        left = [np.delete(part, i, axis=1) for i in range(n)]
        areas = [intervals.placements(*((other, p) if swap else (p, other)))[0].mean(1) for p in left]
        jackknifed += (n - 1) ** 2 / n * np.cov(np.transpose(areas))
    np.testing.assert_allclose(exact, jackknifed, rtol=0.05, atol=1e-5)


def test_an_area_at_the_border_keeps_an_interval_within_it():
    assert intervals.area_interval(1, 30, 30).high == 1
    assert 0.9 < intervals.area_interval(1, 30, 30).low < 0.95
    value, low, high = intervals.area_interval(0.8, 30, 25)
    assert intervals.area_interval(0.2, 30, 25) == pytest.approx((1 - value, 1 - high, 1 - low))


def test_the_interval_of_several_readers_by_hand():
    """Values 0.6, 0.7, 0.8; each error of variance 0.004, of which 0.001 is shared.

    Mean square 0.01, so Var = 0.01 / 3 + 0.001 and df = (0.01 + 3 * 0.001)^2 / (0.01^2 / 2) = 3.38.
    """
    covariance = np.full((3, 3), 0.001) + np.eye(3) * 0.003
    values = np.array([0.6, 0.7, 0.8])
    spread = intervals.spread_of(values, covariance)
    assert spread == pytest.approx(Spread(0.01 - 0.003, 0.003, 0.001, 3))
    reach = stats.t.ppf(0.975, 3.38) * np.sqrt(0.01 / 3 + 0.001)
    assert intervals.half_width(spread) == pytest.approx(reach)
    value, low, high = intervals.mean_interval(values, covariance, None)
    logits = np.log([low / (1 - low), 0.7 / 0.3, high / (1 - high)])
    assert value == pytest.approx(0.7)
    assert np.diff(logits) == pytest.approx([reach / 0.21] * 2)


def test_readers_of_one_skill_have_the_normal_quantile():
    """Equal values, so that nothing is seen of skills: Var = 0.003 / 3 + 0.001."""
    spread = intervals.spread_of(np.full(3, 0.7), np.full((3, 3), 0.001) + np.eye(3) * 0.003)
    assert intervals.half_width(spread) == pytest.approx(1.959964 * np.sqrt(0.002))


def test_readers_who_are_all_right_have_the_interval_of_one():
    interval = intervals.mean_interval(np.ones(4), np.zeros((4, 4)), lambda share: intervals.share_interval(share, 30))
    assert interval == intervals.share_interval(1, 30)


def test_what_would_be_enough():
    """Without any difference in skill the variance is (0.004 / times) / readers: by hand."""
    spread = Spread(0.0, 0.004, 0.0, 4)
    assert intervals.readers_for(spread, 0.05) == 7  # 1.96^2 * 0.004 / 0.05^2 = 6.1
    assert intervals.times_for(spread, 0.05) == 1.75  # 6.1 / 4 = 1.54
    assert intervals.readers_for(spread, 0.001) is None
    assert intervals.times_for(Spread(0.01, 0.004, 0.0, 4), 0.05) is None  # no tiles make readers alike


def test_fleiss_kappa_of_the_published_example():
    assert intervals.fleiss_kappa(np.array(FLEISS)) == pytest.approx(0.210, abs=5e-4)
    assert intervals.fleiss_kappa(np.array([[3, 0], [0, 3]])) == 1
    assert np.isnan(intervals.fleiss_kappa(np.array([[3, 0], [3, 0]])))
