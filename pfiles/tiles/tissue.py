"""Where a slide shows tissue, found on a small picture of it."""

import numpy as np
import scipy

from pfiles.errors import extra


def tissue_mask(image: np.ndarray, speck: float) -> np.ndarray:
    """Where an RGB thumbnail (H, W, 3) shows stained tissue, as (H, W) bool.

    Colourfulness (largest less smallest of red, green, blue) above Otsu's threshold, which is kept between 10 and 25
    levels as some slides are all tissue and others all glass; specks and holes of less than `speck` pixels are removed.
    Black borders and marks of green, blue, red and black pens, made wider by 2 pixels, are no tissue.
    """
    with extra("slides"):
        from skimage.filters import threshold_otsu

    red, green, blue = (scipy.ndimage.uniform_filter(image[..., i].astype(np.float32), 3) for i in range(3))
    brightest = np.maximum(np.maximum(red, green), blue)
    colour = np.minimum(np.minimum(red, green), blue)
    np.subtract(brightest, colour, out=colour)
    ink = (colour > 70) & ((green > red + 15) | ((red > green + 120) & (red > blue + 110)))
    black = (brightest < 60) & (colour < 15)
    del red, green, blue, brightest  # each as large as the thumbnail
    marks = scipy.ndimage.binary_dilation(ink | black, iterations=2)
    otsu = threshold_otsu(colour) if colour.min() < colour.max() else 0
    mask = (colour > min(max(otsu, 10), 25)) & ~marks
    mask = _without_specks(mask, speck)
    return ~_without_specks(~mask, speck) & ~marks


def _without_specks(mask: np.ndarray, area: float) -> np.ndarray:
    labels, _ = scipy.ndimage.label(mask)
    return mask & (np.bincount(labels.ravel())[labels] >= area)


def shares(mask: np.ndarray, corners: np.ndarray, side: np.ndarray) -> np.ndarray:
    """The share of `mask` in boxes at `corners` (N, 2), x and y, of size `side` (2,), all in its pixels; (N,) float."""
    total = np.pad(mask.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32), ((1, 0), (1, 0)))
    limit = np.array(mask.shape[::-1])
    low = np.minimum(np.round(corners).astype(int), limit - 1)
    high = np.clip(np.round(corners + side).astype(int), low + 1, limit)
    (left, top), (right, bottom) = low.T, high.T
    inside = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    return inside / ((right - left) * (bottom - top))
