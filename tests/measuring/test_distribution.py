"""Distances between sets of images: known answers, plain definitions, and the implementations of others."""

import numpy as np
import pytest
import torch
from scipy import linalg
from scipy.spatial.distance import cdist
from torch import nn

from pfiles.errors import InputError
from pfiles.measuring import distribution
from pfiles.tiles.pixels import as_tensor
from tests.conftest import make_tiles


@pytest.fixture
def clouds():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 6))
    return rng.normal(size=(300, 6)) @ mix, rng.normal(0.4, 1.3, size=(250, 6)) @ mix + 1


def test_frechet_distance_of_two_known_gaussians():
    """In one dimension it is (difference of means)^2 + (difference of deviations)^2; the same along each axis."""
    means, deviations = np.array([[0.0, 2.0, -1.0], [3.0, 2.0, 1.0]]), np.array([[1.0, 2.0, 0.0], [3.0, 2.0, 0.5]])
    expected = 9 + 0 + 4 + 4 + 0 + 0.25
    steps = [np.sqrt(5 / 2) * np.diag(d) for d in deviations]  # six points on the axes have these moments
    a, b = (mean + np.concatenate([step, -step]) for mean, step in zip(means, steps, strict=True))
    np.testing.assert_allclose(np.cov(a.T), np.diag(deviations[0] ** 2), atol=1e-12)
    assert distribution.frechet_distance(a, b) == pytest.approx(expected)
    turn = linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]  # axes do not matter
    assert distribution.frechet_distance(a @ turn.T, b @ turn.T) == pytest.approx(expected)


def test_frechet_distance_of_points_is_that_of_their_moments(clouds):
    a, b = clouds
    moments = [(x.mean(0), np.cov(x.T)) for x in clouds]
    (mean_a, cov_a), (mean_b, cov_b) = moments
    root = linalg.sqrtm(cov_a @ cov_b).real  # the textbook formula, which wants covariances of full rank
    textbook = np.square(mean_a - mean_b).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert distribution.frechet_distance(a, b) == pytest.approx(textbook)
    assert distribution.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert distribution.frechet_distance(b, a) == pytest.approx(distribution.frechet_distance(a, b))


def test_frechet_distance_with_fewer_images_than_features():
    """By hand: two pairs of points on one line, variances 2 and 8, in a space of 50 dimensions."""
    axis = np.zeros(50)
    axis[7] = 1
    a, b = np.outer([-1, 1], axis), np.outer([-2, 2], axis) + 3
    assert distribution.frechet_distance(a, b) == pytest.approx(50 * 9 + (8**0.5 - 2**0.5) ** 2)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 50))
    assert distribution.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    flat = np.ones((20, 50))
    assert distribution.frechet_distance(x, flat) == pytest.approx(
        np.square(x.mean(0) - 1).sum() + x.var(0, ddof=1).sum()
    )


class Pooled(nn.Module):
    """A feature extractor in the shape that torchmetrics takes."""

    num_features = 48

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)


@pytest.fixture
def pooled():
    images = [as_tensor(make_tiles(n, 48, seed)) // scale for n, seed, scale in ((70, 1, 1), (70, 2, 2))]
    return images, [Pooled()(x).numpy() for x in images]


def test_numbers_agree_with_torchmetrics(pooled):
    from torchmetrics.image.fid import FrechetInceptionDistance  # seconds, of the process that runs this test alone
    from torchmetrics.image.kid import KernelInceptionDistance

    images, (a, b) = pooled
    fid = FrechetInceptionDistance(feature=Pooled(), input_img_size=(3, 48, 48))
    kid = KernelInceptionDistance(feature=Pooled(), subsets=1, subset_size=70)
    for metric in (fid, kid):
        metric.update(images[0], real=True)
        metric.update(images[1], real=False)
    assert distribution.frechet_distance(a, b) == pytest.approx(float(fid.compute()), abs=1e-3)
    theirs, _ = kid.compute()  # all 70 images: nothing is drawn
    assert distribution.polynomial_mmd(a, b) == pytest.approx(float(theirs), abs=1e-3)


def test_subsets_of_kid_agree_with_torchmetrics(pooled):
    from torchmetrics.image.kid import KernelInceptionDistance

    images, (a, _) = pooled
    near = (images[0] * 0.9).to(torch.uint8)  # over subsets of unlike sets even the means scatter by more than 1e-3
    kid = KernelInceptionDistance(feature=Pooled(), subsets=400, subset_size=30)
    kid.update(images[0], real=True)
    kid.update(near, real=False)
    with torch.random.fork_rng():  # torchmetrics draws from the global state
        torch.manual_seed(0)
        theirs, _ = kid.compute()
    ours, error = distribution.kid(a, Pooled()(near).numpy(), seed=0, subset_size=30)
    assert ours == pytest.approx(float(theirs), abs=1e-3)
    assert 0 < error < 0.05


def test_unbiased_mmd_by_its_definition():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    def mean(values):
        return sum(values) / len(values)

    expected = (
        mean([kernel(a[i], a[j]) for i in range(5) for j in range(5) if i != j])
        + mean([kernel(b[i], b[j]) for i in range(4) for j in range(4) if i != j])
        - 2 * mean([kernel(x, y) for x in a for y in b])
    )
    assert distribution.polynomial_mmd(a, b) == pytest.approx(expected)


@pytest.mark.slow
def test_standard_error_of_kid_is_the_spread_over_samples():
    """Over fresh samples of one law estimates must scatter by about the error that each states, at any subset size."""
    rng = np.random.default_rng(0)
    for subset_size in (15, None):
        samples = ((rng.normal(size=(60, 4)), rng.normal(0.7, 1, size=(60, 4))) for _ in range(60))
        values, errors = np.array([distribution.kid(a, b, 0, subset_size) for a, b in samples]).T
        assert 0.7 < np.mean(errors) / values.std() < 1.5


def test_kid_of_equal_laws_is_zero_within_its_error():
    rng = np.random.default_rng(1)
    value, error = distribution.kid(rng.normal(size=(400, 8)), rng.normal(size=(300, 8)), seed=0)
    assert abs(value) < 4 * error
    assert distribution.kid(np.ones((10, 3)), np.ones((10, 3)), seed=0) == (0, 0)


def plain_prdc(real, generated, k):
    """The four numbers from whole distance matrices."""
    rr, gg, rg = cdist(real, real), cdist(generated, generated), cdist(real, generated)
    radius_r, radius_g = np.sort(rr)[:, k], np.sort(gg)[:, k]
    inside = rg < radius_r[:, None]
    return {
        "precision": inside.any(0).mean(),
        "recall": (rg < radius_g[None]).any(1).mean(),
        "density": inside.sum(0).mean() / k,
        "coverage": inside.any(1).mean(),
    }


def test_prdc_equals_the_plain_definition(clouds, monkeypatch):
    monkeypatch.setattr(distribution, "BLOCK", 64)  # several blocks, the last one short
    a, b = clouds
    for k in (1, 5):
        assert distribution.prdc(a, b, k) == pytest.approx(plain_prdc(a, b, k))
        assert distribution.prdc(b + 100, a + 100, k) == pytest.approx(plain_prdc(b, a, k))


def test_prdc_of_known_cases(clouds):
    a, _ = clouds
    one = {"precision": 1, "recall": 1, "density": 1, "coverage": 1}
    assert distribution.prdc(a, a) == one  # equal sets, and a generator that copies
    none = dict.fromkeys(one, 0)
    assert distribution.prdc(a, a + 1e3) == none  # sets apart
    flat = np.repeat(a.mean(0)[None], 300, axis=0)  # all generated images are one, in the middle of the real ones
    scores = distribution.prdc(a, flat)
    assert scores["recall"] == 0
    assert scores["precision"] in (0, 1)
    assert scores["coverage"] < 0.2
    few = a[np.arange(300) % 10]  # copies of ten images only
    scores = distribution.prdc(a, few)
    assert scores["precision"] == 1
    assert scores["coverage"] < 0.5


def test_features_that_cannot_be_compared():
    a = np.ones((10, 3))
    for function in (distribution.frechet_distance, lambda a, b: distribution.kid(a, b, 0), distribution.prdc):
        with pytest.raises(InputError, match="one width"):
            function(a, np.ones((10, 4)))
        with pytest.raises(InputError, match="at least"):
            function(a, a[:1])
        with pytest.raises(InputError, match="finite"):
            function(a, a * np.nan)
    with pytest.raises(InputError, match="subsets of 2 to 9"):
        distribution.kid(a, a, 0, subset_size=10)
