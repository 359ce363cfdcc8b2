"""How good each drawn tile is, in `tiles.csv`; and tiles drawn again until they are good enough.

Tiles are chosen by realism alone (see `measuring.quality`), within each cluster, so that no cluster becomes rarer.
What the choice did to diversity is told by other features, random convolutions, which had no part in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pfiles import artifacts, checkpoints
from pfiles.drawing.generator import Generator, find_generator
from pfiles.errors import InputError
from pfiles.machine.runtime import derive_seed
from pfiles.measuring import quality
from pfiles.measuring.features import random_convolutions
from pfiles.measuring.quality import Standard
from pfiles.paths import atomic_write, read_json, write_json
from pfiles.run import Run
from pfiles.tiles.pixels import evenly_spaced
from pfiles.vqvae import VQVAE

MOST_DRAWS = 20  # of one tile; the best of them is then taken
COMPARED = 500  # tiles whose distances say how diverse a set is
SMALLEST = 28  # pixels: the side that random convolutions take
Draw = Callable[..., Tensor]  # (cluster_ids, seeds=...) -> uint8 tiles


def standard_of(run: Run) -> Standard | None:
    """What a run's tiles are held against, made once and kept beside its networks; None for a run of fewer than two
    held-out tiles."""
    if min(len(run.tiles.train), len(run.tiles.test)) < 2:
        return None
    path = run.paths.models / f"quality{run.paths.suffix}.safetensors"
    note = path.with_suffix(".json")
    made_from = artifacts.generated_provenance(run).without("accept").as_note()
    if path.exists() and checkpoints.same_note(read_json(note, {}), made_from):
        return quality.read_standard(path, run.k, run.settings.image_size_px)
    standard = standard_for(run, run.networks())
    note.unlink(missing_ok=True)  # a kill between both files leaves none that speaks of the other
    with atomic_write(path) as file:
        file.write(quality.as_bytes(standard))
    write_json(note, made_from)
    return standard


def standard_in(folder: str | Path, generator: Generator) -> Standard | None:
    """What came with a generator, in a folder or "starter"; None if nothing did."""
    path = find_generator(folder) / quality.FILE
    side = generator.settings.image_size_px
    return quality.read_standard(path, generator.n_clusters, side) if path.exists() else None


def standard_for(run: Run, generator: Generator, search: bool = True) -> Standard:
    """What the tiles of a generator are held against, by tiles drawn for this alone and the run's own.

    search: see `quality.make_standard`.
    """
    ids = torch.arange(generator.n_clusters).repeat_interleave(quality.PER_CLUSTER)
    seeds = [derive_seed(run.seed, "quality", place) for place in range(len(ids))]
    train, held_out = (run.tiles.tensor(part) for part in (run.tiles.train, run.tiles.test))
    return quality.make_standard(
        generator.space.vqvae, train, held_out, generator.draw(ids, seeds=seeds), ids.numpy(), generator.n_clusters,
        run.seed, search,
    )  # fmt: skip


@dataclass
class Acceptance:
    """The tiles that passed and those that were thrown away, as features that had no part in the choice.

    odds: log-odds of the accepted tiles, in the order of the request, see `quality.Standard.odds`.
    """

    accept: float
    odds: list[np.ndarray] = field(default_factory=list)
    accepted: list[np.ndarray] = field(default_factory=list)
    rejected: list[np.ndarray] = field(default_factory=list)
    never: int = 0  # tiles that did not pass in as many draws as are made

    def __post_init__(self):
        if not 0 < self.accept <= 1:
            raise InputError(f"The share of tiles that pass must be above 0 and at most 1, but is {self.accept:g}.")

    def __str__(self) -> str:
        """How many were thrown away, and what that did to diversity."""
        accepted, rejected = (sum(map(len, parts)) for parts in (self.accepted, self.rejected))
        if not accepted:
            return "No tile was drawn."
        text = f"{accepted} tiles passed of {accepted + rejected} that were drawn, and {rejected} were thrown away: "
        text += f"the worst {1 - self.accept:.0%} of each cluster do not pass."
        if self.never:
            text += f" {self.never} tiles passed in none of {MOST_DRAWS} draws: the best of these was taken."
        if rejected and accepted > 1 and self.accepted[0].shape[1]:
            passing, everything = np.concatenate(self.accepted), np.concatenate([*self.accepted, *self.rejected])
            text += (
                " Diversity, the mean distance between two tiles in random convolutions, which had no part in the "
                f"choice, is {spread(passing, everything) / spread(everything, everything):.0%} of what it was."
            )
        return text


def spread(features: np.ndarray, scale: np.ndarray) -> float:
    """The mean distance of two tiles of these features (N, d), each feature divided by its deviation in `scale`."""
    deviation = scale.std(0)
    rows = features[evenly_spaced(len(features), COMPARED)] / np.where(deviation > 1e-6, deviation, 1)
    distances = torch.pdist(torch.from_numpy(rows).double())
    return float(distances.mean()) if len(distances) else float("nan")


def until_accepted(draw: Draw, standard: Standard | None, vqvae: VQVAE, acceptance: Acceptance) -> Draw:
    """A function like `draw` whose tiles pass: each is drawn anew, from seeds that follow from its own, until it does.

    Accepted and rejected tiles are added to `acceptance`. A tile depends on its cluster, its seed and the share alone.
    InputError if there is nothing to hold tiles against.
    """
    if acceptance.accept == 1:
        return draw
    if standard is None:
        raise InputError(
            "Tiles can be chosen only if there is something to compare them with: held-out tiles of the run, or "
            f"{quality.FILE} in the generator's folder."
        )

    def draw_until_accepted(cluster_ids: Tensor, seeds: Sequence[int]) -> Tensor:
        images = draw(cluster_ids, seeds=seeds)
        odds = standard.odds(quality.own_features(vqvae, images))
        for attempt in range(1, MOST_DRAWS):
            failing = np.flatnonzero(~standard.passes(odds, cluster_ids.numpy(), acceptance.accept))
            if not len(failing):
                break
            again = [derive_seed(seeds[place], "again", attempt) for place in failing.tolist()]
            others = draw(cluster_ids[failing], seeds=again)
            of_others = standard.odds(quality.own_features(vqvae, others))
            better = of_others > odds[failing]
            rejected = others.clone()
            rejected[better] = images[failing[better]]
            acceptance.rejected.append(_diversity_features(rejected))
            images[failing[better]], odds[failing[better]] = others[better], of_others[better]
        acceptance.never += int((~standard.passes(odds, cluster_ids.numpy(), acceptance.accept)).sum())
        acceptance.accepted.append(_diversity_features(images))
        acceptance.odds.append(odds)
        return images

    return draw_until_accepted


def _diversity_features(images: Tensor) -> np.ndarray:
    """Random convolutions (N, 54) of images, none of smaller ones than these take."""
    return random_convolutions()(images) if images.shape[2] >= SMALLEST else np.empty((len(images), 0), np.float32)


def qualities(
    generator: Generator,
    standard: Standard | None,
    images: Tensor,
    cluster_ids: Tensor,
    run: Run | None,
    acceptance: Acceptance | None = None,
) -> pd.DataFrame:
    """The quality of tiles as `tiles.csv` has it, see `quality.measure`; without a run it is not known how near a
    training tile is. acceptance: by which all of them were taken, if they were."""
    odds = np.concatenate(acceptance.odds) if acceptance is not None and acceptance.odds else None
    train = None if run is None else run.tiles.tensor(run.tiles.train)
    table = quality.measure(standard, generator.space.vqvae, generator.bank, images, cluster_ids, train, odds)
    return table.round({"probability": 3, "realism": 1, "nearest": 1, "structure": 2})
