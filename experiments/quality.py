"""Does throwing the least real tiles away help, to judges that had no part in the choice?

    python -m experiments.quality --data lung_he_5500.zip [--number 1000] [--seed 28] [--judges random]
        [--standard FILE] [--tiles FILE]

Tiles are drawn from the starter; each half of them is chosen by what was learnt from the other half, within each
cluster, as `draw --accept` does, which learns against training tiles. Two other choices stand beside it: one that
learns against reconstructed training tiles, so that it cannot look at what the decoder does to all tiles, and one that
cheats, as it learns from the judge's own features. Judges are linear classifiers of random convolutions and of
photographs, against the held-out tiles as they are and reconstructed; beside the tiles that were kept stand as many
that were picked at random. --standard writes what all drawn tiles teach, for the starter's folder; --tiles keeps the
drawn tiles.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pfiles import Generator
from pfiles.cached import cached_tensor
from pfiles.drawing.sampling import image_seeds
from pfiles.latents import reconstruct
from pfiles.machine.runtime import derive_seed
from pfiles.measuring import quality
from pfiles.measuring.distribution import prdc
from pfiles.measuring.features import make_extractor
from pfiles.measuring.two_sample import linear_probe_accuracy
from pfiles.paths import atomic_write
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.pixels import evenly_spaced, to_uint8

ACCEPT = (0.8, 0.5)
JUDGES = ("random", "imagenet")
RANDOM = 3  # choices at random, whose mean is given


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    generator = Generator.load("starter")
    tiles = load_tiles(str(args.data.absolute()), generator.settings.image_size_px)
    train, held_out = tiles.tensor(tiles.train), tiles.tensor(tiles.test)
    ids = generator.cluster_ids(args.number, args.seed).numpy()
    generated = cached_tensor(
        args.tiles, {"number": args.number, "seed": args.seed},
        lambda: generator.draw(torch.from_numpy(ids), seeds=image_seeds(args.seed, range(args.number))),
    )  # fmt: skip
    table = measure(generator, train, held_out, generated, ids, args.seed, args.judges)
    print(table.to_string(float_format="{:.3f}".format))
    if args.standard is not None:
        vqvae, k = generator.space.vqvae, generator.n_clusters
        standard = quality.make_standard(vqvae, train, held_out, generated, ids, k, args.seed, search=False)
        with atomic_write(args.standard) as file:
            file.write(quality.as_bytes(standard))


def measure(
    generator: Generator, train: torch.Tensor, held_out: torch.Tensor, generated: torch.Tensor, ids: np.ndarray,
    seed: int, judges: Sequence[str] = JUDGES,
) -> pd.DataFrame:  # fmt: skip
    """What each judge says of the tiles that pass and of as many at random, a row for each judge, choice and share."""
    vqvae, train = generator.space.vqvae, train[evenly_spaced(len(train), quality.TRAIN_TILES)]
    decoded, decoded_held_out = (to_uint8(reconstruct(vqvae, tiles)).cpu() for tiles in (train, held_out))
    of_train, of_decoded, of_generated = (quality.own_features(vqvae, tiles) for tiles in (train, decoded, generated))
    rows = {}
    for judge in judges:
        sets = (held_out, decoded_held_out, generated, train)
        real, reconstructed, of_drawn, learnt = map(make_extractor(judge), sets)
        choices = {
            "training tiles": (of_train, of_generated),
            "reconstructions": (of_decoded, of_generated),
            "cheating": (learnt, of_drawn),
        }
        for choice, features in choices.items():
            for accept in ACCEPT:
                passing = passes(*features, ids, accept)
                rows[f"{judge}, {choice}, accept {accept:g}"] = judged(real, reconstructed, of_drawn, passing, seed)
    return pd.DataFrame.from_dict(rows, orient="index")


def passes(of_real: np.ndarray, of_drawn: np.ndarray, ids: np.ndarray, accept: float) -> np.ndarray:
    """Which drawn tiles of these features (N, d) and clusters (N,) are the best of their cluster, as booleans (N,).

    A tile is judged by what was learnt from the other half of the tiles.
    """
    passing, half = np.zeros(len(of_drawn), bool), np.arange(len(of_drawn)) % 2
    for side in (0, 1):
        mean, scale, weights = quality.learn(of_real, of_drawn[half == side])
        odds = (of_drawn - mean) / scale @ weights
        for cluster in np.unique(ids):
            others = np.flatnonzero((half != side) & (ids == cluster))
            best = others[odds[others].argsort()[::-1]]
            passing[best[: round(accept * len(best))]] = True
    return passing


def judged(
    real: np.ndarray, reconstructed: np.ndarray, of_drawn: np.ndarray, passing: np.ndarray, seed: int
) -> dict[str, float]:
    """What is said of the tiles of the features `of_drawn` (N, d) that pass, and of as many at random."""
    rng = np.random.default_rng(derive_seed(seed, "at random"))
    at_random = [np.sort(rng.permutation(len(of_drawn))[: passing.sum()]) for _ in range(RANDOM)]
    return {
        "kept": passing.sum(),
        "told apart, random": np.mean([linear_probe_accuracy(real, of_drawn[places]) for places in at_random]),
        "told apart, kept": linear_probe_accuracy(real, of_drawn[passing]),
        "told apart, thrown away": linear_probe_accuracy(real, of_drawn[~passing]),
        "from reconstructions, random": np.mean(
            [linear_probe_accuracy(reconstructed, of_drawn[places]) for places in at_random]
        ),
        "from reconstructions, kept": linear_probe_accuracy(reconstructed, of_drawn[passing]),
        "recall, random": np.mean([prdc(real, of_drawn[places])["recall"] for places in at_random]),
        "recall, kept": prdc(real, of_drawn[passing])["recall"],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.quality")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=28)
    parser.add_argument("--judges", nargs="+", choices=JUDGES, default=JUDGES)
    parser.add_argument("--standard", type=Path)
    parser.add_argument("--tiles", type=Path, default=Path("drawn.pt"))
    return parser


if __name__ == "__main__":
    main()
