"""Join counts: a case worked by hand, a brute-force count, the expectation in closed form, and what is said of them."""

import numpy as np
import pytest

from pfiles.measuring.neighbours import grid_of, in_words, join_counts, neighbours


def at(places, side=100, slide="a", mpp=1.0):
    """Positions of tiles at `places`, x and y of their upper left corners."""
    x, y = np.array(places).T
    n = len(x)
    columns = [np.full(n, slide), x, y, np.full(n, side), np.full(n, mpp)]
    return np.rec.fromarrays(columns, names="slide,x,y,side,mpp")


def grid(columns, rows, step, side, left=0, top=0):
    return [(round(left + c * step), round(top + r * step)) for r in range(rows) for c in range(columns)]


def joined(*parts):
    return np.concatenate(parts).view(np.recarray)


def test_a_case_worked_by_hand():
    """Three by two tiles, A A B above A B B: 7 pairs, of which AA lie side by side twice, and BB twice."""
    table = join_counts(at(grid(3, 2, 100, 100)), np.array([0, 0, 1, 0, 1, 1]), 3)
    assert table.neighbours.tolist() == [7, 7, 7, 0]
    assert table.share.tolist()[:3] == pytest.approx([4 / 7, 4 / 7, 4 / 7])
    assert np.isnan(table.share[3])
    # two tiles drawn without putting back are of one cluster in 2 x (3 x 2) of 6 x 5 cases
    assert table.random["all"] == pytest.approx(12 / 30, abs=0.02)
    assert table.low["all"] <= table.random["all"] <= table.high["all"]


@pytest.mark.parametrize(
    ("step", "side"),
    [(100, 100), (253.4, 253), (32, 128), (96, 128), (150, 100)],
    ids=["side by side", "rounded places", "overlapping", "overlapping in part", "with gaps"],
)
def test_pairs_agree_with_a_count_by_brute_force(step, side):
    """Tiles are dropped at random; a second slide has the same places and no neighbour in the first."""
    rng = np.random.default_rng(0)
    places = [place for place in grid(24, 17, step, side, 40, 70) if rng.random() < 0.8]
    positions = joined(at(places, side), at(places, side, "b"))
    indices, pairs = neighbours(positions)
    x, y, slide = (positions[name][indices] for name in ("x", "y", "slide"))
    span = step * max(1, np.ceil(side / step - 0.02))
    right, down = x[None] - x[:, None], y[None] - y[:, None]
    beside = (np.abs(right - span) <= 1) & (np.abs(down) <= 1) | (np.abs(down - span) <= 1) & (np.abs(right) <= 1)
    expected = set(zip(*np.nonzero(beside & (slide[None] == slide[:, None])), strict=True))
    assert {tuple(pair) for pair in pairs.tolist()} == expected
    assert len(pairs) == len(expected) > 0
    assert np.maximum(right, down)[tuple(pairs.T)].min() >= side - 1  # no pixel in common
    if step >= side - 1:
        assert len(indices) == len(positions)


@pytest.mark.parametrize(("step", "side"), [(16.4, 16), (16.51, 17), (136.17, 136)])
def test_small_rounded_steps_are_told_over_wide_gaps(step, side):
    columns = np.r_[0:7, 27:33, 190:194]
    grid = grid_of(at([(round(5 + step * c), round(7 + step * r)) for r in range(5) for c in columns], side))
    assert (grid.columns + 0).tolist() == columns.tolist() * 5
    assert grid.step == pytest.approx(step, abs=0.02)
    assert grid.apart == 1


def test_the_grid_is_found_through_rounding_and_gaps():
    places = [place for i, place in enumerate(grid(60, 40, 253.37, 253, 11, 5)) if i % 7]
    fitted = grid_of(at(places, 253))
    assert fitted.step == pytest.approx(253.37, abs=0.02)
    assert fitted.apart == 1
    np.testing.assert_array_equal(fitted.columns, np.round((np.array(places)[:, 0] - 11) / 253.37))
    alone = grid_of(at([(5, 5)]))
    assert (alone.columns.tolist(), alone.rows.tolist(), alone.step, alone.apart) == ([0], [0], 100, 1)


def test_relabelling_keeps_each_slides_mixture():
    """Slides of one cluster each: whatever is shuffled, all neighbours are of one cluster."""
    positions = joined(at(grid(5, 5, 100, 100)), at(grid(5, 5, 100, 100), slide="b"))
    table = join_counts(positions, np.repeat([0, 1], 25), 2)
    assert table[["share", "random", "low", "high"]].to_numpy() == pytest.approx(1)
    assert "Neighbours do not tell" in in_words(table)


def test_what_is_said():
    positions = at(grid(12, 12, 100, 100))
    halves = (positions.x >= 600).astype(int)
    assert in_words(join_counts(positions, halves, 2)).startswith("Clusters follow tissue: 95.5% of")
    board = (positions.x // 100 + positions.y // 100) % 2
    assert in_words(join_counts(positions, board, 2)).startswith("Clusters follow the tile grid")
    assert in_words(join_counts(at([(0, 0), (500, 0)]), np.array([0, 0]), 1)).startswith("No two tiles touch")


@pytest.mark.slow
def test_the_interval_holds_as_often_as_it_says():
    """Labels dealt at random lie outside the 95 % interval in about 5 % of cases."""
    positions, rng = at(grid(10, 10, 100, 100)), np.random.default_rng(1)
    outside = 0
    for case in range(100):
        table = join_counts(positions, rng.integers(0, 3, 100), 3, seed=case)
        outside += not table.low["all"] <= table.share["all"] <= table.high["all"]
    assert 1 <= outside <= 12
