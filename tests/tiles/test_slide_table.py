"""The user's table of slides: rows that say the same, and rows that do not."""

from pathlib import Path

import pandas as pd
import pytest

from pfiles.errors import InputError
from pfiles.tiles.gather import Gathered, SlideFile
from pfiles.tiles.slide_table import match_rows, print_slides, read_slide_table


def test_two_rows_that_say_the_same_of_a_slide_are_one(tmp_path):
    (tmp_path / "t.csv").write_text("slide,mpp\na.svs,0.250\na.svs,0.250\nfolder/a.SVS,0.25\n")
    assert read_slide_table(tmp_path / "t.csv") == {"a.svs": {"slide": "a.svs", "mpp": "0.25"}}
    (tmp_path / "t.csv").write_text("slide,mpp\na.svs,0.25\na.svs,0.5\n")
    with pytest.raises(InputError, match=r"the slide a\.svs in two rows the mpp '0\.25' and '0\.5': keep one"):
        read_slide_table(tmp_path / "t.csv")


SLIDES = [SlideFile(Path("a.svs"), "a"), SlideFile(Path("b.tif"), "b_page1"), SlideFile(Path("b.tif"), "b_page2", 2)]


def rows_of(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    gathered = Gathered(SLIDES)
    return match_rows(read_slide_table(path), gathered, path), gathered.notes


def test_a_page_has_its_own_row_or_that_of_its_file(tmp_path):
    rows, notes = rows_of(tmp_path, "slide,patient\na,p1\nb.tif,p2\nb_page2,p3\nA.SVS,p4\nlost,p5\n")
    assert {name: row["patient"] for name, row in rows.items()} == {"a": "p1", "b_page1": "p2", "b_page2": "p3"}
    assert notes == [f"{tmp_path / 't.csv'} names slides that are not asked for: A.svs, one of 2."]


def test_slides_are_printed_in_their_order_and_those_left_out_after_them(capsys):
    left_out = {f"{place}.bmp": "not read" for place in (3, 1, 2, 9, 0)}
    rows = pd.DataFrame({"slide": ["b", "a"], "x": 0, "y": 0, "side": 64, "mpp": 1.0})
    notes = {name: {"scale": {"mpp": 0.5, "source": "file"}} for name in "ba"}
    print_slides(["b", "a"], rows, {}, notes, left_out, show_split=False)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:-1]] == ["b", "a", *left_out]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,patient\na,p1\na.svs,p2\nb,p3\n", "the slide a in two rows the patient 'p1' and 'p2': keep one"),
        ("slide,patient\na,p1\nb,\n", r"gives no patient for b\.tif, b\.tif: add it"),
        ("slide,patient\na,p1\nb,N/A\n", r"gives no patient for b\.tif, b\.tif: add it"),
        ("slide,patient\na,p1\nlost,p2\n", r"gives no patient for b\.tif, b\.tif, but others that are not there, lost"),
    ],
)
def test_what_a_table_leaves_open_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        rows_of(tmp_path, text)
