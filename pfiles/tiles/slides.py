"""Whole slides: where their tissue is, and tiles of it at any number of microns per pixel."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy
from PIL import Image, ImageDraw

from pfiles.errors import InputError
from pfiles.tiles.coordinates import Coordinates, require_scale, side_on
from pfiles.tiles.readers import BLOCK, SNAP, SlideReader, level_for, read_rgb, thumbnail
from pfiles.tiles.regions import Polygon, region_mask
from pfiles.tiles.scale import Scale, scale_of
from pfiles.tiles.tissue import ENCLOSED, doubt, shares, tissue_mask

FILLED = 0.75  # of such a block is taken; one of which less is, is read in parts
MAX_SIDE = 4 * BLOCK  # px of a level that a single tile may take
MAX_MPP = 50  # of tiles, and of slides as the user says


@dataclass(frozen=True)
class Tiling:
    """What tiles to cut.

    mpp: microns per pixel of the tiles. size, stride: in pixels of the tiles; stride None is the size.
    min_tissue: the least share of tissue. min_sharpness: the least `sharpness`. mpp_of_slide: microns per pixel of the
    slides, which counts more than what their files say. per_slide: at most so many tiles of a slide, evenly over its
    tissue; `seed` says where the choice begins. page: which of a file's images, from 1; None for all of them.
    icc: bring pixels from the slide's colour profile to sRGB. pens, tissue_threshold: whether marks of pens are looked
    for, and levels of colour from which on glass is tissue, see `tissue_mask`. regions: polygons to which the tissue is
    limited, see `pfiles.tiles.regions`. coordinates: the places to cut, whatever their tissue; they leave no room for
    `stride` or `regions`.
    """

    mpp: float = 1.0
    size: int = 128
    stride: int | None = None
    min_tissue: float = 0.5
    per_slide: int | None = None
    seed: int = 765
    mpp_of_slide: float | None = None
    min_sharpness: float = 0.0
    page: int | None = 1
    icc: bool = False
    pens: bool = True
    tissue_threshold: float | None = None
    regions: tuple[Polygon, ...] | None = None
    coordinates: Coordinates | None = None

    def __post_init__(self):
        for name, low, high in (
            ("mpp", 0, MAX_MPP), ("size", 15, 4096), ("stride", 0, 2**20), ("min_tissue", 0, 1),
            ("per_slide", 0, 2**40), ("mpp_of_slide", 0, MAX_MPP), ("min_sharpness", -1, 2**20),
            ("page", 0, 2**20), ("tissue_threshold", 0, 255),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and low < value <= high):
                raise InputError(f"{name} must be above {low} and at most {high}, but is {value!r}.")
        if self.coordinates is not None and (self.stride is not None or self.regions is not None):
            raise InputError("coordinates say where each tile lies: leave out stride and regions.")


@dataclass(frozen=True)
class Plan:
    """Which tiles of a slide are cut, and from where.

    level, factor: the level to read, and how many of its pixels make one of a tile's along a side.
    downsample: the same in pixels of level 0. mpp: microns per pixel of the tiles.
    bounds: what was scanned of the slide, x, y, width and height in pixels of level 0.
    corners: (N, 2) x and y of each tile in pixels of tiles from the corner of `bounds`, whole numbers but where the
    places were given. tissue: (N,) shares.
    scale: of level 0. doubt: why its tissue may be wrong, in words; None where nothing speaks for that.
    """

    level: int
    factor: float
    downsample: float
    mpp: float
    bounds: tuple[int, int, int, int]
    corners: np.ndarray
    tissue: np.ndarray
    scale: Scale
    doubt: str | None = None


def plan_tiles(slide: SlideReader, path: Path, tiling: Tiling, offset: float) -> tuple[Plan, Image.Image]:
    """The tiles of a slide that show enough tissue, and a picture of it: outlines of tissue, and the tiles taken.

    offset: in [0, 1), where among its tiles an even choice of `per_slide` begins. A scale within 1 % of a whole
    multiple of a level's is taken for that, so that pixels are averaged whole; `Plan.mpp` is what it comes to.
    """
    scale_of_slide = scale_of(slide.properties, path, tiling.mpp_of_slide)
    mpp = scale_of_slide.mpp
    target_downsample = tiling.mpp / mpp
    if tiling.coordinates is not None:
        side_of_place = side_on(slide, path, tiling.coordinates, mpp)
        require_scale(tiling.coordinates, side_of_place, mpp, tiling.mpp, tiling.size)
        target_downsample = side_of_place / tiling.size
    if target_downsample < 1 - SNAP:
        raise InputError(f"{path} was scanned at {mpp:g} um/px: tiles of {tiling.mpp:g} um/px would be invented.")
    level = level_for(slide, target_downsample)
    factor = target_downsample / slide.level_downsamples[level]
    if abs(factor / round(factor) - 1) <= SNAP:
        factor = round(factor)
    if tiling.size * factor > MAX_SIDE:
        raise InputError(
            f"{path} has no level near {tiling.mpp:g} um/px: one tile would be averaged from "
            f"{tiling.size * factor:.0f} px of level {level}, but {MAX_SIDE} are the most."
        )
    downsample = slide.level_downsamples[level] * factor
    x, y, width, height = (
        int(slide.properties.get(f"openslide.bounds-{name}", default))
        for name, default in zip(("x", "y", "width", "height"), (0, 0, *slide.level_dimensions[0]), strict=True)
    )
    side = tiling.size * downsample  # of a tile, in level-0 pixels
    if min(width, height) < math.floor(side):
        raise InputError(
            f"{path} is {width} x {height} px, which is smaller than one tile: {tiling.size} px at {tiling.mpp:g} "
            f"um/px are {side:.0f} px of the slide at {mpp:g} um/px."
        )

    image = thumbnail(slide, max(side / 16, max(width, height) / 2048), (x, y, width, height))
    scale = np.array([width / image.shape[1], height / image.shape[0]])
    in_thumbnail = side / scale
    enclosed = in_thumbnail.prod() * (ENCLOSED / (tiling.size * tiling.mpp)) ** 2
    mask = tissue_mask(image, in_thumbnail.prod() / 4, enclosed, pens=tiling.pens, threshold=tiling.tissue_threshold)
    if tiling.regions is not None:
        mask &= region_mask(tiling.regions, mask.shape, scale, path)
    stride = tiling.stride or tiling.size
    corners: np.ndarray
    if tiling.coordinates is None:
        columns, rows = (int((length / downsample - tiling.size) // stride) + 1 for length in (width, height))
        corners = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2) * stride
    else:
        corners = (np.array(tiling.coordinates.corners) - (x, y)) / downsample
    share = shares(mask, corners * downsample / scale, in_thumbnail)
    selection = np.flatnonzero((share >= tiling.min_tissue) | (tiling.coordinates is not None))
    if not len(selection):
        raise InputError(
            f"{path} shows no tissue: no tile of {tiling.size} px has {tiling.min_tissue:.0%} of it. If that is "
            "wrong, lower --min-tissue or --tissue-threshold, or give --pens off."
        )
    if tiling.per_slide is not None and len(selection) > tiling.per_slide:
        cells = np.maximum(corners[selection] // stride, 0).astype(int)
        nearby = selection[np.argsort(_morton(cells), kind="stable")]  # neighbours follow each other
        steps = (np.arange(tiling.per_slide) + offset) * len(selection) / tiling.per_slide
        selection = np.sort(nearby[steps.astype(int)])
    bounds = x, y, width, height
    corners, share = corners[selection], share[selection]
    plan = Plan(level, factor, downsample, mpp * downsample, bounds, corners, share, scale_of_slide, doubt(mask))
    return plan, _picture(image, mask, corners * downsample / scale, in_thumbnail)


def _morton(cells: np.ndarray) -> np.ndarray:
    """Place of each cell (N, 2) on a curve that goes through all cells of a square before it leaves it."""
    bits = np.arange(20)
    return ((cells[:, :, None] >> bits & 1) << (2 * bits + np.array([[0], [1]]))).sum(axis=(1, 2))


def _picture(image: np.ndarray, mask: np.ndarray, corners: np.ndarray, side: np.ndarray) -> Image.Image:
    outlined = image.copy()
    outlined[mask & ~scipy.ndimage.binary_erosion(mask)] = (0, 160, 0)
    tiles = Image.fromarray(image)
    draw = ImageDraw.Draw(tiles)
    for x, y in corners:
        draw.rectangle((x, y, x + side[0] - 1, y + side[1] - 1), outline=(0, 0, 255))
    return Image.fromarray(np.concatenate([image, outlined, np.asarray(tiles)], axis=1))


def cut_tiles(
    slide: SlideReader, plan: Plan, tiling: Tiling, threads: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The planned tiles, block by block: indices into the plan, images (n, S, S, 3) uint8, and their sharpness (n,).

    Blocks are read and averaged by several threads, as decoding happens outside the interpreter's lock, a few ahead of
    the caller.
    """

    def cut(members: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        corners = plan.corners[members]
        low = corners.min(axis=0)
        inside = np.round(corners - low).astype(int)
        width, height = inside.max(axis=0) + tiling.size
        x, y = (round(start + corner * plan.downsample) for start, corner in zip(plan.bounds[:2], low, strict=True))
        wide, high = (math.ceil(length * plan.factor) for length in (width, height))
        factor = plan.factor if isinstance(plan.factor, int) else None
        block = read_rgb(slide, x, y, plan.level, wide, high, factor or 1)
        if factor is None:
            box = (0, 0, width * plan.factor, height * plan.factor)
            block = block.resize((width, height), Image.Resampling.BOX, box)
        pixels = np.asarray(block)
        tiles = np.stack([pixels[y : y + tiling.size, x : x + tiling.size] for x, y in inside])
        return members, tiles, sharpness(tiles)

    waiting: deque = deque()
    with ThreadPoolExecutor(threads) as pool:
        for members in _blocks(plan, tiling):
            waiting.append(pool.submit(cut, members))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _blocks(plan: Plan, tiling: Tiling) -> Iterator[np.ndarray]:
    """Indices of the tiles that are read at once: of a square of BLOCK pixels, or of parts of it that tiles fill.

    Places that were given lie on no grid and are read one by one.
    """
    if tiling.coordinates is not None:
        yield from np.arange(len(plan.corners))[:, None]
        return
    stride = tiling.stride or tiling.size
    per_block = max(1, int((BLOCK / plan.factor - tiling.size) // stride) + 1)
    cells = plan.corners // (per_block * stride)
    order = np.lexsort((cells[:, 0], cells[:, 1]))
    begins = np.flatnonzero(np.any(np.diff(cells[order], axis=0), axis=1)) + 1
    waiting = np.split(order, begins)[::-1]
    while waiting:
        members = waiting.pop()
        places = plan.corners[members] // stride
        low, extent = places.min(axis=0), np.ptp(places, axis=0) + 1
        if len(members) >= FILLED * extent.prod():
            yield members
        else:
            axis = extent.argmax()
            first = places[:, axis] < low[axis] + extent[axis] / 2
            waiting += [members[~first], members[first]]


def sharpness(tiles: np.ndarray) -> np.ndarray:
    """The variance of the Laplacian of the grey tiles (N, S, S, 3), in squared levels, as (N,) float32."""
    n, side = tiles.shape[:2]
    grey = np.asarray(Image.fromarray(tiles.reshape(n * side, side, 3)).convert("L")).astype(np.int16)
    grey = grey.reshape(n, side, side)
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    laplacian = around - 4 * grey[:, 1:-1, 1:-1]
    return laplacian.var(axis=(1, 2), dtype=np.float32)
