"""Which recipe draws the best tiles after so much time of one core, autoencoder included?

    python -m experiments.race --data PATH --out DIR [--budget 300 600 1800] [--rows before coarse ...] [--clusters 10]

A row is a recipe; a budget is the CPU seconds of one thread for its whole pipeline: autoencoder, polish of the decoder,
UNet. The epochs that fit are computed from the time of a step, which is measured first; what a training then took is
recorded beside them. A row whose guide is the UNet after its first training trains that one for a tenth of the UNet's
time. Photographs are judged by another network (Lite1) than the one that some rows train with (Lite0). Each row at each
budget leaves DIR/ROW BUDGET.json and a sheet of tiles DIR/ROW BUDGET.jpg; what is there is not done again. DIR/race.md
and DIR/race.jpg show all that are done.
"""

import argparse
import json
import shutil
import tempfile
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.measure import device_name
from experiments import ablation
from pfiles import draw, learn
from pfiles.errors import InputError
from pfiles.machine.runtime import versions
from pfiles.measuring.smoothness import smoothness_of_codes
from pfiles.paths import read_json, write_json, write_text
from pfiles.reporting import figures
from pfiles.run import Run, open_run

SHARES = {"autoencoder": 0.3, "polish": 0.1, "unet": 0.6}  # of the budget
COARSE_SHARES = {"autoencoder": 0.25, "polish": 0.25, "unet": 0.5}  # of a decoder that paints more of the detail
GUIDE_SHARE = 0.1  # of the UNet's time, after which it becomes the guide
SEED = 765
PROBE_TILES = 96  # on which the time of a step is measured
BEFORE = ablation.SIZE | {
    "autoencoder.vqvae": {"down_channels": [16, 32, 64], "codebook_size": 256, "num_heads": 4, "norm_channels": 8},
    "autoencoder.warmup_steps": 100,
    "autoencoder.revive_dead_codes": True,
    "training.ema_decay": 0.0,
    "training.clip_norm": 1.0,
    "diffusion.latent_views": False,
}
SMALL_CODES = {"autoencoder.vqvae": BEFORE["autoencoder.vqvae"] | {"z_channels": 4, "codebook_size": 512}}
COLOUR = {"autoencoder.colour_weight": 0.1}
EQUIVARIANCE = {"autoencoder.equivariance_weight": 0.25}
SHARED = {"diffusion.shared_scale": True}
FOLDED = {
    "diffusion.unet": {"down_channels": [96, 128, 160], "t_emb_dim": 128, "num_layers": 1, "num_heads": 4,
                       "norm_channels": 8, "conv_out_channels": 96, "fold": 2},
}  # fmt: skip
SMOOTH = SMALL_CODES | COLOUR | SHARED
EIGHTH = {
    "autoencoder.vqvae": BEFORE["autoencoder.vqvae"]
    | {"down_channels": [16, 32, 64, 96], "z_channels": 8, "codebook_size": 1024},
}
PHOTOGRAPHS = {
    "autoencoder.perceptual": "photographs",
    "autoencoder.polish.discriminator_sees": "photographs",
    "autoencoder.polish.discriminator": {"channels": 32},
    "autoencoder.polish.adversarial_weight": 0.1,
}
GUIDE = {
    "sampling.guide": "training",
    "training.decay": "constant",
    "finetuning1.learning_rate": 1e-3,
    "finetuning1.decay": "cosine",
    "finetuning1.clip_norm": 1.0,
}
UNFOLDED = {"diffusion.unet": FOLDED["diffusion.unet"] | {"fold": 1}}
EIGHTH_SMOOTH = SMOOTH | EIGHTH | UNFOLDED
COARSE = EIGHTH_SMOOTH | PHOTOGRAPHS | GUIDE
ROWS: dict[str, dict[str, Any]] = {
    "before": {},
    "coarse": COARSE,
    "coarse, log-normal": COARSE | {"diffusion.times": "log-normal"},
    "coarse, without guide": EIGHTH_SMOOTH | PHOTOGRAPHS,
    "coarse, without photographs": EIGHTH_SMOOTH | GUIDE,
    "guide": GUIDE,
    "photographs": PHOTOGRAPHS,
    "smooth, halved three times": EIGHTH_SMOOTH,
    "smooth, folded": SMOOTH | FOLDED,
    "folded": FOLDED,
    "smooth": SMOOTH,
    "four channels, 512 codes": SMALL_CODES,
    "colour": COLOUR,
    "equivariance": EQUIVARIANCE,
    "shared scale": SHARED,
    "smooth, equivariance, folded": SMOOTH | EQUIVARIANCE | FOLDED,
    "smooth, folded, views": SMOOTH | FOLDED | {"diffusion.latent_views": True},
    "smooth, folded, without guidance": SMOOTH | FOLDED | {"sampling.guidance": 1.0},
    "smooth, folded, batches of 64": SMOOTH | FOLDED | {"diffusion.batch_size": 64},
}
COLUMNS = {  # of the table: title, the score's name, form
    "reach, px": ("reach", "{:.1f}"),
    "of reconstructions": ("reach, reconstructed", "{:.1f}"),
    "structure": ("structure", "{:.0%}"),
    "Frechet, photographs": ("imagenet-deeper: Frechet", "{:.0f}"),
    "of reconstructions ": ("imagenet-deeper: floor, reconstructions", "{:.0f}"),
    "Frechet, autoencoder": ("autoencoder: Frechet", "{:.3f}"),
    "told from reconstructed, photographs": ("imagenet-deeper: told apart from reconstructed", "{:.0%}"),
    "told from real, photographs": ("imagenet-deeper: told apart", "{:.0%}"),
    "as asked": ("as asked, second judge", "{:.0%}"),
    "closer": ("closer", "{:.1%}"),
    "2 x 2 kept": ("kept_2x2", "{:.2f}"),
    "CPU s": ("cpu_seconds", "{:.0f}"),
}


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    for budget in args.budget:
        for name in args.rows:
            for seed in args.seeds:
                label = f"{name} {budget:g}" + (f" seed {seed}" if seed != SEED else "")
                if not (args.out / f"{label}.json").exists():
                    compete(args, name, label, budget, seed)
    rows = [read_json(path) for path in sorted(args.out.glob("*.json"))]
    table = as_table(rows)
    print(table)
    write_text(args.out / "race.md", table)
    figures.save_figure(plot(rows), args.out / "race.jpg")


def compete(args: argparse.Namespace, name: str, label: str, budget: float, seed: int) -> None:
    """Train, draw and measure a row at a budget; its JSON and its sheet go to `args.out`."""
    shutil.rmtree(args.out / label, ignore_errors=True)  # of a row that was stopped: it is timed from its start
    settings = BEFORE | ROWS[name] | args.settings
    epochs = fitting_epochs(args, settings, budget)
    run = _open(args, str((args.out / label).absolute()), settings | epochs, seed)
    seconds, began = {}, time.process_time()
    learn.autoencoder(run, *learn.new_autoencoder(run))
    seconds["autoencoder"] = time.process_time() - began
    networks, mse = learn.new_networks(run), []
    for stage in _stages(settings):
        began = time.process_time()
        mse += [row["mse"] for row in learn.unet(run, stage, networks)]
        seconds[stage] = time.process_time() - began
    draw_tiles = partial(draw.tiles, run, stage=stage)
    sheet, values = ablation.measure(run, args.features, draw_tiles, stage, number=args.number, blurs_px=(0.0,))
    values |= smoothness_of_codes(run.vqvae, run.codes)
    about = {"row": name, "budget_s": budget, "seed": seed, "date": date.today().isoformat(), **versions()}
    about |= {"device": device_name(run.device.type), "epochs": epochs, "seconds": seconds}
    about |= {"tiles_seen": len(mse) * len(run.tiles.train), "mse": mse[-1]}
    values["cpu_seconds"] = sum(seconds.values())
    figures.save_figure(sheet, args.out / f"{label}.jpg")
    write_json(args.out / f"{label}.json", {**about, "settings": settings, "values": values})


def fitting_epochs(args: argparse.Namespace, settings: dict[str, Any], budget: float) -> dict[str, int]:
    """The epochs of autoencoder, polish and UNet that take their shares of a budget of CPU seconds, as settings.

    No training has less than one epoch, but the polish, which may have none.
    """
    number = len(_open(args, str(args.out.absolute() / "probe"), settings).tiles.train)
    shares = COARSE_SHARES if settings["autoencoder.polish.discriminator_sees"] == "photographs" else SHARES
    epochs = {
        part: budget * shares[part] / (seconds * number / PROBE_TILES)
        for part, seconds in _seconds_of_an_epoch(args, settings).items()
    }
    parts = {"autoencoder.epochs": epochs["autoencoder"], "autoencoder.polish.epochs": epochs["polish"]}
    stages = _stages(settings)
    for stage, part in zip(stages, (GUIDE_SHARE, 1 - GUIDE_SHARE) if len(stages) > 1 else (1.0,), strict=True):
        parts[f"{stage}.epochs"] = part * epochs["unet"]
    return {name: max(round(part), int("polish" not in name)) for name, part in parts.items()}


def _seconds_of_an_epoch(args: argparse.Namespace, settings: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of an epoch of autoencoder, polish and UNet over `PROBE_TILES` tiles.

    What a training costs once, at its beginning and end, is left out: an epoch is half of what three take more than
    one. What a process costs once is left out as well, by a first round that is not counted.
    """

    def of_trainings(autoencoder: int, polish: int, unet: int) -> float:
        epochs = {"autoencoder.epochs": autoencoder, "autoencoder.polish.epochs": polish, "training.epochs": unet}
        with tempfile.TemporaryDirectory() as folder:
            run = _open(args, folder, settings | {"max_train_tiles": PROBE_TILES} | epochs)
            began = time.process_time()
            learn.autoencoder(run, *learn.new_autoencoder(run))
            learn.unet(run, "training", learn.new_networks(run))
            return time.process_time() - began

    of_trainings(1, 1, 1)
    shortest = of_trainings(1, 1, 1)
    longer = {"autoencoder": (3, 1, 1), "polish": (1, 3, 1), "unet": (1, 1, 3)}
    seconds = {part: (of_trainings(*epochs) - shortest) / 2 for part, epochs in longer.items()}
    if min(seconds.values()) <= 0:
        raise InputError("Other programs disturbed the timing of a step: run it again.")
    return seconds


def _stages(settings: dict[str, Any]) -> list[str]:
    """Those that a row trains: a guide is the UNet after the first of two."""
    return ["training", "finetuning1"] if settings.get("sampling.guide") == "training" else ["training"]


def as_table(rows: list[dict[str, Any]]) -> str:
    """The rows that are done as Markdown, by budget; all that was measured stands in their JSON."""
    lines = [f"| recipe | budget, s | seed | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 3) + "|"]
    for row in sorted(rows, key=lambda row: (row["budget_s"], [*ROWS].index(row["row"]), row["seed"])):
        cells = ablation.as_cells(row["values"], COLUMNS)
        lines.append(f"| {row['row']} | {row['budget_s']:g} | {row['seed']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]]) -> Figure:
    """Reach of structure and distance in features of photographs over the CPU seconds that each recipe took: a point
    for each seed, a line through the means of the budgets."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = {"reach": "Reach of structure, pixels", "imagenet-deeper: Frechet": "Frechet distance, photographs"}
    for axes, (beginning, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for name in [name for name in ROWS if any(row["row"] == name for row in rows)]:
            points = [
                (row["budget_s"], row["values"]["cpu_seconds"], value)
                for row in rows
                for key, value in row["values"].items()
                if row["row"] == name and value is not None and (key == beginning or key.startswith(f"{beginning} "))
            ]
            if points:
                budgets, *coordinates = map(np.array, zip(*points, strict=True))
                seeds = axes.scatter(*coordinates, alpha=0.5)
                means = [[x[budgets == budget].mean() for budget in np.unique(budgets)] for x in coordinates]
                axes.plot(*means, color=seeds.get_facecolor()[0, :3], label=name)
        axes.set(xscale="log", xlabel="CPU seconds of one thread, autoencoder included", title=title)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
    return figure


def _open(args: argparse.Namespace, out: str, settings: dict[str, Any], seed: int = SEED) -> Run:
    return open_run("race", args.clusters, "kmeans", ablation.absolute(args.data), "recommended", settings, seed, out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.race", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, nargs="+", default=[300.0, 600.0, 1800.0], help="CPU seconds")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW")
    parser.add_argument("--seeds", type=int, nargs="+", default=[SEED])
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--number", type=int, default=500, help="test tiles to compare with")
    parser.add_argument("--features", nargs="+", default=["autoencoder", "imagenet-deeper"])
    parser.add_argument("--set", type=json.loads, default={}, dest="settings", help="settings of all rows, as JSON")
    return parser


if __name__ == "__main__":
    main()
