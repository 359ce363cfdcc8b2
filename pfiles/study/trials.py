"""The tiles of a reader study: real ones, generated ones and catch tiles, and an order for each reader."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pfiles.errors import InputError
from pfiles.machine.runtime import derive_seed
from pfiles.measuring.structure import MIN_SIDE, blocks_of, shuffled
from pfiles.measuring.two_sample import blur

Question = Literal["real", "cluster"]  # is this tile real? or: which cluster is it of?
Kind = Literal["real", "generated", "blurred", "shuffled", "example"]
QUESTIONS: tuple[Question, ...] = ("real", "cluster")
LEAST, MOST = 20, 1000  # tiles of a study, without the catch tiles
BLUR = 1 / 16  # of the side: the standard deviation by which a real tile is blurred for good
SHOWN = 4  # examples of each cluster


class Counts(NamedTuple):
    """How many tiles of each kind a study shows; repeats are real and generated in equal numbers."""

    real: int
    generated: int
    repeats: int
    blurred: int
    shuffled: int
    examples: int

    @property
    def held_out(self) -> int:
        """How many held-out real tiles these need."""
        return self.real + self.blurred + self.shuffled


@dataclass(frozen=True)
class Trial:
    """A tile of a study. cluster: from 1, as asked for or as assigned. source: where it comes from, in a few words.

    repeats: the place of the trial that is shown a second time by this one; None for all others.
    """

    image: Tensor
    kind: Kind
    cluster: int
    source: str
    repeats: int | None = None


def counts_of(question: Question, tiles: int) -> Counts:
    """How many tiles of each kind make a study of so many; catch tiles come on top. InputError for too few or many."""
    if not LEAST <= tiles <= MOST or tiles % 2:
        raise InputError(f"--tiles must be an even number from {LEAST} to {MOST}, but is {tiles}.")
    few = max(1, tiles // 20)
    altered = few if question == "real" else 0
    return Counts(tiles // 2, tiles // 2, 2 * few, altered, altered, 0 if question == "real" else 2 * few)


def pick_real(cluster_ids: np.ndarray, clusters: np.ndarray, seed: int) -> np.ndarray:
    """The places (n,) of tiles, none twice, of the clusters named (n,); of another cluster once a cluster has no more.

    InputError if there are fewer than n tiles.
    """
    if len(cluster_ids) < len(clusters):
        raise InputError(
            f"The study needs {len(clusters)} held-out tiles, but the run has {len(cluster_ids)}: ask for "
            "fewer --tiles."
        )
    free = np.random.default_rng(derive_seed(seed, "real tiles of a study")).permutation(len(cluster_ids)).tolist()
    places = []
    for cluster in clusters.tolist():
        place = next((place for place in free if cluster_ids[place] == cluster), free[0])
        free.remove(place)
        places.append(place)
    return np.array(places)


def make_trials(
    counts: Counts,
    real: Sequence[Trial],
    generated: Sequence[Trial],
    examples: Sequence[Trial],
    seed: int,
) -> list[Trial]:
    """All tiles of a study: those to be judged first, then the catch tiles.

    real: `counts.held_out` tiles; the last of them are blurred or shuffled. examples: those of the clusters, some of
    which are asked as well.
    """
    rng = np.random.default_rng(derive_seed(seed, "catch tiles"))
    judged = [*real[: counts.real], *generated]
    half = counts.repeats // 2
    again = [*rng.choice(counts.real, half, replace=False), *(counts.real + rng.choice(counts.generated, half, False))]
    repeats = [replace(judged[i], repeats=int(i)) for i in again]
    questions = [examples[i] for i in rng.choice(len(examples), min(counts.examples, len(examples)), replace=False)]
    return [*judged, *repeats, *_altered(counts, real[counts.real :], seed), *questions]


def _altered(counts: Counts, real: Sequence[Trial], seed: int) -> list[Trial]:
    """Real tiles that are blurred, and others made of blocks of several tiles."""
    if not real:
        return []
    images = torch.stack([trial.image for trial in real])
    side = images.shape[2]
    if side < MIN_SIDE:
        raise InputError(f"A reader study needs tiles of at least {MIN_SIDE} px, but these have {side} px.")
    blurred, blocks = blur(images, BLUR * side), shuffled(images, blocks_of(side)[0], seed)
    altered = [Trial(blurred[i], "blurred", real[i].cluster, real[i].source) for i in range(counts.blurred)]
    mixed = range(counts.blurred, counts.blurred + counts.shuffled)
    return altered + [Trial(blocks[i], "shuffled", real[i].cluster, "held-out tiles, mixed") for i in mixed]


def order_of(trials: Sequence[Trial], reader: int, seed: int) -> list[int]:
    """The places of all trials in a reader's own order; what is shown twice comes once in each half."""
    rng = np.random.default_rng(derive_seed(seed, "order", reader))
    pairs = [(trial.repeats, i) for i, trial in enumerate(trials) if trial.repeats is not None]
    paired = {i for pair in pairs for i in pair}
    alone = rng.permutation([i for i in range(len(trials)) if i not in paired]).tolist()
    middle = len(alone) // 2
    halves = [alone[:middle], alone[middle:]]
    for first, second in pairs:
        halves[0].append(first)
        halves[1].append(second)
    return [int(i) for half in halves for i in rng.permutation(half)]
