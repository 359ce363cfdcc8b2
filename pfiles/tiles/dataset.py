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
from pfiles.tiles.files import _read_folder, _read_npy, _read_zip
from pfiles.tiles.pixels import as_tensor, evenly_spaced

TEST_PARTS = 11  # published: the last of 11 equal parts is the test set
MIN_TILES = 2 * TEST_PARTS


@dataclass(frozen=True)
class Tiles:
    """Square RGB tiles with their split.

    images: (N, S, S, 3) uint8, possibly memory-mapped.
    train, test: disjoint indices into `images`.
    source: what the tiles are, in a few words.
    """

    images: np.ndarray
    train: np.ndarray
    test: np.ndarray
    source: str

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
        "embedded" for 128 px crops of a real immunohistochemistry image that comes with scikit-image; None for the
        environment variable KPC_DATA and, where that is not set, "embedded". Relative paths start at the repository,
        so that they mean the same in every notebook.
    image_size_px: side of the tiles returned; larger tiles of a whole multiple are averaged down to it.
    max_train_tiles: use no more than so many training tiles, evenly spaced (None: all).
    n_clusters: refuse fewer training tiles than clusters.

    The last eleventh is the test set, as published, except that the embedded image is split by region, and that tiles
    which lie in at least eleven folders, one for each slide, are split between two folders.
    Raises InputError for anything that is not as described.
    """
    data = str(data if data is not None else os.environ.get("KPC_DATA") or "embedded")
    if data == "embedded":
        images, n_test, source = *_embedded_tiles(), "embedded immunohistochemistry crops (scikit-image)"
    else:
        path = ROOT / expand(data)
        (images, folders), source = _read(path), path.name
        n_test = _test_size(len(images), folders)
    if len(images) < MIN_TILES:
        raise InputError(f"{data} holds {len(images)} tiles: at least {MIN_TILES} are needed to train and to test.")
    images = _resize(images, image_size_px, data)

    indices = np.arange(len(images))
    train, test = indices[:-n_test], indices[-n_test:]
    if max_train_tiles is not None and len(train) > max_train_tiles:
        print(f"Using {max_train_tiles} of {len(train)} training tiles, evenly spaced (setting max_train_tiles).")
        train = train[evenly_spaced(len(train), max_train_tiles)]
    if n_clusters > len(train):
        raise InputError(
            f"n_clusters is {n_clusters}, but there are only {len(train)} training tiles: choose fewer clusters."
        )
    return Tiles(images, train, test, source)


def _test_size(n: int, folders: Sequence[Path]) -> int:
    """How many of n tiles, the last ones, are for testing; `folders` says where each lies, where that is known."""
    cut = n - n // TEST_PARTS
    if len(set(folders)) < TEST_PARTS:
        return n - cut
    begins = [i for i in range(1, n) if folders[i] != folders[i - 1]]  # of all folders but the first
    cut = max((i for i in begins if i <= cut), default=begins[0])
    print(f"The last {len(set(folders[cut:]))} of {len(set(folders))} folders are the test set.")
    return n - cut


def _embedded_tiles() -> tuple[np.ndarray, int]:
    """128 px crops every 16 px; test crops come from the 160 columns on the right, training crops from the rest."""
    from skimage.data import immunohistochemistry

    image, size, stride, border = immunohistochemistry(), 128, 16, 352
    height, width = image.shape[:2]
    regions = (range(0, border - size + 1, stride), range(border, width - size + 1, stride))
    train, test = (
        [image[top : top + size, left : left + size] for top in range(0, height - size + 1, stride) for left in columns]
        for columns in regions
    )
    return np.stack(train + test), len(test)


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
    for i, tile in enumerate(images):
        blocks = tile.reshape(size, factor, size, factor, 3)
        out[i] = (blocks.mean(axis=(1, 3)) + 0.5).astype(np.uint8)
    return out
