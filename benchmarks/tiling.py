"""Tiles per second from a large slide: `pfiles`, a loop of `read_region`, and openslide's DeepZoomGenerator.

    python -m benchmarks.tiling [--side 40000] [--loop 2000] [--repetitions N]

Makes a pyramidal TIFF of JPEG tiles from the embedded slide (levels of 0.25, 1 and 4 um/px, in a temporary folder) and
cuts tiles of 128 px at 0.5 um/px from it, each way in a process of its own, see `benchmarks.measure`. The loop and
DeepZoomGenerator are timed on part of the tiles.
"""

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from benchmarks.measure import Run, device_name, interleaved, seconds
from pfiles.tiles.builtin import SLIDE
from pfiles.tiles.slides import Tiling, cut_tiles, open_slide, plan_tiles, read_rgb

MPP, TILE = 0.25, 256


@dataclass(frozen=True)
class Work:
    """The slide, and on how many of its tiles the two loops are timed."""

    slide: Path
    loop: int


def make_slide(path: Path, side: int) -> None:
    """Each level is laid out of JPEG tiles of 256 px, cut anew from the embedded slide at the level's scale."""
    with open_slide(SLIDE) as slide:
        image = read_rgb(slide, 300, 900, 0, 1500, 2000).resize((3000, 4000), Image.BICUBIC)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for downsample in (1, 4, 16):
            level = np.asarray(image.reduce(downsample) if downsample > 1 else image)
            across = max(1, level.shape[1] // TILE)
            down = max(1, level.shape[0] // TILE)
            level = np.pad(level, ((0, TILE), (0, TILE), (0, 0)), mode="reflect")
            jpegs = []
            for i in range(across * down):
                y, x = (place * TILE for place in divmod(i, across))
                buffer = io.BytesIO()
                Image.fromarray(level[y : y + TILE, x : x + TILE]).save(
                    buffer, "JPEG", quality=80, keep_rgb=True, subsampling=0
                )
                jpegs.append(buffer.getvalue())
            length = side // downsample
            n = -(-length // TILE)
            tiles = (jpegs[(row % down) * across + column % across] for row in range(n) for column in range(n))
            file.write(
                tiles, shape=(length, length, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb",
                compression="deflate", predictor=False, subfiletype=int(downsample > 1),
                resolution=(1e4 / (MPP * downsample),) * 2, resolutionunit="CENTIMETER",
            )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+b") as file:  # tifffile itself writes JPEG with one package more
        for page in file.pages:
            page.tags["Compression"].overwrite(7)


def ours(path: Path, threads: int) -> int:
    tiling = Tiling(mpp=0.5)
    with open_slide(path) as slide:
        plan, _ = plan_tiles(slide, path, tiling, 0.0)
        with tempfile.TemporaryFile(dir=path.parent) as file:
            for _, tiles, _ in cut_tiles(slide, plan, tiling, threads):
                file.write(tiles.tobytes())
    return len(plan.corners)


def loop(path: Path, count: int) -> int:
    with open_slide(path) as slide, tempfile.TemporaryFile(dir=path.parent) as file:
        across = slide.dimensions[0] // TILE
        for i in range(count):
            y, x = (place * TILE for place in divmod(i, across))
            tile = slide.read_region((x, y), 0, (TILE, TILE)).convert("RGB").resize((128, 128), Image.BOX)
            file.write(np.asarray(tile).tobytes())
    return count


def deep_zoom(path: Path, count: int) -> int:
    from openslide.deepzoom import DeepZoomGenerator

    with open_slide(path) as slide, tempfile.TemporaryFile(dir=path.parent) as file:
        pyramid = DeepZoomGenerator(slide, 128, 0)
        across = pyramid.level_tiles[-2][0] - 1
        for i in range(count):
            row, column = divmod(i, across)
            file.write(np.asarray(pyramid.get_tile(pyramid.level_count - 2, (column, row))).tobytes())
    return count


def _run(work: Callable[[], int], device: str) -> Run:
    def run() -> dict[str, Any]:
        tiles, used = [], time.process_time()
        took = seconds(device, lambda: tiles.append(work()))
        return {"seconds": took, "cpu_seconds": time.process_time() - used, "tiles": tiles[0]}

    return run


def by_loop(work: Work, device: str) -> Run:
    return _run(lambda: loop(work.slide, work.loop), device)


def by_deep_zoom(work: Work, device: str) -> Run:
    return _run(lambda: deep_zoom(work.slide, work.loop), device)


def by_one_thread(work: Work, device: str) -> Run:
    return _run(lambda: ours(work.slide, 1), device)


def by_all_threads(work: Work, device: str) -> Run:
    return _run(lambda: ours(work.slide, os.cpu_count()), device)


WAYS = {"loop": by_loop, "DeepZoom": by_deep_zoom, "pfiles, 1 thread": by_one_thread, "pfiles": by_all_threads}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiling", description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=40_000, help="px of the made slide; default 40,000")
    parser.add_argument("--loop", type=int, default=2000, help="tiles that the two loops are timed on; default 2,000")
    parser.add_argument("--repetitions", type=int, default=1, metavar="N", help="that count, after one; default 1")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder) / "slide.tiff", args.loop)
        make_slide(work.slide, args.side)
        print(
            f"{device_name('cpu')}; {args.side} x {args.side} px, {work.slide.stat().st_size / 1e9:.2f} GB", flush=True
        )
        for name, way in interleaved(WAYS, work, "cpu", args.repetitions).items():
            took, cpu = (statistics.median(run[of] for run in way["runs"]) for of in ("seconds", "cpu_seconds"))
            n, more = way["runs"][0]["tiles"], way["peak_mb"] - way["before_mb"]
            print(f"{name:<16} {n:>7} tiles {took:7.1f} s {cpu:7.1f} CPU s {n / took:7.0f} tiles/s {more:6.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
