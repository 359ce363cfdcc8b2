"""What a search for copies is worth on these very tiles: how many planted copies pass it, at how many false alarms.

"None found" says little by itself. So copies of training tiles, changed in all ways of `planted.KINDS`, go through the
same search, and both rates get a limit. Both are limits of what a fresh set shows, as large as the one at hand: in at
least 19 of 20 repeats such a set keeps both. What a fresh set shows scatters about the true rate, so that its limit is
the wider one, and the true rates keep it too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pfiles.machine.runtime import make_rng
from pfiles.measuring import memorisation
from pfiles.measuring.memorisation import CLOSEST, Judgement, nearest_tiles
from pfiles.measuring.planted import KINDS, Kind
from pfiles.tiles.mapped import Images
from pfiles.tiles.pixels import evenly_spaced

PLANTED = 32  # copies of each kind at most ...
ONE_IN = 40  # ... and at least 4, one for so many training tiles, so that small sets are judged in seconds
DRAWN_FROM = 2**13  # training tiles at most, evenly spaced
UNSURE = 0.05  # how often the certificate may be wrong, in either of its two limits


@dataclass(frozen=True)
class Certificate:
    """Of planted copies how many pass the search.

    passed: of each kind the number that pass. planted: how many there are of each kind. held_out: tiles that set the
    threshold, of which `CLOSEST` lie below it.
    """

    passed: dict[str, int]
    planted: int
    held_out: int

    @property
    def at_most(self) -> float:
        """The share that would pass at most, with 97.5 % certainty, of as many copies again of each kind."""
        return limit_of_as_many(sum(self.passed.values()), self.planted * len(self.passed), UNSURE / 2)

    @property
    def false_alarms(self) -> float:
        """The share that would lie below the threshold at most, with 97.5 % certainty, of as many images again that
        are like held-out tiles, but for tiles that were left out, if these are independent of each other.

        Exact then: the number below the smallest but r - 1 of m values has the beta-binomial distribution of r and
        m + 1 - r.
        """
        from scipy.stats import betabinom

        rank = int(np.ceil(max(1.0, CLOSEST * (self.held_out + 1))))
        count = betabinom.ppf(1 - UNSURE / 2, self.held_out, rank, self.held_out + 1 - rank)
        return float(count / self.held_out)

    def __str__(self) -> str:
        kinds, count = len(self.passed), self.planted * len(self.passed)
        passed = sum(self.passed.values())
        worst = max(self.passed, key=lambda kind: self.passed[kind])
        most = f", most of the kind '{worst}' ({self.passed[worst]} of {self.planted})" if passed else ""
        return (
            f"Of planted copies of {kinds} kinds at most {self.at_most:.1%} would pass, at {self.false_alarms:.1%} "
            "false alarms at most, with 95 % certainty if held-out tiles are independent of each other: "
            f"{passed} of {count} passed{most}."
        )

    def as_note(self) -> dict[str, object]:
        """The certificate in plain values, to be recorded."""
        return {
            "kinds": len(self.passed), "planted": self.planted * len(self.passed), "passed": self.passed,
            "pass_at_most": self.at_most, "false_alarms_at_most": self.false_alarms, "certainty": 1 - UNSURE,
        }  # fmt: skip


def limit_of_as_many(count: int, n: int, unsure: float) -> float:
    """Where `count` of n were seen, the share of n more that is exceeded with a chance of `unsure` at most.

    Exact (Thatcher 1964): whatever the number in all 2 n, how many of them are in the first half is hypergeometric; the
    limit is the largest number in the second half with which so few in the first have a chance above `unsure`. It holds
    for n draws of several rates too, of which the two halves hold equally many, and lies above the limit of the rate
    itself (Clopper and Pearson 1934).
    """
    from scipy.stats import hypergeom

    others = np.arange(n + 1)
    return float(others[hypergeom.cdf(count, 2 * n, count + others, n) > unsure].max() / n)


class Search(NamedTuple):
    """nearest, held_out: of images and of held-out tiles, see `nearest_tiles`. scores, leak: see `memorisation.judge`.
    certificate: None where the held-out tiles cannot set a threshold."""

    nearest: pd.DataFrame
    held_out: pd.DataFrame
    scores: Judgement
    leak: str
    certificate: Certificate | None


def search(images: Tensor, train: Images, held_out: Tensor, source: str, exhaustive: bool = False) -> Search:
    """`memorisation.search_and_judge`, with a certificate; all images are looked up at once.

    images, train, held_out: uint8 (N, 3, S, S). exhaustive: see `nearest_tiles`.
    """
    copies = plant(train, held_out)
    rows = nearest_tiles(torch.cat([images, held_out, *copies.values()]), train, exhaustive)
    first, second = len(images), len(images) + len(held_out)
    nearest, of_held_out, of_copies = rows[:first], rows[first:second].reset_index(drop=True), rows[second:]
    scores, leak = memorisation.judge(nearest.distance, of_held_out.distance, source)
    if leak:
        return Search(nearest, of_held_out, scores, leak, None)
    passed = (of_copies.distance.to_numpy() >= scores["threshold"]).reshape(len(copies), -1).sum(1)
    certificate = Certificate(
        dict(zip(copies, passed.tolist(), strict=True)), len(of_copies) // len(copies),
        len(held_out) - int(scores["left_out"] or 0),
    )  # fmt: skip
    return Search(nearest, of_held_out, scores, leak, certificate)


def copies_of_a_kind(training_tiles: int) -> int:
    return min(PLANTED, max(4, training_tiles // ONE_IN))


def plant(
    train: Images, others: Tensor, number: int | None = None, seed: int = 0, kinds: Mapping[str, Kind] = KINDS
) -> dict[str, Tensor]:
    """So many copies of each kind, each of a training tile drawn at random, mixed with one of `others`.

    Tiles of one colour are not drawn, as they hold nothing to copy; only where all are such, they have to be. Of more
    than 8,192 training tiles so many are drawn from, evenly spaced.

    number: None: one for 40 training tiles, at least 4 and at most 32.
    """
    number = copies_of_a_kind(len(train)) if number is None else number
    train = train[evenly_spaced(len(train), DRAWN_FROM)]
    shows = ~memorisation.is_flat(train)
    places = (shows if shows.any() else ~shows).nonzero()[:, 0]
    copies = {}
    for kind, change in kinds.items():
        rng = make_rng(seed, "planted copies", kind)
        of, beside = (torch.randint(len(tiles), (number,), generator=rng) for tiles in (places, others))
        copies[kind] = change(train[places[of]], others[beside], rng)
    return copies
