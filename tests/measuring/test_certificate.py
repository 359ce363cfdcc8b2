"""The certificate: its limits are exact, hold in 19 of 20 repeats, and say what the search on these tiles is worth."""

from math import comb

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, hypergeom

from pfiles.measuring import certificate, memorisation, shortlist
from pfiles.measuring.certificate import Certificate, limit_of_as_many
from pfiles.tiles.dataset import load_tiles
from tests.measuring.conftest import tissue


@pytest.mark.parametrize("n", [16, 60])
def test_as_many_copies_again_keep_the_limit_whatever_the_rates(n):
    """Exact, by all that can happen: of two kinds any number of 2 n each would pass, and one half of each is seen."""
    limits = np.array([n * limit_of_as_many(count, n, 0.025) for count in range(n + 1)])
    none_of_first = [comb(2 * n - number, n) / comb(2 * n, n) for number in range(n + 1)]
    assert limits[0] == sum(chance > 0.025 for chance in none_of_first) - 1 < limits[1] < limits[-1] == n
    each = n // 2
    for all_of_a, all_of_b in [(a, b) for a in range(n + 1) for b in range(a, n + 1, 3)]:
        in_a, in_b = (hypergeom.pmf(np.arange(each + 1), n, number, each) for number in (all_of_a, all_of_b))
        passing = np.convolve(in_a, in_b)  # copies that pass in the first half
        again = all_of_a + all_of_b - np.arange(n + 1)
        assert passing[again > limits + 1e-9].sum() <= 0.025


@pytest.mark.parametrize(("count", "n"), [(0, 20), (3, 544), (17, 60), (20, 20)])
def test_the_limit_lies_above_that_of_the_rate(count, n):
    rate = binomtest(count, n).proportion_ci(0.95, "exact").high
    assert rate <= limit_of_as_many(count, n, 0.025) <= rate + 1.5 / n**0.5


def test_a_fresh_set_keeps_both_limits_in_19_of_20_repeats():
    """Copies of two kinds pass at known rates; the share of false alarms follows from a known distribution.

    2,000 repeats have a standard error of half a per cent.
    """
    rng, repeats, fresh, true = np.random.default_rng(0), 2000, 0, 0
    rates = np.array([0.02, 0.3])
    for _ in range(repeats):
        passed, again = rng.binomial(32, rates, (2, 2))
        written = Certificate({"a": int(passed[0]), "b": int(passed[1])}, 32, 99)
        tiles = rng.random((2, 99))  # whose distances are uniform: a threshold is the share below it
        threshold = np.quantile(tiles[0], memorisation.CLOSEST, method="weibull")
        true += rates.mean() <= written.at_most and threshold <= written.false_alarms
        fresh += again.mean() / 32 <= written.at_most and (tiles[1] < threshold).mean() <= written.false_alarms
    assert true >= fresh >= 0.95 * repeats


def test_the_limit_of_false_alarms_is_no_wider_than_it_must_be():
    """It is exceeded in at most 2.5 %, and one tile less would be exceeded more often."""
    rng, written = np.random.default_rng(0), Certificate({"a": 0}, 4, 199)
    tiles = rng.random((2, 20_000, 199))
    thresholds = np.quantile(tiles[0], memorisation.CLOSEST, axis=1, method="weibull")
    shares = (tiles[1] < thresholds[:, None]).mean(1)
    assert (shares > written.false_alarms + 1e-9).mean() < 0.026 < (shares > written.false_alarms - 0.5 / 199).mean()


def test_words_name_the_worst_kind():
    written = Certificate({"exact": 0, "turned": 2, "blurred": 1}, 20, 500)
    assert str(written) == (
        "Of planted copies of 3 kinds at most 16.7% would pass, at 2.8% false alarms at most, with 95 % certainty if "
        "held-out tiles are independent of each other: 3 of 60 passed, most of the kind 'turned' (2 of 20)."
    )
    assert written.as_note()["pass_at_most"] == limit_of_as_many(3, 60, 0.025) == 10 / 60
    assert str(Certificate({"exact": 0}, 4, 4)).endswith("0 of 4 passed.")


def test_originals_are_training_tiles_and_differ_between_kinds():
    train, others = tissue(60), tissue(10, seed=1)
    copies = certificate.plant(train, others, 10)
    assert {len(batch) for batch in copies.values()} == {10}
    assert {len(batch) for batch in certificate.plant(train, others).values()} == {4}
    assert len(certificate.plant(train.repeat(4, 1, 1, 1), others)["exact"]) == 6  # one for 40 of 240
    same = (copies["exact"][:, None] == train).flatten(2).all(2)
    assert same.any(1).all()
    inverted = (255 - copies["inverted"][:, None] == train).flatten(2).all(2)
    assert not torch.equal(same, inverted)


@pytest.mark.slow
def test_tiles_of_one_colour_are_not_planted():
    """They are near to nothing, so that their copies would pass; noise of a camera is no structure."""
    train, others = tissue(40), tissue(10, seed=1)
    noise = torch.randint(-1, 2, (20, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    blank = (230 + noise).to(torch.uint8)
    blank[:10] = 230
    planted = certificate.plant(torch.cat([blank, train]), others, 60)
    assert torch.equal(planted["exact"][:, None].eq(train).flatten(2).all(2).any(1), torch.ones(60, dtype=torch.bool))
    written = certificate.search(others, torch.cat([blank, train]), others, "tissue").certificate
    assert written.passed["exact"] == written.passed["in another view"] == 0
    only_blank = certificate.plant(blank, others, 4)
    assert only_blank["exact"][:, None].eq(blank).flatten(2).all(2).any(1).all()


@pytest.mark.slow
def test_a_search_judges_as_without_planted_copies():
    train, held_out, images = tissue(60), tissue(20, seed=1), tissue(8, seed=2)
    images[3] = train[7].flip(2)
    result = certificate.search(images, train, held_out, "tissue")
    nearest, of_held_out, scores, leak = memorisation.search_and_judge(images, train, held_out, "tissue")
    assert result.scores == pytest.approx(scores)
    assert result.leak == leak == ""
    assert result.nearest.tile.tolist() == nearest.tile.tolist()
    assert result.held_out.index.tolist() == of_held_out.index.tolist() == [*range(20)]
    assert result.certificate.planted == 4
    assert result.certificate.held_out == 20
    assert result.certificate.passed["exact"] == result.certificate.passed["in another view"] == 0
    assert result.certificate.at_most < 0.5


@pytest.mark.slow
def test_on_a_real_slide_all_kinds_but_two_are_caught_in_95_of_100():
    """At 1 % false alarms; 28 copies of each of 17 kinds. Tissue that repeats itself is what misleads a search."""
    slide = load_tiles("embedded", 64)
    held_out = slide.tensor(slide.test)[::4]
    written = certificate.search(held_out[:1], slide.tensor(slide.train), held_out, "the slide").certificate
    caught = {kind: 1 - passed / written.planted for kind, passed in written.passed.items()}
    assert len(caught) == 17
    assert sum(share < 0.95 for share in caught.values()) <= 2, caught
    assert min(caught.values()) > 0.85, caught


@pytest.mark.slow
def test_an_exhaustive_search_looks_for_copies_in_parts(monkeypatch):
    """The certificate's copies are searched for as the images are."""
    train, others, searched = tissue(30), tissue(10, seed=1), []

    def make_index(tiles):
        searched.append(len(tiles))
        return shortlist.make_index(tiles)

    monkeypatch.setattr(memorisation, "AT_ONCE", 20)
    monkeypatch.setattr(memorisation, "make_index", make_index)
    for exhaustive in (False, True):
        certificate.search(others[:2], train, others, "tissue", exhaustive)
    assert searched == [30, 20, 10]


@pytest.mark.slow
def test_held_out_tiles_that_are_copies_leave_nothing_to_certify():
    train = tissue(24)
    result = certificate.search(train[:2], train, train[:4], "tissue")
    assert result.certificate is None
    assert "are themselves copies" in result.leak
