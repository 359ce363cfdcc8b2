"""Controls beside a paired score: whom they pair, their intervals, and the sentence on them."""

import numpy as np
import pandas as pd
import pytest
import torch

from pfiles.measuring import controls, pairs


def same_tile(a, b):
    return (a == b).flatten(1).all(1).double().numpy()


def test_controls_pair_as_they_say():
    """The score is one where the partner's cluster is that of the real tile: a tile's grey level is its cluster."""
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    real = torch.tensor(labels * 60 + np.arange(9), dtype=torch.uint8)[:, None, None, None].expand(9, 3, 8, 8)

    def same_cluster(a, b):
        return (a[:, 0, 0, 0] // 60 == b[:, 0, 0, 0] // 60).double().numpy()

    flat = real.double().mean().round().item()
    expected = {
        "generated": 1,
        "another real tile of the cluster": 1,
        "a real tile of another cluster": 0,
        "flat mean colour": np.mean(labels == flat // 60),
        "the real tile itself": 1,
    }
    table = controls.paired_controls(same_cluster, real, real, labels, seed=1)
    assert table["mean"].to_dict() == pytest.approx(expected)
    table = controls.paired_controls(same_tile, real, real, labels, seed=1)
    assert table["mean"].tolist() == [1, 0, 0, 0, 1]
    assert table.pairs.tolist() == [9] * 5


def test_controls_without_a_partner_are_left_out():
    real = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 4, 4)
    table = controls.paired_controls(same_tile, real, real, np.array([0, 0, 1]), seed=0)
    assert table.loc["another real tile of the cluster", ["pairs", "mean"]].tolist() == [2, 0]  # the two that have one
    table = controls.paired_controls(same_tile, real, real, np.zeros(3, int), seed=0)
    assert "a real tile of another cluster" not in table.index
    table = controls.paired_controls(same_tile, real, real, None, seed=0)
    assert list(table.index) == ["generated", "another real tile", "flat mean colour", "the real tile itself"]


def red(values):
    """Images whose red is the score that `read_red` gives them."""
    images = torch.zeros(len(values), 3, 4, 4, dtype=torch.uint8)
    images[:, 0] = torch.tensor(values)[:, None, None]
    return images


def read_red(a, b):
    return b[:, 0, 0, 0].double().numpy()


def test_intervals_and_differences_are_right():
    rng = np.random.default_rng(0)
    real, generated = rng.integers(100, 110, 400), rng.integers(103, 113, 400)
    table = controls.paired_controls(read_red, red(real), red(generated), np.arange(400) % 2, seed=3)
    ours = table.loc["generated"]
    half = 1.96 * generated.std() / 20  # of the normal interval of a mean of 400
    assert (ours.low, ours.high) == pytest.approx((generated.mean() - half, generated.mean() + half), abs=0.06)
    itself = table.loc["the real tile itself"]
    assert itself.difference == pytest.approx((generated - real).mean())
    half = 1.96 * (generated - real).std() / 20
    assert itself.difference_high - itself.difference == pytest.approx(half, abs=0.06)
    assert table.distinguishable[1:].all()
    shuffled = controls.paired_controls(read_red, red(real), red(rng.permutation(real)), np.arange(400) % 2, seed=3)
    assert not shuffled.loc["another real tile of the cluster", "distinguishable"]
    again = controls.paired_controls(read_red, red(real), red(generated), np.arange(400) % 2, seed=3)
    pd.testing.assert_frame_equal(table, again)


def test_the_verdict_is_one_sentence_that_names_every_control_once():
    table = controls.paired_controls(read_red, red([100, 104] * 50), red([101, 105] * 50), np.arange(100) % 2, seed=0)
    sentence = controls.verdict("Red", table)
    assert sentence.startswith("Red of generated tiles is 103.000 (95 % interval 102.")
    assert "can be told from another real tile of the cluster (higher by 1.000)" in sentence
    assert "and the real tile itself (higher by 1.000), but" not in sentence
    assert "excludes 0" in sentence
    assert ". " not in sentence
    for control in table.index[1:]:
        assert sentence.count(control) == 1


def test_a_verdict_on_a_copier_and_on_a_flat_colour(two_sets):
    real, _ = two_sets
    labels = np.arange(len(real)) % 2
    table = controls.paired_controls(pairs.ssim, real, real, labels, seed=0)
    assert not table.loc["the real tile itself", "distinguishable"]
    assert table.loc["flat mean colour", "distinguishable"]
    assert "cannot be told from the real tile itself;" in controls.verdict("SSIM", table)
    assert "cannot judge" not in controls.verdict("SSIM", table)  # a copy is better than a flat colour
    flat = real.double().mean((0, 2, 3), keepdim=True).round().byte().expand(real.shape)
    table = controls.paired_controls(pairs.ssim, real, flat, labels, seed=0)
    assert not table.loc["flat mean colour", "distinguishable"]
    assert table.loc["the real tile itself", ["mean", "low", "high"]].tolist() == pytest.approx([1, 1, 1])


def test_a_verdict_says_where_a_flat_colour_scores_better_by_likeness_and_by_distance(two_sets):
    real, _ = two_sets
    inverted, labels = 255 - real, np.arange(len(real)) % 2
    for score in (pairs.ssim, lambda a, b: 1 - pairs.ssim(a, b)):
        sentence = controls.verdict("SSIM", controls.paired_controls(score, real, inverted, labels, seed=0))
        assert sentence.endswith("excludes 0; it cannot judge these tiles, as one flat colour scores better.")
