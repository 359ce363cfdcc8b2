"""A picture written as a slide: OpenSlide opens it, its levels are means, and it is asked for few rows at a time."""

import numpy as np
import openslide
import pytest
import tifffile

from pfiles.tiles.pyramid import write_pyramid


@pytest.mark.slow
def test_openslide_reads_every_level(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (1300, 2100, 3), dtype=np.uint8)
    widths = []

    def rows(first, last):
        widths.append(last - first)
        return image[first:last]

    write_pyramid(tmp_path / "a.tiff", rows, (2100, 1300), mpp=0.5)
    assert max(widths) == 256
    slide = openslide.OpenSlide(tmp_path / "a.tiff")
    assert slide.level_dimensions == ((2100, 1300), (1050, 650), (525, 325), (262, 162))
    assert float(slide.properties["openslide.mpp-x"]) == 0.5
    for level, (width, height) in enumerate(slide.level_dimensions):
        factor = 2**level
        squares = image[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
        expected = np.floor(squares.mean(axis=(1, 3)) + 0.5)
        pixels = np.asarray(slide.read_region((0, 0), level, (width, height)).convert("RGB"))
        np.testing.assert_array_equal(pixels, expected)
    write_pyramid(tmp_path / "b.tiff", rows, (2100, 1300), mpp=0.5)
    assert (tmp_path / "a.tiff").read_bytes() == (tmp_path / "b.tiff").read_bytes()


def test_a_file_appears_whole_or_not_at_all_and_without_a_scale_it_says_none(tmp_path):
    def rows(first, last):
        if first:
            raise KeyboardInterrupt
        return np.zeros((last - first, 300, 3), np.uint8)

    with pytest.raises(KeyboardInterrupt):
        write_pyramid(tmp_path / "a.tiff", rows, (300, 300))
    assert list(tmp_path.iterdir()) == []
    write_pyramid(tmp_path / "a.tiff", rows, (300, 200))
    assert "openslide.mpp-x" not in openslide.OpenSlide(tmp_path / "a.tiff").properties
    with tifffile.TiffFile(tmp_path / "a.tiff") as file:
        assert len(file.pages) == 1
