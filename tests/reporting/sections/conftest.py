"""Real images, noisy ones like them, and measures that are quick and have no network connection."""

import numpy as np
import pytest
import torch

from pfiles.measuring import two_sample, usefulness
from pfiles.tiles import pixels
from tests.conftest import make_tiles

N = 40


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(two_sample, "STEPS", 20)
    monkeypatch.setattr(usefulness, "EPOCHS", 4)


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)


def noisy(tiles, seed=0, level=12):
    noise = np.random.default_rng(seed).normal(0, level, tiles.shape)
    return np.clip(tiles + noise, 0, 255).astype(np.uint8)


def noisy_images(*args):
    return pixels.as_tensor(noisy(make_tiles(*args), args[2]))


@pytest.fixture
def real():
    return pixels.as_tensor(noisy(make_tiles(N, 32, seed=3)))
