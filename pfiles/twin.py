"""A slide's twin: a field in which the same clusters lie in the same places, and no pixel is the slide's.

The slide is mapped, its map becomes a layout, and the field is drawn. Crops of it that come too near to a training
tile, or to a tile of the slide, are drawn anew from other noise until none does.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pfiles.drawing.field import Field
from pfiles.drawing.generator import Generator
from pfiles.drawing.layout import Layout, cells_of_tiles, make_layout
from pfiles.errors import InputError
from pfiles.fields import KINDS, beside, write_field
from pfiles.measuring.fidelity import wilson_interval
from pfiles.measuring.memorisation import judge, nearest_tiles
from pfiles.measuring.neighbours import join_counts
from pfiles.paths import refuse_foreign, write_json
from pfiles.reporting import maps
from pfiles.reporting.field_report import crops
from pfiles.reporting.page import Section
from pfiles.reporting.tables import plain
from pfiles.tiles.dataset import Tiles
from pfiles.tiles.readers import open_slide
from pfiles.tiles.slides import Tiling
from pfiles.tiles.sources import TABLE, make_positions, positions_of, read_source, read_tile_table
from pfiles.tiles.tiler import tile_slides

ROUNDS = 20  # of drawing anew at most
AT_ONCE = 1024  # tiles; changes memory only
REPORT = "report.json"  # beside the twin
PROMISE = (
    "The twin holds no pixel, name, label or date of the slide. It keeps the outline of the tissue and where clusters "
    "lie, by which whoever has the slide can recognise it. The generator learnt from tiles, and a search for copies "
    "misses some: this is no promise of anonymity."
)


def write_twin(
    generator: Generator, field_of: Callable[[Layout], Field], slide: Path, out: Path, real: Tiles, tiling: Tiling
) -> Section:
    """Draw the twin of a slide into the TIFF `out`, with the files of a field and a report beside it.

    field_of: from a layout to the field to draw. real: the tiles that the generator learnt from, with held-out ones.
    tiling: how the slide is read, at the scale and size of the generator's tiles. A twin that was stopped goes on when
    it is asked for again. InputError where crops still come too near to real tiles after 20 rounds.
    """
    work = out.with_name(f".{out.name}.rounds")
    refuse_foreign(out.parent, [beside(out, kind).name for kind in (*KINDS, REPORT)], work.exists())
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as private:
        tile_slides([slide], Path(private) / "tiles", tiling, show_split=False)
        images = read_source(Path(private) / "tiles").images[:].clone()
        positions = positions_of(read_tile_table(Path(private) / "tiles" / TABLE))
    slide_ids = _assign(generator, images)
    cells, columns, rows = cells_of_tiles(positions.x, positions.y, positions.side, slide_ids)
    side = generator.settings.image_size_px
    layout = make_layout(cells, (cells.shape[1] * side, cells.shape[0] * side), generator.n_clusters)
    places = np.stack([columns, rows], axis=1) * side
    field_file, redrawn = _draw_until_none_is_near(
        generator, field_of(layout), work, out.name, places, images, real, tiling.mpp
    )
    with open_slide(field_file) as reader:
        twin_ids = _assign(generator, crops(reader, places, side))
    section = _report(slide_ids, twin_ids, places, generator, tiling.mpp, redrawn)
    write_json(beside(out, REPORT), {"said": list(section.notes), **section.scores})
    for kind in KINDS:
        shutil.copyfile(beside(field_file, kind), beside(out, kind))
    shutil.move(field_file, out)  # last: where it is, the rest is too
    shutil.rmtree(work)
    return section


def _assign(generator: Generator, images: Tensor) -> np.ndarray:
    return torch.cat([generator.assign(part).cluster_ids for part in images.split(AT_ONCE)]).numpy()


def _draw_until_none_is_near(
    generator: Generator, field: Field, work: Path, name: str, places: np.ndarray, images: Tensor, real: Tiles,
    mpp: float | None,
) -> tuple[Path, int]:  # fmt: skip
    """The slide that was drawn at last, and how many places were drawn anew on the way.

    places: x and y (N, 2) of the tiles of tissue. images: those of the slide, uint8 (N, 3, S, S). All crops at these
    places are compared, and those moved by half a tile.
    """
    side = generator.settings.image_size_px
    train = real.tensor(real.train)
    held_out = nearest_tiles(real.tensor(real.test), train).distance
    width, height = field.layout.size
    moved = places + side // 2
    corners = np.concatenate([places, moved[(moved[:, 0] + side <= width) & (moved[:, 1] + side <= height)]])
    compared, before, distances = torch.cat([train, images]), torch.empty(0), np.full(len(corners), np.inf)
    redrawn: Mapping[tuple[int, int], int] = {}
    for number in range(ROUNDS):
        path = work / str(number) / name
        write_field(generator, replace(field, redrawn=redrawn), path, mpp=mpp)
        with open_slide(path) as reader:
            now = crops(reader, corners, side)
        changed = np.ones(len(now), bool) if not number else (now != before).flatten(1).any(1).numpy()
        distances[changed] = nearest_tiles(now[changed], compared).distance
        near = corners[distances < judge(distances, held_out, real.source)[0]["threshold"]]
        if not len(near):
            return path, sum(redrawn.values())
        before = now
        squares = {
            (row, column)
            for x, y in near.tolist()
            for row, column in product(*(range(low // side, -(-(low + side) // side)) for low in (y, x)))
        }
        redrawn = {square: redrawn.get(square, 0) + (square in squares) for square in {*redrawn, *squares}}
    raise InputError(
        f"{len(near)} crops still come nearer to a real tile than the closest 1 % of held-out tiles, after they were "
        f"drawn anew {ROUNDS} times: the generator repeats what it learnt from, see part 14."
    )


def _report(
    slide_ids: np.ndarray,
    twin_ids: np.ndarray,
    places: np.ndarray,
    generator: Generator,
    mpp: float | None,
    redrawn: int,
) -> Section:
    """How far the twin's own map agrees with that of the slide."""
    n, right, count = generator.n_clusters, int((slide_ids == twin_ids).sum()), len(slide_ids)
    ids_of = {"slide": slide_ids, "twin": twin_ids}
    low, high = wilson_interval(right, count)
    names = [maps.title(cluster, generator.names) for cluster in range(n)]
    shares = pd.DataFrame({of: np.bincount(ids, minlength=n) / count for of, ids in ids_of.items()})
    shares.index = names
    x, y = places.T
    side = np.full(count, generator.settings.image_size_px)
    positions = make_positions(np.full(count, "twin"), x, y, side, np.full(count, mpp or np.nan))
    joins = {of: join_counts(positions, ids, n).loc["all", "share"] for of, ids in ids_of.items()}
    points = 100 * (shares["slide"] - shares["twin"]).abs().max()
    said = [
        f"At {right / count:.0%} ({low:.0%} to {high:.0%}) of {count} places the twin's map shows the slide's cluster.",
        f"The share of no cluster differs by more than {points:.1f} points.",
        f"{joins['slide']:.0%} of neighbouring tiles are of one cluster on the slide, {joins['twin']:.0%} on its twin.",
        f"{redrawn} squares were drawn anew until no crop was as near to a real tile as the closest held-out tiles.",
        PROMISE,
    ]
    scores = {
        "places": count, "agreement": right / count, "low": low, "high": high, "points": points,
        "neighbours of one cluster": joins, "drawn anew": redrawn, "shares": plain(shares),
    }  # fmt: skip
    return Section("The slide and its twin", said, [shares], scores=scores)
