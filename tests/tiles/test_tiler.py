"""Slides of known content: position, scale, mask and split by value; bad slides; stops half-way."""

import csv
import io
import multiprocessing
import os
import re
import shutil
import signal
import struct

import matplotlib.pyplot as plt
import numpy as np
import openslide
import pytest
from PIL import Image

from pfiles.__main__ import main
from pfiles.cli.execute import run_cells
from pfiles.errors import InputError, MissingPackageError
from pfiles.paths import ROOT
from pfiles.tiles import tiler
from pfiles.tiles.builtin import SLIDE
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.gather import SlideFile
from pfiles.tiles.jpeg_slide import JpegSlide
from pfiles.tiles.readers import open_slide
from pfiles.tiles.slides import Tiling, cut_tiles
from pfiles.tiles.sources import ABOUT
from pfiles.tiles.tiler import tile_slides
from tests.tiles.conftest import DICOM, GLASS, island, tissue, write_slide


def rows_of(out):
    with open(out / "tiles.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("mpp", "level", "factor"),
    [(0.5, 0, 1), (1.0, 0, 2), (2.0, 1, 1), (0.504, 0, 1)],
)
def test_tiles_come_from_their_place_at_their_scale(tmp_path, mpp, level, factor):
    image = island()
    tile_slides([write_slide(tmp_path / "a.tiff", image)], tmp_path / "out", Tiling(mpp=mpp, size=64))
    tiles, rows = np.load(tmp_path / "out" / "tiles.npy"), rows_of(tmp_path / "out")
    assert len(rows) == len(tiles) > 0
    side = 64 * (4 if level else 1) * factor
    for tile, row in zip(tiles, rows, strict=True):
        x, y = int(row["x"]), int(row["y"])
        part = image[y : y + side, x : x + side].reshape(64, side // 64, 64, side // 64, 3)
        np.testing.assert_allclose(tile.astype(int), part.mean(axis=(1, 3)), atol=0.51)
        assert (row["slide"], int(row["side"]), int(row["level"])) == ("a", side, level)
        assert float(row["mpp"]) == pytest.approx(0.5 * side / 64)
        stained = np.any(image[y : y + side, x : x + side] != GLASS, axis=2).mean()
        assert float(row["tissue"]) == pytest.approx(stained, abs=0.15)
    corners = {(int(row["x"]), int(row["y"])) for row in rows}
    inside = {
        (x, y)
        for y in range(0, 1024 - side + 1, side)
        for x in range(0, 1536 - side + 1, side)
        if y >= 256 and y + side <= 768 and x >= 512 and x + side <= 1280
    }
    assert corners >= inside
    assert all(x + side > 512 and x < 1280 and y + side > 256 and y < 768 for x, y in corners)


@pytest.mark.parametrize(
    ("of_slide", "mpp", "size", "stride"), [(0.5, 0.75, 64, None), (0.25, 0.3, 96, 60), (0.16, 0.25, 48, None)]
)
def test_a_scale_between_levels_is_averaged_over_fractions_of_pixels(tmp_path, of_slide, mpp, size, stride):
    """A ramp keeps its values over the whole slide: pixel i of a tile is the mean of mpp / of_slide of its pixels."""
    ramp = np.arange(480, dtype=np.float64) / 2
    image = np.stack([np.tile(ramp, (480, 1)), np.full((480, 480), 40.0), np.full((480, 480), 120.0)], axis=2)
    path = write_slide(tmp_path / "a.tiff", image.round().astype(np.uint8), of_slide, levels=(1,))
    tile_slides([path], tmp_path / "out", Tiling(mpp, size, stride, min_tissue=0.01))
    factor = mpp / of_slide
    for tile, row in zip(np.load(tmp_path / "out" / "tiles.npy"), rows_of(tmp_path / "out"), strict=True):
        expected = (int(row["x"]) + factor * np.arange(size) + (factor - 1) / 2) / 2
        assert np.abs(tile[..., 0] - expected).max() < 1.01
        assert int(row["side"]) == round(size * factor)


def test_no_tile_is_cut_of_pen_marks_and_borders(tmp_path):
    image = island(1024, 1536, 256, 512, 512, 512)
    image[:, :48] = image[-48:] = 4  # a black border
    for column, ink in enumerate([(20, 110, 70), (40, 70, 190), (215, 25, 35), (30, 30, 32)]):
        left = 200 + 300 * column
        image[60:180, left : left + 200] = ink
    image[256:768, 1024:1088] = (20, 110, 70)  # a line beside the tissue
    tile_slides([write_slide(tmp_path / "a.tiff", image)], tmp_path / "out", Tiling(0.5, 64))
    corners = {(int(row["x"]), int(row["y"])) for row in rows_of(tmp_path / "out")}
    assert corners == {(x, y) for x in range(512, 1024, 64) for y in range(256, 768, 64)}


def test_tiles_of_a_dicom_slide_come_from_their_place_at_their_scale(tmp_path):
    """The same file with 64 x 64 px of other tissue in its one frame; of a folder's DICOM files the first is read."""
    content = DICOM.read_bytes()
    begin = content.index(b"\xff\xd8\xff")
    (length,) = struct.unpack("<I", content[begin - 4 : begin])
    jpeg = io.BytesIO()
    Image.fromarray(tissue(64, 64)).save(jpeg, "JPEG", quality=90, keep_rgb=True, subsampling=0)
    frame = jpeg.getvalue() + bytes(jpeg.tell() % 2)
    content = content[: begin - 4] + struct.pack("<I", len(frame)) + frame + content[begin + length :]
    for tag in (b"\x48\x00\x06\x00UL\x04\x00", b"\x48\x00\x07\x00UL\x04\x00"):  # columns and rows of the slide
        content = content.replace(tag + struct.pack("<I", 16), tag + struct.pack("<I", 64))
    (tmp_path / "a").mkdir()
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / "a" / name).write_bytes(content)
    tile_slides([tmp_path / "a"], tmp_path / "out", Tiling(mpp=0.998, size=16))
    image = Image.open(jpeg).reduce(2)
    rows = rows_of(tmp_path / "out")
    assert {(row["slide"], row["x"], row["y"], row["mpp"]) for row in rows} == {
        ("1", x, y, "0.998") for x in ("0", "32") for y in ("0", "32")
    }
    for tile, row in zip(np.load(tmp_path / "out" / "tiles.npy"), rows, strict=True):
        x, y = int(row["x"]) // 2, int(row["y"]) // 2
        np.testing.assert_array_equal(tile, image.crop((x, y, x + 16, y + 16)))


def test_the_real_slide_agrees_with_pillow(tmp_path):
    tile_slides([SLIDE], tmp_path / "out", Tiling(mpp=1, size=64, per_slide=30))
    image = Image.open(SLIDE).convert("RGB")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 30
    for tile, row in zip(np.load(tmp_path / "out" / "tiles.npy"), rows, strict=True):
        x, y = int(row["x"]), int(row["y"])
        np.testing.assert_array_equal(tile, image.crop((x, y, x + 128, y + 128)).reduce(2))
        assert row["mpp"] == "0.998"
    with Image.open(tmp_path / "out" / "slides" / "CMU-1-Small-Region.jpg") as picture:
        assert picture.width % 3 == 0
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    for private in (b"b414003d", b"12/29/09", b"1004486"):  # the slide's user, date and number
        assert private not in written


def twelve_slides(folder, n=12, seed=0):
    return [
        write_slide(folder / f"s{i:02}.tiff", island(512, 512, 64, 64, 256 + 128 * (i % 2), 320, i), levels=(1,))
        for i in range(n)
    ]


def test_the_folder_is_data_and_no_patient_is_on_both_sides(tmp_path, capsys):
    twelve_slides(tmp_path / "slides")
    table = tmp_path / "table.csv"
    lines = [f"s{i:02},p{i % 5},{'ab'[i % 2] if i < 11 else ''}" for i in range(12)]
    table.write_text("slide,patient,label\n" + "\n".join(lines) + "\n")
    out = tmp_path / "out"
    command = ["tile", str(tmp_path / "slides"), "--out", str(out), "--size", "64", "--mpp", "0.5"]
    assert main([*command, "--slides-csv", str(table)]) == 0
    printed = capsys.readouterr().out
    tiles = load_tiles(out, 64)
    patients = np.array([row["patient"] for row in rows_of(out)])
    assert not set(patients[tiles.train]) & set(patients[tiles.test])
    assert len(tiles.train) + len(tiles.test) == len(patients)
    assert set(tiles.labels) == {"a", "b", ""}
    assert (tiles.positions.slide == [row["slide"] for row in rows_of(out)]).all()
    for i in range(12):
        (line,) = (line.split() for line in printed.splitlines() if line.startswith(f"s{i:02} "))
        of_slide = np.flatnonzero(tiles.positions.slide == f"s{i:02}")
        assert line[4:] == ["0.5", "file"]
        assert [int(n) for n in line[2:4]] == [
            np.isin(of_slide, tiles.train).sum(),
            np.isin(of_slide, tiles.test).sum(),
        ]
    smaller = load_tiles(out, 32)
    assert set(smaller.positions.mpp) == {1.0}
    assert not list(out.rglob("*.part"))
    assert not (out / ".work").exists()


def test_the_notebook_cuts_the_embedded_slide(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    run_cells(ROOT / "tile_slides.ipynb", {"out": str(tmp_path / "out")})
    plt.close("all")
    assert "CMU-1-Small-Region: 157 tiles" in capsys.readouterr().out
    assert len(rows_of(tmp_path / "out")) == 157


def test_tiles_of_one_slide_are_split_by_rows_without_a_shared_pixel(tmp_path):
    image = island()
    image -= np.random.default_rng(0).integers(0, 3, image.shape, dtype=np.uint8)  # the tissue repeats every 384 px
    tile_slides([write_slide(tmp_path / "a.tiff", image)], tmp_path / "out", Tiling(0.5, 64, 32))
    tiles = load_tiles(tmp_path / "out", 64)
    y = tiles.positions.y
    assert y[tiles.train].max() + 64 <= y[tiles.test].min()
    assert 1 / 22 < len(tiles.test) / len(y) < 2 / 11


def test_pseudonyms_stay_and_their_key_lies_beside(tmp_path):
    slides = tmp_path / "clinic"
    twelve_slides(slides, 3)
    (tmp_path / "t.csv").write_text("slide,patient\ns00.tiff,Miller\ns01,Miller\ns02,Smith\n")
    out = tmp_path / "out"
    for _ in range(2):
        tile_slides([slides], out, Tiling(0.5, 64), tmp_path / "t.csv", pseudonyms=True)
        names = {(row["slide"], row["patient"]) for row in rows_of(out)}
        assert names == {("S001", "P001"), ("S002", "P001"), ("S003", "P002")}
    (slides / "s00.tiff").unlink()
    write_slide(slides / "a_new_one.tiff", island(512, 512, 64, 64, 256, 256))
    (tmp_path / "t.csv").write_text("slide,patient\na_new_one,Smith\ns01,Miller\ns02,Smith\n")
    tile_slides([slides], out, Tiling(0.5, 64), tmp_path / "t.csv", pseudonyms=True)
    assert {row["slide"] for row in rows_of(out)} == {"S002", "S003", "S004"}
    key = (tmp_path / "out_pseudonyms.csv").read_text()
    assert "S004,slide" in key
    assert "P001,patient Miller" in key
    for path in out.rglob("*"):
        assert not path.is_file() or not any(word in path.read_bytes() for word in (b"clinic", b"Miller", b"new_one"))


def test_no_two_slides_or_patients_have_one_pseudonym(tmp_path):
    """Also where a row was taken out of the key; a key that was edited to hold a name twice is refused."""
    slides, key = tmp_path / "slides", tmp_path / "out_pseudonyms.csv"
    twelve_slides(slides, 3)
    table = tmp_path / "t.csv"
    table.write_text("slide,patient\ns00,Miller\ns01,Smith\ns02,Weaver\n")
    tile_slides([slides], tmp_path / "out", Tiling(0.5, 64), table, pseudonyms=True)
    whole = key.read_text()
    key.write_text("".join(line for line in whole.splitlines(True) if not line.startswith(("S001,", "P002,"))))
    tile_slides([slides], tmp_path / "out", Tiling(0.5, 64), table, pseudonyms=True)
    assert sorted(key.read_text().splitlines()) == sorted(whole.splitlines())
    for name, other, message in (("S002", "S001", "have one name"), ("P002", "P001", "one pseudonym to two patients")):
        edited = whole.replace(name, other)
        key.write_text(edited)
        with pytest.raises(InputError, match=message):
            tile_slides([slides], tmp_path / "out", Tiling(0.5, 64), table, pseudonyms=True)
        assert key.read_text() == edited


def test_a_label_that_reads_like_a_patient_stays(tmp_path):
    twelve_slides(tmp_path / "slides", 2)
    (tmp_path / "t.csv").write_text("slide,patient,label\ns00,2,1\ns01,3,2\n")
    tile_slides([tmp_path / "slides"], tmp_path / "out", Tiling(0.5, 64), tmp_path / "t.csv", pseudonyms=True)
    assert {(row["slide"], row["patient"], row["label"]) for row in rows_of(tmp_path / "out")} == {
        ("S001", "P001", "1"), ("S002", "P002", "2"),
    }  # fmt: skip


@pytest.mark.parametrize("at", ["slide", "assembly"])
def test_stopped_half_way_it_goes_on_to_the_same_files(tmp_path, monkeypatch, at):
    slides = twelve_slides(tmp_path / "slides", 4)
    tile_slides(slides, tmp_path / "whole", Tiling(0.5, 64))
    out, opened = tmp_path / "out", []

    def full(*args):
        raise OSError(28, "No space left on device")

    def cut(slide, *args):
        for block in cut_tiles(slide, *args):
            yield block
            if "s02" in str(slide._filename):
                full()

    def replace(old, new):
        return full() if new == out / "tiles.npy" else os_replace(old, new)

    os_replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(tiler, "cut_tiles", cut) if at == "slide" else patch.setattr(tiler.os, "replace", replace)
        with pytest.raises(OSError, match=r"No space left on device(: '.*tiles\.npy')?"):
            tile_slides(slides, out, Tiling(0.5, 64))
    assert not (out / "tiles.csv").exists()
    with monkeypatch.context() as patch:
        patch.setattr(tiler, "open_slide", lambda path, *args: opened.append(path.stem) or open_slide(path, *args))
        tile_slides(slides, out, Tiling(0.5, 64))
    assert opened == (["s02", "s03"] if at == "slide" else [])
    for name in ("tiles.npy", "tiles.csv", "tiling.json", "slides/s03.jpg"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize("at", ["slide", "assembly"])
def test_killed_half_way_no_slide_before_is_read_again(tmp_path, monkeypatch, at):
    slides = twelve_slides(tmp_path / "slides", 3)
    tile_slides(slides, tmp_path / "whole", Tiling(0.5, 64))
    out, opened = tmp_path / "out", []

    def killed():
        cut, replace = tiler.cut_tiles, os.replace

        def cut_and_die(slide, *args):
            for block in cut(slide, *args):
                yield block
                if at == "slide" and (out / ".work" / "s01.json").exists():
                    os.kill(os.getpid(), signal.SIGKILL)

        def replace_and_die(old, new):
            replace(old, new)
            if at == "assembly" and new == out / "tiles.npy":
                os.kill(os.getpid(), signal.SIGKILL)

        tiler.cut_tiles, tiler.os.replace = cut_and_die, replace_and_die
        tile_slides(slides, out, Tiling(0.5, 64))

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (out / "tiles.csv").exists()
    monkeypatch.setattr(tiler, "open_slide", lambda path, *args: opened.append(path.stem) or open_slide(path, *args))
    tile_slides(slides, out, Tiling(0.5, 64))
    assert opened == (["s02"] if at == "slide" else [])
    for name in ("tiles.npy", "tiles.csv", "tiling.json", "slides/s02.jpg"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_stopped_before_it_is_told_what_was_asked_the_tiles_are_kept(tmp_path, monkeypatch):
    slides = twelve_slides(tmp_path / "slides", 2)
    tile_slides(slides, tmp_path / "whole", Tiling(0.5, 64))
    out, opened, write_json = tmp_path / "out", [], tiler.write_json

    def write_or_fill(path, value):
        if path.name == ABOUT:
            raise OSError(28, "No space left on device")
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(tiler, "write_json", write_or_fill)
        with pytest.raises(OSError, match="No space left"):
            tile_slides(slides, out, Tiling(0.5, 64))
    with monkeypatch.context() as patch:
        patch.setattr(tiler, "open_slide", lambda path, *args: opened.append(path.stem) or open_slide(path, *args))
        tile_slides(slides, out, Tiling(0.5, 64))
    assert opened == []
    for name in ("tiles.npy", "tiles.csv", "tiling.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_notes_that_could_not_be_removed_stand_for_no_tiles(tmp_path, monkeypatch):
    slides = twelve_slides(tmp_path / "slides", 3)
    tile_slides(slides, tmp_path / "whole", Tiling(0.5, 64))
    with monkeypatch.context() as patch:
        patch.setattr(tiler.shutil, "rmtree", lambda *args, **kwargs: None)
        tile_slides(slides[:2], tmp_path / "out", Tiling(0.5, 64))
    assert (tmp_path / "out" / ".work" / "s01.json").exists()
    tile_slides(slides, tmp_path / "out", Tiling(0.5, 64))
    for name in ("tiles.npy", "tiles.csv", "tiling.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_stopped_twice_with_other_slides_no_slide_has_the_tiles_of_another(tmp_path, monkeypatch):
    slides = twelve_slides(tmp_path / "slides", 4)

    def stop(slides):
        def cut(slide, *args):
            if "s03" in str(slide._filename):
                raise OSError(28, "No space left on device")
            yield from cut_tiles(slide, *args)

        with monkeypatch.context() as patch:
            patch.setattr(tiler, "cut_tiles", cut)
            with pytest.raises(OSError, match="No space left"):
                tile_slides(slides, tmp_path / "out", Tiling(0.5, 64))

    stop([slides[0], slides[3]])
    stop([slides[2], slides[3]])  # as many tiles as the first slide has, and in their place
    for out in ("whole", "out"):
        tile_slides([slides[0], slides[1]], tmp_path / out, Tiling(0.5, 64))
    assert (tmp_path / "out" / "tiles.npy").read_bytes() == (tmp_path / "whole" / "tiles.npy").read_bytes()


def test_stopped_half_way_with_other_slides_or_settings_nothing_old_is_kept(tmp_path, monkeypatch):
    """After the stop a slide in the middle is exchanged for one of as many tiles; another is left out, and stays so."""
    slides = twelve_slides(tmp_path / "slides", 4)
    blank = write_slide(tmp_path / "slides" / "s00b.tiff", np.full((512, 512, 3), GLASS, np.uint8))
    slides.insert(1, blank)
    out, opened = tmp_path / "out", []

    def stop(tiling):
        def cut(slide, *args):
            if "s03" in str(slide._filename):
                raise OSError(28, "No space left on device")
            yield from cut_tiles(slide, *args)

        with monkeypatch.context() as patch:
            patch.setattr(tiler, "cut_tiles", cut)
            with pytest.raises(OSError, match="No space left"):
                tile_slides(slides, out, tiling)

    stop(Tiling(0.5, 64))
    stop(Tiling(1.0, 64))  # other tiles overwrite the first ones
    stop(Tiling(0.5, 64))
    write_slide(slides[2], island(512, 512, 64, 64, 384, 320, 2), levels=(1,))
    with monkeypatch.context() as patch:
        patch.setattr(tiler, "open_slide", lambda path, *args: opened.append(path.stem) or open_slide(path, *args))
        tile_slides(slides, out, Tiling(0.5, 64))
    assert opened == ["s01", "s02", "s03"]
    tile_slides(slides, tmp_path / "whole", Tiling(0.5, 64))
    for name in ("tiles.npy", "tiles.csv", "tiling.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_done_slides_are_not_read_again_and_other_settings_begin_anew(tmp_path, monkeypatch):
    slides = twelve_slides(tmp_path / "slides", 2)
    tile_slides(slides, tmp_path / "out", Tiling(0.5, 64))
    with monkeypatch.context() as patch:
        patch.setattr(tiler, "open_slide", None)
        tile_slides(slides, tmp_path / "out", Tiling(0.5, 64))
    tile_slides(slides, tmp_path / "out", Tiling(1.0, 64))
    assert {row["mpp"] for row in rows_of(tmp_path / "out")} == {"1.0"}


@pytest.mark.parametrize("name", ["a.tiff", "a.mrxs", "a.zarr"])
def test_a_slide_that_another_took_the_place_of_is_noticed(name, tmp_path):
    """As by `cp -p` or rsync: another file of the same size and date."""
    slide = pixels = tmp_path / name
    if name != "a.tiff":
        pixels = tmp_path / ("a" if name == "a.mrxs" else name) / "data" / "0"
        pixels.parent.mkdir(parents=True)
    if name == "a.mrxs":
        slide.write_text("")
    pixels.write_text("one")
    before, status = tiler._state(SlideFile(slide, "a"), Tiling()), pixels.stat()
    assert tiler._state(SlideFile(slide, "a"), Tiling()) == before
    while pixels.stat().st_ctime_ns == status.st_ctime_ns:  # until the file system's clock has moved on
        pixels.write_text("two")
        os.utime(pixels, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (pixels.stat().st_size, pixels.stat().st_mtime_ns) == (3, status.st_mtime_ns)
    assert tiler._state(SlideFile(slide, "a"), Tiling()) != before


def truncated(folder):
    path = write_slide(folder / "cut.tiff", tissue(1024, 1024))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def text(folder):
    (folder / "a.svs").write_text("no slide")
    return folder / "a.svs"


def without_pages(folder):
    (folder / "empty.svs").write_bytes(b"II*\0" + bytes(4))
    return folder / "empty.svs"


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda f: f / "nowhere.svs", [], "There is no slide or folder of slides at"),
        (lambda f: f, [], "holds no slide"),
        (text, [], "a.svs cannot be read as a slide"),
        (truncated, ["--mpp", "0.5"], "cut.tiff cannot be read as a slide"),
        (without_pages, [], "empty.svs cannot be read as a slide (it holds no image)"),
        (lambda f: write_slide(f / "a.tiff", tissue(512, 512), mpp=None), [], "does not tell its microns per pixel"),
        (lambda f: write_slide(f / "a.tiff", tissue(512, 512)), ["--mpp", "0.25"], "scanned at 0.5 um/px"),
        (lambda f: write_slide(f / "a.tiff", tissue(512, 512)), ["--mpp", "40", "--size", "1024"], "has no level near"),
        (lambda f: write_slide(f / "a.tiff", np.full((512, 512, 3), GLASS, np.uint8)), [], "shows no tissue"),
        (lambda f: write_slide(f / "a.tiff", tissue(64, 64)), [], "64 x 64 px, which is smaller than one tile"),
        (lambda f: write_slide(f / "a.tiff", tissue(512, 512)), ["--min-sharpness", "1e6"], "no tile as sharp as"),
        (lambda f: write_slide(f / "b" / "a.tiff", island()) and write_slide(f / "a.tiff", island()).parent, [],
         "have one name"),
        (lambda f: SLIDE, ["--size", "0"], "size must be above 15"),
        (lambda f: SLIDE, ["--min-tissue", "2"], "min_tissue must be above 0 and at most 1"),
        (lambda f: SLIDE, ["--mpp", "nan"], "mpp must be above 0"),
        (lambda f: SLIDE, ["--slides-csv", "/nowhere.csv"], "There is no table at"),
    ],
)  # fmt: skip
def test_bad_slides_are_one_sentence(tmp_path, capsys, make, options, message):
    folder = tmp_path / "slides"
    folder.mkdir()
    assert main(["tile", str(make(folder)), "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "tiles.csv").exists()


def test_a_table_that_misses_a_slide_is_refused(tmp_path, capsys):
    """A typo would else put a patient on both sides of the split."""
    twelve_slides(tmp_path / "slides", 3)
    (tmp_path / "t.csv").write_text("slide,patient\ns00,p0\ns01.tiff,p1\ns2,p1\n")
    command = [
        "tile",
        str(tmp_path / "slides"),
        "--out",
        str(tmp_path / "out"),
        "--slides-csv",
        str(tmp_path / "t.csv"),
    ]
    assert main([*command, "--size", "64", "--mpp", "0.5"]) == 2
    assert "gives no patient for s02.tiff, but others that are not there, s2," in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("slide,patient,label\ns00,,a\ns01,,b\n")  # without patients no row is needed
    assert main(command) == 0


def test_a_slide_is_never_replaced_by_its_picture(tmp_path, capsys):
    (tmp_path / "slides").mkdir()
    Image.fromarray(island()).save(tmp_path / "slides" / "a.jpg")
    before = (tmp_path / "slides" / "a.jpg").read_bytes()
    command = ["tile", str(tmp_path / "slides" / "a.jpg"), "--out", str(tmp_path), "--mpp-of-slide", "0.5"]
    assert main([*command, "--mpp", "0.5", "--size", "64"]) == 2
    assert "lies where the slides' pictures are written" in capsys.readouterr().err
    assert (tmp_path / "slides" / "a.jpg").read_bytes() == before


@pytest.mark.parametrize("most", [None, 1024 * 1536 // 2 - 1])
def test_pictures_of_others_beside_those_of_the_slides_stay(tmp_path, monkeypatch, most):
    """most: half as many pixels as Pillow opens."""
    others = Image.fromarray(island())
    (tmp_path / "out" / "slides").mkdir(parents=True)
    others.save(tmp_path / "out" / "slides" / "other.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    twelve_slides(tmp_path / "slides", 1)
    assert main(["tile", str(tmp_path / "slides"), "--out", str(tmp_path / "out"), "--size", "64", "--mpp", "0.5"]) == 0
    assert {path.name for path in (tmp_path / "out" / "slides").iterdir()} == {"other.jpg", "s00.jpg"}


def test_tiles_of_another_origin_are_never_overwritten(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    np.save(tmp_path / "out" / "tiles.npy", np.arange(9))
    twelve_slides(tmp_path / "slides", 1)
    command = ["tile", str(tmp_path / "slides"), "--out", str(tmp_path / "out"), "--size", "64", "--mpp", "0.5"]
    assert main(command) == 2
    assert "tiles.npy was not made by this command" in capsys.readouterr().err
    assert np.load(tmp_path / "out" / "tiles.npy").tolist() == list(range(9))


def test_names_that_are_hidden_later_are_hidden_everywhere(tmp_path):
    twelve_slides(tmp_path / "slides", 2)
    command = ["tile", str(tmp_path / "slides"), "--out", str(tmp_path / "out"), "--size", "64", "--mpp", "0.5"]
    assert main(command) == 0
    assert main([*command, "--pseudonyms"]) == 0
    assert {path.name for path in (tmp_path / "out" / "slides").iterdir()} == {"S001.jpg", "S002.jpg"}
    assert not any(b"s00" in path.read_bytes() for path in (tmp_path / "out").rglob("*.csv"))


def test_a_bad_slide_among_good_ones_is_left_out_by_name(tmp_path, capsys):
    folder = tmp_path / "slides"
    twelve_slides(folder, 2)
    truncated(folder)
    command = ["tile", str(folder), "--out", str(tmp_path / "out"), "--mpp", "0.5", "--size", "64"]
    assert main(command) == 3
    assert "cut.tiff cannot be read as a slide" in capsys.readouterr().out
    assert main(command) == 3  # the second time nothing is cut
    assert main([*command, "--allow-missing"]) == 0
    assert "cut.tiff cannot be read as a slide" in capsys.readouterr().out
    assert {row["slide"] for row in rows_of(tmp_path / "out")} == {"s00", "s01"}


def test_a_slide_that_fails_half_way_leaves_no_tile(tmp_path, monkeypatch, capsys):
    twelve_slides(tmp_path / "slides", 3)
    read, calls = JpegSlide.read_region, []

    def failing(self, *args):
        calls.append("s01" in self._file.name)
        if calls[-1] and sum(calls) == 2:  # the first read is of the thumbnail
            raise openslide.OpenSlideError("read error")
        return read(self, *args)

    monkeypatch.setattr(JpegSlide, "read_region", failing)
    out = tmp_path / "out"
    assert main(["tile", str(tmp_path / "slides"), "--out", str(out), "--mpp", "0.5", "--size", "64"]) == 3
    assert "left out: " in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("s01 "))
    rows = rows_of(out)
    assert {row["slide"] for row in rows} == {"s00", "s02"}
    assert len(np.load(out / "tiles.npy")) == len(rows)
    assert sorted(path.stem for path in (out / "slides").iterdir()) == ["s00", "s02"]


def test_where_nothing_is_left_every_reason_is_told(tmp_path, capsys):
    twelve_slides(tmp_path, 2)
    out = ["--out", str(tmp_path / "out"), "--size", "64"]
    assert main(["tile", str(tmp_path), *out, "--mpp", "0.1"]) == 2
    lines = capsys.readouterr().out.splitlines()
    for name in ("s00", "s01"):
        assert any(line.startswith(f"{name} ") and "would be invented" in line for line in lines)
    assert main(["tile", str(tmp_path / "s00.tiff"), *out, "--mpp", "0.5", "--min-sharpness", "1e6"]) == 2
    said = re.search(r"they are (\S+) to (\S+) sharp, half of them above (\S+)\. Ask", capsys.readouterr().err)
    least, most, middle = map(float, said.groups())
    assert 0 < least <= middle <= most < 1e6


def test_plain_images_need_the_scale_given(tmp_path):
    Image.fromarray(island()).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="--mpp-of-slide"):
        tile_slides([tmp_path / "a.png"], tmp_path / "out", Tiling(1, 64))
    tile_slides([tmp_path / "a.png"], tmp_path / "out", Tiling(1, 64, mpp_of_slide=0.5))
    row, tile = rows_of(tmp_path / "out")[0], np.load(tmp_path / "out" / "tiles.npy")[0]
    part = island()[int(row["y"]) :, int(row["x"]) :][:128, :128]
    np.testing.assert_array_equal(tile, Image.fromarray(part).reduce(2))


def test_a_table_that_is_not_the_tiles_is_refused(tmp_path):
    tile_slides(twelve_slides(tmp_path / "slides", 2), tmp_path / "out", Tiling(0.5, 64))
    whole = (tmp_path / "out" / "tiles.csv").read_text()
    (tmp_path / "out" / "tiles.csv").write_text(whole[: whole.rindex("s01")])
    with pytest.raises(InputError, match=r"rows for \d+ tiles: cut the tiles anew"):
        load_tiles(tmp_path / "out", 64)
    (tmp_path / "out" / "tiles.csv").write_text(whole.replace("side", "edge"))
    with pytest.raises(InputError, match=r"is not the table of tiles\.npy"):
        load_tiles(tmp_path / "out", 64)
    shutil.rmtree(tmp_path / "out" / "slides")
    (tmp_path / "out" / "tiles.csv").write_text(whole)
    load_tiles(tmp_path / "out", 64)


@pytest.mark.parametrize(
    ("separator", "encoding", "names"),
    [(";", "cp1252", ("S00", "s01.TIFF", "ü.tiff")), ("\t", "utf-16", ("folder/s00.tiff", "C:\\x\\s01", "u\u0308"))],
)
def test_the_table_of_slides_is_read_as_people_have_it(tmp_path, separator, encoding, names):
    """Names with and without folder and suffix, capitals, and a letter of one character on the disk, of two here."""
    folder = tmp_path / "slides"
    for seed, name in enumerate(("S00.tiff" if names[0] == "S00" else "s00.tiff", "s01.tiff", "ü.tiff")):
        write_slide(folder / name, island(512, 512, 64, 64, 256, 320, seed), levels=(1,))
    rows = [["Slide", "Patient"], ["", ""], *zip(names, ("p1", "Müller", "Mu\u0308ller"), strict=True)]
    text = "\r\n".join(separator.join(row) for row in rows)
    (tmp_path / "t.csv").write_bytes(text.encode(encoding) if encoding != "cp1252" else
                                     text.replace("u\u0308", "ü").encode(encoding))  # fmt: skip
    tile_slides([folder], tmp_path / "out", Tiling(0.5, 64), tmp_path / "t.csv")
    of = {row["slide"].lower(): row["patient"] for row in rows_of(tmp_path / "out")}
    assert of == {"s00": "p1", "s01": "Müller", "ü": "Müller"}


def test_a_table_of_tiles_that_a_spreadsheet_saved_is_the_same_table(tmp_path):
    tile_slides(twelve_slides(tmp_path / "slides", 2), tmp_path / "out", Tiling(0.5, 64))
    before = load_tiles(tmp_path / "out", 64).positions
    table = tmp_path / "out" / "tiles.csv"
    whole = table.read_text()
    table.write_bytes(whole.replace(",", ";").replace(".", ",").replace("\n", "\r\n").encode("utf-16"))
    assert (load_tiles(tmp_path / "out", 64).positions == before).all()
    for name in ("../../s00", "/tmp/s00", ".."):
        table.write_text(whole.replace("s00", name))
        with pytest.raises(InputError, match="no file should bear"):
            load_tiles(tmp_path / "out", 64)


def test_a_slide_whose_name_reads_like_a_formula(tmp_path):
    image = island(512, 512, 64, 64, 256, 320)
    tile_slides([write_slide(tmp_path / '=1+1;@x, "b".tiff', image)], tmp_path / "out", Tiling(0.5, 32))
    assert {row["slide"] for row in rows_of(tmp_path / "out")} == {"'=1+1;'@x, \"b\""}
    assert set(load_tiles(tmp_path / "out", 32).positions.slide) == {'=1+1;@x, "b"'}


def test_options_decide_what_is_tissue_and_all_tissue_is_doubted(tmp_path, capsys):
    image = np.full((512, 512, 3), GLASS, np.uint8)
    image[64:320, 64:384] = tissue(256, 320)
    image[384:512] = (110, 40, 150)  # a broad stroke of a purple pen
    slide = str(write_slide(tmp_path / "a.tiff", image))
    command = ["tile", slide, "--size", "64", "--mpp", "0.5", "--out"]
    counts = {}
    for name, more in {"on": [], "off": ["--pens", "off"], "few": ["--tissue-threshold", "60"]}.items():
        assert main([*command, str(tmp_path / name), *more]) == 0
        counts[name] = len(rows_of(tmp_path / name))
    assert counts["off"] == counts["on"] + 16
    assert counts["few"] < counts["on"]
    assert "up to its border" not in capsys.readouterr().out
    whole = str(write_slide(tmp_path / "b.tiff", tissue(512, 512)))
    assert main(["tile", whole, "--size", "64", "--mpp", "0.5", "--out", str(tmp_path / "b")]) == 0
    assert "b: nearly all of it is taken for tissue, up to its border" in capsys.readouterr().out


def test_what_was_made_before_is_no_slide(tmp_path, capsys):
    """The pictures of an earlier cut, and those of a map, lie below the folder in which slides are looked for."""
    write_slide(tmp_path / "a.tiff", island())
    options = ["--size", "64", "--mpp", "0.5", "--out"]
    assert main(["tile", str(tmp_path), *options, str(tmp_path / "first")]) == 0
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "made_from.json").write_text("{}")
    Image.fromarray(island()).save(tmp_path / "maps" / "a_map.png")
    assert main(["tile", str(tmp_path), *options, str(tmp_path / "second")]) == 0
    assert f"2 images below {tmp_path} were made by this project" in capsys.readouterr().out
    assert {row["slide"] for row in rows_of(tmp_path / "second")} == {"a"}
    assert main(["tile", str(tmp_path / "first"), *options, str(tmp_path / "third")]) == 2
    assert "1 images below" in capsys.readouterr().err


def test_a_dry_run_keeps_no_key(tmp_path):
    command = ["tile", str(write_slide(tmp_path / "a.tiff", island())), "--size", "64", "--mpp", "0.5", "--pseudonyms"]
    assert main([*command, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert not (tmp_path / "out_pseudonyms.csv").exists()
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out_pseudonyms.csv").exists()


def test_a_change_of_any_file_of_a_slide_is_seen(tmp_path):
    """Of a Zarr any chunk, of a DICOM series any of its files, of MRXS what lies in its folder."""
    for name, files in (
        ("a.zarr", ["a.zarr/0/0"]),
        ("b/1.dcm", ["b/1.dcm", "b/2.dcm"]),
        ("c.mrxs", ["c.mrxs", "c/1.dat"]),
    ):
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes(b"x")
        slide = SlideFile(tmp_path / name, "a")
        before = tiler._state(slide, Tiling())
        assert tiler._state(slide, Tiling()) == before
        (tmp_path / files[-1]).write_bytes(b"xx")
        assert tiler._state(slide, Tiling()) != before


def test_a_dry_run_draws_pictures_and_cuts_nothing(tmp_path, capsys):
    slide = str(write_slide(tmp_path / "a.tiff", island()))
    glass = str(write_slide(tmp_path / "b.tiff", np.full((512, 512, 3), GLASS, np.uint8)))
    out = tmp_path / "out"
    command = ["tile", slide, glass, "--size", "64", "--mpp", "0.5", "--out", str(out)]
    assert main([*command, "--dry-run"]) == 3
    printed = capsys.readouterr().out
    assert [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()] == ["slides/a.jpg"]
    assert f"left out: {glass} shows no tissue" in printed
    before = (out / "slides" / "a.jpg").read_bytes()
    assert main([*command, "--allow-missing"]) == 0
    count = len(rows_of(out))
    assert f"a: {count} tiles of 0.500 um/px" in printed
    assert f"{count} tiles would take {count * 64 * 64 * 3 / 1e6:,.1f} MB" in printed
    assert (out / "slides" / "a.jpg").read_bytes() == before
    assert main([*command, "--dry-run"]) == 2


def test_a_slide_for_which_a_package_is_missing_counts_once_that_is_installed(tmp_path, capsys, monkeypatch):
    """It is no fault of the slide, which is not kept as one that cannot be read."""
    for seed, name in enumerate(("a.tiff", "b.tiff")):
        write_slide(tmp_path / "slides" / name, island(512, 512, 64, 64, 256, 320, seed), levels=(1,))
    command = ["tile", str(tmp_path / "slides"), "--size", "64", "--mpp", "0.5", "--out", str(tmp_path / "out")]
    plan = tiler.plan_tiles

    def without_package(slide, path, *others):
        if path.name == "a.tiff":
            raise MissingPackageError("The package zarr is not installed here: run pip install.")
        return plan(slide, path, *others)

    monkeypatch.setattr(tiler, "plan_tiles", without_package)
    for options in (["--dry-run"], []):
        assert main([*command, *options]) == 2
        assert "The package zarr is not installed here" in capsys.readouterr().err
    monkeypatch.setattr(tiler, "plan_tiles", plan)
    assert main(command) == 0
    assert {row["slide"] for row in rows_of(tmp_path / "out")} == {"a", "b"}


def test_a_dry_run_names_what_it_leaves_out_and_says_the_split(tmp_path, capsys):
    """A file twice, another type, a label, pages: the same words and exit status as of the command itself."""
    folder = tmp_path / "slides"
    for seed, name in enumerate(("a.tiff", "b.tiff")):
        write_slide(folder / name, island(512, 512, 64, 64, 256, 320, seed), levels=(1,))
    shutil.copy(folder / "b.tiff", folder / "c.tiff")
    (folder / "d.bmp").write_bytes(b"x")
    Image.fromarray(tissue(100, 100)).save(folder / "a_label.png")
    command = ["tile", str(folder), "--size", "64", "--mpp", "0.5", "--out", str(tmp_path / "out")]
    printed = []
    for options in (["--dry-run"], []):
        assert main([*command, *options]) == 3
        printed.append(capsys.readouterr().out.partition("\nslide ")[2])
    assert printed[1].startswith(printed[0])
    for words in ("c  ", "it is the same file as b", "d.bmp is of a type that is not read", "a_label.png is no slide"):
        assert words in printed[0]
    assert main(["tile", str(write_slide(tmp_path / "g.tiff", np.full((512, 512, 3), GLASS, np.uint8))), "--dry-run",
                 "--out", str(tmp_path / "out_2")]) == 2  # fmt: skip
