"""Memorisation: planted copies are caught, honest images pass, and the shortlist finds what a full search finds."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import norm

from pfiles.errors import InputError
from pfiles.measuring import memorisation
from pfiles.measuring import planted as planted_kinds
from tests.measuring.conftest import COPIES, FAR, as_jpeg, cut_from_larger, moved, tissue


def full_search(image, tile):
    """The highest correlation over all views and shifts, one at a time, as the docstring defines it. -> (c, view)"""
    grey = [x.numpy().mean(axis=0) for x in (image, tile)]
    grey = [x - ndimage.uniform_filter(x, 21) for x in grey]  # 21 of 64 px: 5 / 16
    best = []
    for view in range(8):
        a = np.rot90(grey[0], view % 4)
        a = (a[:, ::-1] if view >= 4 else a)[2:-2, 2:-2]
        for y in range(5):
            for x in range(5):
                b = grey[1][y : y + 60, x : x + 60]
                best.append(((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()), view, y - 2, x - 2))
    return max(best)


def test_every_planted_copy_is_caught_and_honest_images_pass(real, planted):
    held_out = memorisation.nearest_tiles(real.images[120:], real.images[:120])
    nearest = memorisation.nearest_tiles(planted, real.images[:120])
    limit = memorisation.against_held_out(nearest.distance, held_out.distance)["threshold"]
    assert nearest.tile[30:].tolist() == [10 * i for i in range(len(COPIES))]
    assert (nearest.distance[30:] < memorisation.COPY).all()
    assert limit > memorisation.COPY
    assert (nearest.distance[:30] >= limit).mean() > 0.9


def test_the_shortlist_against_a_full_search(real, planted):
    images, train = planted[20:36], real.images[:40]
    nearest = memorisation.nearest_tiles(images, train)
    full = np.array([[full_search(image, tile) for tile in train] for image in images])  # (16, 40, 4)
    expected = 1 - full[:, :, 0].max(axis=1)
    copies = full[:, :, 0].max(axis=1) > 0.9
    assert copies.sum() == 4  # the copies of tiles 0, 10, 20 and 30
    np.testing.assert_allclose(nearest.distance[copies], expected[copies], atol=1e-4)
    assert (nearest.distance >= expected - 1e-4).all()
    assert np.isclose(nearest.distance, expected, atol=1e-4).mean() > 0.8
    # what is reported of each pair is what the full search finds for it
    for row, exact in zip(nearest.itertuples(), full, strict=True):
        c, view, shift_y, shift_x = exact[row.tile]
        assert row.distance == pytest.approx(1 - c, abs=1e-4)
        assert (row.view, row.shift_y, row.shift_x) == (view, shift_y, shift_x)


def test_rows_do_not_depend_on_the_batch(real, planted, monkeypatch):
    at_once = memorisation.nearest_tiles(planted, real.images[:120])
    monkeypatch.setattr(memorisation, "BATCH_SIZE", 7)
    again = memorisation.nearest_tiles(planted, real.images[:120])
    assert again.drop(columns="distance").equals(at_once.drop(columns="distance"))
    np.testing.assert_allclose(again.distance, at_once.distance, atol=1e-5)


def test_training_tiles_in_parts_are_searched_at_least_as_well(real, planted, monkeypatch):
    """Each part has candidates of its own; what is reported of an image is its distance to that very tile."""
    train = real.images[:120]
    whole = memorisation.nearest_tiles(planted, train)
    monkeypatch.setattr(memorisation, "AT_ONCE", 50)
    parts = memorisation.nearest_tiles(planted, train, exhaustive=True)
    assert (parts.distance <= whole.distance + 1e-5).all()
    copies = whole.distance < memorisation.COPY
    assert copies.sum() >= 4
    assert parts.tile[copies].equals(whole.tile[copies])
    assert set(parts.tile // 50) == {0, 1, 2}
    assert parts.dtypes.equals(whole.dtypes)
    for image, row in zip(planted, parts.itertuples(), strict=True):
        alone = memorisation.nearest_tiles(image[None], train[row.tile][None]).iloc[0]
        assert alone.distance == pytest.approx(row.distance, abs=1e-4)
        assert (alone["view"], alone.shift_y, alone.shift_x) == (row.view, row.shift_y, row.shift_x)


def test_a_training_tile_is_laid_over_its_copy(real):
    for quarters in range(4):
        for mirrored in (False, True):
            copy = moved(real.images[3], -2, 1).rot90(quarters, (1, 2))
            copy = copy.flip(2) if mirrored else copy
            row = next(memorisation.nearest_tiles(copy[None], real.images[:5]).itertuples())
            over, inside = memorisation.aligned(real.images[3], row.view, row.shift_y, row.shift_x)
            assert row.tile == 3
            assert torch.equal(over[:, 2:-2, 2:-2], copy[:, 2:-2, 2:-2])
            assert inside.sum() == 62 * 63


def viewed(image, view):
    turned = image.rot90(view % 4, (1, 2))
    return turned.flip(2) if view >= 4 else turned


def test_copies_shifted_by_up_to_a_quarter_are_caught(real):
    """Each in another view; tile, view and shift are told, and the tile laid over the copy equals it."""
    tiles, copies = cut_from_larger(FAR)
    copies = torch.stack([viewed(copy, view) for view, copy in enumerate(copies)])
    train = torch.cat([real.images[:120], tiles])
    held_out = memorisation.nearest_tiles(real.images[120:], train)
    nearest = memorisation.nearest_tiles(copies, train)
    assert nearest.tile.tolist() == [*range(120, 128)]
    assert nearest.distance.max() < 0.5 * held_out.distance.min()
    for row, tile, copy, (y, x) in zip(nearest.itertuples(), tiles, copies, FAR, strict=True):
        assert (row.shift_y, row.shift_x) == (y, x)
        over, inside = memorisation.aligned(tile, row.view, row.shift_y, row.shift_x)
        assert inside.sum() == (64 - abs(y)) * (64 - abs(x))
        assert torch.equal(over[:, inside], copy[:, inside])


@pytest.mark.parametrize("change", [as_jpeg, lambda x: (x * 0.9).byte()])
def test_shifted_copies_that_were_changed_besides_are_caught(real, change):
    tiles, copies = cut_from_larger(FAR, seed=6)
    train = torch.cat([real.images[:120], tiles])
    nearest = memorisation.nearest_tiles(torch.stack([change(copy) for copy in copies]), train)
    assert nearest.tile.tolist() == [*range(120, 128)]
    assert (nearest.distance < 0.35).all()


def overlap_correlation(image, tile, y, x):
    """Of grey values less their local mean, where the image and the tile that lies y, x further on overlap."""
    a, b = (x.numpy().mean(axis=0) for x in (image, tile))
    a, b = (grey - ndimage.uniform_filter(grey, 21) for grey in (a, b))
    rows, columns = (slice(max(0, -d), 64 - max(0, d)) for d in (y, x))
    there, across = (slice(max(0, d), 64 - max(0, -d)) for d in (y, x))
    a, b = a[rows, columns], b[there, across]
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def test_far_shifts_against_a_full_search(real):
    tiles, copies = cut_from_larger(FAR[:4])
    nearest = memorisation.nearest_tiles(copies, torch.cat([real.images[:30], tiles]))
    shifts = [(y, x) for y in range(-16, 17) for x in range(-16, 17)]
    for row, copy, tile in zip(nearest.itertuples(), copies, tiles, strict=True):
        correlations = {shift: overlap_correlation(copy, tile, *shift) for shift in shifts}
        best = max(correlations, key=correlations.get)
        assert (row.shift_y, row.shift_x) == best
        assert row.distance == pytest.approx(1 - correlations[best], abs=1e-4)


def test_empty_background_that_overlaps_is_no_copy():
    """Tissue at the upper and at the lower end, fading into white: tiles shifted such that the white overlaps."""
    fading = torch.sigmoid((8 - torch.arange(64.0)) / 2)[:, None]
    fading[fading < 0.02] = 0
    a, b = (tissue(1, seed=seed) for seed in (7, 8))
    sides = ((fading, a.double()), (fading.flip(0), b.double()))
    a, b = (200 + f * (x - x.mean((2, 3), keepdim=True)) for f, x in sides)
    assert memorisation.nearest_tiles(a.byte(), b.byte()).distance[0] > 0.6


def test_coarse_layout_is_no_copy():
    """Tiles that share an empty corner share nothing that could be remembered."""
    a, b = tissue(1, seed=2), tissue(1, seed=3)
    corner = torch.arange(64)[:, None] + torch.arange(64) < 50
    for image in (a, b):
        image[:, :, corner] = 235
    plain = np.corrcoef(a.flatten(), b.flatten())[0, 1]
    assert plain > 0.5
    assert memorisation.nearest_tiles(a, b).distance[0] > 0.6


def test_a_flat_tile_is_near_to_nothing():
    flat = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    assert memorisation.nearest_tiles(flat, torch.cat([tissue(3), flat])).distance[0] == 1


def test_sizes_that_differ_are_refused():
    with pytest.raises(InputError, match="of one size"):
        memorisation.nearest_tiles(tissue(1), tissue(1, side=48))


def test_nearest_in_a_feature_space_by_hand():
    train = np.array([[0.0, 0], [3, 4], [10, 10]])
    nearest = memorisation.nearest_features(np.array([[3.0, 3], [0, 1], [6, 8]]), train)
    assert nearest.tile.tolist() == [1, 0, 2]
    assert nearest.distance.tolist() == pytest.approx([1, 1, 20**0.5])


def test_against_held_out_by_hand():
    closeness = memorisation.against_held_out(np.arange(50), np.arange(2, 201))
    assert closeness["threshold"] == 3  # the second smallest of 199: two in 200 spaces lie before it
    z, n, p = norm.ppf(0.975), 50, 3 / 50
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert closeness["closer"] == p
    assert closeness["low"] == pytest.approx((centre - half) / (1 + z**2 / n))
    assert closeness["high"] == pytest.approx((centre + half) / (1 + z**2 / n))
    assert closeness["expected"] == 0.01
    assert memorisation.against_held_out(np.ones(5), np.ones(5))["closer"] == 0  # not closer, so not too close


def test_few_held_out_tiles_expect_more_than_one_percent():
    closeness = memorisation.against_held_out(np.array([0.5]), np.arange(1.0, 10))
    assert closeness["threshold"] == 1
    assert closeness["expected"] == pytest.approx(0.1)
    assert closeness["chance"] == pytest.approx(0.1)  # one image of ten is the closest


def test_a_split_that_leaks_is_judged_by_plain_copies():
    """Where held-out tiles are copies, a total memoriser is told from an honest generator all the same."""
    leaking = np.concatenate([np.zeros(3), np.full(96, 0.7)])  # of 99, the closest one is the threshold
    copier, sentence = memorisation.judge(np.zeros(40), leaking, "tiles.npy")
    assert copier["threshold"] == memorisation.COPY
    assert copier["closer"] == copier["high"] == 1
    assert copier["low"] == pytest.approx(40 / (40 + norm.ppf(0.975) ** 2))
    assert copier["expected"] is copier["chance"] is None
    assert "held-out tiles of tiles.npy are themselves copies" in sentence
    assert sentence.endswith(".")
    assert memorisation.judge(np.full(40, 0.6), leaking, "x")[0]["closer"] == 0
    sound = np.linspace(0.5, 1, 99)
    scores, sentence = memorisation.judge(np.full(4, 0.6), sound, "x")
    assert scores == {**memorisation.against_held_out([0.6] * 4, sound), "outright": 0.375, "left_out": 0}
    assert sentence == ""


def test_a_few_held_out_tiles_that_are_copies_have_no_say():
    """Of 500 held-out tiles 5 show what training tiles show; without them the threshold is that of the others."""
    others = np.linspace(0.7, 0.9, 495)
    scores, sentence = memorisation.judge(np.full(40, 0.3), np.concatenate([np.full(5, 0.3), others]), "x")
    assert scores["left_out"] == 5
    assert scores["threshold"] == np.quantile(others, 0.01, method="weibull")
    assert scores["outright"] == pytest.approx(0.4, abs=0.001)
    assert scores["closer"] == 1
    assert sentence == ""
    many = np.concatenate([np.full(50, 0.3), others[:450]])  # too many to be left out: the threshold is lower
    assert memorisation.judge(np.full(40, 0.3), many, "x")[0]["threshold"] == pytest.approx(0.3)


def test_an_outright_copy_is_no_closer_than_the_threshold():
    assert memorisation.outright_limit(np.full(9, 0.8)) == 0.4
    assert memorisation.outright_limit(np.full(9, 0.1)) == memorisation.COPY
    wide = np.concatenate([[0.2] * 10, np.full(90, 0.9)])
    assert memorisation.judge(np.ones(4), wide, "x")[0]["outright"] == 0.2


@pytest.mark.parametrize(
    "kind", ["turned by 45 degrees", "middle of 0.75, enlarged", "neighbour that overlaps by 60 %"]
)
def test_what_is_laid_over_a_copy_looks_like_it(real, kind):
    """Where the tile reaches, it differs from the copy as little as two ways of sampling do."""
    train = real.images[:60]
    copies = planted_kinds.KINDS[kind](train[:6], real.images[170:176], torch.Generator())
    nearest = memorisation.nearest_tiles(copies, train)
    assert nearest.tile.tolist() == [*range(6)]
    assert (nearest.distance < 0.5).all()
    for row, copy in zip(nearest.itertuples(), copies, strict=True):
        over, inside = memorisation.aligned(train[row.tile], row.view, row.shift_y, row.shift_x, row.pose)
        inside &= (torch.arange(64) < 38) & (torch.arange(64) >= 10) & ((torch.arange(64) - 32).abs() < 22)[:, None]
        assert inside.sum() > 300
        apart = (over.double() - copy)[:, inside].square().mean()
        assert apart < 0.25 * (train[row.tile].double() - copy)[:, inside].square().mean()


def test_inverted_tiles_are_found(real):
    nearest = memorisation.nearest_tiles(255 - real.images[:5].flip(2), real.images[:60])
    assert nearest.tile.tolist() == [*range(5)]
    assert nearest.distance.max() < 1e-3


def test_images_that_repeat_each_other():
    images = tissue(8)
    assert memorisation.repeated(images) == 0
    images[3] = images[4].flip(2)
    assert memorisation.repeated(images) == 1 / 4
    assert memorisation.repeated(images[:1].expand(9, -1, -1, -1)) == 1
    assert memorisation.repeated(images[:1]) == 0


def test_chance_agrees_with_a_simulation():
    rng = np.random.default_rng(0)
    draws = [memorisation.against_held_out(rng.random(40), rng.random(199)) for _ in range(1000)]
    assert np.mean([draw["closer"] for draw in draws]) == pytest.approx(0.01, abs=0.002)
    one_or_more = next(draw["chance"] for draw in draws if draw["closer"] == 1 / 40)
    assert np.mean([draw["closer"] > 0 for draw in draws]) == pytest.approx(one_or_more, abs=0.04)
