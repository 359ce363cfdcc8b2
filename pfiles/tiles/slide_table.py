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
from pfiles.tiles.gather import SUFFIXES, SlideFile
from pfiles.tiles.mapped import Images
from pfiles.tiles.slides import MAX_MPP
from pfiles.tiles.sources import positions_of
from pfiles.tiles.split import split_by_patient

ABOUT_SLIDES = ("patient", "label", "mpp")  # what a table may say beside the slide's name


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
        if table.setdefault(name, row) != row:
            raise InputError(f"{path} holds two different rows for the slide {name}: keep one.")
    return table


def plain_name(text: str) -> str:
    """A slide's name without its folder, with its letters composed and its suffix in lower case."""
    name = Path(composed(text).replace("\\", "/")).name
    suffix = Path(name).suffix
    return name.removesuffix(suffix) + suffix.lower() if suffix.lower() in SUFFIXES else name


def match_rows(
    table: Mapping[str, dict[str, str]], slides: Sequence[SlideFile], path: Path
) -> dict[str, dict[str, str]]:
    """The row of each slide that has one, by the slide's name. path: of the table, for messages."""
    names = {slide: [*map(plain_name, (slide.name, slide.path.name, slide.path.stem))] for slide in slides}
    rows = {slide.name: table[name] for slide, of in names.items() for name in of[::-1] if name in table}
    if not rows:
        raise InputError(f"{path} names none of the slides, such as {slides[0].path.name}: correct its column slide.")
    without = [slide.path.name for slide in slides if slide.name not in rows]
    if without and any(row.get("patient") for row in table.values()):
        others = ", ".join(sorted(table.keys() - {name for of in names.values() for name in of}))
        unknown = f", but others that are not there, {others}," if others else ""
        raise InputError(f"{path} has no row for {', '.join(without)}{unknown}: add it, as patients are kept together.")
    return rows


def print_slides(
    names: Sequence[str],
    rows: pd.DataFrame,
    patients: Mapping[str, str] | None,
    notes: Mapping[str, Mapping[str, Any]],
    left_out: Mapping[str, str],
) -> tuple[np.ndarray, np.ndarray]:
    """A line for each slide: its tiles, its scale and where that comes from, or why it was left out.

    rows: of the tiles. patients: of each slide, "" where unknown; None where tiles are not split. notes: scales.
    Returns the indices of training and test tiles.
    """
    positions = positions_of(rows)
    columns, verdict = {"tiles": np.ones(len(rows), bool)}, ""
    if patients is not None:
        in_train, in_test, verdict = split_by_patient(positions, rows["slide"].map(patients).tolist())
        columns = {"training": in_train, "test": in_test}
    counts = {column: Counter(rows["slide"][members]) for column, members in columns.items()}
    head = f"{'slide':<40} {'patient':<16} " + " ".join(f"{column:>8}" for column in columns)
    print(f"\n{head} {'um/px':>9}  scale from, or why left out")
    for name in [*names, *(left_out.keys() - set(names))]:
        patient = "" if patients is None else patients.get(name, "")
        tiles = " ".join(f"{count[name]:>8}" for count in counts.values())
        scale = notes.get(name, {}).get("scale", {})
        mpp, source = (
            ("", f"left out: {left_out[name]}") if name in left_out else (f"{scale['mpp']:.6g}", scale["source"])
        )
        print(f"{name:<40} {patient:<16} {tiles} {mpp:>9}  {source}")
    print(f"{'all':<40} {'':<16} " + " ".join(f"{sum(count.values()):>8}" for count in counts.values()))
    print(verdict, end="\n" * bool(verdict))
    if patients is not None and not any(patients.values()):
        warn_of_patients(*(rows["slide"][side].unique() for side in columns.values()))
    train, test = (np.flatnonzero(columns.get(side, [])) for side in ("training", "test"))
    return train, test


def warn_of_copies(images: Images, rows: pd.DataFrame, train: np.ndarray, test: np.ndarray, folder: Path) -> None:
    """Print which test tiles are training tiles as well or nearly so, with a picture of the latter in `folder`."""

    def name(i: int) -> str:
        return f"{rows['slide'][i]} at {rows['x'][i]}, {rows['y'][i]}"

    pairs = copies(images, test, train)
    if len(pairs):
        print(f"Warning: {in_words(pairs, len(test), name)}: no training takes them so, leave one of the slides out.")
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
