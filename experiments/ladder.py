"""Which measures can tell? Every measure of part 13 on a ladder of tiles whose quality is known.

    python -m experiments.ladder --run DIR --data PATH --clusters 10 [--preset demo] [--images 500] [--out DIR]
        [--settings JSON] [--early FILE] [--late FILE] [--features random autoencoder imagenet]

DIR is the folder of a run. The rungs are made of its held-out tiles: as they are, reconstructed by the autoencoder,
blurred by 1 and 2 px, and as one flat colour; and tiles drawn for their clusters by an early UNet (default: after the
first training) and a late one (default: after the last). As all rungs show the same held-out slides, they are compared
like with like. A measure orders the ladder rightly where no rung of a chain scores worse than the next one down:

    held-out real, reconstructed, late checkpoint, early checkpoint, flat colour
    held-out real, blurred by 1 px, blurred by 2 px, flat colour

Writes ladder.json, ladder.md (the table) and ladder.jpg (the rungs).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.measure import device_name
from experiments.ablation import absolute
from pfiles import checkpoints
from pfiles.drawing.generator import Generator
from pfiles.errors import InputError
from pfiles.latents import LatentSpace, encode_tiles, predict_clusters, reconstruct
from pfiles.machine.runtime import versions
from pfiles.measuring import fidelity, morphometry, spectrum, two_sample, usefulness
from pfiles.measuring.features import Extractor, make_extractor
from pfiles.paths import atomic_write, write_json
from pfiles.reporting import figures
from pfiles.reporting.sections import distribution
from pfiles.session import OpenRun, open_run
from pfiles.settings import Settings
from pfiles.tiles.dataset import Tiles
from pfiles.tiles.pixels import evenly_spaced, mean_colour, to_uint8
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE

HELD_OUT, REBUILT, LATE, EARLY = "held-out real", "reconstructed", "late checkpoint", "early checkpoint"
BLUR_1, BLUR_2, FLAT = "blurred by 1 px", "blurred by 2 px", "flat colour"
CHAINS = ((HELD_OUT, REBUILT, LATE, EARLY, FLAT), (HELD_OUT, BLUR_1, BLUR_2, FLAT))  # best first
RUNGS = (HELD_OUT, REBUILT, BLUR_1, BLUR_2, LATE, EARLY, FLAT)
HIGHEST_BAND = 8  # bands of the spectrum that count: up to 0.4 cycles per pixel
SHOWN = 12  # tiles of a rung in the picture


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the files; the exit status is 2 where something given is wrong."""
    args = _parser().parse_args(arguments)
    try:
        report, shown = climb(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = as_markdown(report["measures"])
    print(table)
    write_json(args.out / "ladder.json", report)
    with atomic_write(args.out / "ladder.md") as file:
        file.write(table.encode())
    figures.save_figure(figures.show_tiles(shown, SHOWN, title=", ".join(RUNGS)), args.out / "ladder.jpg")
    return 0


def climb(args: argparse.Namespace) -> tuple[dict[str, Any], Tensor]:
    """The report, and the first tiles of each rung."""
    data, folder = absolute(args.data), str(args.run.absolute())
    run = open_run("ladder", args.clusters, args.clustering, data, args.preset, args.settings, args.seed, folder)
    late, clusterer, space = run.networks()
    early = args.early or checkpoints.find_checkpoint(run.paths, "unet", "training", args.clustering)
    unets = {
        EARLY: _unet(early, late, run.settings),
        LATE: late if args.late is None else _unet(args.late, late, run.settings),
    }
    extractors = [make_extractor(kind, run.vqvae, run.device) for kind in args.features]
    rungs, clusters = make_rungs(run, args.images, clusterer, space, unets)
    values = measure(
        rungs, clusters, run.tiles, run.vqvae, clusterer, extractors, args.clusters, run.device, args.seed
    )  # fmt: skip
    about = {
        "device": device_name(run.device.type), "date": date.today().isoformat(), "versions": versions(),
        "data": run.tiles.source, "images": len(clusters), "seed": args.seed,
    }  # fmt: skip
    measures = {name: {**of, **judge(of["values"], of["best"])} for name, of in values.items()}
    return {**about, "chains": [list(chain) for chain in CHAINS], "measures": measures}, torch.cat(
        [rungs[name][evenly_spaced(len(clusters), SHOWN)] for name in RUNGS]
    )


def _unet(path: Path, like: UNet, settings: Settings) -> UNet:
    """The UNet in `path`, of the size and on the device of another."""
    unet = UNet(like.conv_in.in_channels, like.class_emb.num_embeddings, **settings.diffusion.unet)
    checkpoints.load_weights(unet, path)
    return unet.to(next(like.parameters()).device)


def make_rungs(
    run: OpenRun, number: int, clusterer: nn.Module, space: LatentSpace, unets: Mapping[str, UNet]
) -> tuple[dict[str, Tensor], Tensor]:
    """uint8 tiles (N, 3, S, S) of each rung on the CPU, and the clusters (N,) of the held-out tiles, of all rungs."""
    tiles, vqvae, settings, device = run.tiles, run.vqvae, run.settings, run.device
    real = tiles.tensor(tiles.test[evenly_spaced(len(tiles.test), number)], device)
    clusters, _ = predict_clusters(vqvae, clusterer, encode_tiles(vqvae, real))
    colour = torch.tensor(mean_colour(real.cpu()), dtype=torch.uint8)
    rungs = {
        HELD_OUT: real,
        REBUILT: to_uint8(reconstruct(vqvae, real)),
        BLUR_1: two_sample.blur(real, 1.0, device),
        BLUR_2: two_sample.blur(real, 2.0, device),
        FLAT: colour[None, :, None, None].expand(real.shape).contiguous(),
    }
    for name, unet in unets.items():
        rungs[name] = Generator(unet, clusterer, space, settings, torch.empty(0), speed=run.speed).draw(
            clusters, seed=0
        )
    return {name: rung.cpu() for name, rung in rungs.items()}, clusters


def measure(
    rungs: Mapping[str, Tensor],
    clusters: Tensor,
    tiles: Tiles,
    vqvae: VQVAE,
    clusterer: nn.Module,
    extractors: Sequence[Extractor],
    n_clusters: int,
    device: torch.device,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Every measure of every rung against the training tiles: "values" by rung, and which are "best"."""
    train = tiles.tensor(tiles.train)
    codes = encode_tiles(vqvae, train.to(device))
    train_clusters, _ = predict_clusters(vqvae, clusterer, codes)
    found: dict[str, dict[str, Any]] = {}

    def note(name: str, rung: str, value: float | None, best: str) -> None:
        found.setdefault(name, {"best": best, "values": {}})["values"][rung] = None if value is None else float(value)

    guards = {px: two_sample.can_learn(train, seed, device, px) for px in two_sample.BLURS_PX}
    judge_network, _ = fidelity.train_judge(vqvae, codes, train_clusters, n_clusters, seed)
    threshold = morphometry.nucleus_threshold(train)
    measured = morphometry.measure(train, threshold)
    features = {extractor.name: extractor(train) for extractor in extractors}
    for name in RUNGS:
        rung = rungs[name]
        for px, guard in guards.items():
            at = f", both blurred by {px:g} px" if px else ""
            test = two_sample.two_sample_test(rung, train, seed, device, px, guard=guard)
            note(f"two-sample test{at}", name, test.accuracy, "low")
        for extractor in extractors:
            row = distribution.distances(extractor, features[extractor.name], extractor(rung), seed)
            for column, value in row.items():
                if column not in ("images", "standard error"):
                    is_distance = column in (extractor.frechet, extractor.kernel)
                    label = column if is_distance else f"{column} ({extractor.name})"
                    note(label, name, value, "low" if is_distance else "high")
        bands, lines = spectrum.compare(train, {name: rung})
        ratio = bands[name].iloc[:HIGHEST_BAND].clip(1e-6)
        note("power spectrum (mean |log ratio| up to 0.4 cycles per pixel)", name, np.abs(np.log(ratio)).mean(), "low")
        note("grid line (quarter or half, times real)", name, (lines.loc[name] / lines.loc["real"]).max(), "low")
        compared = morphometry.compare(measured, morphometry.measure(rung, threshold), seed)
        for feature, row in compared.iterrows():
            note(f"Wasserstein distance, {feature}", name, None if pd.isna(row.distance) else row.distance, "low")
        again, _ = predict_clusters(vqvae, judge_network, encode_tiles(vqvae, rung.to(device)))
        note("condition, second judge", name, (again == clusters).float().mean(), "high")
        if min(len(rung), len(train) // 2) >= usefulness.MIN_TILES:
            # tested on training tiles, as the held-out ones are a rung themselves
            of = usefulness.cas(
                rung,
                clusters,
                train[::2],
                train_clusters[::2],
                train[1::2],
                train_clusters[1::2],
                n_clusters,
                seed,
                device,
            )
            note("CAS", name, of.table.accuracy[usefulness.GENERATED], "high")
    return found


def judge(values: Mapping[str, float | None], best: str) -> dict[str, Any]:
    """Whether `values` order the chains: which neighbours stand the wrong way round, and which are equal.

    "rightly": none is wrong, none is missing, and the ends of each chain differ.
    """
    sign = 1 if best == "low" else -1
    wrong, equal, missing = [], [], [name for name in RUNGS if values.get(name) is None]
    for chain in CHAINS:
        for better, worse in pairwise([name for name in chain if name not in missing]):
            difference = sign * (values[worse] - values[better])
            if difference <= 0:
                (wrong if difference < 0 else equal).append(f"{better} / {worse}")
    ends = [chain for chain in CHAINS if not {chain[0], chain[-1]} & set(missing)]
    differ = all(values[chain[0]] != values[chain[-1]] for chain in ends)
    return {"rightly": not wrong and not missing and differ, "wrong": wrong, "equal": equal, "missing": missing}


def as_markdown(measures: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of all measures: their values by rung, and whether they order the ladder rightly."""
    lines = [f"| measure | best | {' | '.join(RUNGS)} | orders it rightly |", "|---" * (len(RUNGS) + 3) + "|"]
    for name, of in measures.items():
        values = ["" if of["values"].get(rung) is None else f"{of['values'][rung]:.3g}" for rung in RUNGS]
        wrong = "; ".join([*of["wrong"], *(f"no value: {rung}" for rung in of["missing"])])
        said = "yes" if of["rightly"] else f"no ({wrong or 'all equal'})"
        lines.append(f"| {name} | {of['best']} | {' | '.join(values)} | {said} |")
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.ladder", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a run with autoencoder, UNets and clusters")
    parser.add_argument("--data", required=True, help="the tiles of that run")
    parser.add_argument("--preset", default="demo", help="of that run; default demo")
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON", help="changed ones of that run")
    parser.add_argument("--clusters", type=int, default=14, help="of that run; default 14")
    parser.add_argument("--clustering", default="classifier", help="of that run; default classifier")
    parser.add_argument("--early", type=Path, help="checkpoint of an early UNet; default after the first training")
    parser.add_argument("--late", type=Path, help="checkpoint of a late UNet; default after the last training")
    parser.add_argument("--features", nargs="+", default=["random", "autoencoder"], help="to measure distances in")
    parser.add_argument("--images", type=int, default=500, help="of each rung; default 500")
    parser.add_argument("--seed", type=int, default=765, help="of all measures; default 765")
    parser.add_argument("--out", type=Path, default=Path("ladder"), help="folder for the results; default ladder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
