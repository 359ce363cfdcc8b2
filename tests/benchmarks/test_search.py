"""The search for copies among made tiles: they are what they are whenever they are read, and all is told."""

import numpy as np
import pytest
import torch

from benchmarks import search
from pfiles.measuring.planted import KINDS
from pfiles.paths import read_json


@pytest.fixture(autouse=True)
def small_fields(monkeypatch):
    monkeypatch.setattr(search, "FIELD", 256)


def test_made_tiles_are_the_same_whenever_they_are_read():
    filler = search.MadeTiles(50, 32)
    tiles = filler[0:50]
    assert tiles.shape == filler.shape == (50, 3, 32, 32)
    assert torch.equal(filler[np.array([7, 3])], tiles[[7, 3]])
    assert torch.equal(filler[torch.tensor([9]), :, :4], tiles[9:10, :, :4])
    assert len(tiles.flatten(1).unique(dim=0)) == 50
    assert filler.seconds > 0


@pytest.mark.slow
def test_copies_are_found_among_made_tiles_and_times_are_told(tmp_path, capsys):
    arguments = ["--size", "64", "--tiles", "1300", "--images", "40", "--copies", "2"]
    assert search.main(["--data", "embedded", *arguments, "--out", str(tmp_path / "search.json")]) == 0
    report = read_json(tmp_path / "search.json")
    assert (report["training tiles"], report["of the data"]) == (1300, 1154)
    assert report["found"].keys() == KINDS.keys()
    total = sum(number for number, _ in report["found"].values())
    assert (report["copies whose original is found"], report["of copies"]) == (total, 34)
    assert total >= 32
    assert report["with 95 % certainty at least"] < total / 34
    assert sum(part["images"] for part in report["parts"]) == report["images looked up"] == 40
    assert report["CPU seconds of index and all images"] == pytest.approx(
        report["index"]["cpu_seconds"] + sum(part["cpu_seconds"] for part in report["parts"])
    )
    assert report["index"]["making_tiles"] > 0
    assert "index of 1,300 tiles" in capsys.readouterr().out


def test_data_that_are_not_there_are_one_sentence(tmp_path, capsys):
    assert search.main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "search.json")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "search.json").exists()
