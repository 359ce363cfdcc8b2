"""How time and memory grow with the data, with k, with the side of a tile and with the number of processes.

    python -m benchmarks.growth [--only NAME ...] [--out FILE]

Each work is measured at four sizes or more (one and two processes), each in a process of its own, and fitted: the
exponent is the slope of log time over log size, by least squares, 1 meaning twice the time for twice the size. Tiles
are synthetic; a million of them lie in a sparse file that is mapped, not read. Prints a table; writes a JSON and a
figure beside it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt

from benchmarks.indices import load
from benchmarks.inputs import open_untrained, smooth_tiles
from benchmarks.measure import MeasurementError, Run, device_name, interleaved, seconds
from MODULE import all_indices, sampled_indices
from pfiles import learn
from pfiles.clusterers import KMeansClusters, fit_kmeans_to
from pfiles.latents import encode_tiles
from pfiles.machine.cpu import usable_cores
from pfiles.machine.runtime import make_rng, pick_device, versions
from pfiles.measuring.memorisation import nearest_in
from pfiles.measuring.shortlist import make_index
from pfiles.paths import ROOT, write_json
from pfiles.reporting.figures import save_figure
from pfiles.tiles.dataset import load_tiles

matplotlib.use("Agg")
Z = 16  # channels of the latents
SEARCHED = 32  # images whose nearest tile is looked for


def loading(tiles: int, device: str) -> Run:
    """Open tiles of 128 px, split and fingerprint them: a hash of every pixel, not what was kept of it last time."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name, "tiles.npy")
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (tiles, 128, 128, 3))  # sparse: takes no room
    images[:16] = np.random.default_rng(0).integers(256, size=(16, 128, 128, 3))
    images.flush()
    del images

    def run() -> dict[str, Any]:
        assert folder, "keeps the folder"
        return {"seconds": seconds(device, lambda: replace(load_tiles(path, 128), state=None).fingerprint())}

    return run


def encoding(tiles: int, device: str, side: int = 64) -> Run:
    """Encode tiles by the demo's autoencoder, at `side` px."""
    vqvae = open_untrained("demo", {}, device).vqvae
    images = smooth_tiles(tiles, side).to(device)
    return lambda: {"seconds": seconds(device, lambda: encode_tiles(vqvae, images))}


def kmeans(tiles: int, device: str, k: int = 14) -> Run:
    """k-means of the statistics of tiles, best of 10 starts."""
    points, _ = load(tiles)
    statistics_of_tiles = torch.from_numpy(np.hstack([points, points[::-1]])).float()
    return lambda: {"seconds": seconds(device, lambda: fit_kmeans_to(KMeansClusters(Z, k), statistics_of_tiles, 0))}


def indices(tiles: int, device: str) -> Run:
    """The five cluster indices, exact."""
    points, labels = load(tiles)
    return lambda: {"seconds": seconds(device, lambda: all_indices(points, labels))}


def indices_of_samples(tiles: int, device: str) -> Run:
    """The same from ten samples of 10,000 tiles."""
    points, labels = load(tiles)
    return lambda: {"seconds": seconds(device, lambda: sampled_indices(points, labels))}


def indices_of_k(k: int, device: str) -> Run:
    """The same of 10,000 tiles in k clusters."""
    points, _ = load(10_000)
    labels = np.arange(10_000) % k
    return lambda: {"seconds": seconds(device, lambda: all_indices(points, labels))}


def indexing(tiles: int, device: str) -> Run:
    """The index of training tiles of 128 px in which copies are looked up."""
    train = smooth_tiles(tiles, 128)
    return lambda: {"seconds": seconds(device, lambda: make_index(train))}


def lookup(tiles: int, device: str) -> Run:
    """The nearest of so many indexed training tiles of 128 px for 32 images."""
    index, images = make_index(smooth_tiles(tiles, 128)), smooth_tiles(SEARCHED, 128).flip(0)
    return lambda: {"seconds": seconds(device, lambda: nearest_in(index, images))}


def unet_step(device: str, side: int = 64, k: int = 14) -> Run:
    """Forward and backward of the demo's UNet, batch of 8."""
    networks = learn.new_networks(open_untrained("demo", {}, device, k))
    rng = make_rng("benchmark growth")
    x = torch.randn(8, *networks.space.vqvae.latent_shape(side), generator=rng).to(device)
    t, cluster_ids = torch.arange(8, device=device), (torch.arange(8) % k).to(device)
    return lambda: {"seconds": seconds(device, lambda: networks.unet(x, t, cluster_ids).square().mean().backward())}


def processes(number: int, device: str) -> Run:
    """A step of the demo's UNet in so many processes, which share batch and cores."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, usable_cores() // number))}

    def run() -> dict[str, float]:
        done = subprocess.run(
            [*start, "-m", "benchmarks.step"], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
        return {"seconds": float(done.stdout.split()[-1])}

    return run


@dataclass(frozen=True)
class Work:
    """what: in the table, with its unit of size. job: prepares the run of a size. fit_from: smaller sizes do not count
    in the fit, as what is the same for all sizes takes most of their time."""

    what: str
    job: Callable[[Any, str], Run]
    sizes: tuple[int, ...]
    fit_from: int = 0


TILES, MANY = (1_000, 3_000, 10_000, 30_000), (10_000, 100_000, 300_000, 1_000_000)
KS = (10, 30, 100, 300, 1_000)
SIDES = (64, 128, 256, 512)
WORKS = {
    "loading": Work("tiles: open and fingerprint, 128 px", loading, (1_000, 10_000, 100_000, 1_000_000)),
    "encoding": Work("tiles: encode, 64 px", encoding, (125, 250, 500, 1_000, 2_000)),
    "kmeans": Work("tiles: k-means, k = 14", kmeans, (*TILES, 100_000, 1_000_000), 10_000),
    "indices": Work("tiles: five indices", indices, (*TILES, 100_000), 3_000),
    "indices-sampled": Work("tiles: five indices, sampled", indices_of_samples, MANY),
    "indexing": Work("tiles: index them for the search for copies", indexing, TILES),
    "lookup": Work("tiles: nearest of them for 32 images", lookup, TILES),
    "kmeans-k": Work("k: k-means of 10,000 tiles", lambda k, device: kmeans(10_000, device, k), KS),
    "indices-k": Work("k: five indices of 10,000 tiles", indices_of_k, KS),
    "unet-k": Work("k: a step of the UNet", lambda k, device: unet_step(device, k=k), KS),
    "encoding-side": Work("side, px: encode 16 tiles", lambda side, device: encoding(16, device, side), SIDES),
    "unet-side": Work("side, px: a step of the UNet", lambda side, device: unet_step(device, side), SIDES),
    "processes": Work("processes: a step of the UNet, batch of 16", processes, (1, 2)),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure and return the exit status: 0 all measured, 1 some size failed."""
    args = _parser().parse_args(arguments)
    print(f"{device_name(args.device)}, {args.repetitions} repetitions after one that does not count")
    about = {"date": date.today().isoformat(), "device": device_name(args.device), "versions": versions()}
    rows, failed = [], 0
    for name in args.only or WORKS:
        measured = {}
        for size in WORKS[name].sizes[: args.sizes]:
            try:
                side = interleaved({name: partial(_job, name)}, size, args.device, args.repetitions)[name]
            except MeasurementError as error:
                print(f"{name} at {size:,} failed:\n{error}", file=sys.stderr)
                failed = 1
                continue
            took = statistics.median(run["seconds"] for run in side["runs"])
            measured[size] = {"seconds": took, "mb": side["peak_mb"] - side["before_mb"]}
        rows.append({"name": name, "what": WORKS[name].what, **fit(measured, WORKS[name].fit_from), "sizes": measured})
        print(_line(rows[-1]), flush=True)
        write_json(args.out, {**about, "rows": rows})
    save_figure(figure(rows), args.out.with_suffix(".jpg"))
    print(args.out)
    return failed


def _job(name: str, size: int, device: str) -> Run:
    return WORKS[name].job(size, device)


def fit(measured: dict[int, dict[str, float]], fit_from: int = 0) -> dict[str, float]:
    """The exponent of time over size, by least squares of their logarithms; nothing of fewer than two sizes."""
    sizes = [size for size in measured if size >= fit_from]
    if len(sizes) < 2:
        return {}
    slope, _ = np.polyfit(np.log(sizes), np.log([measured[size]["seconds"] for size in sizes]), 1)
    return {"exponent": float(slope)}


def _line(row: dict[str, Any]) -> str:
    times = ", ".join(f"{size:,}: {one['seconds']:.3g} s, {one['mb']:,.0f} MB" for size, one in row["sizes"].items())
    return f"{row['what']:40} exponent {row.get('exponent', float('nan')):.2f}   {times}"


def figure(rows: list[dict[str, Any]]) -> matplotlib.figure.Figure:
    """Time over size for tiles, k, side and processes, both logarithmic, with the exponents."""
    fig, axes = plt.subplots(1, 4, figsize=(16, 5), layout="constrained")
    for ax, (kind, ticks) in zip(
        axes, {"tiles": (), "k": (), "side, px": SIDES, "processes": (1, 2)}.items(), strict=True
    ):
        for row in rows:
            unit, what = row["what"].split(": ", 1)
            if unit == kind and row["sizes"]:
                label = f"{what} ({row.get('exponent', float('nan')):.2f})"
                ax.loglog([*row["sizes"]], [one["seconds"] for one in row["sizes"].values()], "o-", label=label)
        ax.set(xlabel=kind, ylabel="seconds")
        if ticks:
            ax.set_xticks(ticks, ticks)
            ax.xaxis.minorticks_off()
        if ax.lines:
            low, high = ax.get_ylim()
            ax.set_ylim(low / 2, 2 * high)
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
            ax.legend(fontsize=8, title="exponent in brackets", title_fontsize=8, **below)
    return fig


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=WORKS, metavar="NAME", help=f"of {', '.join(WORKS)}")
    parser.add_argument("--sizes", type=int, default=None, metavar="N", help="only the N smallest sizes of each")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--device", default=pick_device().type, choices=("cpu", "cuda"), help="default: a GPU if any")
    results = ROOT / "benchmarks" / "results"
    parser.add_argument("--out", type=Path, default=results / f"growth-{date.today()}.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
