"""Morphometry: known stains, planted nuclei, and distances between distributions worked out elsewhere."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import wasserstein_distance
from skimage.color import rgb_from_hed

from pfiles.errors import InputError
from pfiles.measuring import morphometry
from pfiles.reporting.sections.morphometry import plot_morphometry
from pfiles.tiles.pixels import as_tensor


def image_of(haematoxylin, eosin=0.0, side=64):
    """uint8 image (1, 3, side, side) from densities: light is 10 ** -(sum of stains times their colour vectors)."""
    density = np.broadcast_to(haematoxylin, (1, side, side))[..., None] * rgb_from_hed[0] + eosin * rgb_from_hed[1]
    return as_tensor((255 * 10**-density).round().astype(np.uint8))


def test_what_sets_a_cluster_apart_in_words():
    """Two clusters of four rows, the second of which stands for three times as many tiles."""
    clusters, weights = np.repeat([0, 1], 4), np.repeat([1.0, 3.0], 4)
    columns = {
        "haematoxylin_od": [0.4, 0.4, 0.6, 0.6, 0.4, 0.4, 0.6, 0.6],  # the same
        "eosin_od": [0.3, 0.3, 0.3, 0.3, 0.1, 0.1, 0.1, 0.1],  # 0.2 of a deviation of sqrt(3) / 4 * 0.2: d = 2.3
        "nucleus_count": [3, 3, 7, 7, 5, 5, 9, 9],  # 2 of a deviation of sqrt(4 + 3 / 4): d = 0.92
        "nucleus_size_px": [np.nan, np.nan, np.nan, np.nan, 30, 31, 32, 33],  # none to compare
        "background_fraction": [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],  # never differs
    }
    words = morphometry.in_words(pd.DataFrame(columns), clusters, weights)
    assert words == {0: "much stronger eosin, fewer nuclei", 1: "much weaker eosin, more nuclei"}
    same = pd.DataFrame({name: [1.0, 2.0] * 4 for name in columns})
    assert set(morphometry.in_words(same, clusters, weights).values()) == {
        "like the others in stain, nuclei and background"
    }


def discs(centres, radius, side=64):
    y, x = np.mgrid[:side, :side]
    return sum(((y - cy) ** 2 + (x - cx) ** 2 <= radius**2) for cy, cx in centres).astype(float)[None]


@pytest.mark.parametrize(("haematoxylin", "eosin"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.4), (0.3, 0.2), (0.8, 0.1)])
def test_stain_densities_are_those_the_image_was_made_of(haematoxylin, eosin):
    row = morphometry.measure(image_of(haematoxylin, eosin)).iloc[0]
    assert row.haematoxylin_od == pytest.approx(haematoxylin, abs=0.01)
    assert row.eosin_od == pytest.approx(eosin, abs=0.01)


def test_a_black_pixel_has_the_density_of_level_1():
    black = morphometry.stains(torch.zeros(1, 3, 1, 1, dtype=torch.uint8))[0, 0, 0]
    expected = np.linalg.solve(rgb_from_hed.T, np.full(3, np.log10(255))).clip(0)
    np.testing.assert_allclose(black, expected, rtol=1e-4)


CENTRES = [(12, 12), (12, 40), (34, 22), (50, 50), (50, 10)]


def test_planted_nuclei_are_counted_and_measured():
    nuclei = discs(CENTRES, 5)
    speck = discs([(30, 50)], 1)  # too small for a nucleus
    row = morphometry.measure(image_of(0.1 + 0.7 * (nuclei + speck), 0.1)).iloc[0]
    assert row.nucleus_count == 5
    assert row.nucleus_size_px == pytest.approx(nuclei.sum() / 5, rel=0.1)
    assert row.nucleus_fraction == pytest.approx(nuclei.mean(), rel=0.1)


def test_nuclei_in_tissue_as_dark_as_nuclei_elsewhere():
    assert morphometry.measure(image_of(0.5 + 0.5 * discs(CENTRES, 5))).nucleus_count[0] == 5
    assert morphometry.measure(image_of(0.5)).nucleus_count[0] == 0


def test_nuclei_do_not_reach_into_the_next_image():
    edge = image_of(0.1 + 0.7 * discs([(32, 32)], 6))
    both = morphometry.measure(torch.cat([edge, edge, image_of(0.1), edge]))
    alone = morphometry.measure(edge)
    assert both.nucleus_count.tolist() == [1, 1, 0, 1]
    assert both.nucleus_size_px[0] == both.nucleus_size_px[1] == alone.nucleus_size_px[0]


def test_pale_discs_are_no_nuclei_whatever_their_contrast():
    assert morphometry.measure(image_of(0.05 + 0.15 * discs([(20, 20), (40, 40)], 6))).nucleus_count[0] == 0


def test_empty_background_has_nothing():
    row = morphometry.measure(torch.full((1, 3, 64, 64), 240, dtype=torch.uint8)).iloc[0]
    assert row.background_fraction == 1
    assert row.nucleus_count == row.nucleus_fraction == 0
    assert np.isnan(row.nucleus_size_px)


def test_background_is_the_share_of_bright_pixels():
    image = image_of(0.4)
    image[:, :, :16] = 200
    assert morphometry.measure(image).background_fraction[0] == 0.25


def test_rows_do_not_depend_on_the_batch(monkeypatch):
    images = as_tensor(np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8))
    at_once = morphometry.measure(images)
    monkeypatch.setattr(morphometry, "BATCH_SIZE", 3)
    pd.testing.assert_frame_equal(morphometry.measure(images), at_once)


def test_the_threshold_lies_between_nuclei_and_the_rest():
    images = torch.cat([image_of(h + 0.6 * discs([(20, 20), (44, 40)], 8)) for h in (0.1, 0.12, 0.14)])
    threshold = morphometry.nucleus_threshold(images)
    assert 0.2 < threshold < 0.6
    plain = [torch.full((1, 3, 64, 64), level, dtype=torch.uint8) for level in (0, 30)]
    assert morphometry.nucleus_threshold(torch.cat([images, *plain])) == threshold  # black tiles are no nuclei
    assert morphometry.nucleus_threshold(torch.cat(plain)) >= 0


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(0, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
    ],
)
def test_wrong_images_are_refused(images):
    with pytest.raises(InputError, match="uint8 images of shape"):
        morphometry.measure(images)


def table(**columns):
    n = len(next(iter(columns.values())))
    return pd.DataFrame({name: columns.get(name, np.zeros(n)) for name in morphometry.FEATURES})


def test_distance_by_hand():
    # 0, 1, 3 become 5, 6, 8: each moves by 5 (the example of scipy's own documentation)
    result = morphometry.compare(table(eosin_od=[0.0, 1, 3]), table(eosin_od=[5.0, 6, 8]), seed=1)
    assert result.loc["eosin_od", ["real", "generated", "distance"]].tolist() == pytest.approx([4 / 3, 19 / 3, 5])
    assert result.loc["haematoxylin_od"].tolist() == [0] * 7


def test_distance_agrees_with_scipy_where_numbers_differ_and_some_are_missing():
    rng = np.random.default_rng(1)
    real, generated = rng.normal(0, 1, 60), rng.normal(1, 2, 45)
    real[3] = generated[7] = np.nan
    result = morphometry.compare(table(nucleus_size_px=real), table(nucleus_size_px=generated), seed=1)
    expected = wasserstein_distance(np.delete(real, 3), np.delete(generated, 7))
    assert result.distance["nucleus_size_px"] == pytest.approx(expected)


def test_bootstrap_agrees_with_a_plain_loop():
    rng = np.random.default_rng(2)
    real, generated = rng.normal(0, 1, 80), rng.normal(1.5, 1, 80)
    row = morphometry.compare(table(eosin_od=real), table(eosin_od=generated), seed=1).loc["eosin_od"]
    draws = [wasserstein_distance(rng.choice(real, 80), rng.choice(generated, 80)) for _ in range(5000)]
    expected = np.percentile(draws, [2.5, 97.5]) - np.mean(draws) + row.distance
    assert [row.low, row.high] == pytest.approx(expected, abs=0.03)
    halves = [rng.permutation(real) for _ in range(2000)]
    floor = [wasserstein_distance(half[:40], half[40:]) for half in halves]
    assert row.floor == pytest.approx(np.mean(floor), abs=0.02)
    assert row.floor_high == pytest.approx(np.percentile(floor, 95), abs=0.04)


def test_equal_sets_lie_below_the_floor_and_unlike_sets_above():
    values = np.random.default_rng(3).normal(0, 1, 100)
    same = morphometry.compare(table(eosin_od=values), table(eosin_od=values), seed=1).loc["eosin_od"]
    moved = morphometry.compare(table(eosin_od=values), table(eosin_od=values + 1), seed=1).loc["eosin_od"]
    assert same.distance == 0 == same.low
    assert moved.floor < moved.floor_high < moved.low < moved.distance < moved.high


def test_comparison_depends_on_the_seed_alone():
    a, b = (table(eosin_od=np.random.default_rng(i).normal(0, 1, 30)) for i in range(2))
    first = morphometry.compare(a, b, seed=1)
    pd.testing.assert_frame_equal(first, morphometry.compare(a, b, seed=1))
    assert (first.low != morphometry.compare(a, b, seed=2).low).any()


def test_no_nuclei_anywhere_gives_nan_and_no_warning(recwarn):
    none = table(nucleus_size_px=np.full(4, np.nan))
    result = morphometry.compare(none, table(nucleus_size_px=[1.0, 2, 3]), seed=1)
    assert result.loc["nucleus_size_px"].drop("generated").isna().all()
    assert not recwarn.list


def test_one_image_is_too_few():
    with pytest.raises(InputError, match="at least 2 real and 2 generated images, but there are 1 and 3"):
        morphometry.compare(table(eosin_od=[1.0]), table(eosin_od=[1.0, 2, 3]), seed=1)


def test_the_figure_has_a_box_for_each_side_and_cluster():
    real, generated = table(eosin_od=np.arange(6.0)), table(eosin_od=np.arange(4.0))
    figure = plot_morphometry(real, generated, np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 2, 2]))
    assert [len(ax.patches) for ax in figure.axes] == [2 * 4] * 6
    medians = [line.get_ydata()[0] for line in figure.axes[1].lines if line.get_color() == "black"]
    assert {2.5, 0.5, 4.5, 1.5} <= set(medians)
