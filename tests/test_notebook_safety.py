"""Notebooks run in another folder, twice, out of order, or where the home folder takes no file."""

import json
import os
import re
import shutil
import subprocess
import sys

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest

from pfiles import learn
from pfiles.checkpoints import fingerprint, save_weights
from pfiles.cli.execute import execute, run_cells
from pfiles.cli.notebooks import NOTEBOOKS
from pfiles.errors import InputError
from pfiles.measuring import memorisation
from pfiles.paths import ROOT, Paths, read_json
from pfiles.run import open_run
from pfiles.settings import get_settings
from pfiles.tiles.files import write_tiles
from pfiles.tiles.pixels import as_tensor
from pfiles.vqvae import make_vqvae
from tests.conftest import TINY, make_tiles

NEED_NOTHING = ("train_autoencoder", "save_training_images")


@pytest.fixture
def parameters(tmp_path, monkeypatch):
    """For a tiny run into a folder that does not exist yet; what a notebook does to this process is undone."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("MPLBACKEND", "Agg")
    np.save(tmp_path / "tiles.npy", make_tiles(30))
    out = str(tmp_path / "out")
    yield {"n_clusters": 3, "data": str(tmp_path / "tiles.npy"), "preset": "demo", "overrides": TINY, "out": out}
    plt.close("all")


def noisy_tiles(n):
    noise = np.random.default_rng(0).normal(0, 40, (n, 48, 48, 3))
    return (make_tiles(n) / 2 + 64 + noise).clip(0, 255).astype(np.uint8)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name not in NEED_NOTHING])
def test_out_of_order_says_what_is_missing(name, parameters, tmp_path):
    with pytest.raises(InputError, match=r"^[^\n]*\brun [^\n]*\.$"):
        run_cells(ROOT / f"{name}.ipynb", parameters)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("part_6_conditional_generation", {"only": "1-5"}),
        ("part_6_conditional_generation", {"only": (40, 50)}),
        ("part_9_conditional_generation_using_cluster_IDs", {"picks": {"4": [0]}}),
        ("part_9_conditional_generation_using_cluster_IDs", {"picks": {"a": [0]}}),
        ("part_9_conditional_generation_using_cluster_IDs", {"picks": {1: [0, 3]}}),
        ("part_9_conditional_generation_using_cluster_IDs", {"picks": {1: "0"}}),
        ("part_13_distribution_metrics", {"blurs_px": "0,1"}),
        ("part_13_distribution_metrics", {"blurs_px": 0.5}),
        ("part_13_distribution_metrics", {"blurs_px": 0}),
        ("part_13_distribution_metrics", {"blurs_px": ["0"]}),
        ("part_13_distribution_metrics", {"blurs_px": [-1.0]}),
    ],
)
def test_what_is_not_drawn_is_refused_before_networks_are_looked_for(part, wrong, parameters):
    with pytest.raises(InputError, match=rf"^{next(iter(wrong))} "):
        run_cells(ROOT / "clusters_14" / f"{part}.ipynb", parameters | wrong)


def test_twice_gives_the_same_files(parameters, tmp_path):
    """And the step by hand in part 1 changes nothing of what the training leaves."""
    names = ("save_training_images", "train_autoencoder", "autoencoder_output", "clusters_14/part_1_training")
    parameters["clustering"] = "classifier"
    runs = []
    for _ in range(2):
        for name in names:
            run_cells(ROOT / f"{name}.ipynb", parameters)
        runs.append(contents(tmp_path / "out"))
    assert runs[0] == runs[1]
    assert {path.suffix for path in runs[0]} >= {".pth", ".pt", ".json", ".png", ".jpg", ".csv"}
    run = open_run("part_1_training", **parameters | {"out": str(tmp_path / "plain")})
    shutil.copytree(tmp_path / "out" / "kpc_ldm", tmp_path / "plain" / "kpc_ldm")
    networks = learn.new_networks(run)
    learn.clusters(run, networks.bank)
    learn.unet(run, "training", networks)
    by_hand = open_run("part_2_finetuning1", **parameters).networks("training")
    assert fingerprint(networks.unet) == fingerprint(by_hand.unet)
    assert fingerprint(networks.bank) == fingerprint(by_hand.bank)


def test_a_total_memoriser_is_told_where_the_split_leaks(parameters, tmp_path, capsys):
    """Held-out tiles that are copies would make the threshold 0, below which nothing lies."""
    tiles = noisy_tiles(22)
    copies = tiles[:2] ^ 1  # by one level, as exact copies over the split are refused before
    np.save(tmp_path / "tiles.npy", np.concatenate([tiles, copies]))  # the last two are held out
    paths = Paths(3, parameters["out"], "kmeans")
    settings = get_settings("demo", TINY)
    save_weights(make_vqvae(settings.autoencoder), paths.autoencoder, {})
    write_tiles(paths.generated, range(1, 7), as_tensor(tiles[4:10]))
    run_cells(ROOT / "clusters_14" / "part_14_memorisation.ipynb", parameters)
    assert "held-out tiles of tiles.npy are themselves copies of training tiles" in capsys.readouterr().out
    scores = read_json(paths.summary)["clusters_3_kmeans/part_14_memorisation"]
    assert scores["copies"] == 6
    assert "feature space" not in scores  # nothing to hold a likeness against
    assert scores["pixel space"]["closer"] == 1
    assert scores["pixel space"]["threshold"] == memorisation.COPY
    assert scores["pixel space"]["chance"] is None


def opening(name):
    """The code of a notebook up to where it looks for its modules."""
    book = nbformat.read(ROOT / f"{name}.ipynb", as_version=4)
    code = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    return re.match(r".*?^from pfiles[^\n]*", code, re.DOTALL | re.MULTILINE)[0]


@pytest.fixture(scope="module")
def openings(tmp_path_factory):
    """{(notebook, folder): the error of its opening in that folder, or None}, all from one process.

    Folders are "root", the notebook's "own" and "elsewhere". Before each opening the process forgets our modules.
    """
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    cases = {
        (name, place): (opening(name), str(folder))
        for name in NOTEBOOKS
        for place, folder in (("root", ROOT), ("own", (ROOT / name).parent), ("elsewhere", elsewhere))
    }
    (elsewhere / "cases.json").write_text(json.dumps(list(cases.values())))
    code = """if True:
        import importlib, json, os, runpy, sys, traceback
        from pathlib import Path
        path, errors = sys.path[1:], []
        for cells, folder in json.loads(Path("cases.json").read_text()):
            Path(cells_file := os.path.abspath(sys.argv[1])).write_text(cells)
            os.chdir(folder)
            sys.path[:] = ["", *path]  # as a kernel starts
            for module in [name for name in sys.modules if name.partition(".")[0] in ("pfiles", "MODULE")]:
                del sys.modules[module]
            importlib.invalidate_caches()  # of relative folders on the path
            try:
                runpy.run_path(cells_file)
                errors.append(None)
            except Exception:
                errors.append(traceback.format_exc())
            os.chdir(os.path.dirname(cells_file))
        Path("errors.json").write_text(json.dumps(errors))
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code, "cells.py"], cwd=elsewhere, env=environment, check=True)
    return dict(zip(cases, json.loads((elsewhere / "errors.json").read_text()), strict=True))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_another_working_directory(name, openings):
    """A notebook finds its modules from its own folder and from the repository's; elsewhere it says where to run it."""
    assert openings[name, "root"] is None
    assert openings[name, "own"] is None
    assert "# not found? Run this notebook in its own folder." in openings[name, "elsewhere"]  # as Jupyter shows it
    assert openings[name, "elsewhere"].splitlines()[-1] == "ModuleNotFoundError: No module named 'pfiles'"


def test_a_home_that_takes_no_file(parameters, tmp_path, monkeypatch):
    run_cells(ROOT / "save_training_images.ipynb", parameters)
    (tmp_path / "home").write_text("a file, below which nothing can be made")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("MPLCONFIGDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    elsewhere = {**parameters, "out": str(tmp_path / "elsewhere")}
    assert execute(ROOT / "save_training_images.ipynb", tmp_path / "executed.ipynb", elsewhere) is None
    assert contents(tmp_path / "elsewhere") == contents(tmp_path / "out")
