"""run.toml: the choices of a run in one place."""

import numpy as np
import pytest

from pfiles import choices
from pfiles.__main__ import main
from pfiles.choices import DEFAULTS, choose
from pfiles.cli.execute import run_cells
from pfiles.errors import InputError
from pfiles.paths import ROOT
from pfiles.run import open_run
from pfiles.settings import CLUSTERING, PRESETS
from tests.conftest import assert_refused, make_tiles


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a folder of notebooks, in which the test works."""
    monkeypatch.delenv("KPC_RUN_TOML")
    monkeypatch.setattr(choices, "ROOT", tmp_path)
    (tmp_path / "clusters_10").mkdir()
    monkeypatch.chdir(tmp_path / "clusters_10")
    return tmp_path


def test_without_a_file_all_is_as_recommended_with_k_means(repository, capsys):
    assert choose({"preset": None}) == DEFAULTS | {"preset": "recommended", "clustering": "kmeans"}
    assert choose({"preset": "demo", "overrides": {}, "n_clusters": 10}) == DEFAULTS | {
        "preset": "demo", "clustering": "kmeans", "n_clusters": 10,
    }  # fmt: skip
    assert capsys.readouterr().out == ""


def test_a_preset_names_its_clustering_and_one_line_changes_it(repository):
    (repository / "run.toml").write_text('preset = "paper"')
    run = open_run("test")
    assert (run.preset, run.clustering, run.settings) == ("paper", "classifier", PRESETS["paper"])
    (repository / "run.toml").write_text('preset = "paper"\nclustering = "kmeans"')
    assert open_run("test").clustering == "kmeans"
    assert open_run("test", preset="demo").clustering == "kmeans"
    assert CLUSTERING.keys() == PRESETS.keys()
    with pytest.raises(InputError, match="Unknown preset 'papers': choose one of paper, recommended, demo"):
        open_run("test", preset="papers")


def test_notebook_over_folder_over_repository_over_default(repository, capsys):
    (repository / "run.toml").write_text(
        'preset = "demo"\nclustering = "kmeans"\nseed = 1\n[overrides]\ntraining.epochs = 3\n'
        '"sampling.steps" = 9\nautoencoder.vqvae = {num_heads = 2}\nimage_size_px = 64\n'
    )
    (repository / "clusters_10" / "run.toml").write_text("n_clusters = 10\nseed = 2\n[overrides]\ntraining.epochs = 4")
    found = choose({"n_clusters": None, "clustering": "classifier", "overrides": {"sampling.steps": 7}, "data": None})
    assert found == {
        "n_clusters": 10, "clustering": "classifier", "data": None, "preset": "demo", "seed": 2, "out": None,
        "overrides": {
            "training.epochs": 4, "sampling.steps": 7, "autoencoder.vqvae": {"num_heads": 2}, "image_size_px": 64
        },
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert f"From {repository / 'run.toml'}: preset = 'demo', clustering = 'kmeans', seed = 1" in printed
    assert f"From {repository / 'clusters_10' / 'run.toml'}: n_clusters = 10" in printed
    assert printed.endswith("Here clustering = 'classifier' counts instead.\n")
    assert DEFAULTS["overrides"] == {}
    run = open_run("test", clustering="classifier")
    assert (run.n_clusters, run.preset, run.seed, run.settings.training.epochs) == (10, "demo", 2, 4)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("presets = 'demo'", "says presets: it may say n_clusters"),
        ("preset = demo", "cannot be read as TOML"),
        ("overrides = 3", "must say .overrides."),
    ],
)
def test_what_is_wrong_is_said(text, sentence, repository):
    (repository / "run.toml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        choose({})
    (repository / "run.toml").write_text("[overrides]\ntraining.epoch = 2")
    with pytest.raises(InputError, match="Unknown setting 'epoch'"):
        open_run("test")


def test_a_notebook_and_a_command_read_it(tmp_path, monkeypatch, capsys):
    """The same file, given by the environment; the command's own options count more."""
    np.save(tmp_path / "tiles.npy", make_tiles(30))
    lines = [f'data = "{tmp_path / "tiles.npy"}"', 'preset = "demo"', f'out = "{tmp_path / "out"}"', "[overrides]"]
    lines += ["image_size_px = 48", "max_train_tiles = 24", "sampling.num_generated = 5"]
    (tmp_path / "mine.toml").write_text("\n".join(lines))
    monkeypatch.setenv("KPC_RUN_TOML", str(tmp_path / "mine.toml"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(ROOT)
    run_cells(ROOT / "save_training_images.ipynb", {})
    assert len(list((tmp_path / "out" / "org").iterdir())) == 6  # and the note
    assert main(["cells", "save_training_images", "--out", str(tmp_path / "other"), "--set", "max_train_tiles=20"]) == 0
    assert {path.name for path in (tmp_path / "other" / "org").glob("*.png")} == {
        f"{i}.png" for i in (1, 6, 11, 15, 20)
    }
    monkeypatch.setenv("KPC_RUN_TOML", str(tmp_path / "none.toml"))
    capsys.readouterr()
    assert_refused(["run", "--out", str(tmp_path / "third")], capsys, tmp_path / "third")
