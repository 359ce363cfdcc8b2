"""Whole slides, read with OpenSlide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from openslide import AbstractSlide


def read_rgb(slide: AbstractSlide, x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
    """A region as uint8 RGB (height, width, 3); pixels that were never scanned are white.

    x, y: the upper left corner in pixels of level 0; width, height: in pixels of `level`.
    """
    region = slide.read_region((x, y), level, (width, height))
    white = Image.new("RGBA", region.size, "white")
    return np.asarray(Image.alpha_composite(white, region).convert("RGB"))
