"""Is a field what was asked for, and of one piece? Read back, joints, drift and repetition.

A joint is where two windows met at the last steps of the drawing. A small network is asked whether it can tell squares
across joints from squares inside of windows: 50 % means that joints show nothing. The same network gets squares across
joints of the same windows in another order, as if tiles lay side by side, which it should tell nearly always.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pfiles.errors import InputError
from pfiles.machine.runtime import derive_seed
from pfiles.measuring.fidelity import agreement
from pfiles.measuring.memorisation import COPY, against_held_out, nearest_tiles
from pfiles.measuring.tile_network import MIN_SIDE
from pfiles.measuring.two_sample import MIN_TILES, TILES, TwoSampleTest, can_learn, two_sample_test
from pfiles.tiles.pixels import evenly_spaced

PURE = 1.0  # share of a tile that is asked to be of one cluster, from which on the tile lies inside of it
SEARCHED = 200  # crops at most on each side of a search


class Joints(NamedTuple):
    """Where windows met at last, in pixels: at x, x + every and so on from the left; at y, y + every from the top."""

    x: int
    y: int
    every: int


def read_back(painted: np.ndarray, read: np.ndarray, shares: np.ndarray, n_clusters: int) -> dict[str, pd.DataFrame]:
    """How often the clusters (N,) that a map read are the painted ones (N,), 0-based.

    shares: the share of each place that was painted with its cluster (N,). Returns `agreement` for "all" places and,
    if some but not all lie "inside" of one cluster, for those.
    """
    tables = {}
    inside = shares >= PURE
    for name, places in (("all", np.ones(len(painted), bool)), ("inside", inside)):
        if name == "all" or 0 < inside.sum() < len(inside):
            pairs = np.ravel_multi_index((painted[places], read[places]), (n_clusters, n_clusters))
            tables[name] = agreement(np.bincount(pairs, minlength=n_clusters**2).reshape(n_clusters, n_clusters))
    return tables


def window_corners(size: tuple[int, int], joints: Joints) -> np.ndarray:
    """x and y (N, 2) of whole windows that have one to their right and below, at most 400, evenly spaced."""
    firsts = (joints.x, joints.y)
    along = [
        np.arange(first, length - 2 * joints.every + 1, joints.every)
        for first, length in zip(firsts, size, strict=True)
    ]
    corners = np.stack(np.meshgrid(*along), -1).reshape(-1, 2)
    return corners[evenly_spaced(len(corners), TILES)] if len(corners) else corners


@dataclass(frozen=True)
class Seams:
    """How well a small network tells squares across joints from squares inside of windows.

    across_joints: of the field. side_by_side: of the same windows in another order. inside: half of the squares inside
    of windows from the other half, which is what no difference looks like.
    """

    across_joints: TwoSampleTest
    side_by_side: TwoSampleTest
    inside: TwoSampleTest


def seams(pairs_of_windows: Tensor, every: int, seed: int, device: torch.device | str) -> Seams:
    """pairs_of_windows: uint8 (N, 3, 2 e, 2 e), each a window of e = `every` px with those to its right and below.

    Squares of half a window: one in the middle of the window, one around its lower right corner. No pixel is in both.
    InputError for too few windows or too small ones.
    """
    side, quarter = every // 2, every // 4
    if side < MIN_SIDE or len(pairs_of_windows) < 2 * MIN_TILES:
        raise InputError(
            f"Seams need at least {2 * MIN_TILES} windows of {2 * MIN_SIDE} px or more, but there are "
            f"{len(pairs_of_windows)} of {every} px: draw a larger field."
        )

    def cut(x: int, y: int, width: int = side) -> Tensor:
        return pairs_of_windows[:, :, y : y + width, x : x + width]

    inside, across = cut(quarter, quarter), cut(every - quarter, every - quarter)
    rng = np.random.default_rng(derive_seed(seed, "side by side"))
    a, b, c, d = (torch.from_numpy(rng.permutation(len(inside))) for _ in range(4))
    half, far = side // 2, every - side // 2
    quarters = [cut(x, y, half)[order] for order, x, y in ((a, far, far), (b, 0, far), (c, far, 0), (d, 0, 0))]
    mixed = torch.cat([torch.cat(quarters[:2], 3), torch.cat(quarters[2:], 3)], 2)
    guard = can_learn(inside, seed, device)
    return Seams(
        two_sample_test(across, inside, seed, device, guard=guard),
        two_sample_test(mixed, inside[:, :, : 2 * half, : 2 * half], seed, device, guard=guard),
        two_sample_test(inside[::2], inside[1::2], seed, device, guard=guard),
    )


def drift(tiles: Tensor, places: np.ndarray, cluster_ids: np.ndarray) -> dict[str, float]:
    """How far colours change from one edge of a field to the other, beyond what the clusters explain.

    tiles: uint8 (N, 3, S, S). places: their x and y (N, 2). Mean colours are fitted by a plane over the places and one
    level for each cluster (least squares). Returns the largest change of a colour over the field along one side,
    "levels" of 255, and its "standard_error"; "spread": the deviation of mean colours within a cluster.
    """
    if len(tiles) < MIN_TILES:
        raise InputError(
            f"Drift of colours needs at least {MIN_TILES} tiles away from borders, but there are {len(tiles)}: draw a "
            "larger field."
        )
    colours = tiles.float().mean((2, 3)).cpu().double().numpy()
    span = np.ptp(places, axis=0).clip(1)
    sides = np.flatnonzero(np.ptp(places, axis=0) > 0)
    design = np.column_stack([(places / span)[:, sides], cluster_ids[:, None] == np.unique(cluster_ids)])
    free = max(len(design) - design.shape[1], 1)
    fit, *_ = np.linalg.lstsq(design, colours, rcond=None)
    variance = np.square(colours - design @ fit).sum(0) / free  # (3,)
    errors = np.sqrt(np.diag(np.linalg.pinv(design.T @ design))[: len(sides), None] * variance)
    largest = np.unravel_index(np.abs(fit[: len(sides)]).argmax(), errors.shape)
    return {
        "levels": float(fit[largest]), "standard_error": float(errors[largest]),
        "spread": float(np.sqrt(variance.mean())),
    }  # fmt: skip


def repetition(crops: Tensor, real: Tensor | None = None) -> dict[str, float | int | None]:
    """Does a field show the same twice? The nearest of half of its crops for each of the other half.

    crops, real: uint8 (N, 3, S, S), without overlap; of each at most 400. Returns the number of crops "searched", how
    many have a "copy" among the others, the "smallest" distance; and, with real tiles, the share "closer" than the
    closest 1 % of real tiles are to each other, which is "expected" by chance.
    """

    def distances(tiles: Tensor) -> np.ndarray:
        if len(tiles) < 2:
            raise InputError(f"Whether a field repeats itself is seen in two places or more: there is {len(tiles)}.")
        tiles = tiles[evenly_spaced(len(tiles), 2 * SEARCHED)]
        return nearest_tiles(tiles[::2], tiles[1::2]).distance.to_numpy()

    distance = distances(crops)
    counts = {"searched": len(distance), "copies": int((distance < COPY).sum()), "smallest": float(distance.min())}
    if real is None:
        return {**counts, "closer": None, "expected": None}
    judged = against_held_out(distance, distances(real))
    return {**counts, "closer": judged["closer"], "expected": judged["expected"]}
