"""Tables as spreadsheets save them, each read as the same text; and written so that none runs a formula."""

import csv
import io
import unicodedata

import numpy as np
import pandas as pd
import pytest

from pfiles.errors import InputError
from pfiles.spreadsheet import as_csv, columns_of, file_name, number_in, numbers, parse_table, read_table, write_csv

ROWS = [["Slide", " Same as ", "mpp"], ["Übersicht, 1.svs", "=1+1", "0,25"], ["", "", ""], ["b\nc", "", "1.234,5"]]
EXPECTED = {"slide": ["Übersicht, 1.svs", "b\nc"], "same_as": ["=1+1", ""], "mpp": ["0,25", "1.234,5"]}


def saved(separator=",", encoding="utf-8", end="\r\n", form="NFC", before=""):
    text = io.StringIO()
    quoting = csv.QUOTE_ALL if end == "\r" else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting).writerows(ROWS)
    return unicodedata.normalize(form, before + text.getvalue()).encode(encoding)


@pytest.mark.parametrize(
    "content",
    [
        saved(),
        saved(";"),
        saved("\t"),
        saved(end="\n"),
        saved(end="\r"),
        saved(encoding="utf-8-sig"),
        saved(";", "cp1252"),
        saved("\t", "utf-16"),  # what Excel calls Unicode text
        saved(encoding="utf-16-le"),
        saved(encoding="utf-16-be"),
        saved(form="NFD"),
        saved("|", before="sep=|\r\n"),
        saved(";", before="\r\n;;\r\n"),
    ],
)
def test_a_table_is_the_same_however_it_was_saved(tmp_path, content):
    table = parse_table(content, "it")
    assert table.to_dict("list") == EXPECTED
    np.testing.assert_array_equal(numbers(table, "mpp", "it"), [0.25, 1234.5])
    (tmp_path / "a.csv").write_bytes(content)
    assert read_table(tmp_path / "a.csv").equals(table)
    assert columns_of(tmp_path / "a.csv") == list(EXPECTED)


def test_rows_know_their_lines_and_a_table_may_be_empty():
    assert parse_table(b"a,b\n\n1,\n,,\n3\n", "it").index.tolist() == [3, 5]
    assert parse_table(b"a,b\n\n1,\n3\n", "it")["b"].tolist() == ["", ""]
    assert parse_table(b"", "it").shape == (0, 0)
    assert parse_table(b"a;b\n", "it").shape == (0, 2)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a,b\n1,2,3\n", "Line 2 of it has more cells"),
        (b"slide,mpp\nx,0,25\n", "Line 2 of it has more cells"),
        (b"A,a\n1,2\n", "two columns called a"),
        (b'a,b\n"1,2\n', "cannot be read as a table"),
        (b"PK\x03\x04...", "is a workbook"),
        (b"a,b\n\0,1", "is no text"),
        (b"a,b\n1,2\n", "lacks the column c"),
    ],
)
def test_what_is_no_such_table_is_refused(content, sentence):
    with pytest.raises(InputError, match=sentence):
        parse_table(content, "it", ["c"] if "lacks" in sentence else [])


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="There is no table at"):
        read_table(tmp_path / "a.csv")
    with pytest.raises(InputError, match="is a folder"):
        read_table(tmp_path)


def test_numbers_with_a_point_or_a_comma():
    for cell, value in {
        "1": 1, "-0.5": -0.5, "0,5": 0.5, "1.234,5": 1234.5, "1,234.5": 1234.5, "1,234,567": 1234567, "2e-3": 0.002,
    }.items():  # fmt: skip
        assert number_in(cell) == value
    assert [number_in(cell) for cell in ("", "a", "nan", "inf", "1e999", "1_0", "1 0", "0x1")] == [None] * 8
    table = pd.DataFrame({"x": ["512", "12.0"], "y": ["1", "1,000"], "z": ["1", "1.5"]}, index=[2, 3])
    assert numbers(table, "x", "it", whole=True).tolist() == [512, 12]
    for column in "yz":
        with pytest.raises(InputError, match=f"Line 3 of it has .* as its {column}: write a whole number"):
            numbers(table, column, "it", whole=True)


PLAIN = "slide,x,mpp\na,1,0.5\nit's ü,-20,1e-1\n"


@pytest.mark.parametrize(
    "text",
    [
        PLAIN, PLAIN[:-1], PLAIN.replace("\n", "\r\n"), PLAIN.replace("a,", " a ,"), PLAIN.replace("0.5", '"0,5"'),
        PLAIN.replace(",", ";"), PLAIN.replace("\na", "\n\na"), PLAIN.replace("-20", "-20.0"),
        PLAIN.replace("\na,", "\n'=a,"),
        unicodedata.normalize("NFD", PLAIN), "\ufeff" + PLAIN, PLAIN.replace("slide", "Slide"), PLAIN + ",,\n",
    ],
)  # fmt: skip
def test_columns_of_numbers_are_the_same_however_they_are_read(text):
    """A plain table is read at once, others cell by cell; texts, numbers and lines come out alike."""
    table, cells = (parse_table(text.encode(), "it", kinds=kinds) for kinds in ({"x": int, "mpp": float}, None))
    assert table.index.tolist() == cells.index.tolist()
    assert table["slide"].tolist() == cells["slide"].tolist()
    assert numbers(table, "x", "it", whole=True).tolist() == numbers(cells, "x", "it", whole=True).tolist() == [1, -20]
    assert numbers(table, "mpp", "it").tolist() == numbers(cells, "mpp", "it").tolist() == [0.5, 0.1]


@pytest.mark.parametrize("cell", ["nan", "inf", "x", "", "1.5", "1_0", "9" * 30])
def test_what_is_no_number_is_named_by_its_line_in_a_plain_table_too(cell):
    table = parse_table(f"x,mpp\n1,2\n{cell},3\n".encode(), "it", kinds={"x": int, "mpp": float})
    with pytest.raises(InputError, match=f"Line 3 of it has '{cell}' as its x"):
        numbers(table, "x", "it", whole=True)


def test_long_and_short_rows_of_a_plain_table_are_seen():
    with pytest.raises(InputError, match="Line 2 of it has more cells"):
        parse_table(b"x,mpp\n1,2,3\n4\n", "it", kinds={"x": int})
    assert parse_table(b"x,a\n1\n", "it", kinds={"x": int})["a"].tolist() == [""]


TEXTS = [
    "=1+1",
    "+1",
    "-1",
    "@a",
    "\t=1",
    "\uff1d1",
    "'=1",
    "''=1",
    "it's",
    "a;=1+1;b",
    "a\t@x",
    "a\n=1",
    "a,-b",
    "a, -b",
    "ä",
]


def test_no_text_of_a_written_table_is_a_formula_and_each_comes_back():
    """Also where a spreadsheet splits the file at semicolons or tabs, as it does in many countries."""
    content = as_csv(pd.DataFrame({"=name": TEXTS, "n": -1.5}))
    for separator in ",;\t":
        for row in csv.reader(io.StringIO(content.decode(), newline=""), delimiter=separator):
            assert not [cell for cell in row if cell.startswith(("=", "+", "@", "\uff1d")) or cell == "-1"]
    table = parse_table(content, "it")
    assert list(table) == ["=name", "n"]
    assert table["=name"].tolist() == TEXTS
    assert table["n"].tolist() == ["-1.5"] * len(TEXTS)  # numbers stay numbers


def test_rows_that_have_names(tmp_path):
    write_csv(tmp_path / "a.csv", pd.DataFrame({"n": [1]}, index=pd.Index(["=x"], name="slide")), index=True)
    assert (tmp_path / "a.csv").read_bytes() == b"slide,n\n'=x,1\n"
    assert as_csv(pd.DataFrame(columns=["a", "b"])) == b"a,b\n"


def test_no_name_in_a_table_leads_out_of_a_folder():
    for text in ("a b%20&c", "..x", "-o", "ä", "標本\u30001", "क्\u200dष", "a\u00a0b"):  # wide and joined letters
        assert file_name(text, "it") == text
    for text in ("", ".", "..", "../x", "/x", "a/b", "a\\b", "a\nb", "a\0b", "a\x1b[2Jb", "a\u2028b", "a\udce4b"):
        with pytest.raises(InputError, match="no file should bear"):
            file_name(text, "it")
