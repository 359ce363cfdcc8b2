"""How much a clustering without labels is worth: what another seed, half of the tiles, a turned tile or the next number
of clusters changes.

Clusters are arrays (N,) of whole numbers from 0, one for each tile. Names of clusters never matter.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from MODULE import INDICES, all_indices, occupancy
from pfiles.measuring.fidelity import student_interval

FIVE = tuple(INDICES)[:5]  # the indices of the paper
PUBLISHED = {  # of the published clusters of k = 14, one run on 10,000 tiles of one mouse
    "calinski_harabasz": 3367.74211, "c": 0.07645, "dunn": 0.00548, "hartigan": 1.47801, "mclain_rao": 0.41643,
}  # fmt: skip
PUBLISHED_K = 14


def adjusted_rand(a: np.ndarray, b: np.ndarray) -> float:
    """The adjusted Rand index of two clusterings of the same tiles (Hubert and Arabie 1985).

    1 where they sort the tiles alike, 0 on average where they have nothing to do with each other.
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(a, b))


def between_seeds(cluster_ids: np.ndarray) -> float:
    """The mean `adjusted_rand` over all pairs of the clusterings (seeds, N); nan of one alone."""
    pairs = [adjusted_rand(a, b) for a, b in combinations(cluster_ids, 2)]
    return float(np.mean(pairs)) if pairs else float("nan")


def unmoved(views: np.ndarray) -> float:
    """The share of tiles that are in one cluster in all of their views, from clusters (views, N)."""
    return float((views == views[0]).all(axis=0).mean())


def contingency(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many tiles are in cluster i of one and in cluster j of another clustering: (k_a, k_b)."""
    table = np.zeros((a.max() + 1, b.max() + 1), int)
    np.add.at(table, (a, b), 1)
    return table


def nested(coarse: np.ndarray, fine: np.ndarray) -> float:
    """The share of tiles whose fine cluster takes most of its tiles from their coarse one.

    1 where the fine clusters split the coarse ones and mix none of them.
    """
    return float(contingency(coarse, fine).max(axis=0).sum() / len(coarse))


def describe(features: np.ndarray, cluster_ids: np.ndarray, k: int) -> dict[str, float]:
    """The five indices (nan where all tiles are in one cluster, as none is defined), and how full the clusters are."""
    sizes, n_used, kl = occupancy(cluster_ids, k)
    indices = all_indices(features, cluster_ids) if n_used > 1 else dict.fromkeys(FIVE, float("nan"))
    return {**indices, "clusters used": n_used, "smallest": sizes.min(), "largest": sizes.max(), "KL to uniform": kl}


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of independent values and its 95 % interval by Student's t; without ends where there is one value.

    Values that are not finite, such as indices of a single cluster, are left out.
    """
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    return student_interval(finite) if len(finite) else (math.nan, math.nan, math.nan)


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `describe`, indexed by k and seed -> for each k the "mean", "low" and "high" of each column."""
    table = {
        k: {(name, part): value
            for name in group for part, value in zip(("mean", "low", "high"), mean_interval(group[name]), strict=True)}
        for k, group in rows.groupby(level=0)
    }  # fmt: skip
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("k")


def supported(table: pd.DataFrame) -> dict[str, list[int]]:
    """For each of the five indices of `over_seeds`: the k whose interval overlaps with that of the best k."""
    supported_ks: dict[str, list[int]] = {}
    for name in FIVE:
        intervals = table[name].dropna()
        if intervals.empty:
            supported_ks[name] = []
            continue
        best = intervals["mean"].idxmax() if INDICES[name].direction == "higher" else intervals["mean"].idxmin()
        low, high = intervals.loc[best, ["low", "high"]]
        supported_ks[name] = [int(k) for k in intervals.index[(intervals["low"] <= high) & (intervals["high"] >= low)]]
    return supported_ks


def verdict(table: pd.DataFrame, stability: Mapping[int, float]) -> str:
    """What the numbers support, in one sentence.

    table: see `over_seeds`. stability: the `adjusted_rand` between seeds by k.
    """
    ks = [int(k) for k in table.index]
    if table[FIVE[0]]["low"].isna().all():
        return (
            f"One seed has no spread, so that these numbers cannot tell {_name(ks)} apart: take at least three seeds."
        )
    if len(ks) == 1:
        return f"{_name(ks)} alone cannot be compared with another: two seeds agree to {stability[ks[0]]:.2f} of 1."
    near = supported(table)
    both = [k for k in ks if all(k in of for of in near.values())]
    if both == ks:
        conclusion = (
            f"The numbers do not single out a k: {_name(ks)} cannot be told from the best on any of the five indices"
        )
    elif len(both) > 1:
        conclusion = (
            f"The numbers support {_name(both)} and no single one: only these reach the best on all five indices"
        )
    elif both:
        conclusion = f"The numbers support {_name(both)}: only it reaches the best on all five indices"
    else:
        each = ", ".join(f"{INDICES[name].name} {_name(of)}" for name, of in near.items() if of)
        conclusion = f"The five indices support no k in common ({each})"
    if empty := [k for k in ks if table.loc[k, ("clusters used", "mean")] < k]:
        conclusion += f"; {_name(empty)} left clusters empty"
    agree = {k: value for k, value in stability.items() if np.isfinite(value)}
    least, most = min(agree, key=agree.__getitem__), max(agree, key=agree.__getitem__)
    return (
        f"{conclusion}; the agreement of two seeds is {agree[least]:.2f} (k = {least}) ... {agree[most]:.2f} "
        f"(k = {most}), where 1 is the same and 0 is chance."
    )


def _name(ks: Sequence[int]) -> str:
    """ "k = 14", "k = 10 ... 16" or "k = 10, 12, 14"."""
    run = len(ks) > 2 and len(ks) == ks[-1] - ks[0] + 1
    return f"k = {f'{ks[0]} ... {ks[-1]}' if run else ', '.join(map(str, ks))}"
