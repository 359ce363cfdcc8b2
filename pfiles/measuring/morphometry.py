"""What a pathologist would measure in a tile: stain, nuclei, background; and how far two sets of tiles differ in it."""

import warnings

import numpy as np
import pandas as pd
import scipy
import torch
from torch import Tensor

from pfiles.errors import InputError, extra
from pfiles.machine.processes import progress
from pfiles.machine.runtime import derive_seed
from pfiles.tiles.pixels import as_array, evenly_spaced

FEATURES = {
    "haematoxylin_od": "haematoxylin (optical density)",
    "eosin_od": "eosin (optical density)",
    "nucleus_fraction": "area of nuclei (fraction)",
    "nucleus_count": "nuclei per tile",
    "nucleus_size_px": "mean size of nuclei (px)",
    "background_fraction": "background (fraction)",
}  # the columns of `measure`, and what to call them in a figure
RANKS = ("haematoxylin_od",)  # whose distance puts tiles of known quality in order (docs/numbers.md)

WORDS = {
    "haematoxylin_od": ("darker haematoxylin", "paler haematoxylin"),
    "eosin_od": ("stronger eosin", "weaker eosin"),
    "nucleus_count": ("more nuclei", "fewer nuclei"),
    "nucleus_size_px": ("larger nuclei", "smaller nuclei"),
    "background_fraction": ("more background", "less background"),
}  # for a cluster with more, and with less of it than all others
TELLING, STRIKING = 0.5, 1.5  # differences, in standard deviations over all tiles, that get a word, and a "much"

NUCLEUS_OD = 0.35  # haematoxylin in nuclei, optical density; lies between nuclei and cytoplasm of usual H&E
NUCLEUS_SMOOTHING_PX = 1.0  # standard deviation of the Gaussian over the haematoxylin image before it is thresholded
NUCLEUS_SURROUNDINGS_PX = 8.0  # likewise for the surroundings that a nucleus must be darker than
NUCLEUS_CONTRAST_OD = 0.03  # by how much
NUCLEUS_MIN_PX = 20  # smaller objects are no nuclei
BLACK, COLOURLESS = 60, 15  # levels below which no tissue lies: of the brightest colour, and between it and the darkest
BACKGROUND_LEVEL = 175  # of 255: background is where no colour is darker, about 70 % of the light
CROSS = np.pad([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], ((1, 1), (0, 0), (0, 0)))  # never reaches another image
RESAMPLES = 1000  # of the bootstrap, and random halvings for the floor
BLOCK = 50  # of these at once
BATCH_SIZE = 50  # images at once; these two change memory and speed only


def stains(images: Tensor) -> np.ndarray:
    """Haematoxylin, eosin and DAB in each pixel, by the colour deconvolution of Ruifrok and Johnston 2001.

    images: uint8 (N, 3, H, W). Returns float32 (N, H, W, 3), a number for each stain: decadic optical density along the
    stain's unit colour vector, 0 where there is none. A black pixel counts as level 1 of 255, so that no density is
    infinite.
    """
    with extra("metrics"):
        from skimage.color import rgb2hed

    return 6 * rgb2hed(as_array(images).clip(1).astype(np.float32) / 255)  # scikit-image's unit is a density of 6


def nucleus_threshold(images: Tensor) -> float:
    """The haematoxylin density that best parts nuclei from the rest (Otsu 1979, over all pixels of 500 images).

    images: uint8 (N, 3, H, W), the real ones. One threshold has to serve all sets that are compared: a threshold that
    follows each image, or each set, would hide the very differences looked for. Black pixels, of a border or of what
    was never scanned, do not count: they would be taken for the nuclei.
    """
    with extra("metrics"):
        from skimage.filters import threshold_otsu

    _check(images)
    images = images[evenly_spaced(len(images), 500)]
    density = _blur(stains(images)[..., 0], NUCLEUS_SMOOTHING_PX)
    brightest, darkest = images.amax(1), images.amin(1)
    is_tissue = ((brightest >= BLACK) | (brightest - darkest >= COLOURLESS)).numpy()
    return float(threshold_otsu(density[is_tissue] if is_tissue.any() else density))


def measure(images: Tensor, nucleus_od: float = NUCLEUS_OD) -> pd.DataFrame:
    """One row of measurements for each of the images, uint8 (N, 3, H, W).

    haematoxylin_od, eosin_od: mean over the image of the decadic optical density of the stain, see `stains`.
    nucleus_fraction: share of the area that looks like nuclei: haematoxylin, smoothed by a Gaussian of 1 px, exceeds
        `nucleus_od` (take `nucleus_threshold` of the real images for all sets) and, by 0.03, its own mean over the
        surroundings (a Gaussian of 8 px), which parts crowded nuclei; opened by a cross of 3 x 3 px; pixels that touch
        by a side form an object, and objects below 20 px are dropped.
    nucleus_count, nucleus_size_px: number of such objects, those that the border cuts included, and their mean area
        in pixels, NaN where there are none. Sizes are in pixels: images to compare must have one scale.
    background_fraction: share of pixels whose darkest colour is at least 175 of 255.
    """
    _check(images)
    parts = images.split(BATCH_SIZE)
    rows = [_measure(part, nucleus_od) for part in progress(parts, desc="measure tiles", unit="batch", leave=False)]
    return pd.concat(rows, ignore_index=True)


def _measure(images: Tensor, nucleus_od: float) -> pd.DataFrame:
    n, area = len(images), images[0, 0].numel()
    density = stains(images)
    smooth = _blur(density[..., 0], NUCLEUS_SMOOTHING_PX)
    surroundings = _blur(density[..., 0], NUCLEUS_SURROUNDINGS_PX)
    dark = (smooth > nucleus_od) & (smooth > surroundings + NUCLEUS_CONTRAST_OD)
    objects, _ = scipy.ndimage.label(scipy.ndimage.binary_opening(dark, CROSS), CROSS)
    sizes = np.bincount(objects.ravel())
    places = np.zeros(len(sizes), int)  # the image of each object
    places[objects.ravel()] = np.repeat(np.arange(n), area)
    is_nucleus = sizes >= NUCLEUS_MIN_PX
    is_nucleus[0] = False
    count = np.bincount(places[is_nucleus], minlength=n)
    pixels = np.bincount(places[is_nucleus], sizes[is_nucleus], minlength=n)
    return pd.DataFrame(
        {
            "haematoxylin_od": density[..., 0].mean((1, 2), dtype=np.float64),
            "eosin_od": density[..., 1].mean((1, 2), dtype=np.float64),
            "nucleus_fraction": pixels / area,
            "nucleus_count": count,
            "nucleus_size_px": pixels / np.where(count, count, np.nan),
            "background_fraction": (images.amin(1) >= BACKGROUND_LEVEL).double().mean((1, 2)).cpu().numpy(),
        }
    )


def _blur(density: np.ndarray, sigma: float) -> np.ndarray:
    return scipy.ndimage.gaussian_filter(density, (0, sigma, sigma))


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise InputError(
            f"Expected uint8 images of shape (N, 3, H, W), but got {images.dtype} of shape "
            f"{tuple(images.shape)}: give RGB tiles of 0 ... 255."
        )


def in_words(table: pd.DataFrame, cluster_ids: np.ndarray, weights: np.ndarray) -> dict[int, str]:
    """How the tiles of each cluster differ from all others, such as "darker haematoxylin, much more nuclei".

    table: of `measure`; cluster_ids, weights: of each row, the latter how many tiles the row stands for. Means are
    compared in standard deviations over all tiles: from 0.5 on there is a word for it, from 1.5 on it is "much".
    """
    words = {}
    values = table[list(WORDS)].to_numpy(float)
    heavy = np.where(np.isfinite(values), weights[:, None], 0)
    values = np.nan_to_num(values)

    def means(rows: np.ndarray) -> np.ndarray:
        return (heavy[rows] * values[rows]).sum(0) / heavy[rows].sum(0)

    with np.errstate(divide="ignore", invalid="ignore"):  # a side without nuclei, a measurement that never differs
        all_rows = np.ones(len(table), bool)
        deviation = np.sqrt((heavy * np.square(values - means(all_rows))).sum(0) / heavy.sum(0))
        for cluster in np.unique(cluster_ids):
            apart = (means(cluster_ids == cluster) - means(cluster_ids != cluster)) / deviation
            phrases = [
                "much " * bool(abs(d) >= STRIKING) + (more if d > 0 else less)
                for d, (more, less) in zip(apart, WORDS.values(), strict=True)
                if np.isfinite(d) and abs(d) >= TELLING
            ]
            words[int(cluster)] = ", ".join(phrases) or "like the others in stain, nuclei and background"
    return words


def compare(real: pd.DataFrame, generated: pd.DataFrame, seed: int) -> pd.DataFrame:
    """How far generated images are from real ones in each measurement.

    real, generated: tables of `measure`, at least two rows each. Returns a row for each measurement:
    real, generated: the means;
    distance: the Wasserstein distance of the two distributions, in the measurement's unit: by how much values have to
        change on average to turn one into the other;
    low, high: its 95 % bootstrap interval. Images are drawn anew, real and generated; such draws lie too far apart on
        average, as no two samples are equal, so percentiles are of the draws less that excess;
    floor, floor_high: mean and 95th percentile of the same distance between two random halves of the real images.
        A generator of real images would come close to it; a distance above floor_high is a difference that shows.
    Images without nuclei have no size of nuclei and are left out there; NaN where none is left.
    """
    if min(len(real), len(generated)) < 2:
        raise InputError(
            f"Comparing needs at least 2 real and 2 generated images, but there are {len(real)} and {len(generated)}."
        )
    rng = np.random.default_rng(derive_seed(seed, "morphometry"))
    n, m = len(real), len(generated)
    pooled = np.concatenate([table[list(FEATURES)].to_numpy(float) for table in (real, generated)])
    sides = np.repeat([1 / n, -1 / m], [n, m])
    halves = np.where(np.arange(n) < n // 2, 1 / (n // 2), -1 / (n - n // 2))
    resampled, halved = [], []
    for _ in range(RESAMPLES // BLOCK):
        times = [rng.multinomial(count, np.full(count, 1 / count), BLOCK) for count in (n, m)]
        resampled.append(_wasserstein(pooled, np.hstack(times) * sides))
        halved.append(_wasserstein(pooled[:n], rng.permuted(np.tile(halves, (BLOCK, 1)), axis=1)))
    draws, floor, distance = np.concatenate(resampled), np.concatenate(halved), _wasserstein(pooled, sides[None])[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice|Mean of empty slice")  # no nuclei anywhere
        low, high = (np.nanpercentile(draws, [2.5, 97.5], axis=0) - np.nanmean(draws, axis=0) + distance).clip(0)
        columns = {
            "real": real[list(FEATURES)].mean(),
            "generated": generated[list(FEATURES)].mean(),
            "distance": distance,
            "low": low,
            "high": high,
            "floor": np.nanmean(floor, axis=0),
            "floor_high": np.nanpercentile(floor, 95, axis=0),
        }
    return pd.DataFrame(columns, index=list(FEATURES))


def _wasserstein(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """First Wasserstein distances of weighted samples of each column of `values` (N, F). -> (R, F)

    weights: (R, N), positive for the one side and negative for the other. Each side is scaled to weigh 1 once rows
    that are NaN are left out; NaN where nothing is left of a side.
    """
    distances = np.full((len(weights), values.shape[1]), np.nan)
    for feature, column in enumerate(values.T):
        order = np.argsort(column)[: np.isfinite(column).sum()]  # NaN comes last
        w = weights[:, order]
        positive, negative = w.clip(min=0), -w.clip(max=0)
        full = positive.any(axis=1) & negative.any(axis=1)
        shares = [side[full] / side[full].sum(axis=1, keepdims=True) for side in (positive, negative)]
        distances[full, feature] = np.abs((shares[0] - shares[1]).cumsum(axis=1)[:, :-1]) @ np.diff(column[order])
    return distances
