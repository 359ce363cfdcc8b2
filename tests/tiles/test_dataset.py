"""A data set: its tiles at their size, and a fingerprint that sees every pixel."""

import hashlib
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pfiles.errors import InputError
from pfiles.tiles import dataset, sources
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.pixels import as_array, as_tensor, evenly_spaced
from tests.conftest import make_tiles, shared
from tests.tiles.conftest import write_folder


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


def test_tiles_come_to_the_device_in_parts(npy, monkeypatch):
    tiles = load_tiles(npy, 48)
    places = np.array([3, 29, 5, 5, 0])
    monkeypatch.setattr(dataset, "PART", 2)
    images = tiles.tensor(places)
    assert images.is_contiguous()
    assert torch.equal(images, tiles.images[places])


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
    (cache,) = (tmp_path / "cache" / "kpc_ldm" / "pixels").iterdir()
    for content in (b"", b"\xff\xfe", b"0" * 63):
        cache.write_bytes(content)
        assert tiles.fingerprint() == first


def test_more_clusters_than_training_tiles(npy):
    with pytest.raises(InputError, match="n_clusters is 29, but there are only 28"):
        load_tiles(npy, 48, n_clusters=29)


@pytest.mark.slow
def test_real_tissue_zip():
    tiles = load_tiles(shared("data/lung_he_5500.zip"), 128)
    assert tiles.images.shape == (5500, 3, 128, 128)
    np.testing.assert_array_equal(tiles.test, np.arange(5000, 5500))


@pytest.mark.parametrize(
    ("distinct", "k", "message"),
    [
        (28, 28, "only 28 of 28 training tiles differ.*at most 27 clusters"),
        (5, 7, "only 5 of 28 training tiles differ.*at most 4 clusters"),
        (1, 2, "only 1 of 28 training tiles differ.*give other tiles"),
    ],
)
def test_too_few_different_tiles_for_the_clusters(tmp_path, tiles, distinct, k, message):
    repeated = np.r_[np.arange(28) % distinct, 28, 29]  # no test tile is a training tile
    np.save(tmp_path / "a.npy", tiles[repeated])
    with pytest.raises(InputError, match=message):
        load_tiles(tmp_path / "a.npy", 48, n_clusters=k)
    if distinct > 2:
        load_tiles(tmp_path / "a.npy", 48, n_clusters=distinct - 1)


def test_without_a_home_folder_no_two_users_share_a_cache(monkeypatch):

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(dataset.Path, "home", home)
    folder = dataset._cache_folder()
    assert folder == dataset._cache_folder()
    assert (folder.parents[1].stat().st_mode & 0o777) == 0o700


def test_many_tiles_are_hashed_in_parts(npy, monkeypatch):
    """The hash of the hashes of the parts; one part is hashed as it always was."""
    loaded = replace(load_tiles(npy, 48), state=None)
    pixels = as_array(loaded.images)
    assert loaded._pixels() == hashlib.sha256(pixels.tobytes()).hexdigest()
    monkeypatch.setattr(dataset, "HASHED", 10)
    parts = [hashlib.sha256(pixels[i : i + 10].tobytes()).hexdigest() for i in range(0, len(pixels), 10)]
    assert len(parts) > 2
    assert loaded._pixels() == hashlib.sha256("".join(parts).encode()).hexdigest()
