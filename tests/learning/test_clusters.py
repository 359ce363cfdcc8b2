"""Clusters that learn by information maximisation, alone or beside a UNet, one or several at once."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pfiles import latents
from pfiles.cluster_bank import ClusterBank
from pfiles.learning.clusters import train_clusters
from tests.conftest import classifiers, stage_networks, train_stage


def test_clusters_learnt_alone_equal_those_learnt_beside_the_unet(tiny, images, job):
    """No gradient passes between the two: bit for bit."""
    beside, alone = stage_networks(tiny), stage_networks(tiny)
    stage = replace(tiny.training, epochs=3)
    train_stage(tiny, stage, beside, images, job)
    codes = latents.encode_tiles(alone[0], images)
    train_clusters(
        bank=ClusterBank([alone[2]]), vqvae=alone[0], images=images, codes=codes, settings=tiny.diffusion, stage=stage,
        job=replace(job, folder=job.folder / "alone"),
    )  # fmt: skip
    for a, b in zip(beside[2].state_dict().values(), alone[2].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def learnt(classifier):
    """Its weights, less biases before a batch norm: of their gradient, rounding alone, Adam makes whole steps."""
    layers = classifier.classifier
    without_gradient = {layers.conv1.bias, layers.conv2.bias}
    return torch.cat([p.detach().flatten() for p in classifier.parameters() if p not in without_gradient]).double()


@pytest.mark.parametrize(("epochs", "clip_norm"), [(12, None), (4, 1e-3)])
def test_many_classifiers_learn_as_each_alone(tiny, images, job, epochs, clip_norm):
    """After 36 steps of Adam weights differ by less than a hundredth of their change, and no tile by its cluster."""
    vqvae, *_ = stage_networks(tiny)
    codes = latents.encode_views(vqvae, images)
    stage = replace(tiny.training, epochs=epochs, clip_norm=clip_norm)

    def learn(bank, folder):
        return train_clusters(
            bank=bank, vqvae=vqvae, images=images, codes=codes, settings=tiny.diffusion, stage=stage,
            job=replace(job, folder=job.folder / folder),
        )  # fmt: skip

    together, begun = classifiers(channels=16), classifiers(channels=16)
    losses = [row["loss"] for row in learn(together, "together")]
    for i, one in enumerate(classifiers(channels=16)):
        losses = np.subtract(losses, [row["loss"] for row in learn(ClusterBank([one]), f"alone {i}")])
        change = (learnt(one) - learnt(begun[i])).norm()
        assert change > 0.1
        assert (learnt(together[i]) - learnt(one)).norm() < 1e-2 * change
        assert torch.equal(*(latents.predict_clusters(vqvae, of, codes[0]).cluster_ids for of in (together[i], one)))
    np.testing.assert_allclose(losses, 0, atol=1e-4)  # what they minimise together is the sum of their losses
