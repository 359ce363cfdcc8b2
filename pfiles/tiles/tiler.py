"""From slides to one folder of tiles: slide by slide, resumable, written whole or not at all."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import torch
from PIL import Image

from pfiles.errors import InputError
from pfiles.machine.cpu import usable_cores
from pfiles.machine.processes import progress
from pfiles.machine.runtime import make_generator
from pfiles.paths import atomic_write, read_json, write_json
from pfiles.spreadsheet import composed, file_name, read_table, write_csv
from pfiles.tiles.slides import SUFFIXES, Tiling, cut_tiles, open_slide, plan_tiles
from pfiles.tiles.sources import PICTURES, TABLE, TILES, picture_part, positions_of, read_tile_table, walk
from pfiles.tiles.split import split_by_patient

COLUMNS = ("slide", "x", "y", "side", "level", "mpp", "tissue", "sharpness")
ABOUT, WORK = "tiling.json", ".work"  # what was asked for; slides that are done before all are
BLURRED = 0.1  # of the median sharpness of a slide's tiles: below it a tile is counted as blurred


def tile_slides(
    paths: Sequence[Path],
    out: Path,
    tiling: Tiling,
    slides_csv: Path | None = None,
    pseudonyms: bool = False,
    threads: int | None = None,
    show_split: bool = True,
) -> None:
    """Cut the tiles of all slides into `out`: tiles.npy, tiles.csv and a picture of each slide in slides/.

    paths: slides, or folders of them, searched at any depth. slides_csv: a table `slide`, and `patient` or `label` or
    both. pseudonyms: slides are called S001, S002 ... and patients P001 ..., and the key is written beside `out`, to
    OUT_pseudonyms.csv. threads: None for as many as the machine has cores. show_split: print how many tiles of each
    slide are for training and for testing.

    What is done of a slide is kept until all are: run again, the command goes on. A slide that cannot be read or shows
    no tissue is named and left out. Raises InputError where none is left, or for anything that is not as described.
    """
    files = find_slides(paths, out)
    given = _slide_table(slides_csv, files) if slides_csv else {}
    names, patients = _names(files, given, out) if pseudonyms else ({path: path.stem for path in files}, {})
    for picture in (out / PICTURES / f"{name}.jpg" for name in names.values()):
        if picture.exists() and not _is_own(picture):
            raise InputError(f"{picture} lies where the slides' pictures are written: name another folder with --out.")
    doubled = {path.stem: path for path in files}
    if not pseudonyms and len(doubled) < len(files):
        one = next(path for path in files if doubled[path.stem] != path)
        raise InputError(f"{one} and {doubled[one.stem]} have one name: rename one, or give --pseudonyms.")

    asked = {"tiling": asdict(tiling), "slides": {names[path]: _state(path) for path in files}}
    about = read_json(out / ABOUT) if (out / TABLE).exists() else None
    if about is not None and {key: about.get(key) for key in asked} == asked:
        print(f"The tiles of all slides are in {out} already.")
        rows = read_tile_table(out / TABLE)
    else:
        rows, left_out = _cut_all(files, names, out, asked, tiling, threads or usable_cores())
        about = {**asked, "left_out": left_out}
    table = {names[path]: _row_of(path, given) for path in files}
    patient = {name: patients.get(of := row.get("patient", ""), of) for name, row in table.items()}
    label = {name: row.get("label", "") for name, row in table.items()}
    rows = rows[[*COLUMNS]]
    for column, known in (("patient", patient), ("label", label)):
        if any(known.values()):
            rows[column] = rows["slide"].map(known)
    write_csv(out / TABLE, rows)
    write_json(out / ABOUT, about)
    shutil.rmtree(out / WORK, ignore_errors=True)
    if show_split:
        _print_table(rows, patient)
    for reason in about["left_out"].values():
        print(f"left out: {reason}")


def _state(path: Path) -> str:
    """What tells a slide's file from another, but not its date."""
    found = os.stat(path)
    return hashlib.sha256(repr((found.st_size, found.st_mtime_ns)).encode()).hexdigest()[:16]


def _cut_all(
    files: Sequence[Path], names: Mapping[Path, str], out: Path, asked: Mapping, tiling: Tiling, threads: int
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Cut all slides and write their tiles.npy; returns the table's rows, and why slides were left out by name.

    Tiles are appended to one file, which takes its place when it is whole. A note beside it says of each slide that its
    tiles are there, or why there are none; a slide whose note is another's is cut anew, and so are those after it.
    """
    work, parts, count, left_out, done = out / WORK, [], 0, {}, True
    stack = work / "all" / TILES  # where no slide's own file lies, whatever its name
    if not (out / TABLE).exists() and (out / TILES).exists():
        if not [*work.glob("*.json")]:
            raise InputError(f"{out / TILES} was not written by this command: move it away, or name another --out.")
        if not stack.exists():  # killed before the very end
            os.replace(out / TILES, stack)
    stack.parent.mkdir(parents=True, exist_ok=True)
    with _told(stack), open(stack, "r+b" if stack.exists() else "w+b") as file:
        _write_header(file, 0, tiling.size)
        begin = file.tell()
        for number, path in enumerate(files, start=1):
            name = names[path]
            note = work / f"{name}.json"
            begun = {"tiling": asked["tiling"], "slide": asked["slides"][name], "first": count}
            found = read_json(note, {})
            done = done and {key: found.get(key) for key in begun} == begun
            if not done:
                for later in files[number - 1 :]:
                    (work / f"{names[later]}.json").unlink(missing_ok=True)
                file.truncate(file.seek(begin + count * tiling.size**2 * 3))
                try:
                    own = _cut_slide(path, name, out, file, tiling, threads)
                    write_csv(note.with_suffix(".csv"), own)
                    file.flush()
                    os.fsync(file.fileno())
                    found = begun
                except InputError as error:
                    reason = str(error) if name == path.stem else str(error).replace(str(path), name)
                    found = {**begun, "left_out": reason}
                write_json(note, found)
            if "left_out" in found:
                left_out[name] = found["left_out"]
                print(f"[{number}/{len(files)}] {name}: left out", flush=True)
                continue
            own = read_tile_table(note.with_suffix(".csv"))
            parts.append(own)
            count += len(own)
            blurred = int((own.sharpness < BLURRED * own.sharpness.median()).sum())
            print(f"[{number}/{len(files)}] {name}: {len(own)} tiles, {blurred} of them blurred", flush=True)
        if not count:
            raise InputError(next(iter(left_out.values())))
        file.truncate(begin + count * tiling.size**2 * 3)
        file.seek(0)
        _write_header(file, count, tiling.size)
        file.flush()
        os.fsync(file.fileno())
    (out / TABLE).unlink(missing_ok=True)  # tiles are never seen beside the table of others
    os.replace(stack, out / TILES)
    for picture in (out / PICTURES).glob("*.jpg"):  # of an earlier cut, perhaps under the names that are now hidden
        if picture.stem not in asked["slides"].keys() - left_out.keys() and _is_own(picture):
            picture.unlink()
    return pd.concat(parts, ignore_index=True), left_out


def _is_own(picture: Path) -> bool:
    """Whether `tile_slides` wrote it."""
    with suppress(OSError), Image.open(picture) as image:
        return picture_part(image) is not None
    return False


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Inside the block the disk's errors name the file `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error


def find_slides(paths: Sequence[Path], out: Path) -> list[Path]:
    """Slides given by name, and those below folders in sorted order; of a folder's DICOM files the first.

    What lies in `out` is not looked at. Raises InputError where there is none.
    """
    files: dict[Path, None] = {}
    for path in paths:
        if not os.path.exists(path):
            raise InputError(f"There is no slide or folder of slides at {path}: correct the path.")
        below = sorted(file for file in walk(path) if out not in file.parents) if path.is_dir() else [path]
        found = [file for file in below if file.suffix.lower() in SUFFIXES or file == path]
        if not found:
            raise InputError(f"{path} holds no slide: expected files ending in {', '.join(SUFFIXES)}.")
        series = set()
        for file in found:
            if file.suffix.lower() == ".dcm" and file != path:
                if file.parent in series:
                    continue
                series.add(file.parent)
            files[file] = None
    return list(files)


def _slide_table(path: Path, files: Sequence[Path]) -> dict[str, dict[str, str]]:
    """Rows of --slides-csv by the slide's name, with or without its suffix, as `_row_of` finds them."""
    read = read_table(path)
    rows = read.to_dict("records")
    if not rows or "slide" not in read or not {"patient", "label"} & set(read.columns):
        raise InputError(f"{path} must have the columns slide and patient or label, and rows: write it anew.")
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        row["slide"] = _plain_name(row["slide"])
        if table.setdefault(row["slide"], row) != row:
            raise InputError(f"{path} holds two different rows for the slide {row['slide']}: keep one.")
    known = {_plain_name(name) for file in files for name in (file.name, file.stem)}
    if not table.keys() & known:
        raise InputError(f"{path} names none of the slides, such as {files[0].name}: correct its column slide.")
    without = [file.name for file in files if not _row_of(file, table)]
    if without and any(row.get("patient") for row in rows):
        others = ", ".join(sorted(table.keys() - known))
        unknown = f", but others that are not there, {others}," if others else ""
        raise InputError(f"{path} has no row for {', '.join(without)}{unknown}: add it, as patients are kept together.")
    return table


def _plain_name(text: str) -> str:
    """A slide's name without its folder, with its letters composed and its suffix in lower case."""
    name = Path(composed(text).replace("\\", "/")).name
    suffix = Path(name).suffix
    return name.removesuffix(suffix) + suffix.lower() if suffix.lower() in SUFFIXES else name


def _row_of(file: Path, table: Mapping[str, dict[str, str]]) -> dict[str, str]:
    """The row of a slide in `_slide_table`, empty where it has none."""
    return table.get(_plain_name(file.name)) or table.get(_plain_name(file.stem)) or {}


def _names(
    files: Sequence[Path], given: Mapping[str, Mapping[str, str]], out: Path
) -> tuple[dict[Path, str], dict[str, str]]:
    """Pseudonyms of slides and patients; those that the key beside `out` has already stay."""
    key = out.with_name(f"{out.name}_pseudonyms.csv")
    known = {}
    if key.exists():
        rows = read_table(key, ("pseudonym", "of"))
        known = {
            of: file_name(pseudonym, str(key)) for of, pseudonym in zip(rows["of"], rows["pseudonym"], strict=True)
        }
    patients = {row["patient"] for row in given.values() if row.get("patient")}
    for letter, wanted in (("S", [_place(file) for file in files]), ("P", sorted(patients))):
        for name in wanted:
            place = f"{'slide' if letter == 'S' else 'patient'} {name}"
            known.setdefault(place, f"{letter}{sum(found[0] == letter for found in known.values()) + 1:03}")
    write_csv(key, pd.DataFrame({"pseudonym": known.values(), "of": known.keys()}))
    return {file: known[f"slide {_place(file)}"] for file in files}, {p: known[f"patient {p}"] for p in patients}


def _place(file: Path) -> str:
    return composed(str(file.resolve()))


def _cut_slide(path: Path, name: str, out: Path, file: IO[bytes], tiling: Tiling, threads: int) -> pd.DataFrame:
    """Append the tiles of a slide to `file`, write its picture, and return the tiles' rows of the table."""
    offset = torch.rand(1, generator=make_generator(tiling.seed, "tiles of a slide", name), dtype=torch.float64).item()
    kept, sharpness = [], []
    with open_slide(path) as slide:
        plan, picture = plan_tiles(slide, path, tiling, offset)
        side = round(tiling.size * plan.downsample)
        with progress(total=len(plan.corners), desc=name, unit="tile", leave=False, delay=1) as bar:
            for members, tiles, sharp in cut_tiles(slide, plan, tiling, threads):
                bar.update(len(members))
                keep = sharp >= tiling.min_sharpness
                file.write(tiles if keep.all() else tiles[keep])
                kept.append(members[keep])
                sharpness.append(sharp[keep])
    members = np.concatenate(kept)
    if not len(members):
        raise InputError(f"{path} has no tile as sharp as {tiling.min_sharpness:g}: ask for less.")
    with atomic_write(out / PICTURES / f"{name}.jpg") as picture_file:
        part = " ".join(map(str, plan.bounds))  # of level 0, as `picture_of` a map reads it
        picture.save(picture_file, format="JPEG", quality=85, comment=part)
    x, y = np.round(plan.bounds[:2] + plan.corners[members] * plan.downsample).astype(int).T
    sharp = np.concatenate(sharpness).astype(float).round(1)
    values = name, x, y, side, plan.level, round(plan.mpp, 6), plan.tissue[members].round(3), sharp
    return pd.DataFrame(dict(zip(COLUMNS, values, strict=True)))


def _write_header(file: IO[bytes], count: int, side: int) -> None:
    """The head of a .npy of tiles, as long for every count."""
    shape = (count, side, side, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _print_table(rows: pd.DataFrame, patients: Mapping[str, str]) -> None:
    """Tiles of each slide on each side of the split. patients: of each slide, "" where unknown."""
    positions = positions_of(rows)
    in_train, in_test, said = split_by_patient(positions, rows["slide"].map(patients).tolist())
    print(f"\n{'slide':<40} {'patient':<16} {'training':>8} {'test':>8}")
    for slide, patient in ((slide, patients[slide]) for slide in rows["slide"].unique()):
        of_slide = positions.slide == slide
        print(f"{slide:<40} {patient:<16} {(of_slide & in_train).sum():>8} {(of_slide & in_test).sum():>8}")
    print(f"{'all':<40} {'':<16} {in_train.sum():>8} {in_test.sum():>8}\n{said}")
