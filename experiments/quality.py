"""Does throwing the least real tiles away help, to judges that had no part in the choice?

    python -m experiments.quality --data lung_he_5500.zip [--number 1000] [--seed 28] [--standard FILE] [--tiles FILE]

Tiles are drawn from the starter; each half of them is chosen by what was learnt from the other half, within each
cluster, as `draw --accept` does. Judges are linear classifiers of random convolutions and of photographs, against the
held-out tiles; beside the tiles that were kept stand as many that were picked at random. --standard writes what all
drawn tiles teach, for the starter's folder; --tiles keeps the drawn tiles.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pfiles import Generator
from pfiles.cached import cached_tensor
from pfiles.drawing.sampling import image_seeds
from pfiles.machine.runtime import derive_seed
from pfiles.measuring import quality
from pfiles.measuring.distribution import prdc
from pfiles.measuring.features import make_extractor
from pfiles.measuring.two_sample import told_apart
from pfiles.paths import atomic_write
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.pixels import evenly_spaced

ACCEPT = (0.8, 0.5)
JUDGES = ("random", "imagenet")
RANDOM = 3  # choices at random, whose mean is given


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    generator = Generator.load("starter")
    tiles = load_tiles(str(args.data.absolute()), generator.settings.image_size_px)
    train, held_out = tiles.tensor(tiles.train), tiles.tensor(tiles.test)
    ids = generator.cluster_ids(args.number, args.seed).numpy()
    drawn = cached_tensor(
        args.tiles, {"number": args.number, "seed": args.seed},
        lambda: generator.draw(torch.from_numpy(ids), seeds=image_seeds(args.seed, range(args.number))),
    )  # fmt: skip
    print(measure(generator, train, held_out, drawn, ids, args.seed).to_string(float_format="{:.3f}".format))
    if args.standard is not None:
        vqvae, k = generator.space.vqvae, generator.n_clusters
        standard = quality.make_standard(vqvae, train, held_out, drawn, ids, k, args.seed, search=False)
        with atomic_write(args.standard) as file:
            file.write(quality.as_bytes(standard))


def measure(
    generator: Generator, train: torch.Tensor, held_out: torch.Tensor, drawn: torch.Tensor, ids: np.ndarray, seed: int
) -> pd.DataFrame:
    """What each judge says of the tiles that pass and of as many at random, a row for each share and judge."""
    train = train[evenly_spaced(len(train), quality.TRAIN_TILES)]
    of_train, of_drawn = (quality.own_features(generator.space.vqvae, tiles) for tiles in (train, drawn))
    passes = {accept: np.zeros(len(drawn), bool) for accept in ACCEPT}
    half = np.arange(len(drawn)) % 2
    for side in (0, 1):
        mean, scale, weights = quality.learn(of_train, of_drawn[half == side])
        odds = (of_drawn - mean) / scale @ weights
        for cluster in range(generator.n_clusters):
            judged = np.flatnonzero((half != side) & (ids == cluster))
            for accept, passing in passes.items():
                best = judged[odds[judged].argsort()[::-1]]
                passing[best[: round(accept * len(best))]] = True
    rows = {}
    for judge in JUDGES:
        extractor = make_extractor(judge)
        real, seen = extractor(held_out), extractor(drawn)
        for accept, passing in passes.items():
            rng = np.random.default_rng(derive_seed(seed, "at random"))
            at_random = [np.sort(rng.permutation(len(drawn))[: passing.sum()]) for _ in range(RANDOM)]
            rows[f"{judge}, accept {accept:g}"] = {
                "kept": passing.sum(),
                "told apart, random": np.mean([told_apart(real, seen[places]) for places in at_random]),
                "told apart, kept": told_apart(real, seen[passing]),
                "told apart, thrown away": told_apart(real, seen[~passing]),
                "recall, random": np.mean([prdc(real, seen[places])["recall"] for places in at_random]),
                "recall, kept": prdc(real, seen[passing])["recall"],
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.quality")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=28)
    parser.add_argument("--standard", type=Path)
    parser.add_argument("--tiles", type=Path, default=Path("drawn.pt"))
    return parser


if __name__ == "__main__":
    main()
