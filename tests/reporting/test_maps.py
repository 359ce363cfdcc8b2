"""Maps of made slides: regions are found, GeoJSON is valid and agrees with the tiles, colours can be told apart."""

import csv
import json
import unicodedata

import matplotlib.pyplot as plt
import numpy as np
import openslide
import pytest
import shapely
import torch
from matplotlib.colors import to_rgb
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from PIL import Image
from scipy import ndimage
from skimage.color import deltaE_ciede2000, rgb2lab

from pfiles.__main__ import main
from pfiles.drawing.generator import STARTER, Generator
from pfiles.errors import InputError
from pfiles.paths import read_json
from pfiles.reporting import maps
from pfiles.spreadsheet import read_table
from pfiles.tiles.slides import Tiling
from pfiles.tiles.sources import read_source
from pfiles.tiles.tiler import tile_slides
from tests.tiles.conftest import GLASS, island, tissue, write_scn, write_slide

SIDE = read_json(STARTER / "config.json")["settings"]["image_size_px"]
MPP = str(64 / SIDE)  # at which a tile of the starter is 64 um wide
VISION = {  # linear RGB as people without one kind of cone see it (Machado, Oliveira and Fernandes 2009, severity 1)
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def assigned(labels, step=64, side=64, left=300, top=200, slide="a", confidence=None):
    """A tile for each number of a matrix that is not negative, from left to right and top to bottom."""
    labels = np.array(labels)
    rows, columns = np.nonzero(labels >= 0)
    n = len(rows)
    fields = [np.full(n, slide), np.round(left + columns * step).astype(int), np.round(top + rows * step).astype(int)]
    positions = np.rec.fromarrays([*fields, np.full(n, side), np.ones(n)], names="slide,x,y,side,mpp")
    return maps.ClusteredTiles(positions, labels[rows, columns], np.ones(n) if confidence is None else confidence)


def tiles_of(labels, side=8):
    return torch.full((len(labels.cluster_ids), 3, side, side), 200, dtype=torch.uint8)


def painted(geojson, shape, step, left, top):
    """The class, from 1, at the centre of each cell of a grid, by the polygons; 0 for none. Two would be an error."""
    centres = shapely.points(
        *(
            c.ravel()
            for c in np.meshgrid(left + (np.arange(shape[1]) + 0.5) * step, top + (np.arange(shape[0]) + 0.5) * step)
        )
    )
    cluster_ids = np.zeros(len(centres), int)
    for feature in geojson["features"]:
        inside = shapely.contains(shapely.from_geojson(json.dumps(feature["geometry"])), centres)
        assert not cluster_ids[inside].any()
        cluster_ids[inside] = int(feature["properties"]["classification"]["name"].split()[-1])
    return cluster_ids.reshape(shape)


@pytest.mark.parametrize("step", [64, 63.37, 136.17, 16.51])
def test_geojson_is_valid_and_paints_the_labels(step):
    """Holes, holes within holes, regions that meet at corners, single tiles, and tiles that are missing."""
    labels = np.random.default_rng(0).integers(-1, 3, (20, 30))
    labels[2:9, 2:9] = 1
    labels[3:8, 3:8] = 0
    labels[4:7, 4:7] = 2
    labels[5, 5] = 1
    labels[12, 12] = labels[13, 13] = 0
    tiles = assigned(labels, step, round(step))
    geojson = json.loads(json.dumps(maps.as_geojson("a", maps.regions(tiles))))
    np.testing.assert_array_equal(painted(geojson, labels.shape, step, 300, 200), labels + 1)
    _, regions_by_scipy = ndimage.label(labels == 0)
    assert sum("1" in f["properties"]["classification"]["name"] for f in geojson["features"]) == regions_by_scipy
    widths, heights = (  # of columns and rows, from rounded corner to rounded corner
        np.diff(np.round(start + np.arange(n) * step), append=np.round(start + (n - 1) * step) + round(step))
        for start, n in ((300, 30), (200, 20))
    )
    areas = np.zeros(3)
    for feature in geojson["features"]:
        outline = shapely.from_geojson(json.dumps(feature["geometry"]))
        assert outline.is_valid
        assert feature["geometry"]["type"] == "Polygon"
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
            assert len(ring) >= 5
            for (x0, y0), (x1, y1), (x2, y2) in zip(ring, ring[1:], ring[2:], strict=False):
                assert (x1 - x0) * (y2 - y1) != (y1 - y0) * (x2 - x1)  # every point is a corner
        number = int(feature["properties"]["classification"]["name"].split()[1])
        tiles_in = feature["properties"]["measurements"]["Tiles"]
        cells = shapely.contains_xy(
            outline, *np.meshgrid(300 + (np.arange(30) + 0.5) * step, 200 + (np.arange(20) + 0.5) * step)
        )
        assert cells.sum() == tiles_in
        assert outline.area == (cells * np.outer(heights, widths)).sum()
        areas[number - 1] += outline.area
    np.testing.assert_allclose(areas, np.bincount(tiles.cluster_ids, minlength=3) * step**2, rtol=0.01)


def test_regions_are_counted_as_scipy_counts_them():
    labels = np.random.default_rng(1).integers(0, 4, (25, 25))
    regions = maps.regions(assigned(labels))
    for cluster in range(4):
        _, count = ndimage.label(labels == cluster)
        assert sum(region.cluster == cluster for region in regions) == count
    assert [region.tiles for region in regions] == sorted((region.tiles for region in regions), reverse=True)
    assert sum(region.tiles for region in regions) == labels.size


def test_tiles_that_overlap_or_do_not_touch():
    """Of overlapping tiles the middles are joined; tiles with glass between them stay alone, at their own size."""
    (region,) = maps.regions(assigned(np.zeros((3, 4), int), step=32, side=128))
    assert region.outline.bounds == (300 + 48, 200 + 48, 300 + 48 + 4 * 32, 200 + 48 + 3 * 32)
    alone = maps.regions(assigned(np.zeros((3, 4), int), step=100, side=64))
    assert len(alone) == 12
    assert [region.outline.area for region in alone] == pytest.approx([64**2] * 12)


def test_tiles_off_one_grid_stand_where_they_were_cut():
    """Two pieces of tissue, each on a grid of its own, as other tools lay them."""
    pieces = [assigned(np.zeros((3, 4), int), left=300, top=200), assigned(np.zeros((5, 2), int), left=1217, top=233)]
    positions = np.concatenate([piece.positions for piece in pieces]).view(np.recarray)
    outlines = [
        region.outline for region in maps.regions(maps.ClusteredTiles(positions, np.zeros(22, int), np.ones(22)))
    ]
    assert [outline.bounds for outline in outlines] == [(300, 200, 556, 392), (1217, 233, 1345, 553)]
    assert [outline.area for outline in outlines] == [12 * 64**2, 10 * 64**2]


def test_a_lower_limit_drops_small_regions(tmp_path):
    tiles = assigned([[0, 0, 1, 0], [0, 0, 1, -1]])
    section = maps.write_maps(tmp_path, tiles, tiles_of(tiles), 2, min_region=2)
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert [feature["properties"]["measurements"]["Tiles"] for feature in features] == [4, 2]
    assert "The GeoJSON leaves out 1 regions of fewer than 2 tiles." in section.notes
    with pytest.raises(InputError, match="frame must be qupath or file"):
        maps.write_maps(tmp_path, tiles, tiles_of(tiles), 2, frame="halo")
    plt.close("all")


def test_annotations_are_as_qupath_writes_them():
    tiles = assigned([[0, 0], [1, -1]], confidence=np.array([0.5, 0.7, 0.25]))
    names = {2: 'tumour "x" </script>\n$\\alpha$', 9: "of no cluster"}
    collection = json.loads(json.dumps(maps.as_geojson("a", maps.regions(tiles), names)))
    assert collection.keys() == {"type", "slide", "frame", "origin", "features"}
    assert (collection["type"], collection["slide"]) == ("FeatureCollection", "a")
    assert (collection["frame"], collection["origin"]) == ("file", [0, 0])
    first, second = collection["features"]
    assert first["type"] == "Feature"
    assert len(first["id"]) == 36
    assert first["id"] != second["id"]
    assert first["properties"]["objectType"] == "annotation"
    assert first["properties"]["classification"] == {"name": "Cluster 1", "color": [255, 28, 28]}
    assert first["properties"]["measurements"] == {"Tiles": 2, "Mean confidence": 0.6}
    assert second["properties"]["classification"]["name"] == '2 tumour "x" </script> $\\alpha$'
    [ring] = first["geometry"]["coordinates"]
    assert {tuple(point) for point in ring} == {(300, 200), (428, 200), (428, 264), (300, 264)}


def test_colours_can_be_told_apart_by_all_readers():
    colours = np.array([to_rgb(colour) for colour in maps.COLOURS])
    assert len(colours) == 16
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    for name, matrix in VISION.items():
        perceived = (linear @ np.array(matrix).T).clip(0, 1)
        perceived = np.where(perceived <= 0.0031308, 12.92 * perceived, 1.055 * perceived ** (1 / 2.4) - 0.055)
        if name == "normal":  # grey reads as "unclassified"
            assert np.hypot(*rgb2lab(colours)[:, 1:].T).min() > 20
        lab = rgb2lab(np.concatenate([perceived, [[GLASS / 255] * 3]]))
        distance = deltaE_ciede2000(lab[:, None], lab[None])
        assert distance[~np.eye(17, dtype=bool)].min() > 12, name
    assert maps.colour(16) == maps.colour(0)


@pytest.mark.parametrize("ground", [(GLASS, GLASS, GLASS), (226, 150, 190)], ids=["glass", "tissue"])
def test_the_first_colours_can_be_told_apart_at_any_confidence(ground):
    """A map shows the slide half white, and over it tiles as opaque as they are sure."""
    colours, ground = np.array([to_rgb(colour) for colour in maps.COLOURS[:10]]), (np.array(ground) / 255 + 1) / 2
    for opacity in (1, 0.75, 0.5):
        lab = rgb2lab(opacity * colours + (1 - opacity) * ground)
        assert deltaE_ciede2000(lab[:, None], lab[None])[~np.eye(10, dtype=bool)].min() > 13, opacity


@pytest.mark.filterwarnings("error")  # matplotlib warns of letters that its fonts lack
def test_names_of_any_script_leave_no_box():
    tiles = assigned([[0, 1]])
    picture = maps.picture_of("a", tiles, tiles_of(tiles), np.arange(2))
    figure = maps.draw_maps("標本\u30001", picture, {"clusters": tiles}, 2, {1: "腺管"})
    figure.canvas.draw()
    plt.close(figure)


def test_shares_are_those_counted_by_hand():
    tiles = assigned([[0, 0, 1, 2], [2, 2, 2, 2]])
    groups = np.array(["p1", "p1", "p1", "", "p2", "p2", "p2", "p1"])
    table = maps.shares(tiles, 4, groups, "patient", {3: "stroma"})
    assert table.to_csv() == "patient,tiles,1,2,3 stroma,4\np1,4,0.5,0.25,0.25,0.0\np2,3,0.0,0.0,1.0,0.0\n"


def test_a_map_shows_place_colour_and_confidence(tmp_path):
    labels = np.zeros((4, 6), int)
    labels[:, 3:] = 1
    confidence = np.where(labels == 0, 1.0, 0.25).ravel()
    tiles = assigned(labels, confidence=confidence)
    picture = maps.picture_of("a", tiles, tiles_of(tiles), np.arange(24))
    assert picture.part == (300, 200, 384, 256)
    assert (picture.pixels == 200).all()
    figure = maps.draw_maps("a", picture, {"clusters": tiles}, 3, {1: "_$\\tumour$", 3: "<b>"}, mpp=0.5)
    [bar] = (artist for artist in figure.axes[0].artists if isinstance(artist, AnchoredSizeBar))
    assert (bar.size_bar.get_children()[0].get_width(), bar.txt_label.get_text()) == (100, "50 µm")  # of 384 px
    [painted_tiles] = figure.axes[1].collections
    corners = np.array([path.vertices[:4] for path in painted_tiles.get_paths()])
    np.testing.assert_array_equal(corners.min(1), np.stack([tiles.positions.x, tiles.positions.y], axis=1))
    np.testing.assert_array_equal(corners.max(1), corners.min(1) + 64)
    colours = painted_tiles.get_facecolors().reshape(4, 6, 4)
    np.testing.assert_allclose(colours[:, :3, :3], np.broadcast_to(to_rgb(maps.COLOURS[0]), (4, 3, 3)))
    np.testing.assert_allclose(colours[..., 3].ravel(), confidence)
    figure.canvas.draw()  # raises for names taken for formulas
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1 _$\\tumour$", "2", "3 <b>"]
    numbers = {text.get_text(): text.get_position() for text in figure.axes[1].texts}
    assert numbers.keys() == {"1", "2"}
    assert numbers["1"][0] < 492 < numbers["2"][0]
    plt.close(figure)


def test_the_thumbnail_lies_where_the_tiles_are(tmp_path):
    """A slide of two tissues on glass: the map's picture is the tiler's thumbnail, its part the whole slide."""
    image = np.full((1024, 1536, 3), GLASS, np.uint8)
    image[256:768, 512:1280] = tissue(512, 768)
    tile_slides([write_slide(tmp_path / "a.tiff", image)], tmp_path / "out", Tiling(0.5, 64))
    source = read_source(tmp_path / "out")
    tiles = maps.ClusteredTiles(source.positions, np.zeros(len(source.images), int), np.ones(len(source.images)))
    pixels, part = maps.picture_of(
        "a", tiles, source.images, np.arange(len(source.images)), tmp_path / "out" / "slides"
    )
    assert part == (0, 0, 1536, 1024)
    small = np.asarray(Image.fromarray(image).resize(pixels.shape[1::-1], Image.BOX)).astype(int)
    assert np.abs(pixels - small).mean() < 3
    picture, _ = maps.picture_of("a", tiles, source.images, np.arange(len(source.images)))
    assert picture.shape[0] < pixels.shape[0] * 8  # without the thumbnail the tiles stand for it


def two_colours(path, seed=0):
    """Left red tissue, right blue tissue, glass around."""
    image = np.full((1024, 1536, 3), GLASS, np.uint8)
    noise = np.random.default_rng(seed).integers(-12, 12, (512, 1024, 1))
    image[256:768, 256:768] = np.clip((190, 70, 90) + noise[:, :512], 0, 255)
    image[256:768, 768:1280] = np.clip((90, 80, 190) + noise[:, 512:], 0, 255)
    return write_slide(path, image)


def test_maps_of_a_made_slide_find_its_regions(tmp_path):
    """Clusters by mean colour, as a stand-in for trained ones, on two slides of two known regions each."""
    for seed, name in enumerate("ab", start=1):
        two_colours(tmp_path / "slides" / f"{name}.tiff", seed)
    (tmp_path / "t.csv").write_text("slide,patient\na,p1\nb,p2\n")
    tile_slides([tmp_path / "slides"], tmp_path / "tiles", Tiling(0.5, 64), tmp_path / "t.csv")
    source = read_source(tmp_path / "tiles")
    red, _, blue = source.images.float().mean((2, 3)).T
    blue = (blue > red).long().numpy()
    tiles = maps.ClusteredTiles(source.positions, blue, np.full(len(blue), 0.9))
    section = maps.write_maps(
        tmp_path / "maps", tiles, source.images, 2, names={1: "red"}, patients=np.array(source.patients),
        pictures=tmp_path / "tiles" / "slides",
    )  # fmt: skip
    assert section.notes[0].startswith("Clusters follow tissue: ")
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {
        "a.jpg", "a.geojson", "b.jpg", "b.geojson", "tile_clusters.csv", "shares_by_slide.csv", "shares_by_patient.csv",
        "maps.h5ad",
    }  # fmt: skip
    for name in "ab":
        features = json.loads((tmp_path / "maps" / f"{name}.geojson").read_text())["features"]
        outlines = {
            f["properties"]["classification"]["name"]: shapely.from_geojson(json.dumps(f["geometry"])) for f in features
        }
        assert outlines["1 red"].equals(shapely.box(256, 256, 768, 768))
        assert outlines["Cluster 2"].equals(shapely.box(768, 256, 1280, 768))
    assert (
        tmp_path / "maps" / "shares_by_patient.csv"
    ).read_text() == "patient,tiles,1 red,2\np1,128,0.5,0.5\np2,128,0.5,0.5\n"
    with open(tmp_path / "maps" / "tile_clusters.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 256
    assert {(row["cluster"], row["class"], int(row["x"]) >= 768) for row in rows} == {
        ("1", "1 red", False),
        ("2", "2", True),
    }
    plt.close("all")


@pytest.mark.parametrize("frame", ["qupath", "file"])
def test_a_slide_with_bounds_opens_in_place(tmp_path, monkeypatch, capsys, frame):
    """QuPath shows what OpenSlide's bounds hold: there, or in the whole file, each region lies on its tissue."""
    monkeypatch.chdir(tmp_path)
    areas = {(400, 300): island(512, 512, 128, 128, 256, 256), (950, 1000): island(512, 512, 128, 128, 256, 256, 1)}
    path = write_scn(tmp_path / "a.scn", areas)
    options = ["--run", "starter", "--mpp", "0.5", "--frame", frame, "--min-tissue", "0.9"]
    assert main(["map", "--slide", str(path), *options]) == 0
    geojson = json.loads((tmp_path / "maps" / "a.geojson").read_text())
    with openslide.OpenSlide(path) as slide:
        x, y, width, height = (
            int(slide.properties[f"openslide.bounds-{name}"]) for name in ("x", "y", "width", "height")
        )
        plane = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")).astype(int)
    assert (x, y, width, height) == (400, 300, 950 + 512 - 400, 1000 + 512 - 300)
    assert geojson["frame"] == frame
    assert geojson["origin"] == ([x, y] if frame == "qupath" else [0, 0])
    image = plane[y : y + height, x : x + width] if frame == "qupath" else plane
    outlines = [shapely.from_geojson(json.dumps(feature["geometry"])) for feature in geojson["features"]]
    assert shapely.is_valid(outlines).all()
    stained = image.max(2) - image.min(2) > 20
    for outline in outlines:
        left, top, right, bottom = map(int, outline.bounds)
        assert 0 <= left < right <= image.shape[1]
        assert 0 <= top < bottom <= image.shape[0]
        assert stained[top:bottom, left:right].mean() > 0.6
    with open(tmp_path / "maps" / "tile_clusters.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    shift = np.array(geojson["origin"])
    corners, side = [(int(row["x"]), int(row["y"])) - shift for row in rows], int(rows[0]["side"])
    assert sum(outline.area for outline in outlines) == side**2 * len(rows)
    for corner in corners:
        assert sum(outline.contains(shapely.Point(*(corner + side // 2))) for outline in outlines) == 1
    printed = capsys.readouterr().out
    assert f"The GeoJSON of a {'counts from what was scanned' if frame == 'qupath' else 'keeps'}" in printed
    plt.close("all")


def test_a_slide_has_one_name_everywhere(tmp_path):
    """Spaces, %, quotes, a dash before and other scripts; a letter in two parts on the disk is one character here."""
    names = ["a b%20&c", "x.y.z", "-o", "quo\"te's", "スライド", unicodedata.normalize("NFC", "Präparat")]
    for seed, name in enumerate(names):
        apart = unicodedata.normalize("NFD", name) if name.startswith("Pr") else name
        write_slide(tmp_path / "slides" / f"{apart}.tiff", island(256, 256, 16, 16, 224, 224, seed), levels=(1,))
    tile_slides([tmp_path / "slides"], tmp_path / "tiles", Tiling(0.5, 64))
    source = read_source(tmp_path / "tiles")
    tiles = maps.ClusteredTiles(source.positions, np.arange(len(source.images)) % 2, np.ones(len(source.images)))
    maps.write_maps(tmp_path / "maps", tiles, source.images, 2, pictures=tmp_path / "tiles" / "slides")
    plt.close("all")
    assert set(source.positions.slide) == set(names)
    assert {path.stem for path in (tmp_path / "tiles" / "slides").iterdir()} == set(names)
    assert set(read_table(tmp_path / "maps" / "tile_clusters.csv")["slide"]) == set(names)
    for name in names:
        geojson = json.loads((tmp_path / "maps" / f"{name}.geojson").read_text())
        assert geojson["slide"] == name
        outlines = [shapely.from_geojson(json.dumps(feature["geometry"])) for feature in geojson["features"]]
        assert outlines
        assert shapely.is_valid(outlines).all()


def test_every_k_side_by_side(tmp_path):
    tiles = assigned(np.arange(12).reshape(3, 4) % 4)
    labels = {k: (np.arange(8) % k, np.ones(8)) for k in (2, 3, 4)}
    section = maps.write_every_k(tmp_path, labels, tiles.positions, tiles_of(tiles), np.arange(8))
    assert [ax.get_title() for ax in section.figures[0].axes] == ["a", "k = 2", "k = 3", "k = 4"]
    assert (tmp_path / "every_k" / "a.jpg").exists()  # beside the map of a slide of any name
    plt.close("all")


def test_a_generator_that_knows_its_scale_maps_a_slide(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    generator = Generator.load("starter")
    generator.mpp = 1.0
    generator.save(tmp_path / "own")
    assert main(["map", "--slide", str(two_colours(tmp_path / "new.tiff")), "--run", str(tmp_path / "own")]) == 0
    assert set(read_source(tmp_path / "maps" / "tiles").positions.mpp) == {1.0}
    plt.close("all")


def test_maps_beside_their_slides_are_no_slides_and_know_patients(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two_colours(tmp_path / "new.tiff")
    (tmp_path / "slides.csv").write_text("slide,patient\nnew,p1\n")
    shares = tmp_path / "maps" / "shares_by_patient.csv"
    for options in (["--slides-csv", "slides.csv"], []):
        assert main(["map", "--slide", ".", "--run", "starter", "--mpp", MPP, *options]) == 0
        assert set(read_source(tmp_path / "maps" / "tiles").positions.slide) == {"new"}
        assert shares.exists() == bool(options)
        if options:
            [row] = read_table(shares).to_dict("records")
            assert (row["patient"], int(row["tiles"])) == ("p1", len(read_source(tmp_path / "maps" / "tiles").images))
    plt.close("all")


def test_a_slide_that_is_left_out_keeps_no_map_of_what_lay_there(tmp_path, monkeypatch, capsys):
    """One that its table alone makes a slide, as it is called a label; then it is replaced by bare glass."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b_label")):
        two_colours(tmp_path / "slides" / f"{name}.tiff", seed)
    (tmp_path / "t.csv").write_text("slide,mpp\nb_label,0.5\n")
    command = ["map", "--slide", "slides", "--run", "starter", "--mpp", MPP, "--slides-csv", "t.csv"]
    assert main(command) == 0
    assert read_json(tmp_path / "maps" / "made_from.json")["slides"] == ["a.tiff", "b_label.tiff"]
    write_slide(tmp_path / "slides" / "b_label.tiff", np.full((512, 512, 3), GLASS, np.uint8))
    assert main(command) == 3
    assert "b_label.tiff shows no tissue" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "maps").glob("*.[jg]*")) == ["a.geojson", "a.jpg", "made_from.json"]
    plt.close("all")


def test_a_new_slide_is_mapped_with_trained_networks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    slide = two_colours(tmp_path / "new.tiff")
    assert main(["map", "--slide", str(slide), "--run", "starter", "--mpp", MPP]) == 0
    printed = capsys.readouterr().out
    assert "of neighbouring tiles are of one cluster" in printed
    source = read_source(tmp_path / "maps" / "tiles")
    assert source.images.shape[1:] == (3, SIDE, SIDE)
    assert set(source.positions.mpp) == {float(MPP)}
    clusters, confidence = Generator.load("starter").assign(source.images)
    with open(tmp_path / "maps" / "tile_clusters.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["cluster"]) - 1 for row in rows] == clusters.tolist()
    assert [float(row["confidence"]) for row in rows] == pytest.approx(confidence.tolist(), abs=1e-4)
    assert json.loads((tmp_path / "maps" / "new.geojson").read_text())["features"]

    contents = {path: path.read_bytes() for path in (tmp_path / "maps").rglob("*") if path.is_file()}
    other = two_colours(tmp_path / "other.tiff")
    assert main(["map", "--slide", str(other), "--run", "starter", "--mpp", MPP]) == 2
    assert "holds maps of other slides or of other networks: name another folder" in capsys.readouterr().err
    assert contents == {path: path.read_bytes() for path in (tmp_path / "maps").rglob("*") if path.is_file()}
    plt.close("all")


def test_a_map_takes_the_options_that_its_refusal_names(tmp_path, monkeypatch, capsys):
    """Even colour alone on glass is taken for ink."""
    monkeypatch.chdir(tmp_path)
    image = np.full((512, 512, 3), GLASS, np.uint8)
    image[128:384, 128:384] = (60, 40, 190)
    command = ["map", "--slide", str(write_slide(tmp_path / "a.tiff", image)), "--run", "starter", "--mpp", MPP]
    assert main(command) == 2
    assert "lower --min-tissue or --tissue-threshold, or give --pens off" in capsys.readouterr().err
    assert main([*command, "--pens", "off", "--min-tissue", "0.4", "--tissue-threshold", "8"]) == 0
    assert json.loads((tmp_path / "maps" / "a.geojson").read_text())["features"]
    plt.close("all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run", "starter"], "does not tell the scale of its tiles: give it as --mpp"),
        (["--run", "nowhere", "--mpp", "1"], "There is neither a generator"),
        (["--run", "starter", "--mpp", "0.1"], "scanned at 0.5 um/px"),
    ],
)
def test_what_cannot_be_mapped_is_one_sentence(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["map", "--slide", str(two_colours(tmp_path / "new.tiff")), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
