"""The search for copies at full size: 10,000 images among 1,000,000 training tiles.

    python -m benchmarks.search --data PATH [--size 128] [--tiles 1000000] [--images 10000] [--copies 60] [--out FILE]

The training tiles are those of the data and, until they are so many, made ones between them, which stand in no file:
each is the sum of a window of three fields of noise, in the colours of H&E, made again whenever it is read. The images
are copies of the data's training tiles, so many of each kind of the certificate, and then the data's held-out tiles,
again and again in all their views.

Prints and writes the CPU seconds of the index and of each part of the images, and for how many copies the search
comes upon their original. The time in which tiles are made is measured beside and told apart.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from benchmarks.measure import device_name
from pfiles.errors import InputError
from pfiles.machine.runtime import derive_seed, make_rng, versions
from pfiles.measuring.memorisation import is_flat, nearest_in
from pfiles.measuring.overlays import best_overlays
from pfiles.measuring.planted import KINDS
from pfiles.measuring.shortlist import Index, make_index, propose, structure, views_of
from pfiles.paths import write_json
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.mapped import MappedParts

FIELD = 4096  # px, the side of a field of noise
COARSE, FINE = 0.004, 0.12  # cycles per px: below the first all waves are alike, beyond the second there are none
STAINS = ((0, (75, 45, 120)), (250, (110, 70, 150)), (330, (210, 130, 180)), (480, (235, 190, 215)),
          (560, (243, 243, 243)), (765, (243, 243, 243)))  # colour over the sum of three bytes  # fmt: skip
PART = 200  # images of which the time is told


class MadeTiles:
    """N tiles of `side` px that look a little like tissue and are made when they are read.

    seconds: of processor time that making them took so far.
    """

    dtype, ndim = torch.uint8, 4

    def __init__(self, number: int, side: int, seed: int = 0):
        rng = np.random.default_rng(derive_seed(seed, "made tiles"))
        self.shape = torch.Size([number, 3, side, side])
        self.fields = [_field(rng) for _ in range(3)]
        self.windows = rng.integers(FIELD - side, size=(number, 3, 2), dtype=np.int16)
        levels, colours = zip(*STAINS, strict=True)
        self.colours = np.stack(
            [np.interp(np.arange(766), levels, channel) for channel in zip(*colours, strict=True)]
        ).astype(np.uint8)  # (3, 766)
        self.seconds = 0.0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Tensor:
        began = time.thread_time()
        first, *axes = index if isinstance(index, tuple) else (index,)
        windows, side = self.windows[first if isinstance(first, slice) else np.asarray(first)], self.shape[2]
        tiles = np.empty((len(windows), *self.shape[1:]), np.uint8)
        for tile, places in zip(tiles, windows.tolist(), strict=True):
            total = np.zeros((side, side), np.uint16)
            for field, (y, x) in zip(self.fields, places, strict=True):
                total += field[y : y + side, x : x + side]
            np.take(self.colours, total, axis=1, out=tile, mode="clip")
        self.seconds += time.thread_time() - began
        return torch.from_numpy(tiles)[(slice(None), *axes)]


def _field(rng: np.random.Generator) -> np.ndarray:
    """Bytes (FIELD, FIELD) of smooth noise."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(FIELD), np.fft.rfftfreq(FIELD), indexing="ij")).astype(np.float32)
    waves = np.fft.rfft2(rng.standard_normal((FIELD, FIELD), dtype=np.float32)).astype(np.complex64)
    waves *= np.exp(-((frequency / FINE) ** 2)) / np.maximum(frequency, COARSE)
    noise = np.fft.irfft2(waves)
    return np.clip(128 + 45 * noise / noise.std(), 0, 255).astype(np.uint8)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the file after each part; the exit status is 2 where something given is wrong."""
    args = _parser().parse_args(arguments)
    try:
        tiles = load_tiles(
            args.data if args.data.startswith("embedded") else str(Path(args.data).absolute()), args.size
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    train, held_out = tiles.tensor(tiles.train), tiles.tensor(tiles.test)
    filler = MadeTiles(max(0, args.tiles - len(train)), args.size)
    began = time.process_time()
    parts = cast(list[Tensor], [train, filler] if len(filler) else [train])  # filler tiles do what is asked of a tensor
    index = make_index(MappedParts(parts))
    report: dict[str, Any] = {
        "data": tiles.source, "size": args.size, "training tiles": len(index.tiles), "of the data": len(train),
        "index": _spent(began, filler, 0.0), "found": {}, "parts": [], "device": device_name("cpu"),
        "threads": torch.get_num_threads(), "date": date.today().isoformat(), "versions": versions(),
    }  # fmt: skip
    print(f"index of {len(index.tiles):,} tiles: {report['index']}", flush=True)
    for kind, images, originals in _images(train, held_out, args.copies, args.images):
        began, making = time.process_time(), filler.seconds
        rows = nearest_in(index, images)
        report["parts"].append({"images": len(images), **_spent(began, filler, making)})
        if originals is not None:
            is_found = torch.from_numpy(rows.tile.to_numpy()) == originals
            is_found[~is_found] = _is_candidate(index, images[~is_found], originals[~is_found])
            report["found"][kind] = [int(is_found.sum()), len(is_found)]
        report |= _in_all(report, args.images)
        print(f"{kind}: {report['found'].get(kind, '')} {report['parts'][-1]}", flush=True)
        write_json(args.out, report)
    print(*(f"{name}: {report[name]}" for name in TOTALS if name in report), args.out, sep="\n")
    return 0


def _images(train: Tensor, held_out: Tensor, copies: int, number: int) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Images by what they are, and of copies where their originals are."""
    shows = (~is_flat(train)).nonzero()[:, 0]
    for kind, change in KINDS.items():
        rng = make_rng("copies for the search", kind)
        of, beside = (torch.randint(len(pool), (copies,), generator=rng) for pool in (shows, held_out))
        yield kind, change(train[shows[of]], held_out[beside], rng), shows[of]
    for begin in range(len(KINDS) * copies, number, PART):
        places = torch.arange(begin, min(begin + PART, number))
        views = held_out[places % len(held_out)].rot90(int(begin // PART) % 4, (2, 3))
        yield f"held-out tiles, {places[-1] + 1:,} of {number:,}", views, None


def _is_candidate(index: Index, images: Tensor, originals: Tensor) -> Tensor:
    """Whether the search compares each image with its original, though another tile is as near."""
    if not len(images):
        return torch.zeros(0, dtype=torch.bool)
    voted = None if index.library is None else best_overlays(index.library, images).voted
    tile = propose(index, views_of(structure(images)), voted).tile
    return (tile == originals[:, None]).any(1)


def _spent(began: float, filler: MadeTiles, making: float) -> dict[str, float]:
    """CPU seconds since then without those in which tiles were made, and those."""
    of_making = filler.seconds - making
    return {"cpu_seconds": time.process_time() - began - of_making, "making_tiles": of_making}


def _in_all(report: dict[str, Any], number: int) -> dict[str, Any]:
    """What the parts so far say of all: the recall of copies, and what `number` images take."""
    measured = sum(part["images"] for part in report["parts"])
    spent = sum(part["cpu_seconds"] for part in report["parts"])
    recalled, planted = (sum(counts) for counts in zip(*report["found"].values(), strict=True))
    at_least = binomtest(recalled, planted, alternative="greater").proportion_ci(0.95, "exact").low
    values = (recalled, planted, float(at_least), measured, spent,
              report["index"]["cpu_seconds"] + spent / measured * number)  # fmt: skip
    return dict(zip(TOTALS, values, strict=True))


TOTALS = ("copies whose original is found", "of copies", "with 95 % certainty at least", "images looked up",
          "CPU seconds for them", "CPU seconds of index and all images")  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help=".npy, folder or .zip of tiles, or 'embedded'")
    parser.add_argument("--size", type=int, default=128, help="side of the tiles in pixels; default 128")
    parser.add_argument("--tiles", type=int, default=1_000_000, help="for training; default 1,000,000")
    parser.add_argument("--images", type=int, default=10_000, help="that are looked up; default 10,000")
    parser.add_argument("--copies", type=int, default=60, help="of each kind, among the images; default 60")
    parser.add_argument("--out", type=Path, default=Path("search.json"), help="file; default search.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
