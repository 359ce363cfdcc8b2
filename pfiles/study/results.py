"""What the answers of a reader study say: measures with intervals, agreement, learning, catch tiles, what would decide.

A generated tile is the positive case: sensitivity is the share of generated tiles that are told, specificity that of
real tiles that are called real, and the area under the curve (AUC) the chance that a generated tile is called made with
more certainty than a real one. 0.5 is a coin's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from pfiles.machine.runtime import derive_seed
from pfiles.study import intervals
from pfiles.study.answers import Key
from pfiles.study.intervals import Interval, Spread
from pfiles.study.trials import Question

MARGIN = 0.1  # a difference smaller than this counts as none, once the interval says so
RESAMPLES = 2000  # of the bootstrap of kappa


@dataclass(frozen=True)
class Ratings:
    """The answers to the judged tiles, each at its first showing.

    readers: their numbers (r,). truth: of each tile (n,), whether it is generated. clusters: (n,), from 1. answers (r,
    n): as given. certainty (r, n): from -3 (sure: real) to 3 (sure: made); of the question for clusters 1 to 3. right
    (r, n): whether the answer is right. place (r, n): where the tile stood in the reader's order, from 0 to 1.
    """

    readers: np.ndarray
    truth: np.ndarray
    clusters: np.ndarray
    answers: np.ndarray
    certainty: np.ndarray
    right: np.ndarray
    place: np.ndarray


class Measure(NamedTuple):
    """A measure of each reader and of all together, and where the variance of the mean comes from; None of one
    reader."""

    each: list[Interval]
    together: Interval
    spread: Spread | None


def ratings_of(key: Key, table: pd.DataFrame) -> Ratings:
    """The ratings in the rows of `answers.read_study`."""
    judged = table[table.kind.isin(["real", "generated"]) & (table.repeats < 0)]
    wide = judged.pivot(index="reader", columns="trial")
    answers, sure = wide["answer"].to_numpy(), wide["sure"].to_numpy(float)
    truths = [key.trials[trial] for trial in wide["answer"].columns]
    is_generated = np.array([truth.kind == "generated" for truth in truths])
    clusters = np.array([truth.cluster for truth in truths])
    if key.question == "real":
        certainty, right = np.where(answers == "generated", sure, -sure), (answers == "generated") == is_generated
    else:
        certainty, right = sure, answers.astype(int) == clusters
    place = (wide["place"].to_numpy(float) - 1) / len(key.trials)
    return Ratings(wide.index.to_numpy(), is_generated, clusters, answers, certainty, right, place)


def measures(question: Question, ratings: Ratings) -> dict[str, Measure]:
    """The measures of a study by name: sensitivity, specificity and AUC; or right answers to both kinds of tiles."""
    generated, real = ratings.right[:, ratings.truth], ratings.right[:, ~ratings.truth]
    if question == "cluster":
        return {"generated": _share(generated), "real": _share(real)}
    certain_made, certain_real = ratings.certainty[:, ratings.truth], ratings.certainty[:, ~ratings.truth]
    return {"sensitivity": _share(generated), "specificity": _share(real), "AUC": _area(certain_made, certain_real)}


def _share(right: np.ndarray) -> Measure:
    number = right.shape[1]
    return _measure(right.mean(1), [right.astype(float)], lambda share: intervals.share_interval(share, number))


def _area(generated: np.ndarray, real: np.ndarray) -> Measure:
    parts = intervals.placements(generated, real)
    counts = generated.shape[1], real.shape[1]
    return _measure(parts[0].mean(1), parts, lambda area: intervals.area_interval(area, *counts))


def _measure(values: np.ndarray, parts: Sequence[np.ndarray], of_one: intervals.OfOne) -> Measure:
    covariance = intervals.covariance_of(*parts)
    spread = intervals.spread_of(values, covariance) if len(values) > 1 else None
    each = [of_one(float(value)) for value in values]
    return Measure(each, intervals.mean_interval(values, covariance, of_one), spread)


def difference(ratings: Ratings) -> tuple[float, float, float, Spread] | None:
    """By how much real tiles are put into their cluster more often than generated ones, its 95 % interval and what it
    is made of; None for one reader."""
    generated, real = ratings.right[:, ratings.truth].astype(float), ratings.right[:, ~ratings.truth].astype(float)
    if len(generated) < 2:
        return None
    values = real.mean(1) - generated.mean(1)
    spread = intervals.spread_of(values, intervals.covariance_of(generated, real))
    mean, reach = float(values.mean()), intervals.half_width(spread)
    return mean, mean - reach, mean + reach, spread


def by_cluster(key: Key, ratings: Ratings) -> pd.DataFrame:
    """The share of right answers for the generated and the real tiles of each cluster, over all readers.

    The intervals are Wilson's for as many answers as there are tiles: readers who judge one tile are no new tiles.
    """
    rows = {}
    for cluster in np.unique(ratings.clusters):
        name = key.names.get(str(cluster), "")
        row: dict[str, float] = {}
        for kind, of_kind in (("generated", ratings.truth), ("real", ~ratings.truth)):
            tiles = of_kind & (ratings.clusters == cluster)
            row[f"{kind} tiles"] = int(tiles.sum())
            if tiles.any():
                share = intervals.share_interval(float(ratings.right[:, tiles].mean()), int(tiles.sum()))
                row |= {f"{kind}, right": share.value, f"{kind}, low": share.low, f"{kind}, high": share.high}
        rows[f"cluster {cluster} {name}".strip()] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def agreement(ratings: Ratings, seed: int) -> Interval | None:
    """Fleiss' kappa over the judged tiles, with its 95 % bootstrap interval over tiles (percentiles); None for one
    reader, and where all gave one answer to all."""
    if len(ratings.readers) < 2:
        return None
    counts = (ratings.answers[..., None] == np.unique(ratings.answers)).sum(0)  # (n, answers)
    kappa = float(intervals.fleiss_kappa(counts))
    if np.isnan(kappa):
        return None
    interval = stats.bootstrap(
        (np.arange(len(counts)),), lambda rows, axis: np.nan_to_num(intervals.fleiss_kappa(counts[rows])),
        n_resamples=RESAMPLES, vectorized=True, method="percentile",
        rng=np.random.default_rng(derive_seed(seed, "agreement of readers")),
    ).confidence_interval  # fmt: skip
    return Interval(kappa, float(interval.low), float(interval.high))


def learning(ratings: Ratings) -> tuple[pd.DataFrame, Interval | None]:
    """The share of right answers in the first and the second half of each reader's order, and the mean gain between
    them with its 95 % interval over readers (t); None for one reader."""
    late = ratings.place >= 0.5
    halves = [np.where(half, ratings.right, np.nan) for half in (~late, late)]
    first, second = (np.nanmean(half, axis=1) for half in halves)
    table = pd.DataFrame({"first half": first, "second half": second, "gain": second - first}, _names(ratings.readers))
    gain = second - first
    if len(gain) < 2:
        return table, None
    reach = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
    return table, Interval(float(gain.mean()), float(gain.mean() - reach), float(gain.mean() + reach))


def catches(key: Key, table: pd.DataFrame) -> pd.DataFrame:
    """How each reader did on the catch tiles: blurred and mixed ones called real, examples not recognised, and tiles
    that got another answer when they were shown again; each beside how many there were."""
    rows = {}
    for reader, of_reader in table.groupby("reader"):
        answers = of_reader.set_index("trial")
        row: dict[str, int] = {}
        for kind in ("blurred", "shuffled", "example"):
            of_kind = answers[answers.kind == kind]
            if len(of_kind):
                right = "generated" if key.question == "real" else of_kind.cluster.astype(str)
                row |= {f"{kind}, failed": int((of_kind.answer != right).sum()), f"{kind}, of": len(of_kind)}
        again = answers[answers.repeats >= 0]
        first = answers.loc[again.repeats, "answer"].to_numpy()
        row |= {"shown twice, answered otherwise": int((again.answer != first).sum()), "shown twice, of": len(again)}
        rows[f"reader {reader}"] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def decision(key: Key, ratings: Ratings, measured: Mapping[str, Measure]) -> str:
    """Whether the study decides its question, and if not how many readers or tiles would, in one or two sentences."""
    if len(ratings.readers) < 2:
        return "One reader decides nothing for readers at large: at least two are needed, and four or more for a paper."
    if key.question == "real":
        value, low, high = (number - 0.5 for number in measured["AUC"].together)
        spread = measured["AUC"].spread
        claim, within = "the AUC lies above or below 0.5", "within 0.1 of 0.5"
    else:
        value, low, high, spread = difference(ratings) or (0.0, 0.0, 0.0, None)
        claim, within = "generated tiles are put into their cluster as often as real ones", "within 0.1 of each other"
    if low > 0 or high < 0:
        return f"Decided: {_direction(key, value)} (interval {low:+.2f} to {high:+.2f})."
    if low > -MARGIN and high < MARGIN:
        return f"Decided: no difference that counts, as the interval ({low:+.2f} to {high:+.2f}) lies {within}."
    assert spread is not None
    target = max(abs(value), MARGIN - abs(value))
    readers, times = intervals.readers_for(spread, target), intervals.times_for(spread, target)
    tiles = None if times is None else int(np.ceil(times * len(ratings.truth) / 2) * 2)
    ways = [f"{readers} readers of the same tiles"] if readers else []
    ways += [f"{tiles} tiles for the same readers"] if tiles else []
    way = " or ".join(ways) if ways else "more of both, beyond 50 readers or 20 times the tiles of one alone,"
    return (
        f"Not decided whether {claim} (interval of the difference {low:+.2f} to {high:+.2f}). If the difference stays "
        f"as it is, {way} would decide it."
    )


def _direction(key: Key, value: float) -> str:
    if key.question == "cluster":
        return f"real tiles are put into their cluster {'more' if value > 0 else 'less'} often than generated ones"
    if value > 0:
        return "readers tell generated tiles from real ones"
    return "readers take generated tiles for real more often than real ones"


def _names(readers: np.ndarray) -> list[str]:
    return [f"reader {reader}" for reader in readers]
