"""Where a slide shows tissue, found on a small picture of it.

Glass comes first: its colour is measured, and each pixel is divided by it, so that tinted glass, shading and a lamp's
colour drop out. Tissue is what is then coloured. Marks of pens are coloured too: they are told from tissue by colours
that no stain has, and by being even where tissue has texture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

ENCLOSED = 100  # um: the side of what tissue encloses and is counted with it, as cells of fat are
WHITE = 254  # levels from which on a pixel was never scanned, or glass is overexposed
GLASS_LEAST, GLASS_BRIGHTEST = 130, 195  # levels: what glass has at least in each channel, and in its brightest
DIM_GLASS, NEUTRAL = 160, 0.8  # the latter under a dim lamp, and what each channel then has of the brightest
EVEN = 3  # levels by which neighbouring pixels of glass differ at most
RARE = 0.05  # of the commonest colour's share: what a brighter one needs to be glass
LEAST_GLASS = 0.002  # share of the thumbnail
ALIKE = 16  # levels around the glass' colour in which most pixels are even
THRESHOLDS = (5.0, 12.0)  # levels between which the threshold of colour lies
INK = 60  # levels of colour that a mark of a pen has at least
TEXTURE = 0.04  # of the colour: difference of neighbours below which a pen drew them, as in less than 1 % of lung
SMALLEST = 12  # pixels of a mark


@dataclass(frozen=True)
class Glass:
    """Empty glass: its colour (3,) in levels, and how coloured its own pixels are beside that, in levels of 255."""

    colour: np.ndarray
    spread: float


def tissue_mask(
    image: np.ndarray, speck: float, hole: float = 0, *, pens: bool = True, threshold: float | None = None
) -> np.ndarray:
    """Where an RGB thumbnail (H, W, 3) shows stained tissue, as (H, W) bool.

    Colour is the largest less the smallest of red, green and blue, each divided by the glass' and in levels of 255. It
    is tissue above `threshold`; None for three times what the glass' own pixels have, kept between 5 and 12 levels, and
    12 where there is no glass. Specks of less than `speck` pixels are removed; what tissue encloses is tissue where it
    is smaller than `speck` or `hole`, as the cells of fat are. Black borders are no tissue, nor are marks of pens where
    `pens`, made wider by 2 pixels.
    """
    glass = measure_glass(image)
    bands = _over_glass(image, glass)
    brightest = np.maximum(np.maximum(*bands[:2]), bands[2])
    colour = brightest - np.minimum(np.minimum(*bands[:2]), bands[2])
    threshold = _threshold(glass) if threshold is None else threshold
    coloured = colour > threshold  # a mean of neighbours alone would reach over the outline
    colour = scipy.ndimage.uniform_filter(colour, 3)
    coloured &= colour > threshold
    marks = _wider((brightest < 60) & (colour < 15), 2)
    if pens and glass:
        marks |= _pen_marks(bands, brightest, colour, coloured)
    mask = _without_specks(coloured & ~marks, speck)
    if hole:
        mask |= scipy.ndimage.binary_closing(mask, iterations=2)
    return _filled(mask, speck, max(speck, hole)) & ~marks


def _threshold(glass: Glass | None) -> float:
    return float(np.clip(3 * glass.spread, *THRESHOLDS)) if glass else THRESHOLDS[1]


def doubt(mask: np.ndarray) -> str | None:
    """Why a mask (H, W) may be wrong, in a sentence; None where nothing speaks for that."""
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if mask.mean() > 0.95 and border.mean() > 0.95:
        return (
            "nearly all of it is taken for tissue, up to its border: look at its picture, and if that is wrong give "
            "a higher --tissue-threshold"
        )
    return None


def measure_glass(image: np.ndarray) -> Glass | None:
    """The glass of a thumbnail (H, W, 3); None where it shows none.

    Glass is bright, and wherever its colour is, it is even. Of several such colours it is the brightest, as whatever
    lies on glass absorbs light.
    """
    step = max(1, int(np.sqrt(image.shape[0] * image.shape[1]) / 300))
    rows, columns = image.shape[0] - 2, image.shape[1] - 2
    if rows < 1 or columns < 1:
        return None
    around = np.stack([image[y : y + rows : step, x : x + columns : step] for y in range(3) for x in range(3)])
    around = around.reshape(9, -1, 3).astype(np.float32)
    mean, even = around.mean(axis=0), around.std(axis=0).max(axis=1) < EVEN
    white = mean.min(axis=1) >= WHITE
    darkest, brightest = mean.min(axis=1), mean.max(axis=1)
    dim = (brightest >= DIM_GLASS) & (darkest >= NEUTRAL * brightest)
    bright = ~white & (darkest >= GLASS_LEAST) & ((brightest >= GLASS_BRIGHTEST) | dim)
    least = max(4, LEAST_GLASS * len(mean))
    cells = (mean[bright & even] // 6).astype(int) @ (1, 43, 43 * 43)
    counts = np.bincount(cells, minlength=1)
    common = np.flatnonzero(counts >= max(1, RARE * counts.max(), RARE * white.sum()))
    colours = np.stack([common % 43, common // 43 % 43, common // 43**2], axis=1) * 6.0 + 3
    for colour in colours[np.argsort(-colours.sum(axis=1))]:
        for _ in range(3):  # the middle of that colour, which may lie in several bins
            near = even & bright & (np.abs(mean - colour).max(axis=1) < 6)
            colour = mean[near].mean(axis=0) if near.any() else colour
        alike = np.abs(mean - colour).max(axis=1) < ALIKE
        if near.sum() >= least and even[alike].mean() > 0.5:
            over = mean[near] * (255 / colour)
            return Glass(colour.astype(float), float(np.median(np.ptp(over, axis=1))))
    return Glass(np.full(3, 255.0), 0.0) if white.sum() >= least else None


def _over_glass(image: np.ndarray, glass: Glass | None) -> list[np.ndarray]:
    """Red, green and blue, each (H, W) float32, in levels of which glass has 255; what was never scanned is glass."""
    levels = np.arange(256, dtype=np.float32)
    if glass is None:
        return [levels[image[..., i]] for i in range(3)]
    bands = [np.minimum(levels * np.float32(255 / glass.colour[i]), 255)[image[..., i]] for i in range(3)]
    if np.ptp(glass.colour) > 2:  # white is coloured beside tinted glass
        white = image.min(axis=2) >= WHITE
        for band in bands:
            band[white] = 255
    return bands


def _pen_marks(
    bands: Sequence[np.ndarray], brightest: np.ndarray, colour: np.ndarray, coloured: np.ndarray
) -> np.ndarray:
    """Marks of pens (H, W) bool, see the module. bands: red, green and blue; the others as in `tissue_mask`."""
    red, green, blue = bands
    strong = colour > INK
    marks = np.zeros_like(strong)
    if not strong.any():
        return marks
    no_stain = strong & (
        ((green > red + 25) & (green > blue + 10) & (colour > 0.5 * brightest))
        | ((blue >= brightest) & (green > red - 5) & (colour > 0.75 * brightest))
    )
    light = (red + green + blue) / 3
    texture = np.zeros_like(light)
    texture[:, 1:] = np.abs(light[:, 1:] - light[:, :-1])
    texture[1:] += np.abs(light[1:] - light[:-1])
    texture = scipy.ndimage.uniform_filter(texture, 3)
    labels, _ = scipy.ndimage.label(strong & (texture < TEXTURE * colour), np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    for number, part in enumerate(scipy.ndimage.find_objects(labels), start=1):
        if sizes[number] < SMALLEST:
            continue
        window = tuple(slice(max(0, side.start - 8), side.stop + 8) for side in part)
        core = labels[window] == number
        ink = [band[window][core].mean() for band in bands]
        if ink[1] <= min(ink[0], ink[2]) + 15:  # red to violet, as stains are
            near = scipy.ndimage.binary_dilation(core, iterations=4)
            around = scipy.ndimage.binary_dilation(near, iterations=2) & ~near
            if max(ink) - min(ink) < max(ink) / 2 or coloured[window][around].mean() > 0.5:
                continue  # a pale one, or one within tissue, as even blood is
        marks[window] |= core
    return _wider(no_stain | _wider(marks, 3), 2)  # first to the outline of what is even


def _wider(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask (H, W), wider by so many pixels along rows and columns; in a fourth of the time that scipy takes."""
    for _ in range(pixels):
        wide = mask.copy()
        wide[1:] |= mask[:-1]
        wide[:-1] |= mask[1:]
        wide[:, 1:] |= mask[:, :-1]
        wide[:, :-1] |= mask[:, 1:]
        mask = wide
    return mask


def _without_specks(mask: np.ndarray, area: float) -> np.ndarray:
    labels, _ = scipy.ndimage.label(mask)
    return mask & (np.bincount(labels.ravel())[labels] >= area)


def _filled(mask: np.ndarray, speck: float, hole: float) -> np.ndarray:
    """The mask and its spaces of less than `hole` pixels; of those at the border, which are not enclosed, `speck`."""
    labels, count = scipy.ndimage.label(~mask)
    limits = np.full(count + 1, hole)
    limits[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = speck
    return mask | (np.bincount(labels.ravel(), minlength=count + 1) < limits)[labels]


def shares(mask: np.ndarray, corners: np.ndarray, side: np.ndarray) -> np.ndarray:
    """The share of `mask` in boxes at `corners` (N, 2), x and y, of size `side` (2,), all in its pixels; (N,) float."""
    total = np.pad(mask.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32), ((1, 0), (1, 0)))
    limit = np.array(mask.shape[::-1])
    low = np.clip(np.round(corners).astype(int), 0, limit - 1)
    high = np.clip(np.round(corners + side).astype(int), low + 1, limit)
    (left, top), (right, bottom) = low.T, high.T
    inside = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    return inside / ((right - left) * (bottom - top))
