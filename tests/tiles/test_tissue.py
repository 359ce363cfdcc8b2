"""Tissue on thumbnails of known content."""

import numpy as np
import pytest
import scipy

from benchmarks.tissue import HOLE, KINDS, SPECK, overlap, thumbnail
from pfiles.tiles.tissue import _wider, doubt, measure_glass, tissue_mask
from tests.tiles.conftest import GLASS, tissue


def test_tissue_without_pen_marks_borders_specks_and_holes():
    image = np.full((200, 300, 3), GLASS, np.uint8)
    image[40:140, 50:200] = (190, 120, 160)
    image[80:83, 100:103] = GLASS  # a hole
    image[20:24, 250:254] = (190, 120, 160)  # a speck
    image[150:190, 50:120] = (20, 110, 70)  # green, blue, red and black pens
    image[150:190, 130:180] = (40, 70, 190)
    image[150:190, 190:240] = (215, 25, 35)
    image[150:190, 250:290] = (30, 30, 32)
    image[:, :8] = 5  # a black border
    expected = np.zeros((200, 300), bool)
    expected[40:140, 50:200] = True
    mask = tissue_mask(image, 60)
    assert (mask != expected).mean() < 0.015  # the smoothing moves an outline by a pixel
    assert mask[75:90, 95:110].all()
    assert not mask[148:].any()
    assert not mask[:, :15].any()
    assert not tissue_mask(np.full((50, 50, 3), GLASS, np.uint8), 4).any()
    assert tissue_mask(tissue(200, 200)[::2, ::2], 4).mean() > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_tissue_of_every_kind(kind):
    """Made slides with known masks; a mark of a pen is found but for its rim."""
    image, true = thumbnail(kind)
    assert overlap(tissue_mask(image, SPECK, HOLE), true) > (0.9 if kind.startswith(("pen", "fat")) else 0.95)


def test_glass_at_the_border_is_no_space_that_tissue_encloses():
    """As of a slide so small that all its glass is smaller than a cell of fat may be."""
    image = np.full((60, 60, 3), 243, np.uint8)
    there = np.zeros((60, 60), bool)
    there[10:50, 10:50] = True
    there[25:35, 25:35] = False
    image[there] = (200, 120, 170)
    mask = tissue_mask(image, speck=20, hole=5000)
    assert not mask[:8].any()
    assert not mask[:, -8:].any()
    assert mask[12:48, 12:48].all()


def test_the_glass_is_measured_before_anything_else():
    for kind, colour in {
        "neutral glass": (243, 243, 243),
        "glass cream": (243, 234, 210),
        "pen red": (243,) * 3,
    }.items():
        np.testing.assert_allclose(measure_glass(thumbnail(kind)[0]).colour, colour, atol=1)
    for kind in ("all tissue", "all tissue, pale"):
        assert measure_glass(thumbnail(kind)[0]) is None
    image, true = thumbnail("glass cream")
    image[:, 120:] = 255  # what was never scanned is white, and no tissue
    assert not tissue_mask(image, SPECK, HOLE)[:, 120:].any()
    assert overlap(tissue_mask(image, SPECK, HOLE)[:, :118], true[:, :118]) > 0.95
    np.testing.assert_allclose(measure_glass(np.full((40, 40, 3), 255, np.uint8)).colour, 255)


def test_the_user_decides_where_a_mark_and_a_stain_are_alike():
    image, true = thumbnail("pen purple")
    ink = tissue_mask(image, SPECK, HOLE, pens=False) & ~true
    assert ink.mean() > 0.05
    assert not (tissue_mask(image, SPECK, HOLE) & ink).mean() > 0.01
    pale, true = thumbnail("pale, 10 levels")
    assert overlap(tissue_mask(pale, SPECK, HOLE, threshold=8), true) > 0.9
    assert not tissue_mask(pale, SPECK, HOLE, threshold=20).any()


def test_even_red_within_tissue_is_no_mark():
    """A pool of blood is as even as ink, but lies in tissue."""
    image, true = thumbnail("neutral glass")
    image[70:100, 70:100] = (190, 40, 60)
    assert overlap(tissue_mask(image, SPECK, HOLE), true) > 0.95


def test_nearly_all_tissue_is_doubted():
    assert "up to its border" in doubt(np.ones((20, 20), bool))
    true = thumbnail("neutral glass")[1]
    assert doubt(true) is None
    assert doubt(np.pad(np.ones((100, 100), bool), 1)) is None


@pytest.mark.parametrize("pixels", [0, 1, 3])
def test_masks_are_widened_as_scipy_does(pixels):
    mask = np.random.default_rng(pixels).random((40, 60)) < 0.02
    wide = scipy.ndimage.binary_dilation(mask, iterations=pixels) if pixels else mask
    np.testing.assert_array_equal(_wider(mask, pixels), wide)
