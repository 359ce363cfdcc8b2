"""Croissant files: what they say is valid, and their records are the tiles and images beside them."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from pfiles.spreadsheet import read_table
from pfiles.tiles.croissant import describe_images
from pfiles.tiles.join import join_parts
from pfiles.tiles.slides import Tiling
from pfiles.tiles.tiler import tile_slides
from tests.tiles.conftest import tissue, write_slide

UNSAID = {"citeAs", "datePublished", "license", "version"}  # what only people know


def read(path):
    """The data set that a file describes; nothing is wrong in it, and only what people know is missing."""
    import mlcroissant  # a second, of the process that runs these tests alone

    data = mlcroissant.Dataset(jsonld=path)
    issues = data.metadata.ctx.issues
    assert not issues.errors
    assert all(any(f'/{name}"' in warning for name in UNSAID) for warning in issues.warnings)
    return data


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("croissant")
    write_slide(folder / "slides" / "a.tiff", tissue(512, 512))
    (folder / "t.csv").write_text("slide,patient\na,p1\n")
    tile_slides([folder / "slides"], folder / "out", Tiling(1.0, 64, min_tissue=0.1), folder / "t.csv")
    return folder / "out"


def test_a_folder_of_tiles_is_described(tiles):
    rows = read_table(tiles / "tiles.csv")
    records = [*read(tiles / "croissant.json").records("tiles")]
    assert len(records) == len(rows) == len(np.load(tiles / "tiles.npy")) > 4
    for column in ("slide", "patient"):
        assert [record[f"tiles/{column}"].decode() for record in records] == [*rows[column]]
    for column in ("x", "y", "side", "level", "mpp", "tissue", "sharpness"):
        np.testing.assert_allclose([record[f"tiles/{column}"] for record in records], rows[column].astype(float))


def test_other_tiles_are_not_what_the_file_describes(tiles, tmp_path):
    for name in ("croissant.json", "tiles.csv"):
        (tmp_path / name).write_bytes((tiles / name).read_bytes())
    said = json.loads((tmp_path / "croissant.json").read_text())
    assert [len(file["sha256"]) for file in said["distribution"]] == [64, 64]
    with open(tmp_path / "tiles.csv", "a") as file:
        file.write("b,0,0,64,0,1,1,1,p2\n")
    import mlcroissant

    with pytest.raises(Exception, match=r"Download\(tiles\.csv\)"):
        [*mlcroissant.Dataset(jsonld=tmp_path / "croissant.json").records("tiles")]


def test_joined_parts_are_described(tmp_path):
    """A file for each part, with the hash that the part's own description has; the records are those of the table."""
    for name, seed in (("a", 0), ("b", 1)):
        write_slide(tmp_path / name / f"{name}.tiff", tissue(512, 512, seed))
        tile_slides([tmp_path / name], tmp_path / "parts" / name, Tiling(1.0, 64, min_tissue=0.1))
    join_parts([tmp_path / "parts" / "a", tmp_path / "parts" / "b"], tmp_path / "out")
    rows = read_table(tmp_path / "out" / "tiles.csv")
    records = [*read(tmp_path / "out" / "croissant.json").records("tiles")]
    assert [record["tiles/slide"].decode() for record in records] == [*rows["slide"]]
    *parts, _ = json.loads((tmp_path / "out" / "croissant.json").read_text())["distribution"]
    first = sum(rows["slide"] == "a")
    assert f"tile i belongs to row {first} + i" in parts[1]["description"]
    for part, number in zip(parts, (first, len(rows) - first), strict=True):
        content = (tmp_path / "out" / part["contentUrl"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == part["sha256"]
        assert f"uint8 array ({number}, 64, 64, 3)" in part["description"]


def test_a_folder_of_images_is_described(tmp_path):
    (tmp_path / "images").mkdir()
    images = {"1.png": 10, "2.png": 200}
    for name, grey in images.items():
        Image.new("RGB", (8, 8), (grey,) * 3).save(tmp_path / "images" / name)
    (tmp_path / "report.json").write_text("{}")
    describe_images(tmp_path, "generated_tiles", "2 generated tiles", [*images])
    records = [*read(tmp_path / "croissant.json").records("records")]
    levels = {record["records/file"].decode(): record["records/image"].getpixel((0, 0))[0] for record in records}
    assert levels == images
