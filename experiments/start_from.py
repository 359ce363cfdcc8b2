"""What it is worth to begin from trained weights: a run from scratch, and from the starter in a third of the steps.

    python -m experiments.start_from --out DIR [--data embedded] [--clusters 6] [--thirds 3 2 10]

Three runs of the starter's widths and tile size on tissue it never saw: from scratch with all steps, from scratch with
a third of them, and from the starter with a third of them. `--thirds` are the epochs of a third, for the autoencoder,
the polish of its decoder, and the UNet. All else is the recipe of `experiments.ablation`. A run that is done is not
done again, and one that was stopped goes on. Writes DIR/NAME.json and a sheet DIR/NAME.jpg for each run, and
start_from.md.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from experiments import ablation
from pfiles import learn
from pfiles.drawing.generator import STARTER
from pfiles.paths import read_json, write_text
from pfiles.run import open_run

ROWS = {"from scratch": (3, None), "from scratch, a third": (1, None), "from the starter, a third": (1, "starter")}


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    for name in ROWS:
        if not (args.out / f"{name}.json").exists():
            _do(args, name)
    table = ablation.as_table([read_json(args.out / f"{name}.json") for name in ROWS])
    print(table)
    write_text(args.out / "start_from.md", table)


def _do(args: argparse.Namespace, name: str) -> None:
    """Train and measure a run."""
    times, start = ROWS[name]
    settings: dict[str, Any] = ablation.SIZE | {
        of: value
        for of, value in read_json(STARTER / "config.json")["settings"].items()
        if of in ("image_size_px", "autoencoder.vqvae", "diffusion.unet")
    }
    epochs = dict(zip(("autoencoder.epochs", "autoencoder.polish.epochs", "training.epochs"), args.thirds, strict=True))
    settings |= {of: times * number for of, number in epochs.items()} | {"start_from": start} | args.settings
    run = open_run(
        "start_from", args.clusters, "kmeans", args.data, "recommended", settings, out=str((args.out / name).absolute())
    )
    began = time.process_time()
    learn.autoencoder(run, *learn.new_autoencoder(run))
    history = learn.unet(run, "training", learn.new_networks(run))
    seconds = round(time.process_time() - began)
    ablation.write_row(run, args, name, history, seconds, settings, floors=start is None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.start_from")
    parser.add_argument("--data", default="embedded", help="tissue that the starter never saw")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clusters", type=int, default=6)
    parser.add_argument("--thirds", nargs=3, type=int, default=[3, 2, 10], metavar="EPOCHS")
    parser.add_argument("--features", nargs="+", default=["random", "imagenet"], help="that belong to no run")
    parser.add_argument("--set", type=json.loads, default={}, dest="settings", help="settings of all runs, as JSON")
    return parser


if __name__ == "__main__":
    main()
