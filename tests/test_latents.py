"""Codes of tiles: their clusters, their features, and the table of both."""

import torch

from pfiles import latents
from pfiles.classifier import Classifier
from tests.conftest import K, autoencoder_networks, stage_networks


def test_prediction_gives_the_mode_back(tiny, images):
    vqvae, _, clusters = stage_networks(tiny)
    clusters.train()
    labels, confidence = latents.predict_clusters(vqvae, clusters, latents.encode_tiles(vqvae, images))
    assert clusters.training
    assert isinstance(clusters, Classifier)
    assert labels.shape == confidence.shape == (24,)
    assert confidence.min() >= 1 / K


def test_features_of_the_csv(tiny, images):
    vqvae, _ = autoencoder_networks(tiny)
    codes = latents.encode_tiles(vqvae, images)
    features = latents.mean_channel_softmax(vqvae, codes)
    torch.testing.assert_close(features.sum(1), torch.ones(24))
    vectors = vqvae.embedding.weight[codes[5].long().flatten()].exp()  # (h*w, z), worked out for one tile
    torch.testing.assert_close(features[5], (vectors / vectors.sum(1, keepdim=True)).mean(0))
