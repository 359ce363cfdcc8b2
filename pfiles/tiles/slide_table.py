"""What the user says of slides in a table, and what the command says of them at its end."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pfiles.errors import InputError
from pfiles.spreadsheet import composed, number_in, read_table
from pfiles.tiles.copies import copies, in_words, warn_of_near_copies, warn_of_patients
from pfiles.tiles.gather import SUFFIXES, Gathered
from pfiles.tiles.mapped import Images
from pfiles.tiles.slides import MAX_MPP
from pfiles.tiles.sources import positions_of
from pfiles.tiles.split import split_by_patient

ABOUT_SLIDES = ("patient", "label", "mpp")  # what a table may say beside the slide's name
NOBODY = ("na", "n/a", "nan", "none", "null", "unknown", "-", "?")  # how tables say that a patient is not known


def read_slide_table(path: Path) -> dict[str, dict[str, str]]:
    """Rows of --slides-csv by the slide's name, which may have its suffix, as `match_rows` finds them."""
    lines = read_table(path)
    rows = lines.to_dict("records")
    if not rows or "slide" not in lines or not set(ABOUT_SLIDES) & set(lines.columns):
        raise InputError(f"{path} must have the columns slide and patient, label or mpp, and rows: write it anew.")
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        row["slide"] = name = plain_name(row["slide"])
        if text := row.get("mpp"):
            mpp = number_in(text)
            if mpp is None or not 0 < mpp <= MAX_MPP:
                raise InputError(f"{path} gives {name} the mpp {text!r}: write microns per pixel, such as 0.25.")
            row["mpp"] = str(mpp)
        if row.get("patient", "").lower() in NOBODY:
            row["patient"] = ""
        if _said(table.setdefault(name, row)) != _said(row):
            raise _two_rows(path, name, table[name], row)
    return table


def plain_name(text: str) -> str:
    """A slide's name without its folder, with its letters composed and its suffix in lower case."""
    name = Path(composed(text).replace("\\", "/")).name
    suffix = Path(name).suffix
    return name.removesuffix(suffix) + suffix.lower() if suffix.lower() in SUFFIXES else name


def match_rows(table: Mapping[str, dict[str, str]], gathered: Gathered, path: Path) -> dict[str, dict[str, str]]:
    """The row of each slide that has one, by the slide's name. path: of the table, for messages.

    Rows of no slide are told in the notes of `gathered`.
    """
    slides = gathered.slides
    rows: dict[str, dict[str, str]] = {}
    matches: set[str] = set()
    for slide in slides:
        name, of_file = plain_name(slide.name), {*map(plain_name, (slide.path.name, slide.path.stem))} & table.keys()
        is_page = name in table and name not in of_file  # its row counts more than that of the file
        matches |= {name, *of_file}
        for match in [name] if is_page else sorted(of_file):
            if _said(rows.setdefault(slide.name, table[match])) != _said(table[match]):
                raise _two_rows(path, slide.name, rows[slide.name], table[match])
    if not rows:
        raise InputError(f"{path} names none of the slides, such as {slides[0].path.name}: correct its column slide.")
    others = sorted(table.keys() - matches)
    without = [slide.path.name for slide in slides if not rows.get(slide.name, {}).get("patient")]
    if without and any(row.get("patient") for row in table.values()):
        unknown = f", but others that are not there, {', '.join(others)}," if others else ""
        raise InputError(
            f"{path} gives no patient for {', '.join(without)}{unknown}: add it, as patients are kept together."
        )
    if others:
        gathered.notes.append(f"{path} names slides that are not asked for: {others[0]}, one of {len(others)}.")
    return rows


def _said(row: Mapping[str, str]) -> list[str]:
    """What a row says of its slide."""
    return [row.get(column, "") for column in ABOUT_SLIDES]


def _two_rows(path: Path, slide: str, first: Mapping[str, str], second: Mapping[str, str]) -> InputError:
    """What to raise where two rows of a table differ in what they say of a slide."""
    rows = zip(ABOUT_SLIDES, _said(first), _said(second), strict=True)
    column, one, other = next(row for row in rows if row[1] != row[2])
    return InputError(f"{path} gives the slide {slide} in two rows the {column} {one!r} and {other!r}: keep one.")


def print_slides(
    names: Sequence[str],
    rows: pd.DataFrame,
    patients: Mapping[str, str],
    notes: Mapping[str, Mapping[str, Any]],
    left_out: Mapping[str, str],
    show_split: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """A line for each slide: its tiles, its scale and where that comes from, or why it was left out.

    rows: of the tiles. patients: of each slide, "" where unknown. notes: scales. show_split: count training and test
    tiles apart. Returns the indices of both, empty where they are not split.
    """
    positions = positions_of(rows)
    columns, verdict = {"tiles": np.ones(len(rows), bool)}, ""
    if show_split:
        in_train, in_test, verdict = split_by_patient(positions, rows["slide"].map(patients).tolist())
        columns = {"training": in_train, "test": in_test}
    counts = {column: Counter(rows["slide"][members]) for column, members in columns.items()}
    head = f"{'slide':<40} {'patient':<16} " + " ".join(f"{column:>8}" for column in columns)
    print(f"\n{head} {'um/px':>9}  scale from, or why left out")
    for name in dict.fromkeys([*names, *left_out]):
        tiles = " ".join(f"{count[name]:>8}" for count in counts.values())
        scale = notes.get(name, {}).get("scale", {})
        mpp, source = (
            ("", f"left out: {left_out[name]}") if name in left_out else (f"{scale['mpp']:.6g}", scale["source"])
        )
        print(f"{name:<40} {patients.get(name, ''):<16} {tiles} {mpp:>9}  {source}")
    print(f"{'all':<40} {'':<16} " + " ".join(f"{sum(count.values()):>8}" for count in counts.values()))
    print(verdict, end="\n" * bool(verdict))
    if show_split and not any(patients.values()):
        warn_of_patients(*(rows["slide"][side].unique() for side in columns.values()))
    train, test = (np.flatnonzero(columns.get(side, [])) for side in ("training", "test"))
    return train, test


def nothing_left(left_out: Mapping[str, str]) -> InputError:
    """What to raise where every slide was left out; of several it prints why for each, by name."""
    if len(left_out) > 1:
        print_slides([*left_out], pd.DataFrame(columns=["slide", "x", "y", "side", "mpp"]), {}, {}, left_out, False)
    return InputError(next(iter(left_out.values())))


def warn_of_copies(images: Images, rows: pd.DataFrame, train: np.ndarray, test: np.ndarray, folder: Path) -> None:
    """Print which test tiles are training tiles as well or nearly so, with a picture of the latter in `folder`."""

    def name(i: int) -> str:
        return f"{rows['slide'][i]} at {rows['x'][i]}, {rows['y'][i]}"

    pairs = copies(images, test, train)
    if len(pairs):
        print(f"Warning: {in_words(pairs, len(test), name)}: a training refuses them, so leave one slide out.")
    else:
        warn_of_near_copies(images, test, train, name, folder)


def print_notes(notes: Sequence[str], of_slides: Mapping[str, Mapping[str, Any]], to_srgb: bool) -> None:
    """What else there is to say of the slides, their colour profiles among it."""
    for note in notes:
        print(note)
    profiles = Counter(note.get("profile") or "none" for note in of_slides.values() if "scale" in note)
    if set(profiles) != {"none"} and not to_srgb:
        kinds = ", ".join(f"{name} ({count})" for name, count in profiles.items())
        mixed = "The slides differ in their colour profiles, and their colours with them" if len(profiles) > 1 else ""
        print(f"{mixed or 'The slides have a colour profile'}: {kinds}. --icc brings them to sRGB.")
