"""Regions from QuPath: every form of the file, a mask worked out by hand, and tiles of them alone."""

import json

import numpy as np
import pytest

from pfiles.__main__ import main
from pfiles.errors import InputError
from pfiles.tiles.regions import polygons_in, read_regions, region_mask
from pfiles.tiles.sources import read_tile_table
from tests.tiles.conftest import island, write_slide

SQUARE = [[[512, 256], [768, 256], [768, 512], [512, 512], [512, 256]]]
POLYGON = {"type": "Polygon", "coordinates": SQUARE}
FEATURE = {"type": "Feature", "geometry": POLYGON, "properties": {"objectType": "annotation"}}
FORMS = {
    "geometry": POLYGON,
    "feature": FEATURE,
    "list": [FEATURE],
    "collection": {"type": "FeatureCollection", "features": [FEATURE]},
    "multi": {"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [SQUARE]}},
    "without a place": [{"type": "Feature", "geometry": None, "properties": {}}, FEATURE],
    "with a point": [FEATURE, {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}}],
    "with an empty polygon": {"type": "MultiPolygon", "coordinates": [[], SQUARE]},
}


def written(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_polygon(tmp_path, form):
    (polygon,) = polygons_in(written(tmp_path / "a.geojson", FORMS[form]))
    assert polygon == (tuple(map(tuple, SQUARE[0])),)


def test_a_map_that_counts_from_the_corner_of_the_file_is_refused(tmp_path):
    """Its frame is the project's own word; as QuPath shows a slide with bounds, the region would lie elsewhere."""
    collection = FORMS["collection"]
    assert polygons_in(written(tmp_path / "a.geojson", collection | {"frame": "qupath"}))
    with pytest.raises(InputError, match=r"counts from the corner of the file.* map with --frame qupath"):
        polygons_in(written(tmp_path / "a.geojson", collection | {"frame": "file"}))


def test_an_ellipse_with_a_hole_has_the_area_of_both(tmp_path):
    angle = np.linspace(0, 2 * np.pi, 200)
    rings = [np.stack([400 + a * np.cos(angle), 300 + a / 2 * np.sin(angle)], axis=1).tolist() for a in (300, 100)]
    path = written(tmp_path / "a.geojson", {"type": "Polygon", "coordinates": rings})
    mask = region_mask(polygons_in(path), (600, 800), np.array([1.0, 1.0]), path)
    assert mask.sum() == pytest.approx(np.pi * (300 * 150 - 100 * 50), rel=0.01)


def test_tiles_are_cut_of_regions_alone(tmp_path):
    slide = write_slide(tmp_path / "a.tiff", island())
    command = ["tile", str(slide), "--size", "64", "--mpp", "0.5", "--out", str(tmp_path / "out"), "--regions"]
    assert main([*command, str(written(tmp_path / "r.geojson", [FEATURE]))]) == 0
    rows = read_tile_table(tmp_path / "out" / "tiles.csv")
    assert {(x, y) for x, y in zip(rows.x, rows.y, strict=True)} == {
        (x, y) for x in range(512, 768, 64) for y in range(256, 512, 64)
    }


def test_regions_of_another_slide_are_refused(tmp_path):
    folder = tmp_path / "regions"
    written(folder / "a.geojson", [FEATURE])
    assert set(read_regions(folder, ["a", "b"])) == {"a"}
    assert set(read_regions(folder / "a.geojson", ["a", "b"])) == {"a"}
    with pytest.raises(InputError, match="is of none of the 2 slides"):
        read_regions(folder / "a.geojson", ["b", "c"])
    written(folder / "x.geojson", [FEATURE])
    with pytest.raises(InputError, match="no slide is called so"):
        read_regions(folder, ["a", "b"])
    with pytest.raises(InputError, match="reach beyond that slide"):
        region_mask(polygons_in(folder / "a.geojson"), (100, 100), np.array([4.0, 4.0]), folder)


@pytest.mark.parametrize(
    "content",
    ["[]", "{", "5", '{"type": "Point", "coordinates": [1, 2]}', '{"type": "Polygon", "coordinates": [[[1]]]}',
     '{"type": "Polygon", "coordinates": []}', '{"type": "Polygon", "coordinates": [[]]}'],
)  # fmt: skip
def test_what_holds_no_region_is_refused(tmp_path, content):
    (tmp_path / "a.geojson").write_text(content)
    with pytest.raises(InputError, match=r"cannot be read as GeoJSON|holds no area"):
        polygons_in(tmp_path / "a.geojson")
