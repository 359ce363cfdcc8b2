"""Which changed copies does the gate withhold? Copies of training tiles, changed in known ways, go through it.

    python -m experiments.copies --data PATH --size 128 [--copies 60] [--seed 765] [--out DIR]

The threshold is set as `python -m pfiles export` sets it, from all held-out tiles against all training tiles. Of each
kind of change the same training tiles are copied, evenly spaced; the row "unlike tiles" are as many held-out tiles, of
which the gate withholds one in a hundred by its definition. What a moved copy shows beyond its tile's border is the
tile mirrored there or, "beside others", another tile. Writes DIR/copies.json and DIR/copies.md.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import device_name
from pfiles.errors import InputError
from pfiles.machine.runtime import make_generator, versions
from pfiles.measuring.memorisation import FAR, judge, nearest_tiles
from pfiles.measuring.two_sample import blur
from pfiles.paths import write_json, write_text
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.pixels import evenly_spaced, to_uint8, to_unit

MOVED_PX = (4, 6, 10, 20, 32)  # both ways; as far as a quarter of the side
UNLIKE = "unlike tiles"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the files; the exit status is 2 where something given is wrong."""
    parser = argparse.ArgumentParser(prog="python -m experiments.copies", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help=".npy, folder or .zip of tiles, or 'embedded'")
    parser.add_argument("--size", type=int, default=128, help="side of the tiles in pixels; default 128")
    parser.add_argument("--copies", type=int, default=60, help="of each kind; default 60")
    parser.add_argument("--seed", type=int, default=765, help="of the noise; default 765")
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
    originals = torch.from_numpy(evenly_spaced(len(train), copies))
    began, used = time.perf_counter(), time.process_time()
    copied = {name: change(train[originals]) for name, change in changes(size, seed).items()}
    found = nearest_tiles(torch.cat([held_out, *copied.values()]), train)
    of_held_out, of_copies = found.distance[: len(held_out)], found[len(held_out) :]
    judged, leak = judge(of_held_out, of_held_out, tiles.source)
    if leak:
        raise InputError(leak)
    kinds, limit = {}, judged["threshold"]
    for i, name in enumerate(copied):
        nearest = of_copies[i * len(originals) : (i + 1) * len(originals)]
        kinds[name] = {
            "withheld": float((nearest.distance < limit).mean()),
            "nearest is its original": float((nearest.tile == originals.numpy()).mean()),
            "median distance": float(nearest.distance.median()),
        }
    unlike = of_held_out.iloc[evenly_spaced(len(held_out), copies)]
    kinds[UNLIKE] = {"withheld": float((unlike < limit).mean()), "median distance": float(unlike.median())}
    return {
        "data": tiles.source, "size": size, "training tiles": len(train), "held-out tiles": len(held_out),
        "copies": len(originals), "threshold": limit, "kinds": kinds, "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - used, "device": device_name("cpu"), "date": date.today().isoformat(),
        "versions": versions(),
    }  # fmt: skip


def changes(side: int, seed: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is done to a copy, by name; all take and give uint8 tiles (N, 3, S, S)."""
    far = [px for px in MOVED_PX if px <= int(FAR * side)]
    return {
        "unchanged": lambda tiles: tiles,
        **{f"moved by {px} px": partial(_moved, px=px) for px in far},
        **{f"moved by {px} px, beside others": partial(_moved, px=px, beside_others=True) for px in far},
        "mirrored": lambda tiles: tiles.flip(3),
        "turned by a quarter": lambda tiles: tiles.rot90(1, (2, 3)),
        "turned by 5 degrees": partial(_warped, degrees=5.0),
        "zoomed to 1.1": partial(_warped, zoom=1.1),
        "zoomed to 0.9": partial(_warped, zoom=0.9),
        "noise of 80 levels": partial(_noisy, level=80, seed=seed),
        "blurred by 2 px": partial(blur, sigma=2.0),
        "20 % brighter": lambda tiles: to_uint8(to_unit(tiles) * 1.2),
        "20 % darker": lambda tiles: to_uint8(to_unit(tiles) * 0.8),
    }


def _moved(tiles: Tensor, px: int, beside_others: bool = False) -> Tensor:
    """Down and right by `px`; what comes in there is mirrored, or of the tile before it."""
    side = tiles.shape[2]
    moved = F.pad(tiles.float(), (px, 0, px, 0), mode="reflect").to(torch.uint8)[:, :, :side, :side]
    if beside_others:
        others = tiles.roll(1, 0)
        moved[:, :, :px], moved[:, :, :, :px] = others[:, :, :px], others[:, :, :, :px]
    return moved


def _warped(tiles: Tensor, degrees: float = 0.0, zoom: float = 1.0) -> Tensor:
    """Turned and zoomed about the middle, bilinear, mirrored beyond the border."""
    cos, sin = (f(math.radians(degrees)) / zoom for f in (math.cos, math.sin))
    matrix = torch.tensor([[cos, sin, 0], [-sin, cos, 0]]).expand(len(tiles), 2, 3)
    grid = F.affine_grid(matrix, list(tiles.shape), align_corners=False)
    return to_uint8(F.grid_sample(to_unit(tiles), grid, padding_mode="reflection", align_corners=False))


def _noisy(tiles: Tensor, level: float, seed: int) -> Tensor:
    noise = torch.randn(tiles.shape, generator=make_generator(seed, "noise of copies"))
    return (tiles + level * noise).round().clamp(0, 255).to(torch.uint8)


def as_markdown(report: dict[str, Any]) -> str:
    lines = [
        f"{report['data']}, {report['size']} px: {report['copies']} copies of each kind among "
        f"{report['training tiles']} training tiles, {report['held-out tiles']} held-out tiles, threshold "
        f"{report['threshold']:.3f}; {report['device']}, {report['date']}, {report['cpu_seconds']:.0f} CPU seconds.",
        "",
        "| copy | withheld | its original is found | median distance |",
        "|---|---|---|---|",
    ]
    for name, row in report["kinds"].items():
        original = f"{row['nearest is its original']:.0%}" if name != UNLIKE else ""
        lines.append(f"| {name} | {row['withheld']:.0%} | {original} | {row['median distance']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
