"""A training seen from outside: pictures at its resume points, how far it is, and that looking changes nothing."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from pfiles import learn
from pfiles.__main__ import main
from pfiles.cli import watch
from pfiles.errors import InputError, TerminatedError
from pfiles.learning import log
from pfiles.run import open_run
from tests.conftest import TINY, make_tiles

OVERRIDES = TINY | {"saving.every_epochs": 1, "training.epochs": 2, "speed": "off"}


def train(folder, share, monkeypatch, **changed):
    """Autoencoder and first training with that share of the time for pictures."""
    monkeypatch.setattr(log, "SHARE", share)
    np.save(folder.parent / "tiles.npy", make_tiles(44))
    run = open_run("test", 3, "kmeans", folder.parent / "tiles.npy", "demo", OVERRIDES | changed, 1, folder)
    learn.autoencoder(run, *learn.new_autoencoder(run))
    networks = learn.new_networks(run)
    return networks, learn.unet(run, "training", networks)


def test_pictures_change_no_number_and_show_what_is_learnt(tmp_path, monkeypatch):
    run, with_pictures = train(tmp_path / "with", 1e9, monkeypatch)
    unseen, without = train(tmp_path / "without", 0.0, monkeypatch)
    timed = ("seconds", "images_per_second", "memory_gb")
    for a, b in zip(with_pictures, without, strict=True):
        assert {k: v for k, v in a.items() if k not in timed} == {k: v for k, v in b.items() if k not in timed}
    for name, tensor in unseen.unet.state_dict().items():
        assert torch.equal(run.unet.state_dict()[name], tensor)
    assert not list((tmp_path / "without").rglob("*.jpg"))
    training = tmp_path / "with" / "clusters_3" / "models_3" / "training_kmeans"
    for folder, steps in ((training, (3, 6)), (tmp_path / "with" / "kpc_ldm" / "autoencoder_training", (3, 6))):
        pictures = sorted((folder / "samples").iterdir())
        assert [picture.name for picture in pictures] == [f"{step:08}.jpg" for step in steps]
        assert {Image.open(picture).size for picture in pictures} == {(4 * 48, 4 * 48)}
        assert b"samples" in b"".join(file.read_bytes() for file in folder.glob("events.out.*"))


def test_last_and_averaged_weights_are_shown_one_above_the_other(tmp_path, monkeypatch):
    train(tmp_path / "out", 1e9, monkeypatch, **{"training.ema_decay": 0.999, "training.learning_rate": 0.05})
    samples = tmp_path / "out" / "clusters_3" / "models_3" / "training_kmeans" / "samples"
    last, averaged = np.split(np.asarray(Image.open(samples / "00000006.jpg")).astype(int), 2)
    assert last.shape == averaged.shape == (4 * 48, 4 * 48, 3)
    assert np.abs(last - averaged).max() > 0


def test_the_first_picture_row_is_of_real_tiles(tmp_path, monkeypatch):
    """Of the autoencoder: rows of training tiles, each above the row of their reconstructions."""
    train(tmp_path / "out", 1e9, monkeypatch, **{"autoencoder.polish.epochs": 0})
    picture = Image.open(tmp_path / "out" / "kpc_ldm" / "autoencoder_training" / "samples" / "00000006.jpg")
    tiles = make_tiles(44)[np.linspace(0, 39, 24).round().astype(int)][[0, 3, 6, 9]]
    row = np.concatenate(tiles, axis=1).astype(int)
    levels = np.asarray(picture).astype(int)
    assert np.abs(levels[:48] - row).mean() < 12  # a JPEG's loss on tiles of noise
    assert np.abs(levels[48:96] - row).mean() > 24


def test_pictures_take_no_more_than_their_share(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(log, "SHARE", 0.1)
    training = log.TrainingLog(tmp_path, 0)
    times = []

    def make():
        clock[0] += 30  # seconds
        times.append(clock[0])
        return torch.zeros(16, 3, 8, 8, dtype=torch.uint8)

    for step in range(1, 2001):
        clock[0] += 1
        if step % 100 == 0:
            training.picture(step, step, make)
    assert len(times) >= 5
    assert 30 * len(times) <= 0.1 * clock[0] + 1
    assert times[0] == 200 + 30  # before one was timed it is taken to cost as much as 20 steps


def test_how_far_it_is(tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match="No training has begun"):
        watch.look(tmp_path / "out")
    train(tmp_path / "out", 1e9, monkeypatch)
    capsys.readouterr()
    monkeypatch.setattr(watch, "SILENT", -1)
    assert main(["watch", "--out", str(tmp_path / "out")]) == 0
    monkeypatch.undo()
    printed = capsys.readouterr().out
    assert printed.startswith("training_kmeans: step 6 of 6 (100%), done\n")
    assert "images_per_second" in printed
    assert "samples/00000006.jpg" in printed
    note = tmp_path / "out" / "clusters_3" / "models_3" / "training_kmeans" / "progress.json"
    now = time.time()
    monkeypatch.setattr(watch.time, "time", lambda: now)
    half = json.loads(note.read_text()) | {"step": 3, "steps_per_second": 0.5, "at": now}
    note.write_text(json.dumps(half))
    progress = watch.look(tmp_path / "out")
    assert progress.line() == "training_kmeans: step 3 of 6 (50%), 0.5 steps per second, 6 s left"
    assert len(progress.history) == 2
    note.write_text(json.dumps(half | {"at": now - 3600}))
    shutil.rmtree(tmp_path / "out" / "kpc_ldm")  # whose trainings were heard of since then
    assert "0.5 steps per second, 6 s left; no word for 1 h" in watch.look(tmp_path / "out").line()
    assert main(["watch", "--out", str(tmp_path / "out"), "--once"]) == 0


@pytest.mark.parametrize(
    ("number", "sentence"),
    [(signal.SIGINT, "an interrupt (Ctrl-C, or a notebook's stop"), (signal.SIGTERM, "SIGTERM (of a scheduler")],
)
def test_a_stopped_training_says_so_and_by_what(number, sentence, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(log, "write_json", stop_after(number, log.write_json))
        with pytest.raises((KeyboardInterrupt, TerminatedError)):
            train(tmp_path / "out", 0.0, monkeypatch)
    assert f"(50%), stopped by {sentence}" in watch.look(tmp_path / "out").line()
    assert watch.look(tmp_path / "out").line().endswith(": run it again to go on")
    train(tmp_path / "out", 0.0, monkeypatch)
    assert watch.look(tmp_path / "out").line().endswith("(100%), done")


def stop_after(number, write):
    """`write`, after which this process gets the signal, the first time."""
    numbers = [number]

    def write_and_stop(path, note):
        write(path, note)
        if numbers:
            os.kill(os.getpid(), numbers.pop())

    return write_and_stop


def test_a_training_that_failed_says_so(tmp_path):
    training = log.TrainingLog(tmp_path, 0)
    training.tell(1, 4, 1)
    with pytest.raises(FloatingPointError), training.end_told():
        raise FloatingPointError("Loss became NaN.\nIn step 2.")
    assert json.loads((tmp_path / log.PROGRESS).read_text())["stopped_by"] == "FloatingPointError: Loss became NaN."


def test_a_run_is_followed_from_training_to_training(tmp_path, monkeypatch, capsys):
    def tell(name, step, at):
        folder = tmp_path / "kpc_ldm" / f"{name}_training"
        folder.mkdir(parents=True, exist_ok=True)
        progress = {"step": step, "total_steps": 6, "steps_per_second": 1.0, "at": at}
        (folder / log.PROGRESS).write_text(json.dumps(progress))

    clock = [1000.0]
    later = iter([lambda: tell("polish", 2, 1030), lambda: tell("polish", 6, 1040)])

    def sleep(seconds):
        clock[0] += 60
        next(later, lambda: None)()

    monkeypatch.setattr(watch.time, "time", lambda: clock[0])
    monkeypatch.setattr(watch.time, "sleep", sleep)
    (tmp_path / "run.toml").write_text("seed = 3")
    monkeypatch.setenv("KPC_RUN_TOML", str(tmp_path / "run.toml"))
    tell("autoencoder", 6, 1000)
    lines = [progress.line().partition(",")[0] for progress in watch.follow(tmp_path, 10)]
    assert lines == [
        "autoencoder_training: step 6 of 6 (100%)", "polish_training: step 2 of 6 (33%)",
        "polish_training: step 6 of 6 (100%)",
    ]  # fmt: skip
    assert clock[0] == 1180
    assert capsys.readouterr().out.count("run.toml") == 1  # not at every look


def test_a_clock_that_was_set_back_hides_no_training(tmp_path):
    for name, at in (("autoencoder", time.time() + 3600), ("polish", time.time() + 1)):  # the second of another machine
        folder = tmp_path / "kpc_ldm" / f"{name}_training"
        folder.mkdir(parents=True)
        progress = {"step": 6, "total_steps": 6, "steps_per_second": 1.0, "at": at}
        (folder / log.PROGRESS).write_text(json.dumps(progress))
    assert watch.look(tmp_path).folder.name == "polish_training"


def test_the_clusters_of_every_k_are_seen_as_well(tmp_path):
    folder = tmp_path / "choose_k" / "clusters_all"
    folder.mkdir(parents=True)
    progress = {"step": 3, "total_steps": 6, "steps_per_second": 1.0, "at": time.time()}
    (folder / log.PROGRESS).write_text(json.dumps(progress))
    assert watch.look(tmp_path).line().startswith("clusters_all: step 3 of 6 (50%)")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (8.6, "9 s"), (63, "1 min 3 s"), (600, "10 min"), (3600, "1 h"), (32340, "8 h 59 min"),
     (86405, "1 d"), (180061, "2 d 2 h")],
)  # fmt: skip
def test_durations_have_units(seconds, words):
    assert watch.duration(seconds) == words


@pytest.mark.parametrize(
    "text", ["{}", '{"step": 1, "total_steps": 0, "steps_per_second": 1, "at": 1}', '{"at": "now"}']
)
def test_a_progress_that_is_none_is_one_sentence(text, tmp_path, capsys):
    folder = tmp_path / "kpc_ldm" / "autoencoder_training"
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text(text)
    assert main(["watch", "--out", str(tmp_path), "--once"]) == 2
    assert "progress.json does not say how far a training is (" in capsys.readouterr().err
    (folder / "progress.json").write_text('{"step": 1, "total_steps": 9, "steps_per_second": 0, "at": 1}')
    assert main(["watch", "--out", str(tmp_path), "--once"]) == 0
    assert "step 1 of 9 (11%); no word for" in capsys.readouterr().out
