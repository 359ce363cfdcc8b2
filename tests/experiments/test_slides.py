"""Slides for those who have none: what docs/slides.md prints runs on them."""

import re
import shlex

import pytest

from experiments import slides
from pfiles.__main__ import main
from pfiles.errors import InputError
from pfiles.paths import ROOT
from pfiles.tiles.sources import read_tile_table

pytestmark = pytest.mark.slow


def test_the_first_command_of_the_page_runs_on_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert slides.main(["--out", "."]) == 0
    command = re.search(r"python -m pfiles (tile slides .*)", (ROOT / "docs" / "slides.md").read_text())[1]
    assert main(shlex.split(command)) == 0
    rows = read_tile_table(tmp_path / "tiles" / "tiles.csv")
    assert rows.slide.nunique() == 12
    assert {*rows.patient} == {f"patient_{number}" for number in range(1, 7)}
    assert slides.main(["--out", "."]) == 2  # files are there


def test_no_file_of_yours_is_replaced(tmp_path):
    (tmp_path / "slides.csv").write_text("mine")
    with pytest.raises(InputError, match=r"slides\.csv was not made by this command"):
        slides.make_slides(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["slides.csv"]
