"""The published way against the way of `pfiles`, measured in turn: time, peak memory, share of what the machine can do.

    python -m benchmarks [--only NAME ...] [--size tiny] [--repetitions N] [--out FILE]

Prints a table, one row as soon as it is measured, and writes the same with every repetition to a JSON file, by default
benchmarks/results/<device>-<date>.json.
"""

import argparse
import re
import statistics
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.inputs import Flops, Size, count_flops, make_size
from benchmarks.items import ITEMS, Item
from benchmarks.measure import MeasurementError, ceilings, device_name, interleaved
from pfiles.machine.runtime import pick_device, versions
from pfiles.machine.speed import pick_speed
from pfiles.paths import ROOT, write_json

COLUMNS = "{:<60} {:>16} {:>16} {:>7} {:>17} {:>13}"


def main(arguments: list[str] | None = None) -> int:
    """Measure and return the exit status: 0 all measured, 1 some item failed."""
    args = _parser().parse_args(arguments)
    device = args.device
    size = make_size(args.size, device, args.precision)
    by_name = {item.name: item for item in ITEMS}
    names = args.only or [item.name for item in ITEMS if item.on_cpu or device != "cpu"]
    out = args.out or ROOT / "benchmarks" / "results"
    if out.suffix != ".json":
        out = out / _result_name(device)

    machine = device_name(device)
    print(f"{machine}, torch {torch.__version__}, size {args.size}, {args.repetitions} repetitions")
    pick_speed(size.settings, torch.device(device))
    limits = interleaved({"ceilings": ceilings}, size, device, 1)["ceilings"]["runs"][0]
    rates = [f"{limits[f'{p}_tflops']:.3g} TFLOP/s {p}" for p in ("fp32", "bf16") if f"{p}_tflops" in limits]
    print(f"measured ceilings: {', '.join(rates)}, memory copy {limits['copy_gb_per_s']:.3g} GB/s\n")
    result = {
        "device": machine,
        "date": date.today().isoformat(),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "size": args.size,
        "precision": size.settings.precision,
        "ceilings": limits,
        "items": [],
    }
    flops = count_flops(size.settings)
    print(COLUMNS.format("work", "reference", "product", "ratio", "peak memory, MB", "of ceiling"))
    for item in map(by_name.get, names):
        try:
            measured = measure(item, size, device, args.repetitions, limits, flops)
        except MeasurementError as error:
            measured = {"name": item.name, "failed": str(error)}
            print(f"{item.work} failed:\n{error}", file=sys.stderr, flush=True)
        else:
            print_row(measured)
        result["items"].append(measured)
        write_json(out, result)  # after each, so that an interrupted run leaves what it has
    print(
        "\nmedians and half the range of the repetitions; peak memory is the process's on a CPU, torch's on a GPU, "
        "reference and product;\nof ceiling: what the product reaches of the matrix product's rate in its precision, "
        f"counting convolutions alone and all operations\n{out}"
    )
    return int(any("failed" in item for item in result["items"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    names = [item.name for item in ITEMS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--size", choices=("paper", "tiny"), default="paper", help="of the networks; default paper")
    parser.add_argument("--repetitions", type=_count, default=3, metavar="N", help="that count, after one; default 3")
    parser.add_argument("--device", default=pick_device().type, choices=("cpu", "cuda"), help="default: a GPU if any")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="the product's; default bf16 on a GPU, else fp32")
    parser.add_argument("--out", type=Path, metavar="FILE", help=".json file, or folder for <device>-<date>.json")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, but is {text!r}")
    return int(text)


def _result_name(device: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return f"{slug}-{date.today().isoformat()}.json"


def measure(
    item: Item, size: Size, device: str, repetitions: int, limits: dict[str, float], flops: dict[str, Flops]
) -> dict[str, Any]:
    """Measure one item: the JSON of it, see `print_row`."""
    sides = {"reference": item.reference, "product": item.product}
    measured = interleaved({k: v for k, v in sides.items() if v is not None}, size, device, repetitions)
    for side in measured.values():
        times = [run["seconds"] for run in side["runs"]]
        side["median_s"] = statistics.median(times)
        side["spread"] = (max(times) - min(times)) / 2 / side["median_s"]
    row = {"name": item.name, "work": item.work, "part": item.part(size), **measured}
    if "reference" in measured:
        row["ratio"] = measured["reference"]["median_s"] / measured["product"]["median_s"]
    if item.flops is not None:
        rate = limits[f"{size.settings.precision}_tflops"] * 1e12 * measured["product"]["median_s"]
        row["flops"] = asdict(item.flops(flops))
        row["share_of_ceiling"] = {kind: amount / rate for kind, amount in row["flops"].items()}
    return row


def print_row(row: dict[str, Any]) -> None:
    """A line of the table, what was really done below it, and each batch size that was tried."""
    sides = [row.get("reference"), row["product"]]
    share = row.get("share_of_ceiling")
    print(
        COLUMNS.format(
            row["work"],
            *(f"{_time(side['median_s'])} ±{side['spread']:3.0%}" if side else "" for side in sides),
            f"{row['ratio']:.2f}" if "ratio" in row else "",
            " / ".join(f"{side['peak_mb']:,.0f}" for side in sides if side),
            f"{share['convolutions']:.0%} / {share['all']:.0%}" if share else "",
        )
    )
    if row["part"]:
        print(f"    extrapolated from {row['part']}")
    for tried in row["product"]["runs"][0].get("tried", ()):
        each, peak = _time(tried["seconds"]), f"{tried['peak_mb']:,.0f} MB"
        print(f"    batch of {tried['batch_size']}: {each} an image and step, {peak}")
    sys.stdout.flush()


def _time(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1000 * seconds:.3g} ms"


if __name__ == "__main__":
    sys.exit(main())
