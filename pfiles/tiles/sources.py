"""What users give as data: an array, a folder or an archive of tiles, checked when it is read."""

import hashlib
import os
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from pfiles.errors import InputError
from pfiles.paths import read_json
from pfiles.spreadsheet import columns_of, composed, file_name, numbers, parse_table, read_table
from pfiles.tiles.files import decode, is_image_name, quietly, read_files, stack_tiles, types_in_words
from pfiles.tiles.mapped import Images, MappedParts
from pfiles.tiles.pixels import as_tensor

TILES, TABLE, PICTURES = "tiles.npy", "tiles.csv", "slides"  # of a folder that `python -m pfiles tile` wrote
ABOUT = "tiling.json"  # of it: what was asked for, and a note on each slide
PARTS = "parts"  # of such a folder that was joined: several files of tiles instead of one
DRAWN = ("file", "cluster", "name", "seed")  # the columns of that table beside generated tiles
WHOLE, FRACTIONS = ("x", "y", "side", "level"), ("mpp", "tissue", "sharpness")  # numbers of its columns
POSITION = ("slide", "x", "y", "side", "mpp")  # what is kept of the place of a tile
HE_SLOT = 0  # the stain of the published array's second axis that is used here
MAX_MEMBER_BYTES = 2**27  # of a file in an archive once unpacked: a tile of 6,000 px without compression
SETTLED_SECONDS = 2  # a file changed later than this might change again under the same time


@dataclass(frozen=True)
class Source:
    """Tiles as they were given.

    images: (N, 3, S, S) uint8, possibly memory-mapped, in several files where parts were joined.
    names: of each tile inside the folder or archive; empty where tiles have no names.
    labels: (N,) str, "" where unknown; None where no labels were given.
    state: what tells the files apart from later versions of them; None where that cannot be relied on.
    positions, patients: of tiles that were cut from slides, as `Tiles` holds the former; the latter "" where unknown.
    profiles: how many tiles are of files with which colour profile, by its name or "none".
    """

    images: Images
    names: Sequence[PurePosixPath] = ()
    labels: np.ndarray | None = None
    state: str | None = None
    positions: np.recarray | None = None
    patients: Sequence[str] = ()
    profiles: Mapping[str, int] = field(default_factory=dict)


def read_source(path: Path, icc: bool = False) -> Source:
    """The tiles in a `.npy`, a folder or a `.zip`; icc: see `decode`. InputError for anything else, or broken."""
    if not os.path.exists(path):  # Path.exists raises for a name that is too long
        raise InputError(f"There is no data at {path}: give a .npy file, a folder of images or a .zip of one.")
    if path.is_dir():
        return _read_cut(path) if is_cut(path) else _read_folder(path, icc)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        state = _state([path])
        return Source(_read_npy(path), state=state)
    if suffix == ".zip":
        return _read_zip(path, icc)
    raise InputError(f"{path} is neither a .npy file, nor a folder of images, nor a .zip of one.")


def _state(files: Sequence[Path], icc: bool = False) -> str | None:
    """A hash of the files' paths, sizes and times, and of `icc`; None where one was changed only just now."""
    digest, newest = hashlib.sha256(b"icc" * icc), 0
    for path in files:
        status = os.stat(path)
        newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(repr((str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns)).encode())
    return digest.hexdigest() if newest < time.time_ns() - SETTLED_SECONDS * 10**9 else None


def is_cut(folder: Path) -> bool:
    """Whether tiles were cut from slides into this folder; a table of that name may also be of generated tiles, or be
    the user's own."""
    return (folder / TABLE).exists() and ((folder / TILES).exists() or {"slide", "x", "y"} <= {*_columns(folder)})


def is_drawn(folder: Path) -> bool:
    """Whether the table in this folder is that of generated tiles."""
    return (folder / TABLE).exists() and _columns(folder)[: len(DRAWN)] == list(DRAWN)


def _columns(folder: Path) -> list[str]:
    """Of its TABLE; none where that cannot be read."""
    with suppress(InputError, OSError):
        return columns_of(folder / TABLE)
    return []


@quietly()
def _read_npy(path: Path) -> Tensor:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a broken header raises errors of many kinds in numpy
        raise InputError(f"{path} cannot be read as a .npy array ({error}): write it anew with numpy.save.") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is an archive of arrays, not a .npy array: write the tiles with numpy.save.")
    expected = f"{path} must hold uint8 tiles of shape (N, H, H, 3), or (N, stains, H, H, 3) as published, but holds"
    if array.dtype != np.uint8:
        raise InputError(f"{expected} {array.dtype} of shape {array.shape}: convert it to 0 ... 255 as uint8.")
    if array.ndim == 5 and array.shape[1]:
        array = array[:, HE_SLOT]
    if array.ndim != 4 or array.shape[3] != 3 or array.shape[1] != array.shape[2] or not array.size:
        raise InputError(f"{expected} shape {array.shape}: bring the axes into that order and cut square tiles.")
    return as_tensor(array)


def _read_cut(folder: Path) -> Source:
    """The folder that `python -m pfiles tile` wrote, or joined."""
    parts = [] if (folder / TILES).exists() else sorted((folder / PARTS).glob("*.npy"))
    if gone := next((part for part in parts if not part.exists()), None):
        raise InputError(f"{gone} leads to tiles that are gone, {gone.readlink()}: put them back, or join anew.")
    files = parts or [folder / TILES]
    state = _state([*files, folder / TABLE]) if files[0].exists() else None
    images = MappedParts([*map(_read_npy, parts)]) if parts else read_source(folder / TILES).images
    rows = read_tile_table(folder / TABLE)
    positions = positions_of(rows)
    if len(rows) != len(images):
        raise InputError(f"{folder / TABLE} has {len(rows)} rows for {len(images)} tiles: cut the tiles anew.")
    labels = rows["label"].to_numpy(str) if "label" in rows else None
    patients = rows["patient"].tolist() if "patient" in rows else [""] * len(rows)
    about = read_json(folder / ABOUT, {})
    profiles = Counter(rows["slide"].map({slide: _profile_of(about, slide) for slide in rows["slide"].unique()}))
    return Source(images, (), labels, state, positions, patients, profiles)


def _profile_of(about: Mapping[str, Any], slide: str) -> str:
    """The name of a slide's colour profile as `tile_slides` noted it, "none" where it did not."""
    with suppress(KeyError, TypeError):
        return str(about["notes"][slide]["profile"] or "none")
    return "none"


def read_tile_table(path: Path) -> pd.DataFrame:
    """A row for each tile that `python -m pfiles tile` cut; InputError where it is no such table."""
    rows = read_table(path, kinds=dict.fromkeys(WHOLE, int) | dict.fromkeys(FRACTIONS, float))
    if missing := {"slide", "x", "y", "side", "mpp"} - set(rows.columns):
        raise InputError(
            f"{path} is not the table of {TILES}, as it lacks {', '.join(sorted(missing))}: cut them anew."
        )
    for name in {*WHOLE, *FRACTIONS} & set(rows.columns):
        rows[name] = numbers(rows, name, str(path), whole=name in WHOLE)
    if (rows[["side", "mpp"]] <= 0).any(axis=None):
        raise InputError(f"{path} has a tile whose side or mpp is not above 0: cut the tiles anew.")
    for slide in rows["slide"].unique():
        file_name(slide, str(path))
    return rows.reset_index(drop=True)


def positions_of(rows: pd.DataFrame) -> np.recarray:
    """The columns slide, x, y, side and mpp of a table of tiles, as `Tiles.positions`."""
    return make_positions(rows["slide"].to_numpy(str), *(rows[name].to_numpy() for name in POSITION[1:]))


def make_positions(*columns: np.ndarray) -> np.recarray:
    """The columns slide, x, y, side and mpp (N,) as `Tiles.positions`."""
    return np.rec.fromarrays(columns, dtype=[(name, of.dtype) for name, of in zip(POSITION, columns, strict=True)])


def patients_of(source: Source) -> np.ndarray | None:
    """The patient of each tile (N,), "" where unknown; None where no patient is known."""
    return np.array(source.patients, str) if any(source.patients) else None


def _read_folder(folder: Path, icc: bool) -> Source:
    files = {PurePosixPath(path.relative_to(folder).as_posix()): path for path in walk(folder)}
    names = sorted((name for name in files if is_image_name(name)), key=lambda name: name.parts)
    _tell_unread(files, folder)
    paths = [files[name] for name in names]
    state = _state(paths, icc)
    images, profiles = read_files(paths, folder, icc)
    return Source(images, names, _labels_among(files, folder, names), state, profiles=profiles)


def _tell_unread(names: Iterable[PurePosixPath], where: Path) -> None:
    """Print how many images of which types in a folder or archive are not read."""
    if sentence := types_in_words(name for name in names if not name.name.startswith(".")):
        print(f"In {where} {sentence}")


def read_labels(folder: Path, tiles: Iterable[Path]) -> np.ndarray | None:
    """The labels (N,) of the `tiles` that lie in a folder, from its `labels.csv` or `*_labels.csv`; None without."""
    files = {PurePosixPath(path.name): path for path in folder.iterdir()}
    return _labels_among(files, folder, [PurePosixPath(path.name) for path in tiles])


def _labels_among(
    files: Mapping[PurePosixPath, Path], folder: Path, names: Sequence[PurePosixPath]
) -> np.ndarray | None:
    name = _label_file(files, folder)
    return None if name is None else _labels(files[name].read_bytes(), str(files[name]), names)


def picture_part(picture: Image.Image) -> tuple[float, float, float, float] | None:
    """Which part of a slide's finest level a picture in PICTURES shows: left, top, width and height, as `tile_slides`
    noted it there; None of any other picture."""
    part = picture.info.get("comment", b"").split()
    if len(part) != 4:
        return None
    left, top, width, height = map(float, part)
    return left, top, width, height


def walk(folder: Path) -> list[Path]:
    """All files below a folder, OME-Zarrs among them; links are followed, but what is there without them is not found a
    second time."""
    root = folder.resolve()
    plain, visited = [folder], set()
    folder_links: list[Path] = []
    file_links: list[Path] = []
    files: list[Path] = []
    while plain or folder_links:
        here = plain.pop() if plain else folder_links.pop()
        real = here.resolve()
        if real in visited or (here != folder and root.is_relative_to(real)):  # a link upwards leads round in circles
            continue
        visited.add(real)
        for entry in sorted(os.scandir(here), key=lambda entry: entry.name, reverse=True):
            path = here / entry.name
            if entry.name.startswith("."):
                continue
            if not os.path.exists(path):
                raise InputError(f"{path} is a link to a file that is not there: mend or remove it.")
            linked = entry.is_symlink()
            if path.is_dir() and path.suffix.lower() != ".zarr":  # the folder of an OME-Zarr is one slide
                (folder_links if linked else plain).append(path)
            elif path.is_file() or path.is_dir():
                (file_links if linked else files).append(path)
    reached, without_links = {path.resolve() for path in files}, len(files)
    for path in sorted(file_links):
        real = path.resolve()
        if real not in reached:
            reached.add(real)
            files.append(path)
    if again := without_links + len(file_links) - len(files):
        print(f"{again} of the links in {folder} lead to files that are there already: each counts once.")
    return files


def _read_zip(path: Path, icc: bool) -> Source:
    try:
        state = _state([path], icc)
        with zipfile.ZipFile(path) as archive:
            members: dict[PurePosixPath, zipfile.ZipInfo] = {}
            for info in archive.infolist():
                name = PurePosixPath(info.filename.replace("\\", "/"))
                if name in members and is_image_name(name):
                    raise InputError(f"{path} holds {name} twice: pack each tile once, under a name of its own.")
                members[name] = info
            _refuse_members(members, path)
            names = sorted(filter(is_image_name, members), key=lambda name: name.parts)
            _tell_unread(members, path)
            label_file = _label_file(members, path)
            labels = None
            if label_file is not None:
                labels = _labels(archive.read(members[label_file]), f"{path}:{label_file}", names)
            texts = [f"{path}:{name}" for name in names]
            pairs = zip(texts, names, strict=True)
            tiles = ((text, decode(text, archive.read(members[name]), icc)) for text, name in pairs)
            images, profiles = stack_tiles(tiles, len(names), path, icc)
            return Source(images, names, labels, state, profiles=profiles)
    except InputError:
        raise
    except Exception as error:  # a broken archive raises errors of many kinds in zipfile
        raise InputError(f"{path} is not a sound .zip file ({error}): pack or download it again.") from error


def _refuse_members(members: Mapping[PurePosixPath, zipfile.ZipInfo], path: Path) -> None:
    for name, info in members.items():
        if ".." in name.parts:
            raise InputError(f"{path} holds {name}, which lies outside the folder that was packed: pack it again.")
        if info.file_size > MAX_MEMBER_BYTES and (is_image_name(name) or _is_label_name(name)):
            raise InputError(
                f"{path} holds {name}, which would unpack to {info.file_size / 2**20:,.0f} MB, but a tile may take "
                f"{MAX_MEMBER_BYTES // 2**20} MB: remove it."
            )


def _is_label_name(name: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
    return not hidden and (name.name == "labels.csv" or name.name.endswith("_labels.csv"))


def _label_file(names: Mapping[PurePosixPath, object], where: Path) -> PurePosixPath | None:
    candidates = sorted(filter(_is_label_name, names))
    if len(candidates) > 1:
        raise InputError(f"{where} holds both {candidates[0]} and {candidates[1]}: keep one file of labels.")
    return candidates[0] if candidates else None


def _labels(content: bytes, origin: str, names: Sequence[PurePosixPath]) -> np.ndarray:
    """The label of each tile, from rows `file,label` (or `file,tissue`); files by their path or the end of it."""
    table = parse_table(content, origin)
    column = next((name for name in ("label", "tissue") if name in table), None)
    if "file" not in table or column is None or not len(table):
        raise InputError(f"{origin} must have the columns file and label (or tissue) and rows: write or remove it.")
    label_of_file: dict[str, str] = {}
    for file, label in zip(table["file"], table[column], strict=True):
        file = file.replace("\\", "/").removeprefix("./")
        if label_of_file.setdefault(file, label) != label:
            raise InputError(
                f"{origin} calls {file} both {label_of_file[file]!r} and {label!r}: keep one row for each file."
            )
    labels = []
    tile_of: dict[str, PurePosixPath] = {}
    for name in names:
        ends = (composed("/".join(name.parts[i:])) for i in range(len(name.parts)))
        file = next((end for end in ends if end in label_of_file), None)
        if file is not None and tile_of.setdefault(file, name) != name:
            raise InputError(f"{origin} names {file}, which may be {tile_of[file]} or {name}: write the folder too.")
        labels.append("" if file is None else label_of_file[file])
    if not tile_of and names:
        raise InputError(f"{origin} names {len(label_of_file)} files, but none is one of the tiles: write their paths.")
    return np.array(labels, str)
