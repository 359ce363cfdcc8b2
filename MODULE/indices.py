"""Internal cluster-validity indices: how compact and how separate are given clusters, from points and labels alone.

Every function takes X, (n_samples, n_features), and labels, (n_samples,), of any kind that can be sorted, and refuses,
with a ValueError, what the definitions do not cover: fewer than 2 or more than n_samples - 1 distinct labels, NaN or
infinity, arrays of other shapes. A cluster of one point is valid and has no within-cluster pair. Names of the labels do
not matter, nor does a name that no point carries. Moving, rotating or scaling X does not change an index.

Where the points of every cluster coincide, ratios follow floating-point division: x / 0 is inf and 0 / 0 is nan.

This file is longer than others here, as each index has its definition, its range and its edge cases above its code.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from MODULE._pairs import TIE, pair_sums


def calinski_harabasz_index(X, labels):
    """Calinski-Harabasz index: between- over within-group dispersion, each per degree of freedom.

    From 0 to inf; higher is better.

    (BGSS / (K - 1)) / (WGSS / (n - K)) for n points in K clusters. WGSS sums the squared distances of the points to the
    centroid of their cluster; BGSS those of the centroids to the mean of all points, each times its cluster's size.

    Parameters
    ----------
    X : (n_samples, n_features) array of numbers
    labels : (n_samples,) array, 2 to n_samples - 1 distinct values

    Returns
    -------
    float; inf when the points of each cluster coincide, nan when all points do (scikit-learn returns 1 for both).

    References
    ----------
    Calinski and Harabasz (1974). A dendrite method for cluster analysis. Communications in Statistics 3(1), 1-27.

    Examples
    --------
    >>> X = [[0, 0], [3, 4], [12, 16], [18, 24], [33, 44]]
    >>> round(calinski_harabasz_index(X, [0, 0, 0, 1, 1]), 5)
    7.94173
    """
    return _calinski_harabasz(_square_sums(*_grouped(X, labels)))


def c_index(X, labels, device=None):
    """C index: where the within-cluster distances lie between the smallest and the largest possible.

    From 0 to 1; lower is better.

    (S_W - S_min) / (S_max - S_min). S_W sums the distances of the N_W pairs of points of the same cluster; S_min and
    S_max sum the N_W smallest and the N_W largest of all n (n - 1) / 2 distances. Both are exact, without sorting all
    distances or holding them in memory: one pass over the pairs in all but rare cases, two or more otherwise.

    Parameters
    ----------
    X : (n_samples, n_features) array of numbers
    labels : (n_samples,) array, 2 to n_samples - 1 distinct values
    device : torch device such as "cuda"; None for numpy on the CPU

    Returns
    -------
    float; nan when all distances are equal, as S_max is then S_min (all points coincide, or a regular simplex).

    References
    ----------
    Hubert and Levin (1976). A general statistical framework for assessing categorical clustering in free recall.
    Psychological Bulletin 83(6), 1072-1080.

    Examples
    --------
    >>> X = [[0, 0], [3, 4], [12, 16], [18, 24], [33, 44]]
    >>> round(c_index(X, [0, 0, 0, 1, 1]), 5)
    0.125
    """
    return _c(pair_sums(*_grouped(X, labels), device))


def dunn_index(X, labels, device=None):
    """Dunn index: smallest gap between clusters over the largest cluster diameter.

    From 0 to inf; higher is better. A single pair of points decides each of its two parts: of some of the points it
    is larger.

    The smallest distance between points of different clusters, over the largest distance between points of the same
    cluster: the classical form, between points and not centroids.

    Parameters
    ----------
    X : (n_samples, n_features) array of numbers
    labels : (n_samples,) array, 2 to n_samples - 1 distinct values
    device : torch device such as "cuda"; None for numpy on the CPU

    Returns
    -------
    float; 0 when two clusters share a point, inf when the points of each cluster coincide, nan when all points do.

    References
    ----------
    Dunn (1974). Well-separated clusters and optimal fuzzy partitions. Journal of Cybernetics 4(1), 95-104.

    Examples
    --------
    >>> X = [[0, 0], [3, 4], [12, 16], [18, 24], [33, 44]]
    >>> round(dunn_index(X, [0, 0, 0, 1, 1]), 5)
    0.4
    """
    return _dunn(pair_sums(*_grouped(X, labels), device))


def hartigan_index(X, labels):
    """Hartigan index: natural logarithm of between- over within-group sum of squares.

    From -inf to inf; higher is better.

    ln(BGSS / WGSS), with the sums of squares of `calinski_harabasz_index`. Not Hartigan's other statistic,
    (WGSS_K / WGSS_(K+1) - 1) (n - K - 1), which compares two clusterings.

    Parameters
    ----------
    X : (n_samples, n_features) array of numbers
    labels : (n_samples,) array, 2 to n_samples - 1 distinct values

    Returns
    -------
    float; -inf when all centroids coincide, inf when the points of each cluster do, nan when all points do.

    References
    ----------
    Hartigan (1975). Clustering Algorithms. Wiley, New York.

    Examples
    --------
    >>> X = [[0, 0], [3, 4], [12, 16], [18, 24], [33, 44]]
    >>> round(hartigan_index(X, [0, 0, 0, 1, 1]), 5)
    0.97352
    """
    return _hartigan(_square_sums(*_grouped(X, labels)))


def mclain_rao_index(X, labels, device=None):
    """McClain-Rao index: mean distance within clusters over mean distance between clusters.

    From 0 to inf, about 1 for labels unrelated to X; lower is better.

    (S_W / N_W) / (S_B / N_B). S_W sums the distances of the N_W pairs of points of the same cluster, S_B those of the
    N_B pairs of points of different clusters.

    Parameters
    ----------
    X : (n_samples, n_features) array of numbers
    labels : (n_samples,) array, 2 to n_samples - 1 distinct values
    device : torch device such as "cuda"; None for numpy on the CPU

    Returns
    -------
    float; 0 when the points of each cluster coincide, nan when all points do.

    References
    ----------
    McClain and Rao (1975). CLUSTISZ: a program to test for the quality of clustering of a set of objects.
    Journal of Marketing Research 12(4), 456-460.

    Examples
    --------
    >>> X = [[0, 0], [3, 4], [12, 16], [18, 24], [33, 44]]
    >>> round(mclain_rao_index(X, [0, 0, 0, 1, 1]), 5)
    0.47561
    """
    return _mclain_rao(pair_sums(*_grouped(X, labels), device))


def silhouette(X, labels):
    """Mean silhouette: how much nearer each point is to its own cluster than to the next one; scikit-learn's.

    From -1 to 1; higher is better.

    Mean over points of (b - a) / max(a, b), where a is the mean distance to the other points of the same cluster and b
    the mean distance to the points of the nearest other cluster.

    Parameters
    ----------
    X : (n_samples, n_features) array of numbers
    labels : (n_samples,) array, 2 to n_samples - 1 distinct values

    Returns
    -------
    float; a point alone in its cluster counts as 0, and so does every point when all coincide.

    References
    ----------
    Rousseeuw (1987). Silhouettes: a graphical aid to the interpretation and validation of cluster analysis.
    Journal of Computational and Applied Mathematics 20, 53-65.

    Examples
    --------
    >>> X = [[0, 0], [3, 4], [12, 16], [18, 24], [33, 44]]
    >>> round(silhouette(X, [0, 0, 0, 1, 1]), 5)
    0.39848
    """
    from sklearn.metrics import silhouette_score

    return _scikit_learn(silhouette_score, X, labels)


def davies_bouldin(X, labels):
    """Davies-Bouldin index: mean over clusters of the likeness to the most similar other cluster; scikit-learn's.

    From 0 to inf; lower is better.

    Mean over clusters i of max over j of (s_i + s_j) / d_ij, where s is the mean distance of the points of a cluster to
    its centroid and d_ij the distance between two centroids.

    Parameters
    ----------
    X : (n_samples, n_features) array of numbers
    labels : (n_samples,) array, 2 to n_samples - 1 distinct values

    Returns
    -------
    float; 0 when the points of each cluster coincide and, by convention, when all centroids or all points do.

    References
    ----------
    Davies and Bouldin (1979). A cluster separation measure. IEEE Transactions on Pattern Analysis and Machine
    Intelligence PAMI-1(2), 224-227.

    Examples
    --------
    >>> X = [[0, 0], [3, 4], [12, 16], [18, 24], [33, 44]]
    >>> round(davies_bouldin(X, [0, 0, 0, 1, 1]), 5)
    0.5935
    """
    from sklearn.metrics import davies_bouldin_score

    return _scikit_learn(davies_bouldin_score, X, labels)


class Index(NamedTuple):
    name: str
    direction: str  # "higher" or "lower" is better
    reference: str
    function: Callable


INDICES = {
    "calinski_harabasz": Index("Calinski-Harabasz", "higher", "Calinski and Harabasz 1974", calinski_harabasz_index),
    "c": Index("C", "lower", "Hubert and Levin 1976", c_index),
    "dunn": Index("Dunn", "higher", "Dunn 1974", dunn_index),
    "hartigan": Index("Hartigan", "higher", "Hartigan 1975", hartigan_index),
    "mclain_rao": Index("McClain-Rao", "lower", "McClain and Rao 1975", mclain_rao_index),
    "silhouette": Index("Silhouette", "higher", "Rousseeuw 1987", silhouette),
    "davies_bouldin": Index("Davies-Bouldin", "lower", "Davies and Bouldin 1979", davies_bouldin),
}


def all_indices(X, labels, device=None):
    """The five indices of the paper, from one pass over the pairwise distances.

    Parameters
    ----------
    X : (n_samples, n_features) array of numbers
    labels : (n_samples,) array, 2 to n_samples - 1 distinct values
    device : torch device such as "cuda"; None for numpy on the CPU

    Returns
    -------
    dict of float with keys of `INDICES`: calinski_harabasz, c, dunn, hartigan, mclain_rao.

    Examples
    --------
    >>> X = [[0, 0], [3, 4], [12, 16], [18, 24], [33, 44]]
    >>> for key, value in all_indices(X, [0, 0, 0, 1, 1]).items():
    ...     print(f"{INDICES[key].name}: {value:.5f} ({INDICES[key].direction} is better)")
    Calinski-Harabasz: 7.94173 (higher is better)
    C: 0.12500 (lower is better)
    Dunn: 0.40000 (higher is better)
    Hartigan: 0.97352 (higher is better)
    McClain-Rao: 0.47561 (lower is better)
    """
    X, sizes = _grouped(X, labels)
    squares = _square_sums(X, sizes)
    pairs = pair_sums(X, sizes, device)
    return {
        "calinski_harabasz": _calinski_harabasz(squares),
        "c": _c(pairs),
        "dunn": _dunn(pairs),
        "hartigan": _hartigan(squares),
        "mclain_rao": _mclain_rao(pairs),
    }


def sampled_indices(X, labels, n_points=10_000, n_subsets=10, seed=0, device=None):
    """The five indices where there are too many points for all their pairs, with intervals.

    Calinski-Harabasz and Hartigan are exact, as they need no pairs. C and McClain-Rao are means over random subsets of
    the points, with Student's 95 % interval over the subsets. Dunn is the smallest of the subsets': a bound that the
    index of all points does not exceed, and no estimate, as one pair decides each of its parts.

    Parameters
    ----------
    X : (n_samples, n_features) array of numbers
    labels : (n_samples,) array, 2 to n_samples - 1 distinct values
    n_points : int, points of a subset; those that X has where it has fewer
    n_subsets : int, at least 2
    seed : int, of the choice of points
    device : torch device such as "cuda"; None for numpy on the CPU

    Returns
    -------
    dict of float with the keys of `all_indices`, and c_low, c_high, mclain_rao_low, mclain_rao_high, dunn_low (0) and
    dunn_high.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(3000, 2))
    >>> found = sampled_indices(X, X[:, 0] > 0, n_points=300)
    >>> found["c_low"] < c_index(X, X[:, 0] > 0) < found["c_high"]
    True
    """
    if n_subsets < 2:
        raise ValueError(f"n_subsets must be at least 2, as an interval needs them; got {n_subsets}.")
    grouped, sizes = _grouped(X, labels)
    names = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(seed)
    subsets = [rng.choice(len(grouped), min(n_points, len(grouped)), replace=False) for _ in range(n_subsets)]
    pairs = [pair_sums(*_grouped(grouped[subset], names[subset]), device) for subset in subsets]
    squares, dunn = _square_sums(grouped, sizes), min(map(_dunn, pairs))
    indices = {"calinski_harabasz": _calinski_harabasz(squares), "c": 0.0, "dunn": dunn, "hartigan": _hartigan(squares)}
    for name, index in (("c", _c), ("mclain_rao", _mclain_rao)):
        indices[name], indices[f"{name}_low"], indices[f"{name}_high"] = _mean_and_interval([index(of) for of in pairs])
    return {**indices, "dunn_low": 0.0, "dunn_high": dunn}


def _mean_and_interval(values):
    """The mean, and Student's 95 % interval of it."""
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(np.mean(values) - half), float(np.mean(values) + half)


class Occupancy(NamedTuple):
    sizes: np.ndarray  # (n_clusters,) points in each cluster
    n_used: int  # clusters with at least one point
    kl_to_uniform: float


def occupancy(labels, n_clusters):
    """How evenly the points fill the clusters they could have been given.

    kl_to_uniform goes from 0, all clusters equally full, to ln n_clusters, all points in one; lower is more even.

    sum over clusters of p ln(p n_clusters), p being the cluster's share of the points and 0 ln 0 being 0.

    Parameters
    ----------
    labels : (n_samples,) array of whole numbers from 0 to n_clusters - 1
    n_clusters : int, the number of clusters on offer, used or not

    Returns
    -------
    Occupancy, the tuple (sizes, n_used, kl_to_uniform)

    Examples
    --------
    >>> sizes, n_used, kl = occupancy([0, 0, 2, 2], n_clusters=4)
    >>> sizes.tolist(), n_used, round(kl, 5)
    ([2, 0, 2, 0], 2, 0.69315)
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(f"labels must be a one-dimensional array of at least one label; got shape {labels.shape}.")
    in_range = np.isin(labels, np.arange(n_clusters))
    if not in_range.all():
        raise ValueError(f"labels must be whole numbers from 0 to {n_clusters - 1}; got {labels[~in_range][0]!r}.")
    sizes = np.bincount(labels.astype(int), minlength=n_clusters)
    share = sizes[sizes > 0] / labels.size
    return Occupancy(sizes, len(share), float((share * np.log(share * n_clusters)).sum()))


class SquareSums(NamedTuple):
    n_samples: int
    n_clusters: int
    between: float  # BGSS
    within: float  # WGSS


def _grouped(X, labels):
    """Check both; return X as float64, the rows of one cluster next to each other, and the cluster sizes."""
    X, labels = np.asarray(X, dtype=np.float64), np.asarray(labels)
    if X.ndim != 2 or X.size == 0:
        raise ValueError(f"X must be two-dimensional, (n_samples, n_features), and not empty; got shape {X.shape}.")
    if labels.shape != (len(X),):
        raise ValueError(f"labels must hold one label for each of the {len(X)} rows of X; got shape {labels.shape}.")
    if not np.isfinite(X).all():
        raise ValueError(f"X must be finite; got {(~np.isfinite(X)).sum()} values that are NaN or infinite.")
    missing = labels != labels  # only NaN differs from itself
    if missing.any():
        raise ValueError(f"labels must not be missing; got {missing.sum()} that are NaN.")
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if not 2 <= len(sizes) < len(X):
        raise ValueError(f"There must be at least 2 clusters and fewer than the {len(X)} points; got {len(sizes)}.")
    # A power of two scales without rounding; the largest value near 1 keeps squares from overflowing or vanishing.
    X = np.ldexp(X, -np.frexp(np.abs(X).max())[1])
    return X[np.argsort(codes, kind="stable")], sizes


def _square_sums(X, sizes):
    X = X - X[0]  # points far from the origin keep their digits
    mean = X.mean(axis=0)
    between = within = 0.0
    for group in np.split(X, np.cumsum(sizes)[:-1]):
        offsets = group - group[0]  # exactly 0 where points coincide, which the mean of such points may not be
        centroid = offsets.mean(axis=0)
        within += ((offsets - centroid) ** 2).sum()
        between += len(group) * ((group[0] + centroid - mean) ** 2).sum()
    return SquareSums(len(X), len(sizes), between, within)


def _scikit_learn(score, X, labels):
    X, sizes = _grouped(X, labels)
    # Its distances come from a Gram matrix: those of points near the origin keep their digits, of points on it are 0.
    return float(score(X - X[0], np.repeat(np.arange(len(sizes)), sizes)))


def _ratio(numerator, denominator):
    """Floating-point division: x / 0 is inf, 0 / 0 is nan."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.divide(numerator, denominator))


def _calinski_harabasz(squares):
    degrees = (squares.n_samples - squares.n_clusters) / (squares.n_clusters - 1)
    return degrees * _ratio(squares.between, squares.within)


def _hartigan(squares):
    with np.errstate(divide="ignore"):
        return float(np.log(_ratio(squares.between, squares.within)))


def _c(pairs):
    spread = pairs.largest - pairs.smallest
    if spread <= TIE * pairs.largest:  # equal sums, added up in a different order
        return math.nan
    return max(0.0, (pairs.within - pairs.smallest) / spread)  # rounding may leave a perfect clustering at -1e-17


def _dunn(pairs):
    return _ratio(pairs.separation, pairs.diameter)


def _mclain_rao(pairs):
    return _ratio(pairs.within / pairs.n_within, pairs.between / pairs.n_between)
