"""Slides as arrays: plain images, their pages, and images of 16 bits per channel."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
from PIL import Image, ImageCms

from pfiles.errors import InputError
from pfiles.tiles.files import (
    ALPHA,
    as_stored,
    bits_per_channel,
    fourth_sample,
    has_colours,
    most_of_samples,
    require_codec,
    with_alpha,
)
from pfiles.tiles.pixels import to_8_bits
from pfiles.tiles.scale import as_properties, mpp_of_dpi, mpp_of_tiff

LARGEST = 2 * (Image.MAX_IMAGE_PIXELS or 2**27)  # px of an image that is read in one piece, as Pillow has it
TIFF_BEGINS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True, eq=False)
class Plane:
    """A level: an array of any kind that slices, its axes such as "YXS", and the index of axes that are no colours.

    most: what stands for full brightness. fourth: what the file says of a fourth sample, see `fourth_sample`.
    """

    array: Any
    axes: str
    index: Mapping[str, int]
    most: int
    fourth: int = ALPHA

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.array.shape[self.axes.index("X")], self.array.shape[self.axes.index("Y")]

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Part of it as uint8 (height, width, 3 or 4)."""
        places = {"Y": rows, "X": columns, **self.index}
        part = np.asarray(self.array[tuple(places.get(axis, slice(None)) for axis in self.axes)])
        axes = [axis for axis in self.axes if axis not in self.index]
        part = part.transpose(axes.index("Y"), axes.index("X"), 3 - axes.index("Y") - axes.index("X"))
        part = np.ascontiguousarray(part) if part.dtype == np.uint8 else to_8_bits(part, self.most)
        return with_alpha(part, self.fourth)


class ArraySlide:
    """A `SlideReader` of arrays, the finest level first; regions are RGB or RGBA, and white outside of the slide."""

    def __init__(
        self,
        planes: Sequence[Plane],
        mpp: tuple[float, float] | None,
        profile: ImageCms.ImageCmsProfile | None = None,
        close: Callable[[], None] = lambda: None,
    ):
        self._planes, self.close = planes, close
        self.level_dimensions = tuple(plane.size for plane in planes)
        self.dimensions = (width, height) = self.level_dimensions[0]
        self.level_downsamples = tuple((width / w + height / h) / 2 for w, h in self.level_dimensions)
        self.properties = as_properties(mpp)
        self.color_profile = profile

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """A region as OpenSlide's method gives it; it begins at the pixel nearest to the asked one."""
        left, top = (round(place / self.level_downsamples[level]) for place in location)
        width, height = self.level_dimensions[level]
        x, y = min(max(left, 0), width), min(max(top, 0), height)
        right, bottom = min(max(left + size[0], x), width), min(max(top + size[1], y), height)
        try:
            part = self._planes[level].read(slice(y, bottom), slice(x, right))
        except Exception as error:  # a damaged tile raises errors of many kinds in the packages that decode it
            require_codec(error)
            raise openslide.OpenSlideError(f"level {level} is damaged at {x}, {y}: {error}") from error
        image = Image.fromarray(part)
        if image.size == size:
            return image
        region = Image.new(image.mode, size, "white")
        region.paste(image, (x - left, y - top))
        return region


def is_tiff(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) in TIFF_BEGINS


def open_image(path: Path, page: int = 1) -> ArraySlide:
    """A PNG, JPEG or TIFF whose pixels are read in one piece; page: from 1."""
    if is_tiff(path):
        with tifffile.TiffFile(path) as file:
            pages = full_pages(file)
            described = file.pages[numbered(pages, page, path)]
            mpp, most, number = mpp_of_tiff(described), most_of_samples(described), pages[page - 1]
            if mpp is None and file.is_imagej:  # Fiji describes all pages in the first
                mpp = mpp_of_tiff(file.pages.first)
            profile = described.tags.valueof("InterColorProfile")
            if described.bitspersample > 8:
                return ArraySlide([_plane_of_page(described, most, path)], mpp, profile_of(profile))
    else:
        mpp, number = None, page - 1
    with Image.open(path) as image:
        if not is_tiff(path):
            numbered(range(getattr(image, "n_frames", 1)), page, path)
        image.seek(number)
        if bits_per_channel(image) > 8:
            raise InputError(_many_bits(path))
        if not has_colours(image):
            raise InputError(
                f"{path} has the colour mode {image.mode}, but slides must be RGB: convert or leave it out."
            )
        profile = profile_of(image.info.get("icc_profile"))
        if not is_tiff(path):
            mpp = mpp_of_dpi(image.info.get("dpi"))
        pixels = np.asarray(as_stored(image).convert("RGBA" if image.has_transparency_data else "RGB"))
    return ArraySlide([Plane(pixels, "YXS", {}, 255)], mpp, profile)


def _plane_of_page(page: tifffile.TiffPage, most: int | None, path: Path) -> Plane:
    if page.imagewidth * page.imagelength > LARGEST:
        raise InputError(
            f"{path} has more than 8 bits per channel and {page.imagewidth} x {page.imagelength} px, more than "
            "can be read in one piece: write it as OME-TIFF."
        )
    axes = page.axes if page.photometric == tifffile.PHOTOMETRIC.RGB else page.axes.replace("S", "C")
    try:
        array = page.asarray()
    except Exception as error:  # as for `ArraySlide.read_region`
        require_codec(error)
        raise openslide.OpenSlideError(f"it is damaged: {error}") from error
    return plane_of(array, axes, {}, most, path, fourth_sample(page))


def _many_bits(path: Path) -> str:
    return (
        f"{path} has 16 bits per channel and does not say which range they use: scale it from that range, such as "
        "0 ... 4095 for 12 bits, to 0 ... 255, or write the tag MaxSampleValue or OME's SignificantBits."
    )


def plane_of(
    array: Any, axes: str, index: Mapping[str, int], most: int | None, path: Path, fourth: int = ALPHA
) -> Plane:
    """A level, see `Plane`. InputError where it is no image in colour of 8 bits, or of 16 in a range that is told."""
    others = [axis for axis in axes if axis not in ("Y", "X", *index)]
    counts = [array.shape[axes.index(axis)] for axis in others]
    if len(counts) != 1 or counts[0] not in ((3, 4) if others == ["S"] else (3,)):  # four channels are no colours
        count = "one channel" if math.prod(counts) == 1 else f"{math.prod(counts)} channels"
        raise InputError(f"{path} has {count}, but slides must be RGB: convert or leave it out.")
    if array.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path} holds {array.dtype}, but slides must hold 8 or 16 bits per channel: convert it.")
    if array.dtype == np.uint16 and most is None:
        raise InputError(_many_bits(path))
    return Plane(array, axes, index, most or 255, fourth)


def numbered(pages: Sequence[Any], page: int, path: Path) -> Any:
    """The page of that number, from 1; InputError where there is none."""
    if not 1 <= page <= len(pages):
        count = f"{len(pages)} page{'s' * (len(pages) != 1)}"
        raise InputError(f"{path} has {count}, but page {page} is asked for: name another one with --page.")
    return pages[page - 1]


def profile_of(content: bytes | None) -> ImageCms.ImageCmsProfile | None:
    """The colour profile that a file holds, if any."""
    return ImageCms.ImageCmsProfile(io.BytesIO(content)) if content else None


def full_pages(file: tifffile.TiffFile) -> list[int]:
    """The numbers of a TIFF's pages that are neither masks nor smaller levels of others.

    A level says so, or its sides are a half, a quarter and so on of those of the last page that is none.
    """
    full: list[int] = []
    pages = [page.aspage() for page in file.pages]
    for number, page in enumerate(pages):
        if not page.subfiletype & 0b101 and not (full and _is_level(page, pages[full[-1]])):
            full.append(number)
    return full


def _is_level(page: tifffile.TiffPage, of: tifffile.TiffPage) -> bool:
    factor = 2 ** round(math.log2(max(1, of.imagewidth / page.imagewidth)))
    sides = ((of.imagewidth, page.imagewidth), (of.imagelength, page.imagelength))
    return page.is_tiled and factor > 1 and all(abs(large / factor - small) <= 1 for large, small in sides)


def has_several_pyramids(file: tifffile.TiffFile) -> bool:
    """Whether smaller levels of a page follow a second one, which OpenSlide takes for levels of the first."""
    levels = [number for number, page in enumerate(file.pages) if page.aspage().subfiletype & 1]
    full = full_pages(file)
    return len(full) > 1 and any(number > full[1] for number in levels)
