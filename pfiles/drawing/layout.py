"""Layouts: which cluster lies where in a field, as people have it.

A layout is a picture or array of numbers, a grid of names, annotations from QuPath, the map of a slide, or one cluster
for everything.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pfiles.errors import InputError, extra
from pfiles.names import find_clusters
from pfiles.spreadsheet import columns_of, numbers, read_grid, read_table
from pfiles.tiles.files import quietly

GLASS = -1  # in place of a cluster: no tissue
GLASS_WORD = "glass"
HOLE = -2  # no class: refused
CELLS = 8  # cells along the side of a tile into which annotations are painted
MOST_CELLS = 10**8  # of a layout
MOST_PIXELS = 10**6  # of a side of a field
MOST_CLUSTERS = 10**6  # that a number in a layout may name
MAP_COLUMNS = ("slide", "x", "y", "side", "cluster")  # of a slide's tile_clusters.csv


class Box(NamedTuple):
    """Part of a field: rows from top to bottom and columns from left to right, without the last; pixels or latents."""

    top: int
    left: int
    bottom: int
    right: int

    def inside(self, other: "Box") -> tuple[slice, slice]:
        """The rows and columns of this box, counted from the corner of another one."""
        rows = slice(self.top - other.top, self.bottom - other.top)
        return rows, slice(self.left - other.left, self.right - other.left)


@dataclass(frozen=True, eq=False)
class Layout:
    """cells: the cluster, 0-based, or GLASS of each cell of a grid over the field (rows, columns). size: width and
    height of the field in pixels; cells are stretched to it. filled: cells, in which glass has the nearest cluster.
    """

    cells: np.ndarray
    size: tuple[int, int]
    filled: np.ndarray

    @property
    def has_glass(self) -> bool:
        return bool((self.cells == GLASS).any())


def make_layout(cells: np.ndarray, size: tuple[int, int], n_clusters: int) -> Layout:
    """A layout of `cells`, see `Layout`; InputError for clusters that do not exist, holes, or glass alone."""
    cells = np.ascontiguousarray(cells)
    if cells.ndim != 2 or not cells.size:
        raise InputError(f"A layout must be a grid of rows and columns, but has the shape {cells.shape}.")
    if not all(1 <= side <= MOST_PIXELS for side in size):
        raise InputError(f"A field has 1 to {MOST_PIXELS:,} px a side, but {size[0]} x {size[1]} px were asked.")
    if wrong := sorted(set(np.unique(cells).tolist()) - {HOLE, GLASS, *range(n_clusters)}):
        named = ", ".join(str(cluster + 1) for cluster in wrong[:5])
        raise InputError(f"The layout asks for cluster {named}, but clusters are numbered from 1 to {n_clusters}.")
    if holes := float((cells == HOLE).mean()):
        raise InputError(
            f"{holes:.1%} of the field has no class: paint it in the layout, or name a cluster or glass for it with "
            "--background."
        )
    is_glass = cells == GLASS
    if is_glass.all():
        raise InputError("The whole layout is glass: name a cluster somewhere.")
    filled = cells
    if is_glass.any():
        from scipy.ndimage import distance_transform_edt

        nearest = distance_transform_edt(is_glass, return_distances=False, return_indices=True)
        filled = cells[tuple(nearest)]
    return Layout(cells, (int(size[0]), int(size[1])), filled)


def cells_at(layout: Layout, box: Box, step: int, margin: int = 0, filled: bool = True) -> np.ndarray:
    """The cluster at the middle of each place (h, w) of a box of places of `step` px, and of `margin` places around it.

    What lies outside of the field is as its nearest edge.
    """
    at = []
    sides = ((box.top, box.bottom, layout.size[1]), (box.left, box.right, layout.size[0]))
    for (low, high, length), count in zip(sides, layout.cells.shape, strict=True):
        places = ((np.arange(low - margin, high + margin) + 0.5) * step).clip(0, length - 0.5)
        at.append((places * count / length).astype(int))
    return (layout.filled if filled else layout.cells)[np.ix_(*at)]


def shares(layout: Layout, box: Box, step: int, blend: int) -> tuple[list[int], Tensor]:
    """The clusters there are around a box, and how much each counts at each place (k, h, w); 1 in all.

    box: of places of `step` px. blend: places over which neighbouring clusters blend at their border.
    """
    cells = torch.from_numpy(cells_at(layout, box, step, blend // 2))
    clusters = cells.unique()
    return clusters.tolist(), _blended((cells == clusters[:, None, None]).float(), blend)


def tissue(layout: Layout, box: Box, step: int, blend: int) -> Tensor:
    """How much tissue there is at each place (h, w) of a box, from 0, glass, to 1; see `shares`."""
    cells = torch.from_numpy(cells_at(layout, box, step, blend // 2, filled=False))
    return _blended((cells != GLASS).float()[None], blend)[0]


def _blended(masks: Tensor, blend: int) -> Tensor:
    """Means (k, h, w) over squares of about `blend` places of masks that have a margin of half of it."""
    return F.avg_pool2d(masks[None], 2 * (blend // 2) + 1, stride=1)[0]


class Reader(NamedTuple):
    """What the layouts of a generator mean.

    names: of clusters by their numbers from 1. n_clusters: how many. shares: of the training tiles in each, by which
    one of several clusters of a name is chosen. side: of a tile, pixels. mpp: microns per pixel; None: not known.
    """

    names: Mapping[int, str]
    n_clusters: int
    shares: Sequence[float]
    side: int
    mpp: float | None = None

    def cluster(self, text: str) -> int:
        """The cluster, 0-based, of a name, a number from 1, or a class of a map such as "Cluster 3" or "3 keratin".

        Of several clusters of one name the most frequent one. GLASS for "glass", HOLE for no text.
        """
        text = text.strip()
        if not text:
            return HOLE
        called = {name.casefold() for name in self.names.values()}
        if text.casefold() == GLASS_WORD and GLASS_WORD not in called:
            return GLASS
        numbered = re.fullmatch(r"(?:cluster )?(\d{1,6})(?: .*)?", text.casefold())
        name = numbered[1] if numbered and text.casefold() not in called else text
        return max(find_clusters(name, self.names, self.n_clusters), key=lambda cluster: self.shares[cluster])


def read_layout(
    where: str,
    reader: Reader,
    size: tuple[int, int] | None = None,
    background: str | None = None,
    mpp_of_slide: float | None = None,
) -> Layout:
    """The layout that a file holds; or one cluster for everything, where `where` names one and no file.

    size: width and height of the field in pixels; default: a tile for each cell, or what the annotations cover.
    background: the cluster, or "glass", of places without a class. mpp_of_slide: of the slide that a GeoJSON was
    painted on. InputError for what is no layout of these clusters.
    """
    path = Path(where).expanduser()
    kinds: dict[str, Callable[[Path], tuple[np.ndarray, tuple[int, int]]]] = {
        ".npy": lambda path: _with_size(_read_npy(path), reader),
        ".png": lambda path: _with_size(_read_png(path), reader),
        ".csv": lambda path: _read_csv(path, reader),
        ".geojson": lambda path: _read_geojson(path, reader, mpp_of_slide),
        ".json": lambda path: _read_geojson(path, reader, mpp_of_slide),
    }
    kind = kinds.get(path.suffix.lower())
    if kind is None and not path.exists():
        if size is None:
            raise InputError(f"One cluster for everything, {where!r}, needs the field's --size: its width and height.")
        cells, default_size = np.array([[reader.cluster(where)]]), size
    elif kind is None:
        raise InputError(f"{path} is no layout: give a .png, .npy, .csv or .geojson file, or a cluster.")
    elif not path.is_file():
        raise InputError(f"There is no layout at {path}: correct the path.")
    else:
        cells, default_size = kind(path)
    if background is not None:
        cells = np.where(cells == HOLE, reader.cluster(background), cells)
    return make_layout(cells, size or default_size, reader.n_clusters)


def _with_size(cells: np.ndarray, reader: Reader) -> tuple[np.ndarray, tuple[int, int]]:
    """The layout at its default size: one tile for each cell."""
    rows, columns = cells.shape
    return cells, (columns * reader.side, rows * reader.side)


def _read_npy(path: Path) -> np.ndarray:
    try:
        cells = np.load(path, allow_pickle=False)
    except Exception as error:  # a broken header raises errors of many kinds in numpy
        raise InputError(f"{path} cannot be read as a .npy array ({error}): write it anew with numpy.save.") from error
    return _from_numbers(cells, path)


@quietly()
def _read_png(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "P", "I", "I;16"):
                raise InputError(
                    f"{path} holds colours ({image.mode}), where each pixel must be the number of a cluster: save it "
                    "as a grey or palette PNG."
                )
            return _from_numbers(np.asarray(image), path)
    except InputError:
        raise
    except Exception as error:  # damaged pictures raise errors of many kinds
        raise InputError(f"{path} cannot be read as a picture ({error}): save it anew as PNG.") from error


def _from_numbers(cells: np.ndarray, path: Path) -> np.ndarray:
    """Cells from numbers of clusters, which count from 1; 0 is no cluster."""
    if not isinstance(cells, np.ndarray) or cells.ndim != 2 or not 0 < cells.size <= MOST_CELLS:
        shape = getattr(cells, "shape", None)
        raise InputError(f"{path} must hold the numbers of clusters in rows and columns, but has the shape {shape}.")
    if cells.dtype.kind not in "biuf":
        raise InputError(f"{path} must hold whole numbers of clusters from 1, and 0 for none, but holds {cells.dtype}.")
    is_number = (cells >= 0) & (cells <= MOST_CLUSTERS) & (cells == np.floor(cells))
    if not is_number.all():
        raise InputError(
            f"{path} must hold whole numbers of clusters from 1, and 0 for none, but holds {cells[~is_number][0]}."
        )
    cells = cells.astype(np.int64)
    return np.where(cells == 0, HOLE, cells - 1)


def _read_csv(path: Path, reader: Reader) -> tuple[np.ndarray, tuple[int, int]]:
    if set(MAP_COLUMNS) <= set(columns_of(path)):
        return _read_map(path, reader)
    grid = read_grid(path)
    if not grid:
        raise InputError(f"{path} is empty: write a number or name of a cluster into each cell.")
    if len({len(row) for row in grid}) != 1:
        raise InputError(f"{path} must have as many cells in each row: the first has {len(grid[0])}.")
    ids = {text: reader.cluster(text) for text in {text for row in grid for text in row}}
    return _with_size(np.array([[ids[text] for text in row] for row in grid]), reader)


def _read_map(path: Path, reader: Reader) -> tuple[np.ndarray, tuple[int, int]]:
    """The map of one slide: glass where no tile was cut. Where tiles overlap, a cell is as large as they are apart."""
    rows = read_table(path)
    if (slides := rows["slide"].nunique()) != 1:
        raise InputError(f"{path} holds {slides} slides, where a layout is of one: keep the rows of that slide.")
    x, y, side, cluster = (numbers(rows, name, str(path), whole=True) for name in MAP_COLUMNS[1:])
    if cluster.min() < 1 or side.min() < 1:
        raise InputError(f"{path} has a cluster or a side below 1: make the map anew.")
    cells = cells_of_tiles(x, y, side, cluster - 1)[0]
    scale = reader.side * min(_apart(x, y, side) / side[0], 1)
    height, width = (max(round(count * scale), reader.side) for count in cells.shape)
    return cells, (width, height)


def cells_of_tiles(
    x: np.ndarray, y: np.ndarray, side: np.ndarray, cluster_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells with the cluster (N,) of each tile of one slide, whose places are pixels; glass where there is no tile.

    Also the column and the row (N,) of each tile among the cells.
    """
    step = _apart(x, y, side)
    columns, rows = (np.rint((places - places.min()) / step).astype(int) for places in (x, y))
    if (columns.max() + 1) * (rows.max() + 1) > MOST_CELLS:
        raise InputError(f"The slide's map covers more than {MOST_CELLS:,} tiles: keep a part of it.")
    cells = np.full((rows.max() + 1, columns.max() + 1), GLASS)
    cells[rows, columns] = cluster_ids
    return cells, columns, rows


def _apart(x: np.ndarray, y: np.ndarray, side: np.ndarray) -> int:
    """How many pixels of the slide lie between the corners of neighbouring tiles; their side where there is but one."""
    gaps = [apart for apart in (np.diff(np.unique(places)) for places in (x, y)) if len(apart)]
    return min((int(np.median(apart)) for apart in gaps), default=int(side[0]))


def _read_geojson(path: Path, reader: Reader, mpp_of_slide: float | None) -> tuple[np.ndarray, tuple[int, int]]:
    """Annotations whose classes are clusters, painted into small cells; of two that overlap the smaller one counts.

    The field reaches as far as they do, or as the file's "bbox" does.
    """
    with extra("slides"):
        import shapely

    scale = 1.0
    if mpp_of_slide is not None or reader.mpp is not None:
        if mpp_of_slide is None or reader.mpp is None:
            lacking = "--mpp-of-slide, of the slide it was painted on" if mpp_of_slide is None else "--mpp of the tiles"
            raise InputError(f"{path} counts in pixels of a slide: give {lacking}.")
        scale = mpp_of_slide / reader.mpp
    try:
        content = json.loads(path.read_text())  # QuPath exports a collection, a list, or one feature
        features = content if isinstance(content, list) else content.get("features", [content])
        shapes = shapely.from_geojson([json.dumps(feature["geometry"]) for feature in features])
        classes = [(feature.get("properties") or {}).get("classification") or {} for feature in features]
        texts = [str(of.get("name") or "") for of in classes]
        bbox = content.get("bbox") if isinstance(content, dict) else None
        frame = [shapely.box(*(scale * float(edge) for edge in bbox))] if bbox is not None and len(bbox) == 4 else []
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError, shapely.GEOSException) as error:
        raise InputError(f"{path} cannot be read as GeoJSON ({error!r}): export annotations from QuPath.") from error
    shapes = shapely.affinity.scale(shapely.GeometryCollection(list(shapes)), scale, scale, origin=(0, 0)).geoms
    painted = sorted(
        (shape.area, i) for i, shape in enumerate(shapes) if shape.area > 0 and reader.cluster(texts[i]) != HOLE
    )
    if not painted:
        raise InputError(f"{path} holds no area with a class: give annotations the names or numbers of clusters.")
    left, top, right, bottom = shapely.total_bounds([*frame, *(shapes[i] for _, i in painted)])
    width, height = (max(round(far - near), 1) for near, far in ((left, right), (top, bottom)))
    cell = max(reader.side // CELLS, 1)
    rows, columns = -(-height // cell), -(-width // cell)
    if rows * columns > MOST_CELLS or max(width, height) > MOST_PIXELS:
        raise InputError(f"{path} covers {width} x {height} px: paint a smaller part, or correct the scale.")
    x, y = left + (np.arange(columns) + 0.5) * width / columns, top + (np.arange(rows) + 0.5) * height / rows
    cells = np.full((rows, columns), HOLE)
    for _, i in reversed(painted):
        shapely.prepare(shapes[i])
        near, low, far, high = shapes[i].bounds
        at = slice(*np.searchsorted(y, [low, high])), slice(*np.searchsorted(x, [near, far]))
        inside = shapely.contains_xy(shapes[i], *np.meshgrid(x[at[1]], y[at[0]]))
        cells[at][inside] = reader.cluster(texts[i])
    return cells, (width, height)
