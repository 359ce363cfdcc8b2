"""One UNet for every number of clusters against a UNet for each: trainings of the same number of steps each.

    python -m experiments.every_k --data PATH --out DIR [--clusters 10-16] [--against 10 13 16] [--epochs 5]

All rows share one autoencoder (DIR/autoencoder, trained first where it is not there), the k-means clusters of its
latents, and the settings of `experiments.ablation`. The first row trains one UNet for all numbers of clusters, the last
two the same for twice and four times as many steps, the others one UNet for one k each. For each k that has a UNet of
its own a tile is drawn for the cluster of each of 500 test tiles, with the same noise in every row. A row that is done
is not done again, and a training that was stopped goes on: give the same command again. Writes DIR/NAME.json for each
row, and every_k.md.
"""

import argparse
import json
import shutil
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import device_name
from experiments.ablation import SIZE
from pfiles import draw, learn
from pfiles.latents import encode_tiles, predict_clusters
from pfiles.machine.runtime import versions
from pfiles.measuring import fidelity
from pfiles.measuring.distribution import frechet_distance
from pfiles.measuring.features import make_extractor
from pfiles.paths import read_json, write_json, write_text
from pfiles.run import Run, open_run

HALVES = 200  # random halves of the drawn tiles, whose spread is the standard error


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    together = args.clusters
    rows = {"every k": (together, 1), **{f"k = {k}": (k, 1) for k in args.against}}
    rows |= {"every k, twice": (together, 2), "every k, four times": (together, 4)}
    first = _open(args, "autoencoder", args.against[0], 1)
    if not first.paths.autoencoder.exists():
        learn.autoencoder(first, *learn.new_autoencoder(first))
    first.view_codes  # noqa: B018 - encoded once for all rows
    for name, (clusters, times) in rows.items():
        if not (args.out / f"{name}.json").exists():
            _do(args, name, clusters, times)
        table = as_table([row for row_name in rows if (row := read_json(args.out / f"{row_name}.json"))])
        write_text(args.out / "every_k.md", table)
    print(table)


def _open(args: argparse.Namespace, folder: str, clusters: int | str, times: int) -> Run:
    settings = SIZE | args.settings | {"training.epochs": times * args.epochs}
    data, out = str(args.data.absolute()), str((args.out / folder).absolute())
    return open_run("every_k", clusters, "kmeans", data, "recommended", settings, out=out)


def _do(args: argparse.Namespace, name: str, clusters: int | str, times: int) -> None:
    """Train and measure a row."""
    run = _open(args, name, clusters, times)
    shutil.copytree(args.out / "autoencoder" / "kpc_ldm", run.paths.autoencoder.parent, dirs_exist_ok=True)
    networks, began = learn.new_networks(run), time.process_time()
    history = learn.unet(run, "training", networks)
    seconds = time.process_time() - began
    values = {one.n_clusters: measure(one) for one in run.per_k if one.n_clusters in args.against}
    about = {"row": name, "date": date.today().isoformat(), "device": device_name(run.device.type), **versions()}
    trained = {"epochs": len(history), "training_cpu_seconds": round(seconds), "mse": history[-1]["mse"]}
    write_json(args.out / f"{name}.json", {**about, **trained, "clusters": clusters, "values": values})


def measure(run: Run, number: int = 500) -> dict[str, Any]:
    """What tiles drawn for the clusters of the test tiles are worth: their Frechet distance from these in the
    autoencoder's features, that of random halves of them, and how many the second judge sorts as asked."""
    test = run.test_images[:number]
    clusters, _ = run.assign(test, "training")
    began = time.process_time()
    generated = draw.tiles(run, clusters, stage="training")
    seconds = time.process_time() - began
    extractor = make_extractor("autoencoder", run.vqvae)
    train = run.tiles.tensor(run.tiles.some_of_training(len(test)))
    real, fake, floor = (extractor(tiles) for tiles in (test, generated, train))
    rng = np.random.default_rng(0)
    halves = [rng.permutation(len(fake))[: len(fake) // 2] for _ in range(HALVES)]
    labels, _ = run.assign(run.train_images, "training")
    judge, ceiling = fidelity.train_judge(run.vqvae, run.codes, labels, run.n_clusters, run.seed)
    verdicts, _ = predict_clusters(run.vqvae, judge, encode_tiles(run.vqvae, generated.to(run.device)))
    return {
        "frechet": frechet_distance(real, fake),
        "frechet of halves": [frechet_distance(real, fake[half]) for half in halves],
        "frechet of training tiles": frechet_distance(real, floor),
        "as asked": int((verdicts == clusters).sum()),
        "tiles": len(clusters),
        "judge on real tiles": ceiling,
        "drawing_cpu_seconds": round(seconds),
    }


def as_table(rows: list[dict[str, Any]]) -> str:
    """The rows that are done as Markdown, with 95 % intervals; each difference is that from the k's own UNet."""
    single = {row["clusters"]: row["values"][str(row["clusters"])] for row in rows if isinstance(row["clusters"], int)}
    columns = [
        "row",
        "k",
        "training, CPU s",
        "mse",
        "Frechet distance",
        "less that of the k's own",
        "as asked",
        "ceiling",
    ]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        for k, value in row["values"].items():
            error = np.std(value["frechet of halves"], ddof=1)
            low, high = fidelity.wilson_interval(value["as asked"], value["tiles"])
            cells = [
                row["row"], k, row["training_cpu_seconds"], f"{row['mse']:.4f}",
                f"{value['frechet']:.4f} ± {1.96 * error:.4f}",
                _difference(value, single[int(k)]) if int(k) in single and row["clusters"] != int(k) else "",
                f"{value['as asked'] / value['tiles']:.1%} ({low:.1%} to {high:.1%})",
                f"{value['judge on real tiles']:.1%}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _difference(values: dict[str, Any], reference: dict[str, Any]) -> str:
    """The difference of two Frechet distances of tiles drawn from the same noise, with its 95 % interval."""
    halves = np.subtract(values["frechet of halves"], reference["frechet of halves"])
    return f"{values['frechet'] - reference['frechet']:+.4f} ± {1.96 * np.std(halves, ddof=1):.4f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.every_k")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clusters", default="10-16", help="of the one UNet; default 10-16")
    parser.add_argument("--against", type=int, nargs="+", default=[10, 13, 16], help="k with a UNet of their own")
    parser.add_argument("--epochs", type=int, default=5, help="but of the last two rows; 5 of 5,000 are 1,560 steps")
    parser.add_argument("--set", type=json.loads, default={}, dest="settings", help="settings of all rows, as JSON")
    return parser


if __name__ == "__main__":
    main()
