"""Shared by the tests of drawing."""

import pytest
import torch

from pfiles.cluster_bank import ClusterBank
from pfiles.drawing.generator import Generator
from pfiles.latents import LatentSpace
from tests.conftest import stage_networks


@pytest.fixture
def generator(tiny):
    vqvae, unet, clusterer = stage_networks(tiny)
    space = LatentSpace.of_training(vqvae, torch.arange(32).view(2, 4, 4))
    return Generator(unet, ClusterBank([clusterer]), space, tiny, torch.tensor([0.5, 0.0, 0.5]), {"mpp": 1.0})
