"""How sure is a share, or an area under the curve, of one reader and of several who are a sample of all readers?

Several readers judge the same tiles. Their mean has an interval that holds for other readers and other tiles of the
same kind: the method of Obuchowski and Rockette (1995) for one way of imaging, with the degrees of freedom of Hillis
(2007) and the covariances of DeLong, DeLong and Clarke-Pearson (1988), worked out on the logit scale. Where readers
differ less than their errors alone would make them, they count as equally skilled, and the normal quantile takes the
place of t's.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit, logit

NORMAL = float(stats.norm.ppf(0.975))
MOST_READERS, MOST_TIMES = 50, 20  # beyond so many readers, or so many times the tiles, nobody plans


class Interval(NamedTuple):
    """A value and its 95 % interval, all from 0 to 1."""

    value: float
    low: float
    high: float


OfOne = Callable[[float], Interval]  # the interval of one reader's value


class Spread(NamedTuple):
    """Where the variance of a mean over readers comes from.

    skill: the variance of readers' true values. alone: of each reader's errors beyond what all share. shared: the
    covariance of two readers' errors, as the tiles are the same. The last two fall as 1 / tiles. readers: how many.
    """

    skill: float
    alone: float
    shared: float
    readers: int


def share_interval(share: float, number: int) -> Interval:
    """A share of `number` answers, with Wilson's interval (1927)."""
    centre = (share + NORMAL**2 / (2 * number)) / (1 + NORMAL**2 / number)
    variance = share * (1 - share) / number + (NORMAL / (2 * number)) ** 2
    reach = NORMAL * np.sqrt(variance) / (1 + NORMAL**2 / number)
    return Interval(share, float(max(centre - reach, 0)), float(min(centre + reach, 1)))


def area_interval(area: float, generated: int, real: int) -> Interval:
    """The area under one reader's curve, with Newcombe's score interval (2006, method 5), which never leaves 0 ... 1.

    generated, real: the numbers of tiles of both kinds.
    """

    def beyond(value: float) -> float:
        extra = ((generated + real) / 2 - 1) * ((1 - value) / (2 - value) + value / (1 + value))
        return (area - value) ** 2 - NORMAL**2 * value * (1 - value) * (1 + extra) / (generated * real)

    inner = min(max(area, 1e-6), 1 - 1e-6)
    low = brentq(beyond, 1e-9, inner) if beyond(1e-9) > 0 else 0.0
    high = brentq(beyond, inner, 1 - 1e-9) if beyond(1 - 1e-9) > 0 else 1.0
    return Interval(area, float(low), float(high))


def placements(generated: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each tile the share of tiles of the other kind that it is on the right side of, ties counting a half.

    generated (r, m), real (r, n): what each reader said of each tile, the higher the more like a generated one. Returns
    (r, m) and (r, n); the mean of either is the area under each reader's curve.
    """
    above = generated[:, :, None] > real[:, None, :]
    right = above + 0.5 * (generated[:, :, None] == real[:, None, :])
    return right.mean(2), right.mean(1)


def covariance_of(*parts: np.ndarray) -> np.ndarray:
    """The covariances (r, r) of readers' values, each a sum of means over the tiles of parts (r, n), less a constant.

    One part of answers that are right (1) or wrong (0) is a share; both `placements` are an area (DeLong and others).
    """
    return sum(np.atleast_2d(np.cov(part)) / part.shape[1] for part in parts)


def spread_of(values: np.ndarray, covariance: np.ndarray) -> Spread:
    """The parts of the variance of the mean of readers' values (r,), at least 2, whose errors covary (r, r)."""
    r = len(values)
    of_one = np.trace(covariance) / r
    shared = float(max((covariance.sum() - np.trace(covariance)) / (r * (r - 1)), 0))
    alone = float(max(of_one - shared, 0))
    return Spread(float(max(values.var(ddof=1) - alone, 0)), alone, shared, r)


def half_width(spread: Spread, readers: int | None = None, times: float = 1) -> float:
    """Half the width of the 95 % interval of a mean over so many readers (None: as many as there were), with so many
    times as many tiles."""
    r = spread.readers if readers is None else readers
    alone, shared = spread.alone / times, spread.shared / times
    between = spread.skill + alone  # what Obuchowski and Rockette call the mean square of readers
    quantile = NORMAL
    if spread.skill > 0:
        quantile = float(stats.t.ppf(0.975, (between + r * shared) ** 2 / (between**2 / (r - 1))))
    return quantile * float(np.sqrt(between / r + shared))


def mean_interval(values: np.ndarray, covariance: np.ndarray, of_one: OfOne) -> Interval:
    """The mean of readers' values (r,), with an interval for readers and tiles at large.

    covariance: (r, r), of their errors, see `covariance_of`. of_one: the interval of one reader's value, which stands
    for the mean where there is one reader, or where all are at 0 or at 1 and no error is seen.
    """
    mean = float(values.mean())
    if len(values) == 1 or mean in (0, 1):
        return of_one(mean)
    reach = half_width(spread_of(values, covariance)) / (mean * (1 - mean))
    return Interval(mean, float(expit(logit(mean) - reach)), float(expit(logit(mean) + reach)))


def readers_for(spread: Spread, target: float) -> int | None:
    """The least number of readers of the same tiles whose mean is known to +- `target`; None beyond 50."""
    enough = (r for r in range(2, MOST_READERS + 1) if half_width(spread, r) <= target)
    return next(enough, None)


def times_for(spread: Spread, target: float) -> float | None:
    """How many times as many tiles, in steps of a quarter, the same readers need for +- `target`; None beyond 20."""
    enough = (times for times in np.arange(1, MOST_TIMES + 0.25, 0.25) if half_width(spread, times=times) <= target)
    return next(map(float, enough), None)


def fleiss_kappa(counts: np.ndarray) -> np.ndarray:
    """Agreement beyond chance (Fleiss 1971) of readers on tiles: 1 where they agree on all, 0 as chance would have it.

    counts: (..., tiles, answers), how many readers gave each answer, as many for every tile; NaN where all answers are
    one and the same.
    """
    readers = counts.sum(-1).mean(-1)
    shares = counts.mean(-2) / readers[..., None]
    alike = ((counts**2).sum(-1).mean(-1) / readers - 1) / (readers - 1)
    by_chance = (shares**2).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (alike - by_chance) / (1 - by_chance)
