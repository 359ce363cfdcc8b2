"""Coordinates of CLAM and TRIDENT: made files of both layouts, tiles cut at their places, other slides' refused."""

import re

import h5py
import numpy as np
import pytest

from pfiles.__main__ import main
from pfiles.errors import InputError
from pfiles.tiles.coordinates import read_coordinates
from pfiles.tiles.sources import read_tile_table
from tests.tiles.conftest import island, write_scn, write_slide

PLACES = [(512, 256), (778, 302), (514, 640), (512, 256)]  # on no common grid, one of them twice


def write_h5(path, places=PLACES, **about):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        coords = file.create_dataset("coords", data=np.array(places))
        coords.attrs.update(about)
    return path


def of_clam(path, places=PLACES, size=64, level=1, downsample=(2.0, 2.0), level_dim=(768, 512)):
    about = {"patch_size": size, "patch_level": level, "downsample": downsample, "downsampled_level_dim": level_dim}
    return write_h5(path, places, **about, level_dim=level_dim, name=path.stem, save_path="patches")


def of_trident(path, places=PLACES, size=64, side=128, magnification=20, width=1536, height=1024):
    about = {"patch_size": size, "patch_size_level0": side, "level0_magnification": magnification, "overlap": 0}
    of_slide = {"target_magnification": 10, "level0_width": width, "level0_height": height}
    return write_h5(path, places, **about, **of_slide, name="a", savetodir="x")


@pytest.fixture
def slide(tmp_path):
    """1536 x 1024 px of 0.5 um, with a level of a half."""
    return write_slide(tmp_path / "slides" / "a.tiff", island(), levels=(1, 2))


def tile(tmp_path, slide, coordinates, *options):
    command = ["tile", str(slide), "--coordinates", str(coordinates), "--out", str(tmp_path / "out"), *options]
    return main(command)


def mean_of_fours(image, x, y):
    return image[y : y + 128, x : x + 128].reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))


@pytest.mark.parametrize(("write", "name"), [(of_clam, "a.h5"), (of_trident, "a_patches.h5")])
def test_tiles_are_cut_at_the_places_of_a_file(tmp_path, slide, write, name):
    """Tiles of 64 px of 1 um, each the mean of 2 x 2 pixels at its place; a place that is named twice is cut once."""
    assert tile(tmp_path, slide, write(tmp_path / "h5" / name), "--mpp", "1", "--size", "64") == 0
    rows, tiles = read_tile_table(tmp_path / "out" / "tiles.csv"), np.load(tmp_path / "out" / "tiles.npy")
    assert [*zip(rows.x, rows.y, strict=True)] == PLACES[:3]
    assert set(rows.side) == {128}
    for image, (x, y) in zip(tiles, PLACES, strict=False):
        assert np.abs(image - mean_of_fours(island(), x, y)).max() <= 0.5
    assert rows.tissue.tolist() == pytest.approx([1, 1, 1], abs=0.1)


def test_other_sizes_of_the_same_width_are_cut_too(tmp_path, slide):
    path = of_trident(tmp_path / "a.h5", [(512, 256)])
    assert tile(tmp_path, slide, path, "--mpp", "0.5", "--size", "128") == 0
    [image] = np.load(tmp_path / "out" / "tiles.npy")
    assert np.abs(image.astype(int) - island()[256:384, 512:640]).max() == 0


def test_places_count_from_the_files_corner_where_a_part_was_scanned(tmp_path):
    area = island(640, 640, 0, 0, 640, 640)
    path = write_scn(tmp_path / "a.scn", {(300, 200): area})
    places = write_h5(tmp_path / "a.h5", [(400, 250)], patch_size=64, patch_size_level0=64)
    assert tile(tmp_path, path, places, "--mpp", "0.5", "--size", "64") == 0
    [image] = np.load(tmp_path / "out" / "tiles.npy")
    np.testing.assert_array_equal(image, area[50:114, 100:164])


@pytest.mark.parametrize(
    ("write", "about", "options", "message"),
    [
        (
            of_clam,
            {},
            ("--mpp", "0.5", "--size", "64"),
            "which are 64 um wide, but .* 32 um: give --size 64 and --mpp 1,",
        ),
        (of_trident, {"side": 135}, ("--mpp", "1", "--size", "64"), "67.5 um wide, but .* --size 64 and --mpp 1.055"),
        (
            of_trident,
            {"magnification": 40},
            (),
            "a magnification of 40, which is about 0.25 um/px, but .* has 0.5 um/px",
        ),
        (of_trident, {"width": 1500}, (), "has 1500 x 1024 px there, here 1536 x 1024"),
        (of_clam, {"level_dim": (768, 500)}, (), "level 1 has 768 x 500 px there, here 768 x 512"),
        (of_clam, {"downsample": 4.0}, (), "level 1 is 4 times smaller there, here 2"),
        (of_clam, {"level": 3}, (), "it takes level 3, but the slide's last is 1"),
        (of_clam, {"places": [(0, 1024)]}, (), "it has a tile at 0, 1024, but the slide is 1536 x 1024 px"),
        (of_clam, {"places": [(0.5, 3)]}, (), "a place that is no whole number"),
        (of_clam, {"places": [1, 2]}, (), "must hold places of shape"),
        (of_clam, {"size": 0}, (), "does not say how large its tiles are"),
        (of_clam, {}, ("--stride", "9"), "leave out stride and regions"),
        (of_clam, {"places": []}, (), "names no place on"),
    ],
)
def test_what_does_not_fit_the_slide_is_one_sentence(tmp_path, slide, capsys, write, about, options, message):
    path = write(tmp_path / "a.h5", **about)
    assert tile(tmp_path, slide, path, *(options or ("--mpp", "1", "--size", "64")), "--size", "64") == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_folder_has_a_file_for_each_slide(tmp_path, capsys):
    for seed, name in enumerate("ab"):
        write_slide(tmp_path / "slides" / f"{name}.tiff", island(seed=seed))
    of_trident(tmp_path / "h5" / "a_patches.h5")
    assert tile(tmp_path, tmp_path / "slides", tmp_path / "h5", "--mpp", "1", "--size", "64") == 3
    assert "left out: " + str(tmp_path / "h5") + " names no place on" in capsys.readouterr().out
    assert set(read_tile_table(tmp_path / "out" / "tiles.csv").slide) == {"a"}
    of_clam(tmp_path / "h5" / "x.h5")
    with pytest.raises(InputError, match=r"x\.h5 is of a slide that is not asked for, x"):
        read_coordinates(tmp_path / "h5", ["a", "b"])
    with pytest.raises(InputError, match="is of none of the 2 slides"):
        read_coordinates(tmp_path / "h5" / "x.h5", ["a", "b"])


def test_damaged_and_other_files_are_refused(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"hello")
    with pytest.raises(InputError, match="cannot be read as CLAM's or TRIDENT's coordinates"):
        read_coordinates(tmp_path / "a.h5", ["a"])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = np.zeros((3, 4))
    with pytest.raises(InputError, match="lacks the dataset coords"):
        read_coordinates(tmp_path / "a.h5", ["a"])
    with pytest.raises(InputError, match="does not say how large"):
        read_coordinates(write_h5(tmp_path / "b.h5"), ["a"])
    with pytest.raises(InputError, match="There are no coordinates at"):
        read_coordinates(tmp_path / "c.h5", ["a"])
