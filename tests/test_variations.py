"""Variations of tiles as files: what comes too near a real tile is marked, and no file of it is written."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pfiles import variations
from pfiles.__main__ import main
from pfiles.cli.execute import run_cells
from pfiles.errors import InputError
from pfiles.measuring.memorisation import COPY
from pfiles.paths import ROOT, read_json
from pfiles.tiles.dataset import Tiles
from pfiles.tiles.files import write_tiles
from pfiles.tiles.pixels import as_array
from tests.conftest import K, opened, parameters, train
from tests.measuring.conftest import tissue

SIDE = 48


def as_table(originals, **columns):
    return pd.DataFrame({"original": originals, "own": True, "asked": 0, "read": 0, "strength": 0.5, **columns})


def test_copies_of_the_original_and_of_other_real_tiles_are_marked():
    """Among held-out and training tiles that share nothing, a mirrored original and a training tile are too near."""
    images = tissue(34, SIDE)
    originals, unlike = images[:2], images[33:]
    gate = variations.make_gate(Tiles(images, np.arange(3, 20), np.arange(20, 33), "tissue"))
    assert gate.limit > COPY
    varied = torch.cat([originals[:1].flip(3), originals[:1], images[5:6], unlike])
    table = variations.add_distances(varied, as_table([0, 1, 1, 1]), originals, gate)
    assert table["copy"].tolist() == [True, True, True, False]
    assert table["to_original"][0] < 0.01  # its own
    assert min(table["to_original"][1:]) > 0.5  # the second shows the first original, and was drawn from the second one
    assert max(table["nearest"][:3]) < 0.01
    alone = variations.add_distances(varied, as_table([0, 1, 1, 1]), originals, variations.make_gate(None))
    assert alone["copy"].tolist() == [True, False, False, False]


def test_the_curve_is_worked_by_hand():
    table = as_table(
        [0, 0, 1, 1, 0], own=[True] * 4 + [False], asked=[0, 0, 2, 2, 1], read=[0, 1, 2, 2, 1],
        strength=[0.2, 0.8, 0.2, 0.8, 0.2], to_original=[0.1, 0.5, 0.3, 0.9, 0.4],
        copy=[True, False, False, False, False],
    )  # fmt: skip
    rows = variations.curve(table).to_numpy().tolist()
    assert rows == [
        [True, 0.2, 1.0, pytest.approx(0.8), 0.5],
        [True, 0.8, 0.5, pytest.approx(0.3), 0.0],
        [False, 0.2, 1.0, pytest.approx(0.6), 0.0],
    ]


@pytest.fixture
def saved(generator, tmp_path):
    generator.save(tmp_path / "generator")
    write_tiles(tmp_path / "tiles", [1, 2], tissue(2, SIDE))
    return tmp_path


def command(folder, *options):
    tiles, generator = folder / "tiles", folder / "generator"
    return ["vary", str(tiles), "--from", str(generator), "--out", str(folder / "out"), *options]


def test_marked_variations_are_on_the_sheet_alone(saved, monkeypatch):
    monkeypatch.setattr(variations, "COPY", 0.8)  # such that the networks of a test, which draw noise, reach it
    monkeypatch.setattr(variations, "nearest_tiles", lambda images, real: pd.DataFrame({
        "distance": np.where(images.double().mean((1, 2, 3)) > images.double().mean(), 0.7, 0.9)
    }))  # fmt: skip
    assert main(command(saved, "--strength", "0.3", "1", "--number", "3", "--cluster", "1")) == 0
    out = saved / "out"
    table = pd.read_csv(out / "variations.csv", keep_default_na=False)
    assert len(table) == 2 * 2 * 3 * 2
    assert table["copy"].any()
    assert not table["copy"].all()
    assert (table["file"] == "").equals(table["copy"])
    assert {path.name for path in (out / "tiles").iterdir()} == set(table["file"]) - {""}
    assert set(table["original"]) == {"1.png", "2.png"}
    assert (table["asked"][12:] == 1).all()
    note = read_json(out / "variations.json")
    assert (note["variations"], note["withheld"]) == (24, int(table["copy"].sum()))
    sheet = np.asarray(Image.open(out / "sheet.jpg").convert("RGB")).astype(int)
    assert (np.abs(sheet - variations.MARK).sum(2) < 60).any()
    assert main(command(saved, "--number", "1")) == 0  # its own folder is made anew
    assert len(pd.read_csv(out / "variations.csv")) == 2


def test_wrong_requests_make_no_folder(saved, capsys):
    for options, message in (
        (["--strength", "0"], "The strength of a variation must be above 0 and at most 1, but is 0."),
        (["--number", "0"], "must be a whole number of at least 1, but is 0."),
        (["--cluster", "9"], f"Clusters are numbered from 1 to {K}"),
    ):
        assert main(command(saved, *options)) == 2
        assert message in capsys.readouterr().err
        assert not (saved / "out").exists()


def test_other_files_are_not_replaced(saved):
    (saved / "out").mkdir()
    (saved / "out" / "mine.txt").write_text("")
    assert main(command(saved, "--number", "1")) == 2
    assert (saved / "out" / "mine.txt").exists()


def test_a_generator_varies_each_tile_as_its_own_cluster_or_another(generator):
    tiles = tissue(2, SIDE)
    cluster_ids, _ = generator.assign(tiles)
    varied = generator.vary(tiles, 0.5, 2, seed=3, progress=False)
    assert varied.shape == (2, 2, 3, SIDE, SIDE)
    for place, cluster in enumerate(cluster_ids.tolist()):
        as_own = generator.vary(tiles, 0.5, 2, seed=3, cluster=cluster, progress=False)
        assert (as_own[place].int() - varied[place].int()).abs().max() <= 1
    other = str((int(cluster_ids[0]) + 1) % K + 1)
    assert not torch.equal(generator.vary(tiles, 0.5, 2, seed=3, cluster=other, progress=False)[0], varied[0])
    assert not torch.equal(varied[:, 0], varied[:, 1])
    with pytest.raises(InputError, match="must have the shape"):
        generator.vary(tissue(1, 64))


def test_the_notebook_draws_what_is_painted_and_varies_a_tile(tmp_path, capsys):
    np.save(tmp_path / "tiles.npy", as_array(tissue(44, SIDE)))
    train(opened(tmp_path, clustering="kmeans"))
    more = {"grid": "1,2 / 3,1", "strengths": (0.5,)}
    layout = opened(tmp_path, clustering="kmeans").paths.fields / "layout.csv"
    for wrong in ({"tile": 0}, {"tile": 99}, {"strengths": (0.5, 2)}, {"strengths": ()}):
        with pytest.raises(InputError, match=r"^(Test tiles are numbered|.* strength)"):
            run_cells(
                ROOT / "clusters_14" / "part_17_fields.ipynb", parameters(tmp_path, clustering="kmeans") | more | wrong
            )
        assert not layout.exists()
    run_cells(ROOT / "clusters_14" / "part_17_fields.ipynb", parameters(tmp_path, clustering="kmeans") | more)
    assert "There is no map of a slide" in capsys.readouterr().out
    assert layout.read_text() == "1,2\n3,1\n"
    scores = read_json(tmp_path / "out" / "summary.json")[f"clusters_{K}_kmeans/part_17_fields"]["read back"]
    assert scores["places"] == 4
    assert 0 <= scores["field"] <= 1
