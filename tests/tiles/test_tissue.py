"""Tissue on thumbnails of known content."""

import numpy as np

from pfiles.tiles.tissue import tissue_mask
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
