"""Is a run that is made again from its crate equal to the bit?

    OMP_NUM_THREADS=1 python -m experiments.made_again [--runs 20] [--out DIR]

Each run takes seconds: 45 tiles of the embedded slide and tiny networks, another seed and another number of clusters
each time, in turn by k-means and by the paper's classifier. It is packed, and `python -m pfiles reproduce` makes it
again in another process. A run that is done is not done again. Writes DIR/RUN/again/reproduction.json, and
DIR/made_again.json.
"""

import argparse
import subprocess
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.inputs import TINY
from benchmarks.measure import device_name
from pfiles import pack
from pfiles.choices import K_INDEPENDENT_NOTEBOOKS
from pfiles.cli.notebooks import make_again
from pfiles.machine.runtime import versions
from pfiles.paths import ROOT, atomic_write, read_json, write_json
from pfiles.reproduce import EQUAL
from pfiles.run import open_run
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.pixels import as_array

CLUSTERINGS = ("kmeans", "classifier")
SIDE, ONE_IN = 64, 26  # pixels; of the slide's training tiles one in so many is taken
PARTS = ("1_training", "2_finetuning1", "3_finetuning2", "5_latent_space_extraction", "6_conditional_generation",
         "9_conditional_generation_using_cluster_IDs", "10_SSIM")  # fmt: skip
NOTEBOOKS = (*K_INDEPENDENT_NOTEBOOKS, *(f"clusters_14/part_{name}" for name in PARTS))
OVERRIDES = {
    **TINY, "image_size_px": SIDE, "autoencoder.perceptual": "photographs",
    "autoencoder.epochs": 2, "autoencoder.polish.epochs": 1,
    "training.epochs": 1, "finetuning1.epochs": 1, "finetuning2.epochs": 1, "sampling.steps": 4,
    "sampling.num_generated": 12, "sampling.per_cluster": 3,
    "autoencoder.discriminator": {"conv_channels": [8, 16]},
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Make, pack and make again, and write the counts; the exit status is 1 where a run is not equal to the bit."""
    parser = argparse.ArgumentParser(prog="python -m experiments.made_again", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="default 20")
    parser.add_argument("--out", type=Path, default=Path("made_again"), help="folder; default made_again")
    args = parser.parse_args(arguments)
    out = args.out.absolute()
    states = {}
    write_tiles(out / "tiles.npy")
    for number in range(1, args.runs + 1):
        folder = out / str(number)
        if not (folder / "again" / "reproduction.json").exists():
            _make_and_make_again(folder, number)
        states[number] = Counter(
            verdict["state"] for verdict in read_json(folder / "again" / "reproduction.json")["verdicts"]
        )
        print(f"{number}: {dict(states[number])}", flush=True)
    equal = sum({*counts} == {EQUAL} for counts in states.values())
    report = {
        "runs": args.runs, "equal to the bit": equal, "verdicts": {str(number): states[number] for number in states},
        "threads": torch.get_num_threads(), "device": device_name("cpu"), "date": date.today().isoformat(),
        "versions": versions(),
    }  # fmt: skip
    write_json(out / "made_again.json", report)
    print(f"{equal} of {args.runs} runs were made again equal to the bit, {sum(map(Counter.total, states.values()))} "
          "networks, tables, folders and numbers in all.")  # fmt: skip
    return int(equal < args.runs)


def write_tiles(path: Path) -> None:
    tiles = load_tiles("embedded", SIDE)
    with atomic_write(path) as file:
        np.save(file, as_array(tiles.tensor(tiles.train[::ONE_IN])))


def choices_of(number: int, out: Path) -> dict[str, Any]:
    """Those of run `number`, from 1 on."""
    data = str(out.parent.parent / "tiles.npy")
    return {
        "n_clusters": 2 + number % 3, "clustering": CLUSTERINGS[number % 2], "data": data, "preset": "demo",
        "overrides": OVERRIDES, "seed": number, "out": str(out),
    }  # fmt: skip


def _make_and_make_again(folder: Path, number: int) -> None:
    choices = choices_of(number, folder / "made")
    make_again(NOTEBOOKS, choices, folder / "made")
    run = open_run("pack", **choices, run_toml=False)
    pack.pack(run, folder / "run.zip", NOTEBOOKS, choices)
    command = ["reproduce", str(folder / "run.zip"), "--out", str(folder / "again"), "--data", choices["data"]]
    subprocess.run([sys.executable, "-m", "pfiles", *command], cwd=ROOT, check=False)


if __name__ == "__main__":
    sys.exit(main())
