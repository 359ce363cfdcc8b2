"""Several classifiers as one network."""

import torch
from torch import nn

from pfiles.classifier import stack, stacked_probabilities, unstack
from pfiles.clusterers import probabilities
from tests.conftest import KS, classifiers, weights


def test_a_stack_of_classifiers_computes_what_each_does():
    made = classifiers()
    z = torch.randn(7, 16, 12, 12, generator=torch.Generator().manual_seed(0))
    for mode in (True, False):
        whole = stack(made).train(mode)
        together = stacked_probabilities(whole(z), KS)
        assert together.shape == (7, 3, 5)
        for i, (one, k) in enumerate(zip(made, KS, strict=True)):
            torch.testing.assert_close(together[:, i, :k], probabilities(one.train(mode), z), rtol=1e-4, atol=1e-6)
            assert (together[:, i, k:] == 0).all()
    begun = [weights(one) for one in made]
    others = classifiers(KS)
    for one in others:
        nn.init.zeros_(one.classifier.conv2.weight)
    unstack(stack(made), others)
    assert all(torch.equal(weights(one), was) for one, was in zip(others, begun, strict=True))
