"""run.toml: the choices of a run in one place."""

import IPython
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell

from pfiles import choices
from pfiles.__main__ import main
from pfiles.choices import DEFAULTS, resolve_choices
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
    assert resolve_choices({"preset": None}) == DEFAULTS | {"preset": "recommended", "clustering": "kmeans"}
    assert resolve_choices({"preset": "demo", "overrides": {}, "n_clusters": 10}) == DEFAULTS | {
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
    choices = resolve_choices(
        {"n_clusters": None, "clustering": "classifier", "overrides": {"sampling.steps": 7}, "data": None}
    )
    assert choices == {
        "n_clusters": 10, "clustering": "classifier", "data": None, "preset": "demo", "seed": 2, "out": None,
        "overrides": {
            "training.epochs": 4, "sampling.steps": 7, "autoencoder.vqvae": {"num_heads": 2}, "image_size_px": 64
        },
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert f"From {repository / 'run.toml'}: preset = 'demo', clustering = 'kmeans', seed = 1" in printed
    assert f"From {repository / 'clusters_10' / 'run.toml'}: n_clusters = 10" in printed
    assert "Here clustering = 'classifier' counts instead.\n" in printed
    assert "Here sampling.steps = 7 counts instead.\n" in printed
    resolve_choices({"overrides": {"training.epochs": 4, "sampling.guidance": 2.0, "precision": "fp32"}})
    assert capsys.readouterr().out.endswith("Here sampling.guidance = 2.0, precision = 'fp32' is set besides.\n")
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
        resolve_choices({})
    (repository / "run.toml").write_text("[overrides]\ntraining.epoch = 2")
    with pytest.raises(InputError, match="Unknown setting 'epoch'"):
        open_run("test")


def test_a_notebook_and_a_command_read_it(tmp_path, monkeypatch, capsys):
    """The same file, given by the environment; the command's own options count more."""
    np.save(tmp_path / "tiles.npy", make_tiles(30))
    lines = [f'data = "{tmp_path / "tiles.npy"}"', 'preset = "demo"', f'out = "{tmp_path / "out"}"', "[overrides]"]
    lines += ["image_size_px = 48", "max_train_tiles = 24", "sampling.num_generated = 5"]
    lines += ["autoencoder.vqvae = {down_channels = [8, 8, 8], norm_channels = 8, num_heads = 4}"]
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


@pytest.fixture
def notebook(repository, monkeypatch):
    """A notebook's cells, run in turn."""
    shell = InteractiveShell(colors="nocolor")
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)

    def run(*cells):
        for cell in cells:
            result = shell.run_cell(cell, store_history=True)
        return result.error_in_exec

    return run


OPEN = "from pfiles import open_run\nrun = open_run('part_6_conditional_generation', n_clusters, **choices)"
CELL = "n_clusters = 14  # of the paper\nchoices = {}  # such as\nonly = None\n"


def test_a_notebook_shows_each_value_and_where_it_comes_from(notebook, repository, monkeypatch, capsys):
    (repository / "run.toml").write_text(
        "seed = 3\nn_clusters = 6\n[overrides]\ntraining.epochs = 3\nimage_size_px = 64"
    )
    monkeypatch.setenv("KPC_DATA", "tiles.npy")
    injected = "# Parameters\nchoices = {'preset': 'demo', 'overrides': {'training.epochs': 9}}\nonly = [1, 5]\n"
    assert notebook(CELL, injected, OPEN) is None
    lines = dict(line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    file = str(repository / "run.toml")
    assert {value.strip(): source.strip() for value, source in lines.items()} == {
        "n_clusters = 14": f"parameters cell, not 6 of {file}", "clustering = 'kmeans'": "preset",
        "preset = 'demo'": "papermill",
        "data = 'tiles.npy'": "environment variable KPC_DATA", "seed = 3": file, "out = None": "default",
        "training.epochs = 9": f"papermill, not 3 of {file}", "image_size_px = 64": file, "only = [1, 5]": "papermill",
    }  # fmt: skip
    assert notebook("run = open_run('part_6_conditional_generation', n_clusters, **choices)") is None  # once more
    assert capsys.readouterr().out.startswith(f"From {file}: seed = 3")


@pytest.mark.parametrize(
    ("injected", "sentence"),
    [
        ("clusters = 10", "This notebook has no parameter clusters: it has n_clusters, choices, only, blurs, shares."),
        ("preset = 'demo'", "This notebook has no parameter preset: write choices = {'preset': 'demo'}."),
        ("choices = {'presets': 'demo'}", "A run has no choice presets: it has n_clusters, clustering, data, preset, "),
        ("choices = {'seed': '7'}", "seed must be a whole number, such as 765, but is '7'."),
        ("choices = {'overrides': ['a']}", "overrides must be values by name"),
        ("choices = {'preset': 'demos'}", "demos"),
        ("blurs = '2'", "blurs must be a number, such as 1.5, but is '2'."),
        ("shares = '0.5'", "shares must be a list, such as (0.5, 0.7), but is '0.5'."),
        ("shares = [1, '0.7']", "Each of shares must be a number, such as 0.5, but one is '0.7'."),
        ("n_clusters = 'ten'", "n_clusters must be a whole number of at least 2"),
    ],
)
def test_what_a_program_gives_a_notebook_wrongly_is_one_sentence(notebook, injected, sentence):
    error = notebook(CELL + "blurs = 1.5\nshares = (0.5, 0.7)\n", f"# Parameters\n{injected}\n", OPEN)
    assert isinstance(error, InputError)
    assert sentence in str(error)


def test_a_notebook_that_opens_no_run_checks_its_parameters(notebook, capsys):
    check = "from pfiles.choices import require_parameters\nrequire_parameters()"
    assert notebook("size = 64\nmpp = 1.0", "# Parameters\nmpp = 2\n", check) is None
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["size = 64", "mpp = 2"]
    error = notebook("size = 64\nmpp = 1.0", "# Parameters\nsizes = 2", check)
    assert "no parameter sizes: it has size, mpp" in str(error)
    assert notebook("import os", "# Parameters\nanything = 2", check) is None  # no cell of parameters is before it
