"""A field as files: a slide that `tile` and `map` read, resumed to the same bytes, with its layout beside it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import openslide
import pytest
import shapely
import tifffile

from pfiles import fields
from pfiles.__main__ import main
from pfiles.checkpoints import inference_fingerprint
from pfiles.drawing import field as drawing
from pfiles.drawing.field import make_field
from pfiles.drawing.generator import Generator
from pfiles.drawing.layout import GLASS, Box, cells_at, make_layout, read_layout
from pfiles.errors import InputError
from pfiles.paths import read_json
from pfiles.spreadsheet import read_table
from tests.conftest import K, assert_refused
from tests.tiles.conftest import island, write_slide

CELLS, SIZE = np.array([[0, 1, 1], [2, GLASS, 0]]), (230, 150)


@pytest.fixture
def field(generator, monkeypatch):
    """Of six blocks."""
    monkeypatch.setattr(drawing, "BLOCK", 96)
    monkeypatch.setattr(drawing, "EXCHANGES", 2)
    layout = make_layout(CELLS, SIZE, K)
    return make_field(generator.unet, generator.space, generator.settings, layout, 5)


def test_the_slide_holds_what_is_drawn_and_says_its_scale_and_origin(generator, field, tmp_path):
    note = fields.write_field(generator, field, tmp_path / "a.tiff", mpp=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.layout.geojson", "a.tiff", "a.tiles.csv"]
    image = tifffile.imread(tmp_path / "a.tiff")
    np.testing.assert_array_equal(image, drawing.draw_field(field, show_progress=False).permute(1, 2, 0))
    slide = openslide.OpenSlide(tmp_path / "a.tiff")
    assert (slide.dimensions, float(slide.properties["openslide.mpp-x"])) == (SIZE, 0.5)
    assert note == read_json(tmp_path / "a.json")
    assert note["made_from"]["unet"] == inference_fingerprint(generator.unet)
    region = Box(20, 30, 140, 190)
    fields.write_field(generator, field, tmp_path / "b.tiff", region)
    part = tifffile.imread(tmp_path / "b.tiff")
    assert np.abs(part.astype(int) - image[20:140, 30:190]).max() <= 1


def test_the_layout_beside_it_is_what_was_asked_for(generator, field, tmp_path):
    """As a layout again it asks for the same, and the table names the cluster of each tile."""
    generator = replace(generator, names={2: "dermis"}, mpp=0.5)
    fields.write_field(generator, field, tmp_path / "a.tiff")
    path = tmp_path / "a.layout.geojson"
    again = read_layout(str(path), generator.reader, background="glass", mpp_of_slide=0.5)
    assert again.size == SIZE
    box = Box(0, 0, 18, 28)
    same = cells_at(again, box, 8, filled=False) == cells_at(field.layout, box, 8, filled=False)
    assert same.mean() > 0.95  # cells end within the small ones into which annotations are painted
    assert json.loads(path.read_text())["bbox"] == [0, 0, *SIZE]
    names = {f["properties"]["classification"]["name"] for f in json.loads(path.read_text())["features"]}
    assert names == {"Cluster 1", "2 dermis", "Cluster 3"}
    table = read_table(tmp_path / "a.tiles.csv")
    cluster_at = {(int(row.x), int(row.y)): int(row.cluster) for row in table.itertuples()}
    assert cluster_at == {(0, 0): 1, (48, 0): 1, (96, 0): 2, (144, 0): 2, (0, 48): 1, (48, 48): 1, (96, 48): 2,
                     (144, 48): 2, (0, 96): 3, (48, 96): 3, (144, 96): 1}  # fmt: skip
    fields.write_field(generator, field, tmp_path / "b.tiff", Box(60, 60, 130, 200))
    features = json.loads((tmp_path / "b.layout.geojson").read_text())["features"]
    shapes = [shapely.from_geojson(json.dumps(feature["geometry"])) for feature in features]
    assert shapely.total_bounds(shapes).tolist() == [0, 0, 140, 70]


def test_stopped_anywhere_it_goes_on_to_the_same_bytes(generator, field, tmp_path, monkeypatch, capsys):
    fields.write_field(generator, field, tmp_path / "whole.tiff")
    draw, blocks = fields.draw_block, []

    def stopping(field, block, bar):
        if len(blocks) % 3 == 2:
            blocks.append(None)
            raise KeyboardInterrupt
        blocks.append(block)
        return draw(field, block, bar)

    monkeypatch.setattr(fields, "draw_block", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt, match="run it again to go on"):
            fields.write_field(generator, field, tmp_path / "field.tiff")
        assert not (tmp_path / "field.tiff").exists()
    for name in ("mine.json", "mine.tiles.csv", "mine.layout.geojson"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(InputError, match=rf"{name} was not made by this command"):
            fields.write_field(generator, field, tmp_path / "mine.tiff")
        (tmp_path / name).unlink()
    other = make_field(field.unet, field.space, field.settings, field.layout, 6)
    with pytest.raises(InputError, match="holds blocks of another drawing"):
        fields.write_field(generator, other, tmp_path / "field.tiff")
    fields.write_field(generator, field, tmp_path / "field.tiff")
    assert len({block for block in blocks if block}) == len([block for block in blocks if block]) == 6
    assert (tmp_path / "field.tiff").read_bytes() == (tmp_path / "whole.tiff").read_bytes()
    capsys.readouterr()
    fields.write_field(generator, field, tmp_path / "field.tiff")
    assert capsys.readouterr().out == f"{tmp_path / 'field.tiff'} is there already.\n"
    with pytest.raises(InputError, match="is there already, of another drawing"):
        fields.write_field(generator, other, tmp_path / "field.tiff")


@pytest.mark.parametrize("name", ["write_json", "write_csv", "write_text", "write_pyramid", "shutil.rmtree"])
def test_stopped_at_any_file_it_goes_on_and_leaves_nothing_behind(generator, field, tmp_path, monkeypatch, name):
    fields.write_field(generator, field, tmp_path / "a" / "field.tiff")
    module, _, function = name.rpartition(".")
    place = fields.shutil if module else fields
    work = getattr(place, function)

    def stop(*args, **options):
        if not module:
            work(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, function, stop)
        with pytest.raises(KeyboardInterrupt):
            fields.write_field(generator, field, tmp_path / "b" / "field.tiff")
    fields.write_field(generator, field, tmp_path / "b" / "field.tiff")
    whole, resumed = ({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in "ab")
    assert resumed == whole
    assert len(whole) == 4


def test_a_real_slide_is_read_as_the_refusal_advises(generator, tmp_path, capsys):
    """By what counts as tissue, and by the scale that its file does not tell."""
    replace(generator, mpp=1.0).save(tmp_path / "g")
    slide = write_slide(tmp_path / "slide.tiff", island(300, 300, 100, 100, 60, 60), mpp=None, levels=(1,))
    command = ["field", "--from", str(tmp_path / "g"), "--layout", "1", "--size", "96", "96"]
    command += ["--out", str(tmp_path / "field.tiff"), "--real-slide", str(slide)]
    for advice, value in (("--mpp-of-slide", "1"), ("--tissue-threshold", "8"), ("--pens", "off")):
        assert main(command) == 2
        assert advice in capsys.readouterr().err
        command += [advice, value]
    assert main([*command, "--min-tissue", "0.1"]) == 0
    assert (tmp_path / "field.check.json").exists()


def test_a_disk_without_room_is_told_before_any_work(generator, field, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 2 * 10**5))
    with pytest.raises(InputError, match=r"230 x 150 px needs up to 0\.0 GB, but the disk of .* has 0\.0 GB left"):
        fields.write_field(generator, field, tmp_path / "a.tiff")
    with pytest.raises(InputError, match=r"call it a\.tiff instead of a\.png"):
        fields.write_field(generator, field, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_field_tile_and_map_commands(generator, tmp_path, capsys):
    """What `field` writes, `tile` cuts and `map` maps."""
    replace(generator, names={2: "dermis"}, mpp=1.0).save(tmp_path / "g")
    (tmp_path / "layout.csv").write_text("1,1\ndermis,3\n")
    command = ["field", "--from", str(tmp_path / "g"), "--layout", str(tmp_path / "layout.csv")]
    out = str(tmp_path / "out" / "field.tiff")
    assert main([*command, "--out", out]) == 0
    assert "A field of 96 x 96 px of 1 um/px" in capsys.readouterr().out
    pixels = Generator.load(tmp_path / "g").field(make_layout(np.array([[0, 0], [1, 2]]), (96, 96), K), progress=False)
    np.testing.assert_array_equal(tifffile.imread(out), pixels.permute(1, 2, 0))
    options = ["--mpp", "1", "--min-tissue", "0.001", "--allow-missing"]
    assert main(["tile", out, "--out", str(tmp_path / "tiles"), "--size", "48", *options]) == 0
    assert main(["map", "--slide", out, "--run", str(tmp_path / "g"), "--out", str(tmp_path / "map"), *options]) == 0
    assert len(read_table(tmp_path / "map" / "tile_clusters.csv")) == 4
    capsys.readouterr()
    (tmp_path / "layout.csv").write_text("1,9\n")
    for more in ([], ["--stride", "1"], ["--region", "0", "0", "500", "500"], ["--mpp", "0"], ["--mpp-of-slide", "-1"]):
        assert_refused([*command, "--out", str(tmp_path / "none" / "a.tiff"), *more], capsys, tmp_path / "none")
    (tmp_path / "layout.csv").write_text("1,1\n1,glass\n")
    assert_refused(
        [*command, "--out", str(tmp_path / "none" / "a.tiff"), "--region", "0", "0", "40", "40"], capsys,
        tmp_path / "none",
    )  # fmt: skip
    assert main([*command, "--out", str(tmp_path / "one.tiff"), "--region", "0", "0", "48", "48"]) == 0
    assert "Not measured: Whether a field repeats itself" in capsys.readouterr().out
    inside_a_file = tmp_path / "layout.csv" / "a.tiff"
    assert_refused([*command, "--out", str(inside_a_file)], capsys, inside_a_file)
