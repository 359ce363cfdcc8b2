"""From slides to one folder of tiles: slide by slide, resumable, written whole or not at all."""

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from pfiles.errors import InputError, MissingPackageError
from pfiles.machine.cpu import usable_cores
from pfiles.machine.locks import locked
from pfiles.machine.processes import progress
from pfiles.machine.runtime import make_rng
from pfiles.paths import atomic_write, read_json, refuse_foreign, write_json
from pfiles.spreadsheet import composed, file_name, read_table, write_csv
from pfiles.tiles import slide_table
from pfiles.tiles.coordinates import no_places, read_coordinates
from pfiles.tiles.croissant import describe_tiles
from pfiles.tiles.gather import Gathered, SlideFile, copies_of_files, files_of, gather, name_of
from pfiles.tiles.join import BUSY, about_part, share_of
from pfiles.tiles.readers import SlideReader, open_slide, profile_name
from pfiles.tiles.regions import read_regions
from pfiles.tiles.slides import Plan, Tiling, cut_tiles, plan_tiles
from pfiles.tiles.sources import ABOUT, PARTS, PICTURES, TABLE, TILES, picture_part, read_source, read_tile_table

COLUMNS = ("slide", "x", "y", "side", "level", "mpp", "tissue", "sharpness")
WORK = ".work"  # slides that are done before all are
BLURRED = 0.1  # of the median sharpness of a slide's tiles: below it a tile is counted as blurred


def tile_slides(
    paths: Sequence[Path],
    out: Path,
    tiling: Tiling,
    slides_csv: Path | None = None,
    pseudonyms: bool = False,
    threads: int | None = None,
    show_split: bool = True,
    regions: Path | None = None,
    coordinates: Path | None = None,
    dry_run: bool = False,
    skipped: Path | None = None,
    part: tuple[int, int] | None = None,
) -> dict[str, str]:
    """Cut the tiles of all slides into `out`: tiles.npy, tiles.csv, croissant.json, and pictures in slides/.

    paths: slides, or folders of them, searched at any depth. slides_csv: a table `slide`, and `patient`, `label` or
    `mpp`, the slide's microns per pixel, or several of them. pseudonyms: slides are called S001, S002 ... and patients
    P001 ..., and the key is written beside `out`, to OUT_pseudonyms.csv. threads: None for as many as the machine has
    cores. show_split: print how many tiles of each slide are for training and for testing. regions: see `read_regions`.
    coordinates: see `read_coordinates`. dry_run: write pictures alone, and tell how many tiles there would be.
    skipped: the folder in which no slides are looked for; None for `out`. part: (3, 10) cuts the third of ten parts of
    all slides, which `join_parts` puts together; None for all slides.

    What is done of a slide is kept until all are: run again, the command goes on. A slide that cannot be read, shows no
    tissue or has another's file is left out. A table at the end names every slide. Returns why slides were left out, by
    name. Raises InputError where none is left, or for anything that is not as described.
    """
    table = slide_table.read_slide_table(slides_csv) if slides_csv else {}
    gathered = gather(paths, skipped or out, tiling.page, [*table])
    rows_of_user = slide_table.match_rows(table, gathered, slides_csv) if slides_csv else {}
    slides = gathered.slides
    patients: dict[str, str] = {}
    if pseudonyms:
        slides, patients = _with_pseudonyms(slides, rows_of_user, out, keep=not dry_run)
    else:
        _refuse_doubled_names(slides, "rename one, or give --pseudonyms")
    rows_of_user = {new.name: rows_of_user.get(old.name, {}) for old, new in zip(gathered.slides, slides, strict=True)}
    patient = {name: patients.get(of := row.get("patient", ""), of) for name, row in rows_of_user.items()}
    label = {name: row.get("label", "") for name, row in rows_of_user.items()}
    _refuse_foreign_files(out, slides)
    copies = copies_of_files(slides, patient)
    to_cut = {slide: _tiling_of(slide, tiling, rows_of_user) for slide in slides if slide.name not in copies}
    original = {new.name: old.name for old, new in zip(gathered.slides, slides, strict=True)}
    to_cut = _with_places(to_cut, original, regions, coordinates)
    states = {slide.name: _state(slide, of) for slide, of in to_cut.items()}
    request: dict[str, Any] = {"tiling": asdict(tiling), "slides": states}
    if part is not None:
        to_cut = share_of(to_cut, *part)
        slides = [*to_cut]
        of_part = {slide.name: states[slide.name] for slide in slides}
        request |= {"slides": of_part, "part": about_part(*part, states), "left_out": copies}
    if dry_run:
        rows, notes = _plan_all(to_cut, out, copies | gathered.unread)
        return _print_table(slides, rows, patient, notes, copies, gathered, tiling, show_split and part is None)[0]
    with locked(out, BUSY.format(out)):
        about = read_json(out / ABOUT) if (out / TABLE).exists() else None
        if about is not None and {key: about.get(key) for key in request} == request:
            print(f"The tiles of all slides are in {out} already.")
            rows = read_tile_table(out / TABLE)
        else:
            others = copies | gathered.unread
            rows, notes = _cut_all(to_cut, out, request, tiling.size, threads or usable_cores(), others)
            about = {**request, "notes": notes}
        rows = rows[[*COLUMNS]]
        for column, values in (("patient", patient), ("label", label)):
            if any(values.values()):
                rows[column] = rows["slide"].map(values)
        write_json(out / ABOUT, about)
        write_csv(out / TABLE, rows)  # where it stands, all tiles are there
        describe_tiles(out, [*rows], {TILES: len(rows)}, tiling.size)
        shutil.rmtree(out / WORK, ignore_errors=True)
    show_split = show_split and part is None
    left_out, train, test = _print_table(slides, rows, patient, about["notes"], copies, gathered, tiling, show_split)
    if rows["slide"].nunique() > 1 and show_split:
        slide_table.warn_of_copies(read_source(out).images, rows, train, test, out)
    return left_out


def _print_table(
    slides: Sequence[SlideFile], rows: pd.DataFrame, patient: Mapping[str, str], notes: Mapping[str, Mapping[str, Any]],
    copies: Mapping[str, str], gathered: Gathered, tiling: Tiling, show_split: bool,
) -> tuple[dict[str, str], np.ndarray, np.ndarray]:  # fmt: skip
    """Why slides are left out, by name, and the tiles for training and testing, after the table that says so."""
    left_out = {name: note["left_out"] for name, note in notes.items() if "left_out" in note}
    left_out |= {**copies, **gathered.unread}
    names = [slide.name for slide in slides]
    train, test = slide_table.print_slides(names, rows, patient, notes, left_out, show_split)
    slide_table.print_notes(gathered.notes, notes, tiling.icc)
    return left_out, train, test


def _refuse_foreign_files(out: Path, slides: Sequence[SlideFile]) -> None:
    """InputError for a file that would be replaced in `out` and is not this command's."""
    is_own = any(read_json(out / ABOUT, {}).keys() & {"tiling"}) or (out / WORK).exists()
    refuse_foreign(out, (TABLE, TILES, ABOUT), is_own)
    for picture in (out / PICTURES / f"{slide.name}.jpg" for slide in slides):
        if picture.exists() and not _is_own(picture):
            raise InputError(f"{picture} lies where the slides' pictures are written: name another folder with --out.")


def _tiling_of(slide: SlideFile, tiling: Tiling, rows: Mapping[str, Mapping[str, str]]) -> Tiling:
    """What to cut of a slide: its own scale counts more than that of all slides."""
    mpp = rows[slide.name].get("mpp")
    return replace(tiling, mpp_of_slide=float(mpp)) if mpp else tiling


def _with_places(
    slides: Mapping[SlideFile, Tiling], original: Mapping[str, str], regions: Path | None, coordinates: Path | None
) -> dict[SlideFile, Tiling]:
    """What to cut of each slide, limited to the regions or places that are given. original: names by pseudonyms."""
    tilings, names = dict(slides), [*original.values()]
    if regions is not None:
        polygons = read_regions(regions, names)
        tilings = {slide: replace(of, regions=polygons.get(original[slide.name], ())) for slide, of in tilings.items()}
    if coordinates is not None:
        places, none = read_coordinates(coordinates, names), no_places(coordinates)
        tilings = {
            slide: replace(of, coordinates=places.get(original[slide.name], none)) for slide, of in tilings.items()
        }
    return tilings


def _refuse_doubled_names(slides: Sequence[SlideFile], remedy: str) -> None:
    by_name: dict[str, SlideFile] = {}
    for slide in slides:
        other = by_name.setdefault(slide.name, slide)
        if other != slide:
            raise InputError(f"{other.path} and {slide.path} have one name: {remedy}.")


def _state(slide: SlideFile, tiling: Tiling) -> str:
    """What tells a slide, its page and its scale from others, also from one that took its place under the same date."""
    choices = (tiling.mpp_of_slide, tiling.regions, tiling.coordinates)
    of_user = [choice for choice in choices if choice is not None]
    about = (*map(_state_of_file, files_of(slide.path)), slide.page, *of_user)
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def _state_of_file(path: Path) -> tuple[int, int, int]:
    """Its size and its times; the last, of any change to it, cannot be set by who replaces it."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _cut_all(
    slides: Mapping[SlideFile, Tiling], out: Path, request: Mapping, size: int, threads: int, others: Mapping[str, str]
) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """Cut all slides and write their tiles.npy; returns the table's rows, and a note on each slide by name.

    others: why further slides are left out, by name. Tiles are appended to one file, which takes its place when it is
    whole. A note says of each slide its scale, or why it was left out. A slide whose note is another's, or whose tiles
    the file lacks, is cut anew, and so are those after it.
    """
    work, parts, count, notes, is_done = out / WORK, [], 0, {}, True
    stack = work / "all" / TILES  # where no slide's own file lies, whatever its name
    if not (out / TABLE).exists() and (out / TILES).exists():
        if not [*work.glob("*.json")]:
            raise InputError(f"{out / TILES} was not written by this command: move it away, or name another --out.")
        if not stack.exists():  # killed before the very end
            os.replace(out / TILES, stack)
    stack.parent.mkdir(parents=True, exist_ok=True)
    with _naming_file(stack), open(stack, "r+b" if stack.exists() else "w+b") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        _write_header(file, 0, size)
        begin, bytes_of_tile = file.tell(), size**2 * 3
        for number, (slide, tiling) in enumerate(slides.items(), start=1):
            path_of_note, path_of_rows = work / f"{slide.name}.json", work / f"{slide.name}.csv"
            begun = {"tiling": request["tiling"], "slide": request["slides"][slide.name], "first": count}
            note = read_json(path_of_note, {})
            is_done = is_done and {key: note.get(key) for key in begun} == begun
            if is_done and "left_out" not in note:
                is_done = length >= begin + (count + len(read_tile_table(path_of_rows))) * bytes_of_tile
            if not is_done:
                for later in (path for path in work.glob("*.json") if path.stem not in notes):
                    later.unlink()
                file.truncate(file.seek(begin + count * bytes_of_tile))
                try:
                    of_slide, note = _cut_slide(slide, out, file, tiling, threads)
                    write_csv(path_of_rows, of_slide)
                    file.flush()
                    os.fsync(file.fileno())
                except MissingPackageError:  # of this machine, not of the slide: once it is installed, the slide counts
                    raise
                except InputError as error:
                    is_hidden = slide.name not in (name_of(slide.path), f"{name_of(slide.path)}_page{slide.page}")
                    note = {"left_out": str(error).replace(str(slide.path), slide.name) if is_hidden else str(error)}
                write_json(path_of_note, begun | note)
            notes[slide.name] = {key: value for key, value in note.items() if key not in begun}
            if "left_out" in note:
                print(f"[{number}/{len(slides)}] {slide.name}: left out", flush=True)
                continue
            of_slide = read_tile_table(path_of_rows)
            parts.append(of_slide)
            count += len(of_slide)
            blurred = int((of_slide.sharpness < BLURRED * of_slide.sharpness.median()).sum())
            tiles = f"{len(of_slide)} tile{'s' * (len(of_slide) != 1)}"
            print(f"[{number}/{len(slides)}] {slide.name}: {tiles}, {blurred} of them blurred", flush=True)
            if "doubt" in note:
                print(f"{slide.name}: {note['doubt']}.", flush=True)
        if not count and "part" not in request:
            raise slide_table.nothing_left({**{name: note["left_out"] for name, note in notes.items()}, **others})
        file.truncate(begin + count * bytes_of_tile)
        file.seek(0)
        _write_header(file, count, size)
        file.flush()
        os.fsync(file.fileno())
    (out / TABLE).unlink(missing_ok=True)  # tiles are never seen beside the table of others
    os.replace(stack, out / TILES)
    shutil.rmtree(out / PARTS, ignore_errors=True)  # of an earlier join
    there = {name for name, note in notes.items() if "left_out" not in note}
    for picture in (out / PICTURES).glob("*.jpg"):  # of an earlier cut, perhaps under the names that are now hidden
        if picture.stem not in there and _is_own(picture):
            picture.unlink()
    return pd.concat(parts or [pd.DataFrame(columns=COLUMNS)], ignore_index=True), notes


def _is_own(picture: Path) -> bool:
    """Whether `tile_slides` wrote it."""
    with suppress(OSError, Image.DecompressionBombError), Image.open(picture) as image:
        return picture_part(image) is not None
    return False


@contextmanager
def _naming_file(path: Path) -> Iterator[None]:
    """Inside the block the disk's errors name the file `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error


def _with_pseudonyms(
    slides: Sequence[SlideFile], rows: Mapping[str, Mapping[str, str]], out: Path, keep: bool
) -> tuple[list[SlideFile], dict[str, str]]:
    """The slides under their pseudonyms, and the patients'; those that the key beside `out` has already stay.

    keep: write the key.
    """
    key = out.with_name(f"{out.name}_pseudonyms.csv")
    pseudonyms = {}
    if key.exists():
        lines = read_table(key, ("pseudonym", "of"))
        pairs = zip(lines["of"], lines["pseudonym"], strict=True)
        pseudonyms = {of: file_name(pseudonym, str(key)) for of, pseudonym in pairs}
    patients = sorted({row["patient"] for row in rows.values() if row.get("patient")})
    pages = ["" if slide.page == 1 else f" page {slide.page}" for slide in slides]
    places = [f"slide {composed(str(slide.path.resolve()))}{page}" for slide, page in zip(slides, pages, strict=True)]
    names_in_use = {*pseudonyms.values()}
    for letter, keys in (("S", places), ("P", [f"patient {patient}" for patient in patients])):
        numbers = (number for number in itertools.count(1) if f"{letter}{number:03}" not in names_in_use)
        for place in keys:
            if place not in pseudonyms:
                pseudonyms[place] = f"{letter}{next(numbers):03}"
    hidden = [replace(slide, name=pseudonyms[place]) for slide, place in zip(slides, places, strict=True)]
    _refuse_doubled_names(hidden, f"give each its own pseudonym in {key}")
    hidden_patients = {patient: pseudonyms[f"patient {patient}"] for patient in patients}
    if len({*hidden_patients.values()}) < len(patients):
        raise InputError(f"{key} gives one pseudonym to two patients: give each its own.")
    if keep:
        write_csv(key, pd.DataFrame({"pseudonym": pseudonyms.values(), "of": pseudonyms.keys()}))
    return hidden, hidden_patients


def _offset(slide: SlideFile, tiling: Tiling) -> float:
    """Where among a slide's tiles an even choice begins."""
    seed = make_rng(tiling.seed, "tiles of a slide", slide.name)
    return torch.rand(1, generator=seed, dtype=torch.float64).item()


def _write_picture(path: Path, picture: Image.Image, plan: Plan) -> None:
    with atomic_write(path) as file:
        part = " ".join(map(str, plan.bounds))  # of level 0, as `picture_of` a map reads it
        picture.save(file, format="JPEG", quality=85, comment=part)


def _plan_all(
    slides: Mapping[SlideFile, Tiling], out: Path, others: Mapping[str, str]
) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """Write the picture of each slide, and print what would be cut; returns what `_cut_all` does."""
    if (out / TABLE).exists():
        raise InputError(f"{out} holds tiles, whose pictures a dry run would replace: name another folder.")
    parts, notes, size = [], {}, 0
    for slide, tiling in slides.items():
        try:
            with open_slide(slide.path, slide.page, tiling.icc) as reader:
                plan, picture = plan_tiles(reader, slide.path, tiling, _offset(slide, tiling))
                notes[slide.name] = _note(reader, plan)
        except MissingPackageError:
            raise
        except InputError as error:
            notes[slide.name] = {"left_out": str(error)}
            print(f"{slide.name}: would be left out", flush=True)
            continue
        _write_picture(out / PICTURES / f"{slide.name}.jpg", picture, plan)
        parts.append(_rows(slide.name, plan, np.arange(len(plan.corners)), tiling.size))
        size += len(plan.corners) * tiling.size**2 * 3
        doubt = f"; {plan.doubt}" if plan.doubt else ""
        print(f"{slide.name}: {len(plan.corners)} tiles of {plan.mpp:.3f} um/px{doubt}", flush=True)
    if not parts:
        raise slide_table.nothing_left({**{name: note["left_out"] for name, note in notes.items()}, **others})
    rows = pd.concat(parts, ignore_index=True)
    print(f"{len(rows)} tiles would take {size / 1e6:,.1f} MB; nothing was cut. Pictures are in {out / PICTURES}.")
    return rows, notes


def _rows(name: str, plan: Plan, members: np.ndarray, size: int) -> pd.DataFrame:
    """What the table says of planned tiles, but for their sharpness."""
    x, y = np.round(plan.bounds[:2] + plan.corners[members] * plan.downsample).astype(int).T
    side, tissue = round(size * plan.downsample), plan.tissue[members].round(3)
    values = name, x, y, side, plan.level, round(plan.mpp, 6), tissue
    return pd.DataFrame(dict(zip(COLUMNS[:-1], values, strict=True)))


def _note(reader: SlideReader, plan: Plan) -> dict[str, Any]:
    """What is kept of a slide beside its tiles."""
    doubt = {"doubt": plan.doubt} if plan.doubt else {}
    return {"scale": plan.scale._asdict(), "profile": profile_name(reader), **doubt}


def _cut_slide(
    slide: SlideFile, out: Path, file: IO[bytes], tiling: Tiling, threads: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Append the tiles of a slide to `file`, write its picture; returns the tiles' rows, and a note on the slide."""
    name = slide.name
    members_of, sharpness = [], []
    with open_slide(slide.path, slide.page, tiling.icc) as reader:
        plan, picture = plan_tiles(reader, slide.path, tiling, _offset(slide, tiling))
        note = _note(reader, plan)
        with progress(total=len(plan.corners), desc=name, unit="tile", leave=False, delay=1) as bar:
            for members, tiles, sharp in cut_tiles(reader, plan, tiling, threads):
                bar.update(len(members))
                keep = sharp >= tiling.min_sharpness
                file.write((tiles if keep.all() else tiles[keep]).data)
                members_of.append(members[keep])
                sharpness.append(sharp)
    members = np.concatenate(members_of)
    if not len(members):
        least, middle, most = np.quantile(np.concatenate(sharpness), (0, 0.5, 1))
        raise InputError(
            f"{slide.path} has no tile as sharp as {tiling.min_sharpness:g}: they are {least:.3g} to {most:.3g} sharp, "
            f"half of them above {middle:.3g}. Ask for less."
        )
    _write_picture(out / PICTURES / f"{name}.jpg", picture, plan)
    sharp = np.concatenate(sharpness)
    sharp = sharp[sharp >= tiling.min_sharpness].astype(float).round(1)
    return _rows(name, plan, members, tiling.size).assign(sharpness=sharp), note


def _write_header(file: IO[bytes], count: int, side: int) -> None:
    """The head of a .npy of tiles, as long for every count."""
    shape = (count, side, side, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
