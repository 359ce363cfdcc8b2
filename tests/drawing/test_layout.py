"""Layouts as people have them, each read into cells that were written by hand; what is none is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfiles.drawing.layout import GLASS, HOLE, Box, Reader, cells_at, make_layout, read_layout, shares, tissue
from pfiles.errors import InputError

READER = Reader({1: "keratin", 3: "dermis", 4: "Dermis"}, 4, [0.1, 0.2, 0.3, 0.4], side=64, mpp=0.5)


def square(left, top, right, bottom, name):
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    properties = {"classification": {"name": name}} if name else {}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def write_geojson(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return str(path)


def test_names_numbers_and_classes_of_maps_mean_clusters():
    texts = ["keratin", "KERATIN", "1", " 2 ", "Cluster 3", "3 dermis", "dermis", "glass", ""]
    assert [READER.cluster(text) for text in texts] == [0, 0, 0, 1, 2, 2, 3, GLASS, HOLE]  # dermis: the more frequent
    for text in ("5", "Cluster 5", "bone"):
        with pytest.raises(InputError, match=r"numbered from 1 to 4|No cluster is called 'bone'"):
            READER.cluster(text)


@pytest.mark.parametrize("kind", ["png", "palette.png", "npy", "float.npy", "csv"])
def test_a_grid_of_numbers(kind, tmp_path):
    numbers, path = np.array([[1, 2, 2], [4, 1, 3]], np.uint8), tmp_path / f"layout.{kind}"
    if kind.endswith("npy"):
        np.save(path, numbers.astype(float) if kind == "float.npy" else numbers)
    elif kind == "csv":
        path.write_text("keratin;2;2\n4;Cluster 1;3 dermis\n")
    else:
        image = Image.fromarray(numbers)
        if kind == "palette.png":
            image.putpalette([255, 0, 0] * 5, "RGB")
        image.save(path)
    layout = read_layout(str(path), READER)
    assert layout.cells.tolist() == [[0, 1, 1], [3, 0, 2]]
    assert layout.size == (192, 128)
    assert read_layout(str(path), READER, (500, 90)).size == (500, 90)


def test_the_map_of_a_slide_has_glass_where_no_tile_was_cut(tmp_path):
    path = tmp_path / "tile_clusters.csv"
    rows = ["slide,x,y,side,cluster,confidence,class"]
    rows += [f"a,{300 + 128 * x},{70 + 128 * y},128,{c},0.9,{c}" for x, y, c in [(0, 0, 1), (2, 0, 2), (1, 1, 4)]]
    path.write_text("\n".join(rows))
    layout = read_layout(str(path), READER)
    assert layout.cells.tolist() == [[0, GLASS, 1], [GLASS, 3, GLASS]]
    assert layout.size == (192, 128)
    path.write_text("\n".join([*rows, "b,0,0,128,1,0.9,1"]))
    with pytest.raises(InputError, match="holds 2 slides"):
        read_layout(str(path), READER)


def test_the_map_of_tiles_that_overlap_is_as_large_as_the_slide(tmp_path):
    path = tmp_path / "tile_clusters.csv"
    rows = [f"a,{32 * x},{32 * y},128,1,0.9,1" for x in range(20) for y in range(8)]
    path.write_text("\n".join(["slide,x,y,side,cluster,confidence,class", *rows]))
    layout = read_layout(str(path), READER)
    assert (layout.cells.shape, layout.size) == ((8, 20), (20 * 16, 8 * 16))
    path.write_text("\n".join(["slide,x,y,side,cluster,confidence,class", "a,0,0,128,1,0.9,1", "a,32,0,128,1,0.9,1"]))
    assert read_layout(str(path), READER).size == (64, 64)


def test_annotations_are_painted_at_the_scale_of_their_slide(tmp_path):
    """A small area on a large one counts; at 0.25 um per pixel the slide has twice as many pixels as the field."""
    path = write_geojson(
        tmp_path / "a.geojson",
        square(1160, 2080, 1320, 2240, "dermis"), square(1000, 2000, 1400, 2400, "keratin"), square(0, 0, 9, 9, None),
    )  # fmt: skip
    layout = read_layout(path, READER, mpp_of_slide=0.25)
    assert layout.size == (200, 200)
    expected = np.zeros((25, 25), int)
    expected[5:15, 10:20] = 3  # cells of 8 px
    np.testing.assert_array_equal(layout.cells, expected)
    with pytest.raises(InputError, match="give --mpp-of-slide"):
        read_layout(path, READER)
    with pytest.raises(InputError, match="give --mpp of the tiles"):
        read_layout(path, READER._replace(mpp=None), mpp_of_slide=0.25)


@pytest.mark.parametrize(
    ("bbox", "size"), [([0, 0, 320, 240], (320, 240)), ([40, 0, 120, 80], (160, 160)), ([0, 0, 0, 9, 9, 9], (160, 160))]
)
def test_a_field_reaches_as_far_as_the_box_of_its_annotations(bbox, size, tmp_path):
    """Glass at the edges of a field has no annotation; a box too small, or of three dimensions, cuts nothing."""
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "bbox": bbox, "features": [square(0, 0, 160, 160, "1")]}))
    layout = read_layout(str(path), READER, mpp_of_slide=0.5, background="glass")
    assert layout.size == size
    assert (layout.cells == 0).mean() == 160**2 / np.prod(size)


def test_places_without_a_class_need_a_background(tmp_path):
    path = write_geojson(tmp_path / "a.geojson", square(0, 0, 80, 160, "1"), square(80, 0, 160, 80, "2"))
    with pytest.raises(InputError, match=r"^25\.0% of the field has no class: .* --background\.$"):
        read_layout(path, READER, mpp_of_slide=0.5)
    for name, cluster in (("dermis", 3), ("glass", GLASS)):
        layout = read_layout(path, READER, mpp_of_slide=0.5, background=name)
        assert (layout.cells == cluster).mean() == 0.25


def test_one_cluster_for_everything():
    layout = read_layout("keratin", READER, (640, 300))
    assert (layout.cells.tolist(), layout.size) == ([[0]], (640, 300))
    with pytest.raises(InputError, match="needs the field's --size"):
        read_layout("keratin", READER)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "1,2\n3\n", "as many cells in each row"),
        ("a.csv", "", "is empty"),
        ("a.csv", "1,2\n3,9\n", "numbered from 1 to 4, but 9 was asked for"),
        ("a.csv", "1,2\n3,\n", "25.0% of the field has no class"),
        ("a.csv", "glass,glass\n", "whole layout is glass"),
        ("a.npy", "no array", "cannot be read as a .npy array"),
        ("a.png", "no picture", "cannot be read as a picture"),
        ("a.geojson", "{}", "cannot be read as GeoJSON"),
        ("a.geojson", '{"features": []}', "holds no area with a class"),
        ("a.geojson", "[" * 10**5, "cannot be read as GeoJSON"),
        ("a.geojson", '{"features": [], "bbox": [0, 0, 9, "far"]}', "cannot be read as GeoJSON"),
        ("a.txt", "1", "is no layout"),
    ],
)
def test_what_is_no_layout_is_refused(name, content, said, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        read_layout(str(tmp_path / name), READER, mpp_of_slide=0.5)


def test_one_annotation_and_a_list_of_them_are_layouts_as_a_collection_is(tmp_path):
    """QuPath exports all three."""
    collection = Path(write_geojson(tmp_path / "a.geojson", square(0, 0, 160, 160, "dermis")))
    [feature] = json.loads(collection.read_text())["features"]
    for content in ([feature], feature):
        collection.write_text(json.dumps(content))
        layout = read_layout(str(collection), READER, mpp_of_slide=0.5)
        assert (np.unique(layout.cells).tolist(), layout.size) == ([3], (160, 160))


def test_numbers_that_are_none_and_pictures_in_colour_are_refused(tmp_path):
    for array in (np.zeros((2, 2, 2), int), np.full((2, 2), 1.5), np.full((2, 2), np.nan),
                  -np.ones((2, 2), int), np.full((2, 2), 7), np.full((2, 2), "1")):  # fmt: skip
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(InputError, match=r"rows and columns|whole numbers|asks for cluster 7"):
            read_layout(str(tmp_path / "a.npy"), READER)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="holds colours"):
        read_layout(str(tmp_path / "a.png"), READER)
    with pytest.raises(InputError, match="There is no layout at"):
        read_layout(str(tmp_path / "b.png"), READER)


def test_cells_are_stretched_and_go_on_beyond_the_edge():
    layout = make_layout(np.array([[0, 1, GLASS]]), (30, 10), 4)
    assert cells_at(layout, Box(0, 0, 1, 6), 5, margin=1, filled=False).tolist() == [[0, 0, 0, 1, 1, -1, -1, -1]] * 3
    assert cells_at(layout, Box(0, 0, 1, 6), 5).tolist() == [[0, 0, 1, 1, 1, 1]]  # glass has the nearest cluster
    assert tissue(layout, Box(0, 0, 1, 6), 5, 2).tolist()[0] == pytest.approx([1, 1, 1, 2 / 3, 1 / 3, 0])
    clusters, of_each = shares(layout, Box(0, 0, 1, 6), 5, 2)
    assert clusters == [0, 1]
    assert of_each[0, 0].tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0, 0, 0])
