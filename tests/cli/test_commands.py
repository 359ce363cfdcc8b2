"""What commands make of their arguments."""

import zipfile
from pathlib import Path

import pandas as pd
import pytest

from pfiles.__main__ import main
from pfiles.cli import commands
from pfiles.cli import options as options_module
from pfiles.errors import InputError
from pfiles.paths import write_json
from pfiles.reporting import page
from tests.conftest import make_tiles, write

COMMANDS = {  # and a name that each would write into --out
    "draw": (["draw", "--number", "2"], ["tiles.csv", "sheet.jpg", "tiles/1.png"]),
    "tile": (["tile", "slide.png", "--mpp-of-slide", "1"], ["tiles.csv", "tiles.npy", "tiling.json"]),
    "map": (["map", "--slide", "slide.png", "--run", "starter", "--mpp", "1", "--mpp-of-slide", "1"],
            ["slide.jpg", "slide.geojson", "tile_clusters.csv", "shares_by_slide.csv", "tiles/tiles.npy"]),
    "evaluate": (["evaluate", "--real", "a", "--generated", "a"], ["evaluation.html", "evaluation.json"]),
    "run": (["run", "--preset", "demo", "--clustering", "kmeans", "--clusters", "3"],
            ["summary.json", "Figures/Figure 1/a.jpg", "org/1.png"]),
    "paper": (["paper", "--archive", "a"], ["Figures/Figure 1/a.jpg", "paper/table.md"]),
    "reproduce": (["reproduce", "a.zip"], ["summary.json", "org/1.png", "reproduction.json"]),
}  # fmt: skip
CASES = [(arguments, name) for arguments, names in COMMANDS.values() for name in names]


def test_features_are_a_name_or_files():
    assert commands._features([]) == {}
    assert commands._features(["random"]) == {"features": "random"}
    files = commands._features(["/a/real.npy", "/a/generated.npy"])["feature_files"]
    assert [str(path) for path in files] == ["/a/real.npy", "/a/generated.npy"]
    with pytest.raises(InputError, match=r"takes one name, or files ending in \.npy, but got random inception"):
        commands._features(["random", "inception"])


@pytest.mark.parametrize(("arguments", "name"), CASES)
def test_no_command_replaces_what_it_did_not_make(arguments, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a", range(4), make_tiles(4, 64))
    write(tmp_path, ["slide"], make_tiles(1, 512))
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text('{"grade": 3}')
    before = set(tmp_path.rglob("*"))
    assert main([*arguments, "--out", "out"]) == 2
    assert f"{tmp_path / 'out'}/{Path(name).parts[0]} was not made by this command" in capsys.readouterr().err
    assert file.read_text() == '{"grade": 3}'
    assert set(tmp_path.rglob("*")) == before


def test_a_zip_that_is_no_crate_is_not_replaced(tmp_path, capsys):
    for name in ("data.zip", "text.zip"):
        file = tmp_path / name
        file.write_text("mine")
        if name == "data.zip":
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("tile_1.png", "mine")
        before = file.read_bytes()
        assert main(["pack", "--run", str(tmp_path), "--out", str(file)]) == 2
        assert f"{file} was not made by this command" in capsys.readouterr().err
        assert file.read_bytes() == before


@pytest.mark.slow
def test_what_a_command_made_it_replaces(tmp_path):
    for seed in ("1", "2"):
        assert main(["draw", "--number", "3", "--out", str(tmp_path), "--seed", seed]) == 0
    assert pd.read_csv(tmp_path / "tiles.csv")["seed"].tolist() == [2, 2, 2]
    write_json(tmp_path / "evaluation.json", {"about": {}})
    page.refuse_other_report(tmp_path)


@pytest.mark.parametrize("command", ["draw", "evaluate", "export", "map", "share", "tile"])
def test_a_folder_that_takes_no_file_is_refused_before_any_work(command, tmp_path, monkeypatch, capsys):
    """As on a disk that is mounted for reading alone; the root user may write anywhere else."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a", range(4), make_tiles(4, 64))
    options = {"share": ["--run", "a"], "export": ["--generated", "a"], "tile": ["a"]}.get(command, [])
    options = COMMANDS[command][0][1:] if command in COMMANDS and command != "tile" else options
    monkeypatch.setattr(options_module.os, "access", lambda path, mode: False)
    assert main([command, *options, "--out", "new/out"]) == 2
    assert f"cannot be written to, as {tmp_path} takes no file" in capsys.readouterr().err
