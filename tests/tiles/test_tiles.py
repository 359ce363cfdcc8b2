"""Reading, splitting, resizing and moving tiles."""

import contextlib
import io
import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tvf

from pfiles.errors import InputError
from pfiles.learning.loop import epoch_batches
from pfiles.tiles import builtin, dataset, sources, views
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.pixels import as_array, as_tensor, evenly_spaced, to_uint8, to_unit
from pfiles.tiles.views import affine, random_affine, random_dihedral
from tests.conftest import make_tiles, shared


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write_folder(folder, tiles):
    """Tiles in two levels of folders, beside files that are not tiles."""
    for i, tile in enumerate(tiles):
        path = folder / f"slide_{i % 2}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(tile))
    (folder / "notes.txt").write_text("not a tile")
    (folder / ".hidden.png").write_bytes(b"not a tile")
    return np.concatenate([tiles[0::2], tiles[1::2]])  # sorted order


@pytest.fixture
def npy(tmp_path, tiles):
    path = tmp_path / "tiles.npy"
    np.save(path, tiles)
    return path


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


@pytest.mark.parametrize(("n", "n_test"), [(22, 2), (30, 2), (110, 10), (115, 10)])
def test_the_last_eleventh_is_the_test_set(tmp_path, n, n_test):
    np.save(tmp_path / "tiles.npy", make_tiles(n))
    tiles = load_tiles(tmp_path / "tiles.npy", 48)
    assert tiles.test.tolist() == list(range(n - n_test, n))
    assert tiles.train.tolist() == list(range(n - n_test))


def test_split_is_complete(npy):
    tiles = load_tiles(npy, 48)
    np.testing.assert_array_equal(np.sort(np.concatenate([tiles.train, tiles.test])), np.arange(30))


def test_embedded_tiles_are_cut_from_the_slide_and_split_by_region(monkeypatch):
    """Held to the pixels as Pillow decodes them; no pixel of a test tile lies within 32 px of a training tile."""
    monkeypatch.delenv("KPC_DATA", raising=False)
    tiles = load_tiles(None, 128)
    assert (len(tiles.train), len(tiles.test)) == (1154, 557)
    slide = np.asarray(Image.open(builtin.SLIDE).convert("RGB"))
    trained, tested = np.zeros((2, *slide.shape[:2]), bool)
    training = set(tiles.train)
    for i, (name, x, y, side, mpp) in enumerate(tiles.positions):
        assert (name, side, mpp) == ("CMU-1-Small-Region", 128, 0.499)
        tile = slide[y : y + 128, x : x + 128]
        np.testing.assert_array_equal(tiles.images[i].permute(1, 2, 0), tile)
        assert (np.ptp(tile, axis=2) > 20).mean() >= 0.5
        margin = 32 if i in training else 0
        (trained if i in training else tested)[max(y - margin, 0) : y + 128 + margin, x : x + 128] = True
    assert not (trained & tested).any()


def test_positions_of_embedded_tiles_know_the_scale_of_smaller_tiles():
    tiles = load_tiles("embedded", 64)
    assert set(tiles.positions.mpp) == {0.998}
    assert set(tiles.positions.side) == {128}
    assert load_tiles("embedded-ihc", 64).positions is None


@pytest.mark.parametrize("side", ["train", "test"])
def test_all_tissues_of_the_embedded_slide_are_on_both_sides(side):
    """Epidermis is violet, dermis pink, keratin dark and so loose that glass shows through it."""
    tiles = load_tiles("embedded", 64)
    red, green, blue = tiles.tensor(getattr(tiles, side)).int().unbind(1)
    dark, glass = red + green + blue < 270, green > 225
    share = {name: mask.float().mean((1, 2)) for name, mask in (
        ("epidermis", (red < blue + 8) & (red + green + blue < 400)), ("dermis", (red > blue + 20) & (red > 150)),
        ("glass", glass), ("dark", dark),
    )}  # fmt: skip
    for name in ("epidermis", "dermis"):
        assert (share[name] > 0.5).float().mean() > 0.1, name
    assert (share["glass"] > 0.35).float().mean() > 0.02
    assert ((share["glass"] > 0.1) & (share["dark"] > 0.2)).float().mean() > 0.02


def test_embedded_ihc_crops_and_their_disjoint_regions():
    tiles = load_tiles("embedded-ihc", 128)
    assert tiles.images.shape[1:] == (3, 128, 128)
    images, image = as_array(tiles.images), data_image()
    right = {image[top : top + 128, left : left + 128].tobytes() for top in range(385) for left in range(352, 385)}
    assert all(images[i].tobytes() in right for i in tiles.test)
    left = image[:, :352]
    assert all(tile_is_in(images[i], left) for i in tiles.train[:: len(tiles.train) // 7])


def data_image():
    from skimage.data import immunohistochemistry

    return immunohistochemistry()


def tile_is_in(tile, image):
    views = np.lib.stride_tricks.sliding_window_view(image[..., 0], (128, 128))[::16, ::16]
    return (views == tile[..., 0]).all(axis=(2, 3)).any()


def test_environment_variable_names_the_default(npy, monkeypatch):
    monkeypatch.setenv("KPC_DATA", str(npy))
    assert load_tiles(None, 48).source == "tiles.npy"


def test_larger_tiles_are_averaged(npy, tiles):
    images = load_tiles(npy, 16).images
    expected = torch.nn.functional.avg_pool2d(as_tensor(tiles).double(), 3)
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=0.5)


def test_max_train_tiles_says_what_it_does(npy, capsys):
    tiles = load_tiles(npy, 48, max_train_tiles=10)
    assert len(tiles.train) == 10
    assert len(tiles.test) == 2
    assert "10 of 28" in capsys.readouterr().out


def test_fingerprint_tells_tiles_and_splits_apart(npy, tmp_path, tiles):
    first = load_tiles(npy, 48).fingerprint()
    assert load_tiles(npy, 48).fingerprint() == first
    assert load_tiles(npy, 16).fingerprint() != first
    assert load_tiles(npy, 48, 10).fingerprint() != first
    changed = tiles.copy()
    changed[7, 3, 3, 0] ^= 1
    np.save(tmp_path / "other.npy", changed)
    assert load_tiles(tmp_path / "other.npy", 48).fingerprint() != first


def settled(path):
    """Give a file the age at which its time tells it from later versions."""
    past = time.time() - 3600
    os.utime(path, (past, past))
    return path


@pytest.fixture
def settled_at_once(monkeypatch):
    monkeypatch.setattr(sources, "SETTLED_SECONDS", 0)


def test_fingerprint_sees_every_pixel(tmp_path):
    """123 of 200 tiles change, none of them one of 64 evenly spaced ones; then a single level of a single tile."""
    images = make_tiles(200)
    path = tmp_path / "tiles.npy"
    np.save(path, images)
    first = load_tiles(path, 48).fingerprint()
    changed = images.copy()
    changed[np.setdiff1d(np.arange(200), evenly_spaced(200, 77))] ^= 1
    np.save(path, changed)
    assert load_tiles(path, 48).fingerprint() != first
    changed = images.copy()
    changed[1, 3, 3, 0] ^= 1
    np.save(path, changed)
    assert load_tiles(path, 48).fingerprint() != first
    np.save(path, images)
    assert load_tiles(path, 48).fingerprint() == first


@pytest.mark.parametrize("kind", ["npy", "folder", "zip"])
def test_pixels_are_hashed_once_while_the_files_stay_as_they_are(tmp_path, tiles, kind, monkeypatch, settled_at_once):
    if kind == "npy":
        data = changes = tmp_path / "tiles.npy"
        np.save(data, tiles)
    elif kind == "folder":
        write_folder(data := tmp_path / "tiles", tiles)
        changes = data / "slide_1" / "011.png"
    else:
        write_folder(tmp_path / "tiles", tiles)
        data = changes = Path(shutil.make_archive(str(tmp_path / "tiles"), "zip", tmp_path / "tiles"))
    first = load_tiles(data, 48).fingerprint()
    reads = []
    monkeypatch.setattr(dataset, "as_array", lambda images: reads.append(1) or as_array(images))
    loaded = load_tiles(data, 48)
    reads.clear()
    assert loaded.fingerprint() == first
    assert reads == []
    settled(changes)  # the same bytes with another time are read again
    again = load_tiles(data, 48)
    reads.clear()
    assert again.fingerprint() == first
    assert reads
    assert load_tiles(data, 16).fingerprint() != first


def test_a_file_changed_only_just_now_is_not_relied_on(npy):
    assert load_tiles(npy, 48).state is None


def test_a_cache_that_cannot_be_written_or_read_is_no_error(npy, tmp_path, monkeypatch, settled_at_once):
    first = load_tiles(npy, 48).fingerprint()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_tiles(npy, 48).fingerprint() == first
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiles = load_tiles(npy, 48)
    tiles.fingerprint()
    (kept,) = (tmp_path / "cache" / "kpc_ldm" / "pixels").iterdir()
    for content in (b"", b"\xff\xfe", b"0" * 63):
        kept.write_bytes(content)
        assert tiles.fingerprint() == first


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


def test_more_clusters_than_training_tiles(npy):
    with pytest.raises(InputError, match="n_clusters is 29, but there are only 28"):
        load_tiles(npy, 48, n_clusters=29)


def test_real_tissue_zip():
    tiles = load_tiles(shared("data/lung_he_5500.zip"), 128)
    assert tiles.images.shape == (5500, 3, 128, 128)
    np.testing.assert_array_equal(tiles.test, np.arange(5000, 5500))


def test_unit_range_round_trip():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(levels)), levels)
    assert to_uint8(torch.tensor([-0.2, 1.3])).tolist() == [0, 255]


@pytest.mark.parametrize(("n", "batch_size", "count"), [(10_000, 16, 625), (37, 16, 2), (5, 16, 1), (32, 16, 2)])
def test_epoch_batches_drop_no_tile(n, batch_size, count):
    batches = epoch_batches(n, batch_size, torch.Generator().manual_seed(0))
    assert len(batches) == count
    sizes = [len(batch) for batch in batches]
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(n))
    again = epoch_batches(n, batch_size, torch.Generator().manual_seed(1))
    assert not torch.equal(torch.cat(batches), torch.cat(again))


def test_random_affine_parameters_span_their_ranges(monkeypatch):
    seen = {}

    def record(images, angle, shift_x, shift_y, zoom, fill):
        seen.update(angle=angle, x=shift_x, y=shift_y, zoom=zoom)
        return images

    monkeypatch.setattr(views, "affine", record)
    random_affine(torch.zeros(4000, 3, 64, 128, dtype=torch.uint8), torch.Generator().manual_seed(0))
    for name, low, high in (("angle", -np.deg2rad(5), np.deg2rad(5)), ("zoom", 0.95, 1.05), ("x", -6, 6), ("y", -3, 3)):
        spread = 0.02 * (high - low)
        assert low <= seen[name].min() < low + spread
        assert high - spread < seen[name].max() <= high
    assert torch.equal(seen["x"], seen["x"].round())  # whole pixels


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


def test_evenly_spaced():
    assert evenly_spaced(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly_spaced(3, 10).tolist() == [0, 1, 2]


def test_affine_equals_torchvision_on_pil_images():
    tiles = make_tiles(6, 64)
    rng = np.random.default_rng(1)
    angle, zoom = rng.uniform(-5, 5, 6), rng.uniform(0.95, 1.05, 6)
    shift_x, shift_y = rng.integers(-3, 4, (2, 6))
    fill = (130, 97, 154)
    images = torch.tensor(tiles).permute(0, 3, 1, 2)
    ours = affine(
        images, *(torch.tensor(v, dtype=torch.float64) for v in (np.deg2rad(angle), shift_x, shift_y, zoom)), fill
    )
    for i in range(6):
        shift = [int(shift_x[i]), int(shift_y[i])]
        theirs = tvf.affine(Image.fromarray(tiles[i]), angle[i], shift, zoom[i], shear=[0.0, 0.0], fill=list(fill))
        differs = (ours[i].permute(1, 2, 0).numpy() != np.asarray(theirs)).any(axis=2).mean()
        assert differs < 0.002  # a pixel centre on the border between two source pixels may fall to either side


def test_random_affine_draws_for_each_tile_within_its_limits():
    images = torch.tensor(make_tiles(1, 64)).permute(0, 3, 1, 2).expand(200, -1, -1, -1)
    views = random_affine(images, torch.Generator().manual_seed(0), fill=(1, 2, 3))
    assert len({view.numpy().tobytes() for view in views}) > 150
    again = random_affine(images, torch.Generator().manual_seed(0), fill=(1, 2, 3))
    assert torch.equal(views, again)
    same = random_affine(images, torch.Generator(), degrees=0, translate=0, scale=(1, 1))
    assert torch.equal(same, images)


@pytest.mark.parametrize(("packed", "sizes", "n_test"), [
    (False, [4] * 12, 4),  # 48 tiles: the last eleventh would be 4, which is one folder
    (True, [5] * 11 + [2], 7),  # 57 tiles: the last eleventh, 5, would cut through the last folder but one
    (False, [3] * 10 + [6], 6),
    (False, [6] * 8, 4),  # too few folders to be slides
])  # fmt: skip
def test_tiles_of_a_slide_stay_on_one_side(tmp_path, packed, sizes, n_test):
    tiles = iter(make_tiles(sum(sizes)))
    names = [f"slide_{folder:02}/{i}.png" for folder, size in enumerate(sizes) for i in range(size)]
    for name in names:
        (tmp_path / "tiles" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(next(tiles)).save(tmp_path / "tiles" / name)
    data = tmp_path / "tiles"
    if packed:
        data = shutil.make_archive(str(tmp_path / "packed"), "zip", data)
    loaded = load_tiles(data, 48)
    assert len(loaded.test) == n_test
    slides = [name.split("/")[0] for name in names]
    if len(sizes) >= 11:
        assert not {slides[i] for i in loaded.train} & {slides[i] for i in loaded.test}


def test_dihedral_views_are_the_eight_ones():
    image = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    views = random_dihedral(image.expand(800, -1, -1, -1), torch.Generator().manual_seed(0))
    different, counts = views.flatten(1).unique(dim=0, return_counts=True)
    expected = {
        tuple(torch.rot90(v, k, (1, 2)).flatten().tolist()) for v in (image[0], image[0].flip(2)) for k in range(4)
    }
    assert {tuple(row) for row in different.tolist()} == expected
    assert counts.min() > 60
