"""A reader study of a run: made, answered and scored, by command and in the notebook."""

import json
import re

import numpy as np
import pytest

from pfiles import reader_study
from pfiles.__main__ import main
from pfiles.cli.execute import run_cells
from pfiles.errors import InputError
from pfiles.paths import ROOT, read_json
from tests.conftest import OVERRIDES, K, make_tiles, opened, parameters, tiny_options, train
from tests.study.conftest import answers_of, perfect


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with tiles, of which every eleventh part is held out, and a run trained on some."""
    folder = tmp_path_factory.mktemp("run")
    np.save(folder / "tiles.npy", make_tiles(330))
    train(opened(folder, clustering="kmeans"))
    return folder


def command(folder, out, *more):
    return [
        "reader-study", "--run", str(folder / "out"), "--data", str(folder / "tiles.npy"), "--preset", "demo",
        "--clusters", str(K), "--clustering", "kmeans", *tiny_options(), "--out", str(out), *more,
    ]  # fmt: skip


def give_back(folder, readers, judge=perfect):
    key = json.loads((folder / "key.json").read_text())
    for reader in readers:
        (folder / f"answers_reader_{reader}.json").write_text(json.dumps(answers_of(key, reader, judge)))
    return key


def test_pages_are_made_answered_and_scored(trained, tmp_path, capsys):
    folder = tmp_path / "study"
    assert main(command(trained, folder, "--tiles", "20", "--readers", "2")) == 0
    assert {path.name for path in folder.iterdir()} == {"key.json", "reader_1.html", "reader_2.html"}
    key = give_back(folder, (1, 2))
    judged = [truth for truth in key["trials"] if truth["repeats"] is None]
    sources = [truth["source"] for truth in judged if truth["kind"] in ("real", "blurred")]
    assert len(set(sources)) == len(sources) == 11  # no held-out tile has two parts
    assert all(re.fullmatch(r"held-out tile \d+", source) for source in sources)
    requested = [truth["cluster"] for truth in judged if truth["kind"] == "generated"]
    assert requested == sorted(requested)
    assert np.bincount(requested, minlength=K + 1)[1:].tolist() == [4, 3, 3]
    capsys.readouterr()

    assert main(["reader-study", "--score", *map(str, sorted(folder.glob("*.json")))]) == 0
    printed = capsys.readouterr().out
    assert "2 readers judged 10 generated and 10 real tiles of 48 px" in printed
    assert "Decided: readers tell generated tiles from real ones" in printed
    assert {path.suffix for path in (folder / "score").iterdir()} == {".html", ".json", ".png"}
    page = (folder / "score" / "reader_study.html").read_text()
    assert page.count("<title>Reader study</title>") == 1
    assert page.count("data:image/png") == 1

    assert main(command(trained, folder)) == 2
    assert "is there already, perhaps with answers: name a new folder." in capsys.readouterr().err
    with pytest.raises(InputError, match="belongs to another run"):
        reader_study.require_study(
            opened(trained, clustering="kmeans", overrides=OVERRIDES | {"sampling.steps": 3}), folder
        )


def test_wrong_options_make_no_folder(trained, tmp_path, capsys):
    for options, message in (
        (["--tiles", "60"], "The study needs 36 held-out tiles, but the run has 30: ask for fewer --tiles."),
        (["--tiles", "7"], "--tiles must be an even number from 20 to 1000, but is 7."),
        (["--readers", "0"], "--readers must be from 1 to 100, but is 0."),
        (["--scale", "90"], "--scale must be from 0.5 to 20, but is 90."),
        (["--score", "x.json"], "takes either --run, for new pages, or --score"),
    ):
        assert main(command(trained, tmp_path / "study", *options)) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "study").exists()
    assert main(["reader-study"]) == 2
    assert main(["reader-study", "--score", str(tmp_path / "none.json")]) == 2
    assert "There is no file" in capsys.readouterr().err


@pytest.mark.parametrize("question", ["real", "cluster"])
def test_the_notebook_makes_pages_once_and_scores_what_came_back(trained, capsys, question):
    notebook = ROOT / "clusters_14" / "part_18_reader_study.ipynb"
    injected = parameters(trained, clustering="kmeans") | {"question": question, "tiles": 20, "readers": 2}
    run_cells(notebook, injected)
    assert "No answers are there yet." in capsys.readouterr().out
    folder = opened(trained, clustering="kmeans").paths.study / question
    pages = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    judge = perfect if question == "real" else lambda truth: (str(truth["cluster"]), 2)
    give_back(folder, (1, 2), judge)
    run_cells(notebook, injected)
    assert {path: path.stat().st_mtime_ns for path in pages} == pages
    scores = read_json(trained / "out" / "summary.json")[f"clusters_{K}_kmeans/part_18_reader_study"]
    assert (scores["readers"], scores["tiles"]) == (2, 20)
    name = {"real": "AUC", "cluster": "generated"}[question]
    assert scores[name]["value"] == 1
