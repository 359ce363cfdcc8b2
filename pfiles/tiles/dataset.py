"""Tiles: where they come from, how they are split, and what happens to them before a network sees them.

On disk and on the device tiles are uint8. Networks see float32 in [0, 1], made by `to_unit` and nowhere else.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pfiles.errors import InputError
from pfiles.paths import ROOT, expand
from pfiles.tiles import builtin
from pfiles.tiles.files import _read_folder, _read_npy, _read_zip
from pfiles.tiles.pixels import as_tensor, evenly_spaced

TEST_PARTS = 11  # published: the last of 11 equal parts is the test set
MIN_TILES = 2 * TEST_PARTS
EMBEDDED = {
    "embedded": (builtin.he_tiles, "embedded H&E tiles (CMU-1-Small-Region, Carnegie Mellon University)"),
    "embedded-ihc": (builtin.ihc_tiles, "embedded immunohistochemistry crops (scikit-image)"),
}


@dataclass(frozen=True)
class Tiles:
    """Square RGB tiles with their split.

    images: (N, S, S, 3) uint8, possibly memory-mapped.
    train, test: disjoint indices into `images`.
    source: what the tiles are, in a few words.
    positions: where each tile was cut, as N records of slide (name), x, y (upper left corner) and side, all three in
        pixels of the slide's level 0, and mpp (microns per pixel of `images`); None where that is not known.
    """

    images: np.ndarray
    train: np.ndarray
    test: np.ndarray
    source: str
    positions: np.recarray | None = None

    def tensor(self, indices: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """The tiles `indices` as uint8 (B, 3, S, S) on `device`."""
        return as_tensor(np.ascontiguousarray(self.images[indices])).contiguous().to(device)

    def some_of_training(self, count: int) -> np.ndarray:
        """The places of `count` training tiles, evenly spaced."""
        return self.train[evenly_spaced(len(self.train), count)]

    def fingerprint(self) -> str:
        """A short hash of the split, the size and 64 evenly spaced tiles, to tell one data set from another."""
        digest = hashlib.sha256(repr((self.images.shape, self.train.tolist(), self.test.tolist())).encode())
        for i in evenly_spaced(len(self.images), 64):
            digest.update(np.ascontiguousarray(self.images[i]))
        return digest.hexdigest()[:16]


def load_tiles(
    data: str | Path | None, image_size_px: int, max_train_tiles: int | None = None, n_clusters: int = 2
) -> Tiles:
    """Read tiles and split them into training and test tiles.

    data: a `.npy` of uint8, either the published (N, S, H, W, 3), whose slot 0 is used, or (N, H, W, 3), both
        memory-mapped; a folder of PNG, JPEG or TIFF, read recursively in sorted order; a `.zip` of such a folder;
        "embedded" for 128 px tiles of the H&E slide that ships with the project, "embedded-ihc" for crops of an
        immunohistochemistry image that comes with scikit-image; None for the environment variable KPC_DATA and, where
        that is not set, "embedded". Relative paths start at the repository, so that they mean the same in every
        notebook.
    image_size_px: side of the tiles returned; larger tiles of a whole multiple are averaged down to it.
    max_train_tiles: use no more than so many training tiles, evenly spaced (None: all).
    n_clusters: refuse fewer training tiles than clusters.

    The last eleventh is the test set, as published, except that embedded images are split by region, and that tiles
    which lie in at least eleven folders, one for each slide, are split between two folders.
    Raises InputError for anything that is not as described.
    """
    data = str(data if data is not None else os.environ.get("KPC_DATA") or "embedded")
    positions = None
    if data in EMBEDDED:
        read, source = EMBEDDED[data]
        images, train, test, positions = read()
    else:
        path = ROOT / expand(data)
        (images, folders), source = _read(path), path.name
        train, test = np.split(np.arange(len(images)), [len(images) - _test_size(len(images), folders)])
    if len(images) < MIN_TILES:
        raise InputError(f"{data} holds {len(images)} tiles: at least {MIN_TILES} are needed to train and to test.")
    factor = images.shape[1] / image_size_px
    images = _resize(images, image_size_px, data)
    if positions is not None:
        positions.mpp *= factor
    used = train if max_train_tiles is None else train[evenly_spaced(len(train), max_train_tiles)]
    if n_clusters > len(used):
        raise InputError(
            f"n_clusters is {n_clusters}, but there are only {len(used)} training tiles: choose fewer clusters."
        )
    if len(used) < len(train):
        print(f"Using {len(used)} of {len(train)} training tiles, evenly spaced (setting max_train_tiles).")
    return Tiles(images, used, test, source, positions)


def _test_size(n: int, folders: Sequence[Path]) -> int:
    """How many of n tiles, the last ones, are for testing; `folders` says where each lies, where that is known."""
    cut = n - n // TEST_PARTS
    if len(set(folders)) < TEST_PARTS:
        return n - cut
    begins = [i for i in range(1, n) if folders[i] != folders[i - 1]]  # of all folders but the first
    cut = max((i for i in begins if i <= cut), default=begins[0])
    print(f"The last {len(set(folders[cut:]))} of {len(set(folders))} folders are the test set.")
    return n - cut


def _read(path: Path) -> tuple[np.ndarray, list[Path]]:
    """The images in `path`, and the folder each lies in; none for a `.npy`."""
    if not os.path.exists(path):  # Path.exists raises for a name that is too long
        raise InputError(f"There is no data at {path}: give a .npy file, a folder of images or a .zip of one.")
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".npy":
        return _read_npy(path), []
    if path.suffix == ".zip":
        return _read_zip(path)
    raise InputError(f"{path} is neither a .npy file, nor a folder of images, nor a .zip of one.")


def _resize(images: np.ndarray, size: int, data: str) -> np.ndarray:
    """Average blocks of pixels where the tiles are larger than `size`."""
    factor, rest = divmod(images.shape[1], size)
    if factor < 1 or rest:
        raise InputError(
            f"The tiles of {data} are {images.shape[1]} px, but image_size_px is {size}: it must be their size or "
            "divide it."
        )
    if factor == 1:
        return images
    out = np.empty((len(images), size, size, 3), np.uint8)
    for i in range(0, len(images), 256):
        part = images[i : i + 256]
        total = sum(part[:, y::factor, x::factor].astype(np.uint32) for y in range(factor) for x in range(factor))
        out[i : i + 256] = (2 * total + factor**2) // (2 * factor**2)
    return out
