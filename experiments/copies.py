"""Which changed copies does the gate withhold, and does its certificate hold?

    python -m experiments.copies --data PATH --size 128 [--copies 60] [--seed 765] [--out DIR]

Copies of training tiles, changed in known ways, go through the gate. The threshold is set as `python -m pfiles export`
sets it, from all held-out tiles against all training tiles. The originals of each kind are drawn at random, as in
`certificate.plant`. The row "unlike tiles" is the held-out tiles, of which the gate withholds one in a hundred by its
definition. What a moved copy shows beyond its tile's border is the tile mirrored there or, "beside others", another
tile.

Then the certificate is written many times, from a random half of the held-out tiles and of the copies each time, and
its two limits are held against the rates in the other, fresh half, which is as large. Writes DIR/copies.json and
DIR/copies.md.
"""

import argparse
import sys
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import device_name
from pfiles.errors import InputError
from pfiles.machine.runtime import derive_seed, versions
from pfiles.measuring.certificate import Certificate, plant
from pfiles.measuring.memorisation import FAR, judge, nearest_tiles
from pfiles.measuring.planted import KINDS, Kind, warped
from pfiles.paths import write_json, write_text
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.pixels import to_uint8, to_unit

MOVED_PX = (4, 6, 10, 20, 32)  # both ways; as far as a quarter of the side
UNLIKE = "unlike tiles"
REPEATS = 1000  # certificates


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the files; the exit status is 2 where something given is wrong."""
    parser = argparse.ArgumentParser(prog="python -m experiments.copies", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help=".npy, folder or .zip of tiles, or 'embedded'")
    parser.add_argument("--size", type=int, default=128, help="side of the tiles in pixels; default 128")
    parser.add_argument("--copies", type=int, default=60, help="of each kind; default 60")
    parser.add_argument("--seed", type=int, default=765, help="of originals, noise and halves; default 765")
    parser.add_argument("--out", type=Path, default=Path("copies"), help="folder for the results; default copies")
    args = parser.parse_args(arguments)
    try:
        report = measure(args.data, args.size, args.copies, args.seed)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = as_markdown(report)
    print(table)
    write_json(args.out / "copies.json", report)
    write_text(args.out / "copies.md", table)
    return 0


def measure(data: str, size: int, copies: int, seed: int) -> dict[str, Any]:
    """The share of each kind of copy that the gate withholds, with the threshold it follows from."""
    tiles = load_tiles(data if data.startswith("embedded") else str(Path(data).absolute()), size)
    train, held_out = tiles.tensor(tiles.train), tiles.tensor(tiles.test)
    began, cpu_began = time.perf_counter(), time.process_time()
    planted = plant(train, held_out, copies, seed, KINDS | more_kinds(size))
    nearest = nearest_tiles(torch.cat([held_out, *planted.values()]), train).distance.to_numpy()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    of_held_out, of_copies = nearest[: len(held_out)], nearest[len(held_out) :].reshape(len(planted), -1)
    judged, leak = judge(of_held_out, of_held_out, tiles.source)
    if leak:
        raise InputError(leak)
    limit, outright = judged["threshold"], judged["outright"]
    kinds = {
        name: {
            "withheld": float((distances < limit).mean()), "outright": float((distances < outright).mean()),
            "median distance": float(np.median(distances)),
        }
        for name, distances in {**dict(zip(planted, of_copies, strict=True)), UNLIKE: of_held_out}.items()
    }  # fmt: skip
    certified = of_copies[: len(KINDS)]
    return {
        "data": tiles.source, "size": size, "training tiles": len(train), "held-out tiles": len(held_out),
        "left out": judged["left_out"], "copies": copies, "threshold": limit, "outright": outright, "kinds": kinds,
        "certificate": certify(of_held_out, certified), "holds": how_often_it_holds(of_held_out, certified, seed),
        "seconds": seconds, "cpu_seconds": cpu_seconds, "ms_per_image": 1000 * cpu_seconds / len(nearest),
        "device": device_name("cpu"), "date": date.today().isoformat(), "versions": versions(),
    }  # fmt: skip


def certify(held_out: np.ndarray, copies: np.ndarray) -> str:
    """The certificate of the distances of held-out tiles (M,) and of copies (kinds, n), in words."""
    return str(_certificate(held_out, copies)[0])


def _certificate(held_out: np.ndarray, copies: np.ndarray) -> tuple[Certificate, float]:
    """It, and the threshold that it is of."""
    judged, _ = judge(held_out, held_out, "")
    passed = (copies >= judged["threshold"]).sum(1).tolist()
    n_held_out = len(held_out) - judged["left_out"]
    return Certificate(dict(zip(KINDS, passed, strict=True)), copies.shape[1], n_held_out), judged["threshold"]


def how_often_it_holds(held_out: np.ndarray, copies: np.ndarray, seed: int) -> dict[str, float]:
    """The share of certificates, each of a random half of everything, whose limits the fresh half keeps."""
    rng = np.random.default_rng(derive_seed(seed, "halves for certificates"))
    held_out = held_out[held_out >= judge(held_out, held_out, "")[0]["outright"]]  # what shows the same tissue is out
    holds = {"copies that pass": 0, "false alarms": 0, "both": 0}
    for _ in range(REPEATS):
        first, fresh = _halves(len(held_out), rng)
        half, others = _halves(copies.shape[1], rng)
        certificate, threshold = _certificate(held_out[first], copies[:, half])
        passing = bool((copies[:, others] >= threshold).mean() <= certificate.at_most)
        alarms = bool((held_out[fresh] < threshold).mean() <= certificate.false_alarms)
        holds["copies that pass"] += passing
        holds["false alarms"] += alarms
        holds["both"] += passing and alarms
    return {name: count / REPEATS for name, count in holds.items()}


def simulation_error(share: float) -> float:
    """The standard error of a share of `REPEATS` certificates."""
    return float(np.sqrt(share * (1 - share) / REPEATS))


def _halves(n: int, rng: np.random.Generator) -> np.ndarray:
    """(2, n // 2): random places among n, of which an odd one is in neither half."""
    return rng.permutation(n)[: n // 2 * 2].reshape(2, -1)


def more_kinds(side: int) -> dict[str, Kind]:
    """Kinds beside those that the certificate plants."""
    far = [px for px in MOVED_PX if px <= int(FAR * side)]
    return {
        **{f"moved by {px} px": partial(_moved, px=px) for px in far},
        **{f"moved by {px} px, beside others": partial(_moved, px=px, beside_others=True) for px in far},
        "turned by 5 degrees": lambda tiles, others, rng: warped(tiles, degrees=5.0),
        "zoomed to 1.1": lambda tiles, others, rng: warped(tiles, zoom=1.1),
        "zoomed to 0.9": lambda tiles, others, rng: warped(tiles, zoom=0.9),
        "noise of 80 levels": partial(_noisy, level=80),
        "20 % brighter": lambda tiles, others, rng: to_uint8(to_unit(tiles) * 1.2),
        "20 % darker": lambda tiles, others, rng: to_uint8(to_unit(tiles) * 0.8),
    }


def _moved(tiles: Tensor, others: Tensor, rng: torch.Generator, px: int, beside_others: bool = False) -> Tensor:
    """Down and right by `px`; what comes in there is mirrored, or of another tile."""
    side = tiles.shape[2]
    moved = F.pad(tiles.float(), (px, 0, px, 0), mode="reflect").to(torch.uint8)[:, :, :side, :side]
    if beside_others:
        moved[:, :, :px], moved[:, :, :, :px] = others[:, :, :px], others[:, :, :, :px]
    return moved


def _noisy(tiles: Tensor, others: Tensor, rng: torch.Generator, level: float) -> Tensor:
    noise = torch.randn(tiles.shape, generator=rng)
    return (tiles + level * noise).round().clamp(0, 255).to(torch.uint8)


def as_markdown(report: dict[str, Any]) -> str:
    holds = report["holds"]
    lines = [
        f"{report['data']}, {report['size']} px: {report['copies']} copies of each kind among "
        f"{report['training tiles']} training tiles, {report['held-out tiles']} held-out tiles of which "
        f"{report['left out']} were left out, threshold {report['threshold']:.3f}, outright below "
        f"{report['outright']:.3f}; {report['device']}, {report['date']}, {report['cpu_seconds']:.0f} CPU seconds, "
        f"{report['ms_per_image']:.1f} ms for each image.",
        "",
        "| copy | withheld | an outright copy | median distance |",
        "|---|---|---|---|",
    ]
    for name, row in report["kinds"].items():
        lines.append(f"| {name} | {row['withheld']:.0%} | {row['outright']:.0%} | {row['median distance']:.2f} |")
    return "\n".join([*lines, "", report["certificate"], "", (
        f"Of {REPEATS} certificates from a random half, the fresh half kept the limit of copies in "
        f"{holds['copies that pass']:.1%}, that of false alarms in {holds['false alarms']:.1%}, both in "
        f"{holds['both']:.1%}, to within {2 * simulation_error(holds['both']):.1%} (two standard errors)."
    ), ""])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
