"""The tiles that come along: cut where they should be, split by region."""

import numpy as np
import pytest
from PIL import Image

from pfiles.tiles import builtin
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.pixels import as_array


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
