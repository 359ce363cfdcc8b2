"""The experiments: a few minutes of training, and the ladder of known quality."""

import io
import json
import re
import shlex
import zipfile
from dataclasses import asdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import nn

from benchmarks.inputs import make_size
from experiments import (
    ablation,
    autoencoder,
    copies,
    every_k,
    ladder,
    quality,
    race,
    reader_study,
    short_run,
    slides,
    start_from,
    tiles_seen,
    train_and_look,
    variations,
)
from pfiles import checkpoints, learn
from pfiles.__main__ import main
from pfiles.cluster_bank import ClusterBank
from pfiles.drawing.generator import STARTER
from pfiles.errors import InputError, TerminatedError
from pfiles.latents import LatentSpace
from pfiles.learning import loop
from pfiles.machine.runtime import seeded
from pfiles.machine.speed import EAGER
from pfiles.measuring import fidelity, two_sample, usefulness
from pfiles.paths import ROOT, Paths
from pfiles.run import open_run
from pfiles.settings import get_settings
from pfiles.study import results
from pfiles.tiles.dataset import Tiles
from pfiles.tiles.pixels import as_array, as_tensor
from pfiles.tiles.sources import read_tile_table
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import make_vqvae
from tests.conftest import OVERRIDES, TINY, make_tiles

SIZE = make_size("tiny", "cpu")
K = 3


def test_train_and_look(tmp_path, capsys):
    assert train_and_look.main(["--size", "tiny", "--minutes", "0.02", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "reconstructions.png", "samples.png", "train_and_look.json",
    }  # fmt: skip
    report = json.loads((tmp_path / "train_and_look.json").read_text())
    assert report["unet"]["steps"] >= 1
    assert report["unet"]["ms_per_step"] == pytest.approx(1000 * report["unet"]["seconds"] / report["unet"]["steps"])
    assert report["sampling"]["images"] == 140
    assert "clusters in use" in capsys.readouterr().out


def test_short_run_goes_on_with_the_epochs_that_it_timed(tmp_path, monkeypatch, capsys):
    def stop(run, stage, networks):
        raise TerminatedError("stopped")

    arguments = ["--size", "tiny", "--minutes", "0.01", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(short_run.learn, "unet", stop)
        patch.setattr(short_run, "epochs_in", lambda *args: {
            "autoencoder.epochs": 2, "autoencoder.polish.epochs": 1, "training.epochs": 3, "finetuning1.epochs": 1,
        })  # fmt: skip
        assert short_run.main(arguments) == 143
    assert short_run.main(arguments) == 0
    assert (
        capsys.readouterr().out.count("autoencoder.epochs = 2, autoencoder.polish.epochs = 1, training.epochs = 3") == 2
    )
    assert (tmp_path / "sheet.jpg").exists()
    assert len([*(tmp_path / "test").iterdir()]) == len([*(tmp_path / "drawn").iterdir()]) > 0


def test_training_is_as_long_as_the_time_allows(tmp_path):
    """Steps of half a second: 20 s are 40 steps, 10 epochs of 4; one second is one epoch on two batches."""
    calls = []

    def train(networks, part, epochs, run):
        calls.append((len(part), epochs))
        return [{"epoch": e + 1, "loss": 1.0, "seconds": 0.5 * (len(part) // 8)} for e in range(epochs)]

    run = loop.Job("test", 0, 8, tmp_path, {}, SIZE.settings.saving, EAGER)
    images = torch.arange(32)
    report = train_and_look.train_for(20, train, [nn.Identity()], images, run)
    assert calls == [(32, 2), (32, 10)]  # the first measures
    assert report["steps"] == 40
    assert report["seconds"] == pytest.approx(20)
    train_and_look.train_for(1, train, [nn.Identity()], images, run)
    assert calls[-1] == (16, 1)


def test_train_and_look_refuses_bad_tiles(tmp_path, capsys):
    assert train_and_look.main([str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert "There is no data at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def short_measures(monkeypatch):
    """Networks that measure learn for a few steps: their verdicts are recorded, and mean nothing."""
    monkeypatch.setattr(two_sample, "STEPS", 10)
    monkeypatch.setattr(usefulness, "EPOCHS", 2)
    monkeypatch.setattr(fidelity, "JUDGE_EPOCHS", 1)


# the ladder


@pytest.fixture
def a_run(tmp_path, short_measures):
    """A run of random weights on 242 tiles, 22 of them held out: what the ladder reads, not what it should find."""
    np.save(tmp_path / "tiles.npy", make_tiles(242))
    changed = TINY | {"max_train_tiles": 60}
    settings, paths = get_settings("demo", changed), Paths(K, tmp_path)
    with seeded("ladder"):
        vqvae, unet = make_vqvae(settings.autoencoder), UNet(16, K, **settings.diffusion.unet)
        clusters = ClusterBank.make("kmeans", 16, [K])
        torch.nn.init.normal_(clusters[0].centroids)
    checkpoints.save_weights(vqvae, paths.autoencoder, {})
    about = {
        "clustering": "kmeans",
        "starts_from": {"autoencoder": checkpoints.inference_fingerprint(vqvae)},
        "settings": {"diffusion": asdict(settings.diffusion)},
    }
    for stage in ("training", "finetuning2"):
        checkpoints.save_stage(paths, stage, unet, clusters, LatentSpace(None), 1, about)
    return [
        "--run", str(tmp_path), "--data", str(tmp_path / "tiles.npy"), "--clusters", str(K), "--clustering", "kmeans",
        "--settings", json.dumps(changed), "--out", str(tmp_path / "out"),
    ]  # fmt: skip


def test_the_ladder_measures_every_rung(a_run, tmp_path, capsys):
    assert ladder.main(a_run) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"ladder.json", "ladder.md", "ladder.jpg"}
    report = json.loads((tmp_path / "out" / "ladder.json").read_text())
    assert report["images"] == 22
    measures = report["measures"]
    for name in (
        "two-sample test, both blurred by 2 px", "CAS", "condition, second judge", "recall (autoencoder features)",
        "Frechet distance (random convolutions)", "Wasserstein distance, eosin_od",
    ):  # fmt: skip
        assert set(measures[name]["values"]) == set(ladder.RUNGS)
    for measure in measures.values():  # one network drew both
        assert measure["values"][ladder.EARLY] == measure["values"][ladder.LATE]
    table = (tmp_path / "out" / "ladder.md").read_text()
    assert table in capsys.readouterr().out
    assert len(table.splitlines()) == 2 + len(measures)


def test_a_ladder_without_its_run_is_one_sentence(a_run, tmp_path, capsys):
    (tmp_path / "kpc_ldm" / "vqvae_autoencoder_ckpt.pth").unlink()
    assert ladder.main(a_run) == 2
    assert "There is no autoencoder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_verdict_on_a_measure_by_hand():
    right = {
        ladder.HELD_OUT: 0.5, ladder.REBUILT: 0.6, ladder.LATE: 0.7, ladder.EARLY: 0.8, ladder.FLAT: 1.0,
        ladder.BLUR_1: 0.9, ladder.BLUR_2: 0.95,
    }  # fmt: skip
    assert ladder.judge(right, "low") == {"rightly": True, "wrong": [], "equal": [], "missing": []}
    assert ladder.judge({name: -value for name, value in right.items()}, "high")["rightly"]
    blind = ladder.judge(right | {ladder.BLUR_1: 0.4}, "low")  # calls blur better than real tiles
    assert blind["wrong"] == ["held-out real / blurred by 1 px"]
    assert not blind["rightly"]
    saturated = ladder.judge(right | {ladder.BLUR_1: 1.0, ladder.BLUR_2: 1.0}, "low")
    assert saturated["rightly"]
    assert saturated["equal"] == ["blurred by 1 px / blurred by 2 px", "blurred by 2 px / flat colour"]
    assert not ladder.judge(dict.fromkeys(ladder.RUNGS, 1.0), "low")["rightly"]
    unknown = ladder.judge(right | {ladder.LATE: None}, "low")
    assert unknown["missing"] == [ladder.LATE]
    assert not unknown["rightly"]


def test_verdict_on_structure_by_hand():
    names = (ladder.HELD_OUT, *ladder.SHUFFLED.values(), ladder.NOISE)
    right = dict(zip(names, (1.0, 0.8, 0.4, 0.2, 0.1, 0.15), strict=True))
    assert ladder.judge(right, "high", ladder.STRUCTURE)["rightly"]
    assert ladder.judge(right, "high") == {"rightly": False, "wrong": [], "equal": [], "missing": []}  # no quality rung
    blind = ladder.judge(right | {ladder.SHUFFLED[32]: 1.1, ladder.NOISE: 0.3}, "high", ladder.STRUCTURE)
    assert blind["wrong"] == [
        "held-out real / shuffled in blocks of 32 px", "shuffled in blocks of 8 px / noise of their spectrum",
    ]  # fmt: skip
    assert not blind["rightly"]


def test_a_generator_climbs_without_a_run(tmp_path, monkeypatch, short_measures):
    """The starter on the embedded slide: rungs of real tiles alone, whose structure is measured."""
    monkeypatch.setattr(two_sample, "STEPS", 2)
    monkeypatch.setattr(usefulness, "MIN_TILES", 1000)
    arguments = ["--generator", str(STARTER), "--data", "embedded", "--images", "60", "--train", "80", "--real-only"]
    assert ladder.main([*arguments, "--blurs", "0", "--features", "random", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "ladder.json").read_text())
    values = report["measures"]["share of structure"]["values"]
    assert list(values) == [rung for rung in ladder.RUNGS if rung not in (ladder.LATE, ladder.EARLY)]
    assert values[ladder.HELD_OUT] > values[ladder.SHUFFLED[4]]
    assert values[ladder.FLAT] == 0
    assert "orders structure" in (tmp_path / "ladder.md").read_text()


def test_ablation(tmp_path, capsys, short_measures):
    """Rows of one budget on one autoencoder; what is done is not done again."""
    np.save(tmp_path / "tiles.npy", make_tiles(264, 48))
    settings = {**TINY, "max_train_tiles": 220, "autoencoder.epochs": 1, "autoencoder.polish.epochs": 1}
    settings |= {"autoencoder.polish.discriminator": {"conv_channels": [8, 16]}, "training.warmup_steps": 2}
    arguments = ["--data", str(tmp_path / "tiles.npy"), "--out", str(tmp_path / "out"), "--clusters", "3"]
    arguments += ["--epochs", "1", "--set", json.dumps(settings), "--rows", "plain", "full", "full, guidance 1"]
    arguments += ["--features", "random", "autoencoder"]
    for _ in range(2):
        ablation.main(arguments)
        written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.j*")}
    table = (tmp_path / "out" / "ablation.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| full", "| plain", "| full, guidance 1"]
    assert len(written) == 6
    full, again, plain = (
        json.loads((tmp_path / "out" / f"{n}.json").read_text()) for n in ("full", "full, guidance 1", "plain")
    )
    assert full["mse"] == again["mse"] != plain["mse"]
    assert "random: floor, training tiles" in full["values"].keys() - plain["values"].keys()  # no UNet changes it
    assert plain["settings"]["diffusion.prediction"] == "noise"


def test_race(tmp_path, capsys, short_measures, monkeypatch):
    """Two recipes at one budget: table, figure, what each took; what is done is not done again."""
    monkeypatch.setattr(race, "_seconds_of_an_epoch", lambda *_: {"autoencoder": 1.0, "polish": 1.0, "unet": 1.0})
    settings = {**TINY, "image_size_px": 64, "max_train_tiles": 96, "autoencoder.discriminator": {"conv_channels": [8]}}
    del settings["autoencoder.colour_weight"]  # which the rows set
    arguments = ["--data", "embedded", "--out", str(tmp_path / "out"), "--clusters", "3", "--budget", "2"]
    arguments += ["--number", "60", "--features", "autoencoder", "--rows", "before", "colour"]
    arguments += ["--set", json.dumps(settings)]
    for _ in range(2):
        race.main(arguments)
        written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("* 2.j*")}
    assert written.keys() == {"before 2.json", "before 2.jpg", "colour 2.json", "colour 2.jpg"}
    rows = [json.loads((tmp_path / "out" / f"{name} 2.json").read_text()) for name in ("before", "colour")]
    assert [row["settings"].get("autoencoder.colour_weight", 0) for row in rows] == [0, 0.1]
    for row in rows:
        assert row["values"]["reach"] is None  # so small an autoencoder leaves no structure to measure
        assert 0 < row["values"]["kept_2x2"] <= 1
        assert row["values"]["cpu_seconds"] == pytest.approx(sum(row["seconds"].values()))
    table = (tmp_path / "out" / "race.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| before", "| colour"]
    assert table in capsys.readouterr().out
    assert (tmp_path / "out" / "race.jpg").stat().st_size > 10_000


def test_a_race_is_drawn_with_a_point_for_each_seed_and_a_line_through_their_means():
    reaches = {(300, 765): 8.0, (300, 766): 12.0, (600, 765): 20.0}
    rows: list[dict] = []
    for (budget, seed), reach in reaches.items():
        values = {"reach": reach, "cpu_seconds": budget + seed % 2}
        rows.append({"row": "before", "budget_s": budget, "seed": seed, "values": values})
    axes = race.plot(rows).axes[0]
    (seeds,), (means,) = axes.collections, axes.lines
    assert np.array(seeds.get_offsets()).tolist() == [[301, 8], [300, 12], [601, 20]]
    assert means.get_xydata().tolist() == [[300.5, 10], [601, 20]]


def test_tiles_seen(tmp_path, capsys, short_measures):
    """A UNet after 6 epochs of 96 tiles, the first two without guide: measured once, by its averaged weights."""
    settings = {**TINY, "image_size_px": 64, "max_train_tiles": 96, "autoencoder.discriminator": {"conv_channels": [8]}}
    settings |= {"training.epochs": 2, "finetuning1.epochs": 4, "finetuning1.ema_decay": 0.9, "sampling.steps": 2}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    run = open_run("test", 3, "kmeans", "embedded", "recommended", settings, out=str(tmp_path / "run"))
    arguments = ["--run", str(tmp_path / "run"), "--data", "embedded", "--settings", str(tmp_path / "settings.json")]
    arguments += ["--out", str(tmp_path / "out"), "--number", "60", "--clusters", "3"]
    learn.autoencoder(run, *learn.new_autoencoder(run))
    networks = learn.new_networks(run)
    learn.unet(run, "training", networks)
    with pytest.raises(InputError, match="has no resume point of finetuning1"):
        tiles_seen.main(arguments)
    learn.unet(run, "finetuning1", networks)
    weights, tiles, _ = tiles_seen.newest_weights(run)
    assert tiles == 6 * 96
    assert all(torch.equal(weights[name], value) for name, value in networks.unet.state_dict().items())
    for _ in range(2):
        tiles_seen.main([*arguments, "--every", "1"])  # ends at once, as the training is done
        written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("0*")}
    assert written.keys() == {"000000576.json", "000000576.jpg"}
    assert (tmp_path / "out" / "ladder.pt").exists()  # not made again at the next look
    values = json.loads((tmp_path / "out" / "000000576.json").read_text())["values"]
    assert values["Frechet"] > 0 < values["told from reconstructed"] <= 1
    assert "| 576 |" in capsys.readouterr().out


def test_tiles_seen_are_drawn_in_their_order():
    values = {"reach, low": 8.0, "reach, high": 12.0, "Frechet of reconstructions": 50.0}
    rows = [
        {"tiles_seen": seen, "values": values | {"reach": reach, "Frechet": 100 - reach}}
        for seen, reach in ((2000, 11.0), (1000, 9.0))
    ]
    of_reach, of_frechet = tiles_seen.plot(rows, 32).axes
    assert of_reach.lines[0].get_xydata().tolist() == [[1000, 9], [2000, 11]]
    assert of_frechet.lines[0].get_xydata().tolist() == [[1000, 91], [2000, 89]]
    assert [line.split(" | ")[0] for line in tiles_seen.as_table(rows).splitlines()[2:]] == ["| 1,000", "| 2,000"]


@pytest.fixture
def clock_of_epochs(monkeypatch):
    """A race over 100 tiles whose clock goes by epochs of 96 tiles: 9.6 s each; its trainings begin in 30 s."""
    seconds = [0.0]

    def opened(args, out, settings, seed=0):
        return SimpleNamespace(tiles=SimpleNamespace(train=range(100)), settings=settings)

    def train(run, *_):
        seconds[0] += 9.6 * (run.settings["autoencoder.epochs"] + run.settings["autoencoder.polish.epochs"])

    def train_unet(run, *_):
        seconds[0] += 30.0 + 9.6 * run.settings["training.epochs"]

    monkeypatch.setattr(race.time, "process_time", lambda: seconds[0])
    monkeypatch.setattr(race, "_open", opened)
    monkeypatch.setattr(race, "learn", MagicMock(new_autoencoder=lambda run: (), autoencoder=train, unet=train_unet))
    return race._parser().parse_args(["--data", "embedded", "--out", "out"])


def test_epochs_of_a_race_are_those_that_fit(clock_of_epochs):
    """An epoch of 100 tiles takes 10 s, so that 300 s are 9, 3 and 18 of them."""
    plain = {"autoencoder.polish.discriminator_sees": "pixels"}
    epochs = race.fitting_epochs(clock_of_epochs, plain, 300.0)
    assert epochs == {"autoencoder.epochs": 9, "autoencoder.polish.epochs": 3, "training.epochs": 18}
    assert race.fitting_epochs(clock_of_epochs, plain, 1.0) == {
        "autoencoder.epochs": 1, "autoencoder.polish.epochs": 0, "training.epochs": 1,
    }  # fmt: skip


def test_a_race_trains_the_guide_for_a_tenth_of_the_unet_s_time(clock_of_epochs):
    """Of 400 s a coarse recipe gives the UNet half: 20 epochs of 10 s."""
    settings = {"autoencoder.polish.discriminator_sees": "photographs", "sampling.guide": "training"}
    assert race.fitting_epochs(clock_of_epochs, settings, 400.0) == {
        "autoencoder.epochs": 10, "autoencoder.polish.epochs": 10, "training.epochs": 2, "finetuning1.epochs": 18,
    }  # fmt: skip


def test_a_race_whose_timing_was_disturbed_says_so(clock_of_epochs, monkeypatch):
    """A clock that stands still: no epoch takes any time."""
    monkeypatch.setattr(race.time, "process_time", lambda: 0.0)
    with pytest.raises(InputError, match="Other programs disturbed the timing"):
        race.fitting_epochs(clock_of_epochs, {"autoencoder.polish.discriminator_sees": "pixels"}, 300.0)


def test_every_k(tmp_path, short_measures):
    """One UNet for two k against the k's own, each row in its own number of steps; what is done is not done again."""
    np.save(tmp_path / "tiles.npy", make_tiles(264, 48))
    settings = {**TINY, "max_train_tiles": 220, "autoencoder.epochs": 1, "autoencoder.polish.epochs": 1}
    settings |= {"autoencoder.polish.discriminator": {"conv_channels": [8, 16]}, "training.warmup_steps": 2}
    arguments = ["--data", str(tmp_path / "tiles.npy"), "--out", str(tmp_path / "out"), "--clusters", "3-4"]
    arguments += ["--against", "3", "--epochs", "1", "--set", json.dumps(settings)]
    every_k.main(arguments)
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.json")}
    every_k.main(arguments)
    assert written == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.json")}
    rows = {name: json.loads((tmp_path / "out" / name).read_text()) for name in written}
    assert {name: row["epochs"] for name, row in rows.items()} == {
        "every k.json": 1, "k = 3.json": 1, "every k, twice.json": 2, "every k, four times.json": 4,
    }  # fmt: skip
    assert all(row["values"].keys() == {"3"} for row in rows.values())
    floors = {row["values"]["3"]["frechet of training tiles"] for row in rows.values()}
    assert len(floors) == 1  # which no UNet changes
    table = (tmp_path / "out" / "every_k.md").read_text().splitlines()[2:]
    assert [line.split(" | ")[0] for line in table] == [
        "| every k", "| k = 3", "| every k, twice", "| every k, four times",
    ]  # fmt: skip
    alone, other = (rows[name]["values"]["3"] for name in ("k = 3.json", "every k.json"))
    assert f"{other['frechet'] - alone['frechet']:+.4f} ± " in table[0]
    assert "+" not in table[1]  # the k's own is compared with nothing


def test_start_from(tmp_path, capsys, short_measures):
    """Three runs: all epochs, a third of them, and a third from the starter's weights."""
    settings = {"max_train_tiles": 60, "sampling.steps": 2, "training.warmup_steps": 1}
    side = json.loads((STARTER / "config.json").read_text())["settings"]["image_size_px"]
    np.save(tmp_path / "tiles.npy", make_tiles(242, side))
    arguments = ["--data", str(tmp_path / "tiles.npy"), "--out", str(tmp_path / "out"), "--clusters", "3"]
    start_from.main([*arguments, "--thirds", "1", "1", "1", "--features", "random", "--set", json.dumps(settings)])
    assert "| from the starter, a third |" in capsys.readouterr().out
    rows = [json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in start_from.ROWS]
    assert [row["settings"]["training.epochs"] for row in rows] == [3, 1, 1]
    assert [row["settings"]["start_from"] for row in rows] == [None, None, "starter"]
    assert rows[1]["settings"]["autoencoder.epochs"] * 3 == rows[0]["settings"]["autoencoder.epochs"]
    assert rows[2]["mse"] < rows[1]["mse"]  # a UNet that has learnt tissue already


def tissue(n, side=64):
    """Random tiles with structure of the size of nuclei, uint8 (n, 3, side, side)."""
    noise = np.random.default_rng(0).standard_normal((n, 3, side, side))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 2, 2))
    return torch.tensor((150 + 35 * smooth / smooth.std()).clip(0, 255).astype(np.uint8))


def test_changed_copies_go_through_the_gate(tmp_path, capsys):
    """Tiny tiles with structure: copies that are moved or turned by quarters are withheld, unlike tiles pass."""
    tiles = tissue(66)
    np.save(tmp_path / "tiles.npy", as_array(tiles))
    arguments = ["--data", str(tmp_path / "tiles.npy"), "--size", "64", "--copies", "4", "--out", str(tmp_path / "out")]
    assert copies.main(arguments) == 0
    report = json.loads((tmp_path / "out" / "copies.json").read_text())
    assert (report["training tiles"], report["held-out tiles"], report["copies"]) == (60, 6, 4)
    kinds = report["kinds"]
    far = ["moved by 4 px", "moved by 6 px", "moved by 10 px"]
    assert [name for name in kinds if name.startswith("moved by") and "px" in name] == (
        far + [f"{name}, beside others" for name in far]
    )
    for name in ("exact", "in another view", "moved by 10 px", "20 % darker"):
        assert kinds[name]["withheld"] == kinds[name]["outright"] == 1, name
        assert kinds[name]["median distance"] < 0.1
    assert kinds["unlike tiles"]["withheld"] == 0 < report["threshold"] <= kinds["unlike tiles"]["median distance"]
    assert report["certificate"].startswith("Of planted copies of 17 kinds at most ")
    assert min(report["holds"].values()) > 0.9
    table = (tmp_path / "out" / "copies.md").read_text()
    assert table in capsys.readouterr().out
    assert "| moved by 10 px | 100% | 100% |" in table
    assert "4 copies of each kind among 60 training tiles" in table
    assert copies.main([*arguments[:3], "48", *arguments[4:]]) == 2
    assert "must be their size or divide it." in capsys.readouterr().err


def test_copies_are_changed_as_their_names_say():
    tiles = tissue(3)
    copies_of = {
        name: change(tiles, tiles.roll(1, 0), torch.Generator()) for name, change in copies.more_kinds(64).items()
    }
    assert all(changed.shape == tiles.shape and changed.dtype == torch.uint8 for changed in copies_of.values())
    assert torch.equal(copies_of["moved by 6 px"][:, :, 6:, 6:], tiles[:, :, :-6, :-6])
    beside = copies_of["moved by 6 px, beside others"]
    assert torch.equal(beside[:, :, 6:, 6:], tiles[:, :, :-6, :-6])
    assert torch.equal(beside[1, :, :6], tiles[0, :, :6])
    larger = copies_of["zoomed to 1.1"].float()
    middle = torch.nn.functional.interpolate(tiles.float(), scale_factor=1.1, mode="bilinear")[:, :, 3:67, 3:67]
    assert (larger - middle)[:, :, 8:-8, 8:-8].abs().mean() < 3
    assert (copies_of["noise of 80 levels"].float() - tiles).std() > 50


def test_a_fresh_half_keeps_the_certificate_of_the_other():
    """Distances of independent tiles and copies, one in twenty of which passes; 1,000 repeats, so that a share of 0.95
    has a standard error of 0.007."""
    rng = np.random.default_rng(0)
    held_out = rng.normal(0.8, 0.03, 401)
    planted = np.where(rng.random((17, 60)) < 0.05, 0.8, 0.1)
    holds = copies.how_often_it_holds(held_out, planted, seed=3)
    assert min(holds.values()) == holds["both"] >= 0.95
    assert holds["false alarms"] < 1 > holds["copies that pass"]  # so that the limits are not trivial
    assert copies.simulation_error(0.95) == pytest.approx(0.0069, abs=1e-4)


def test_rows_of_the_autoencoder(tmp_path, monkeypatch, capsys):
    """Trained and measured once; a reconstruction that is the tile itself has lost nothing."""
    monkeypatch.setattr(two_sample, "STEPS", 20)
    monkeypatch.setattr(
        autoencoder, "ROWS", {"all": OVERRIDES, "mse": OVERRIDES | {"autoencoder.reconstruction": "mse"}}
    )
    np.save(tmp_path / "tiles.npy", make_tiles(330))
    arguments = ["--data", str(tmp_path / "tiles.npy"), "--tiles", "40", "--out", str(tmp_path / "out"), "--rows"]
    autoencoder.main([*arguments, "all", "mse"])
    table = (tmp_path / "out" / "autoencoder.md").read_text()
    assert table in capsys.readouterr().out
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| all", "| mse"]
    record = json.loads((tmp_path / "out" / "mse.json").read_text())
    assert record["settings"]["autoencoder.reconstruction"] == "mse"
    assert 5 < record["values"]["PSNR, dB"] < 40
    assert (tmp_path / "out" / "mse.jpg").exists()
    autoencoder.main([*arguments, "all"])
    assert "autoencoder" not in capsys.readouterr().out  # nothing was trained
    tiles = torch.from_numpy(make_tiles(60, 32)).permute(0, 3, 1, 2)
    same = autoencoder.measure(tiles, tiles, 0, "cpu")
    assert same["PSNR, dB"] > 130
    assert same["told apart, random features"] == same["power 0.20 to 0.25"] - 0.5 == 0.5


def test_the_least_real_tiles_are_thrown_away():
    """Half of what is drawn is tissue, half of it too dark: what is kept is more like tissue to another judge."""
    tissue = as_tensor(make_tiles(160, 48)).contiguous()
    order = torch.arange(80).view(2, 20, 2).transpose(0, 1).flatten()  # two of each kind in turn
    generated = torch.cat([tissue[:40], tissue[40:80] // 2])[order]
    with seeded("choice"):
        generator = SimpleNamespace(space=SimpleNamespace(vqvae=make_vqvae(get_settings("demo", TINY).autoencoder)))
    generator.n_clusters = 2
    table = quality.measure(generator, tissue[80:120], tissue[120:], generated, np.arange(80) // 4 % 2, 1, ["random"])
    for choice in ("training tiles", "cheating"):
        row = table.loc[f"random, {choice}, accept 0.5"]
        assert row.kept == 40
        assert row["told apart, kept"] < row["told apart, thrown away"] - 0.1


def test_readers_are_simulated_and_their_intervals_counted(tmp_path, capsys):
    assert reader_study.main(["--studies", "4", "--tiles", "20", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "reader_study.json").read_text())
    assert len(report["coverage"]) == len(reader_study.SKILLS)
    for row in report["coverage"].values():
        assert set(row) == {
            f"{m}, {who}" for m in ("sensitivity", "specificity", "AUC") for who in ("one reader", "together")
        }
        assert all(0 <= share <= 1 for share in row.values())
    assert (tmp_path / "reader_study.md").read_text().strip() in capsys.readouterr().out


def test_the_true_area_of_simulated_readers_is_that_of_many_answers():
    rng = np.random.default_rng(0)
    steps = 0.5 + reader_study.STEPS
    skills = np.array([0.5, 1.5])
    ratings = reader_study.simulated(skills, steps, 6000, rng)
    for name, measure in results.measures("real", ratings).items():
        values = [each.value for each in measure.each]
        assert values == pytest.approx(reader_study.truth(skills, steps)[name], abs=0.03)


def test_the_first_command_of_the_page_on_slides_runs_on_those_made_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert slides.main(["--out", "."]) == 0
    command = re.search(r"python -m pfiles (tile slides .*)", (ROOT / "docs" / "slides.md").read_text())[1]
    assert main(shlex.split(command)) == 0
    rows = read_tile_table(tmp_path / "tiles" / "tiles.csv")
    assert rows.slide.nunique() == 12
    assert {*rows.patient} == {f"patient_{number}" for number in range(1, 7)}
    assert slides.main(["--out", "."]) == 2  # files are there


def test_a_slide_of_lung_shows_each_tissue_in_its_piece(tmp_path):
    """Only test tiles, each in its cell, on glass; the colour of a tile says which tissue it is of."""
    colours = {"lung_n": (200, 90, 90), "lung_aca": (90, 200, 90), "lung_scc": (90, 90, 200)}
    rows = []
    with zipfile.ZipFile(tmp_path / "lung.zip", "w") as archive:
        for tissue, colour in colours.items():
            for number in range(70):
                name, is_test = f"{tissue}_{number}.png", number > 0
                rows.append(f"{name},{tissue},{'test' if is_test else 'train'}")
                content = io.BytesIO()
                Image.new("RGB", (128, 128), colour if is_test else (0, 0, 0)).save(content, "PNG")
                archive.writestr(f"lung_he/{name}", content.getvalue())
        archive.writestr("lung_he_labels.csv", "\n".join(["file,tissue,split", *rows]))
    cells = slides.make_lung_slide(tmp_path / "lung.zip", tmp_path)
    image = np.asarray(Image.open(tmp_path / "lung.tiff"))
    assert not (image == 0).all(axis=2).any()
    for tissue, colour in colours.items():
        assert len(cells[tissue]) > 30
        for row, column in cells[tissue]:
            assert (image[128 * row + 128 :, 128 * column + 128 :][:128, :128] == colour).all()
    tissue = (image != slides.GLASS).any(axis=2)
    assert tissue.sum() == 128**2 * sum(map(len, cells.values()))
    assert ndimage.label(tissue)[1] == 3


def test_slides_replace_no_file(tmp_path):
    (tmp_path / "slides.csv").write_text("mine")
    with pytest.raises(InputError, match=r"slides\.csv was not made by this command"):
        slides.make_slides(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["slides.csv"]


def test_variations_over_strength(generator, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(variations, "STRENGTHS", (0.5, 1.0))
    generator.save(tmp_path / "generator")
    np.save(tmp_path / "tiles.npy", as_array(tissue(44, 48)))
    where = ["--from", str(tmp_path / "generator"), "--data", str(tmp_path / "tiles.npy"), "--out", str(tmp_path)]
    assert variations.main(["curve", "--originals", "2", "--number", "1", *where]) == 0
    report = json.loads((tmp_path / "curve.json").read_text())
    assert [row["strength"] for row in report["curve"]] == [0.5, 1.0]
    assert (tmp_path / "sheet.jpg").exists()
    assert variations.main(["use", *where]) == 2
    assert "not every tile has one: add labels." in capsys.readouterr().err


def test_gains_of_variations_are_those_of_the_same_seeds(generator, monkeypatch):
    """Each seed's networks are compared with each other; all learn as long, from as many added tiles."""
    tiles = Tiles(tissue(44, 48), np.arange(40), np.arange(40, 44), "tissue", labels=np.array(["a", "b"] * 22))
    right = {variations.ALONE: (1, 2, 3), variations.CLASSICAL: (2, 3, 4), variations.VARIED: (1, 1, 1)}
    sizes, steps_taken = {}, set()

    def sorted_rightly(images, labels, held_out, truth, classes, steps, seed, device):
        sizes[seed[1]] = len(images)
        steps_taken.add(steps)
        assert len(labels) == len(images)
        assert labels[:8].repeat_interleave(2).tolist() == labels[8:].tolist() or len(images) == 8
        return torch.arange(4) < right[seed[1]][seed[0]]

    monkeypatch.setattr(variations, "sorted_rightly", sorted_rightly)
    rows = variations.use(generator, tiles, 8, 2, 0.5)
    assert [(row["accuracy"], row["gain"]) for row in rows] == [(0.5, 0), (0.75, 0.25), (0.25, -0.25)]
    assert (rows[1]["gain, low"], rows[1]["gain, high"]) == (0.25, 0.25)
    assert rows[2]["gain, low"] < -0.5  # -0.25 - 4.303 * 0.25 / sqrt(3)
    assert sizes == {variations.ALONE: 8, variations.CLASSICAL: 24, variations.VARIED: 24}
    assert len(steps_taken) == 1


def test_changed_copies_keep_their_order_and_their_colours_within_bounds():
    tiles = torch.tensor([60, 180], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 16, 16)
    copies = variations.changed(tiles, 3, torch.Generator().manual_seed(0)).double()
    assert copies.shape == (6, 3, 16, 16)
    factors = copies.mean((1, 2, 3)) / torch.tensor([60.0, 60, 60, 180, 180, 180])
    assert ((factors > 0.71) & (factors < 1.33)).all()
    assert factors.std() > 0.01
