"""The preset "recommended", shortened to some minutes, and what it draws: a look at a machine and at tiles.

    python -m experiments.short_run [TILES] [--minutes 6] [--size tiny] [--out DIR]

Autoencoder, polish and the UNet's first two trainings get as many epochs as fit into the minutes; steps are timed
first, and DIR/epochs.json keeps the epochs. Stopped by Ctrl-C or SIGTERM it leaves a resume point, and goes on when run
again. Leaves DIR/sheet.jpg, training tiles beside generated ones of each cluster, and the folders DIR/test and
DIR/drawn, as many generated tiles as test tiles and of the same clusters, which `python -m pfiles evaluate --unpaired`
compares.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.inputs import TINY
from experiments.ablation import absolute
from pfiles import draw, learn
from pfiles.cli.estimate import seconds_of_epoch, shortened
from pfiles.errors import InputError, TerminatedError
from pfiles.machine.runtime import pick_device
from pfiles.paths import ROOT, read_json, write_json
from pfiles.reporting import figures
from pfiles.run import Run, open_run
from pfiles.tiles.files import write_tiles
from pfiles.tiles.pixels import evenly_spaced

N_CLUSTERS, N_CLUSTERS_IN_TINY = 14, 3
SHARES = {"autoencoder": 0.25, "polish": 0.25, "training": 0.05, "finetuning1": 0.45}  # of the minutes
TIMED, TIMED_IN_TINY = 20, 2  # epochs of a step or few
DRAWN, DRAWN_IN_TINY = 1000, 24  # tiles at most
PER_CLUSTER = 10  # tiles in a row of the sheet
STAGE = "finetuning1"  # after which tiles are drawn
IN_TINY = {
    "max_train_tiles": 32, "autoencoder.batch_size": 8, "diffusion.batch_size": 8, "sampling.steps": 4,
    "autoencoder.discriminator": {"conv_channels": [8, 16]}, "sampling.num_generated": 22,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Train, draw, and return the exit status: 0 done, 2 the tiles are not usable, 143 stopped by SIGTERM."""
    description, out = __doc__.splitlines()[0], ROOT / "runs" / "short"
    args = make_parser("short_run", description, 6.0, "of both trainings together", out).parse_args(arguments)
    try:
        short_run(absolute(args.tiles), args.size == "tiny", 60 * args.minutes, args.out.resolve())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TerminatedError as error:
        print(error)
        return 143
    return 0


def make_parser(name: str, description: str, minutes: float, of_minutes: str, out: Path) -> argparse.ArgumentParser:
    """The options of an experiment that trains on tiles for some minutes; `minutes` and `out` are the defaults."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}", description=description)
    parser.add_argument("tiles", nargs="?", default="embedded", help="folder, .zip or .npy; default embedded tissue")
    parser.add_argument("--minutes", type=float, default=minutes, help=f"{of_minutes}; default {minutes:g}")
    parser.add_argument("--size", choices=("paper", "tiny"), default="paper", help="of the networks; default paper")
    parser.add_argument("--out", type=Path, default=out, help="folder for the results")
    return parser


def short_run(data: str, tiny: bool, seconds: float, out: Path) -> None:
    """Train on the tiles of `data` for about `seconds`, draw, and write pictures and tiles into `out`."""
    # nothing is compiled, which takes minutes of its own
    overrides: dict[str, Any] = {"speed": "off", "precision": "bf16" if pick_device().type == "cuda" else "fp32"}
    k, timed, most = N_CLUSTERS, TIMED, DRAWN
    if tiny:
        overrides |= TINY | IN_TINY
        k, timed, most = N_CLUSTERS_IN_TINY, TIMED_IN_TINY, DRAWN_IN_TINY

    def open_with(epochs: dict[str, int]) -> Run:
        return open_run("short_run", k, "kmeans", data, "recommended", overrides | epochs, out=out / "run",
                        run_toml=False)  # fmt: skip

    epochs = read_json(out / "epochs.json")
    if epochs is None:
        epochs = epochs_in(seconds, open_with({}), timed)
        write_json(out / "epochs.json", epochs)
    print(", ".join(f"{name} = {value}" for name, value in epochs.items()), flush=True)
    run = open_with(epochs)
    learn.autoencoder(run, *learn.new_autoencoder(run))
    networks = learn.new_networks(run)
    for stage in ("training", STAGE):
        learn.unet(run, stage, networks)

    places = run.tiles.test[evenly_spaced(len(run.tiles.test), most)]
    real = run.tiles.tensor(places)
    write_tiles(out / "test", range(1, len(real) + 1), real)
    counterparts = draw.tiles(run, run.assign(real, STAGE).cluster_ids, stage=STAGE)
    write_tiles(out / "drawn", range(1, len(counterparts) + 1), counterparts)
    clusters, _ = run.assign(stage=STAGE)
    rows = [run.train_images[(clusters == c).to(run.device)][: PER_CLUSTER // 2].cpu() for c in range(k)]
    ids = [c for c in range(k) for _ in range(PER_CLUSTER)]
    generated = draw.tiles(run, ids, stage=STAGE).split(PER_CLUSTER)
    sheet = figures.cluster_sheet(rows, generated, ("Training tiles", "Generated tiles"), mpp=run.tiles.mpp)
    figures.save_figure(sheet, out / "sheet.jpg")
    print(f"{out / 'sheet.jpg'}; {len(real)} tiles each in {out / 'test'} and {out / 'drawn'}")


def epochs_in(seconds: float, run: Run, timed: int) -> dict[str, int]:
    """How many epochs of each training fit into the time, as settings. timed: how many short epochs are timed."""
    settings, n = run.settings, len(run.tiles.train)
    batches = {
        "autoencoder": settings.autoencoder.batch_size, "polish": settings.autoencoder.polish.batch_size,
        "training": settings.diffusion.batch_size, "finetuning1": settings.diffusion.batch_size,
    }  # fmt: skip
    n_tiles = min(n, max(*batches.values(), run.n_clusters))
    epochs = {}
    with tempfile.TemporaryDirectory() as folder:
        small = shortened(run, n_tiles, timed, Path(folder))
        for name, batch_size in batches.items():
            step = seconds_of_epoch(small, name) / max(1, n_tiles // batch_size)
            setting = "autoencoder.polish.epochs" if name == "polish" else f"{name}.epochs"
            epochs[setting] = max(1, int(SHARES[name] * seconds / (step * max(1, n // batch_size))))
    return epochs


if __name__ == "__main__":
    sys.exit(main())
