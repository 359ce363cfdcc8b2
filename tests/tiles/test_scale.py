"""The scale of a slide: what its file says, what the user says, and which of them counts."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from pfiles.errors import InputError
from pfiles.tiles.readers import open_slide
from pfiles.tiles.scale import microns, scale_of
from tests.tiles.conftest import tissue


def of_file(x, y=None):
    return {"openslide.mpp-x": str(x), "openslide.mpp-y": str(x if y is None else y)}


@pytest.mark.parametrize(
    ("properties", "of_user", "mpp", "source"),
    [
        (of_file(0.25), None, 0.25, "file"),
        (of_file(0.5, 0.51), None, 0.505, "file: the mean of 0.5 x 0.51"),
        (of_file(0.1), None, 0.1, "file"),
        (of_file(10), None, 10, "file"),
        ({}, 0.5, 0.5, "given"),
        (of_file(0.25), 0.5, 0.5, "given; the file says 0.25"),
        (of_file(0.05), 0.5, 0.5, "given; the file says 0.05"),
        (of_file(42.3333), 0.5, 0.5, "given; the file says 42.3333"),
        (of_file(0.5, 0.75), 0.5, 0.5, "given; the file says 0.5 x 0.75"),
    ],
)
def test_what_counts_and_where_it_comes_from(tmp_path, properties, of_user, mpp, source):
    scale = scale_of(properties, tmp_path, of_user)
    assert scale.mpp == pytest.approx(mpp)
    assert scale.source == source


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({}, "does not tell its microns per pixel: give the true one as --mpp-of-slide, or, for tile and map,"),
        ({"openslide.mpp-x": "0.5"}, "does not tell its microns per pixel"),
        (of_file("nan"), "does not tell its microns per pixel"),
        (of_file("inf"), "does not tell its microns per pixel"),
        (of_file(0), "does not tell its microns per pixel"),
        (of_file(-0.5), "does not tell its microns per pixel"),
        (of_file(0.05), "scanned at 0.05 um/px, which is unlikely"),
        (of_file(21.1667), "scanned at 21.1667 um/px, which is unlikely"),
        (of_file(0.5, 0.5111), "its pixels are 0.5 x 0.5111 um, but they must be square"),
    ],
)
def test_what_no_microscope_has_needs_the_users_word(tmp_path, properties, message):
    with pytest.raises(InputError, match=message):
        scale_of(properties, tmp_path)


@pytest.mark.parametrize(
    ("options", "mpp"),
    [
        ({"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}, 0.5),
        ({"resolution": (25400 / 0.25, 25400 / 0.25), "resolutionunit": "INCH"}, 0.25),
        ({"imagej": True, "resolution": (2, 2), "metadata": {"unit": "um"}}, 0.5),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "micron"}}, 0.25),
        ({"imagej": True, "resolution": (2000, 2000), "metadata": {"unit": "mm"}}, 0.5),
        ({"imagej": True, "resolution": (2, 2), "metadata": {"unit": "pixel"}}, None),
        ({"resolution": (2, 2), "resolutionunit": "NONE"}, None),
        ({}, None),
    ],
)
def test_the_tags_of_a_plain_tiff_are_read(tmp_path, options, mpp):
    options = {"metadata": None, **options} if "imagej" not in options else options
    tifffile.imwrite(tmp_path / "a.tif", tissue(64, 96), photometric="rgb", **options)
    with open_slide(tmp_path / "a.tif") as slide:
        if mpp is None:
            assert slide.properties == {}
        else:
            assert scale_of(slide.properties, tmp_path).mpp == pytest.approx(mpp, rel=1e-6)
        np.testing.assert_array_equal(slide.read_region((3, 5), 0, (40, 20)), tissue(64, 96)[5:25, 3:43])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_resolution_of_other_plain_images_is_read(tmp_path, suffix):
    image = Image.fromarray(tissue(64, 96))
    image.save(tmp_path / f"a.{suffix}", dpi=(50800, 50800))
    image.save(tmp_path / f"b.{suffix}")
    with open_slide(tmp_path / f"a.{suffix}") as slide:
        assert scale_of(slide.properties, tmp_path).mpp == pytest.approx(0.5, rel=1e-4)
    with open_slide(tmp_path / f"b.{suffix}") as slide:
        assert slide.properties == {}


def test_all_pages_of_fiji_have_the_scale_of_the_first(tmp_path):
    stack = np.stack([tissue(64, 96), tissue(64, 96, 1)])
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, resolution=(2, 2), metadata={"unit": "um"})
    with open_slide(tmp_path / "a.tif", 2) as slide:
        assert scale_of(slide.properties, tmp_path).mpp == 0.5


def test_units_of_length():
    assert microns("0.5", "\u00b5m") == microns(0.5, "\u03bcm") == microns(500, "nm") == 0.5
    assert microns(0.5, "\\u00B5m") == 0.5
    assert microns(1, "pixel") is None
    assert microns("", "um") is None
