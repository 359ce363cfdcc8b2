"""The notebooks run by papermill and by nbconvert, as a scheduler runs them."""

import nbformat
import numpy as np
import papermill
import pytest
from nbconvert.preprocessors import ExecutePreprocessor

from pfiles.paths import ROOT
from tests.conftest import TINY, make_tiles


@pytest.fixture
def run_notebook(tmp_path, monkeypatch):
    """Runs a notebook with parameters; returns what its first cell that prints anything printed."""
    monkeypatch.setenv("KPC_RUN_TOML", "")

    def run(name, **parameters):
        notebook = ROOT / f"{name}.ipynb"
        book = papermill.execute_notebook(
            notebook, tmp_path / "executed.ipynb", parameters, cwd=notebook.parent, progress_bar=False
        )
        return next(output.text for cell in book.cells for output in cell.get("outputs", ()) if "text" in output)

    return run


def test_papermill_cuts_slides(tmp_path, run_notebook):
    printed = run_notebook("tile_slides", out=str(tmp_path / "tiles"), per_slide=24, pseudonyms=True)
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert lines[:3] == [
        "slides = ['pfiles/tiles/embedded'] parameters cell", f"out = {str(tmp_path / 'tiles')!r} papermill",
        "mpp = 1.0 parameters cell",
    ]  # fmt: skip
    assert len(np.load(tmp_path / "tiles" / "tiles.npy")) == 24


def test_papermill_opens_a_run(tmp_path, run_notebook):
    np.save(tmp_path / "tiles.npy", make_tiles(30))
    choices = {"data": str(tmp_path / "tiles.npy"), "preset": "demo", "out": str(tmp_path / "out"), "overrides": TINY}
    printed = run_notebook("save_training_images", choices=choices)
    assert [" ".join(line.split()) for line in printed.splitlines() if line.startswith(("preset", "image_size"))] == [
        "preset = 'demo' papermill", "image_size_px = 48 papermill"
    ]  # fmt: skip
    assert len([*(tmp_path / "out" / "org").glob("*.png")]) == TINY["sampling.num_generated"]


@pytest.mark.parametrize(
    ("name", "parameters", "sentence"),
    [
        ("tile_slides", {"mpp": "1"}, "mpp must be a number, such as 1.0, but is '1'."),
        ("choose_k", {"seed": 3}, "This notebook has no parameter seed: write choices = {'seed': 3}."),
        ("clusters_14/part_5_latent_space_extraction", {"choices": {"presets": "demo"}}, "A run has no choice presets"),
    ],
)
def test_papermill_is_told_in_one_sentence_what_is_wrong(tmp_path, run_notebook, name, parameters, sentence):
    with pytest.raises(papermill.PapermillExecutionError) as error:
        run_notebook(name, **parameters)
    assert error.value.ename == "InputError"
    assert error.value.evalue.startswith(sentence)
    assert [path.name for path in tmp_path.iterdir()] == ["executed.ipynb"]


def test_nbconvert_executes_a_notebook(tmp_path, monkeypatch):
    np.save(tmp_path / "tiles.npy", make_tiles(30, 64))
    lines = ['preset = "demo"', f'out = "{tmp_path / "out"}"', "[overrides]", "image_size_px = 64"]
    (tmp_path / "mine.toml").write_text("\n".join([*lines, "sampling.num_generated = 5"]))
    monkeypatch.setenv("KPC_RUN_TOML", str(tmp_path / "mine.toml"))
    monkeypatch.setenv("KPC_DATA", str(tmp_path / "tiles.npy"))
    book = nbformat.read(ROOT / "save_training_images.ipynb", as_version=4)
    ExecutePreprocessor().preprocess(book, {"metadata": {"path": str(ROOT)}})
    printed = next(output.text for cell in book.cells for output in cell.get("outputs", ()) if "text" in output)
    sources = {line.split(" = ")[0]: line.split("  ")[-1].strip() for line in printed.splitlines() if " = " in line}
    file = str(tmp_path / "mine.toml")
    assert (sources["preset"], sources["image_size_px"]) == (file, file)
    assert (sources["data"], sources["seed"]) == ("environment variable KPC_DATA", "default")
