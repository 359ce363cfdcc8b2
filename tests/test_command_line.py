"""The command line: wrong input ends in one sentence, exit status 2 and nothing written."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile

import numpy as np
import psutil
import pytest

import pfiles.__main__
from pfiles.__main__ import main
from pfiles.paths import ROOT
from tests.conftest import TINY, assert_refused, make_tiles, png


def folder_with(folder, extra=None):
    folder.mkdir()
    for i, tile in enumerate(make_tiles(24, 64)):
        (folder / f"{i:02}.png").write_bytes(png(tile))
    for name, content in (extra or {}).items():
        (folder / name).write_bytes(content)
    return folder


def saved(path, array):
    np.save(path, array, allow_pickle=True)
    return path


def written(path, content):
    path.write_bytes(content)
    return path


DATA = {
    "does not exist": lambda p: p / "nowhere.npy",
    "wrong dtype": lambda p: saved(p / "a.npy", make_tiles(24, 64).astype(float)),
    "wrong shape": lambda p: saved(p / "a.npy", make_tiles(24, 64)[0]),
    "truncated": lambda p: written(p / "a.npy", saved(p / "b.npy", make_tiles(24, 64)).read_bytes()[:999]),
    "empty file": lambda p: written(p / "a.npy", b""),
    "objects": lambda p: saved(p / "a.npy", np.array([{}, None], dtype=object)),
    "broken zip": lambda p: written(p / "a.zip", b"PK\x03\x04 broken"),
    "empty folder": lambda p: (p / "a").mkdir() or p / "a",
    "text called png": lambda p: folder_with(p / "a", {"x.png": b"hello"}),
    "mixed sizes": lambda p: folder_with(p / "a", {"x.png": png(make_tiles(1, 32)[0])}),
    "not square": lambda p: folder_with(p / "a", {"0.png": png(make_tiles(1, 64)[0][:32])}),
    "too few tiles": lambda p: saved(p / "a.npy", make_tiles(5, 64)),
}


@pytest.mark.parametrize("case", DATA)
def test_bad_data(case, tmp_path, capsys):
    out = tmp_path / "out"
    assert_refused(["run", "--preset", "demo", "--data", str(DATA[case](tmp_path)), "--out", str(out)], capsys, out)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--preset", "unknown"],
        ["--preset", "demo", "--clusters", "1"],
        ["--preset", "demo", "--clusters", "100000"],
        ["--preset", "demo", "--clustering", "dbscan"],
        ["--preset", "demo", "--set", "training.epochs"],
        ["--preset", "demo", "--set", "trainings.epochs=1"],
        ["--preset", "demo", "--set", "image_size_px=72"],
    ],
)
def test_bad_arguments(arguments, tmp_path, capsys):
    out = tmp_path / "out"
    assert_refused(["run", "--data", "embedded", *arguments, "--out", str(out)], capsys, out)


def test_out_that_is_a_file(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("keep me")
    assert main(["run", "--data", "embedded", "--preset", "demo", "--out", str(file)]) == 2
    assert "is a file" in capsys.readouterr().err
    assert file.read_text() == "keep me"


def test_as_a_process_of_its_own(tmp_path):
    """Its kernel loads torch, and the process itself does not, which would take half a gigabyte beside the kernel's."""
    code = "import sys\nfrom pfiles.__main__ import main\nstatus = main(sys.argv[1:])\n"
    code += "sys.exit(3 if 'torch' in sys.modules else status)"
    command = [sys.executable, "-c", code, "run", "--data", str(tmp_path / "none.zip"), "--out", str(tmp_path / "o")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: There is no data at {tmp_path / 'none.zip'}: give a .npy file, a folder of images or a .zip of one.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_zip_without_images(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "no tiles here")
    out = tmp_path / "out"
    assert_refused(["run", "--preset", "demo", "--data", str(tmp_path / "x.zip"), "--out", str(out)], capsys, out)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_a_run_which_then_goes_on(number, status, tmp_path):
    many = {**TINY, "image_size_px": 64, "autoencoder.epochs": 400}
    overrides = [part for name, value in many.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    command = [sys.executable, "-m", "pfiles", "run", "--preset", "demo", "--clusters", "3", "--out", str(tmp_path)]
    run = subprocess.Popen([*command, *overrides], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "kpc_ldm" / "autoencoder_training" / "log.csv"
    while not log.exists():
        time.sleep(0.1)
        assert run.poll() is None
    assert psutil.Process(run.pid).memory_info().rss < 300e6  # beside its kernel
    run.send_signal(number)
    out, err = run.communicate()
    assert run.returncode == status
    assert out.rstrip().endswith("stopped")
    stopped = re.match(r"autoencoder stopped after step (\d+) of (\d+): run it again to go on.\n", err)
    assert int(stopped[1]) < int(stopped[2]) / 2  # at once, and not when the training would have ended
    assert (log.parent / "resume.pt").exists()


def test_sigterm_leaves_nothing_that_a_command_wrote_for_itself_alone(tmp_path, monkeypatch):
    def end(args):
        with tempfile.TemporaryDirectory(dir=tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(pfiles.__main__, "_function_of", lambda command: end)
    with pytest.raises(SystemExit) as error:
        main(["check"])
    assert error.value.code == 143
    assert [*tmp_path.iterdir()] == []
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_notebook_runs_as_a_script(tmp_path):
    """Also in two processes that torchrun starts: one set of files, each written once."""
    tiny = {**TINY, "image_size_px": 64}
    overrides = [part for name, value in tiny.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    arguments = ["--preset", "demo", "--clusters", "3", "--out", str(tmp_path), *overrides]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for command in ([sys.executable], torchrun):
        done = subprocess.run(
            [*command, "-m", "pfiles", "cells", "train_autoencoder", *arguments],
            cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Saved ") == 1
    assert "autoencoder is done already" in done.stdout
    assert main(["cells", "part_99", *arguments]) == 2
