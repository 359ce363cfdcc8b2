"""Which measures can tell? Every measure of part 13 on a ladder of tiles whose quality is known.

    python -m experiments.ladder --run DIR --data PATH --clusters 10 [--preset demo] [--images 500] [--out DIR]
        [--settings JSON] [--early FILE] [--late FILE] [--features random autoencoder imagenet]
    python -m experiments.ladder --generator FOLDER --data PATH [--images 500] [--out DIR] [--features ...]

DIR is the folder of a run. The rungs are made of its held-out tiles: as they are, reconstructed by the autoencoder,
blurred by 1 and 2 px, and as one flat colour; shuffled in blocks of 32, 16, 8 and 4 px, and as noise of their spectrum;
and tiles drawn for their clusters by an early UNet (default: after the first training) and a late one (default: after
the last). A generator is its own late UNet, and has no early one. As all rungs show the same held-out slides, they are
compared like with like. A measure orders a chain rightly where no rung scores worse than the next one down:

    held-out real, reconstructed, late checkpoint, early checkpoint, flat colour
    held-out real, blurred by 1 px, blurred by 2 px, flat colour
    held-out real, shuffled in blocks of 32 px, 16 px, 8 px, 4 px
    held-out real, shuffled in blocks of 8 px, noise of their spectrum

The first two are quality, the last two structure. Writes ladder.json, ladder.md (the table) and ladder.jpg (the rungs).
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.measure import device_name
from experiments.ablation import absolute
from pfiles import checkpoints, draw
from pfiles.drawing.generator import Generator
from pfiles.errors import InputError
from pfiles.latents import encode_tiles, predict_clusters, reconstruct
from pfiles.machine.runtime import pick_device, versions
from pfiles.measuring import fidelity, morphometry, spectrum, structure, two_sample, usefulness
from pfiles.measuring.features import Extractor, make_extractor
from pfiles.paths import write_json, write_text
from pfiles.reporting import figures
from pfiles.reporting.sections import distribution
from pfiles.run import open_run
from pfiles.settings import Settings
from pfiles.tiles.dataset import Tiles, load_tiles
from pfiles.tiles.pixels import evenly_spaced, mean_colour, to_uint8
from pfiles.unet_cond_base import UNet

HELD_OUT, REBUILT, LATE, EARLY = "held-out real", "reconstructed", "late checkpoint", "early checkpoint"
BLUR_1, BLUR_2, FLAT = "blurred by 1 px", "blurred by 2 px", "flat colour"
SHUFFLED = {block: f"shuffled in blocks of {block} px" for block in (32, 16, 8, 4)}
NOISE = "noise of their spectrum"
QUALITY = ((HELD_OUT, REBUILT, LATE, EARLY, FLAT), (HELD_OUT, BLUR_1, BLUR_2, FLAT))  # best first
STRUCTURE = ((HELD_OUT, *SHUFFLED.values()), (HELD_OUT, SHUFFLED[8], NOISE))
RUNGS = (HELD_OUT, REBUILT, BLUR_1, BLUR_2, LATE, EARLY, *SHUFFLED.values(), NOISE, FLAT)
HIGHEST_BAND = 8  # bands of the spectrum that count: up to 0.4 cycles per pixel
SHOWN = 12  # tiles of a rung in the picture


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the files; the exit status is 2 where something given is wrong."""
    args = _parser().parse_args(arguments)
    try:
        report, examples = climb(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = as_markdown(report["measures"])
    print(table)
    write_json(args.out / "ladder.json", report)
    write_text(args.out / "ladder.md", table)
    rungs = [rung for rung in RUNGS if rung in next(iter(report["measures"].values()))["values"]]
    title = "\n".join(textwrap.wrap(", ".join(rungs), 110))
    figures.save_figure(figures.show_tiles(examples, SHOWN, title=title), args.out / "ladder.jpg")
    return 0


def climb(args: argparse.Namespace) -> tuple[dict[str, Any], Tensor]:
    """The report, and the first tiles of each rung."""
    generator, early, tiles = _of_generator(args) if args.run is None else _of_run(args)
    device = next(generator.unet.parameters()).device
    unets = {LATE: generator.unet if args.late is None else _unet(args.late, generator.unet, generator.settings)}
    if args.real_only:
        unets = {}
    elif early is not None:
        unets[EARLY] = _unet(early, generator.unet, generator.settings)
    extractors = [make_extractor(kind, generator.space.vqvae, device) for kind in args.features]
    rungs, clusters = make_rungs(generator, tiles, args.images, unets, args.seed)
    values = measure(rungs, clusters, tiles, generator, extractors, device, args.seed, args.blurs)
    about = {
        "device": device_name(device.type), "date": date.today().isoformat(), "versions": versions(),
        "data": tiles.source, "images": len(clusters), "seed": args.seed,
    }  # fmt: skip
    measures = {
        name: {**of, **judge(of["values"], of["best"]), "structure": judge(of["values"], of["best"], STRUCTURE)}
        for name, of in values.items()
    }
    chains = [list(chain) for chain in QUALITY + STRUCTURE]
    examples = [rung[evenly_spaced(len(clusters), SHOWN)] for rung in rungs.values()]
    return {**about, "chains": chains, "measures": measures}, torch.cat(examples)


def _of_run(args: argparse.Namespace) -> tuple[Generator, Path, Tiles]:
    """The last networks of a run, the checkpoint of its early UNet, and its tiles."""
    data, folder = absolute(args.data), str(args.run.absolute())
    changed = args.settings | ({} if args.train is None else {"max_train_tiles": args.train})
    run = open_run("ladder", args.clusters, args.clustering, data, args.preset, changed, args.seed, folder)
    early = args.early or checkpoints.find_checkpoint(run.paths, "unet", "training", args.clustering)
    return draw.generator(run), early, run.tiles


def _of_generator(args: argparse.Namespace) -> tuple[Generator, Path | None, Tiles]:
    """Likewise of a generator's folder."""
    generator = Generator.load(args.generator, pick_device())
    return generator, args.early, load_tiles(absolute(args.data), generator.settings.image_size_px, args.train)


def _unet(path: Path, like: UNet, settings: Settings) -> UNet:
    """The UNet in `path`, of the size and on the device of another."""
    unet = UNet(like.conv_in.in_channels, like.class_emb.num_embeddings, **settings.diffusion.unet)
    checkpoints.load_weights(unet, path)
    return unet.to(next(like.parameters()).device)


def make_rungs(
    generator: Generator, tiles: Tiles, number: int, unets: Mapping[str, UNet], seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    """uint8 tiles (N, 3, S, S) of each rung on the CPU, and the clusters (N,) of the held-out tiles, of all rungs."""
    vqvae, device = generator.space.vqvae, next(generator.unet.parameters()).device
    real = tiles.tensor(tiles.test[evenly_spaced(len(tiles.test), number)], device)
    clusters, _ = predict_clusters(vqvae, generator.bank, encode_tiles(vqvae, real))
    cluster_ids = clusters.cpu().numpy()
    colour = torch.tensor(mean_colour(real.cpu()), dtype=torch.uint8)
    rungs = {
        HELD_OUT: real,
        REBUILT: to_uint8(reconstruct(vqvae, real)),
        BLUR_1: two_sample.blur(real, 1.0, device),
        BLUR_2: two_sample.blur(real, 2.0, device),
        **{name: structure.shuffled(real, block, seed, cluster_ids) for block, name in SHUFFLED.items()},
        NOISE: structure.noise_like(real, seed),
        FLAT: colour[None, :, None, None].expand(real.shape).contiguous(),
    }
    for name, unet in unets.items():
        rungs[name] = replace(generator, unet=unet).draw(clusters, seed=0)
    return {name: rungs[name].cpu() for name in RUNGS if name in rungs}, clusters


def measure(
    rungs: Mapping[str, Tensor],
    clusters: Tensor,
    tiles: Tiles,
    generator: Generator,
    extractors: Sequence[Extractor],
    device: torch.device,
    seed: int,
    blurs_px: Sequence[float] = two_sample.BLURS_PX,
) -> dict[str, dict[str, Any]]:
    """Every measure of every rung against the training tiles: "values" by rung, and which are "best"."""
    train, vqvae, n_clusters = tiles.tensor(tiles.train), generator.space.vqvae, generator.n_clusters
    codes = encode_tiles(vqvae, train.to(device))
    train_clusters, _ = predict_clusters(vqvae, generator.bank, codes)
    measures: dict[str, dict[str, Any]] = {}

    def note(name: str, rung: str, value: float | None, best: str) -> None:
        values = measures.setdefault(name, {"best": best, "values": {}})["values"]
        values[rung] = None if value is None else float(value)

    guards = {px: two_sample.can_learn(train, seed, device, px) for px in blurs_px}
    judge_network, _ = fidelity.train_judge(vqvae, codes, train_clusters, n_clusters, seed)
    threshold = morphometry.nucleus_threshold(train)
    measured = morphometry.measure(train, threshold)
    features = {extractor.name: extractor(train) for extractor in extractors}
    blocks = _ladder_of_blocks(train, train_clusters, seed)
    for name, rung in rungs.items():
        for column, value in _structure(blocks, rung, clusters, seed).items():
            note(column, name, value, "high")
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
                    note(label, name, value, "low" if is_distance or column == distribution.LINEAR_PROBE else "high")
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
    return measures


def _ladder_of_blocks(train: Tensor, clusters: Tensor, seed: int) -> structure.Ladder | None:
    """None where the tiles have no structure to measure."""
    try:
        return structure.make_ladder(train, seed, clusters.cpu().numpy())
    except InputError:
        return None


def _structure(ladder: structure.Ladder | None, rung: Tensor, clusters: Tensor, seed: int) -> dict[str, float | None]:
    """The reach of structure of a rung, and its share; 0 for tiles that cannot be measured, as flat ones."""
    values = dict.fromkeys(("reach of structure, px", "share of structure"), None if ladder is None else 0.0)
    if ladder is not None:
        with suppress(InputError):
            row = structure.reaches(ladder, rung, seed, clusters.cpu().numpy()).loc["all"]
            values = dict(zip(values, (row.reach, row.share), strict=True))
    return values


def judge(values: Mapping[str, float | None], best: str, chains: Sequence[Sequence[str]] = QUALITY) -> dict[str, Any]:
    """Whether `values` order the chains: which neighbours stand the wrong way round, and which are equal.

    "rightly": none is wrong, none is missing, and the ends of each chain differ. A rung that was not made has no value
    and counts for nothing; one that was made and has the value None is missing.
    """
    sign = 1 if best == "low" else -1
    of_chains = {name for chain in chains for name in chain}
    wrong, equal = [], []
    missing = [name for name in RUNGS if name in of_chains and name in values and values[name] is None]
    for chain in chains:
        for better, worse in pairwise([name for name in chain if values.get(name) is not None]):
            difference = sign * (values[worse] - values[better])
            if difference <= 0:
                (wrong if difference < 0 else equal).append(f"{better} / {worse}")
    ends = [chain for chain in chains if None not in (values.get(chain[0]), values.get(chain[-1]))]
    differ = all(values[chain[0]] != values[chain[-1]] for chain in ends)
    return {
        "rightly": bool(ends) and differ and not wrong and not missing,
        "wrong": wrong,
        "equal": equal,
        "missing": missing,
    }


def as_markdown(measures: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of all measures: their values by rung, and whether they order quality and structure rightly."""
    rungs = [rung for rung in RUNGS if any(rung in of["values"] for of in measures.values())]
    lines = [f"| measure | best | {' | '.join(rungs)} | orders quality | orders structure |"]
    lines.append("|---" * (len(rungs) + 4) + "|")
    for name, of in measures.items():
        values = ["" if of["values"].get(rung) is None else f"{of['values'][rung]:.3g}" for rung in rungs]
        verdicts = [_in_words(verdict) for verdict in (of, of["structure"])]
        lines.append(f"| {name} | {of['best']} | {' | '.join([*values, *verdicts])} |")
    return "\n".join(lines) + "\n"


def _in_words(verdict: Mapping[str, Any]) -> str:
    wrong = "; ".join([*verdict["wrong"], *(f"no value: {rung}" for rung in verdict["missing"])])
    return "yes" if verdict["rightly"] else f"no ({wrong or 'all equal'})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.ladder", description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="folder of a run with autoencoder, UNets and clusters")
    source.add_argument("--generator", type=Path, help="or a generator's folder, without an early UNet")
    parser.add_argument("--data", required=True, help="the tiles of that run")
    parser.add_argument("--preset", default="demo", help="of that run; default demo")
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON", help="changed ones of that run")
    parser.add_argument("--clusters", type=int, default=14, help="of that run; default 14")
    parser.add_argument("--clustering", default="classifier", help="of that run; default classifier")
    parser.add_argument("--early", type=Path, help="checkpoint of an early UNet; default after the first training")
    parser.add_argument("--late", type=Path, help="checkpoint of a late UNet; default after the last training")
    parser.add_argument("--features", nargs="+", default=["random", "autoencoder"], help="to measure distances in")
    parser.add_argument("--images", type=int, default=500, help="of each rung; default 500")
    parser.add_argument("--train", type=int, help="training tiles at most to compare with; default all, or the run's")
    parser.add_argument(
        "--blurs", type=float, nargs="+", default=two_sample.BLURS_PX, help="of the two-sample test, px"
    )
    parser.add_argument("--real-only", action="store_true", help="no rungs of drawn tiles")
    parser.add_argument("--seed", type=int, default=765, help="of all measures; default 765")
    parser.add_argument("--out", type=Path, default=Path("ladder"), help="folder for the results; default ladder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
