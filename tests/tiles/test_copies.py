"""Copies over the split: found by their pixels whatever their names, refused or shown; patients by slides' names."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pfiles.__main__ import main
from pfiles.errors import InputError
from pfiles.tiles import copies
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.gather import SlideFile, copies_of_files
from pfiles.tiles.pixels import as_array, as_tensor
from pfiles.tiles.slides import Tiling
from pfiles.tiles.tiler import tile_slides
from tests.conftest import make_tiles
from tests.tiles.conftest import as_jpeg, island, lay_out, tissue, write_slide


def photographs(n, side=64):
    image = tissue(2 * 384, 2 * 384)
    corners = np.random.default_rng(0).permutation(19 * 19)[:n]
    return np.stack([image[17 * (c // 19) :, 17 * (c % 19) :][:side, :side] for c in corners])


def test_copies_and_near_copies_are_told_from_other_tiles():
    tiles = photographs(40)
    tiles[30] = tiles[3]
    tiles[31] = as_jpeg(tiles[4])
    tiles[32] = as_jpeg(tiles[5], 90)
    tiles[38], tiles[39] = as_jpeg(np.rot90(tiles[8], 3)), np.rot90(tiles[9])[:, ::-1]
    tiles[33:35] = tiles[6:8] = 240  # bare glass says nothing
    images, train, test = as_tensor(tiles), np.arange(30), np.arange(30, 40)
    assert copies.copies(images, test, train).tolist() == [[30, 3]]
    assert copies.near_copies(images, test, train).tolist() == [[30, 3], [31, 4], [32, 5], [38, 8], [39, 9]]
    pairs = copies.near_copies(images, test, train)
    sheet = np.asarray(copies.picture_of_pairs(images, pairs))
    assert sheet.shape == (264, 660, 3)
    np.testing.assert_array_equal(sheet[:128, 132:260], Image.fromarray(as_array(images[31:32])[0]).resize((128, 128)))


def test_training_tiles_that_share_the_two_rows_are_all_compared():
    tiles = photographs(6)
    tiles[:3, [21, 42]] = 240  # the rows that are looked at first show glass
    tiles[4], tiles[5] = tiles[0], tiles[1]
    pairs = copies.copies(as_tensor(tiles), np.arange(3, 6), np.arange(3))
    assert pairs.tolist() == [[4, 0], [5, 1]]


def test_a_tile_on_both_sides_is_refused_by_name(tmp_path):
    tiles = make_tiles(44)
    tiles[41] = tiles[2]
    data = lay_out(tmp_path / "data", [f"{i:02}.png" for i in range(44)], tiles)
    with pytest.raises(InputError, match=r"1 of 4 test tiles have the same pixels as .* 41\.png and 02\.png: keep one"):
        load_tiles(data, 48)
    (data / "41.png").unlink()
    load_tiles(data, 48)
    np.save(tmp_path / "a.npy", tiles)
    with pytest.raises(InputError, match="such as number 41 and number 2"):
        load_tiles(tmp_path / "a.npy", 48)


def test_near_copies_are_warned_about_with_a_picture(tmp_path, capsys):
    tiles = photographs(44)
    tiles[43] = as_jpeg(tiles[7])
    data = lay_out(tmp_path / "data", [f"{i:02}.png" for i in range(44)], tiles)
    load_tiles(data, 64)
    warning = capsys.readouterr().out
    assert "1 of 4 test tiles look nearly like training tiles, such as 43.png and 07.png: see " in warning
    path = warning.split(": see ")[1].split(".png.")[0] + ".png"
    assert Image.open(path).size == (132, 264)
    assert main(["check", "--fast", "--preset", "demo", "--data", str(data), "--clusters", "4"]) in (0, 1)
    assert "43.png and 07.png" in capsys.readouterr().out


def test_near_copies_of_unchanged_files_are_told_again_without_a_search(tmp_path, capsys, monkeypatch):
    tiles, searches = photographs(44), []
    tiles[43] = as_jpeg(tiles[7])
    data = lay_out(tmp_path / "data", [f"{i:02}.png" for i in range(44)], tiles)
    near_copies = copies.near_copies
    monkeypatch.setattr("pfiles.tiles.sources.SETTLED_SECONDS", -60)  # files of just now count as unchanged
    monkeypatch.setattr(copies, "near_copies", lambda *tiles: searches.append(1) or near_copies(*tiles))

    def message():
        load_tiles(data, 64)
        return next(line for line in capsys.readouterr().out.splitlines() if "look nearly like" in line)

    warning = message()
    assert [message(), len(searches)] == [warning, 1]
    Path(warning.split(": see ")[1].removesuffix(".")).unlink()
    assert [message(), len(searches)] == [warning, 2]
    Image.fromarray(tiles[8]).save(data / "42.png", compress_level=1)
    with pytest.raises(InputError, match=r"42\.png"):
        message()
    Image.fromarray(as_jpeg(tiles[8])).save(data / "42.png")
    assert "2 of 4 test tiles" in message()


def test_the_same_file_under_two_names_is_cut_once(tmp_path, capsys):
    folder = tmp_path / "slides"
    for name, seed in (("a", 0), ("b", 1), ("c", 1)):
        write_slide(folder / f"{name}.tiff", island(512, 512, 64, 64, 300, 300, seed), levels=(1,))
    command = ["tile", str(folder), "--out", str(tmp_path / "out"), "--size", "64", "--mpp", "0.5"]
    assert main(command) == 3
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("c ")]
    assert line.endswith("left out: it is the same file as b")
    assert set(load_tiles(tmp_path / "out", 64).positions.slide) == {"a", "b"}
    (tmp_path / "t.csv").write_text("slide,patient\na,p1\nb,p2\nc,p3\n")
    assert main([*command, "--slides-csv", str(tmp_path / "t.csv")]) == 2
    assert "b and c are the same file, but of the patients 'p2' and 'p3'" in capsys.readouterr().err


def test_slides_of_many_files_are_compared_by_all_of_them(tmp_path, capsys):
    """Two MRXS may have one index and other data; a copy of an OME-Zarr is one in all of its files."""
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"2")):
        (tmp_path / f"{name}.mrxs").write_bytes(b"index")
        (tmp_path / name).mkdir()
        (tmp_path / name / "Data0000.dat").write_bytes(content)
        (tmp_path / f"{name}.zarr" / "0").mkdir(parents=True)
        (tmp_path / f"{name}.zarr" / "0" / "0.0").write_bytes(content)
    for suffix in (".mrxs", ".zarr"):
        slides = [SlideFile(tmp_path / f"{name}{suffix}", name) for name in "abc"]
        assert copies_of_files(slides, dict.fromkeys("abc", "")) == {"c": "it is the same file as b"}


def test_pages_of_one_file_on_both_sides_are_told(tmp_path, capsys):
    sections = np.stack([island(512, 512, 64, 64, 300, 300, seed) for seed in range(2)])
    tifffile.imwrite(tmp_path / "z.tif", sections, photometric="rgb")
    tile_slides([tmp_path / "z.tif"], tmp_path / "out", Tiling(0.5, 64, mpp_of_slide=0.5, page=None))
    assert "look like one patient, Z, are among training and test tiles" in capsys.readouterr().out
    assert not copies.patients_on_both_sides(["a_page1", "b"], ["c_page1", "b_page"])


def test_slides_that_are_not_split_have_no_copies_over_a_split(tmp_path, capsys):
    for name in "ab":
        write_slide(tmp_path / f"{name}.tiff", island(256, 256, 64, 64, 128, 128, ord(name)), levels=(1,))
    assert not tile_slides([tmp_path], tmp_path / "out", Tiling(0.5, 64), show_split=False)
    assert "Warning" not in capsys.readouterr().out
    assert not len(copies.near_copies(as_tensor(photographs(4)), np.arange(0), np.arange(4)))


def test_the_same_pixels_in_two_kinds_of_files_are_refused(tmp_path, capsys):
    image = island(512, 512, 64, 64, 300, 300)
    write_slide(tmp_path / "slides" / "a.tiff", image, levels=(1,))
    resolution = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "slides" / "b.tif", image, photometric="rgb", metadata=None, **resolution)
    tile_slides([tmp_path / "slides"], tmp_path / "out", Tiling(0.5, 64))
    assert "have the same pixels as training tiles, such as " in capsys.readouterr().out
    with pytest.raises(InputError, match=r"test tiles have the same pixels as training tiles, such as [ab] at"):
        load_tiles(tmp_path / "out", 64)


def test_patients_of_public_archives_on_both_sides(tmp_path, capsys):
    train, test = ["TCGA-D8-A73X-01Z-00-DX1", "TCGA-D8-A141-01Z"], ["tcga-d8-a73x-01Z-00-DX2", "TCGA-E2-A141-01Z"]
    assert copies.patients_on_both_sides(train, test) == ["TCGA-D8-A73X"]
    assert copies.patients_on_both_sides(["C3L-00001-21", "GTEX-1117F-0126"], ["C3L-00001-22", "GTEX-1117F-02"]) == [
        "C3L-00001", "GTEX-1117F",
    ]  # fmt: skip
    names = ["TCGA-D8-A73X-01Z-00-DX1", "TCGA-D8-A73X-01Z-00-DX2"]
    for seed, name in enumerate(names):
        write_slide(tmp_path / "slides" / f"{name}.tiff", island(512, 512, 64, 64, 300, 300, seed), levels=(1,))
    tile_slides([tmp_path / "slides"], tmp_path / "out", Tiling(0.5, 64))
    assert "look like one patient, TCGA-D8-A73X, are among training and test tiles" in capsys.readouterr().out
    load_tiles(tmp_path / "out", 64)
    assert "look like one patient, TCGA-D8-A73X" in capsys.readouterr().out
    (tmp_path / "t.csv").write_text("slide,patient\n" + "\n".join(f"{name},p{name[-1]}" for name in names))
    tile_slides([tmp_path / "slides"], tmp_path / "out", Tiling(0.5, 64), tmp_path / "t.csv")
    assert "look like one patient" not in capsys.readouterr().out
