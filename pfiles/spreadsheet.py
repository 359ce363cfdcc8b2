"""Tables as people keep them: read as any spreadsheet saves them, and written so that none runs a formula.

A cell is text. As written by `as_csv`, a text that a spreadsheet would take for a formula begins with ', which
`parse_table` takes away again.
"""

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pfiles.errors import InputError
from pfiles.paths import atomic_write

SEPARATORS = ",;\t"
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how .xlsx, .ods and .xls begin
# A formula begins a cell, also where a spreadsheet splits the text at a separator that is not the file's.
BEGIN, FORMULA = "(^|[,;\t\r\n])", "(?='*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20])"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
CONTROL = ("Cc", "Cs", "Zl", "Zp")  # kinds of characters that end lines, steer terminals or are no text
THOUSANDS = re.compile(r"[+-]?\d{1,3}[.,]\d{3}")  # 1,000 may be one or a thousand


def read_table(path: Path, needed: Sequence[str] = (), kinds: Mapping[str, type] | None = None) -> pd.DataFrame:
    """The table in a file, see `parse_table`; InputError if there is none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"There is no table at {path}: correct the path.") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder, not a table: name a CSV file.") from error
    return parse_table(content, str(path), needed, kinds)


def parse_table(
    content: bytes, subject: str, needed: Sequence[str] = (), kinds: Mapping[str, type] | None = None
) -> pd.DataFrame:
    """Columns of text by their names in lower case, indexed by the number of the row's line in the file.

    Cells are separated by comma, semicolon or tab and encoded as UTF-8, UTF-16 or Windows-1252, whichever the file
    shows. Space around cells and rows without text are dropped; accented letters are composed (Unicode NFC), as one
    system writes them in two parts and another in one. subject: what the table is called in errors. needed: columns
    without which it is refused. kinds: int or float of columns that are read as numbers at once where the table is
    plain, which saves time and memory; `numbers` takes both. InputError if it is no such table.
    """
    if kinds and (table := _plain_table(content, needed, kinds)) is not None:
        return table
    rows = _rows(content, subject)
    _, columns = next(rows, (0, []))
    doubled = next((name for i, name in enumerate(columns) if name and name in columns[:i]), None)
    if doubled:
        raise InputError(f"{subject} has two columns called {doubled}: keep one.")
    if missing := [name for name in needed if name not in columns]:
        raise InputError(f"{subject} lacks the column {' and '.join(missing)}: add it, or correct the first line.")
    lines: list[int] = []
    texts: list[list[str]] = [[] for _ in columns]
    for line, cells in rows:
        lines.append(line)
        for text, cell in zip(texts, cells, strict=True):
            text.append(cell)
    named = {name: text for name, text in zip(columns, texts, strict=True) if name}
    return pd.DataFrame(named, index=pd.Index(lines, dtype=int), dtype=object)


def _plain_table(content: bytes, needed: Sequence[str], kinds: Mapping[str, type]) -> pd.DataFrame | None:
    """What `parse_table` returns, with numbers in the columns of `kinds`; None if its rules need a closer look.

    Plain is a table in UTF-8 with commas as `as_csv` writes it, without quotes, escapes, empty rows or rows that are
    longer or shorter than the first.
    """
    head, _, body = content.partition(b"\n")
    columns = head.decode("utf-8", "replace").strip().split(",")
    is_plain = columns == ["_".join(name.casefold().split()) for name in columns] and len({*columns}) == len(columns)
    lines = body.count(b"\n") + (not body.endswith(b"\n"))
    is_plain &= "" not in columns and not {*needed} - {*columns} and not re.search(b"[;\t\xef]", head)
    if not is_plain or body.count(b",") != lines * (len(columns) - 1):
        return None
    if re.search(rb"\"|\0|[\r\n,]'|^'", body):
        return None
    types = {name: kinds.get(name, str) for name in columns}
    try:
        with np.errstate(invalid="ignore"):
            table = pd.read_csv(
                io.BytesIO(body), names=columns, dtype=types, na_filter=False, skip_blank_lines=False, encoding="utf-8"
            )
    except (ValueError, OverflowError):  # pandas' own errors are such as well
        return None
    of_floats = [name for name in columns if types[name] is float]
    is_whole = len(table) == lines and isinstance(table.index, pd.RangeIndex)
    if not is_whole or not np.isfinite(table[of_floats]).all(axis=None):
        return None
    for name in (name for name in columns if types[name] is str):
        if any(type(text) is not str or text != composed(text.strip()) for text in table[name].unique()):
            return None
        table[name] = table[name].astype(object)
    return table.set_axis(pd.RangeIndex(2, len(table) + 2))


def columns_of(path: Path) -> list[str]:
    """The names of a table's columns, whose rows are not looked at."""
    return next(_rows(path.read_bytes(), str(path)), (0, []))[1]


def read_grid(path: Path) -> list[list[str]]:
    """The cells of each line with text in a file without names of columns, see `parse_table`."""
    text = _decoded(path.read_bytes(), str(path))
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text), strict=True)
        rows = [[_from_cell(cell.strip()) for cell in line] for line in lines]
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as a table ({error}): save it as CSV in UTF-8.") from error
    return [row for row in rows if any(row)]


def _rows(content: bytes, subject: str) -> Iterator[tuple[int, list[str]]]:
    """The number of the line and the cells of each row that holds text, as many cells as in the first row; that one
    holds the names of the columns."""
    text = _decoded(content, subject)
    escaped = "'" in text
    columns: list[str] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text), strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells) or (not columns and re.fullmatch("sep=.?", "".join(cells))):
                continue
            if escaped:
                cells = [_from_cell(cell) for cell in cells]
            if not columns:
                columns = cells = ["_".join(cell.casefold().split()) for cell in cells]
            if len(cells) != len(columns):
                if any(cells[len(columns) :]):
                    raise InputError(
                        f"Line {reader.line_num} of {subject} has more cells than there are columns: put a text or "
                        "number that holds a comma in quotes, or separate cells by semicolons."
                    )
                cells = (cells + [""] * len(columns))[: len(columns)]
            yield reader.line_num, cells
    except csv.Error as error:
        raise InputError(f"{subject} cannot be read as a table ({error}): save it as CSV in UTF-8.") from error


def composed(text: str) -> str:
    """The text with each accented letter as one character, so that names from any system are equal."""
    return unicodedata.normalize("NFC", text)


def _decoded(content: bytes, subject: str) -> str:
    if content.startswith(WORKBOOKS):
        raise InputError(f"{subject} is a workbook, not a CSV file: save it as CSV in UTF-8.")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]
    elif b"\0" in content[:2]:
        encodings = ["utf-16-be" if content.startswith(b"\0") else "utf-16-le"]
    else:
        encodings = ["utf-8-sig", "cp1252"]  # the latter from Excel on Windows
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text if text.isascii() else composed(text.lstrip("\ufeff"))
    raise InputError(f"{subject} cannot be read as a table, as it is no text: save it as CSV in UTF-8.")


def _separator(text: str) -> str:
    """The separator that the first line with text holds most often outside of quotes."""
    first = text.lstrip().partition("\n")[0]
    if named := re.match(r"sep=(.)", first):
        return named[1]
    return max(SEPARATORS, key=re.sub('"[^"]*"', "", first).count)


def numbers(table: pd.DataFrame, column: str, subject: str, whole: bool = False) -> np.ndarray:
    """A column's numbers (N,) float64, or int64 where they must be whole, with a decimal point or comma.

    InputError names the line of the first cell that is none; a whole number as 1,000 is refused, as it may mean one.
    """
    cells = table[column]
    if pd.api.types.is_numeric_dtype(cells):  # see `kinds` of `parse_table`
        return cells.to_numpy(np.int64 if whole else float)
    values = pd.to_numeric(cells, errors="coerce").to_numpy(float, copy=True)
    doubted = ~np.isfinite(values)
    if whole:
        doubted |= (values != np.round(values)) | (np.abs(values) >= 2**53) | cells.str.contains(".", regex=False)
    for i in np.flatnonzero(doubted):
        cell, value = cells.iloc[i], number_in(cells.iloc[i])
        if value is None or (whole and (value != round(value) or abs(value) >= 2**53 or THOUSANDS.fullmatch(cell))):
            kind = "whole number without separators of thousands" if whole else "number"
            raise InputError(f"Line {cells.index[i]} of {subject} has {cell!r} as its {column}: write a {kind} there.")
        values[i] = value
    return values.astype(np.int64) if whole else values


def number_in(cell: str) -> float | None:
    """The number in a cell, with a decimal point or comma; None if there is none, or no finite one."""
    if "," in cell:
        decimal_comma = cell.rfind(",") > cell.rfind(".") and cell.count(",") == 1
        cell = cell.replace(".", "").replace(",", ".") if decimal_comma else cell.replace(",", "")
    value = float(cell) if NUMBER.fullmatch(cell) else np.inf
    return value if np.isfinite(value) else None


def file_name(text: str, subject: str) -> str:
    """The text, where files may bear it as the beginning of their names; InputError if it would lead elsewhere."""
    if not text or text in (".", "..") or any(c in "/\\" or unicodedata.category(c) in CONTROL for c in text):
        raise InputError(f"{subject} holds the name {text!r}, which no file should bear: use letters and digits.")
    return text


def as_csv(table: pd.DataFrame, index: bool = False) -> bytes:
    """The table as CSV in UTF-8, in which every text and every column's name stays text, see the module.

    index: whether the rows' names are its first columns.
    """
    table = table.reset_index() if index else table
    table = table.set_axis([_as_cell(name) for name in table.columns], axis=1)
    texts = [i for i, kind in enumerate(table.dtypes) if not pd.api.types.is_numeric_dtype(kind)]
    cells = {i: table.iloc[:, i].map(_as_cell) if i in texts else table.iloc[:, i] for i in range(table.shape[1])}
    return pd.DataFrame(cells).set_axis(table.columns, axis=1).to_csv(index=False, lineterminator="\n").encode()


def write_csv(path: Path, table: pd.DataFrame, index: bool = False) -> None:
    """Write `as_csv`, whole or not at all."""
    with atomic_write(path) as file:
        file.write(as_csv(table, index))


def _as_cell(value: object) -> object:
    return re.sub(BEGIN + FORMULA, r"\1'", value) if isinstance(value, str) else value


def _from_cell(text: str) -> str:
    return re.sub(BEGIN + "'" + FORMULA, r"\1", text) if "'" in text else text
