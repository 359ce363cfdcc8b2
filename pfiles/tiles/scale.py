"""The scale of a slide: what its file says, and what the user says, which counts more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pfiles.errors import InputError

if TYPE_CHECKING:
    import tifffile

MICROSCOPES = (0.1, 10.0)  # um/px; a file that says less or more was most likely written with another unit
SKEWED = 0.02  # the most by which x and y may differ
MICRONS = {  # of a unit, as OME, Fiji and TIFF write them
    "nm": 1e-3, "nanometer": 1e-3, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0,
    "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "centimeter": 1e4, "inch": 25400.0, "in": 25400.0, "m": 1e6, "meter": 1e6,
}  # fmt: skip


class Scale(NamedTuple):
    """Microns per pixel of a slide's level 0, and where that comes from, in words for a table."""

    mpp: float
    source: str


def scale_of(properties: Mapping[str, str], path: Path, of_user: float | None = None) -> Scale:
    """The scale that the user says or else the file, whose `properties` are named as OpenSlide's.

    Raises InputError where neither says it, and where nothing but the file does and it says what no microscope has, or
    that pixels are not square.
    """
    sides = both(*(_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"))
    in_words = " x ".join(f"{side:.6g}" for side in dict.fromkeys(sides or ()))  # one number for a square
    if of_user is not None:
        return Scale(of_user, f"given; the file says {in_words}" if sides else "given")
    to_give = "give the true one as --mpp-of-slide, or, for tile and map, in a column mpp of --slides-csv"
    if sides is None:
        raise InputError(f"{path} does not tell its microns per pixel: {to_give}.")
    x, y = sides
    if max(x, y) / min(x, y) - 1 > SKEWED + 1e-9:
        raise InputError(f"{path} says that its pixels are {in_words} um, but they must be square: {to_give}.")
    mpp = (x + y) / 2
    if not MICROSCOPES[0] <= mpp <= MICROSCOPES[1]:
        low, high = MICROSCOPES
        raise InputError(
            f"{path} says that it was scanned at {mpp:.6g} um/px, which is unlikely, as slides are scanned at "
            f"{low:g} to {high:g}: {to_give}."
        )
    return Scale(mpp, "file" if x == y else f"file: the mean of {in_words}")


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def as_properties(mpp: tuple[float, float] | None) -> dict[str, str]:
    """Microns per pixel along x and y under the names that OpenSlide gives them."""
    return {} if mpp is None else {f"openslide.mpp-{axis}": repr(value) for axis, value in zip("xy", mpp, strict=True)}


def microns(value: Any, unit: str | None) -> float | None:
    """A length in microns; None where the unit is no length, or the value is none."""
    factor = MICRONS.get(
        (unit or "").strip().lower().replace("\\u00b5", "u").replace("\u00b5", "u").replace("\u03bc", "u")
    )
    number = _number(None if value is None else str(value))
    return None if factor is None or number is None else number * factor


def both(x: float | None, y: float | None) -> tuple[float, float] | None:
    """Lengths along x and y; None unless both are known."""
    return None if x is None or y is None else (x, y)


def mpp_of_dpi(dpi: Any) -> tuple[float, float] | None:
    """Microns per pixel along x and y of a PNG or JPEG, from its dots per inch; None where it tells none."""
    sizes = [microns(1 / float(value) if value else None, "inch") for value in dpi or ()]
    return both(*sizes) if len(sizes) == 2 else None


def mpp_of_tiff(page: tifffile.TiffPage) -> tuple[float, float] | None:
    """Microns per pixel along x and y as a TIFF's tags tell them, Fiji's among them; None where they do not."""
    described = dict(line.partition("=")[::2] for line in page.description.splitlines())
    unit = {2: "inch", 3: "cm"}.get(page.tags.valueof("ResolutionUnit", 2))
    if page.description.startswith("ImageJ="):
        unit = described.get("unit", unit)
    sizes = []
    for tag in ("XResolution", "YResolution"):
        pixels, units = page.tags.valueof(tag, (0, 1))
        sizes.append(microns(units / pixels if pixels else None, unit))
    return both(*sizes)
