"""Codes of tiles: their clusters, their features, and the table of both."""

import numpy as np
import pytest
import torch

from pfiles import latents
from pfiles.classifier import Classifier
from pfiles.clusterers import KMeansClusters, fit_kmeans
from pfiles.errors import InputError
from pfiles.latents import LatentSpace, centre_and_border, encode_tiles
from tests.conftest import K, autoencoder_networks, make_tiles, stage_networks


def test_prediction_gives_the_mode_back(tiny, images):
    vqvae, _, clusters = stage_networks(tiny)
    clusters.train()
    labels, confidence = latents.predict_clusters(vqvae, clusters, latents.encode_tiles(vqvae, images))
    assert clusters.training
    assert isinstance(clusters, Classifier)
    assert labels.shape == confidence.shape == (24,)
    assert confidence.min() >= 1 / K


def test_reconstructions_are_what_the_autoencoder_gives(tiny, images, capsys):
    vqvae, _ = autoencoder_networks(tiny)
    expected = vqvae(images / 255)[0].clamp(0, 1)
    torch.testing.assert_close(latents.reconstruct(vqvae, images), expected.detach(), atol=1e-5, rtol=0)
    assert capsys.readouterr().err == ""  # no bar of its own below a training's, which asks for few at a time


def test_latents_are_scaled_by_channel_or_all_alike(tiny, images):
    """Against mean and deviation of the latents themselves."""
    vqvae, _ = autoencoder_networks(tiny)
    codes = encode_tiles(vqvae, images)
    z = vqvae.embed(codes).detach().double()
    mean = z.mean((0, 2, 3), keepdim=True)
    std = z.std((0, 2, 3), keepdim=True, correction=0)
    for shared, scale in ((False, std), (True, (z - mean).square().mean().sqrt())):
        space = LatentSpace.of_training(vqvae, codes, shared)
        torch.testing.assert_close(space.embed(codes).detach().double(), (z - mean) / scale, rtol=1e-4, atol=1e-4)


def test_features_of_the_csv(tiny, images):
    vqvae, _ = autoencoder_networks(tiny)
    codes = latents.encode_tiles(vqvae, images)
    features = latents.mean_channel_softmax(vqvae, codes)
    torch.testing.assert_close(features.sum(1), torch.ones(24))
    vectors = vqvae.embedding.weight[codes[5].long().flatten()].exp()  # (h*w, z), worked out for one tile
    torch.testing.assert_close(features[5], (vectors / vectors.sum(1, keepdim=True)).mean(0))


def test_labels_come_from_the_csv(tmp_path):
    path = tmp_path / "c.csv"
    with pytest.raises(InputError, match="run part_5"):
        latents.pair_cluster_ids(path, ["1"])
    path.write_text("0.5,0.5,2,0.9\n0.4,0.6,0,0.8\n0.4,0.6,1,0.8\n")
    assert latents.pair_cluster_ids(path, ["3", "1"]).tolist() == [1, 2]
    with pytest.raises(InputError, match="has 3 rows, but image 4"):
        latents.pair_cluster_ids(path, ["4"])
    for name in ("0", "img1", "-1"):
        with pytest.raises(InputError, match="named by their number from 1"):
            latents.pair_cluster_ids(path, ["1", name])


def test_centre_and_border_of_k_means_by_hand(tiny):
    vqvae, _, clusters = stage_networks(tiny, "kmeans")
    codes = latents.encode_tiles(vqvae, torch.from_numpy(make_tiles(24)).permute(0, 3, 1, 2))
    fit_kmeans(clusters, latents.latent_batches(vqvae, codes), 0)
    cluster_ids, distance, margin = centre_and_border(vqvae, clusters, codes)
    z = vqvae.embed(codes).detach()
    features = KMeansClusters.statistics(z).double().numpy()
    scale = features.std(0)
    features = (features - features.mean(0)) / np.where(scale > 0, scale, 1)
    to_all = ((features[:, None] - clusters.centroids.double().numpy()) ** 2).sum(-1)
    assert cluster_ids.tolist() == to_all.argmin(1).tolist()
    np.testing.assert_allclose(distance, np.sqrt(to_all.min(1)), rtol=1e-3)  # its centroids are means of their tiles
    odds = np.exp(-to_all / (2 * clusters.variance.item()))
    share = np.sort(odds / odds.sum(1, keepdims=True))
    np.testing.assert_allclose(margin, share[:, -1] - share[:, -2], atol=1e-4)
