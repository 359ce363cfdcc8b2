"""How image files are kept: what tells two sets of files apart without a look at the tissue."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from pfiles.errors import InputError
from pfiles.tiles.files import bits_per_channel, profile_name, quietly
from pfiles.tiles.pixels import as_array, as_tensor, resize

# Of the standard table for brightness (ITU-T T.81, annex K.1), in any order; a quality from 1 to 100 scales it
BRIGHTNESS = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip


class Encoding(NamedTuple):
    """How a file keeps its image.

    kind: "PNG", "JPEG" or "TIFF". quality: of a JPEG, 1 to 100; None for other kinds. size: width and height, pixels.
    profile: the name of its colour profile, "none" without one. bits: per channel.
    """

    kind: str
    quality: int | None
    size: tuple[int, int]
    profile: str
    bits: int


def read_encoding(path: Path) -> Encoding:
    """The `Encoding` of an image file, whose head alone is read; InputError where it is no image."""
    try:
        with quietly(), Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
            tables = getattr(image, "quantization", None)
            quality = quality_of(tables[0]) if tables else None
            profile = profile_name(image.info.get("icc_profile"))
            return Encoding(str(image.format), quality, image.size, profile, bits_per_channel(image))
    except (OSError, ValueError, SyntaxError, KeyError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image ({error}): replace or remove it.") from error


def quality_of(table: Sequence[int]) -> int:
    """The quality, 1 to 100, by which the standard table comes nearest to a JPEG's table for brightness."""
    sums = [np.clip((np.array(BRIGHTNESS) * scale(quality) + 50) // 100, 1, 255).sum() for quality in range(1, 101)]
    return 1 + int(np.abs(np.array(sums) - sum(table)).argmin())


def scale(quality: int) -> int:
    """By what percentage a quality multiplies the standard table, as the JPEG library has it."""
    return 5000 // quality if quality < 50 else 200 - 2 * quality


def as_jpeg(images: Tensor, quality: int) -> Tensor:
    """uint8 images (N, 3, H, W) after they were saved as JPEG of that quality, on the CPU."""
    saved = []
    for image in as_array(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        saved.append(np.asarray(Image.open(file)))
    return as_tensor(np.stack(saved)) if saved else images


def as_resized(images: Tensor, side: int) -> Tensor:
    """uint8 images (N, 3, S, S) after they were brought to another side and back (bicubic)."""
    return resize(resize(images, side), images.shape[2])


def told_by_files(one: Sequence[Any], other: Sequence[Any]) -> float:
    """The share of two sets of files, each counting as one half, that their encodings, or single values of these, sort
    rightly: 0.5 where both sets hold every value equally often, 1 where they share none."""
    shares = [{value: files.count(value) / len(files) for value in set(files)} for files in (one, other)]
    return sum(max(side.get(value, 0.0) for side in shares) for value in {*one, *other}) / 2


def most_frequent(files: Sequence[Encoding], field: str) -> Any:
    """The value of a field of `Encoding` that most of the files have."""
    values = [getattr(each, field) for each in files]
    return max(sorted(set(values), key=str), key=values.count)
