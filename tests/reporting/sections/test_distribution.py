"""Distances between sets: references order generators, and what is too small is said."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pfiles.measuring import features
from pfiles.measuring.distribution import frechet_distance
from pfiles.reporting.sections import distribution
from pfiles.reporting.sections.data import HELD_OUT, EvaluationData, clusters_left_out
from tests.reporting.sections.conftest import N, noisy_images


def table_of(extractor, real, held_out, generated):
    rows = (extractor(images) for images in (real, held_out, generated))
    return distribution.distribution_table(extractor, real, *rows, seed=0)


@pytest.mark.slow
def test_references_order_generators():
    """Held-out tiles are the floor; a copier is at 0; a flat colour is where the flat reference is; blur in between."""
    extractor = features.random_convolutions()
    real, held_out, generated = (noisy_images(120, 48, seed) for seed in (3, 4, 5))
    table = table_of(extractor, real, held_out, generated)
    assert list(table.index) == ["generated", "held-out real tiles", "blurred real tiles", "flat mean colour"]
    assert table.images.tolist() == [120] * 4
    distance = table[extractor.frechet]
    assert distance["held-out real tiles"] < 0.5 * distance["blurred real tiles"] < 0.5 * distance["flat mean colour"]
    assert distance["generated"] == pytest.approx(distance["held-out real tiles"], rel=0.5)

    copied = table_of(extractor, real, held_out, real).loc["generated"]
    assert copied[extractor.frechet] == pytest.approx(0, abs=1e-6)
    assert copied[["precision", "recall", "density", "coverage"]].tolist() == [1, 1, 1, 1]
    flat = real.double().mean((0, 2, 3), keepdim=True).round().byte().expand(real.shape)
    table = table_of(extractor, real, held_out, flat)
    pd.testing.assert_series_equal(table.loc["generated"], table.loc["flat mean colour"], check_names=False)
    assert table.loc["generated", "recall"] == 0


def test_references_are_of_one_size(real):
    extractor = features.random_convolutions()
    table = table_of(extractor, real, real[:12], real)
    assert table.images.to_dict() == {
        "generated": N, "generated, 12 of them": 12, "held-out real tiles": 12, "blurred real tiles": 12,
        "flat mean colour": 12,
    }  # fmt: skip
    assert table_of(extractor, real, real, real[:12]).images.tolist() == [12] * 4


def test_sets_too_small_for_a_distance_have_an_empty_row(real):
    extractor = features.random_convolutions()
    table = table_of(extractor, real, real[:4], real[:12])
    assert table.images.tolist() == [12, 4, 12, 12]
    assert table.loc["held-out real tiles"].drop("images").isna().all()
    assert table.drop("held-out real tiles").notna().all(axis=None)
    assert "Rows of fewer than 6 images stay empty." in distribution.caveat(extractor, table, 54)
    assert "12 images do not fill" in distribution.caveat(extractor, table, 54)
    assert "stay empty" not in distribution.caveat(extractor, table.drop("held-out real tiles"), 54)


def test_small_clusters_are_said_not_dropped(real):
    extractor = features.random_convolutions()
    labels = np.repeat([0, 1], [25, 15])
    rows = extractor(real)
    sides = {"real": (rows, labels), "generated": (rows, labels), HELD_OUT: (rows[:30], labels[:30])}
    table, left_out = distribution.distribution_by_cluster(extractor, sides, seed=0)
    assert list(table.index) == ["cluster 1: generated", "cluster 1: held-out real tiles"]
    assert table.images.tolist() == [25, 25]
    assert left_out == "Left out, with fewer than 20 images on one side: clusters 2 (15 real, 15 generated)."
    assert clusters_left_out([]) == ""


def test_few_images_for_many_features_are_said(real):
    extractor = features.random_convolutions()
    table = table_of(extractor, real, real, real)
    assert "40 images do not fill the 54 dimensions" in distribution.caveat(extractor, table, 54)
    assert "do not fill" not in distribution.caveat(extractor, table, 39)
    assert "FID" not in distribution.caveat(extractor, table, 54)


def test_features_from_files_enter_distances_and_the_linear_probe(real):
    rng = np.random.default_rng(0)
    of_real, of_generated = rng.standard_normal((N, 5)), rng.standard_normal((N, 5)) + 3
    read_features = features.ReadFeatures(of_real, of_generated)
    section = distribution.make_section(read_features, EvaluationData(real, real, real[:30]), seed=0)
    table = section.tables[0]
    assert "blurred real tiles" not in table.index
    expected = frechet_distance(of_real, of_generated)
    assert table.loc["all generated against all real", read_features.frechet] == pytest.approx(expected)
    assert section.scores["told from real by features from files"] > 0.95
    with_held_out = distribution.make_section(
        replace(read_features, held_out=of_real[:30]), EvaluationData(real, real), seed=0
    )
    assert with_held_out.tables[0].loc[HELD_OUT, "images"] == 30
