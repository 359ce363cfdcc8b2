"""MODULE: each index against numbers worked by hand, an independent reference, and what must hold for all of them."""

import doctest
import math
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from MODULE import INDICES, _pairs, all_indices, indices, occupancy, sampled_indices

REPO = Path(__file__).resolve().parents[2]
PUBLISHED_CSV = REPO.parent / "shared" / "published" / "HHH14_C14_D14.csv"
PAIR_INDICES = ("c", "dunn", "mclain_rao")

every_index = pytest.mark.parametrize("index", [index.function for index in INDICES.values()], ids=INDICES.keys())


def blobs(n_samples=60, n_clusters=4, n_features=3, seed=0):
    """Overlapping Gaussian clusters."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n_samples) % n_clusters
    return rng.normal(size=(n_clusters, n_features))[labels] + rng.normal(size=(n_samples, n_features)), labels


def with_duplicates():
    X, labels = blobs(n_samples=150)
    return np.vstack([X, X[:50]]), np.concatenate([labels, labels[:50][::-1]])


def grid():
    """Points of a small grid: nearly all distances are tied, and most points occur in several clusters."""
    rng = np.random.default_rng(1)
    return rng.integers(0, 3, size=(200, 2)), rng.integers(0, 5, size=200)


def one_large_cluster():
    X, labels = blobs(n_samples=200, n_clusters=20)
    return X, np.where(labels < 18, 0, labels)


def mostly_single_points():
    X, labels = blobs(n_samples=80)
    return X, np.where(labels == 0, 0, np.arange(80))


def one_pair():
    X, _ = blobs(n_samples=200)
    return X, np.maximum(np.arange(200), 1)


def large():
    """About a million pairs, so that the brackets leave most of them out."""
    return blobs(n_samples=1500, n_clusters=7)


DATA_SETS = (blobs, with_duplicates, grid, one_large_cluster, mostly_single_points, one_pair, large)


def naive_pair_sums(X, labels):
    """All distances at once, all of them sorted."""
    X, labels = np.asarray(X, dtype=float), np.asarray(labels)
    i, j = np.triu_indices(len(X), k=1)
    d = np.sqrt(((X[i] - X[j]) ** 2).sum(axis=1))
    same = labels[i] == labels[j]
    n_within, ordered = same.sum(), np.sort(d)
    return {
        "n_within": n_within,
        "n_between": len(d) - n_within,
        "within": d[same].sum(),
        "between": d[~same].sum(),
        "diameter": d[same].max(),
        "separation": d[~same].min(),
        "smallest": ordered[:n_within].sum(),
        "largest": ordered[len(d) - n_within :].sum(),
    }


def naive_indices(X, labels):
    p = naive_pair_sums(X, labels)
    return {
        "c": (p["within"] - p["smallest"]) / (p["largest"] - p["smallest"]),
        "dunn": p["separation"] / p["diameter"],
        "mclain_rao": (p["within"] / p["n_within"]) / (p["between"] / p["n_between"]),
    }


def sorted_by_label(X, labels):
    _, sizes = np.unique(labels, return_counts=True)
    return np.asarray(X, dtype=float)[np.argsort(labels, kind="stable")], sizes


def published():
    columns = np.loadtxt(PUBLISHED_CSV, delimiter=",")
    return columns[:, :16], columns[:, 16]


# ---- values


def test_five_points_by_hand():
    # Points at 0, 1, 4 | 6, 11 along the direction (3, 4), so that every distance is 5 times that of the positions.
    X = np.array([[0, 0], [3, 4], [12, 16], [18, 24], [33, 44]])
    labels = [0, 0, 0, 1, 1]
    # All indices are free of scale; in positions:
    #   within clusters    1 4 3 | 5            S_W = 13, N_W = 4, largest 5
    #   between clusters   6 11 5 10 2 7        S_B = 41, N_B = 6, smallest 2
    #   all, in order      1 2 3 4 5 5 6 7 10 11   S_min = 1 + 2 + 3 + 4 = 10, S_max = 6 + 7 + 10 + 11 = 34
    #   centroids 5/3 and 17/2, mean 22/5
    #   WGSS = (0 + 1 + 16 - 25/3) + 2 (5/2)^2 = 26/3 + 25/2 = 127/6
    #   BGSS = 3 (41/15)^2 + 2 (41/10)^2 = 1681/75 + 1681/50 = 1681/30
    ratio = (1681 / 30) / (127 / 6)  # = 1681/635
    assert all_indices(X, labels) == pytest.approx(
        {
            "calinski_harabasz": ratio * (5 - 2) / (2 - 1),
            "c": (13 - 10) / (34 - 10),
            "dunn": 2 / 5,
            "hartigan": math.log(ratio),
            "mclain_rao": (13 / 4) / (41 / 6),
        },
        rel=1e-14,
    )
    # Silhouette: a = 5/2 2 7/2 5 5 and b = 17/2 15/2 9/2 13/3 28/3 for the five points; (b - a) / max(a, b) each.
    silhouettes = 12 / 17, 11 / 15, 2 / 9, -2 / 15, 13 / 28
    assert indices.silhouette(X, labels) == pytest.approx(sum(silhouettes) / 5)
    # Davies-Bouldin: mean distances to the centroid (5/3 + 2/3 + 7/3) / 3 = 14/9 and 5/2; centroids 41/6 apart.
    assert indices.davies_bouldin(X, labels) == pytest.approx((14 / 9 + 5 / 2) / (41 / 6))


@pytest.mark.skipif(not PUBLISHED_CSV.exists(), reason=f"the published latents are not there: {PUBLISHED_CSV}")
def test_published_values():
    values = {key: f"{value:.5f}" for key, value in all_indices(*published()).items()}
    assert values == {
        "calinski_harabasz": "3367.74211",
        "c": "0.07645",
        "dunn": "0.00548",
        "hartigan": "1.47801",
        "mclain_rao": "0.41643",
    }


@pytest.mark.parametrize(
    ("index", "reference"),
    [
        (indices.calinski_harabasz_index, metrics.calinski_harabasz_score),
        (indices.silhouette, metrics.silhouette_score),
        (indices.davies_bouldin, metrics.davies_bouldin_score),
    ],
)
@pytest.mark.parametrize("data", DATA_SETS)
def test_same_as_scikit_learn(index, reference, data):
    X, labels = data()
    assert index(X, labels) == pytest.approx(reference(X, labels), rel=1e-7)  # its distances lose half the digits


def test_hartigan_is_the_logarithm_of_the_ratio_in_calinski_harabasz():
    X, labels = blobs(n_samples=60, n_clusters=4)
    ratio = metrics.calinski_harabasz_score(X, labels) * (4 - 1) / (60 - 4)
    assert indices.hartigan_index(X, labels) == pytest.approx(math.log(ratio), rel=1e-12)


@pytest.mark.parametrize("block_area", [7, 100, 2**18])
@pytest.mark.parametrize("data", DATA_SETS[:-1])
def test_pair_sums_are_exact(monkeypatch, data, block_area):
    monkeypatch.setattr(_pairs.NumpyBackend, "block_area", block_area)
    X, labels = data()
    sums = _pairs.pair_sums(*sorted_by_label(X, labels))
    assert sums._asdict() == pytest.approx(naive_pair_sums(X, labels), rel=1e-9)


@pytest.mark.parametrize("block_area", [5000, 2**18])
def test_pair_sums_are_exact_when_most_pairs_are_outside_the_brackets(monkeypatch, block_area):
    monkeypatch.setattr(_pairs.NumpyBackend, "block_area", block_area)
    X, labels = large()
    sums = _pairs.pair_sums(*sorted_by_label(X, labels))
    assert sums._asdict() == pytest.approx(naive_pair_sums(X, labels), rel=1e-9)


@pytest.mark.parametrize("key", PAIR_INDICES)
@pytest.mark.parametrize("data", DATA_SETS)
def test_same_as_naive(key, data):
    X, labels = data()
    expected = pytest.approx(naive_indices(X, labels)[key], rel=1e-9)
    assert INDICES[key].function(X, labels) == expected
    assert all_indices(X, labels)[key] == expected


@pytest.fixture
def passes(monkeypatch):
    """A list that grows by one with every pass over the pairs."""
    passes, sample_distances = [], _pairs._sample_distances

    def counted(X, rng):
        passes.append(len(X))
        return sample_distances(X, rng)

    monkeypatch.setattr(_pairs, "_sample_distances", counted)
    return passes


@pytest.mark.parametrize("data", DATA_SETS)
def test_one_pass_is_enough(passes, data):
    all_indices(*data())
    assert len(passes) == 1


def test_a_missed_bracket_costs_another_pass(monkeypatch, passes):
    monkeypatch.setattr(_pairs, "SLACK", 1e-3)
    X, labels = large()
    sums = _pairs.pair_sums(*sorted_by_label(X, labels))
    assert sums._asdict() == pytest.approx(naive_pair_sums(X, labels), rel=1e-9)
    assert len(passes) > 1


def test_ties_do_not_fill_the_memory():
    # 12.5 million distances, all of them 0 or 1: kept one by one, those inside the brackets would take 100 MB.
    X = np.repeat([[0.0], [1.0]], 2500, axis=0)
    labels = np.arange(5000) % 2
    tracemalloc.start()
    value = indices.c_index(X, labels)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 60e6
    # In each cluster 1250 points are at 0 and 1250 at 1, so N_W = 2 * 2500 * 2499 / 2 and S_W = 2 * 1250^2. Over all,
    # 2500^2 distances are 1 and the others 0: S_min = N_W - 2 * 2500 * 2499 / 2 = 0 and S_max = min(N_W, 2500^2) = N_W.
    assert value == pytest.approx(2 * 1250**2 / (2500 * 2499), rel=1e-12)


def test_threads_do_not_change_a_digit(monkeypatch):
    monkeypatch.setattr(_pairs.NumpyBackend, "block_area", 1000)
    grouped = sorted_by_label(*blobs(n_samples=500))
    values = []
    for workers in (1, 4, 4):
        monkeypatch.setattr(_pairs.NumpyBackend, "workers", workers)
        values.append(_pairs.pair_sums(*grouped))
    assert values[0] == values[1] == values[2]


# ---- what holds for every index


@every_index
@pytest.mark.parametrize(
    "rename",
    [lambda labels: labels + 10, lambda labels: 3 - labels, lambda labels: 2 * labels, lambda labels: labels / 4],
    ids=["shifted", "reversed", "with gaps", "fractions"],
)
def test_label_names_do_not_matter(index, rename):
    X, labels = blobs()
    assert index(X, rename(labels)) == pytest.approx(index(X, labels), rel=1e-12)


@every_index
@pytest.mark.parametrize("as_type", [np.array, list, pd.Series, pd.Categorical], ids=lambda as_type: as_type.__name__)
def test_text_labels(index, as_type):
    X, labels = blobs()
    text = as_type([("stroma", "tumour", "fat", "necrosis")[label] for label in labels])
    assert index(X, text) == pytest.approx(index(X, labels), rel=1e-12)


@every_index
def test_row_order_does_not_matter(index):
    X, labels = blobs()
    order = np.random.default_rng(2).permutation(len(X))
    assert index(X[order], labels[order]) == pytest.approx(index(X, labels), rel=1e-9)


@every_index
def test_place_and_orientation_do_not_matter(index):
    X, labels = blobs()
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    assert index(X @ rotation + [5, -3, 100], labels) == pytest.approx(index(X, labels), rel=1e-9)


@every_index
@pytest.mark.parametrize("scale", [3.7, 1e-200, 1e200])
def test_scale_does_not_matter(index, scale):
    X, labels = blobs()
    assert index(scale * X, labels) == pytest.approx(index(X, labels), rel=1e-9)


@every_index
def test_float32_and_data_frames(index):
    X, labels = blobs()
    X = X.astype(np.float32)
    expected = index(X.astype(np.float64), labels)
    assert index(X, labels) == expected
    assert index(pd.DataFrame(X), labels) == expected
    assert index(X.tolist(), labels) == expected


@every_index
def test_returns_a_plain_float_and_leaves_the_input_alone(index):
    X, labels = blobs()
    before = X.copy()
    assert type(index(X, labels)) is float
    assert np.array_equal(X, before)


@every_index
def test_clusters_of_one_point_are_valid(index):
    X, labels = mostly_single_points()
    assert math.isfinite(index(X, labels))


@every_index
def test_clearer_clusters_score_better(index):
    X, labels = blobs()
    direction = {i.function: i.direction for i in INDICES.values()}[index]
    clear, unclear = index(X + 10 * labels[:, None], labels), index(X, labels)
    assert {"higher": clear > unclear, "lower": clear < unclear}[direction]


def test_all_indices_are_the_single_ones():
    X, labels = blobs()
    assert all_indices(X, labels) == {key: INDICES[key].function(X, labels) for key in list(INDICES)[:5]}


# ---- edges

THREE = [[0, 0], [1, 1], [2, 2]]


def test_identical_points():
    # No distance is larger than another: every ratio is 0 / 0. The last two are scikit-learn's conventions.
    values = {key: index.function(np.full((6, 3), 0.1), [0, 0, 0, 1, 1, 2]) for key, index in INDICES.items()}
    assert values == pytest.approx(
        {
            "calinski_harabasz": math.nan,
            "c": math.nan,
            "dunn": math.nan,
            "hartigan": math.nan,
            "mclain_rao": math.nan,
            "silhouette": 0,
            "davies_bouldin": 0,
        },
        nan_ok=True,
    )


def test_identical_points_within_each_cluster():
    X, labels = np.repeat([[0.1, 0.7], [0.3, 0.9], [1.1, 0.2]], [3, 4, 5], axis=0), np.repeat([0, 1, 2], [3, 4, 5])
    values = {key: index.function(X, labels) for key, index in INDICES.items()}
    # The last two only to the accuracy of scikit-learn's distances.
    assert (values.pop("silhouette"), values.pop("davies_bouldin")) == pytest.approx((1, 0), abs=1e-6)
    assert values == {
        "calinski_harabasz": math.inf,
        "c": 0,
        "dunn": math.inf,
        "hartigan": math.inf,
        "mclain_rao": 0,
    }


def test_coinciding_centroids():
    X, labels = [[1, 0], [-1, 0], [0, 1], [0, -1]], [0, 0, 1, 1]
    assert indices.calinski_harabasz_index(X, labels) == 0
    assert indices.hartigan_index(X, labels) == -math.inf


@pytest.mark.parametrize("n_points", [4, 300])
def test_c_index_needs_unequal_distances(n_points):
    simplex, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(n_points, n_points)))
    # The rows are orthonormal: all distances are sqrt(2), but for rounding.
    assert math.isnan(indices.c_index(simplex, np.arange(n_points) % 2))


def test_a_shared_point_makes_dunn_zero():
    assert indices.dunn_index([[0.1, 0.2], [5, 5], [0.1, 0.2], [7, 1]], [0, 0, 1, 1]) == 0


@every_index
@pytest.mark.parametrize(
    ("X", "labels", "message"),
    [
        pytest.param(THREE, [4, 4, 4], "at least 2 clusters and fewer than the 3 points; got 1", id="one cluster"),
        pytest.param(THREE, [0, 1, 2], "at least 2 clusters and fewer than the 3 points; got 3", id="single points"),
        pytest.param([[0], [math.nan], [2]], [0, 0, 1], "X must be finite; got 1 ", id="NaN"),
        pytest.param([[math.inf], [1], [-math.inf]], [0, 0, 1], "X must be finite; got 2 ", id="infinity"),
        pytest.param(THREE, [0, 0, math.nan], "labels must not be missing; got 1 ", id="NaN label"),
        pytest.param(THREE, [0, 1], r"one label for each of the 3 rows of X; got shape \(2,\)", id="lengths"),
        pytest.param(THREE, [[0], [0], [1]], r"for each of the 3 rows of X; got shape \(3, 1\)", id="2-D labels"),
        pytest.param(np.empty((0, 2)), [], r"X must be two-dim.*, and not empty; got shape \(0, 2\)", id="no row"),
        pytest.param(np.empty((3, 0)), [0, 0, 1], r"X must be .*, and not empty; got shape \(3, 0\)", id="no column"),
        pytest.param([0, 1, 2], [0, 0, 1], r"X must be two-dimensional, .*; got shape \(3,\)", id="1-D X"),
    ],
)
def test_refused(index, X, labels, message):
    with pytest.raises(ValueError, match=message):
        index(X, labels)


def test_all_indices_refuses_as_well():
    with pytest.raises(ValueError, match="got 1"):
        all_indices([[0, 0], [1, 1]], [0, 0])


# ---- occupancy


# the five indices from samples


@pytest.mark.parametrize("data", [blobs, one_large_cluster])
def test_samples_of_all_points_are_the_indices_themselves(data):
    X, labels = data()
    sampled, exact = sampled_indices(X, labels), all_indices(X, labels)
    assert {name: sampled[name] for name in exact} == pytest.approx(exact, rel=1e-12)
    assert sampled["c_high"] - sampled["c_low"] == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_intervals_of_samples_hold_the_exact_index():
    """At least 33 of 40 intervals of 95 % hold it; none is so wide as to say nothing.

    Calinski-Harabasz and Hartigan are exact, Dunn a bound.
    """
    X, labels = blobs(2000, 5)
    exact = all_indices(X, labels)
    held = {"c": 0, "mclain_rao": 0}
    for seed in range(40):
        sampled = sampled_indices(X, labels, n_points=200, seed=seed)
        assert sampled["calinski_harabasz"] == pytest.approx(exact["calinski_harabasz"], rel=1e-12)
        assert sampled["hartigan"] == pytest.approx(exact["hartigan"], rel=1e-12)
        assert sampled["dunn_low"] == 0 < exact["dunn"] < sampled["dunn"] == sampled["dunn_high"]
        for name in held:
            held[name] += sampled[f"{name}_low"] < exact[name] < sampled[f"{name}_high"]
            assert sampled[f"{name}_high"] - sampled[f"{name}_low"] < 0.2 * exact[name]
    assert min(held.values()) >= 33


def test_samples_are_refused_where_they_have_no_interval():
    with pytest.raises(ValueError, match="at least 2"):
        sampled_indices(*blobs(), n_subsets=1)


def test_occupancy():
    sizes, n_used, kl = occupancy([0, 0, 0, 2], n_clusters=4)
    assert sizes.tolist() == [3, 0, 1, 0]
    assert n_used == 2
    assert kl == pytest.approx(0.75 * math.log(3) + 0.25 * math.log(1))


def test_occupancy_at_its_ends():
    assert occupancy(np.arange(14.0), n_clusters=14).kl_to_uniform == pytest.approx(0, abs=1e-15)
    assert occupancy([5, 5, 5], n_clusters=14).kl_to_uniform == pytest.approx(math.log(14))


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [0, 0.5], [0, math.nan], ["a", "b"]])
def test_occupancy_refuses_other_labels(labels):
    with pytest.raises(ValueError, match="whole numbers from 0 to 2; got "):
        occupancy(labels, n_clusters=3)


@pytest.mark.parametrize("labels", [[], [[0, 1]]])
def test_occupancy_refuses_other_shapes(labels):
    with pytest.raises(ValueError, match="one-dimensional array of at least one label; got shape"):
        occupancy(labels, n_clusters=3)


# ---- torch, imports, examples


@pytest.mark.parametrize("data", DATA_SETS)
def test_torch_gives_the_same(monkeypatch, data):
    pytest.importorskip("torch")
    monkeypatch.setattr(_pairs.TorchBackend, "block_area", 3000)
    X, labels = data()
    assert all_indices(X, labels, device="cpu") == pytest.approx(all_indices(X, labels), rel=1e-9)


@pytest.mark.parametrize("key", PAIR_INDICES)
def test_each_pair_index_takes_a_device(key):
    pytest.importorskip("torch")
    X, labels = blobs()
    assert INDICES[key].function(X, labels, device="cpu") == pytest.approx(INDICES[key].function(X, labels), rel=1e-9)


def test_a_missing_gpu_is_named(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="device='cuda' was asked for, but torch finds no CUDA GPU"):
        all_indices(*blobs(), device="cuda")


@pytest.mark.slow
def test_the_five_indices_load_neither_scikit_learn_nor_torch():
    code = (
        "import sys, MODULE; MODULE.all_indices([[0], [1], [3]], [0, 0, 1]);"
        "sys.exit(' '.join({'sklearn', 'torch', 'pfiles'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_examples():
    failed, attempted = doctest.testmod(indices)
    assert attempted > 0
    assert failed == 0
