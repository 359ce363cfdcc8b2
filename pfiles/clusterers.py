"""Clusters without labels: one interface for the information-maximisation classifier and for k-means.

A clusterer is a network from latents (B, z, h, w) to logits (B, k, 1, 1). The softmax of the logits are the
cluster probabilities, the largest is the cluster.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pfiles.classifier import Classifier
from pfiles.errors import InputError
from pfiles.machine.runtime import derive_seed

CLUSTERINGS = ("classifier", "kmeans")


class KMeansClusters(nn.Module):
    """k-means centroids over per-channel statistics of the latents: (B, z, h, w) -> logits (B, n_clusters, 1, 1).

    Features: mean and standard deviation over h x w of each channel, 2 * z numbers, each standardised over the
    training tiles. They say what is in a tile and not where it lies, so that no cluster is just a position.
    Logits: -|f - c_j|^2 / (2 s^2) with s^2 the mean squared distance of a training tile to its centroid per feature.
    Their softmax is the posterior of a mixture of equal spherical Gaussians around the centroids, and its largest
    entry is the nearest centroid.
    """

    kind = "kmeans"
    mean: Tensor
    scale: Tensor
    centroids: Tensor
    variance: Tensor

    def __init__(self, z_channels: int = 16, n_clusters: int = 14):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * z_channels))
        self.register_buffer("scale", torch.ones(2 * z_channels))
        self.register_buffer("centroids", torch.zeros(n_clusters, 2 * z_channels))
        self.register_buffer("variance", torch.ones(()))

    @property
    def n_clusters(self) -> int:
        return len(self.centroids)

    @staticmethod
    def statistics(z: Tensor) -> Tensor:
        """Latents (B, z, h, w) -> features before standardisation (B, 2 * z)."""
        return torch.cat([z.mean((2, 3)), z.std((2, 3), correction=0)], dim=1)

    def forward(self, z: Tensor) -> Tensor:
        features = (self.statistics(z) - self.mean) / self.scale
        squared = (features[:, None] - self.centroids).square().sum(-1)  # (B, k)
        return (-squared / (2 * self.variance))[:, :, None, None]


Clusterer = Classifier | KMeansClusters


def require_clustering(kind: str) -> None:
    """InputError for a name that is none of CLUSTERINGS."""
    if kind not in CLUSTERINGS:
        raise InputError(f"Unknown clustering {kind!r}: choose {' or '.join(CLUSTERINGS)}.")


def make_clusterer(kind: str, z_channels: int, n_clusters: int) -> Clusterer:
    """A clusterer without trained weights: "classifier" or "kmeans"."""
    require_clustering(kind)
    return Classifier(z_channels, n_clusters) if kind == "classifier" else KMeansClusters(z_channels, n_clusters)


def fit_kmeans(clusterer: KMeansClusters, latents: Iterable[Tensor], seed: int) -> KMeansClusters:
    """Fit the centroids (scikit-learn, best of 10 starts) to the training tiles' latents, given in batches."""
    with torch.no_grad():
        return fit_kmeans_to(clusterer, torch.cat([clusterer.statistics(z) for z in latents]), seed)


def fit_kmeans_to(clusterer: KMeansClusters, statistics: Tensor, seed: int) -> KMeansClusters:
    """The same to the `statistics` (N, 2 * z) of their latents."""
    from sklearn.cluster import KMeans

    mean, scale = statistics.mean(0), statistics.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)  # a channel that never varies carries no information
    features = (statistics - mean) / scale
    seed = derive_seed(seed, "kmeans") % 2**32  # scikit-learn takes 32 bits
    fit = KMeans(len(clusterer.centroids), n_init=10, random_state=seed).fit(features.double().cpu().numpy())
    clusterer.mean.copy_(mean)
    clusterer.scale.copy_(scale)
    clusterer.centroids.copy_(torch.as_tensor(fit.cluster_centers_))
    clusterer.variance.fill_(max(fit.inertia_ / features.numel(), torch.finfo(torch.float32).tiny))
    return clusterer


def probabilities(clusterer: nn.Module, z: Tensor) -> Tensor:
    """Latents (B, z, h, w) -> cluster probabilities (B, k)."""
    return clusterer(z).flatten(1).softmax(dim=1)
