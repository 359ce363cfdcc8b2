"""Do clusters follow tissue? Neighbouring tiles of one cluster beside the same tiles with their clusters shuffled."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pfiles.machine.runtime import derive_seed

RELABELLINGS = 499


@dataclass(frozen=True)
class Grid:
    """The grid on which the tiles of one slide were cut.

    columns, rows: (N,) int from 0, the cell of each tile. step: from one to the next, in pixels of level 0.
    apart: how many steps lie between tiles that share no pixel; 1 where tiles do not overlap.
    """

    columns: np.ndarray
    rows: np.ndarray
    step: float
    apart: int


def grid_of(positions: np.recarray) -> Grid:
    """The grid of the tiles of one slide, given as `Tiles.positions`; their places are rounded to whole pixels."""
    places = [np.unique(axis, return_inverse=True) for axis in (positions.x, positions.y)]
    gaps = [np.diff(distinct) for distinct, _ in places]
    side = int(positions.side[0])
    lengths = np.sort(np.concatenate(gaps))
    step = float(lengths.min(initial=2 * side))
    if step >= 2 * side:  # tiles far apart, of which a larger grid tells nothing
        step = side
    pixels = steps = 0
    for length in lengths.tolist():  # narrow gaps first: they tell a step that is no whole number, wide ones need it
        pixels, steps = pixels + length, steps + round(length / step)
        step = pixels / steps
    cells = [np.concatenate([[0], np.round(gap / step).astype(int).cumsum()]) for gap in gaps]
    columns, rows = (cell[index] for cell, (_, index) in zip(cells, places, strict=True))
    return Grid(columns, rows, step, max(1, math.ceil((side - 1) / step)))  # sides are rounded as well


def neighbours(positions: np.recarray) -> tuple[np.ndarray, np.ndarray]:
    """Tiles that share no pixel, and which of them lie side by side or one above the other on one slide.

    Returns indices (M,) into `positions`, all of them unless tiles overlap, and pairs (E, 2) of indices into those.
    """
    apart_tiles, pairs, count = [], [], 0
    for slide in np.unique(positions.slide):
        members = np.flatnonzero(positions.slide == slide)
        grid = grid_of(positions[members].view(np.recarray))
        apart = (grid.columns % grid.apart == 0) & (grid.rows % grid.apart == 0)
        columns, rows = (cells[apart] // grid.apart for cells in (grid.columns, grid.rows))
        width = columns.max(initial=0) + 2  # one more than there are columns: the last has no neighbour in the next row
        cells = rows * width + columns
        order = np.argsort(cells)
        for offset in (1, width):
            nearest = order[np.searchsorted(cells, cells + offset, sorter=order).clip(max=len(cells) - 1)]
            starts = np.flatnonzero(cells[nearest] == cells + offset)
            pairs.append(count + np.stack([starts, nearest[starts]], axis=1))
        apart_tiles.append(members[apart])
        count += len(cells)
    return np.concatenate(apart_tiles), np.concatenate(pairs)


def join_counts(positions: np.recarray, cluster_ids: np.ndarray, n_clusters: int, seed: int = 765) -> pd.DataFrame:
    """The share of neighbouring tiles that are of one cluster, beside the same where tiles are relabelled at random.

    positions: of N tiles; cluster_ids: (N,) int, 0-based. Rows: "all", and clusters by number from 1, of whose tiles'
    neighbours the share is taken. Columns: neighbours (pairs, or of a cluster its tiles' neighbours), share, and
    random, low and high: mean and 95 % interval of that share under 499 relabellings, which shuffle the clusters within
    each slide, so that no slide's mixture changes (join counts, Moran 1948; Cliff and Ord 1981). NaN without
    neighbours.
    """
    apart_tiles, pairs = neighbours(positions)
    cluster_ids = cluster_ids[apart_tiles]
    _, slide = np.unique(positions.slide[apart_tiles], return_inverse=True)
    by_slide = np.argsort(slide, kind="stable")
    rng = np.random.default_rng(derive_seed(seed, "join counts"))

    def counts(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of all and of each cluster: neighbours, and those that are of one cluster."""
        first, second = ids[pairs].T
        ends = np.bincount(first, minlength=n_clusters) + np.bincount(second, minlength=n_clusters)
        same = np.bincount(first[first == second], minlength=n_clusters)
        return np.concatenate([[len(pairs)], ends]), np.concatenate([[same.sum()], 2 * same])

    def share(ids: np.ndarray) -> np.ndarray:
        ends, same = counts(ids)
        return np.divide(same, ends, out=np.full(len(ends), np.nan), where=ends > 0)

    shuffled, relabelled = np.empty((RELABELLINGS, n_clusters + 1)), np.empty_like(cluster_ids)
    for row in shuffled:
        relabelled[by_slide] = cluster_ids[np.lexsort((rng.random(len(cluster_ids)), slide))]
        row[:] = share(relabelled)
    table = pd.DataFrame(shuffled)
    columns = {
        "neighbours": counts(cluster_ids)[0],
        "share": share(cluster_ids),
        "random": table.mean(),
        "low": table.quantile(0.025),
        "high": table.quantile(0.975),
    }
    return pd.DataFrame(columns).set_axis(["all", *range(1, n_clusters + 1)])


def in_words(table: pd.DataFrame) -> str:
    """What the first row of `join_counts` says: do clusters follow tissue or the tile grid?"""
    _, share, random, low, high = table.loc["all"]
    if np.isnan(share):
        return "No two tiles touch, so neighbours cannot tell whether clusters follow tissue or the tile grid."
    verdict = "Neighbours do not tell clusters from labels dealt at random"
    if share > high:
        verdict = "Clusters follow tissue"
    elif share < low:
        verdict = "Clusters follow the tile grid: neighbours differ more often than labels dealt at random"
    return (
        f"{verdict}: {share:.1%} of neighbouring tiles are of one cluster, where {random:.1%} ({low:.1%} to "
        f"{high:.1%}) would be if each slide's tiles were relabelled at random."
    )
