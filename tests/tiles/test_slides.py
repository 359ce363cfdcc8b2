"""Slides of known content: their scale, their tissue, and the places of tiles."""

import io

import numpy as np
import openslide
import pytest
from PIL import Image
from scipy import ndimage

from pfiles.tiles.builtin import SLIDE
from pfiles.tiles.readers import open_slide, read_rgb
from pfiles.tiles.scale import scale_of
from pfiles.tiles.slides import Tiling, cut_tiles, plan_tiles, sharpness
from tests.tiles.conftest import DICOM, island, tissue, write_slide


def test_stride_and_the_choice_of_tiles(tmp_path):
    path = write_slide(tmp_path / "a.tiff", island())
    with open_slide(path) as slide:
        every = [tuple(corner) for corner in plan_tiles(slide, path, Tiling(0.5, 64, 32), 0.0)[0].corners]
        first, again, other = (
            plan_tiles(slide, path, Tiling(0.5, 64, 32, per_slide=40), offset)[0].corners for offset in (0.3, 0.3, 0.8)
        )
    assert len(set(every)) == len(every)
    assert {x % 32 for x, _ in every} == {0}
    assert len({tuple(corner) for corner in first}) == 40
    assert {tuple(corner) for corner in first} <= set(every)
    np.testing.assert_array_equal(first, again)
    assert first.tolist() != other.tolist()
    middle = np.mean(every, axis=0)  # even over the tissue: each quarter of it holds a quarter of the choice, nearly
    quarters = np.bincount((first > middle) @ [1, 2], minlength=4)
    of_all = np.bincount((np.array(every) > middle) @ [1, 2], minlength=4) * 40 / len(every)
    assert np.abs(quarters - of_all).max() <= 3


def test_pixels_that_were_never_scanned_are_white():
    with openslide.OpenSlide(SLIDE) as slide:
        x = slide.dimensions[0] - 64
        region = read_rgb(slide, x, 0, 0, 128, 64)
        assert np.asarray(region)[:, 64:].min() == 255
        small = read_rgb(slide, x, 0, 0, 128, 64, 4)
    assert np.asarray(small)[:, 16:].min() == 255
    np.testing.assert_array_equal(small, region.reduce(4))


def test_a_dicom_slide_is_read_at_its_scale_as_the_jpeg_in_it():
    content = DICOM.read_bytes()
    frame = np.asarray(Image.open(io.BytesIO(content[content.index(b"\xff\xd8\xff") :])))
    with open_slide(DICOM) as slide:
        assert scale_of(slide.properties, DICOM).mpp == pytest.approx(0.499)
        np.testing.assert_array_equal(read_rgb(slide, 0, 0, 0, *slide.dimensions), frame[:16, :16])


def test_tiles_are_read_in_blocks_that_tiles_fill(tmp_path):
    """All tiles of an L are read once; what is read besides them is less than a third of them."""
    image = island(1024, 1024, 0, 0, 1024, 256)
    image[768:, 256:] = tissue(256, 768)
    read = []
    path = write_slide(tmp_path / "a.tiff", image)
    with open_slide(path) as slide:
        plan, _ = plan_tiles(slide, path, Tiling(0.5, 64), 0.0)
        read_region = slide.read_region
        slide.read_region = lambda *args: read.append(args[2]) or read_region(*args)
        members = np.concatenate([block[0] for block in cut_tiles(slide, plan, Tiling(0.5, 64), 1)])
    assert sorted(members) == list(range(len(plan.corners)))
    needed = len(plan.corners) * 64 * 64
    assert needed <= sum(width * height for width, height in read) < needed / 0.7
    assert len(read) < len(plan.corners) / 4


@pytest.mark.parametrize("side", [16, 65])
def test_sharpness_is_the_variance_of_the_laplacian(side):
    tiles = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    tiles[1] = 100
    for tile, value in zip(tiles, sharpness(tiles), strict=True):
        grey = np.asarray(Image.fromarray(tile).convert("L")).astype(float)
        assert value == pytest.approx(ndimage.laplace(grey)[1:-1, 1:-1].var(), rel=1e-4)
