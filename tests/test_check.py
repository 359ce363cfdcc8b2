"""Is this machine ready: what is said of what there is and is not, and the arithmetic of the times."""

import json
import shutil
from collections import namedtuple

import numpy as np
import pytest

from pfiles import check
from pfiles.__main__ import main
from pfiles.session import open_run
from tests.conftest import TINY, make_tiles

ARGUMENTS = ["--preset", "demo", "--clusters", "3", "--clustering", "kmeans"]


def arguments(folder, **overrides):
    np.save(folder / "tiles.npy", make_tiles(44))
    sets = [part for name, value in (TINY | overrides).items() for part in ("--set", f"{name}={json.dumps(value)}")]
    return ["check", *ARGUMENTS, "--data", str(folder / "tiles.npy"), "--out", str(folder / "out" / "deep"), *sets]


def test_all_is_well_and_nothing_is_left_behind(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "STEPS", 3)
    assert main(arguments(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(f"{check.GREEN}ok") for line in lines)
    for what in ("kernel: Python 3", "GPU: ", "data: 24 training and 4 held-out tiles of 48 px", "disk: ",
                 "networks of this run: none yet", "starter: ", "widgets: in this kernel",
                 "time of train_autoencoder: ", "time of part 3: ", "time of part 6: "):  # fmt: skip
        assert any(line.partition(check.PLAIN)[2].startswith(what) for line in lines), what
    assert [path.name for path in tmp_path.iterdir()] == ["tiles.npy"]


def test_several_numbers_of_clusters(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "STEPS", 3)
    np.save(tmp_path / "tiles.npy", make_tiles(44))
    data, out = str(tmp_path / "tiles.npy"), str(tmp_path / "out")
    assert check.check("3-4", "classifier", data, "demo", TINY, out)
    assert "time of part 6: " in capsys.readouterr().out


def test_what_is_missing_is_red_and_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(check.shutil, "disk_usage", lambda place: namedtuple("Usage", "free")(10**5))
    monkeypatch.setattr(check, "STARTER", tmp_path / "none")
    given = arguments(tmp_path, lpips_required=True)
    given[given.index("--data") + 1] = str(tmp_path / "none.npy")
    assert main([*given, "--fast"]) == 1
    red = [line for line in capsys.readouterr().out.splitlines() if line.startswith(check.RED)]
    assert len(red) == 4
    for line, says in zip(red, ("There is no data at", "Free some, or name", "weights/starter", "528 MB"), strict=True):
        assert says in line
    shutil.rmtree(tmp_path / "torch", ignore_errors=True)


@pytest.mark.parametrize("clusters_first", [True, False])
def test_times_are_steps_times_seconds(clusters_first, tmp_path, monkeypatch):
    """24 tiles: 3 steps of 8 in an epoch; 20 of them are measured: 2 steps in an epoch of so many seconds."""
    seconds = {"autoencoder": 0.3, "clusters": 3.0, "training": 6.0, "finetuning1": 9.0, "finetuning2": 12.0}
    monkeypatch.setattr(check, "_seconds", lambda small, name: seconds[name])
    monkeypatch.setattr(check, "_last_seconds", lambda folder: 0.6)
    monkeypatch.setattr(check, "_seconds_per_tile", lambda small: 2.0)
    monkeypatch.setattr(check, "_seconds_of_sorting", lambda small: 0.01)
    monkeypatch.setattr(check, "_seconds_of_scores", lambda small: {"part 10": 0.1, "part 11": 0.2})
    monkeypatch.setattr(check, "_seconds_of_search", lambda run: (7.0, 0.5))
    monkeypatch.setattr(check, "_seconds_of_encoding", lambda small: 0.25)
    np.save(tmp_path / "tiles.npy", make_tiles(44))
    epochs = {"autoencoder.epochs": 2, "autoencoder.polish.epochs": 5, "clusters.epochs": 7, "training.epochs": 10}
    epochs["diffusion.latent_views"] = True
    changed = {**TINY, **epochs, "clusters_first": clusters_first, "diffusion.num_timesteps": 100, "sampling.steps": 40}
    run = open_run("test", 16, "classifier", tmp_path / "tiles.npy", "demo", changed)
    found = {name: time for name, time, _ in check.estimate(run)}
    assert found == pytest.approx({
        "train_autoencoder": 1.5 * (2 * 0.3 + 5 * 0.6),
        "part 1": 8 * 24 * 0.25 + 1.5 * (10 * 6 + clusters_first * 7 * 3),
        "part 2": 1.5 * 9, "part 3": 1.5 * 12, "parts 4, 7 and 8, each": 5 * 4, "part 6": 12 * 4,
        # six trainings of 20 epochs, of 48 generated tiles in batches of 32, or of 12
        "part 9": 16 * 3 * 4 + 0.01 * 6 * 20 * 2,
        # 12 generated, 24 training and 4 held-out tiles; 16 generated ones of each cluster in the atlas
        "part 13": 0.01 * (6 * 20 * 1 + 9 * 3 * 200) + 2 * 7 + 2 * 12 * 0.5,
        "part 10": 12 * 0.1, "part 11": 12 * 0.2, "part 14": 24 * 0.25 + 2 * 7 + (12 + 4) * 0.5,
        "part 16": 24 * 0.25 + 256 * 4 + 7 + 256 * 0.5, "the others, each": 24 * 0.25,
    })  # fmt: skip
