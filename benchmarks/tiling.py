"""Tiles per second from a large slide: `pfiles`, a loop of `read_region`, and openslide's DeepZoomGenerator.

    python -m benchmarks.tiling [--side 40000] [--loop 400]

Makes a pyramidal TIFF of JPEG tiles from the embedded slide (levels of 0.25, 1 and 4 um/px, in a temporary folder) and
cuts tiles of 128 px at 0.5 um/px from it. The loop and DeepZoomGenerator are timed on part of the tiles.
"""

import argparse
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from pfiles.tiles.builtin import SLIDE
from pfiles.tiles.slides import Tiling, cut_tiles, open_slide, plan_tiles, read_rgb

MPP, TILE = 0.25, 256


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=40_000, help="px of the made slide")
    parser.add_argument("--loop", type=int, default=2000, help="tiles that the two loops are timed on")
    parser.add_argument("--only", nargs=3, metavar=("NAME", "SLIDE", "NUMBER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:  # in a process of its own, so that its peak memory is its own
        name, path, number = args.only
        began, used = time.perf_counter(), time.process_time()
        n = {"pfiles": ours, "loop": loop, "DeepZoom": deep_zoom}[name](Path(path), int(number))
        seconds, cpu = time.perf_counter() - began, time.process_time() - used
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
        print(f"{name:<10} {n:>7} tiles {seconds:7.1f} s {cpu:7.1f} CPU s {n / seconds:7.0f} tiles/s {peak:6.2f} GiB")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tiff"
        make_slide(path, args.side)
        print(f"{args.side} x {args.side} px, {path.stat().st_size / 1e9:.2f} GB", flush=True)
        for name, number in (("loop", args.loop), ("DeepZoom", args.loop), ("pfiles", 1), ("pfiles", os.cpu_count())):
            command = [sys.executable, "-m", "benchmarks.tiling", "--only", name, str(path), str(number)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
