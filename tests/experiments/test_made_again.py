"""Runs that are made again are counted; what makes them is what `tests/test_reproduce.py` tests."""

import pytest

from experiments import made_again
from pfiles.cli.notebooks import NOTEBOOKS
from pfiles.paths import read_json, write_json
from pfiles.reproduce import DIFFERENT, EQUAL
from pfiles.run import open_run


@pytest.mark.parametrize(("states", "equal", "status"), [((EQUAL, EQUAL), 3, 0), ((EQUAL, DIFFERENT), 2, 1)])
def test_runs_that_are_equal_to_the_bit_are_counted(states, equal, status, tmp_path, monkeypatch, capsys):
    """Two of three are equal in everything; the last one in all but one thing, where that is asked for."""

    def make(folder, number):
        of_run = states if number == 3 else (EQUAL, EQUAL)
        verdicts = [{"what": str(place), "state": state} for place, state in enumerate(of_run)]
        write_json(folder / "again" / "reproduction.json", {"changed": [], "verdicts": verdicts})

    monkeypatch.setattr(made_again, "_make_and_make_again", make)
    monkeypatch.setattr(made_again, "write_tiles", lambda path: None)
    assert made_again.main(["--runs", "3", "--out", str(tmp_path)]) == status
    said = f"{equal} of 3 runs were made again equal to the bit, 6 networks, tables, folders and numbers in all."
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert read_json(tmp_path / "made_again.json")["equal to the bit"] == equal


def test_runs_differ_and_are_tiny(tmp_path):
    made_again.write_tiles(tmp_path / "tiles.npy")
    choices = [made_again.choices_of(number, tmp_path / str(number) / "made") for number in range(1, 21)]
    assert {(run["n_clusters"], run["clustering"]) for run in choices} == {
        (k, clustering) for k in (2, 3, 4) for clustering in ("kmeans", "classifier")
    }
    assert len({run["seed"] for run in choices}) == 20
    assert {*made_again.NOTEBOOKS} < {*NOTEBOOKS}
    run = open_run("made_again", **choices[0], run_toml=False)  # refuses settings that are not known
    assert len(run.tiles.train) + len(run.tiles.test) == 45
