"""Both kinds of clusters: probabilities, and k-means as a model of equal Gaussians."""

import pytest
import torch

from pfiles.clusterers import KMeansClusters, fit_kmeans, make_clusterer, probabilities
from tests.conftest import K


def test_kmeans_logits_are_the_posterior_of_equal_gaussians():
    generator = torch.Generator().manual_seed(0)
    z = torch.cat([torch.randn(40, 4, 6, 6, generator=generator) * (1 + i) + 3 * i for i in range(K)])
    clusters = fit_kmeans(KMeansClusters(4, K), z.split(50), seed=3)
    features = (clusters.statistics(z) - clusters.mean) / clusters.scale
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(8), rtol=1e-4, atol=1e-4)
    distance = torch.cdist(features, clusters.centroids)
    p = probabilities(clusters, z)
    assert torch.equal(p.argmax(1), distance.argmin(1))
    assert p.argmax(1).view(K, 40).unique(dim=1).shape == (K, 1)  # the three groups are found
    variance = distance.min(1).values.square().mean() / 8  # mean squared distance per feature
    torch.testing.assert_close(clusters.variance, variance, rtol=1e-4, atol=0)
    # of densities exp(-d^2 / 2 s^2) the logarithms are the logits, and the shares the probabilities
    torch.testing.assert_close(clusters(z).flatten(1), -distance.square() / (2 * variance), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(p, torch.softmax(-distance.square() / (2 * variance), dim=1), rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_kmeans_of_identical_tiles_is_finite():
    clusters = fit_kmeans(KMeansClusters(4, 2), [torch.ones(10, 4, 3, 3)], seed=0)
    assert probabilities(clusters, torch.ones(2, 4, 3, 3)).isfinite().all()


@pytest.mark.parametrize("kind", ["classifier", "kmeans"])
def test_both_clusterings_give_probabilities(kind):
    p = probabilities(make_clusterer(kind, 16, 5).eval(), torch.randn(3, 16, 32, 32))
    assert p.shape == (3, 5)
    torch.testing.assert_close(p.sum(1), torch.ones(3))
