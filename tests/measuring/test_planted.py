"""Planted copies are what their names say."""

import numpy as np
import torch
from PIL import Image

from pfiles.measuring import planted
from pfiles.tiles.pixels import as_array
from tests.measuring.conftest import tissue

TILES, OTHERS = tissue(4), tissue(4, seed=1)


def copies(kind):
    return planted.KINDS[kind](TILES, OTHERS, torch.Generator().manual_seed(0))


def middle(images):
    return as_array(images)[:, 20:44, 20:44].astype(int)


def test_every_kind_gives_copies_that_differ_from_their_tiles():
    for kind in planted.KINDS:
        batch = copies(kind)
        assert batch.shape == TILES.shape, kind
        assert batch.dtype == torch.uint8, kind
        assert torch.equal(batch, copies(kind)), kind
        assert torch.equal(batch, TILES) == (kind == "exact"), kind


def test_parts_of_a_tile_lie_beside_others():
    half = copies("half a tile")
    assert torch.equal(half[..., :32], TILES[..., :32])
    assert torch.equal(half[..., 32:], OTHERS[..., 32:])
    neighbour = copies("neighbour that overlaps by 60 %")
    assert torch.equal(neighbour[..., :38], TILES[..., 26:])  # 38 of 64: 60 %
    assert torch.equal(neighbour[..., 38:], OTHERS[..., 38:])
    quarters = copies("a quarter beside three others")
    assert torch.equal(quarters[..., :32, :32], TILES[..., :32, :32])
    assert torch.equal(quarters[..., :32, 32:], OTHERS[..., :32, 32:])
    assert torch.equal(quarters[2, :, 32:, :32], OTHERS[1, :, 32:, :32])
    assert torch.equal(quarters[2, :, 32:, 32:], OTHERS[0, :, 32:, 32:])
    moved = copies("moved by an eighth")
    assert torch.equal(moved[:, :, 8:, 8:], TILES[:, :, :-8, :-8])
    assert torch.equal(moved[:, :, 8:, :8], TILES[:, :, :-8, 1:9].flip(3))


def test_turns_and_crops_against_pillow():
    def by_pillow(change):
        return np.stack([np.asarray(change(Image.fromarray(tile))) for tile in as_array(TILES)])[:, 20:44, 20:44]

    for kind, change in {
        "turned by 10 degrees": lambda image: image.rotate(-10, Image.BILINEAR),
        "turned by 45 degrees": lambda image: image.rotate(-45, Image.BILINEAR),
        "middle of 0.5, enlarged": lambda image: image.crop((16, 16, 48, 48)).resize((64, 64), Image.BILINEAR),
        "middle of 0.75, enlarged": lambda image: image.crop((8, 8, 56, 56)).resize((64, 64), Image.BILINEAR),
    }.items():
        assert np.abs(middle(copies(kind)) - by_pillow(change)).mean() < 2, kind


def test_a_view_is_one_of_the_seven_others():
    for copy, tile in zip(copies("in another view"), TILES, strict=True):
        views = [flipped.rot90(n, (1, 2)) for flipped in (tile, tile.flip(2)) for n in range(4)]
        assert sum(torch.equal(copy, view) for view in views[1:]) == 1


def test_colours_by_hand():
    assert torch.equal(copies("inverted"), 255 - TILES)
    mixed = copies("mixed with another tile").int() * 2 - TILES - OTHERS
    assert mixed.abs().max() <= 1
    grey = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    density = np.full(3, -np.log(129 / 256))
    haematoxylin, eosin = np.linalg.lstsq(np.array(planted.RUIFROK).T, density, rcond=None)[0]
    restained = 0.6 * haematoxylin * np.array(planted.MACENKO[0]) + 1.5 * eosin * np.array(planted.MACENKO[1])
    expected = 256 * np.exp(-restained) - 1
    colour = planted.other_stain(grey, grey, torch.Generator())[0, :, 5, 5].numpy()
    assert np.abs(colour - expected.clip(0, 255)).max() <= 1


def test_elastic_copies_move_places_by_a_few_pixels():
    ramp = torch.arange(64).expand(1, 3, 64, 64).to(torch.uint8) * 4  # brightness says the column
    copy = planted.elastic(ramp.expand(40, -1, -1, -1), ramp, torch.Generator().manual_seed(0))
    shifts = (copy.float() - ramp)[:, 0, 16:48, 16:48] / 4
    assert 0.5 < shifts.std() < 2  # 2 % of 64 px: 1.3 px
