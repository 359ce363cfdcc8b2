"""Tiles per second from a large slide: `python -m pfiles tile`, a loop of `read_region`, and two tiling libraries.

    python -m benchmarks.tiling [--side 40000] [--jpeg-side 240] [--large-image PYTHON] [--out FILE]

Makes a pyramidal TIFF of JPEG tiles from the embedded slide (levels of 0.25, 1 and 4 um/px, in a temporary folder) and
cuts tiles of 128 px at 0.5 um/px from it, the same ones on every side, in turn. The command also finds the tissue,
measures every tile's sharpness and writes table and picture; the loop and the libraries do not. They are timed on part
of the tiles. PYTHON is that of an environment with large-image (`pip install "large-image[openslide]" openslide-bin`).
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from benchmarks.measure import Run, device_name, interleaved
from pfiles.machine.cpu import usable_cores
from pfiles.machine.runtime import versions
from pfiles.paths import write_json
from pfiles.tiles.builtin import SLIDE
from pfiles.tiles.readers import open_slide, read_rgb
from pfiles.tiles.slides import Tiling, plan_tiles
from pfiles.tiles.tiler import tile_slides

MPP, SIDE = 0.25, 128  # of the slide's first level; px of a tile, each the mean of 2 x 2 px of that level
TILING = Tiling(mpp=2 * MPP, size=SIDE)


@dataclass(frozen=True)
class Work:
    """slide: the file. corners: a .npy of (N, 2) int, x and y of the tiles in it. part: how many of them others cut.
    python: that of an environment with large-image."""

    slide: Path
    corners: Path
    part: int
    python: Path | None


def make_slide(path: Path, side: int, tile: int) -> None:
    """Each level is laid out of JPEG tiles of `tile` px, cut anew from the embedded slide at the level's scale."""
    with open_slide(SLIDE) as slide:
        image = read_rgb(slide, 300, 900, 0, 1500, 2000).resize((3000, 4000), Image.BICUBIC)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for downsample in (1, 4, 16):
            level = np.asarray(image.reduce(downsample) if downsample > 1 else image)
            across = max(1, level.shape[1] // tile)
            down = max(1, level.shape[0] // tile)
            level = np.pad(level, ((0, tile), (0, tile), (0, 0)), mode="reflect")
            jpegs = []
            for i in range(across * down):
                y, x = (place * tile for place in divmod(i, across))
                buffer = io.BytesIO()
                Image.fromarray(level[y : y + tile, x : x + tile]).save(
                    buffer, "JPEG", quality=80, keep_rgb=True, subsampling=0
                )
                jpegs.append(buffer.getvalue())
            length = side // downsample
            n = -(-length // tile)
            tiles = (jpegs[(row % down) * across + column % across] for row in range(n) for column in range(n))
            file.write(
                tiles, shape=(length, length, 3), dtype=np.uint8, tile=(tile, tile), photometric="rgb",
                compression="deflate", predictor=False, subfiletype=int(downsample > 1),
                resolution=(1e4 / (MPP * downsample),) * 2, resolutionunit="CENTIMETER",
            )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+b") as file:  # tifffile itself writes JPEG with one package more
        for page in file.pages:
            page.tags["Compression"].overwrite(7)


def command(work: Work, device: str, threads: int) -> Run:
    out = work.slide.parent / f"tiles_{threads}"

    def run() -> dict[str, Any]:
        shutil.rmtree(out, ignore_errors=True)
        return timed(lambda: tile_slides([work.slide], out, TILING, threads=threads) or len(np.load(work.corners)))

    return run


def one_thread(work: Work, device: str) -> Run:
    return command(work, device, 1)


def all_cores(work: Work, device: str) -> Run:
    return command(work, device, usable_cores())


def loop(work: Work, device: str) -> Run:
    import openslide

    corners = np.load(work.corners)[: work.part]

    def cut() -> int:
        with openslide.OpenSlide(work.slide) as slide, tempfile.TemporaryFile(dir=work.slide.parent) as file:
            for corner in corners.tolist():
                tile = slide.read_region(corner, 0, (2 * SIDE, 2 * SIDE)).convert("RGB").reduce(2)
                file.write(np.asarray(tile).tobytes())
        return len(corners)

    return lambda: timed(cut)


def deep_zoom(work: Work, device: str) -> Run:
    import openslide
    from openslide.deepzoom import DeepZoomGenerator

    places = np.load(work.corners)[: work.part] // (2 * SIDE)

    def cut() -> int:
        with openslide.OpenSlide(work.slide) as slide, tempfile.TemporaryFile(dir=work.slide.parent) as file:
            pyramid = DeepZoomGenerator(slide, SIDE, 0)
            for place in places.tolist():
                file.write(np.asarray(pyramid.get_tile(pyramid.level_count - 2, place)).tobytes())
        return len(places)

    return lambda: timed(cut)


LARGE_IMAGE = """
import json, resource, sys, time
import numpy as np, large_image
slide, part, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
began, cpu_began = time.perf_counter(), time.process_time()
source = large_image.open(slide)
with open(slide + ".large_image", "wb") as file:
    tiles = source.tileIterator(
        scale={"mm_x": 0.0005}, tile_size={"width": side, "height": side},
        format=large_image.constants.TILE_FORMAT_NUMPY,
    )
    for _, tile in zip(range(part), tiles):
        file.write(np.ascontiguousarray(tile["tile"][:, :, :3]).tobytes())
print(json.dumps({
    "tiles": part, "seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu_began,
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "source": type(source).__name__,
    "version": large_image.__version__,
}))
"""


def large_image(work: Work, device: str) -> Run:
    command = [work.python, "-c", LARGE_IMAGE, *map(str, (work.slide, work.part, SIDE))]
    return lambda: json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def timed(work: Callable[[], int]) -> dict[str, Any]:
    """What `work` cut, by wall clock and in seconds of all its threads' processor time."""
    began, cpu_began = time.perf_counter(), time.process_time()
    tiles = work()
    return {"tiles": tiles, "seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu_began}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=40_000, help="px of the made slide")
    parser.add_argument("--jpeg-side", type=int, default=240, help="px of its JPEG tiles; 240 is Aperio's, default")
    parser.add_argument("--part", type=int, default=3000, help="tiles that the loop and the libraries are timed on")
    parser.add_argument("--repetitions", type=int, default=3, help="that count, after one; default 3")
    parser.add_argument("--large-image", type=Path, metavar="PYTHON", help="of an environment with large-image")
    parser.add_argument("--out", type=Path, metavar="FILE", help=".json for every repetition")
    args = parser.parse_args(arguments)
    sides = {"loop": loop, "DeepZoomGenerator": deep_zoom, "pfiles, 1 thread": one_thread}
    sides[f"pfiles, {usable_cores()} threads"] = all_cores
    if args.large_image:
        sides["large-image"] = large_image
    with tempfile.TemporaryDirectory() as folder:
        path, corners = Path(folder) / "slide.tiff", Path(folder) / "corners.npy"
        make_slide(path, args.side, args.jpeg_side)
        with open_slide(path) as slide:
            plan, _ = plan_tiles(slide, path, TILING, 0.0)
        np.save(corners, 2 * plan.corners)
        part = min(args.part, len(plan.corners))
        about = {
            "device": device_name("cpu"), "cores": usable_cores(), "date": date.today().isoformat(),
            "versions": versions(), "side_px": args.side, "jpeg_side_px": args.jpeg_side,
            "slide_bytes": path.stat().st_size, "tiles": len(plan.corners), "part": part,
        }  # fmt: skip
        print(
            f"{about['device']}: {args.side} px, JPEG tiles of {args.jpeg_side} px, {len(plan.corners)} tiles of tissue"
        )
        measured = interleaved(sides, Work(path, corners, part, args.large_image), "cpu", args.repetitions)
    print(f"{'':<22}{'tiles/s':>9}{'x loop':>8}{'tiles/CPU s':>13}{'x loop':>8}{'peak MB':>9}")
    rates = {name: [_median(side, key) for key in ("seconds", "cpu_seconds")] for name, side in measured.items()}
    for name, side in measured.items():
        peak = max([side["peak_mb"], *(run.get("peak_mb", 0) for run in side["runs"])])
        (wall, cpu), (loop_wall, loop_cpu) = rates[name], rates["loop"]
        print(f"{name:<22}{wall:>9.0f}{wall / loop_wall:>8.2f}{cpu:>13.0f}{cpu / loop_cpu:>8.2f}{peak:>9.0f}")
        side |= {"tiles_per_second": wall, "tiles_per_cpu_second": cpu}
    if args.out:
        write_json(args.out, {**about, "load_average": os.getloadavg(), "sides": measured})
    return 0


def _median(side: dict[str, Any], seconds: str) -> float:
    """Tiles per second of one of the kinds, the median over the repetitions."""
    return statistics.median(run["tiles"] / run[seconds] for run in side["runs"])


if __name__ == "__main__":
    sys.exit(main())
