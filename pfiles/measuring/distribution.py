"""How far a set of generated images is from a set of real ones: distances between two clouds of features.

All functions take features (N, d) of any extractor (see `features`). What a number is worth shows beside the same
number for held-out real images, for one flat colour and for blurred tiles: see
`reporting/sections/distribution`.
"""

from collections.abc import Iterator

import numpy as np

from pfiles.errors import InputError
from pfiles.machine.processes import progress
from pfiles.machine.runtime import derive_seed

NEIGHBOURS = 5  # k of precision, recall, density and coverage
PRDC = ("precision", "recall", "density", "coverage")
BLOCK = 1000  # rows of a distance matrix at once: 80 MB for 10,000 columns
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000  # at most, and at most half of the images


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Frechet distance of Gaussians fitted to two sets of features; 0 for equal sets, higher is farther.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) with the covariances A and B (Dowson and Landau 1982; Heusel et al.
    2017, who take Inception features and call it FID). a, b: (N, d) and (M, d) of at least two rows. It grows as sets
    shrink: compare only numbers from sets of one size. Exact for singular covariances, as they are where N <= d.
    """
    a, b = _checked(a, b, at_least=2)
    return _frechet(a.mean(0), _root(a), b.mean(0), _root(b))


def _root(features: np.ndarray) -> np.ndarray:
    """R with R^T R the covariance of features (N, d), at most d rows."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred


def _frechet(mean_a: np.ndarray, root_a: np.ndarray, mean_b: np.ndarray, root_b: np.ndarray) -> float:
    """From means and matrices with root^T root = covariance.

    tr((A B)^(1/2)) is the sum of the singular values of root_a root_b^T: that needs no root of a singular matrix.
    """
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = np.square(mean_a - mean_b).sum() + np.square(root_a).sum() + np.square(root_b).sum() - 2 * overlap
    return max(float(distance), 0.0)


def polynomial_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x y / d + 1)^3; 0 is expected for equal laws."""
    aa, bb, ab = ((x @ y.T / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    n, m = len(a), len(b)
    within = (aa.sum() - aa.trace()) / (n * (n - 1)) + (bb.sum() - bb.trace()) / (m * (m - 1))
    return float(within - 2 * ab.mean())


def kid(a: np.ndarray, b: np.ndarray, seed: int, subset_size: int | None = None) -> tuple[float, float]:
    """Kernel distance (Binkowski et al. 2018) of features (N, d) and (M, d), and its standard error.

    The mean of `polynomial_mmd` over 100 pairs of random subsets; for Inception features it is called KID. Unlike the
    Frechet distance it does not depend on how many images there are; equal laws give 0 to within the error, and it may
    be negative. subset_size: default 1000, or half of the smaller set where that is less.

    Standard error: of the statistic of whole sets, from the spread over subsets that leave n - m of n images out (the
    delete-d jackknife, Shao and Wu 1989): sqrt(m / (n - m)) times their standard deviation.
    """
    a, b = _checked(a, b, at_least=4)
    n = min(len(a), len(b))
    m = subset_size or min(KID_SUBSET_SIZE, n // 2)
    if not 2 <= m < n:
        raise InputError(f"KID needs subsets of 2 to {n - 1} images for sets of {n}, but subset_size is {m}.")
    rng = np.random.default_rng(derive_seed(seed, "kid"))
    subsets = progress(range(KID_SUBSETS), desc="kernel distance", leave=False, delay=2)
    values = [polynomial_mmd(*(x[rng.choice(len(x), m, replace=False)] for x in (a, b))) for _ in subsets]
    return float(np.mean(values)), float(np.std(values, ddof=1) * np.sqrt(m / (n - m)))


def prdc(real: np.ndarray, generated: np.ndarray, k: int = NEIGHBOURS) -> dict[str, float]:
    """Precision, recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    real: (N, d), generated: (M, d), both of more than k rows. The ball of a point reaches to its k-th neighbour in its
    own set, the point itself not counted. "precision": share of generated points in the ball of any real one;
    "recall": share of real points in the ball of any generated one; "density": in how many balls of real ones a
    generated point lies, over k, expected 1 for equal laws and more where generated points crowd; "coverage": share of
    real points whose ball holds a generated one. Exact, in blocks: memory grows with N + M.
    """
    real, generated = _checked(real, generated, at_least=k + 1)
    centre = real.mean(0)  # small numbers keep the digits of their squares
    real, generated = real - centre, generated - centre
    radius_real, radius_generated = (_kth_neighbour(points, k) for points in (real, generated))
    hits = np.zeros(len(generated))  # real balls that hold each generated point
    covered, recalled = (np.zeros(len(real), bool) for _ in range(2))
    for rows, squared in _squared_distances(real, generated):
        inside = squared < radius_real[rows, None]
        hits += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
        recalled[rows] = (squared < radius_generated).any(axis=1)
    return {
        "precision": float((hits > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(hits.mean() / k),
        "coverage": float(covered.mean()),
    }


def _kth_neighbour(points: np.ndarray, k: int) -> np.ndarray:
    """The squared distance (N,) of each point to its k-th neighbour, less a rounding error: the ball is open."""
    squared = np.concatenate([np.partition(block, k, axis=1)[:, k] for _, block in _squared_distances(points, points)])
    return squared * (1 - 1e-9)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows of the matrix |a_i - b_j|^2, with their place."""
    norms = np.square(b).sum(1)
    for start in progress(range(0, len(a), BLOCK), desc="neighbours", leave=False, delay=2):
        rows = a[start : start + BLOCK]
        squared = np.square(rows).sum(1)[:, None] + norms - 2 * rows @ b.T
        yield slice(start, start + len(rows)), squared


def _checked(a: np.ndarray, b: np.ndarray, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    """Both feature tables in float64; InputError unless they are finite, of one width, and have enough rows."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InputError(f"Features must be two tables of one width, but have the shapes {a.shape} and {b.shape}.")
    if min(len(a), len(b)) < at_least:
        raise InputError(f"This needs at least {at_least} images of each set, but there are {len(a)} and {len(b)}.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("Features must be finite, but some are NaN or infinite: look for images that are not sound.")
    return a, b
