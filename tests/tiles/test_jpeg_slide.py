"""Slides of JPEG tiles: every pixel as OpenSlide gives it, and what cannot be decoded tile by tile goes through it."""

import io

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from pfiles.errors import InputError
from pfiles.tiles.builtin import SLIDE
from pfiles.tiles.jpeg_slide import JpegSlide
from pfiles.tiles.readers import open_slide, read_rgb
from tests.tiles.conftest import tissue


def write_jpeg_slide(path, image, colours="RGB", side=112, levels=(1, 4), subsampling=0, shared_tables=False):
    """A pyramidal TIFF of JPEG tiles, which tifffile writes as if they were deflated; then the tag is corrected.

    The last tiles of a row and column reach over the edge, and there hold black.
    """
    with tifffile.TiffWriter(path) as file:
        for downsample in levels:
            level = np.asarray(Image.fromarray(image).reduce(downsample)) if downsample > 1 else image
            height, width = level.shape[:2]
            padded = np.pad(level, ((0, -height % side), (0, -width % side), (0, 0)))
            jpegs = []
            for y in range(0, height, side):
                for x in range(0, width, side):
                    buffer = io.BytesIO()
                    tile = Image.fromarray(padded[y : y + side, x : x + side])
                    tile.save(buffer, "JPEG", quality=80, keep_rgb=colours == "RGB", subsampling=subsampling)
                    jpegs.append(buffer.getvalue())
            extra = []
            if shared_tables:
                tables, jpegs = zip(*map(split_tables, jpegs), strict=True)
                extra = [(347, 7, len(tables[0]), tables[0], True)]
            file.write(
                iter(jpegs), shape=level.shape, dtype=np.uint8, tile=(side, side), photometric="rgb", predictor=False,
                compression="deflate", subfiletype=int(downsample > 1), resolution=(2e4 / downsample,) * 2,
                resolutionunit="CENTIMETER", metadata=None, extratags=extra,
            )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+b") as file:
        for page in file.pages:
            page.tags["Compression"].overwrite(7)
            if colours == "YCbCr":
                page.tags["PhotometricInterpretation"].overwrite(6)
    return path


def split_tables(jpeg):
    """The quantisation and Huffman tables of a JPEG as a stream of their own, and the JPEG without them."""
    tables, frame, place = b"", jpeg[:2], 2
    while jpeg[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4])
        if jpeg[place + 1] in (0xDB, 0xC4):
            tables += jpeg[place:end]
        else:
            frame += jpeg[place:end]
        place = end
    return b"\xff\xd8" + tables + b"\xff\xd9", frame + jpeg[place:]


@pytest.mark.parametrize(
    "options",
    [{}, {"colours": "YCbCr"}, {"colours": "YCbCr", "subsampling": 2}, {"shared_tables": True}],
    ids=["RGB", "YCbCr", "YCbCr 4:2:0", "shared tables"],
)
def test_every_pixel_is_openslides(tmp_path, options):
    path = write_jpeg_slide(tmp_path / "a.tiff", tissue(500, 700), **options)
    with open_slide(path) as ours, openslide.OpenSlide(path) as theirs:
        assert isinstance(ours, JpegSlide)
        assert list(ours._levels) == [0, 1]
        for level, x, y, width, height in (
            (0, 0, 0, 700, 500), (0, 113, 111, 300, 200), (0, -30, -20, 200, 100), (0, 600, 450, 200, 100),
            (1, 0, 0, 175, 125), (1, 200, 100, 50, 60), (0, 900, 0, 30, 30),
        ):  # fmt: skip
            np.testing.assert_array_equal(
                read_rgb(ours, x, y, level, width, height), read_rgb(theirs, x, y, level, width, height)
            )


@pytest.mark.parametrize("factor", [2, 4, 7])
def test_averages_are_those_of_openslides_pixels(tmp_path, factor):
    """Of JPEG tiles of 112 px each is averaged by itself, where no square of pixels reaches over their borders."""
    path = write_jpeg_slide(tmp_path / "a.tiff", tissue(500, 700))
    with open_slide(path) as ours, openslide.OpenSlide(path) as theirs:
        for is_quick, x, y, width, height in (
            (True, 0, 0, 84 * 8, 56 * 8), (True, 56, 28, 28 * 8, 28 * 9), (True, 28 * 20, 28 * 14, 28 * 5, 28 * 3),
            (False, 1, 28, 112, 112), (False, 28, 28, 115, 112), (False, -28, 0, 112, 112), (False, 560, 28, 168, 56),
        ):  # fmt: skip
            assert (ours.read_averaged((x, y), 0, (width, height), factor) is not None) == is_quick
            expected = read_rgb(theirs, x, y, 0, width, height, factor)
            np.testing.assert_array_equal(read_rgb(ours, x, y, 0, width, height, factor), expected)


def test_the_embedded_slide_is_openslides():
    with open_slide(SLIDE) as ours, openslide.OpenSlide(SLIDE) as theirs:
        assert list(ours._levels) == [0]
        size = ours.dimensions
        np.testing.assert_array_equal(read_rgb(ours, 0, 0, 0, *size, 3), read_rgb(theirs, 0, 0, 0, *size, 3))


@pytest.mark.parametrize("tile", [(752, 624), (256, 256), (16, 1024)])
def test_tiles_of_any_shape_and_what_lies_beyond_the_edge(tmp_path, tile):
    """Tiles of 624 x 752 px, and tissue of another slide in the part of them that lies beyond the edge."""
    image = tissue(900, 1000)
    padded = np.pad(image, ((0, -900 % tile[0]), (0, -1000 % tile[1]), (0, 0)))
    padded[900:], padded[:, 1000:] = (150, 60, 160), (150, 60, 160)
    parts = (padded[y : y + tile[0], x : x + tile[1]] for y in range(0, 900, tile[0]) for x in range(0, 1000, tile[1]))
    options = {"shape": (900, 1000, 3), "dtype": np.uint8, "tile": tile, "photometric": "rgb", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", parts, compression="jpeg", resolution=(2e4, 2e4), resolutionunit=3, **options)
    with open_slide(tmp_path / "a.tif") as ours, openslide.OpenSlide(tmp_path / "a.tif") as theirs:
        assert ours.level_dimensions == ((1000, 900),)
        for x, y, width, height in ((0, 0, 1000, 900), (600, 700, 400, 200)):
            region = np.asarray(read_rgb(ours, x, y, 0, width, height))
            np.testing.assert_array_equal(region, read_rgb(theirs, x, y, 0, width, height))
            assert np.abs(region - image[y : y + height, x : x + width].astype(int)).mean() < 8
        assert (np.asarray(read_rgb(ours, 990, 880, 0, 100, 100))[30:, 20:] == 255).all()


@pytest.mark.parametrize("counts", [lambda counts: [0, *counts[1:]], lambda counts: counts[:-1]], ids=["empty", "few"])
def test_a_level_that_lacks_a_tile_goes_through_openslide(tmp_path, counts):
    path = write_jpeg_slide(tmp_path / "a.tiff", tissue(500, 700))
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["TileByteCounts"].overwrite(counts(list(file.pages[0].databytecounts)))
    with open_slide(path) as ours:
        assert list(ours._levels) == [1]
        assert np.asarray(read_rgb(ours, 112, 0, 0, 50, 50)).std() > 0


@pytest.mark.parametrize("damage", ["cut", "size", "noise"])
def test_a_damaged_tile_is_one_sentence(tmp_path, damage):
    path = write_jpeg_slide(tmp_path / "a.tiff", tissue(500, 700))
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    content = bytearray(path.read_bytes())
    if damage == "size":  # a wider tile than the slide says, which must not be decoded into its place
        frame = content.index(b"\xff\xc0", offset)
        content[frame + 7 : frame + 9] = (9999).to_bytes(2)
    else:
        begin = offset + (count // 2 if damage == "cut" else 0)
        content[begin : offset + count] = bytes(offset + count - begin)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tiff cannot be read as a slide"), open_slide(path) as slide:
        read_rgb(slide, 0, 0, 0, 300, 100)
