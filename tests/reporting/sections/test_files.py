"""Files that differ in what is not tissue."""

import pytest
import torch
from PIL import Image

from pfiles.reporting.sections import files
from pfiles.tiles import pixels
from pfiles.tiles.files import read_images
from tests.conftest import make_tiles
from tests.reporting.sections.conftest import noisy


@pytest.fixture(scope="module")
def tiles():
    return noisy(make_tiles(40, 32, seed=3))


def saved(folder, tiles, suffix, **options):
    folder.mkdir()
    for number, tile in enumerate(tiles):
        Image.fromarray(tile).save(folder / f"{number}{suffix}", **options)
    return sorted(folder.iterdir())


def test_nothing_is_said_of_files_that_are_kept_alike(tiles, tmp_path):
    sides = saved(tmp_path / "a", tiles, ".jpg", quality=75), saved(tmp_path / "b", tiles, ".jpg", quality=75)
    assert files.make_section(*sides, torch.empty(0), torch.empty(0)) is None


def test_jpeg_beside_png_is_told_by_the_files_and_by_what_it_did_to_the_tissue(tiles, tmp_path):
    sides = saved(tmp_path / "a", tiles, ".jpg", quality=20), saved(tmp_path / "b", tiles, ".png")
    section = files.make_section(*sides, read_images(sides[0]), read_images(sides[1]))
    assert section.notes[0].startswith("Warning: the two sides differ in what is not tissue: file format, JPEG quality")
    assert "100% of the files" in section.notes[0]
    assert list(section.tables[0].index) == ["file format", "JPEG quality"]
    assert section.scores["told_apart_by_files"] == 1
    assert section.scores["details"]["files"]["traces"]["JPEG of quality 20"] > 0.7
    assert "of the generated images" in section.notes[1]


def test_another_size_is_measured_on_real_tissue(tiles, tmp_path):
    small = pixels.as_array(pixels.resize(pixels.as_tensor(tiles), 16))
    sides = saved(tmp_path / "a", tiles, ".png"), saved(tmp_path / "b", small, ".png")
    real = read_images(sides[0])
    section = files.make_section(*sides, real, pixels.resize(read_images(sides[1]), 32))
    assert list(section.tables[0].loc["size in pixels"]) == ["32 x 32", "16 x 16", 1.0]
    assert section.scores["details"]["files"]["traces"]["Resizing to 16 px and back"] > 0.7
