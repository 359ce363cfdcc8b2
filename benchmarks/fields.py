"""What a field costs: processor time and memory over its area, beside the same area as separate tiles.

    python -m benchmarks.fields [--from starter] [--sides 384 512 768 1024] [--strides 96 64] [--out FILE]
    python -m benchmarks.fields --large 20000

The first draws square fields with four clusters in their quarters, and as many separate tiles of the same clusters,
each in a process of its own; then the second size at other strides. The exponent is the slope of log time over log
area, 1 meaning twice the time for twice the area. The second writes a whole field to the disk, with tissue in the
middle sixteenth and glass around it, as on a slide: by tiny untrained networks in two steps. Blocks and files are as
large as those of any other networks with tiles of 64 px.
"""

import argparse
import statistics
import sys
import tempfile
import time
from datetime import date
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.growth import fit
from benchmarks.inputs import open_untrained
from benchmarks.measure import MeasurementError, Run, device_name, interleaved, peak_mb
from pfiles import learn
from pfiles.drawing.field import make_field
from pfiles.drawing.generator import Generator
from pfiles.drawing.layout import GLASS, Layout, make_layout
from pfiles.fields import write_field
from pfiles.latents import LatentSpace
from pfiles.machine.runtime import pick_device, versions
from pfiles.paths import ROOT, write_json

SIDES, STRIDES = (384, 512, 768, 1024), (96, 64)
TINY = {
    "image_size_px": 64, "sampling.steps": 2, "sampling.guidance": 1.0,
    "autoencoder.vqvae": {
        "down_channels": (4, 4, 4, 4), "num_heads": 1, "norm_channels": 1, "z_channels": 2, "codebook_size": 32
    },
    "diffusion.unet": {
        "down_channels": (8, 8, 8), "t_emb_dim": 8, "num_heads": 1, "norm_channels": 1, "conv_out_channels": 8
    },
}  # fmt: skip


def quarters(generator: Generator, side: int) -> Layout:
    """A square field of `side` px; as many clusters as there are, four at most, lie in its quarters."""
    return make_layout(np.arange(4).reshape(2, 2) % generator.n_clusters, (side, side), generator.n_clusters)


def drawing(size: tuple[str, int, int | None], device: str) -> Run:
    """Draw the field of (generator's folder, side, stride), or as many separate tiles where the stride is None.

    The first run, which does not count, draws one tile.
    """
    folder, side, stride = size
    generator = Generator.load(folder, device)
    tile = generator.settings.image_size_px
    sides = chain([tile], repeat(side))

    def run() -> dict[str, Any]:
        layout = quarters(generator, next(sides))
        began = time.process_time()
        if stride is None:
            count = layout.size[0] * layout.size[1] // tile**2
            generator.draw(np.resize(layout.cells, count).tolist(), progress=False)
        else:
            generator.field(layout, stride=stride, progress=False)
        return {"seconds": time.process_time() - began}

    return run


def measure(folder: str, side: int, stride: int | None, device: str, repetitions: int) -> dict[str, float]:
    """Processor seconds, the median, and the most memory of the process in MB."""
    result = interleaved({"work": drawing}, (folder, side, stride), device, repetitions)["work"]
    seconds = statistics.median(run["seconds"] for run in result["runs"])
    return {"seconds": seconds, "peak_mb": result["host_peak_mb"]}


def over_area(folder: str, sides: list[int], strides: list[int], device: str, repetitions: int) -> dict[str, Any]:
    """A row for each side at the default stride, and for the second side at other strides, each beside tiles."""
    tile = Generator.load(folder).settings.image_size_px
    report: dict[str, Any] = {"rows": []}
    pairs = [(side, tile) for side in sides] + [(sides[min(1, len(sides) - 1)], stride) for stride in strides]
    tiles: dict[int, dict[str, float]] = {}
    for side, stride in pairs:
        tiles[side] = tiles.get(side) or measure(folder, side, None, device, repetitions)
        field = measure(folder, side, stride, device, repetitions)
        row = {"side": side, "stride": stride, "field": field, "tiles": tiles[side]}
        report["rows"].append({**row, "ratio": field["seconds"] / tiles[side]["seconds"]})
        print(_line(report["rows"][-1]), flush=True)
    default = {row["side"] ** 2: row["field"] for row in report["rows"] if row["stride"] == tile}
    return {**report, **fit(default)}


def _line(row: dict[str, Any]) -> str:
    field, tiles = row["field"], row["tiles"]
    return (
        f"{row['side']:>5} px, stride {row['stride']:>3}: {field['seconds']:7.1f} s of the processor, "
        f"{field['peak_mb']:6,.0f} MB; separate tiles {tiles['seconds']:7.1f} s; ratio {row['ratio']:.2f}"
    )


def tiny_generator(device: str) -> Generator:
    """Untrained networks of tiles of 64 px, a latent for 8 x 8 of them, that draw in two steps."""
    run = open_untrained("demo", TINY, device, 4)
    networks = learn.new_networks(run)
    space = LatentSpace.of_training(run.vqvae, torch.arange(32).reshape(2, 4, 4))
    return Generator(networks.unet.eval(), networks.bank, space, run.settings, mpp=1.0)


def large(side: int, device: str) -> dict[str, Any]:
    """Write a whole field of `side` px from tiny networks, and throw it away: time, size and the most memory."""
    generator = tiny_generator(device)
    cells = np.full((8, 8), GLASS)
    cells[3:5, 3:5] = quarters(generator, side).cells
    layout = make_layout(cells, (side, side), generator.n_clusters)
    began = time.process_time()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        out = Path(folder, "field.tiff")
        write_field(generator, make_field(generator.unet, generator.space, generator.settings, layout), out)
        size = out.stat().st_size
    return {"side": side, "seconds": time.process_time() - began, "bytes": size, "peak_mb": peak_mb("cpu")}


def main(arguments: list[str] | None = None) -> int:
    """Measure and return the exit status: 0 all measured, 1 something failed."""
    args = _parser().parse_args(arguments)
    about = {"date": date.today().isoformat(), "device": device_name(args.device), "versions": versions()}
    try:
        if args.large:
            report = large(args.large, args.device)
            print("{side} px: {seconds:.0f} s of the processor, {bytes:,} bytes, {peak_mb:,.0f} MB".format(**report))
        else:
            report = over_area(args.folder, args.sides, args.strides, args.device, args.repetitions)
            print(f"exponent of time over area {report.get('exponent', float('nan')):.2f}")
    except MeasurementError as error:
        print(error, file=sys.stderr)
        return 1
    write_json(args.out, {**about, **report})
    print(args.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fields", description=__doc__.splitlines()[0])
    parser.add_argument("--from", default="starter", dest="folder", help="a generator's folder; default starter")
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES), metavar="PX")
    parser.add_argument("--strides", type=int, nargs="*", default=list(STRIDES), metavar="PX", help="beside a tile's")
    parser.add_argument("--large", type=int, metavar="PX", help="write a field of tiny networks instead")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--device", default=pick_device().type, choices=("cpu", "cuda"), help="default: a GPU if any")
    results = ROOT / "benchmarks" / "results"
    parser.add_argument("--out", type=Path, default=results / f"fields-{date.today()}.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
