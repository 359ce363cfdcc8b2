"""Can a small network tell two sets of tiles apart? The classifier two-sample test (Lopez-Paz and Oquab 2017).

A network learns on one half of both sets which tile is of which, and is tested on the other half: 50 % means that it
found no difference, 100 % that it recognises every tile. A network that failed to learn would reach 50 % as well,
which would look like a perfect generator. So the same network, trained in the same way, must first tell real tiles
from the same tiles blurred by 1 px; where it cannot, the result says so and has no accuracy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from pfiles.errors import InputError
from pfiles.machine.runtime import make_rng
from pfiles.measuring.fidelity import wilson_interval
from pfiles.measuring.tile_network import Trained, logits, require_large_enough, train
from pfiles.tiles.pixels import evenly_spaced

TILES = 400  # of each set at most; more are thinned evenly
MIN_TILES = 20  # of each set
STEPS = 200  # of one training
TRIALS = 3  # trainings, of which the best by validation counts
ENOUGH = 0.95  # validation accuracy after which no other is tried: the sets can be told apart
VALIDATION = 5  # every fifth tile of the learning half
GUARD_BLUR_PX = 1.0  # what the network must be able to see
GUARD_ACCURACY = 0.75  # and in how many of the tiles
BLURS_PX = (0.0, 1.0, 2.0)  # scales at which two sets are compared
LINEAR_PARTS = 5  # of the cross-validation of a linear classifier
BLUR_AT_ONCE = 200  # tiles; changes memory and speed only


@dataclass(frozen=True)
class TwoSampleTest:
    """What a two-sample test found.

    right, tiles: test tiles, of both sets, that were sorted rightly, and all.
    guard: the accuracy with which the same network told real tiles from the same tiles blurred by 1 px more.
    validation: of the training that counts. order: indices into the first set of its test tiles, least convincing
    first: those the network was surest to be of the first set.
    """

    right: int
    tiles: int
    guard: float
    validation: float
    order: np.ndarray

    @property
    def learned(self) -> bool:
        return self.guard >= GUARD_ACCURACY

    @property
    def accuracy(self) -> float | None:
        """The share sorted rightly, 0.5 by chance; None if the network did not learn."""
        return self.right / self.tiles if self.learned else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the accuracy (Wilson 1927)."""
        return wilson_interval(self.right, self.tiles) if self.learned else None

    def __str__(self) -> str:
        if not self.learned:
            return f"did not learn (it told a blur of {GUARD_BLUR_PX:g} px in {self.guard:.0%}): nothing is known"
        low, high = wilson_interval(self.right, self.tiles)
        return f"{self.accuracy:.0%} ({low:.0%} to {high:.0%})"

    def row(self) -> dict[str, float | None]:
        """The row of a table; accuracy, low and high are absent if the network did not learn."""
        low, high = self.interval or (None, None)
        columns = {"accuracy": self.accuracy, "low": low, "high": high}
        return {**columns, "test tiles": self.tiles, "learned": self.learned, "guard": self.guard}


def two_sample_test(
    a: Tensor,
    b: Tensor,
    seed: int,
    device: torch.device | str,
    blur_px: float = 0.0,
    trials: int = TRIALS,
    guard: float | None = None,
) -> TwoSampleTest:
    """How well a small network can tell tiles of `a` from tiles of `b`, which are real or, of the two, closer to real.

    a, b: uint8 tiles (N, 3, S, S) and (M, 3, S, S); of each at most 400, and as many as of the other, are used. Where
    both have one length, tile i of both is on the same side of every split, as the two may belong together (a tile and
    its reconstruction). blur_px: both sets are blurred by a Gaussian of this standard deviation first, to see at which
    scale they differ. trials: trainings from new weights, fewer once one sorts 95 % of the validation part; the
    best one on it is tested. guard: accuracy of `can_learn` on `b` at this blur, where it is known already.

    The result follows from `seed`. InputError for tiles that cannot be compared.
    """
    _check(a, b)
    size = min(len(a), len(b), TILES)
    selections = [torch.from_numpy(evenly_spaced(len(x), size)) for x in (a, b)]
    if guard is None:
        guard = can_learn(b, seed, device, blur_px, trials)
    sides = [blur(x[index], blur_px, device) for x, index in zip((a, b), selections, strict=True)]
    log_odds, test, validation = _tell_apart(sides[0], sides[1], seed, device, trials)
    surest = log_odds[: len(test)].argsort(descending=True, stable=True).cpu()
    is_right = torch.cat([log_odds[: len(test)] > 0, log_odds[len(test) :] <= 0])
    return TwoSampleTest(int(is_right.sum()), len(is_right), guard, validation, selections[0][test[surest]].numpy())


def can_learn(
    tiles: Tensor, seed: int, device: torch.device | str, blur_px: float = 0.0, trials: int = TRIALS
) -> float:
    """The guard: the accuracy with which the network tells tiles from the same tiles blurred by 1 px more."""
    tiles = tiles[torch.from_numpy(evenly_spaced(len(tiles), TILES))]
    sides = [blur(tiles, by, device) for by in (blur_px + GUARD_BLUR_PX, blur_px)]
    log_odds, test, _ = _tell_apart(sides[0], sides[1], seed, device, trials, enough=GUARD_ACCURACY)
    return float(torch.cat([log_odds[: len(test)] > 0, log_odds[len(test) :] <= 0]).float().mean())


class _Evidence(NamedTuple):
    """log_odds: of belonging to `a`, for each test tile, those of `a` first. test: the places of these tiles."""

    log_odds: Tensor
    test: Tensor
    validation: float


def _tell_apart(
    a: Tensor, b: Tensor, seed: int, device: torch.device | str, trials: int, enough: float = ENOUGH
) -> _Evidence:
    """Train on one half of equally long sets, choose by a part of that, and judge the other half.

    enough: validation accuracy from which on no further training is tried.
    """
    order = torch.randperm(len(a), generator=make_rng(seed, "two-sample", "halves"))
    train_set, test = order[: (len(a) + 1) // 2], order[(len(a) + 1) // 2 :]
    is_validation = torch.arange(len(train_set)) % VALIDATION == 0
    parts = [_labelled(a[index], b[index]) for index in (train_set[~is_validation], train_set[is_validation])]
    trainings: list[Trained] = []
    while len(trainings) < trials and not any(trained.accuracy >= enough for trained in trainings):
        seeds = (seed, "two-sample", len(trainings))
        trainings.append(train(parts[0], parts[1], 2, STEPS, seeds, device))
    best = max(trainings, key=lambda trained: (trained.accuracy, -trained.loss))  # the first of equal ones
    class_logits = logits(best.network, torch.cat([a[test], b[test]]))
    return _Evidence(class_logits[:, 0] - class_logits[:, 1], test, best.accuracy)


def _labelled(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([a, b]), torch.tensor([0, 1]).repeat_interleave(torch.tensor([len(a), len(b)]))


def blur(tiles: Tensor, sigma: float, device: torch.device | str = "cpu") -> Tensor:
    """uint8 tiles (N, 3, S, S) behind a Gaussian of standard deviation `sigma` (pixels), mirrored at the border."""
    if sigma == 0:
        return tiles.to(device)
    reach = min(int(4 * sigma + 0.5), tiles.shape[2] - 1)
    x = torch.arange(-reach, reach + 1, device=device)
    weights = torch.exp(-x.square() / (2 * sigma**2))
    weights = weights / weights.sum()
    blurred = []
    for batch in tiles.split(BLUR_AT_ONCE):
        padded = F.pad(batch.to(device).float(), (reach,) * 4, mode="reflect").flatten(0, 1)[:, None]
        rows = F.conv2d(padded, weights[None, None, None, :])
        blurred.append(F.conv2d(rows, weights[None, None, :, None]).round().to(torch.uint8).view(batch.shape))
    return torch.cat(blurred)


def require_blurs(blurs_px: Any) -> Sequence[float]:
    """The blurs as they are; InputError, before any work, for what is no list of them."""
    is_list = isinstance(blurs_px, list | tuple) and len(blurs_px) > 0
    if not is_list or not all(type(px) in (int, float) and 0 <= px < math.inf for px in blurs_px):
        raise InputError(f"blurs_px must be a list of pixels from 0 on, such as [0, 1.5], but is {blurs_px!r}.")
    return blurs_px


def compare(
    pairs: dict[str, tuple[Tensor, Tensor]],
    seed: int,
    device: torch.device | str,
    blurs_px: Sequence[float] = BLURS_PX,
    trials: int = TRIALS,
) -> dict[str, dict[float, TwoSampleTest]]:
    """The `two_sample_test` of each pair of sets by name, at full resolution and with both sides blurred."""
    results: dict[str, dict[float, TwoSampleTest]] = {}
    guards: dict[tuple[int, float], float] = {}  # of one set at one blur: several pairs share their second set
    for name, (a, b) in pairs.items():
        _check(a, b)
        results[name] = {}
        for px in blurs_px:
            key = id(b), px
            guards[key] = guards[key] if key in guards else can_learn(b, seed, device, px, trials)
            results[name][px] = two_sample_test(a, b, seed, device, px, trials, guards[key])
    return results


def linear_probe_accuracy(a: np.ndarray, b: np.ndarray) -> float:
    """The share of two sets of features (N, d), (M, d) that a linear classifier sorts rightly; 0.5 is chance.

    At most 400 of each set, standardised; logistic regression with C = 1 / d, cross-validated in five parts. A row of
    `b` is in the same part as the row of `a` that is nearest to it, see `same_part`. NaN for sets of fewer than 10.
    """
    from sklearn.linear_model import LogisticRegression  # half a second to import, which few notebooks need
    from sklearn.model_selection import PredefinedSplit, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    size = min(len(a), len(b), TILES)
    if size < 2 * LINEAR_PARTS:
        return float("nan")
    a, b = (side[evenly_spaced(len(side), size)] for side in (a, b))
    x, is_b, split = np.concatenate([a, b]), np.arange(2 * size) >= size, PredefinedSplit(same_part(a, b))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1 / x.shape[1], max_iter=1000))
    parts = np.array([len(test) for _, test in split.split()])
    return float(np.average(cross_val_score(classifier, x, is_b, cv=split), weights=parts))


def same_part(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """In which of five parts the rows of two sets of features (N, d), (N, d) are cross-validated: (2 N,), a before b.

    Those of `a` go by turns, those of `b` with the row of `a` nearest to them once all are standardised. So a copy is
    never judged by a classifier that learnt its original as one of the other set: that would sort it wrongly, and make
    a generator of copies look better than real tiles. Where a part would hold more than two fifths of `b`, since most
    of them are alike, all of `b` go by turns.
    """
    spread = np.concatenate([a, b]).std(0)
    scale = np.where(spread > 0, spread, 1)
    by_turns = np.arange(len(a)) % LINEAR_PARTS
    nearest = torch.cdist(torch.from_numpy(b / scale).double(), torch.from_numpy(a / scale).double()).argmin(1).numpy()
    of_b = by_turns[nearest]
    if np.bincount(of_b, minlength=LINEAR_PARTS).max() > 2 / LINEAR_PARTS * len(b):
        of_b = by_turns
    return np.concatenate([by_turns, of_b])


def stage_comparisons(
    generated: Tensor, real: Tensor, reconstructed: Tensor | None = None, held_out: Tensor | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """The pairs that say which part gives generated tiles away, for `compare`; all uint8 tiles (N, 3, S, S).

    real: tiles of the mix of slides that was trained on. One half of them from the other is the floor of every other
    row: it compares like with like. reconstructed: what the autoencoder makes of the tiles `real`, in their order.
    held_out: real tiles of other slides or regions; how well those can be told is no floor, but says what it means to
    be of another slide.
    """
    pairs = {"generated from real": (generated, real)}
    if reconstructed is not None:
        pairs["generated from reconstructed: the UNet's part"] = generated, reconstructed
        pairs["reconstructed from real: the autoencoder's part"] = reconstructed, real
    pairs["real from real: the floor"] = real[::2], real[1::2]
    if held_out is not None:
        pairs["training from held-out real tiles"] = real, held_out
    return pairs


def table(results: dict[str, dict[float, TwoSampleTest]]) -> pd.DataFrame:
    """The results of `compare`, a row for each pair and blur."""
    rows = {
        name + (f", both blurred by {px:g} px" if px else ""): test.row()
        for name, tests in results.items()
        for px, test in tests.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _check(a: Tensor, b: Tensor) -> None:
    for tiles in (a, b):
        require_large_enough(tiles)
    if a.shape[1:] != b.shape[1:]:
        raise InputError(
            f"A two-sample test needs tiles of one size, but got {a.shape[2]} px and {b.shape[2]} px: "
            "bring them to one size first."
        )
    if min(len(a), len(b)) < MIN_TILES:
        raise InputError(
            f"A two-sample test needs at least {MIN_TILES} tiles of each set, but got {len(a)} and {len(b)}: "
            "draw more tiles."
        )
