"""Slides of every kind behind one interface, and regions of them in RGB."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageCms

from pfiles.errors import InputError, extra
from pfiles.tiles.colours import in_srgb, srgb_transform

BLOCK = 2048  # px of a level that are read at once: as large as a block of all its tiles may be
COLOURS = (2, 3, 6)  # a TIFF's numbers for RGB, a palette and YCbCr
SNAP = 0.01  # a scale this near to a whole number is taken for one

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it finds damaged, `open_slide` says


class SlideReader(Protocol):
    """A slide as OpenSlide's classes give it; level 0 is the finest.

    level_dimensions: width and height of each level in its pixels. level_downsamples: how many pixels of level 0 make
    one of it along a side. properties: what the file says, under OpenSlide's names. color_profile: of its pixels.
    """

    @property
    def level_dimensions(self) -> Sequence[tuple[int, int]]: ...

    @property
    def level_downsamples(self) -> Sequence[float]: ...

    @property
    def properties(self) -> Mapping[str, str]: ...

    @property
    def color_profile(self) -> ImageCms.ImageCmsProfile | None: ...

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """RGB or RGBA; location: x and y in pixels of level 0; size: width and height in pixels of `level`."""

    def close(self) -> None: ...


@runtime_checkable
class Averaging(Protocol):
    """A `SlideReader` that can average while it decodes."""

    def read_averaged(
        self, location: tuple[int, int], level: int, size: tuple[int, int], factor: int
    ) -> Image.Image | None:
        """RGB, as `read_region` and then averaged down by a whole factor; None where it must be done so."""


class InSrgb:
    """A `SlideReader` whose pixels are brought from the slide's colour profile to sRGB, which leaves none."""

    color_profile = None

    def __init__(self, slide: SlideReader, profile: ImageCms.ImageCmsProfile):
        self._slide = slide
        self.level_dimensions, self.level_downsamples = slide.level_dimensions, slide.level_downsamples
        self.properties, self.close = slide.properties, slide.close
        self._transform = srgb_transform(profile)

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        return in_srgb(self._slide.read_region(location, level, size), self._transform)


def profile_name(slide: SlideReader) -> str | None:
    """What the slide's colour profile calls itself; None without one."""
    profile = slide.color_profile
    return None if profile is None else ImageCms.getProfileDescription(profile).strip() or "without a name"


@contextmanager
def open_slide(path: Path, page: int = 1, to_srgb: bool = False) -> Iterator[SlideReader]:
    """A slide or plain image; InputError names it where it cannot be opened, or not be read inside the block.

    page: which of a file's images, from 1. to_srgb: apply its colour profile, where it has one.
    """
    with extra("slides"):
        import openslide
        import tifffile

    damage = (openslide.OpenSlideError, tifffile.TiffFileError, Image.DecompressionBombError, SyntaxError,
              Image.UnidentifiedImageError, ImageCms.PyCMSError)  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as many pixels are refused
            with closing(_open(path, page)) as slide:
                profile = slide.color_profile if to_srgb else None
                yield slide if profile is None else InSrgb(slide, profile)
    except InputError:
        raise
    except damage as error:
        raise InputError(f"{path} cannot be read as a slide ({error}): replace it or leave it out.") from error
    except OSError as error:
        if error.errno is not None:  # the disk's own word, such as of a full one
            raise
        raise InputError(f"{path} cannot be read as a slide ({error}): replace it or leave it out.") from error


def _open(path: Path, page: int) -> SlideReader:
    import openslide
    import tifffile

    from pfiles.tiles import arrays, jpeg_slide, ome
    from pfiles.tiles.files import NOTHING, fourth_sample

    if is_zarr(path):
        return ome.open_zarr(path, page)
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor in (None, "generic-tiff"):
        if arrays.is_tiff(path):
            with tifffile.TiffFile(path) as file:
                if file.is_ome:
                    return ome.open_ome(path, page)
                if not len(file.pages):
                    raise tifffile.TiffFileError("it holds no image")
                first = file.pages.first
                is_other = first.bitspersample > 8 or first.photometric not in COLOURS
                is_other |= arrays.has_several_pyramids(file)
                is_other |= first.samplesperpixel > 3 and fourth_sample(first) == NOTHING  # OpenSlide's is alpha
                is_other |= first.tags.valueof("Orientation", 1) > 1  # by which OpenSlide turns each tile in its place
        if vendor is None or page > 1 or is_other:
            return arrays.open_image(path, page)
    return jpeg_slide.JpegSlide(path) if vendor in jpeg_slide.VENDORS else openslide.OpenSlide(path)


def is_zarr(path: Path) -> bool:
    """Whether it is the folder of an OME-Zarr."""
    return path.suffix.lower() == ".zarr" and path.is_dir()


def pages_of(path: Path) -> int:
    """How many images a file holds that `open_slide` takes by their number; smaller levels and companions do not count.

    1 also for a file that cannot be read, which `open_slide` will say.
    """
    with extra("slides"):
        import openslide
        import tifffile

        from pfiles.tiles import arrays, ome

    try:
        if is_zarr(path):
            return len(ome.zarr_images(path))
        if openslide.OpenSlide.detect_format(path) not in (None, "generic-tiff"):
            return 1
        if arrays.is_tiff(path):
            with tifffile.TiffFile(path) as file:
                return len(ome.tiff_images(file) if file.is_ome else arrays.full_pages(file))
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1)
    except InputError:  # the package for it is missing
        raise
    except Exception:  # a damaged file raises errors of many kinds
        return 1


def read_rgb(slide: SlideReader, x: int, y: int, level: int, width: int, height: int, factor: int = 1) -> Image.Image:
    """A region as an RGB image, averaged down by a whole `factor`; pixels that were never scanned are white.

    x, y: the upper left corner in pixels of level 0; width, height: in pixels of `level`.
    """
    if factor > 1 and isinstance(slide, Averaging):
        averaged = slide.read_averaged((x, y), level, (width, height), factor)
        if averaged is not None:
            return averaged
    region = slide.read_region((x, y), level, (width, height))
    small = region.reduce(factor) if factor > 1 else region
    if small.mode == "RGB":
        return small
    if region.getchannel("A").getextrema()[0] == 255:
        return small.convert("RGB")
    white = Image.new("RGBA", region.size, "white")  # before the average, in which transparent pixels count as black
    whole = Image.alpha_composite(white, region).convert("RGB")
    return whole.reduce(factor) if factor > 1 else whole


def thumbnail(slide: SlideReader, downsample: float, bounds: tuple[int, int, int, int]) -> np.ndarray:
    """Part of a slide, x, y, width and height in level-0 pixels, averaged down; (H, W, 3) uint8, read in blocks."""
    level = level_for(slide, downsample)
    factor = max(1, round(downsample / slide.level_downsamples[level]))
    scale = slide.level_downsamples[level] * factor
    x, y, width, height = bounds
    columns, rows = max(1, int(width / scale)), max(1, int(height / scale))
    image = Image.new("RGB", (columns, rows), "white")
    step = max(1, BLOCK // factor)
    for top in range(0, rows, step):
        for left in range(0, columns, step):
            size = (min(step, columns - left) * factor, min(step, rows - top) * factor)
            block = read_rgb(slide, x + round(left * scale), y + round(top * scale), level, *size, factor)
            image.paste(block, (left, top))
    return np.asarray(image)


def level_for(slide: SlideReader, downsample: float) -> int:
    """The coarsest level that is no coarser than asked for."""
    return max((i for i, d in enumerate(slide.level_downsamples) if d <= downsample * (1 + SNAP)), default=0)
