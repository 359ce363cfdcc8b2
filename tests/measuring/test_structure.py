"""The reach of structure: known for shuffled tiles, and not raised by what is planted in them."""

import numpy as np
import pytest
import scipy
import torch
import torch.nn.functional as F
from torch import Tensor

from pfiles.errors import InputError
from pfiles.measuring import structure
from pfiles.measuring.two_sample import blur
from pfiles.tiles.builtin import he_tiles
from pfiles.tiles.dataset import load_tiles

from ..conftest import shared

SIDE = 64


@pytest.fixture(scope="module")
def skin() -> tuple[Tensor, Tensor]:
    """Training and test tiles of the embedded slide at 64 px."""
    images, train, test, _ = he_tiles(stride=64)
    halved = F.avg_pool2d(images.float(), 2).round().to(torch.uint8)
    return halved[train], halved[test]


@pytest.fixture(scope="module")
def tissue(skin) -> Tensor:
    """The training tiles without glass."""
    return skin[0][~structure.shows_glass(skin[0])]


@pytest.fixture(scope="module")
def ladder(skin) -> structure.Ladder:
    return structure.make_ladder(skin[0], seed=1)


@pytest.fixture(scope="module")
def unbuilt(tissue) -> Tensor:
    """Tiles whose reach is 8 px."""
    return structure.shuffled(tissue, 8, seed=9)


def reach(ladder: structure.Ladder, tiles: Tensor) -> float:
    return structure.reaches(ladder, tiles, seed=3).reach["all"]


def plus(tiles: Tensor, pattern) -> Tensor:
    return (tiles.float() + torch.as_tensor(pattern)).round().clamp(0, 255).to(torch.uint8)


def grid(period: int = 8, levels: float = 24) -> Tensor:
    return (torch.arange(SIDE) % period < period // 2) * levels - levels / 2


def streaks(number: int) -> Tensor:
    """Grey noise (N, 1, S, S) that is longer along one direction, the same for all."""
    frequency = np.fft.fftfreq(SIDE)
    along = frequency[:, None] * np.cos(0.5) + frequency * np.sin(0.5)
    across = frequency * np.cos(0.5) - frequency[:, None] * np.sin(0.5)
    amplitude = np.exp(-np.square(along / 0.01) / 2 - np.square(across / 0.1) / 2)
    white = np.random.default_rng(0).standard_normal((number, SIDE, SIDE))
    noise = np.fft.ifft2(np.fft.fft2(white) * amplitude).real
    return torch.from_numpy(25 * noise / noise.std()).float()[:, None]


def with_rims(tiles: Tensor) -> Tensor:
    """Every third tile ends at a straight edge, beyond which is glass."""
    rng = np.random.default_rng(0)
    mosaic, places = tiles.clone(), np.arange(SIDE)
    for tile in mosaic[::3]:
        beyond = places > rng.integers(36, 48) + rng.uniform(-0.5, 0.5) * (places[:, None] - SIDE / 2)
        tile[:, torch.from_numpy(beyond)] = 240
    return mosaic


# what coherence is


def test_coherence_agrees_with_scipy(monkeypatch, tissue):
    """Gradients and windows in space, of a set whose spectrum is left as it is."""
    monkeypatch.setattr(structure, "mean_power", lambda tiles: np.ones((SIDE, SIDE)))
    values = structure.coherence_of(tissue[:3], np.ones((SIDE, SIDE)))
    edge = np.minimum(np.arange(SIDE) + 0.5, SIDE - 0.5 - np.arange(SIDE)) / 16
    taper = np.sin(np.pi / 2 * edge.clip(max=1)) ** 2
    window = np.outer(taper, taper)
    inside = np.zeros((SIDE, SIDE))
    inside[8:56, 8:56] = 1
    for tile, row in zip(tissue[:3].numpy().mean(1), values, strict=True):
        tapered = (tile - (tile * window).sum() / window.sum()) * window
        for sigma, coherence in zip((1, 2, 3), row, strict=True):
            gy, gx = (
                scipy.ndimage.gaussian_filter(tapered, sigma, order, mode="wrap", truncate=8)
                for order in ((1, 0), (0, 1))
            )
            xx, yy, xy = (
                scipy.ndimage.gaussian_filter(product * inside, 8, mode="wrap", truncate=8)
                for product in (gx**2, gy**2, gx * gy)
            )
            expected = np.sqrt((xx - yy) ** 2 + 4 * xy**2).sum() / (xx + yy).sum()
            assert coherence == pytest.approx(expected, rel=0.01)


def test_stripes_have_a_coherence_of_one_and_a_flat_tile_has_none(monkeypatch):
    monkeypatch.setattr(structure, "mean_power", lambda tiles: np.ones((SIDE, SIDE)))
    stripes = 128 + 100 * torch.sin(2 * torch.pi * torch.arange(SIDE) / 8).expand(1, 3, SIDE, SIDE)
    both = torch.cat([stripes, torch.full_like(stripes, 200)]).round().to(torch.uint8)
    coherence = structure.coherence_of(both, np.ones((SIDE, SIDE)))
    assert (coherence[0] > 0.97).all()
    assert (coherence[1] == 0).all()


# tiles whose reach is known


def test_blocks_stay_whole_and_seams_are_blended_over_two_pixels():
    tiles = torch.tensor([0, 90], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 16, 16).repeat(30, 1, 1, 1)
    mosaic = structure.shuffled(tiles, 8, seed=0)
    assert mosaic.shape == tiles.shape
    blocks = mosaic[:, 0, [3, 3, 12, 12], [3, 12, 3, 12]].view(-1, 2, 2)
    assert set(blocks.unique().tolist()) == {0, 90}
    assert 0.3 < (blocks == 90).float().mean() < 0.7
    inner = [0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13, 14, 15]
    assert set(mosaic[:, 0, inner][:, :, inner].unique().tolist()) == {0, 90}
    stepping = (blocks[:, 0, 0] == 0) & (blocks[:, 0, 1] == 90)
    assert stepping.any()
    assert (mosaic[stepping][:, 0, 2, 6:10] == torch.tensor([0, 30, 60, 90])).all()


def test_blocks_come_from_tiles_of_one_cluster():
    ids = np.arange(40) % 2
    tiles = torch.from_numpy(100 * ids).to(torch.uint8)[:, None, None, None].expand(40, 3, 32, 32)
    assert (structure.shuffled(tiles, 4, seed=0, cluster_ids=ids) == tiles).all()


def test_blocks_need_not_fill_a_side():
    assert structure.shuffled(torch.zeros(3, 3, 50, 50, dtype=torch.uint8), 16, seed=0).shape == (3, 3, 50, 50)


def test_noise_has_the_spectrum_the_colour_and_the_contrast_of_the_tiles(tissue):
    noise = structure.noise_like(tissue, seed=0)
    powers = [structure.isotropic(structure.mean_power(tiles))[0, 1:20] for tiles in (tissue, noise)]
    assert powers[1] == pytest.approx(powers[0], rel=0.25)
    means = [tiles.float().mean((2, 3)) for tiles in (tissue, noise)]
    assert (means[1] - means[0]).abs().mean() < 2
    contrasts = [tiles.float().mean(1).std((1, 2)) for tiles in (tissue, noise)]
    assert torch.allclose(*contrasts, rtol=0.1)


@pytest.mark.parametrize(("block", "low", "high"), [(4, 4, 6), (8, 6.5, 10.5), (16, 13, 20), (32, 26, 32)])
def test_the_reach_of_shuffled_tiles_is_their_block(ladder, tissue, block, low, high):
    row = structure.reaches(ladder, structure.shuffled(tissue, block, seed=7), seed=3).loc["all"]
    assert low <= row.reach <= high
    assert row.low <= block <= row.high


def test_held_out_tiles_reach_beyond_the_largest_block_and_noise_is_at_the_bottom(ladder, skin, tissue):
    table = structure.reaches(ladder, skin[1], seed=3)
    assert structure.in_words(table.reach["all"], SIDE) == "beyond 32 px"
    assert table.share["all"] == pytest.approx(1, abs=0.25)
    assert table.glass["all"] == structure.shows_glass(skin[1]).sum() > 0
    noise = structure.reaches(ladder, structure.noise_like(tissue, seed=8), seed=3).loc["all"]
    assert noise.reach < 5
    assert noise.share == pytest.approx(0, abs=0.1)


def test_the_reach_of_shuffled_lung_is_its_block():
    """Training tiles make the ladder, test tiles of other source images are measured, by their tissue."""
    tiles = load_tiles(shared("data/lung_he_5500.zip"), SIDE)
    names, ids = np.unique(tiles.labels, return_inverse=True)
    places = tiles.train[::20]
    ladder = structure.make_ladder(tiles.tensor(places), 1, ids[places])
    test, of_test = tiles.tensor(tiles.test[::2]), ids[tiles.test[::2]]
    table = structure.reaches(ladder, test, 3, of_test)
    assert table.reach["all"] == 32
    assert list(table.index) == ["all", *(f"cluster {i + 1}" for i in range(len(names)))]
    for block, high in ((8, 12), (16, 23)):
        mosaic = structure.shuffled(test, block, 7, of_test)
        assert block * 0.8 < structure.reaches(ladder, mosaic, 3, of_test).reach["all"] < high


def test_reaches_are_interpolated_over_the_logarithm_of_the_block():
    levels = 0.1, 0.2, 0.15, 0.6  # the third counts as 0.2
    for value, expected in ((0.0, 4), (0.1, 4), (0.15, 4 * 2**0.5), (0.2, 8), (0.4, 16 * 2**0.5), (0.6, 32), (2, 32)):
        assert structure._position(np.array(value), *map(np.array, levels), smallest=4) == pytest.approx(expected)


def test_a_set_is_held_against_the_clusters_that_it_holds(tissue):
    """Half of the real tiles are noise, half tissue; all of the set is tissue."""
    noise = structure.noise_like(tissue, seed=8)
    ladder = structure.make_ladder(torch.cat([tissue, noise]), 1, np.repeat([0, 1], len(tissue)))
    mosaic = structure.shuffled(tissue, 16, seed=7)
    table = structure.reaches(ladder, mosaic, 3, np.zeros(len(mosaic), int))
    assert 11 < table.reach["all"] < 21
    assert table.reach["cluster 1"] == pytest.approx(table.reach["all"], rel=0.1)
    assert structure.reaches(ladder, mosaic, 3).reach["all"] > 1.3 * table.reach["all"]  # noise lowers the ladder


def test_reaches_in_words():
    assert structure.in_words(4, SIDE) == "at most 4 px"
    assert structure.in_words(7.25, SIDE, mpp=0.5) == "7 px (3.6 um)"
    assert structure.in_words(32, 2 * SIDE) == "32 px"
    assert structure.in_words(32, SIDE, mpp=1) == "beyond 32 px (32 um)"


def test_shares_rise_with_the_blocks(ladder):
    shares = structure.shares(ladder)
    assert list(shares.index) == [4, 8, 16, 32]
    assert shares.is_monotonic_increasing
    assert shares.between(-0.05, 0.95).all()


# what must not raise it, and does where its correction is broken


def test_a_grid_leaves_the_reach(monkeypatch, ladder, skin, unbuilt):
    for tiles in (
        plus(unbuilt, grid()),
        plus(unbuilt, grid(4)[:, None]),
        plus(unbuilt, grid(4) * grid(4)[:, None] / 12),
    ):
        assert reach(ladder, tiles) == pytest.approx(reach(ladder, unbuilt), rel=0.15)
    monkeypatch.setattr(structure, "mean_power", lambda tiles: np.ones((SIDE, SIDE)))
    broken = structure.make_ladder(skin[0], seed=1)
    assert reach(broken, plus(unbuilt, grid())) > 1.4 * reach(broken, unbuilt)


def test_one_direction_of_the_set_leaves_the_reach(monkeypatch, ladder, skin, unbuilt):
    tiles = plus(unbuilt, streaks(len(unbuilt)))
    assert reach(ladder, tiles) == pytest.approx(reach(ladder, unbuilt), rel=0.25)
    monkeypatch.setattr(structure, "mean_power", lambda tiles: np.ones((SIDE, SIDE)))
    broken = structure.make_ladder(skin[0], seed=1)
    assert reach(broken, tiles) > 1.4 * reach(broken, unbuilt)


def test_rims_of_glass_leave_the_reach(monkeypatch, ladder, tissue, unbuilt):
    tiles = with_rims(unbuilt)
    table = structure.reaches(ladder, tiles, seed=3)
    assert table.glass["all"] == len(tiles[::3])
    assert table.reach["all"] == pytest.approx(reach(ladder, unbuilt), rel=0.15)
    monkeypatch.setattr(structure, "shows_glass", lambda tiles: np.zeros(len(tiles), bool))
    assert reach(ladder, tiles) > 14


def test_blur_and_speckle_leave_the_reach(ladder, tissue, unbuilt):
    speckle = 12 * torch.randn(len(tissue), 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for change in (lambda tiles: blur(tiles, 1.0), lambda tiles: blur(tiles, 2.0), lambda tiles: plus(tiles, speckle)):
        assert reach(ladder, change(unbuilt)) == pytest.approx(reach(ladder, unbuilt), rel=0.15)
        assert reach(ladder, change(tissue)) == 32


# bad input


def coarse(factor: int):
    """A decoder that knows the mean of each square of `factor` px alone, and paints smooth edges between them."""

    def decode(tiles: Tensor) -> Tensor:
        squares = F.avg_pool2d(tiles.float(), factor)
        return F.interpolate(squares, scale_factor=factor, mode="bicubic").round().clamp(0, 255).to(torch.uint8)

    return decode


def test_decoded_tiles_are_held_against_decoded_ones(ladder, skin, tissue):
    """What a coarse decoder paints counts for any tile: on the plain ladder noise seems built and tissue less so."""
    decode = coarse(4)
    decoded = structure.make_ladder(skin[0], 1, through=decode)
    for block, low, high in ((8, 7, 11), (16, 13, 20)):
        tiles = decode(structure.shuffled(tissue, block, seed=9))
        assert low < reach(decoded, tiles) < high
        assert not low < reach(ladder, tiles) < high


def test_a_ladder_is_computed_once_where_its_numbers_are_kept(skin, tissue):
    cache, calls = [], []

    def keep(measure):
        cache.extend([] if cache else [measure()])
        return cache[0]

    def decode(tiles):
        calls.append(len(tiles))
        return coarse(4)(tiles)

    first, second = (structure.make_ladder(skin[0], 1, through=decode, keep=keep) for _ in range(2))
    assert len(calls) == 2 + len(first.blocks)
    assert (
        reach(first, tissue)
        == reach(second, tissue)
        == reach(structure.make_ladder(skin[0], 1, through=decode), tissue)
    )


def test_a_decoder_that_keeps_no_structure_is_told(ladder, skin, tissue):
    """Behind squares of 8 px nothing tells tissue from blocks of 4 px, which the plain ladder takes for 11 px."""
    assert reach(ladder, coarse(8)(structure.shuffled(tissue, 4, seed=9))) > 8
    with pytest.raises(InputError, match="behind their decoder keep their direction no better"):
        structure.make_ladder(skin[0], 1, through=coarse(8))


def test_sets_that_cannot_be_measured_are_refused(ladder, tissue):
    for tiles, message in (
        (tissue[:19], "at least 20 real tiles without glass, but only 19 of 19 are"),
        (tissue[:, :, :31, :31], "at least 32 px, but got 31 px"),
        (torch.full((30, 3, SIDE, SIDE), 240, dtype=torch.uint8), "only 0 of 30 are"),
        (torch.full((30, 3, SIDE, SIDE), 100, dtype=torch.uint8), "All 30 real tiles are alike or of one colour"),
        (tissue[:1].expand(30, -1, -1, -1), "alike"),
        (structure.noise_like(tissue, seed=0), "have no structure whose reach could be measured"),
        (tissue[:0], "only 0 of 0 are"),
        (tissue.float(), "uint8"),
    ):
        with pytest.raises(InputError, match=message):
            structure.make_ladder(tiles, seed=0)
    for tiles, message in (
        (tissue[:5], "at least 20 compared tiles"),
        (tissue[:, :, :48, :48], "of one size, but got 64 px and 48 px"),
        (torch.full((30, 3, SIDE, SIDE), 100, dtype=torch.uint8), "of one colour"),
    ):
        with pytest.raises(InputError, match=message):
            structure.reaches(ladder, tiles, seed=0)
