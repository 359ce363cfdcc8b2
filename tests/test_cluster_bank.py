"""Clusterers of one or several numbers of clusters as one object."""

import pytest
import torch
from torch import nn

from pfiles.cluster_bank import ClusterBank
from pfiles.clusterers import make_clusterer, probabilities
from pfiles.unet_cond_base import UNet
from tests.conftest import KS, TINY, classifiers, weights


def test_a_stack_of_classifiers_computes_what_each_does():
    bank = classifiers()
    z = torch.randn(7, 16, 12, 12, generator=torch.Generator().manual_seed(0))
    for mode in (True, False):
        network = bank.stacked().train(mode)
        together = bank.probabilities(network(z))
        assert together.shape == (7, 3, 5)
        for i, (one, k) in enumerate(zip(bank, KS, strict=True)):
            torch.testing.assert_close(together[:, i, :k], probabilities(one.train(mode), z), rtol=1e-4, atol=1e-6)
            assert (together[:, i, k:] == 0).all()
    before = [weights(one) for one in bank]
    others = classifiers(KS)
    for one in others:
        nn.init.zeros_(one.classifier.conv2.weight)
    others.take_back(bank.stacked())
    assert all(torch.equal(weights(one), was) for one, was in zip(others, before, strict=True))


@pytest.mark.parametrize("kind", ["classifier", "kmeans"])
def test_one_k_has_the_published_names_and_several_are_numbered(kind):
    clusterer, bank = make_clusterer(kind, 16, 3), ClusterBank.make(kind, 16, [3])
    assert bank.state_dict().keys() == clusterer.state_dict().keys()
    bank.load_state_dict(clusterer.state_dict())
    assert torch.equal(weights(bank), weights(clusterer))
    several = ClusterBank.make(kind, 16, [3, 4])
    assert several.state_dict().keys() == {f"{i}.{name}" for i in (0, 1) for name in clusterer.state_dict()}
    several.load_state_dict(ClusterBank([clusterer, several[1]]).state_dict())
    assert torch.equal(weights(several[0]), weights(clusterer))
    assert (bank.kind, several.ks, several.n_clusters, several.first_rows) == (kind, [3, 4], 7, [0, 3])


def test_logits_are_the_rows_of_the_unet_and_are_split_by_k():
    bank = classifiers((3, 4)).eval()
    z, t = torch.randn(2, 16, 12, 12), torch.tensor([0, 1])
    unet = UNet(16, 7, **TINY["diffusion.unet"]).eval()
    with torch.no_grad():
        logits = bank(z)
        for (part, alone), first in zip(bank.split(unet), bank.first_rows, strict=True):
            assert torch.equal(alone(z), logits[:, first : first + alone.n_clusters])
            assert torch.equal(part(z, t, t), unet(z, t, t + first))
