"""What are variations of real tiles worth? Over strength, and to a classifier of few labelled tiles.

    python -m experiments.variations curve --data PATH [--from starter] [--originals 20] [--number 3] [--out DIR]
    python -m experiments.variations use --data PATH [--labelled 50 200 1000] [--number 2] [--strength 0.7] [--out DIR]

curve: held-out tiles, evenly spaced, are varied at every strength: the share that keeps its cluster, the likeness to
the original beside that of held-out tiles to their nearest training tile, and the share that the gate calls copies.

use: networks learn labels from so many training tiles, the same with --number changed copies of each (colours, small
turns and zooms), and the same with as many variations; they sort held-out tiles. All networks take as many steps and
see all eight views of a tile. Each of three seeds draws other labelled tiles; intervals are Student's t over seeds.
"""

import argparse
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import device_name
from pfiles import variations
from pfiles.drawing.generator import Generator
from pfiles.drawing.sampling import STRENGTH
from pfiles.errors import InputError
from pfiles.machine.runtime import make_rng, pick_device, versions
from pfiles.measuring.fidelity import student_interval
from pfiles.measuring.tile_network import BATCH_SIZE
from pfiles.measuring.usefulness import EPOCHS, TEST_TILES, sorted_rightly
from pfiles.paths import write_json, write_text
from pfiles.reporting import figures
from pfiles.tiles.dataset import Tiles, load_tiles
from pfiles.tiles.pixels import evenly_spaced, to_uint8, to_unit

STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
SEEDS = (0, 1, 2)
ALONE, CLASSICAL, VARIED = "real tiles alone", "real + changed copies", "real + variations"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the files; the exit status is 2 where something given is wrong."""
    args = _parser().parse_args(arguments)
    try:
        generator = Generator.load(args.folder, pick_device())
        data = args.data if args.data.startswith("embedded") else str(Path(args.data).absolute())
        tiles = load_tiles(data, generator.settings.image_size_px)
        if args.part == "curve":
            report, table = over_strength(generator, tiles, args.originals, args.number or 3, args.seed, args.out)
            write(report, table, args.out, "curve")
        else:
            report = {"data": tiles.source, "strength": args.strength, "rows": []}
            for labelled in args.labelled:
                report["rows"] += use(generator, tiles, labelled, args.number or 2, args.strength)
                write({**report, **about()}, as_markdown(report), args.out, "use")  # what is done is kept
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write(report: dict[str, Any], table: str, out: Path, name: str) -> None:
    print(table, flush=True)
    write_json(out / f"{name}.json", report)
    write_text(out / f"{name}.md", table)


def about() -> dict[str, Any]:
    device = device_name(pick_device().type)
    return {"device": device, "date": date.today().isoformat(), "cpu_seconds": time.process_time()} | versions()


def over_strength(
    generator: Generator, tiles: Tiles, count: int, number: int, seed: int, out: Path
) -> tuple[dict[str, Any], str]:
    """The curve over `STRENGTHS` of `count` held-out tiles, as a report and as Markdown; a sheet goes into `out`."""
    originals = tiles.tensor(tiles.test[evenly_spaced(len(tiles.test), count)])
    images, table = variations.vary(generator, originals, STRENGTHS, number, seed, [])
    gate = variations.make_gate(tiles)
    table = variations.add_distances(images, table, originals, gate)
    _, kept_share = variations.decoded_again(generator, originals)
    curve = variations.curve(table)
    figures.save_figure(variations.show(images, table, originals, generator.names, generator.mpp), out / "sheet.jpg")
    report = {
        "data": tiles.source, "originals": len(originals), "number": number, "seed": seed, "limit": gate.limit,
        "likeness_of_held_out_tiles": gate.likeness, "kept_when_decoded": kept_share, "curve": curve.to_dict("records"),
        **about(),
    }  # fmt: skip
    lines = [
        f"| strength | keeps its cluster (decoded alone: {kept_share:.0%}) | likeness to its original (held-out tiles "
        f"to their nearest training tile: {gate.likeness:.2f}) | called copies |",
        "|---|---|---|---|",
        *(f"| {at.strength:g} | {at.kept:.0%} | {at.likeness:.2f} | {at.copies:.0%} |" for at in curve.itertuples()),
    ]
    return report, "\n".join(lines) + "\n"


def use(generator: Generator, tiles: Tiles, labelled: int, number: int, strength: float) -> list[dict[str, Any]]:
    """A row for each set to learn from: the share of held-out tiles sorted rightly, with its interval over `SEEDS`."""
    labels = tiles.labels
    if labels is None or "" in labels:
        raise InputError("This asks what labels can be learnt, but not every tile has one: add labels.")
    names, codes = np.unique(labels, return_inverse=True)
    classes = torch.from_numpy(codes)
    if len(tiles.train) < labelled:
        raise InputError(f"There are {len(tiles.train)} training tiles, but {labelled} labelled ones were asked for.")
    test = tiles.test[evenly_spaced(len(tiles.test), TEST_TILES)]
    held_out, truth = tiles.tensor(test), classes[test]
    steps, device = EPOCHS * -(-labelled * (1 + number) // BATCH_SIZE), pick_device()
    shares: dict[str, list[float]] = {ALONE: [], CLASSICAL: [], VARIED: []}
    for seed in SEEDS:
        rng = make_rng(seed, "labelled tiles", labelled)
        places = tiles.train[torch.randperm(len(tiles.train), generator=rng)[:labelled].numpy()]
        real, truth_of_real = tiles.tensor(places), classes[places]
        added = truth_of_real.repeat_interleave(number)
        sets = {
            ALONE: (real, truth_of_real),
            CLASSICAL: (torch.cat([real, changed(real, number, rng)]), torch.cat([truth_of_real, added])),
            VARIED: (
                torch.cat([real, generator.vary(real, strength, number, seed).flatten(0, 1)]),
                torch.cat([truth_of_real, added]),
            ),
        }
        for name, pair in sets.items():
            is_right = sorted_rightly(*pair, held_out, truth, len(names), steps, (seed, name, labelled), device)
            shares[name].append(float(is_right.double().mean()))
    rows = []
    for name, values in shares.items():
        (mean, low, high), better = student_interval(np.array(values)), np.array(values) - shares[ALONE]
        gain, gain_low, gain_high = student_interval(better)
        rows.append(
            {
                "labelled": labelled, "learnt from": name, "added": 0 if name == ALONE else labelled * number,
                "steps": steps, "each": values, "accuracy": mean, "low": max(low, 0.0), "high": min(high, 1.0),
                "gain": gain, "gain, low": gain_low, "gain, high": gain_high, "test tiles": len(test),
            }
        )  # fmt: skip
    return rows


def changed(tiles: Tensor, number: int, rng: torch.Generator) -> Tensor:
    """`number` copies of each uint8 tile (N, 3, S, S), as classical augmentation changes them; (N number, 3, S, S).

    Turned by up to 15 degrees and zoomed by up to 1.2 about the middle, mirrored beyond the border; then brighter or
    darker by up to 20 %, each colour by up to 10 % more.
    """
    copies = to_unit(tiles).repeat_interleave(number, 0)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(copies), *shape, generator=rng)

    angle, zoom = uniform(-15, 15).deg2rad(), uniform(1, 1.2)
    cos, sin, zero = angle.cos() / zoom, angle.sin() / zoom, torch.zeros(len(copies))
    matrix = torch.stack([torch.stack([cos, sin, zero], 1), torch.stack([-sin, cos, zero], 1)], 1)
    grid = F.affine_grid(matrix, list(copies.shape), align_corners=False)
    moved = F.grid_sample(copies, grid, padding_mode="reflection", align_corners=False)
    return to_uint8(moved * uniform(0.8, 1.2, 1, 1, 1) * uniform(0.9, 1.1, 3, 1, 1))


def as_markdown(report: dict[str, Any]) -> str:
    lines = ["| labelled tiles | learnt from | sorted rightly | gain over real tiles alone |", "|---|---|---|---|"]
    for row in report["rows"]:
        gain = f"{row['gain']:+.3f} ({row['gain, low']:+.3f} to {row['gain, high']:+.3f})"
        lines.append(
            f"| {row['labelled']} | {row['learnt from']} | {row['accuracy']:.3f} ({row['low']:.3f} to "
            f"{row['high']:.3f}) | {'' if row['learnt from'] == ALONE else gain} |"
        )
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.variations", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("curve", "use"), help="over strength, or of use to a classifier")
    parser.add_argument("--data", required=True, help=".npy, folder or .zip of tiles, or 'embedded'")
    parser.add_argument("--from", default="starter", dest="folder", help="a generator's folder; default starter")
    parser.add_argument("--originals", type=int, default=20, help="of curve: tiles that are varied; default 20")
    parser.add_argument("--labelled", type=int, nargs="+", default=[50, 200, 1000], help="of use; default 50 200 1000")
    parser.add_argument("--number", type=int, help="of variations of each tile; default 3 of curve, 2 of use")
    parser.add_argument("--strength", type=float, default=STRENGTH, help=f"of use; default {STRENGTH}")
    parser.add_argument("--seed", type=int, default=765, help="of the noise of curve; default 765")
    parser.add_argument("--out", type=Path, default=Path("variations"), help="for the results; default variations")
    return parser


if __name__ == "__main__":
    sys.exit(main())
