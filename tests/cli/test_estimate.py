"""The arithmetic of the times."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pfiles.cli import estimate
from pfiles.reporting.sections import structure
from pfiles.run import open_run
from pfiles.tiles.dataset import Tiles
from tests.conftest import TINY, make_tiles


@pytest.mark.parametrize("clusters_first", [True, False])
def test_times_are_steps_times_seconds(clusters_first, tmp_path, monkeypatch):
    """24 tiles: 3 steps of 8 in an epoch; 20 of them are measured: 2 steps in an epoch of so many seconds."""
    seconds = {
        "autoencoder": 0.3,
        "polish": 0.6,
        "clusters": 3.0,
        "training": 6.0,
        "finetuning1": 9.0,
        "finetuning2": 12.0,
    }
    monkeypatch.setattr(estimate, "seconds_of_epoch", lambda small, name: seconds[name])
    monkeypatch.setattr(estimate, "_seconds_per_tile", lambda small: 2.0)
    monkeypatch.setattr(estimate, "_seconds_of_sorting", lambda small: 0.01)
    monkeypatch.setattr(estimate, "_seconds_of_scores", lambda small: {"part 10": 0.1, "part 11": 0.2})
    monkeypatch.setattr(estimate, "_seconds_of_search", lambda run: (0.25, 0.5))
    monkeypatch.setattr(estimate, "_seconds_of_encoding", lambda small: 0.25)
    monkeypatch.setattr(structure, "seconds_per_tile", lambda tiles: 0.125)
    np.save(tmp_path / "tiles.npy", make_tiles(44))
    epochs = {"autoencoder.epochs": 2, "autoencoder.polish.epochs": 5, "clusters.epochs": 7, "training.epochs": 10}
    epochs["diffusion.latent_views"] = True
    epochs |= {"clusters_first": clusters_first, "training.trains_clusters": not clusters_first}
    changed = {**TINY, **epochs, "diffusion.num_timesteps": 100, "sampling.steps": 40}
    run = open_run("test", 16, "classifier", tmp_path / "tiles.npy", "demo", changed)
    times = {name: time for name, time, _ in estimate.estimate(run)}
    assert times == pytest.approx({
        "train_autoencoder": 1.5 * (2 * 0.3 + 5 * 0.6),
        "part 1": 8 * 24 * 0.25 + 1.5 * (10 * 6 + clusters_first * 7 * 3),
        "part 2": 1.5 * 9, "part 3": 1.5 * 12, "parts 4, 7 and 8, each": 5 * 4, "part 6": 12 * 4,
        "part 9": 16 * 3 * 4,
        # 12 generated, 24 training and 4 held-out tiles; 16 generated ones of each cluster in the atlas; every second
        # generated tile is searched for among the other six
        "part 13": 0.01 * (6 * 20 * 1 + 9 * 3 * 200) + 6 + 2 * 12 * 0.5 + (6 * 0.25 + 6 * 0.5)
        + structure.MOST_SETS * 12 * 0.125,
        "part 10": 12 * 0.1, "part 11": 12 * 0.2,
        "part 14": 24 * 0.25 + 6 + (12 + 4 + 17 * 4) * 0.5 + (6 * 0.25 + 6 * 0.5),
        "part 16": 24 * 0.25 + 256 * 4 + 6 + (256 + 4) * 0.5, "the others, each": 24 * 0.25,
    })  # fmt: skip


@pytest.mark.parametrize("training", [100, 1500])
def test_of_a_search_only_the_setup_grows_with_the_tiles(training, monkeypatch):
    """A search that takes 0.002 s for a tile and 0.03 s for an image, whatever the number of training tiles."""
    seconds = [0.0]

    def nearest_tiles(images, train):
        seconds[0] += 0.002 * len(train) + 0.03 * len(images)

    monkeypatch.setattr(estimate, "nearest_tiles", nearest_tiles)
    monkeypatch.setattr(estimate.time, "monotonic", lambda: seconds[0])
    tiles = Tiles(torch.zeros(training, 3, 16, 16, dtype=torch.uint8), np.arange(training), np.arange(0), "tiles")
    measured = estimate._seconds_of_search(SimpleNamespace(tiles=tiles))
    assert measured == pytest.approx((0.002, 0.03))
