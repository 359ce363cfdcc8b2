"""A field as files: a slide that OpenSlide opens, and beside it what was asked for and what it was made from.

It is drawn block by block. Blocks are kept until the slide is whole, so that a drawing that was stopped goes on, and
several processes share them.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pfiles.checkpoints import inference_fingerprint
from pfiles.drawing import field as fields
from pfiles.drawing.field import Field, blocks_of, draw_block, offset_of, steps_of
from pfiles.drawing.generator import Generator
from pfiles.drawing.layout import GLASS, HOLE, Box, Layout, cells_at
from pfiles.drawing.sampling import interrupt_told
from pfiles.errors import InputError, extra
from pfiles.machine import processes
from pfiles.machine.rank import is_first
from pfiles.paths import atomic_write, read_json, refuse_foreign, write_json, write_text
from pfiles.reporting import field_report, maps
from pfiles.settings import drawing_settings
from pfiles.spreadsheet import read_table, write_csv
from pfiles.tiles.dataset import Tiles
from pfiles.tiles.pixels import as_array
from pfiles.tiles.pyramid import write_pyramid
from pfiles.tiles.readers import open_slide

SUFFIXES = (".tif", ".tiff")
KINDS = ("json", "tiles.csv", "layout.geojson")  # of files beside the slide
HANDED_ON = 2000  # places at most where a field is searched for copies before others get it
BYTES = 3 * (1 + 4 / 3)  # of the disk for each pixel: the block it is drawn in, and the slide with its levels


def beside(out: Path, what: str) -> Path:
    """The file of a field that says `what`: field.tiff has field.layout.geojson, field.tiles.csv and field.json."""
    return out.with_name(f"{out.stem}.{what}")


def require_tiff(out: Path) -> None:
    """InputError for a name that is not that of a TIFF."""
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"A field is written as TIFF: call it {out.stem}.tiff instead of {out.name}.")


def write_field(
    generator: Generator, field: Field, out: Path, region: Box | None = None, mpp: float | None = None
) -> dict[str, Any]:
    """Draw a field, or a region of it in pixels, into the TIFF `out` and the three files beside it.

    mpp: microns per pixel of the slide; None: that of the generator's tiles. Returns what the JSON says. InputError
    where the disk has no room, and where other files are in the way.
    """
    with extra("slides"):
        import shapely  # noqa: F401 - before hours of work
        import tifffile  # noqa: F401
    require_tiff(out)
    blocks = blocks_of(field, region)
    whole = Box(blocks[0].top, blocks[0].left, blocks[-1].bottom, blocks[-1].right)
    size = whole.right - whole.left, whole.bottom - whole.top
    mpp = generator.mpp if mpp is None else mpp
    made_from = _made_from(generator, field, whole, mpp)
    note, work = beside(out, "json"), out.with_name(f".{out.name}.blocks")
    if out.exists() and read_json(note, {}).get("made_from") != made_from:
        raise InputError(f"{out} is there already, of another drawing: move it, or name another file.")
    names = [beside(out, kind).name for kind in KINDS]
    refuse_foreign(out.parent, names, out.exists() or work.exists())
    if read_json(work / "made_from.json", made_from) != made_from:
        raise InputError(f"{work} holds blocks of another drawing: delete it, or name another file.")
    if out.exists():
        print(f"{out} is there already.")
        if is_first():
            shutil.rmtree(work, ignore_errors=True)  # which a stop after the last block left
        return read_json(note, {})
    missing = [block for block in blocks if not _file_of(work, block).exists()]
    _require_room(out, size, len(missing) / len(blocks))
    processes.wait_for_all()  # before any of them writes what another would find there
    write_json(work / "made_from.json", made_from)
    _draw_blocks(field, processes.share(missing), work, len(blocks) - len(missing))
    processes.wait_for_all()
    if is_first():
        table = asked_tiles(field.layout, whole, field.settings.image_size_px, out.stem, generator.names)
        write_csv(beside(out, "tiles.csv"), table)
        write_text(beside(out, "layout.geojson"), json.dumps(_as_geojson(field.layout, whole, out.stem, generator)))
        about = {"made_by": "python -m pfiles field", "size": list(size), "mpp": mpp, "joints": _joints(field, whole)}
        write_json(note, {**about, "made_from": made_from})
        write_pyramid(out, _rows(work, blocks, whole), size, mpp)  # last: where it is, the rest is too
        shutil.rmtree(work)
    processes.wait_for_all()
    return read_json(note, {})


def hand_on(files: Sequence[Path], folder: Path, generator: Generator, real: Tiles) -> dict[str, str]:
    """Copy fields that the generator drew, with what stands beside them, into `folder`; returns their texts by name.

    real: the tiles that the generator learnt from, with held-out ones. InputError for what is no field of these
    networks, and for a field that holds a copy of a training tile at one of at most 2,000 places.
    """
    unet = inference_fingerprint(generator.unet)
    texts: dict[str, str] = {}
    for file in files:
        made_from = read_json(beside(file, "json"), {}).get("made_from", {})
        if not file.is_file() or made_from.get("unet") != unet:
            raise InputError(f"{file} is no field that this generator drew with `field`: draw it anew.")
        places = read_table(beside(file, "tiles.csv"))[["x", "y"]].to_numpy(int)
        with open_slide(file) as slide:
            side, seed = generator.settings.image_size_px, made_from["seed"]
            crops, nearest, judged, _ = field_report.gate(slide, places, side, seed, real, HANDED_ON)
        if copies := int((nearest.distance < judged["outright"]).sum()):
            raise InputError(
                f"{file} is not handed on: {copies} of {len(crops)} crops at random places are copies of a training "
                "tile. Draw it with another seed."
            )
        for path in (file, *(beside(file, kind) for kind in KINDS)):
            shutil.copy(path, folder / path.name)
            texts |= {path.name: path.name if path == file else path.name + path.read_text()}
    return texts


def _made_from(generator: Generator, field: Field, whole: Box, mpp: float | None) -> dict[str, Any]:
    """All that decides a field's pixels, in plain values."""
    layout, settings = field.layout, field.settings
    cells = hashlib.sha256(repr(layout.cells.shape).encode() + layout.cells.astype("<i8").tobytes()).hexdigest()
    networks = {"autoencoder": field.space.vqvae, "unet": field.unet, "clusters": generator.bank}
    networks |= {"guide": field.guide} if field.guide else {}
    return json.loads(
        json.dumps(
            {
                **{name: inference_fingerprint(network) for name, network in networks.items()},
                "layout": cells, "size": layout.size, "region": whole._asdict(), "seed": field.seed,
                "stride_px": field.stride * field.scale, "blend_px": field.blend * field.scale, "mpp": mpp,
                "tile_px": settings.image_size_px, "exchanges": fields.EXCHANGES,
                "sampling": drawing_settings(settings.sampling),
                "speed": asdict(field.speed),
                "redrawn": [[*square, times] for square, times in sorted(field.redrawn.items())],
            }
        )
    )  # fmt: skip


def _joints(field: Field, whole: Box) -> dict[str, int]:
    """Where windows of the last grid met, in pixels of a region; see `field_check.Joints`."""
    every = field.stride * field.scale
    last = offset_of(field, min(fields.EXCHANGES, steps_of(field)) - 1) * field.scale
    return {"x": (last - whole.left) % every, "y": (last - whole.top) % every, "every": every}


def _require_room(out: Path, size: tuple[int, int], missing_share: float) -> None:
    """InputError if the disk has less room than the slide and the blocks, of which `missing_share` is missing."""
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    needed, free = BYTES * size[0] * size[1] * missing_share, shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"A field of {size[0]} x {size[1]} px needs up to {needed / 1e9:,.1f} GB, but the disk of {folder} has "
            f"{free / 1e9:,.1f} GB left: ask for a smaller field, or write it elsewhere."
        )


def _file_of(work: Path, block: Box) -> Path:
    return work / f"{block.top}_{block.left}.npy"


def _draw_blocks(field: Field, blocks: list[Box], work: Path, done: int) -> None:
    if done:
        print(f"{done} blocks are there already.")
    words = "Drawing the field was stopped: run it again to go on with the blocks that are missing."
    steps = len(blocks) * steps_of(field)
    with interrupt_told(words), processes.progress(total=steps, desc="field", unit="step") as bar:
        for block in blocks:
            [pixels] = as_array(draw_block(field, block, bar)[None])
            with atomic_write(_file_of(work, block), by_every_process=True) as file:
                np.save(file, pixels)


def _rows(work: Path, blocks: list[Box], whole: Box) -> Callable[[int, int], np.ndarray]:
    """The rows of a region, counted from its first, out of its blocks."""
    tops = sorted({block.top for block in blocks})

    @lru_cache(2)
    def along(top: int) -> list[np.ndarray]:
        return [np.load(_file_of(work, block), mmap_mode="r") for block in blocks if block.top == top]

    def rows(first: int, last: int) -> np.ndarray:
        parts = []
        for top, bottom in zip(tops, [*tops[1:], whole.bottom], strict=True):
            low, high = max(first + whole.top, top), min(last + whole.top, bottom)
            if low < high:
                parts.append(np.concatenate([block[low - top : high - top] for block in along(top)], axis=1))
        return np.concatenate(parts)

    return rows


def asked_tiles(layout: Layout, part: Box, side: int, slide: str, names: Mapping[int, str]) -> pd.DataFrame:
    """A row for each tile of a grid over a part of a field: where it lies there, its cluster from 1, how much of it is.

    Columns as in a map's tile_clusters.csv: slide, x, y, side, cluster, class; "share" of the tile that was asked to be
    of this cluster, the most frequent one. Tiles of glass have no row.
    """
    rows = []
    for top in range(part.top, part.bottom - side + 1, side):
        for left in range(part.left, part.right - side + 1, side):
            cells = cells_at(layout, Box(top, left, top + side, left + side), 1, filled=False)
            clusters, counts = np.unique(cells, return_counts=True)
            cluster, share = int(clusters[counts.argmax()]), counts.max() / counts.sum()
            if cluster != GLASS:
                where = (slide, left - part.left, top - part.top, side)
                rows.append((*where, cluster + 1, round(float(share), 4), maps.title(cluster, names)))
    return pd.DataFrame(rows, columns=["slide", "x", "y", "side", "cluster", "share", "class"])


def _as_geojson(layout: Layout, part: Box, slide: str, generator: Generator) -> dict[str, Any]:
    """The layout in the pixels of a part of the field, as QuPath opens it."""
    import shapely

    width, height = layout.size
    tall, wide = layout.cells.shape
    y = (np.arange(tall + 1) * height / tall).clip(part.top, part.bottom) - part.top
    x = (np.arange(wide + 1) * width / wide).clip(part.left, part.right) - part.left
    boxes: dict[int, list[Any]] = {}
    for row, low, high in zip(layout.cells, y, y[1:], strict=False):
        ends = np.flatnonzero(np.diff(row, prepend=HOLE, append=HOLE))
        for begin, end in pairwise(ends):
            if row[begin] != GLASS and low < high and x[begin] < x[end]:
                boxes.setdefault(int(row[begin]), []).append(shapely.box(x[begin], low, x[end], high))
    tile = generator.settings.image_size_px**2
    outlines = [
        maps.Region(cluster, outline, round(outline.area / tile), 1.0)
        for cluster, of in sorted(boxes.items())
        for outline in shapely.get_parts(shapely.disjoint_subset_union_all(of))
    ]
    geojson = maps.as_geojson(slide, outlines, generator.names)
    for feature in geojson["features"]:
        del feature["properties"]["measurements"]  # asked for, and not found with any confidence
    return {**geojson, "bbox": [0, 0, part.right - part.left, part.bottom - part.top]}  # with glass at its edges
