"""Does more training still pay? What a UNet draws after more and more tiles.

    python -m experiments.tiles_seen --run DIR --data PATH --settings FILE.json --out DIR [--every MINUTES]

The run, of preset "recommended" with the settings of FILE.json, trains its UNet in another process; its autoencoder and
first training are done. The weights of the newest resume point, averaged where the training averages, draw a tile for
the cluster of each test tile, guided as the settings say. Each call leaves OUT/TILES.json and a sheet OUT/TILES.jpg,
where TILES is the number of tiles that the UNet has seen; with --every it looks again until the training is done.
OUT/tiles_seen.md and OUT/tiles_seen.jpg show all that was measured.
"""

import argparse
import json
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.measure import device_name
from experiments import ablation
from pfiles.cached import cached_tensor
from pfiles.checkpoints import fingerprint, read_state
from pfiles.drawing.generator import Generator
from pfiles.errors import InputError
from pfiles.learning.loop import steps_per_epoch
from pfiles.learning.resume import last_resume_point
from pfiles.machine.runtime import versions
from pfiles.measuring import two_sample
from pfiles.measuring.features import make_extractor
from pfiles.paths import read_json, write_json, write_text
from pfiles.reporting import figures
from pfiles.reporting.sections.distribution import LINEAR_PROBE, distances
from pfiles.run import Run, open_run
from pfiles.unet_cond_base import make_unet

STAGE = "finetuning1"  # the long training
FEATURES = "imagenet-deeper"
COLUMNS = {  # of the table: title, the score's name, form
    "reach, px": ("reach", "{:.1f}"),
    "95 % interval, from": ("reach, low", "{:.1f}"),
    "to": ("reach, high", "{:.1f}"),
    "structure": ("structure", "{:.0%}"),
    "Frechet, photographs": ("Frechet", "{:.0f}"),
    "told from reconstructed, photographs": ("told from reconstructed", "{:.0%}"),
    "as asked": ("as asked", "{:.0%}"),
    "error of the UNet": ("mse", "{:.3f}"),
}


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    settings = json.loads(args.settings.read_text())
    run = open_run(
        "tiles_seen", args.clusters, args.clustering, ablation.absolute(args.data), "recommended", settings,
        out=str(args.run.absolute()),
    )  # fmt: skip
    while True:
        weights, tiles_seen, mse = newest_weights(run)
        if not (args.out / f"{tiles_seen:09}.json").exists():
            sheet, values = measure(run, weights, args.number, args.out / "ladder.pt")
            about = {"tiles_seen": tiles_seen, "date": date.today().isoformat(), **versions()}
            about |= {"device": device_name(run.device.type), "images": args.number}
            figures.save_figure(sheet, args.out / f"{tiles_seen:09}.jpg")
            write_json(args.out / f"{tiles_seen:09}.json", {**about, "values": {"mse": mse, **values}})
        if args.every is None or tiles_seen >= all_tiles(run):
            break
        time.sleep(60 * args.every)
    rows = [read_json(path) for path in sorted(args.out.glob("[0-9]*.json"))]
    table = as_table(rows)
    print(table)
    write_text(args.out / "tiles_seen.md", table)
    figures.save_figure(plot(rows, run.settings.image_size_px // 2), args.out / "tiles_seen.jpg")


def newest_weights(run: Run) -> tuple[dict[str, Tensor], int, float | None]:
    """The UNet's weights in the newest resume point of its long training, the tiles that it had seen by then, also in
    the training before, and the error of its last epoch. InputError if there is none."""
    path = last_resume_point(run.paths.training_folder(STAGE, run.clustering))
    if path is None:
        raise InputError(f"{run.paths.root} has no resume point of {STAGE}: begin it there, and wait for the first.")
    state = read_state(path)["state"]
    per_epoch = steps_per_epoch(len(run.tiles.train), run.settings.diffusion.batch_size)
    epochs = run.settings.training.epochs + state["step"] / per_epoch
    mse = state["history"][-1]["mse"] if state["history"] else None
    parts = state["parts"]
    return parts.get("averaged", parts["unet"]), round(epochs * len(run.tiles.train)), mse


def all_tiles(run: Run) -> int:
    """The tiles that the UNet will have seen after its long training."""
    return (run.settings.training.epochs + run.settings.finetuning1.epochs) * len(run.tiles.train)


def measure(run: Run, weights: dict[str, Tensor], number: int, ladder: Path) -> tuple[Figure, dict[str, float | None]]:
    """A sheet of what a UNet of these weights draws for the clusters of test tiles, and what the measures say.

    ladder: the file that caches what the UNet does not change: the shuffled tiles behind the autoencoder, measured.
    """
    first = run.networks("training")
    unet = make_unet(run.settings.diffusion, run.vqvae.z_channels, run.n_clusters)
    unet.load_state_dict(weights)
    guide = None if run.settings.sampling.guide == "itself" else first.unet.eval().requires_grad_(False)
    networks = Generator(
        unet.to(run.device).eval().requires_grad_(False), first.bank, first.space, run.settings, speed=run.speed,
        guide=guide,
    )  # fmt: skip
    test = run.test_images[:number].cpu()
    clusters, _ = networks.assign(test)
    generated, rebuilt = networks.draw(clusters), ablation.reconstructed(run, test)
    key = {"autoencoder": fingerprint(run.vqvae), "clusters": fingerprint(networks.bank), "images": number}
    key |= {"data": run.tiles.fingerprint(), "seed": run.seed}
    values = ablation.reach_of_structure(
        test, generated, rebuilt, clusters, run.seed, lambda tiles: ablation.reconstructed(run, tiles),
        partial(cached_tensor, ladder, key),
    )  # fmt: skip
    extractor = make_extractor(FEATURES, run.vqvae, run.device)
    of_test, of_generated, of_rebuilt = (extractor(tiles) for tiles in (test, generated, rebuilt))
    of_sets = {name: distances(extractor, of_test, of, run.seed) for name, of in
               {"": of_generated, " of reconstructions": of_rebuilt}.items()}  # fmt: skip
    values |= {f"Frechet{name}": of[extractor.frechet] for name, of in of_sets.items()}
    values["told from real"] = of_sets[""][LINEAR_PROBE]
    values["told from reconstructed"] = two_sample.linear_probe_accuracy(of_rebuilt, of_generated)
    values["as asked"] = (networks.assign(generated).cluster_ids == clusters).float().mean().item()
    return ablation.sheet_of(run, test, generated, clusters), values


def as_table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, in the order of the tiles seen."""
    lines = [f"| tiles seen | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in sorted(rows, key=lambda row: row["tiles_seen"]):
        cells = ablation.as_cells(row["values"], COLUMNS)
        lines.append(f"| {row['tiles_seen']:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], widest: float) -> Figure:
    """Reach of structure, which is measured up to `widest` pixels, and distance in features of photographs, over the
    tiles that the UNet has seen."""
    rows = sorted(rows, key=lambda row: row["tiles_seen"])
    tiles = [row["tiles_seen"] for row in rows]
    figure = Figure(figsize=(11, 4), layout="constrained")
    of_reach, of_frechet = figure.subplots(1, 2)
    reaches = [row for row in rows if row["values"]["reach"] is not None]
    if reaches:
        low, reach, high = ([row["values"][name] for row in reaches] for name in ("reach, low", "reach", "reach, high"))
        lines = of_reach.plot([row["tiles_seen"] for row in reaches], reach, "o-")
        of_reach.fill_between([row["tiles_seen"] for row in reaches], low, high, alpha=0.2, color=lines[0].get_color())
    of_reach.axhline(widest, color="grey", linestyle=":", label="most that can be measured")
    of_reach.set(title="Reach of structure, pixels", ylim=(0, 1.1 * widest))
    of_frechet.plot(tiles, [row["values"]["Frechet"] for row in rows], "o-", label="generated tiles")
    floors = [row["values"]["Frechet of reconstructions"] for row in rows]
    of_frechet.plot(tiles, floors, color="grey", linestyle=":", label="reconstructed test tiles")
    of_frechet.set(title="Frechet distance to test tiles, photographs", ylim=(0, None))
    for axes in (of_reach, of_frechet):
        axes.set(xscale="log", xlabel="tiles that the UNet has seen")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.tiles_seen", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=float, metavar="MINUTES", help="look again; default: once")
    parser.add_argument("--number", type=int, default=300, help="test tiles to compare with")
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--clustering", default="kmeans")
    return parser


if __name__ == "__main__":
    main()
