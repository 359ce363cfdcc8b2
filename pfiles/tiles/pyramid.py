"""A picture of any size as a tiled pyramidal TIFF, which OpenSlide and QuPath open; written in bounded memory."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pfiles.errors import extra
from pfiles.paths import atomic_write

SIDE = 256  # px of a tile of the file
SMALLEST = 512  # px: levels are halved until both sides are at most this
PLAIN_TIFF = 2**32 - 2**26  # bytes up to which a file needs no 64-bit offsets


def write_pyramid(
    path: Path, rows: Callable[[int, int], np.ndarray], size: tuple[int, int], mpp: float | None = None
) -> None:
    """Write a picture, without loss, with levels of half, a quarter and so on; whole or not at all.

    rows: from the first row and the one behind the last to these rows of pixels, uint8 (h, W, 3), 256 at most.
    size: width and height in pixels. mpp: microns per pixel; None: not known, then the file does not say it.
    """
    with extra("slides"):
        import tifffile

    width, height = size
    levels = 1
    while max(size) >> (levels - 1) > SMALLEST and levels < SIDE.bit_length():
        levels += 1
    with (
        atomic_write(path) as target,
        tifffile.TiffWriter(target, bigtiff=4 * width * height > PLAIN_TIFF) as file,
    ):
        for level in range(levels):
            shape = (height >> level, width >> level, 3)
            per_cm = None if mpp is None else (1e4 / (mpp * 2**level),) * 2
            file.write(
                _tiles(rows, level, shape), shape=shape, dtype=np.uint8, tile=(SIDE, SIDE), photometric="rgb",
                compression="deflate", metadata=None, software=False, subfiletype=int(level > 0),
                resolution=per_cm, resolutionunit=None if mpp is None else "CENTIMETER",
            )  # fmt: skip


def _tiles(rows: Callable[[int, int], np.ndarray], level: int, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """The tiles of a level, row by row; those at the edges are filled up with white."""
    for top in range(0, shape[0], SIDE):
        band = _band(rows, level, top, min(top + SIDE, shape[0]), shape[1])
        for left in range(0, shape[1], SIDE):
            tile = np.full((SIDE, SIDE, 3), 255, np.uint8)
            part = band[:, left : left + SIDE]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def _band(rows: Callable[[int, int], np.ndarray], level: int, top: int, bottom: int, width: int) -> np.ndarray:
    """Rows of a level (bottom - top, width, 3): each pixel is the mean of a square of the picture's."""
    factor = 2**level
    parts = []
    for begin in range(top * factor, bottom * factor, SIDE):
        part = rows(begin, min(begin + SIDE, bottom * factor))[:, : width * factor]
        squares = part.reshape(-1, factor, width, factor, 3)
        parts.append(part if level == 0 else (squares.mean(axis=(1, 3)) + 0.5).astype(np.uint8))
    return np.concatenate(parts)
