"""Tiles: where they come from, how they are split, and what happens to them before a network sees them.

On disk and on the device tiles are uint8. Networks see float32 in [0, 1], made by `to_unit` and nowhere else.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pfiles.errors import InputError
from pfiles.machine import processes
from pfiles.machine.cpu import usable_cores
from pfiles.paths import ROOT, atomic_write, expand
from pfiles.tiles import builtin, copies
from pfiles.tiles.mapped import Images, Rows
from pfiles.tiles.pixels import as_array, evenly_spaced
from pfiles.tiles.sources import PICTURES, Source, is_cut, patients_of, read_source
from pfiles.tiles.split import TEST_PARTS, last_part, split_by_folder, split_by_patient

MIN_TILES = 2 * TEST_PARTS
HASHED = 2**17  # tiles that are hashed as one; more are hashed in parts, which threads and processes share
PART = 1024  # tiles that are read and moved at once; changes memory and speed only
EMBEDDED: dict[str, tuple[Callable[[], tuple[Tensor, np.ndarray, np.ndarray, np.recarray | None]], str]] = {
    "embedded": (builtin.he_tiles, "embedded H&E tiles (CMU-1-Small-Region, Carnegie Mellon University)"),
    "embedded-ihc": (builtin.ihc_tiles, "embedded immunohistochemistry crops (scikit-image)"),
}
LAST_PART = "The last eleventh of the tiles is the test set; a slide may be on both sides."


@dataclass(frozen=True)
class Tiles:
    """Square RGB tiles with their split.

    images: (N, 3, S, S) uint8, possibly memory-mapped, in several files where parts were joined.
    train, test: disjoint indices into `images`.
    source: what the tiles are, in a few words.
    positions: where each tile was cut, as N records of slide (name), x, y (upper left corner) and side, all three in
        pixels of the slide's level 0, and mpp (microns per pixel of `images`); None where that is not known.
    labels: (N,) str, "" where unknown; None where there are none. For evaluation alone: no training sees them.
    patients: (N,) str, "" where unknown; None where none is known.
    state: a hash of the paths, sizes and times of the files that were read; None where it cannot be relied on.
    pictures: the folder of the slides' pictures that `tile_slides` wrote; None where there is none.
    profiles: how many tiles are of files with which colour profile, as `Source` has them; empty where none is known.
    """

    images: Images
    train: np.ndarray
    test: np.ndarray
    source: str
    positions: np.recarray | None = None
    labels: np.ndarray | None = None
    state: str | None = None
    patients: np.ndarray | None = None
    pictures: Path | None = None
    profiles: Mapping[str, int] = field(default_factory=dict)

    @property
    def mpp(self) -> float | None:
        """Microns per pixel of the tiles, the median; None where it is not known."""
        return None if self.positions is None else float(np.median(self.positions.mpp))

    def tensor(self, indices: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """The tiles `indices` as uint8 (B, 3, S, S) on `device`, brought there in parts."""
        index = torch.as_tensor(indices)
        tiles = torch.empty(len(index), *self.images.shape[1:], dtype=torch.uint8, device=device)
        for part, rows in zip(tiles.split(PART), index.split(PART), strict=True):
            part.copy_(self.images[rows])
        return tiles

    def rows(self, indices: np.ndarray) -> Rows:
        """The tiles `indices`, read when they are asked for."""
        return Rows(self.images, indices)

    def labels_of(self, indices: np.ndarray) -> np.ndarray | None:
        """The labels of the tiles `indices`; None where the tiles have none."""
        return None if self.labels is None else self.labels[indices]

    def some_of_training(self, count: int) -> np.ndarray:
        """The places of `count` training tiles, evenly spaced."""
        return self.train[evenly_spaced(len(self.train), count)]

    def fingerprint(self) -> str:
        """A short hash of the split, the size and all pixels, to tell one data set from another."""
        n, colours, height, width = self.images.shape
        about = ((n, height, width, colours), self.train.tolist(), self.test.tolist())
        digest = hashlib.sha256(repr(about).encode())
        digest.update(self._pixels().encode())
        return digest.hexdigest()[:16]

    def _pixels(self) -> str:
        """The SHA-256 of all pixels, or, of more than `HASHED` tiles, that of the hashes of so many at a time; where
        the files of `state` were hashed at this size before, what was kept then."""
        if (pixels_hash := self._kept_hash()) is not None:
            return pixels_hash
        return self._keep_hash(self._hash_parts([*range(self._number_of_parts)]))

    def hash_together(self) -> None:
        """Hash the pixels for `fingerprint`, as one of the processes of a job, which all call this: each hashes its
        range of the tiles. Nothing is done where this was done before, or where nothing can be kept of it."""
        is_hashed = processes.world_size() == 1 or self.state is None or self._kept_hash() is not None
        if not all(processes.gather([is_hashed])):
            parts = self._hash_parts(processes.share([*range(self._number_of_parts)]))
            self._keep_hash(processes.gather(parts))

    def _kept_hash(self) -> str | None:
        """What was kept of the pixels of the files of `state`; None if nothing was."""
        if self.state is not None:
            with suppress(OSError, UnicodeDecodeError):
                if re.fullmatch("[0-9a-f]{64}", pixels_hash := self._hash_file.read_text()):
                    return pixels_hash
        return None

    def _keep_hash(self, parts: list[str]) -> str:
        """One hash of those of all parts, which is kept for the files of `state`."""
        pixels_hash = parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
        if self.state is not None:
            with suppress(OSError), atomic_write(self._hash_file, by_every_process=True) as file:  # it only saves time
                file.write(pixels_hash.encode())
        return pixels_hash

    @property
    def _hash_file(self) -> Path:
        return _cache_folder() / f"{self.state}_{self.images.shape[2]}.txt"

    @property
    def _number_of_parts(self) -> int:
        return -(-len(self.images) // HASHED)

    def _hash_parts(self, parts: list[int]) -> list[str]:
        """The SHA-256 of some parts of the tiles, by their numbers from 0; threads share them."""
        with ThreadPoolExecutor(usable_cores()) as pool:
            return [*pool.map(self._hash_part, parts)]

    def _hash_part(self, part: int) -> str:
        digest = hashlib.sha256()
        end = min((part + 1) * HASHED, len(self.images))
        for i in range(part * HASHED, end, 64):
            digest.update(as_array(self.images[i : min(i + 64, end)]).data)
        return digest.hexdigest()


def _cache_folder() -> Path:
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home folder
        base = _folder_of_this_process()
    return base / "kpc_ldm" / "pixels"


@cache
def _folder_of_this_process() -> Path:
    """Among the temporary files; one of a name that others know could be a link of theirs."""
    return Path(tempfile.mkdtemp(prefix="kpc_ldm_"))


def data_or_default(data: str | Path | None) -> str:
    """`data`, or where it is None the environment variable KPC_DATA, or "embedded"."""
    return str(data if data is not None else os.environ.get("KPC_DATA") or "embedded")


def are_there(data: str | Path | None) -> bool:
    """Whether there is anything where `data` points, as `load_tiles` takes them."""
    data = data_or_default(data)
    return data in EMBEDDED or os.path.exists(ROOT / expand(data))


def refuse_results_among_tiles(data: str | Path | None, results: Path) -> None:
    """InputError where the folder of results lies in the folder of tiles `data`, whose every image is a tile."""
    data = data_or_default(data)
    if data in EMBEDDED or not os.path.isdir(ROOT / expand(data)):  # Path.is_dir raises for a name that is too long
        return
    folder = (ROOT / expand(data)).resolve()
    if not is_cut(folder) and results.is_relative_to(folder):
        raise InputError(f"The results in {results} would lie among the tiles in {data}: name another folder as out.")


def load_tiles(
    data: str | Path | None,
    image_size_px: int,
    max_train_tiles: int | None = None,
    n_clusters: int = 2,
    icc: bool = False,
) -> Tiles:
    """Read tiles and split them into training and test tiles.

    data: a `.npy` of uint8, either the published (N, S, H, W, 3), whose slot 0 is used, or (N, H, W, 3), both
        memory-mapped; a folder of PNG, JPEG or TIFF, read recursively in sorted order; a `.zip` of such a folder; a
        folder of tiles cut from slides by `python -m pfiles tile`;
        "embedded" for 128 px tiles of the H&E slide that ships with the project, "embedded-ihc" for crops of an
        immunohistochemistry image that comes with scikit-image; None for the environment variable KPC_DATA and, where
        that is not set, "embedded". Relative paths start at the repository, so that they mean the same in every
        notebook.
    image_size_px: side of the tiles returned; larger tiles of a whole multiple are averaged down to it.
    max_train_tiles: use no more than so many training tiles, evenly spaced (None: all).
    n_clusters: refuse training tiles of which no more than that differ from each other.
    icc: bring image files to sRGB from their colour profiles.

    The last eleventh is the test set, as published, except that embedded images are split by region, tiles in at least
    eleven folders by folder, of which each is taken for a slide (see `split_by_folder`), and tiles cut from slides by
    patient or slide. A file `labels.csv` or `*_labels.csv` in the folder or `.zip`, with the columns `file` and `label`
    (or `tissue`), becomes `labels`.
    Raises InputError for anything that is not as described.
    """
    data = data_or_default(data)
    images: Images
    positions = labels = patients = state = said = pictures = None
    profiles: Mapping[str, int] = {}
    if data in EMBEDDED:
        read, source = EMBEDDED[data]
        images, train, test, positions = read()
        said = "The test tiles lie in another part of the image than the training tiles."
    else:
        path = ROOT / expand(data)
        tiles, source = read_source(path, icc), path.name
        images, labels, state, profiles = tiles.images, tiles.labels, tiles.state, tiles.profiles
        if tiles.positions is not None:
            positions = tiles.positions
            in_train, in_test, said = split_by_patient(positions, tiles.patients)
            patients = patients_of(tiles)
            pictures = path / PICTURES
        else:
            in_test, said = split_by_folder(tiles.names) if tiles.names else (last_part(len(images)), LAST_PART)
            in_train = ~in_test
        train, test = np.flatnonzero(in_train), np.flatnonzero(in_test)
    if len(images) < MIN_TILES:
        raise InputError(f"{data} holds {len(images)} tiles: at least {MIN_TILES} are needed to train and to test.")
    factor = images.shape[2] / image_size_px
    images = _resize(images, image_size_px, data)
    if positions is not None:
        positions.mpp *= factor
    selected = train if max_train_tiles is None else train[evenly_spaced(len(train), max_train_tiles)]
    if n_clusters > len(selected):
        raise InputError(
            f"n_clusters is {n_clusters}, but there are only {len(selected)} training tiles: choose fewer clusters."
        )
    distinct = _n_distinct(images, selected, n_clusters + 1)
    if distinct <= n_clusters:
        more = f"choose at most {distinct - 1} clusters" if distinct > 2 else "give other tiles"
        raise InputError(
            f"n_clusters is {n_clusters}, but only {distinct} of {len(selected)} training tiles differ, and there must "
            f"be more of them than clusters: {more}."
        )
    if said:
        print(said)
    if data not in EMBEDDED:
        _refuse_copies(images, train, test, tiles)
    if len(selected) < len(train):
        print(f"Using {len(selected)} of {len(train)} training tiles, evenly spaced (setting max_train_tiles).")
    return Tiles(images, selected, test, source, positions, labels, state, patients, pictures, profiles)


def _refuse_copies(images: Images, train: np.ndarray, test: np.ndarray, source: Source) -> None:
    """InputError where a test tile is a training tile as well; near-copies and likely patients are warned about."""

    def name(i: int) -> str:
        if source.positions is not None:
            return f"{source.positions.slide[i]} at {source.positions.x[i]}, {source.positions.y[i]}"
        return str(source.names[i]) if source.names else f"number {i}"

    pairs = copies.copies(images, test, train)
    if len(pairs):
        raise InputError(
            f"{copies.in_words(pairs, len(test), name)}: keep one of each, or give slides of one patient as such, so "
            "that they are on one side."
        )
    copies.warn_of_near_copies(images, test, train, name, _cache_folder().parent, source.state)
    if not any(source.patients):
        slides = source.positions.slide if source.positions is not None else list(map(str, source.names))
        if len(slides):
            copies.warn_of_patients(*({slides[i] for i in side} for side in (train, test)))


def _n_distinct(images: Images, indices: np.ndarray, enough: int) -> int:
    """How many of the tiles `indices` differ; counting stops at `enough`."""
    hashes: set[bytes] = set()
    for i in indices:
        hashes.add(hashlib.sha256(as_array(images[i : i + 1]).data).digest())
        if len(hashes) == enough:
            break
    return len(hashes)


def _resize(images: Images, size: int, data: str) -> Images:
    """Average blocks of pixels where the tiles are larger than `size`."""
    factor, remainder = divmod(images.shape[2], size)
    if factor < 1 or remainder:
        raise InputError(
            f"The tiles of {data} are {images.shape[2]} px, but image_size_px is {size}: it must be their size or "
            "divide it."
        )
    if factor == 1:
        return images
    resized = []
    for part in images.split(256):
        places = [part[:, :, y::factor, x::factor].int() for y in range(factor) for x in range(factor)]
        total = sum(places[1:], places[0])
        resized.append(((2 * total + factor**2) // (2 * factor**2)).to(torch.uint8))
    return torch.cat(resized)
