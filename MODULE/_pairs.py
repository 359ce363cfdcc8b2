"""One pass over all pairwise distances, block by block, so that memory never holds all N (N - 1) / 2 of them."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import scipy
from joblib import cpu_count

SAMPLED_PAIRS_PER_POINT = 64  # places the brackets; what is kept inside them then grows as N**1.5
SLACK = 5.0  # half width of a bracket in standard errors: a second pass is needed about once in a million
TIE = 1e-12  # relative; two formulas for the same distance may round differently


class PairSums(NamedTuple):
    """What the pair-based indices need to know about all pairwise Euclidean distances."""

    n_within: int  # pairs of points of the same cluster
    n_between: int
    within: float  # sum of the distances of those pairs
    between: float
    diameter: float  # largest distance within a cluster
    separation: float  # smallest distance between clusters
    smallest: float  # sum of the n_within smallest of all distances
    largest: float  # sum of the n_within largest of all distances


class Tail(NamedTuple):
    """What one block of pairs adds to a sum of smallest values, for a given bracket."""

    n_below: int
    sum_below: float
    inside: np.ndarray  # distinct values inside the bracket
    counts: np.ndarray  # how often each of them occurs


class Block(NamedTuple):
    """What is kept of one block of pairs."""

    same_cluster: bool
    total: float
    smallest: float
    largest: float
    low: Tail
    high: Tail


class NumpyBackend:
    block_area = 2**18  # pairs in a block; 2 MB of float64 stay in the cache of one core
    workers = cpu_count()

    def __init__(self, X):
        self.X = X

    def distances(self, rows, cols):
        """Distances between two slices of points, or within one, as a flat float64 array."""
        # Differences, not the Gram matrix: coincident points are at distance 0 and small distances keep their digits.
        return (
            scipy.spatial.distance.pdist(self.X[rows])
            if rows == cols
            else scipy.spatial.distance.cdist(self.X[rows], self.X[cols]).ravel()
        )

    def to_numpy(self, values):
        return values


class TorchBackend:
    block_area = 2**24  # few, large kernels
    workers = 1

    def __init__(self, X, device):
        import torch

        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(f"device={device!r} was asked for, but torch finds no CUDA GPU; leave device out.")
        self.torch = torch
        self.X = torch.as_tensor(X, device=device)

    def distances(self, rows, cols):
        if rows == cols:
            return self.torch.pdist(self.X[rows])
        by_differences = "donot_use_mm_for_euclid_dist"
        return self.torch.cdist(self.X[rows], self.X[cols], compute_mode=by_differences).ravel()

    def to_numpy(self, values):
        return values.cpu().numpy()


def pair_sums(X, sizes, device=None):
    """Sums, extremes and both tails of the pairwise distances of X, whose rows are grouped by cluster.

    The sums of the n_within smallest and largest distances are selected, not sorted out. A random sample of pairs puts
    a narrow bracket around each cut-off; during the pass everything beyond the bracket is only counted and summed, and
    what falls inside is kept. The counts then tell whether the cut-off lay inside. If not, the pass is repeated with
    wider brackets, so the result is always exact, and one pass is enough in all but rare cases.

    X: (n_samples, n_features) float64, the rows of one cluster next to each other.
    sizes: (n_clusters,) number of rows of each cluster, in the order of X; 2 to n_samples - 1 clusters.
    device: a torch device; numpy on all cores when None.
    """
    backend = NumpyBackend(X) if device is None else TorchBackend(X, device)
    n_pairs = math.comb(len(X), 2)
    n_within = sum(math.comb(int(size), 2) for size in sizes)

    rng = np.random.default_rng(0)
    slack = SLACK
    smallest = largest = None
    while smallest is None or largest is None:
        sample = _sample_distances(X, rng)
        low = _bracket(sample, n_within / n_pairs, slack)
        high = _bracket(-sample, n_within / n_pairs, slack)  # the largest d are the smallest -d
        # map keeps the order of the blocks, so the result does not depend on which thread was faster.
        with ThreadPoolExecutor(backend.workers) as pool:
            blocks = list(pool.map(partial(_measure, backend, low, high), _blocks(sizes, backend.block_area)))
        smallest = _sum_of_smallest([block.low for block in blocks], n_within)
        largest = _sum_of_smallest([block.high for block in blocks], n_within)
        slack *= 4

    within = [block for block in blocks if block.same_cluster]
    between = [block for block in blocks if not block.same_cluster]
    return PairSums(
        n_within=n_within,
        n_between=n_pairs - n_within,
        within=math.fsum(block.total for block in within),
        between=math.fsum(block.total for block in between),
        diameter=max(block.largest for block in within),
        separation=min(block.smallest for block in between),
        smallest=smallest,
        largest=-largest,
    )


def _blocks(sizes, area):
    """Cut the upper triangle of pairs into (rows, cols, same_cluster), none with more than `area` pairs."""
    ends = np.cumsum(sizes).tolist()
    n_samples = ends[-1]
    side = math.isqrt(area)
    for begin, end in zip([0, *ends], ends, strict=False):
        for top in range(begin, end, side):
            rows = slice(top, min(top + side, end))
            height = rows.stop - rows.start
            if height > 1:
                yield rows, rows, True
            for left, right, same_cluster in ((rows.stop, end, True), (end, n_samples, False)):
                for start in range(left, right, area // height):
                    yield rows, slice(start, min(start + area // height, right)), same_cluster


def _sample_distances(X, rng):
    """Distances of random pairs of different points, drawn with replacement."""
    n_samples = len(X)
    size = SAMPLED_PAIRS_PER_POINT * n_samples
    i = rng.integers(n_samples, size=size)
    j = (i + rng.integers(1, n_samples, size=size)) % n_samples
    return np.sqrt(sum((x[i] - x[j]) ** 2 for x in X.T))  # one feature at a time: no (size, n_features) array


def _bracket(sample, fraction, slack):
    """Interval around the `fraction` quantile of the population, `slack` standard errors of the sample to each side."""
    n = len(sample)
    reach = slack * (math.sqrt(n * fraction * (1 - fraction)) + 1)
    first, last = math.floor(n * fraction - reach), math.ceil(n * fraction + reach)
    lo = np.partition(sample, first)[first] if first >= 0 else -math.inf
    hi = np.partition(sample, last)[last] if last < n else math.inf
    return lo - TIE * abs(lo), hi + TIE * abs(hi)  # all copies of a tied distance are on the same side of an end


def _measure(backend, low, high, block):
    """The share of one block of pairs in each of the sums."""
    rows, cols, same_cluster = block
    d = backend.distances(rows, cols)
    return Block(
        same_cluster=same_cluster,
        total=float(d.sum()),
        smallest=float(d.min()),
        largest=float(d.max()),
        low=_tail(d, low, backend),
        high=_tail(-d, high, backend),
    )


def _tail(values, bracket, backend):
    """Count and sum the values below the bracket; keep those inside."""
    lo, hi = bracket
    values = values[values <= hi]
    is_inside = values >= lo
    below = values[~is_inside]
    # Distinct values bound the memory when ties put most of all pairs inside the bracket.
    inside, counts = np.unique(backend.to_numpy(values[is_inside]), return_counts=True)
    return Tail(len(below), float(below.sum()), inside, counts)


def _sum_of_smallest(tails, rank):
    """Sum of the `rank` smallest values of all blocks, or None when the last of them lies outside the bracket."""
    inside = np.concatenate([tail.inside for tail in tails])
    counts = np.concatenate([tail.counts for tail in tails])
    missing = rank - sum(tail.n_below for tail in tails)
    if not 0 <= missing <= counts.sum():
        return None
    order = np.argsort(inside)
    inside, counts = inside[order], counts[order]
    counts_inside = np.clip(missing - (np.cumsum(counts) - counts), 0, counts)
    return math.fsum(tail.sum_below for tail in tails) + float((counts_inside * inside).sum())
