"""Time and peak memory of the five cluster indices, beside the plain way: scipy's pdist and a full sort.

    python -m benchmarks.indices [CSV] [--out FILE]

Random Gaussian mixtures of 16 features and 14 clusters, and the CSV if one is given (no header, columns 0-15 features,
16 label). Each row is a process of its own, measured whole: start, imports, data, indices.
"""

import argparse
import csv
import io
import os
import subprocess
import sys
import time
from pathlib import Path

SIZES = (5_000, 10_000, 20_000, 50_000, 100_000)
PLAIN_UP_TO = 20_000  # points; the plain way then takes 3.5 GB
N_FEATURES, N_CLUSTERS = 16, 14


def n_points(data):
    if data.isdigit():
        return int(data)
    with open(data) as file:
        return sum(1 for _ in file)


def load(data):
    """Points and labels: a mixture of `data` points, or the CSV of that name."""
    import numpy as np

    if not data.isdigit():
        columns = np.loadtxt(data, delimiter=",")
        return columns[:, :N_FEATURES], columns[:, N_FEATURES]
    rng = np.random.default_rng(0)
    labels = rng.integers(N_CLUSTERS, size=int(data))
    centres = rng.normal(size=(N_CLUSTERS, N_FEATURES))
    return centres[labels] + rng.normal(size=(len(labels), N_FEATURES)), labels


def module(X, labels):
    from MODULE import all_indices

    return list(all_indices(X, labels).values())


def plain(X, labels):
    """The same five numbers with every distance in memory."""
    import numpy as np
    from scipy.spatial.distance import pdist

    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    centroids = np.stack([X[codes == code].mean(axis=0) for code in range(len(sizes))])
    wgss = ((X - centroids[codes]) ** 2).sum()
    bgss = (sizes[:, None] * (centroids - X.mean(axis=0)) ** 2).sum()

    d = pdist(X)
    same = pdist(codes[:, None].astype(float)) == 0
    within, between = d[same], d[~same]
    d.sort()
    n_w, s_w = len(within), within.sum()
    s_min, s_max = d[:n_w].sum(), d[len(d) - n_w :].sum()
    return [
        bgss / (len(sizes) - 1) / (wgss / (len(X) - len(sizes))),
        (s_w - s_min) / (s_max - s_min),
        between.min() / within.max(),
        np.log(bgss / wgss),
        (s_w / n_w) / between.mean(),
    ]


def measure(way, data):
    """Run one way on one data set in a fresh process: seconds, peak MB, and the five numbers as printed."""
    command = [sys.executable, "-m", "benchmarks.indices", "--run", way, data]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)  # the peak of this child alone
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}.")
    return seconds, usage.ru_maxrss / 1024, printed.strip()  # Linux counts in KB


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", nargs="?", help="also measure on these points and labels")
    parser.add_argument("--out", type=Path, help="write the table to this CSV file")
    parser.add_argument("--run", nargs=2, metavar=("WAY", "DATA"), help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.run:
        way, data = options.run
        print(*(f"{value:.5f}" for value in {"module": module, "plain": plain}[way](*load(data))))
        return

    rows = []
    print(f"{'points':>16} {'MODULE':>17} {'plain':>17} {'ratio plain / MODULE':>25}")
    for data in [*([options.csv] if options.csv else []), *map(str, SIZES)]:
        seconds, peak_mb, values = measure("module", data)
        row = {"data": Path(data).name, "seconds": seconds, "peak_mb": peak_mb}
        line = f"{row['data']:>16} {seconds:7.2f} s {peak_mb:5.0f} MB"
        if n_points(data) <= PLAIN_UP_TO:
            plain_seconds, plain_peak_mb, plain_values = measure("plain", data)
            row |= {"plain_seconds": plain_seconds, "plain_peak_mb": plain_peak_mb}
            line += f" {plain_seconds:7.2f} s {plain_peak_mb:5.0f} MB"
            line += f" {plain_seconds / seconds:6.1f} x time {plain_peak_mb / peak_mb:5.1f} x memory"
            if values != plain_values:
                raise RuntimeError(f"{data}: MODULE gives {values}, the plain way {plain_values}.")
        rows.append(row)
        print(line, flush=True)

    if options.out:
        from pfiles.paths import atomic_write  # brings torch along, which must not count above

        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, ["data", "seconds", "peak_mb", "plain_seconds", "plain_peak_mb"])
        writer.writeheader()
        writer.writerows(rows)
        with atomic_write(options.out) as file:
            file.write(table.getvalue().encode())


if __name__ == "__main__":
    main()
