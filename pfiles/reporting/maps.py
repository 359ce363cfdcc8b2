"""Clusters on their slides: pictures, regions that QuPath opens, and how much of each slide and patient they take."""

import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from PIL import Image

from pfiles.errors import InputError, extra
from pfiles.machine.processes import progress
from pfiles.measuring.neighbours import in_words, join_counts
from pfiles.paths import atomic_write
from pfiles.reporting import spatial
from pfiles.reporting.figures import draw_bar_inside, save_figure
from pfiles.reporting.lettering import readable
from pfiles.reporting.page import Section
from pfiles.reporting.tables import plain
from pfiles.spreadsheet import write_csv
from pfiles.tiles.mapped import Images
from pfiles.tiles.pixels import as_array
from pfiles.tiles.sources import picture_part

if TYPE_CHECKING:
    import shapely

COLOURS = (  # no grey; 12 apart (CIEDE2000), to the colour-blind and from glass; the first ten 13 also at half opacity
    "#ff1c1c", "#00008e", "#c6aaff", "#55aa8e", "#e3e31c", "#e355aa", "#00ffaa", "#1c3900",
    "#7100ff", "#550039", "#007155", "#e3aac6", "#718e55", "#8e71ff", "#8e3971", "#aa1c39",
)  # fmt: skip
DPI, SHOWN = 150, 12  # of saved maps; slides whose maps a notebook shows
LONGEST = 2048  # px of a side of a picture that is put together from tiles
ROUNDING = 1.0  # px of level 0 between tiles that touch: their corners and their side are rounded to whole pixels
TABLES = ("tile_clusters.csv", "shares_by_slide.csv", "shares_by_patient.csv")
FRAMES = ("qupath", "file")  # whose pixel 0, 0 the GeoJSON counts from: QuPath's, or the slide's file


class ClusteredTiles(NamedTuple):
    """Tiles of slides and their clusters.

    positions: of N tiles, as `Tiles.positions`. cluster_ids: (N,) int, 0-based. confidence: (N,) their probabilities.
    """

    positions: np.recarray
    cluster_ids: np.ndarray
    confidence: np.ndarray

    def on(self, slide: str) -> "ClusteredTiles":
        """The tiles of one slide."""
        there = self.positions.slide == slide
        return ClusteredTiles(self.positions[there], self.cluster_ids[there], self.confidence[there])


class Region(NamedTuple):
    """Tiles of one cluster side by side: their outline in level-0 pixels, how many, and their mean confidence."""

    cluster: int
    outline: "shapely.Polygon"
    tiles: int
    confidence: float


class Picture(NamedTuple):
    """A slide as uint8 (H, W, 3), and the part of level 0 it shows: x and y of its corner, width and height."""

    pixels: np.ndarray
    part: tuple[float, float, float, float]


def colour(cluster: int) -> str:
    """The colour of a cluster, 0-based. After 16 they begin again: the numbers in a map then tell clusters apart."""
    return COLOURS[cluster % len(COLOURS)]


def title(cluster: int, names: Mapping[int, str] | None = None) -> str:
    """What people read of a cluster, 0-based: its number from 1, and the name that `names` gives that number."""
    return f"{cluster + 1} {' '.join((names or {}).get(cluster + 1, '').split())}".strip()


def boxes_of(positions: np.recarray) -> np.ndarray:
    """What each tile of one slide stands for, as (N, 4) float: left, top, right and bottom in pixels of level 0.

    That is the tile itself. Of overlapping tiles it is the middle, as wide as the step from one tile to the next. Edges
    that differ by rounding alone become one edge, so that neighbouring tiles touch at any scale.
    """
    side = float(positions.side[0])
    step = _step(positions)
    width = side if step >= side - ROUNDING else step
    lows, highs = [], []
    for starts in (positions.x, positions.y):
        low = starts + (side - width) / 2
        edges, place = np.unique(np.concatenate([low, low + width]), return_inverse=True)
        is_low = np.isin(edges, low)
        begin = 0
        for end in range(1, len(edges) + 1):
            if end == len(edges) or edges[end] - edges[begin] > ROUNDING:
                edges[begin:end] = edges[begin + is_low[begin:end].argmax()]
                begin = end
        low, high = edges[place].reshape(2, -1)
        lows.append(low)
        highs.append(high)
    return np.stack([*lows, *highs], axis=1)


def _step(positions: np.recarray) -> float:
    """Pixels of level 0 from one tile to the next of its row or column; infinite where no tile has one there."""
    gaps = []
    for along, across in ((positions.x, positions.y), (positions.y, positions.x)):
        order = np.lexsort((along, across))
        is_next = np.diff(across[order]) == 0
        gaps.append(np.diff(along[order])[is_next])
    steps = np.concatenate(gaps)
    steps = steps[steps > 0]
    return float(np.quantile(steps, 0.05, method="lower")) if len(steps) else np.inf  # few tiles may lie off the grid


def regions(tiles: ClusteredTiles) -> list[Region]:
    """The connected regions of each cluster on one slide, larger ones first. Tiles that meet at a corner do not touch.

    Of overlapping tiles each stands for its middle, see `boxes_of`.
    """
    with extra("slides"):
        import shapely

    boxes = shapely.box(*boxes_of(tiles.positions).T)
    connected: list[Region] = []
    for cluster in np.unique(tiles.cluster_ids):
        members = np.flatnonzero(tiles.cluster_ids == cluster)
        parts = shapely.get_parts(shapely.disjoint_subset_union_all(boxes[members]))
        part, member = shapely.STRtree(shapely.centroid(boxes[members])).query(parts, predicate="contains")
        count, confidence = np.bincount(part), np.bincount(part, tiles.confidence[members[member]])
        outlines = shapely.simplify(parts, 0)
        connected += map(Region, [int(cluster)] * len(parts), outlines, count.tolist(), (confidence / count).tolist())
    return sorted(connected, key=lambda region: -region.tiles)


def as_geojson(
    slide: str,
    connected: list[Region],
    names: Mapping[int, str] | None = None,
    frame: str = "file",
    origin: tuple[float, float] = (0, 0),
) -> dict[str, Any]:
    """Regions as QuPath 0.5 writes annotations, which QuPath opens by drag and drop; the file says its frame.

    frame: "file" keeps the pixels of the slide's level 0. "qupath" counts them from `origin`, the corner of what was
    scanned of the slide (OpenSlide's bounds), as QuPath shows no more than that.
    """
    shift = np.array(origin if frame == "qupath" else (0, 0))
    features = [
        {
            "type": "Feature",
            "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{slide}/{region.outline.wkt}")),
            "geometry": {
                "type": "Polygon",
                "coordinates": [
                    _points(np.asarray(ring.coords) - shift)
                    for ring in (region.outline.exterior, *region.outline.interiors)
                ],
            },
            "properties": {
                "objectType": "annotation",
                "classification": {
                    "name": _class_name(title(region.cluster, names)),
                    "color": [round(255 * value) for value in to_rgb(colour(region.cluster))],
                },
                "measurements": {"Tiles": region.tiles, "Mean confidence": round(region.confidence, 4)},
            },
        }
        for region in connected
    ]
    about = {"slide": slide, "frame": frame, "origin": [float(value) for value in shift]}
    return {"type": "FeatureCollection", **about, "features": features}


def _points(points: np.ndarray) -> list[list[float]]:
    """Points (N, 2) to two decimals; whole numbers stay short in a file."""
    return [[int(value) if value == int(value) else value for value in point] for point in points.round(2).tolist()]


def _scanned_corner(slide: str, pictures: Path | None) -> tuple[float, float]:
    """Where QuPath's pixel 0, 0 lies in the slide's file; 0, 0 where no picture tells what was scanned."""
    thumbnail = _thumbnail(slide, pictures)
    return (0, 0) if thumbnail is None else thumbnail.part[:2]


def _class_name(title: str) -> str:
    """A cluster's name in QuPath, which does not change when another one gets a name."""
    return f"Cluster {title}" if title.isdecimal() else title


def shares(
    tiles: ClusteredTiles, n_clusters: int, groups: np.ndarray, name: str, names: Mapping[int, str] | None = None
) -> pd.DataFrame:
    """The number of tiles and the share of each cluster for each of `groups` (N,), such as slides; `name` of the index.

    Tiles whose group is "" have no row.
    """
    in_group = groups != ""
    table = pd.crosstab(groups[in_group], tiles.cluster_ids[in_group]).reindex(columns=range(n_clusters), fill_value=0)
    table.columns = [title(cluster, names) for cluster in range(n_clusters)]
    count = table.sum(axis=1)
    table = table.div(count, axis=0).round(4)
    table.insert(0, "tiles", count)
    return table.rename_axis(name)


def _thumbnail(slide: str, pictures: Path | None) -> Picture | None:
    """The picture of a slide that `tile_slides` wrote into `pictures`; None if there is none."""
    path = pictures and pictures / f"{slide}.jpg"
    if path and path.exists():
        with Image.open(path) as image:
            if (part := picture_part(image)) is not None:
                pixels = np.asarray(image.convert("RGB"))
                return Picture(pixels[:, : pixels.shape[1] // 3], part)
    return None


def picture_of(
    slide: str, tiles: ClusteredTiles, images: Images, members: np.ndarray, pictures: Path | None = None
) -> Picture:
    """A slide's thumbnail from the folder `pictures`, as `tile_slides` wrote it, or else its tiles put together.

    members: which of the images, uint8 (N, 3, S, S), the tiles are.
    """
    if (thumbnail := _thumbnail(slide, pictures)) is not None:
        return thumbnail
    x, y, side = tiles.positions.x, tiles.positions.y, tiles.positions.side
    left, top, right, bottom = x.min(), y.min(), (x + side).max(), (y + side).max()
    scale = min(images.shape[-1] / side[0], LONGEST / max(right - left, bottom - top))
    canvas = Image.new("RGB", (round((right - left) * scale), round((bottom - top) * scale)), "white")
    places = np.round(np.stack([x - left, y - top, x + side - left, y + side - top], axis=1) * scale).astype(int)
    for i, (x0, y0, x1, y1) in zip(members, places, strict=True):
        [image] = as_array(images[i : i + 1])
        canvas.paste(Image.fromarray(image).resize((x1 - x0, y1 - y0), Image.Resampling.BOX), (x0, y0))
    return Picture(np.asarray(canvas), (left, top, right - left, bottom - top))


def draw_maps(
    slide: str,
    picture: Picture,
    maps: Mapping[str, ClusteredTiles],
    n_clusters: int,
    names: Mapping[int, str] | None = None,
    mpp: float | None = None,
) -> Figure:
    """A slide, and beside it each of `maps` of it, by their titles.

    Colour shows the cluster and opacity the confidence; the largest region of each cluster holds its number.
    mpp: microns per pixel of level 0, for a scale bar; None: not known.
    """
    x, y, width, height = picture.part
    panels = 1 + len(maps)
    columns = min(panels, 4 if width < 2 * height else 2)
    rows = -(-panels // columns)
    inches = 4.5
    fig, axes = plt.subplots(
        rows, columns, figsize=(inches * columns + 2.2, inches * rows * min(2, max(0.5, height / width)) + 0.3),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (heading, tiles) in zip(axes.flat, [(slide, None), *maps.items()], strict=False):
        ax.imshow(picture.pixels, extent=(x, x + width, y + height, y), alpha=1 if tiles is None else 0.5)
        if tiles is not None:
            _draw_clusters(ax, tiles)
        ax.set(xlim=(x, x + width), ylim=(y + height, y))
        ax.set_title(readable(heading), parse_math=False)
    draw_bar_inside(axes.flat[0], width, mpp)
    labels = [readable(title(cluster, names)) for cluster in range(n_clusters)]
    handles = [Patch(facecolor=colour(cluster), label=label) for cluster, label in enumerate(labels)]
    legend = fig.legend(handles=handles, title="cluster", loc="outside right upper", ncols=-(-n_clusters // 16))
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name is a name, dollar signs included
    return fig


def _draw_clusters(ax: plt.Axes, tiles: ClusteredTiles) -> None:
    colours = np.array([(*to_rgb(colour(cluster)), 1.0) for cluster in tiles.cluster_ids])
    colours[:, 3] = tiles.confidence
    corners = boxes_of(tiles.positions)[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]  # (N, 4, 2)
    ax.add_collection(PolyCollection([*corners], facecolors=colours, linewidths=0, antialiased=False), autolim=False)
    largest = {region.cluster: region.outline for region in reversed(regions(tiles))}
    for cluster, outline in largest.items():
        point = outline.representative_point()
        text = ax.text(point.x, point.y, cluster + 1, ha="center", va="center", size="small", weight="bold")
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def file_names(slides: Iterable[str]) -> list[str]:
    """The names of the files that `write_maps` writes for these slides."""
    return [f"{slide}.{kind}" for slide in slides for kind in ("jpg", "geojson")] + [*TABLES]


def write_maps(
    folder: Path,
    tiles: ClusteredTiles,
    images: Images,
    n_clusters: int,
    *,
    names: Mapping[int, str] | None = None,
    patients: np.ndarray | None = None,
    pictures: Path | None = None,
    seed: int = 765,
    frame: str = "qupath",
    min_region: int = 1,
) -> Section:
    """Write SLIDE.jpg and SLIDE.geojson of each slide into `folder`, and three tables; and tell what they show.

    images: of the tiles, uint8 (N, 3, S, S). names: of clusters by their numbers from 1. patients: (N,), "" if
    unknown. pictures: see `picture_of`. The tables: tile_clusters.csv has a row for each tile; shares_by_slide.csv and,
    where patients are known, shares_by_patient.csv hold the share of each cluster. maps.h5ad: see `write_spatial`.
    frame: of the GeoJSON, see `as_geojson`; tables keep the file's pixels. min_region: least tiles of a region in it.
    """
    if frame not in FRAMES or min_region < 1:
        raise InputError(f"frame must be {' or '.join(FRAMES)}, and min_region at least 1: got {frame}, {min_region}.")
    figures, shifted, small = [], [], 0
    for slide in progress(np.unique(tiles.positions.slide), desc="maps", unit="slide", leave=False, delay=2):
        there = tiles.on(slide)
        connected = regions(there)
        large = [region for region in connected if region.tiles >= min_region]
        small += len(connected) - len(large)
        origin = _scanned_corner(slide, pictures)
        shifted += [slide] * (origin != (0, 0))
        with atomic_write(folder / f"{slide}.geojson") as file:
            geojson = as_geojson(slide, large, names, frame, origin)
            file.write(json.dumps(geojson, separators=(",", ":")).encode())  # ASCII: read in any encoding
        picture = picture_of(slide, there, images, np.flatnonzero(tiles.positions.slide == slide), pictures)
        mpp = there.positions.mpp[0] * images.shape[-1] / there.positions.side[0]
        figure = draw_maps(slide, picture, {"clusters": there}, n_clusters, names, mpp)
        save_figure(figure, folder / f"{slide}.jpg", DPI)
        figures.append(figure)
        if len(figures) > SHOWN:
            plt.close(figures.pop())
    groups = {"slide": tiles.positions.slide} | ({} if patients is None else {"patient": patients})
    tables = {name: shares(tiles, n_clusters, group, name, names) for name, group in groups.items()}
    (folder / "shares_by_patient.csv").unlink(missing_ok=True)  # of an earlier table of patients
    for name, table in tables.items():
        write_csv(folder / f"shares_by_{name}.csv", table, index=True)
    rows = pd.DataFrame({name: tiles.positions[name] for name in ("slide", "x", "y", "side")})
    rows["cluster"], rows["confidence"] = tiles.cluster_ids + 1, tiles.confidence.round(4)
    rows["class"] = [title(cluster, names) for cluster in tiles.cluster_ids]
    write_csv(folder / "tile_clusters.csv", rows)
    legend = [(title(cluster, names), colour(cluster)) for cluster in range(n_clusters)]
    spatial.write_spatial(folder, *tiles, legend, images.shape[-1], patients)
    joins = join_counts(tiles.positions, tiles.cluster_ids, n_clusters, seed)
    joins.index = ["all", *(title(cluster, names) for cluster in range(n_clusters))]
    notes = [in_words(joins), f"Maps, regions for QuPath and tables are in {folder}."]
    if shifted:
        where = "counts from what was scanned, as QuPath does" if frame == "qupath" else "keeps the file's own pixels"
        notes.append(f"The GeoJSON of {', '.join(shifted)} {where}; tile_clusters.csv keeps the file's own pixels.")
    if small:
        notes.append(f"The GeoJSON leaves out {small} regions of fewer than {min_region} tiles.")
    if len(tables["slide"]) > SHOWN:
        notes.append(f"The first {SHOWN} of {len(tables['slide'])} slides are shown.")
    scores = {
        "slides": len(tables["slide"]),
        "tiles": len(rows),
        "mpp": float(np.median(tiles.positions.mpp)),
        "neighbours of one cluster": plain(joins[:1])["all"],
    }
    return Section("Clusters on their slides", notes, (joins, *tables.values()), figures, scores)


def write_every_k(
    folder: Path,
    by_k: Mapping[int, tuple[np.ndarray, np.ndarray]],
    positions: np.recarray,
    images: Images,
    places: np.ndarray,
    pictures: Path | None = None,
) -> Section:
    """Write every_k/SLIDE.jpg of each slide into `folder`: a map for each number of clusters k, side by side.

    by_k: by k, the clusters (M,), 0-based, and confidence (M,) of the tiles `places` (M,) among N. positions, images,
    pictures: see `write_maps`.
    """
    figures, slides = [], np.unique(positions.slide[places])
    for slide in progress(slides, desc="maps of every k", unit="slide", leave=False, delay=2):
        maps = {f"k = {k}": ClusteredTiles(positions[places], *of_k).on(slide) for k, of_k in by_k.items()}
        members = places[positions.slide[places] == slide]
        picture = picture_of(slide, next(iter(maps.values())), images, members, pictures)
        of_slide = next(iter(maps.values())).positions
        mpp = of_slide.mpp[0] * images.shape[-1] / of_slide.side[0]
        figure = draw_maps(slide, picture, maps, max(by_k), mpp=mpp)
        save_figure(figure, folder / "every_k" / f"{slide}.jpg", DPI)
        figures.append(figure)
        if len(figures) > SHOWN:
            plt.close(figures.pop())
    notes = f"The training tiles of {len(slides)} slides; the same colour at two k does not mean the same cluster."
    return Section(f"Every k: {', '.join(map(str, by_k))}", [notes], figures=figures)
