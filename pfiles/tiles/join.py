"""Parts of the slides, each cut by a job of its own, joined to one folder of tiles without a copy of them."""

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from pfiles.errors import InputError
from pfiles.machine.locks import locked
from pfiles.paths import atomic_folder, read_json, write_json
from pfiles.spreadsheet import write_csv
from pfiles.tiles.croissant import describe_tiles, recorded_sha256
from pfiles.tiles.slide_table import print_notes, print_slides, warn_of_copies
from pfiles.tiles.sources import ABOUT, PARTS, PICTURES, TABLE, TILES, read_source, read_tile_table

BUSY = "Another command is at work in {}: wait for it, or name another folder."
OF_USER = ("patient", "label")  # columns of the table that only some parts may have

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class _Part:
    """What a job left: its folder, what was asked of it, and the row of each of its tiles."""

    folder: Path
    about: Mapping[str, Any]
    rows: pd.DataFrame


def share_of(slides: Mapping[Key, Value], number: int, count: int) -> dict[Key, Value]:
    """The part `number`, from 1, of `count` parts of all slides: they follow each other, so that parts in turn are all.

    InputError where there are fewer slides than parts.
    """
    if count > len(slides):
        raise InputError(f"There are {len(slides)} slides for {count} parts: ask for no more parts than slides.")
    begin, end = ((place * len(slides)) // count for place in (number - 1, number))
    return dict([*slides.items()][begin:end])


def about_part(number: int, count: int, states: Mapping[str, str]) -> dict[str, Any]:
    """What tells a part from others of the same slides, and from parts of others. states: of all slides by name."""
    return {"number": number, "of": count, "slides": hashlib.sha256(repr([*states.items()]).encode()).hexdigest()[:16]}


def join_parts(folders: Sequence[Path], out: Path) -> dict[str, str]:
    """Make one folder of tiles, `out`, of those that `tile_slides` cut in parts; returns why slides were left out.

    The tiles stay in the parts' files, of which `out` holds further names (or links, where the file system knows no
    second name). Its table, and the pictures of slides, are those that a single job would have written; so is the
    split, which is made of all patients. Parts that were not asked for as such are joined in the order given.
    Raises InputError where parts were cut differently, overlap or are missing, or where a slide is there twice.
    """
    if doubled := next((folder for i, folder in enumerate(folders) if folder in folders[:i]), None):
        raise InputError(f"{doubled} is named twice: name each part once.")
    for folder in folders:
        if folder.is_relative_to(out) or out.is_relative_to(folder):
            raise InputError(f"{out} and the part {folder} lie in one another: name a folder beside the parts.")
    if out.exists() and not (out / PARTS).is_dir() and (out.is_file() or any(out.iterdir())):
        raise InputError(f"{out} holds something else than joined parts: name a new folder.")
    with ExitStack() as locks:
        for folder in sorted(folders):
            if folder.is_dir():
                locks.enter_context(locked(folder, BUSY.format(folder)))
        parts = [_read_part(folder) for folder in folders]
        _refuse_unlike(parts)
        parts = _in_order(parts)
        _refuse_doubled_slides(parts)
        rows = pd.concat([part.rows for part in parts], ignore_index=True)
        for column in OF_USER:
            if column in rows:
                rows[column] = rows[column].fillna("")
        about: dict[str, Any] = {"tiling": parts[0].about["tiling"]}
        for entry in ("slides", "notes"):
            about[entry] = {name: of for part in parts for name, of in part.about[entry].items()}
        with atomic_folder(out) as folder:
            files = _fill(folder, parts)
            write_json(folder / ABOUT, about)
            write_csv(folder / TABLE, rows)
            numbers = {name: len(part.rows) for name, part in files.items()}
            hashes = {name: recorded_sha256(part.folder, TILES) for name, part in files.items()}
            recorded = {name: sha256 for name, sha256 in hashes.items() if sha256 is not None}
            describe_tiles(folder, [*rows], numbers, about["tiling"]["size"], recorded)
    left_out = {name: note["left_out"] for name, note in about["notes"].items() if "left_out" in note}
    for part in parts:
        left_out |= part.about.get("left_out", {})
    patients = dict(zip(rows["slide"], rows["patient"], strict=True)) if "patient" in rows else {}
    patients = {name: patients.get(name, "") for name in about["slides"]}
    train, test = print_slides([*about["slides"]], rows, patients, about["notes"], left_out)
    if rows["slide"].nunique() > 1:
        warn_of_copies(read_source(out).images, rows, train, test, out)
    print_notes([], about["notes"], about["tiling"]["icc"])
    linked = any(file.is_symlink() for file in (out / PARTS).iterdir())
    advice = "Links lead to them: keep the parts." if linked else "The parts may be deleted."
    print(f"{len(parts)} parts are joined in {out}; their tiles were not copied. {advice}")
    return left_out


def _read_part(folder: Path) -> _Part:
    if not (folder / TABLE).exists() or not (folder / ABOUT).exists():
        raise InputError(f"{folder} holds no finished part, as {TABLE} or {ABOUT} is missing: run its job again.")
    about = read_json(folder / ABOUT, {})
    entries = [about.get(entry) for entry in ("tiling", "slides", "notes")] + [about.get("part", {})]
    if not all(isinstance(entry, dict) for entry in entries) or not {"size", "icc"} <= about["tiling"].keys():
        raise InputError(f"{folder / ABOUT} does not say what was cut: run the job of this part again.")
    rows = read_tile_table(folder / TABLE)
    if strange := sorted({*rows["slide"]} - about["slides"].keys()):
        raise InputError(
            f"{folder / TABLE} names the slide {strange[0]}, which is not of this part: run its job again."
        )
    side, file = about["tiling"]["size"], folder / TILES
    if not len(rows) and not (file.exists() and file.stat().st_size >= 3 * side**2):  # no room for a single tile
        return _Part(folder, about, rows)
    images = read_source(folder).images  # which refuses another number of tiles than rows
    if (folder / PARTS).is_dir():
        raise InputError(f"{folder} was joined before: name the parts of which it was made.")
    if images.shape[2] != side:
        raise InputError(f"The tiles in {folder} are of {images.shape[2]} px, not of {side}: run the job of it again.")
    return _Part(folder, about, rows)


def _refuse_unlike(parts: Sequence[_Part]) -> None:
    first, *others = parts
    for part in others:
        for name in {**first.about["tiling"], **part.about["tiling"]}:
            values = [of.about["tiling"].get(name) for of in (first, part)]
            if values[0] != values[1]:
                raise InputError(
                    f"{first.folder} was cut with {name} = {values[0]}, {part.folder} with {values[1]}: cut one anew."
                )


def _in_order(parts: Sequence[_Part]) -> list[_Part]:
    """By their numbers, of which none may be missing; as given where they were not asked for as parts."""
    numbered = [part for part in parts if "part" in part.about]
    if not numbered:
        return [*parts]
    first = numbered[0]
    by_number: dict[int, _Part] = {}
    for part in parts:
        if "part" not in part.about:
            raise InputError(f"{part.folder} is no part of the slides that {first.folder} is of: leave it out.")
        number, of, slides = (part.about["part"].get(name) for name in ("number", "of", "slides"))
        if (of, slides) != (first.about["part"]["of"], first.about["part"]["slides"]):
            raise InputError(
                f"{first.folder} and {part.folder} are not parts of the same slides in as many parts: cut one anew."
            )
        other = by_number.setdefault(number, part)
        if other is not part:
            raise InputError(f"{other.folder} and {part.folder} are both part {number} of {of}: leave one out.")
    count = first.about["part"]["of"]
    if missing := [str(number) for number in range(1, count + 1) if number not in by_number]:
        raise InputError(f"Of {count} parts these are missing: {', '.join(missing)}. Name their folders too.")
    return [by_number[number] for number in range(1, count + 1)]


def _refuse_doubled_slides(parts: Sequence[_Part]) -> None:
    """InputError where two parts hold one slide, by its name or, under two names, by its tiles."""
    folders: dict[str, Path] = {}
    for part in parts:
        for name in part.about["slides"]:
            if (other := folders.setdefault(name, part.folder)) != part.folder:
                raise InputError(f"The slide {name} is in {other} and in {part.folder}: keep it in one part.")
    alike: defaultdict[bytes, list[tuple[_Part, str, pd.Index]]] = defaultdict(list)
    for part in parts:
        for name, rows in part.rows.groupby("slide", sort=False):
            places = rows[["x", "y", "side"]].to_numpy(np.int64)
            alike[hashlib.sha256(places.tobytes()).digest()].append((part, str(name), rows.index))
    for slides in alike.values():
        first_of: dict[bytes, tuple[_Part, str]] = {}
        for part, name, index in slides if len(slides) > 1 else ():
            images, digest = read_source(part.folder).images, hashlib.sha256()
            for tiles in images[index[0] : index[-1] + 1].split(64):
                digest.update(tiles.numpy().tobytes())
            earlier, first = first_of.setdefault(digest.digest(), (part, name))
            if earlier is not part:
                raise InputError(
                    f"{first} in {earlier.folder} and {name} in {part.folder} have the same tiles: keep one of them."
                )


def _fill(folder: Path, parts: Sequence[_Part]) -> dict[str, _Part]:
    """Give the parts' files a second name in a new folder, and copy their pictures into it; returns the parts that hold
    tiles by these names."""
    files = {}
    for place in (PARTS, PICTURES):
        (folder / place).mkdir()
    for number, part in enumerate(parts, start=1):
        if len(part.rows):
            name = folder / PARTS / f"{number:05}.npy"
            files[name.relative_to(folder).as_posix()] = part
            try:
                os.link(part.folder / TILES, name)
            except OSError:  # another disk, or a file system without second names
                name.symlink_to((part.folder / TILES).resolve())
        for slide in part.rows["slide"].unique():
            picture = f"{slide}.jpg"
            if not (part.folder / PICTURES / picture).exists():
                raise InputError(f"{part.folder / PICTURES / picture} is missing: run the job of this part again.")
            shutil.copyfile(part.folder / PICTURES / picture, folder / PICTURES / picture)
    return files
