"""Regions that a user drew in QuPath, to which tiling is limited."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pfiles.errors import InputError

Polygon = tuple[tuple[tuple[float, float], ...], ...]  # rings of x, y in pixels of level 0: the outer one, then holes


def read_regions(path: Path, slides: Sequence[str]) -> dict[str, tuple[Polygon, ...]]:
    """The polygons of each slide that has some, from a GeoJSON file, or a folder with SLIDE.geojson for each.

    A file is of the only slide, or of the one that it is named after. InputError for anything else.
    """
    from pfiles.spreadsheet import composed  # loads pandas, which the options of the command line do without

    if not path.exists():
        raise InputError(f"There are no regions at {path}: correct the path.")
    if path.is_file():
        name = slides[0] if len(slides) == 1 else composed(path.stem)
        if name not in slides:
            raise InputError(f"{path} is of none of the {len(slides)} slides: name it as its slide, or give a folder.")
        return {name: polygons_in(path)}
    files = {composed(file.stem): file for file in sorted(path.glob("*.geojson"))}
    if foreign := sorted(files.keys() - set(slides)):
        raise InputError(f"{path} holds {foreign[0]}.geojson, but no slide is called so: remove or rename it.")
    if not files:
        raise InputError(f"{path} holds no SLIDE.geojson: export each slide's annotations to a file of its name.")
    return {name: polygons_in(file) for name, file in files.items()}


def polygons_in(path: Path) -> tuple[Polygon, ...]:
    """The polygons in a GeoJSON file: a list of features, a FeatureCollection, one Feature or one geometry."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        polygons = tuple(polygon for geometry in _geometries(content) for polygon in _polygons(geometry))
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as GeoJSON ({error}): export it from QuPath anew.") from error
    if not polygons:
        raise InputError(f"{path} holds no area, such as a polygon, a rectangle or an ellipse: draw one.")
    return polygons


def _geometries(content: Any) -> list[dict[str, Any]]:
    if content is None:  # a feature may have no place
        return []
    if isinstance(content, list):
        return [geometry for item in content for geometry in _geometries(item)]
    kind = content["type"]
    if content.get("frame") == "file":
        raise ValueError("it counts from the corner of the file, not of what was scanned: map with --frame qupath")
    if kind == "FeatureCollection":
        return _geometries(content["features"])
    if kind == "Feature":
        return _geometries(content["geometry"])
    return _geometries(content["geometries"]) if kind == "GeometryCollection" else [content]


def _polygons(geometry: dict[str, Any]) -> list[Polygon]:
    """Those of one geometry; points, lines and empty polygons have none."""
    kind = geometry["type"]
    if kind not in ("Polygon", "MultiPolygon"):
        return []
    parts = [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]
    polygons = [tuple(tuple((float(x), float(y)) for x, y, *_ in ring) for ring in part) for part in parts if part]
    for ring in (ring for polygon in polygons for ring in polygon):
        if len(ring) < 3 or not np.isfinite(ring).all():
            raise ValueError("a ring has fewer than three corners, or an infinite one")
    return polygons


def region_mask(polygons: Sequence[Polygon], shape: tuple[int, int], scale: np.ndarray, path: Path) -> np.ndarray:
    """Where a thumbnail of `shape` (H, W) shows the regions, as bool.

    scale: (2,) pixels of level 0 that make one of the thumbnail's, along x and y. Coordinates count from the corner of
    what was scanned, as QuPath shows a slide. InputError where they lie outside of it, as another slide's do.
    """
    height, width = shape
    if not polygons:
        raise InputError(f"{path} has no regions: export its annotations too, or leave it out.")
    corners = np.concatenate([np.array(polygon[0]) for polygon in polygons]) / scale
    if (corners < -2).any() or (corners > np.array([width, height]) + 2).any():
        raise InputError(f"The regions for {path} reach beyond that slide: they are another's, or of another scale.")
    mask = np.zeros(shape, bool)
    for outer, *holes in polygons:
        part = Image.new("1", (width, height))
        draw = ImageDraw.Draw(part)
        for ring, value in ((outer, 1), *((hole, 0) for hole in holes)):
            draw.polygon([tuple(corner / scale) for corner in np.array(ring)], fill=value)
        mask |= np.asarray(part)
    return mask
