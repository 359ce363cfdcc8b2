"""Folders, archives, arrays and labels as users have them."""

import contextlib
import io
import zipfile

import numpy as np
import pytest

from pfiles.errors import InputError
from pfiles.tiles import sources
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.pixels import as_array, as_tensor
from tests.conftest import make_tiles, png, shared, write
from tests.tiles.conftest import encode, lay_out, pack, sides, write_folder


def test_linked_folders_and_files_are_read_once(tmp_path, tiles, capsys):
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
    assert (
        f"1 of the links in {data} lead to files that are there already: each counts once." in capsys.readouterr().out
    )
    np.testing.assert_array_equal(as_array(images), np.concatenate([tiles[20:30], tiles[0:20:2], tiles[1:20:2]]))


def test_a_link_to_nothing_is_refused_by_name(tmp_path):
    data = lay_out(tmp_path, [f"{i:02}.png" for i in range(30)])
    (data / "s7").symlink_to("unmounted")
    with pytest.raises(InputError, match="s7 is a link to a file that is not there"):
        load_tiles(data, 48)


def test_windows_names_in_a_zip_keep_their_folders(tmp_path):
    names = [f"s{s:02}\\{i}.png" for s in range(11) for i in range(6 if s else 2)]
    tiles = load_tiles(pack(tmp_path / "a.zip", names, make_tiles(len(names))), 48)
    train, test = sides([name.replace("\\", "/") for name in names], tiles)
    assert not train & test
    assert len(tiles.test) == 6


def test_a_tile_that_a_zip_holds_twice_is_refused(tmp_path, tiles):
    names = [f"a/{i}.png" for i in range(29)] + ["a\\0.png"]
    with pytest.raises(InputError, match=r"holds a/0\.png twice"):
        load_tiles(pack(tmp_path / "a.zip", names, tiles), 48)


@pytest.mark.parametrize("name", ["../x.png", "s/../../x.png", "..\\x.png"])
def test_members_outside_the_packed_folder_are_refused(tmp_path, name, tiles):
    names = [f"{i}.png" for i in range(29)] + [name]
    with pytest.raises(InputError, match=r"x\.png, which lies outside"):
        load_tiles(pack(tmp_path / "a.zip", names, tiles), 48)


@pytest.mark.slow
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
        (b"\x89PNG\r\n\0\0", "cannot be read as a table"),
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


@pytest.mark.slow
def test_labels_of_real_tissue():
    tiles = load_tiles(shared("data/lung_he_5500.zip"), 128)
    np.testing.assert_array_equal(tiles.test, np.arange(5000, 5500))
    with zipfile.ZipFile(shared("data/lung_he_5500.zip")) as archive:
        rows = [line.split(",") for line in archive.read("lung_he_labels.csv").decode().split()[1:]]
    assert tiles.labels.tolist() == [row[1] for row in sorted(rows)]
    assert {row[3] for row in sorted(rows)[5000:]} == {"test"}


def test_folder_and_zip_are_read_in_sorted_order(tmp_path, tiles):
    expected = write_folder(tmp_path / "tiles", tiles)
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        for path in (tmp_path / "tiles").rglob("*"):
            archive.write(path, path.relative_to(tmp_path))
    for source in ("tiles", "tiles.zip"):
        np.testing.assert_array_equal(as_array(load_tiles(tmp_path / source, 48).images), expected)


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "JPEG"), ("JPEG", "JPEG"), ("tif", "TIFF"), ("tiff", "TIFF")])
def test_other_image_formats(tmp_path, tiles, suffix, kind):
    for i, tile in enumerate(tiles):
        (tmp_path / f"{i:02}.{suffix}").write_bytes(encode(tile, kind))
    images = load_tiles(tmp_path, 48).images
    assert images.shape == (30, 3, 48, 48)
    assert (images.int() - as_tensor(tiles)).abs().float().mean() < 30


def test_alpha_is_dropped(tmp_path, tiles):
    for i, tile in enumerate(tiles):
        alpha = np.full((48, 48, 1), 255, np.uint8)
        (tmp_path / f"{i:02}.png").write_bytes(encode(np.concatenate([tile, alpha], axis=2)))
    np.testing.assert_array_equal(as_array(load_tiles(tmp_path, 48).images), tiles)


def test_published_layout_uses_slot_0_and_stays_on_disk(tmp_path, tiles):
    stains = np.stack([tiles, 255 - tiles], axis=1)  # (N, 2, 48, 48, 3)
    np.save(tmp_path / "stains.npy", stains)
    images = load_tiles(tmp_path / "stains.npy", 48).images
    np.testing.assert_array_equal(as_array(images), tiles)
    np.load(tmp_path / "stains.npy", mmap_mode="r+")[3, 0] = 7
    assert (images[3] == 7).all()


def bad_npy(tmp_path, array=None, content=None):
    path = tmp_path / "bad.npy"
    if content is None:
        np.save(path, array, allow_pickle=True)
    else:
        path.write_bytes(content)
    return path


def renamed_npz(tmp_path):
    np.savez(tmp_path / "a.npz", make_tiles(30))
    return (tmp_path / "a.npz").rename(tmp_path / "bad.npy")


def npy_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nowhere", "There is no data at"),
        (lambda p: bad_npy(p, make_tiles(30).astype(np.float32)), "must hold uint8 tiles.*float32"),
        (lambda p: bad_npy(p, make_tiles(30)[..., 0]), r"shape \(30, 48, 48\)"),
        (lambda p: bad_npy(p, make_tiles(30)[:, :, :40]), r"shape \(30, 48, 40, 3\)"),
        (lambda p: bad_npy(p, make_tiles(30)[:0]), r"shape \(0, 48, 48, 3\)"),
        (lambda p: bad_npy(p, np.array([{"a": 1}], dtype=object)), "cannot be read as a .npy array"),
        (lambda p: bad_npy(p, content=npy_bytes(make_tiles(30))[:5000]), "cannot be read as a .npy array"),
        (lambda p: bad_npy(p, content=b""), "cannot be read as a .npy array"),
        (lambda p: bad_npy(p, content=b"not an array"), "cannot be read as a .npy array"),
        (lambda p: bad_npy(p, content=b"PK\x03\x04 garbage"), "cannot be read as a .npy array"),
        (lambda p: renamed_npz(p), "an archive of arrays"),
        (lambda p: bad_npy(p, make_tiles(21)), "holds 21 tiles: at least 22"),
        (lambda p: bad_npy(p, make_tiles(30, side=40)), "tiles of .* are 40 px, but image_size_px is 48"),
    ],
)
def test_bad_arrays(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        load_tiles(make(tmp_path), 48)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.png", b"this is a text file", "text.png cannot be read as an image"),
        ("empty.png", b"", "empty.png cannot be read as an image"),
        ("cut.png", encode(make_tiles(1)[0])[:150], "cut.png cannot be read as an image"),
        ("grey.png", encode(make_tiles(1)[0][..., 0]), "grey.png has the colour mode L"),
        ("small.png", encode(make_tiles(1, side=40)[0]), "one size, but .*small.png is 40 x 40"),
        ("0_wide.png", encode(make_tiles(1)[0][:40]), "0_wide.png is 48 x 40 pixels, but tiles must be square"),
    ],
)
def test_bad_images_in_a_folder_or_zip(tmp_path, tiles, name, content, message):
    folder = tmp_path / "tiles"
    write_folder(folder, tiles)
    (folder / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path))
    for source in (folder, tmp_path / "tiles.zip"):
        with pytest.raises(InputError, match=message):
            load_tiles(source, 48)


def test_bad_containers(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        load_tiles(tmp_path / "empty", 48)
    (tmp_path / "tiles.txt").write_text("x")
    with pytest.raises(InputError, match=r"neither a \.npy file"):
        load_tiles(tmp_path / "tiles.txt", 48)
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(InputError, match=r"not a sound \.zip"):
        load_tiles(tmp_path / "broken.zip", 48)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_with_a_damaged_member(tmp_path, tiles, compression, kind):
    path = tmp_path / "tiles.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for i, tile in enumerate(tiles):
            archive.writestr(f"{i:02}.{kind.lower()}", encode(tile, kind))
    sound = path.read_bytes()
    complaints = []
    for position in range(35, 800, 9):
        content = bytearray(sound)
        content[position] ^= 0xFF
        path.write_bytes(content)
        with contextlib.suppress(InputError):  # anything else fails the test
            load_tiles(path, 48)
            continue
        complaints.append(position)
    assert len(complaints) > 20


def test_names_sort_by_folder_in_folders_and_zips(tmp_path, tiles):
    """As text "a-b/" comes before "a/", but the folder "a" comes before the folder "a-b"."""
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        for i, tile in enumerate(tiles):
            path = tmp_path / "tiles" / ("a-b" if i % 2 else "a") / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(tile))
            archive.write(path, path.relative_to(tmp_path / "tiles"))
    expected = np.concatenate([tiles[0::2], tiles[1::2]])
    for source in ("tiles", "tiles.zip"):
        np.testing.assert_array_equal(as_array(load_tiles(tmp_path / source, 48).images), expected)


def test_labels_as_a_spreadsheet_saves_them(tmp_path):
    names = ["ü.png", *(f"{i:02}.png" for i in range(30))]
    data = lay_out(tmp_path, names)
    for content in ("File;Label\r\nu\u0308.png;Haut\r\n;\r\n", "FILE\tTissue\nü.png\tHaut\n"):
        (data / "labels.csv").write_bytes(content.encode("utf-16"))
        assert sorted(load_tiles(data, 48).labels) == [*[""] * 30, "Haut"]


def test_the_table_of_generated_tiles_is_no_table_of_cut_ones(tmp_path):
    data = lay_out(tmp_path, [f"{i:02}.png" for i in range(30)])
    for content in (b"file,cluster,name,seed\n00.png,1,,2\n", b"\xef\xbb\xbfFile;Cluster;Name;Seed\r\n00.png;1;;2\r\n"):
        (data / "tiles.csv").write_bytes(content)
        assert len(load_tiles(data, 48).images) == 30


@pytest.mark.parametrize("table", ["file,grade\n0.png,3\n", "file,cluster,name,seed\n0.png,3,,765\n", "\x00no table"])
def test_a_table_of_another_kind_leaves_a_folder_of_tiles_as_it_is(table, tmp_path):
    """tiles.csv is a common name: a user's own, or that of generated tiles."""
    write(tmp_path, range(3), make_tiles(3))
    (tmp_path / "tiles.csv").write_text(table)
    assert len(sources.read_source(tmp_path).images) == 3
