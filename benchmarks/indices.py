"""Time and memory of the five cluster indices, beside the plain way: scipy's pdist and a full sort.

    python -m benchmarks.indices [CSV] [--points 5000 ...] [--repetitions N] [--out FILE]

Random Gaussian mixtures of 16 features and 14 clusters, and the CSV if one is given (no header, columns 0-15 features,
16 label). Both ways in turn, each in a process of its own, see `benchmarks.measure`: the seconds are of the indices
alone, the memory is what the process takes more than before it had the points. Both must give the same five numbers.
"""

import argparse
import statistics
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist

from benchmarks.measure import Run, device_name, interleaved, seconds
from MODULE import all_indices
from pfiles.paths import write_json

POINTS = (5_000, 10_000, 20_000, 50_000, 100_000)
PLAIN_UP_TO = 20_000  # points; the plain way then takes 3.5 GB
N_FEATURES, N_CLUSTERS = 16, 14


def load(data: int | Path) -> tuple[np.ndarray, np.ndarray]:
    """Points and labels: a mixture of `data` points, or the CSV of that name."""
    if isinstance(data, Path):
        columns = np.loadtxt(data, delimiter=",")
        return columns[:, :N_FEATURES], columns[:, N_FEATURES]
    rng = np.random.default_rng(0)
    labels = rng.integers(N_CLUSTERS, size=data)
    centres = rng.normal(size=(N_CLUSTERS, N_FEATURES))
    return centres[labels] + rng.normal(size=(len(labels), N_FEATURES)), labels


def module(data: int | Path, device: str) -> Run:
    return _run(lambda x, labels: list(all_indices(x, labels).values()), data, device)


def plain(data: int | Path, device: str) -> Run:
    return _run(with_every_distance, data, device)


def _run(indices: Any, data: int | Path, device: str) -> Run:
    x, labels = load(data)

    def run() -> dict[str, Any]:
        values = []
        took = seconds(device, lambda: values.extend(indices(x, labels)))
        return {"seconds": took, "values": [f"{value:.5f}" for value in values], "points": len(x)}

    return run


def with_every_distance(x: np.ndarray, labels: np.ndarray) -> list[float]:
    """The same five numbers in the same order, with every distance in memory."""
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    centroids = np.stack([x[codes == code].mean(axis=0) for code in range(len(sizes))])
    wgss = ((x - centroids[codes]) ** 2).sum()
    bgss = (sizes[:, None] * (centroids - x.mean(axis=0)) ** 2).sum()

    d = pdist(x)
    same = pdist(codes[:, None].astype(float)) == 0
    within, between = d[same], d[~same]
    d.sort()
    n_w, s_w = len(within), within.sum()
    s_min, s_max = d[:n_w].sum(), d[len(d) - n_w :].sum()
    return [
        bgss / (len(sizes) - 1) / (wgss / (len(x) - len(sizes))),
        (s_w - s_min) / (s_max - s_min),
        between.min() / within.max(),
        np.log(bgss / wgss),
        (s_w / n_w) / between.mean(),
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.indices", description=__doc__.splitlines()[0])
    parser.add_argument("csv", nargs="?", type=Path, help="also measure on these points and labels")
    parser.add_argument("--points", nargs="+", type=int, default=POINTS, metavar="N", help="of each mixture")
    parser.add_argument("--repetitions", type=int, default=3, metavar="N", help="that count, after one; default 3")
    parser.add_argument("--out", type=Path, metavar="FILE", help=".json file for the results")
    args = parser.parse_args(arguments)
    print(f"{device_name('cpu')}\n{'points':>8} {'MODULE':>19} {'plain':>19} {'plain / MODULE':>27}")
    rows = []
    for data in [*([args.csv] if args.csv else []), *args.points]:
        ways = {"module": module, "plain": plain}
        if not isinstance(data, Path) and data > PLAIN_UP_TO:
            del ways["plain"]
        measured = interleaved(ways, data, "cpu", args.repetitions)
        row = {"data": str(data), "points": measured["module"]["runs"][0]["points"]}
        for name, way in measured.items():
            took = statistics.median(run["seconds"] for run in way["runs"])
            row[name] = {"seconds": took, "mb": way["peak_mb"] - way["before_mb"], "values": way["runs"][0]["values"]}
        print(_line(row), flush=True)
        if "plain" in row and row["module"]["values"] != row["plain"]["values"]:
            raise RuntimeError(
                f"{data}: MODULE gives {row['module']['values']}, the plain way {row['plain']['values']}."
            )
        rows.append(row)
    if args.out:
        write_json(args.out, {"device": device_name("cpu"), "date": date.today().isoformat(), "rows": rows})
    return 0


def _line(row: dict[str, Any]) -> str:
    sides = [row[name] for name in ("module", "plain") if name in row]
    columns = "".join(f" {side['seconds']:8.2f} s {side['mb']:5.0f} MB" for side in sides)
    if len(sides) == 2:
        ours, theirs = sides
        columns += f" {theirs['seconds'] / ours['seconds']:6.1f} x time {theirs['mb'] / ours['mb']:5.1f} x memory"
    return f"{row['points']:>8}{columns}"


if __name__ == "__main__":
    sys.exit(main())
