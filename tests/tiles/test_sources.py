"""Folders, archives and labels as users have them."""

import io
import struct
import zipfile
import zlib
from pathlib import PurePosixPath

import numpy as np
import pytest
from PIL import Image

from pfiles.errors import InputError
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.files import decode_image
from pfiles.tiles.pixels import as_array
from pfiles.tiles.split import split_by_folder, split_by_slide
from tests.conftest import make_tiles, png, shared


def lay_out(folder, names, tiles=None):
    tiles = make_tiles(len(names)) if tiles is None else tiles
    for name, tile in zip(names, tiles, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(tile))
    return folder


def pack(path, names, tiles, **more):
    with zipfile.ZipFile(path, "w") as archive:
        for name, tile in zip(names, tiles, strict=True):
            archive.writestr(name, png(tile))
        for name, text in more.items():
            archive.writestr(name, text)
    return path


def sides(names, tiles):
    slides = [name.split("/")[0] for name in names]
    return {slides[i] for i in tiles.train}, {slides[i] for i in tiles.test}


def test_linked_folders_and_files_are_read_once(tmp_path, tiles):
    """Slides that lie elsewhere, a file that lies elsewhere, and links to what is there already or leads upwards."""
    lay_out(tmp_path / "disk", [f"s{i % 2}/{i:02}.png" for i in range(20)], tiles[:20])
    data = lay_out(tmp_path / "data", [f"own/{i:02}.png" for i in range(20, 29)], tiles[20:29])
    lay_out(tmp_path, ["elsewhere.png"], tiles[29:])
    (data / "s0").symlink_to("../disk/s0")
    (data / "s1").symlink_to(tmp_path / "disk" / "s1", target_is_directory=True)
    (data / "own" / "29.png").symlink_to(tmp_path / "elsewhere.png")
    (data / "again").symlink_to("own")
    (data / "own" / "copy.png").symlink_to("20.png")
    (data / "own" / "up").symlink_to("..")
    (data / "out").symlink_to("../..")
    images = load_tiles(data, 48).images
    np.testing.assert_array_equal(as_array(images), np.concatenate([tiles[20:30], tiles[0:20:2], tiles[1:20:2]]))


def test_a_link_to_nothing_is_refused_by_name(tmp_path):
    data = lay_out(tmp_path, [f"{i:02}.png" for i in range(30)])
    (data / "s7").symlink_to("unmounted")
    with pytest.raises(InputError, match="s7 is a link to a file that is not there"):
        load_tiles(data, 48)


@pytest.mark.parametrize("packed", [False, True])
def test_slides_are_top_level_folders_however_deep_their_tiles_lie(tmp_path, packed):
    """At every place where the cut may fall: slides have tiles of their own, regions, and regions of regions."""
    for last in range(1, 8):
        below = ["", "a/", "b/", "b/deep/", "c/"]
        names = [f"s{s:02}/{below[i % 5]}{i}.png" for s in range(11) for i in range(last if s == 10 else 5)]
        names.sort(key=lambda name: name.split("/"))
        data = tmp_path / f"{last}.zip"
        images = make_tiles(len(names))
        data = pack(data, names, images) if packed else lay_out(tmp_path / f"{last}", names, images)
        train, test = sides(names, load_tiles(data, 48))
        assert not train & test
        assert len(train | test) == 11


def test_a_folder_around_all_slides_does_not_hide_them():
    names = sorted(f"wrapped/s{s:02}/{region}/{i}.png" for s in range(12) for region in "ab" for i in range(3))
    test, said = split_by_folder([PurePosixPath(name) for name in names])
    assert {name.split("/")[1] for name, is_test in zip(names, test, strict=True) if is_test} == {"s11"}
    assert said == "The last 1 of 12 folders are the test set."


def test_regions_of_few_folders_are_split_with_a_warning():
    names = sorted(f"s{s}/{region}/{i}.png" for s in range(4) for region in "abc" for i in range(3))
    test, said = split_by_folder([PurePosixPath(name) for name in names])
    assert test.tolist() == [False] * 33 + [True] * 3
    assert "They lie in 4 folders" in said
    assert "on both sides" in split_by_folder([PurePosixPath(f"s{i % 4}/{i}.png") for i in range(40)])[1]


def test_a_lopsided_split_is_told_and_mended(tmp_path, capsys):
    """11 slides, of which the last holds 180 of 200 tiles: 9 slides of 2 tiles are the nearest to an eleventh, 18.2."""
    names = [f"s{s:02}/{i:03}.png" for s in range(11) for i in range(180 if s == 10 else 2)]
    tiles = load_tiles(lay_out(tmp_path, names), 48)
    train, test = sides(names, tiles)
    assert (len(tiles.test), train & test) == (18, set())
    assert test == {f"s{s:02}" for s in range(1, 10)}
    assert "hold 180 of 200 tiles" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(20))
def test_the_nearest_whole_slides_agree_with_trying_all(seed):
    rng = np.random.default_rng(seed)
    sizes = np.append(rng.integers(1, 30, 10), 500)
    slides = [f"s{i:02}" for i, size in enumerate(sizes) for _ in range(size)]
    test, _ = split_by_slide(slides, "slides")
    subsets = (np.arange(1, 2**11 - 1)[:, None] >> np.arange(11) & 1) @ sizes
    assert abs(test.sum() - len(slides) / 11) == pytest.approx(np.abs(subsets - len(slides) / 11).min())


def test_a_split_that_cannot_be_mended_is_told():
    test, said = split_by_slide(["a"] * 10 + ["b"] * 90, "slides")
    assert test.sum() == 10
    test, said = split_by_slide(["a"] * 60 + ["b"] * 40, "slides")
    assert test.sum() == 40
    assert "hold 40 of 100 tiles" in said
    assert "no other choice of whole ones comes nearer" in said


def png_16_bit(image):
    """RGB (H, W, 3) uint16 as PNG, which Pillow cannot write."""
    height, width = image.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*chunks, (b"IEND", b"")]
    )


def test_16_bit_images_are_refused():
    tifffile = pytest.importorskip("tifffile")
    twelve_bit = make_tiles(1)[0].astype(np.uint16) * 16
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, twelve_bit, photometric="rgb")
    for name, content in (("a.png", png_16_bit(twelve_bit)), ("a.tif", buffer.getvalue())):
        with pytest.raises(InputError, match=f"{name}.*(16 bits per channel|cannot be read)"):
            decode_image(name, content)
    with pytest.raises(InputError, match="12 bits"):
        decode_image("a.png", png_16_bit(twelve_bit))


def test_windows_names_in_a_zip_keep_their_folders(tmp_path):
    names = [f"s{s:02}\\{i}.png" for s in range(11) for i in range(6 if s else 2)]
    tiles = load_tiles(pack(tmp_path / "a.zip", names, make_tiles(len(names))), 48)
    train, test = sides([name.replace("\\", "/") for name in names], tiles)
    assert not train & test
    assert len(tiles.test) == 6


@pytest.mark.parametrize("name", ["../x.png", "s/../../x.png", "..\\x.png"])
def test_members_outside_the_packed_folder_are_refused(tmp_path, name, tiles):
    names = [f"{i}.png" for i in range(29)] + [name]
    with pytest.raises(InputError, match=r"x\.png, which lies outside"):
        load_tiles(pack(tmp_path / "a.zip", names, tiles), 48)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, tiles, monkeypatch):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, tile in enumerate(tiles):
            archive.writestr(f"{i:02}.png", png(tile))
        with archive.open("bomb.png", "w") as file:
            for _ in range(130):
                file.write(bytes(2**20))
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    with pytest.raises(InputError, match=r"bomb\.png, which would unpack to 130 MB"):
        load_tiles(path, 48)


def test_suffixes_in_capitals(tmp_path, tiles):
    np.save(tmp_path / "a.npy", tiles)
    (tmp_path / "a.npy").rename(tmp_path / "A.NPY")
    pack(tmp_path / "A.ZIP", [f"{i:02}.PNG" for i in range(30)], tiles)
    for name in ("A.NPY", "A.ZIP"):
        np.testing.assert_array_equal(as_array(load_tiles(tmp_path / name, 48).images), tiles)


@pytest.mark.parametrize(
    ("distinct", "k", "message"),
    [
        (28, 28, "only 28 of 28 training tiles differ.*at most 27 clusters"),
        (5, 7, "only 5 of 28 training tiles differ.*at most 4 clusters"),
        (1, 2, "only 1 of 28 training tiles differ.*give other tiles"),
    ],
)
def test_too_few_different_tiles_for_the_clusters(tmp_path, tiles, distinct, k, message):
    np.save(tmp_path / "a.npy", tiles[np.arange(30) % distinct])
    with pytest.raises(InputError, match=message):
        load_tiles(tmp_path / "a.npy", 48, n_clusters=k)
    if distinct > 2:
        load_tiles(tmp_path / "a.npy", 48, n_clusters=distinct - 1)


LABELS = "file,label\na/00.png,skin\nb\\00.png,gut\n01.png,skin\n"


@pytest.mark.parametrize("packed", [False, True])
def test_labels_are_found_by_path_or_its_end(tmp_path, packed):
    names = sorted(["a/00.png", "b/00.png", "a/01.png", *(f"b/{i:02}.png" for i in range(2, 30))])
    if packed:
        data = pack(tmp_path / "data.zip", names, make_tiles(len(names)), **{"my_labels.csv": LABELS})
    else:
        data = lay_out(tmp_path / "data", names)
        (data / "labels.csv").write_text(LABELS, encoding="utf-8-sig")
    tiles = load_tiles(data, 48)
    assert tiles.labels.tolist() == ["skin", "skin", "gut", *[""] * 28]
    assert load_tiles(lay_out(tmp_path / "bare", names), 48).labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\n00.png,a\n", "must have the columns file and label"),
        ("", "must have the columns file and label"),
        ("file,label\n99.png,a\n", "names 1 files, but none is one of the tiles"),
        ("file,label\n00.png,a\n00.png,b\n", "calls 00.png both 'a' and 'b'"),
        ("file,label\n01.png,a\n", "names 01.png, which may be 01.png or s/01.png"),
        ("file,label\n00.png,\xe9\n".encode("latin-1"), "cannot be read as a CSV file"),
    ],
)
def test_bad_labels(tmp_path, text, message):
    data = lay_out(tmp_path, [f"{i:02}.png" for i in range(30)] + ["s/01.png"])
    (data / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"labels.csv {message}"):
        load_tiles(data, 48)


def test_two_files_of_labels(tmp_path):
    data = lay_out(tmp_path, [f"{i:02}.png" for i in range(30)])
    (data / "labels.csv").write_text("file,label\n00.png,a\n")
    (data / "b_labels.csv").write_text("file,label\n00.png,a\n")
    with pytest.raises(InputError, match=r"both b_labels\.csv and labels\.csv"):
        load_tiles(data, 48)


def test_labels_of_real_tissue():
    tiles = load_tiles(shared("data/lung_he_5500.zip"), 128)
    np.testing.assert_array_equal(tiles.test, np.arange(5000, 5500))
    with zipfile.ZipFile(shared("data/lung_he_5500.zip")) as archive:
        rows = [line.split(",") for line in archive.read("lung_he_labels.csv").decode().split()[1:]]
    assert tiles.labels.tolist() == [row[1] for row in sorted(rows)]
    assert {row[3] for row in sorted(rows)[5000:]} == {"test"}


def test_alpha_and_palette_stay_allowed():
    tile = make_tiles(1)[0]
    buffer = io.BytesIO()
    Image.fromarray(tile).convert("P", palette=Image.Palette.ADAPTIVE).save(buffer, "PNG")
    assert decode_image("a.png", buffer.getvalue()).shape == (3, 48, 48)
