"""From options to arguments: which folder is meant, and where a run's choices come from."""

import json
from argparse import Namespace

import pytest

from pfiles.__main__ import main
from pfiles.cli import options
from pfiles.errors import InputError

NOTHING = {"clustering": None, "data": None, "preset": None, "overrides": None, "clusters": None, "run_toml": None}
FILE = 'n_clusters = 10\npreset = "demo"\ndata = "tiles.npy"\n[overrides]\ntraining.epochs = 3\n'


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository in which notebooks made a run, whose choices stand in run.toml."""
    monkeypatch.setattr(options, "ROOT", tmp_path)
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


def test_the_file_counts_only_for_the_run_that_it_names(repository, capsys):
    other = repository / "runs" / "mine"
    other.mkdir(parents=True)
    (other / "summary.json").write_text("{}")
    assert options.run_choices(Namespace(**NOTHING), other) == {"overrides": {}}
    (repository / "run.toml").write_text('presets = "demo"\n')
    with pytest.raises(InputError, match="says presets: it may say"):
        options.run_choices(Namespace(**NOTHING), other)  # a file that is wrong is told, and not passed over
    (repository / "run.toml").write_text('out = "runs/mine"\npreset = "demo"\n')
    assert options.run_choices(Namespace(**NOTHING), other)["preset"] == "demo"
    assert options.run_choices(Namespace(**NOTHING | {"run_toml": ""}), other) == {"overrides": {}}
    assert options.run_choices(Namespace(**NOTHING), repository) == {"overrides": {}}


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
    assert options.generator_folder("someone/lung") == "someone/lung"
