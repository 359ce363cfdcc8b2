"""From options to arguments: which folder is meant, and where a run's choices come from."""

import json
from argparse import Namespace

import pytest

from pfiles import choices
from pfiles.__main__ import main
from pfiles.cli import opening, options
from pfiles.errors import InputError
from pfiles.tiles import dataset

NOTHING = {"clustering": None, "data": None, "preset": None, "overrides": None, "clusters": None}
FILE = 'n_clusters = 10\npreset = "demo"\ndata = "tiles.npy"\n[overrides]\ntraining.epochs = 3\n'


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository in which notebooks made a run, whose choices stand in run.toml."""
    monkeypatch.setattr(options, "ROOT", tmp_path)
    monkeypatch.delenv("KPC_RUN_TOML")
    (tmp_path / "run.toml").write_text(FILE)
    (tmp_path / "summary.json").write_text('{"train_autoencoder": {}}')
    return tmp_path


def test_a_run_of_notebooks_is_as_run_toml_says(repository, capsys):
    choices = options.run_choices(Namespace(**NOTHING), repository)
    assert choices == {
        "n_clusters": 10, "preset": "demo", "data": str(repository / "tiles.npy"), "overrides": {"training.epochs": 3}
    }  # fmt: skip
    assert capsys.readouterr().out.startswith(f"From {repository / 'run.toml'}: n_clusters = 10, preset = 'demo'")
    more = Namespace(**NOTHING | {"clusters": 12, "overrides": ["training.epochs=4", "sampling.steps=5"]})
    choices = options.run_choices(more, repository)
    assert choices["n_clusters"] == 12
    assert choices["overrides"] == {"training.epochs": 4, "sampling.steps": 5}


def test_the_file_counts_only_for_the_run_that_it_names(repository, monkeypatch):
    other = repository / "runs" / "mine"
    other.mkdir(parents=True)
    (other / "summary.json").write_text("{}")
    assert options.run_choices(Namespace(**NOTHING), other) == {"overrides": {}}
    (repository / "run.toml").write_text('presets = "demo"\n')
    with pytest.raises(InputError, match="says presets: it may say"):
        options.run_choices(Namespace(**NOTHING), other)  # a file that is wrong is told, and not passed over
    (repository / "run.toml").write_text('out = "runs/mine"\npreset = "demo"\n')
    assert options.run_choices(Namespace(**NOTHING), other)["preset"] == "demo"
    assert options.run_choices(Namespace(**NOTHING), repository) == {"overrides": {}}
    monkeypatch.setenv("KPC_RUN_TOML", "")
    assert options.run_choices(Namespace(**NOTHING), other) == {"overrides": {}}


def test_a_run_of_a_command_is_as_its_summary_says(repository, capsys):
    (repository / "summary.json").write_text(json.dumps({"run": {"n_clusters": 6, "preset": "recommended"}}))
    assert options.run_choices(Namespace(**NOTHING), repository) == {"n_clusters": 6, "preset": "recommended"}
    assert capsys.readouterr().out == ""


def test_a_summary_that_is_none_is_refused(repository):
    (repository / "summary.json").write_text('{"run": 3}')
    with pytest.raises(InputError, match='holds something else than a run under "run"'):
        options.run_choices(Namespace(**NOTHING), repository)


REFUSED = [["--number", "1000001"], ["--number", "0"], ["--out", "file"], ["--out", "file/x"]]


@pytest.mark.parametrize("arguments", REFUSED)
def test_draw_refuses_before_it_draws(arguments, tmp_path, monkeypatch, capsys):
    """A file in the place of its folder would lose all tiles once they are drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pfiles.drawing.generator.Generator.draw", lambda *args, **kwargs: pytest.fail("it draws"))
    (tmp_path / "file").write_text("keep me")
    assert main(["draw", "--number", "2", "--out", "out", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_starter_is_the_built_in_one_whatever_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("starter", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text("{}")
    assert options.run_folder("starter") is None
    assert options.generator_folder("starter") == "starter"
    assert options.run_folder("mine") == options.generator_folder("mine") == tmp_path / "mine"
    assert options.generator_folder("someone/lung") == tmp_path / "someone/lung"


def test_options_start_here_and_all_else_at_the_repository(tmp_path, monkeypatch):
    """One relative path, which is there in both places, means one of them alone."""
    repository, here = tmp_path / "repository", tmp_path / "here"
    for folder in (repository, here):
        (folder / "mytiles").mkdir(parents=True)
    for module in (options, dataset, choices):
        monkeypatch.setattr(module, "ROOT", repository)
    monkeypatch.chdir(here)
    monkeypatch.setenv("KPC_DATA", "mytiles")
    assert options.resolve_data("mytiles") == str(here / "mytiles")
    assert options.resolve_data(None) == options.resolve_data(None, "mytiles") == str(repository / "mytiles")
    assert options.resolve_data("embedded") == "embedded"
    assert options.generator_folder("mytiles") == here / "mytiles"
    assert options.parse_overrides(["start_from=mytiles"]) == {"start_from": str(here / "mytiles")}
    for name in ("starter", None):
        assert options.parse_overrides([f"start_from={json.dumps(name)}"]) == {"start_from": name}


def test_a_run_is_checked_and_made_with_the_same_data(tmp_path, monkeypatch):
    """As the notebooks take KPC_DATA: its folder in the repository, not one of that name where the command began."""
    opened = {}

    def stop(notebook, **parameters):
        opened.update(parameters)
        raise InputError("Enough.")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mytiles").mkdir()
    monkeypatch.setenv("KPC_DATA", "mytiles")
    monkeypatch.setattr(opening, "open_run", stop)
    assert main(["run", "--preset", "demo", "--out", "out"]) == 2
    assert opened["data"] == str(options.ROOT / "mytiles")
