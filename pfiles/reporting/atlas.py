"""The atlas: what each cluster looks like and where it comes from, as one page that needs nothing else."""

import base64
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jinja2 import Environment, FileSystemLoader, Template
from PIL import Image
from torch import Tensor

from pfiles.measuring import morphometry
from pfiles.measuring.memorisation import search_and_judge
from pfiles.paths import write_text
from pfiles.reporting.figures import scale_bar_length, tile_grid
from pfiles.tiles.dataset import Tiles
from pfiles.tiles.pixels import evenly_spaced

SHOWN = 16  # tiles of each kind in a row
COLUMNS = 4  # of the squares in which they stand
MEASURED, AT_MOST = 40, 1000  # real tiles of each cluster, and of all, whose stain, nuclei and background are measured
DOMINATES = 0.5  # share of a cluster's tiles from one slide that is marked ...
ODDS = 4  # ... where the odds of a tile to be from it are so many times those among all tiles
SEVERAL = 3  # slides at most that are named
HELD_OUT = 200  # tiles at most that say how close is a copy
MAP_SIDE = 240  # pixels
MOST_PIXELS = 16_000_000  # of all tiles of a page: more clusters have smaller tiles
MOST_BYTES = 9_000_000  # of all pictures of a page
QUALITIES = (85, 70, 50, 30, 10)  # of JPEG, tried one after the other until they fit


@dataclass(frozen=True)
class Row:
    """What the atlas shows of a cluster.

    number: from 1. share: of all training tiles. tiles: uint8 (n, 3, S, S) by the title of the square they stand in.
    facts, warnings: sentences. map: uint8 (H, W, 3) and its caption; None if positions are not known. side_um: of a
    tile, microns; None if that is not known.
    """

    number: int
    size: int
    share: float
    tiles: Mapping[str, Tensor]
    facts: Sequence[str]
    warnings: Sequence[str]
    map: tuple[np.ndarray, str] | None
    side_um: float | None = None

    @property
    def scale_bar(self) -> tuple[float, str] | None:
        """The scale bar: its length as a share of a tile's side, and in words."""
        if self.side_um is None:
            return None
        microns = scale_bar_length(self.side_um)
        return microns / self.side_um, f"{microns:g} µm"


class GeneratedTiles(NamedTuple):
    """Generated tiles (N, 3, S, S), uint8, the clusters (N,) they were asked for, and those they are sorted into."""

    images: Tensor
    requested_ids: Tensor
    assigned_ids: Tensor


def make_rows(tiles: Tiles, standing: tuple[Tensor, Tensor, Tensor], generated: GeneratedTiles) -> list[Row]:
    """A row for each cluster. standing: of the training tiles, see `latents.centre_and_border`."""
    cluster_ids, distance, margin = standing
    sizes = cluster_ids.bincount(minlength=int(generated.requested_ids.max()) + 1)
    words = _in_words(tiles, cluster_ids)
    train = tiles.tensor(tiles.train)
    held_out = tiles.tensor(tiles.test[evenly_spaced(len(tiles.test), HELD_OUT)])
    nearest, _, verdict, _ = search_and_judge(generated.images, train, held_out, tiles.source)
    copies = torch.tensor(nearest.distance.to_numpy() < verdict["outright"])
    small = _small(tiles) if tiles.positions is not None else None
    side_um = None if tiles.mpp is None else tiles.mpp * train.shape[-1]
    rows = []
    for cluster, size in enumerate(sizes.tolist()):
        members = (cluster_ids == cluster).nonzero().flatten()
        central = members[distance[members].argsort(stable=True)][:SHOWN]
        outer = members[~torch.isin(members, central)]
        border = outer[margin[outer].argsort(stable=True)][:SHOWN]
        is_requested = generated.requested_ids == cluster
        squares = {
            "Nearest to its centre": train[central],
            "At its border": train[border],
            "Generated": generated.images[is_requested][:SHOWN],
        }
        facts, warnings = _origin(tiles, members.numpy())
        is_back = generated.assigned_ids[is_requested] == cluster
        n, back, copied = (int(mask.sum()) for mask in (is_requested, is_back, copies[is_requested]))
        if size:
            facts.insert(0, f"{words[cluster]}.".capitalize())
        facts.append(f"Of {n} generated tiles {back} are sorted into it again.")
        if not size:
            warnings.append("No training tile is in this cluster.")
        if 2 * back < n:
            warnings.append("Most generated tiles are sorted into other clusters.")
        if copied:
            warnings.append(f"Generated tiles that repeat a training tile: {copied} of {n}.")
        where = _map(tiles, members.numpy(), small)
        share = size / len(cluster_ids)
        rows.append(Row(cluster + 1, size, share, squares, facts, warnings, where, side_um))
    return rows


def scores(rows: Sequence[Row], generated: GeneratedTiles) -> dict[str, Any]:
    """What a run's summary keeps of the atlas."""
    warnings = {f"cluster {row.number}": list(row.warnings) for row in rows if row.warnings}
    return {
        "share_assigned_to_requested_cluster": (generated.assigned_ids == generated.requested_ids)
        .double()
        .mean()
        .item(),
        "clusters_with_warnings": len(warnings),
        "details": {"warnings": warnings},
    }


def write_page(rows: Sequence[Row], names: Mapping[int, str], source: str, path: Path) -> None:
    """Write the page, whole or not at all.

    names: of clusters, by number; they are text, whatever they hold. source: of the tiles, in a few words.
    """
    page = _template().render(rows=rows, names=names, source=source, pictures=pictures(rows))
    write_text(path, page)


def row_html(row: Row, pictures: Mapping[str, Any]) -> str:
    """What the page shows of one cluster, without its name: for a notebook."""
    return _macro("body")(row, pictures)


def style() -> str:
    """The style sheet that `row_html` needs."""
    return _macro("style")()


def _macro(name: str) -> Callable[..., str]:
    return vars(_template().module)[name]


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("atlas.html")


def pictures(rows: Sequence[Row]) -> dict[int, dict[str, str]]:
    """The squares of tiles of each row, and its "map", as data addresses that hold JPEGs, together below 9 MB."""
    count = sum(len(tiles) for row in rows for tiles in row.tiles.values())
    side = next(tiles.shape[-1] for row in rows for tiles in row.tiles.values())
    side = min(side, int((MOST_PIXELS / max(count, 1)) ** 0.5))
    images = {
        (row.number, title): _square(tiles, side) for row in rows for title, tiles in row.tiles.items() if len(tiles)
    }
    images |= {(row.number, "map"): row.map[0] for row in rows if row.map}
    for quality in QUALITIES:
        jpegs = {key: _jpeg(image, quality) for key, image in images.items()}
        if sum(map(len, jpegs.values())) <= MOST_BYTES:
            break
    return {row.number: {title: jpegs[n, title] for n, title in jpegs if n == row.number} for row in rows}


def _square(tiles: Tensor, side: int) -> np.ndarray:
    """Tiles (n, 3, S, S), at most 16, in four columns, at most `side` px wide, with white lines between."""
    if tiles.shape[-1] > side:
        tiles = F.interpolate(tiles.float(), (side, side), mode="area").round().to(torch.uint8)
    return tile_grid(tiles, min(COLUMNS, len(tiles)), border=255)[2:-2, 2:-2]


def _jpeg(image: np.ndarray, quality: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _in_words(tiles: Tiles, cluster_ids: Tensor) -> dict[int, str]:
    """`morphometry.in_words` of the training tiles, of which some of each cluster are measured."""
    selection, weights, clusters = [], [], cluster_ids.unique()
    number = min(MEASURED, -(-AT_MOST // len(clusters)))
    for cluster in clusters:
        members = (cluster_ids == cluster).nonzero().flatten()
        sample = members[evenly_spaced(len(members), number)]
        selection.append(sample)
        weights.append(np.full(len(sample), len(members) / len(sample)))
    measured = torch.cat(selection).numpy()
    images = tiles.tensor(tiles.train[measured])
    table = morphometry.measure(images, morphometry.nucleus_threshold(images))
    return morphometry.in_words(table, cluster_ids[measured].numpy(), np.concatenate(weights))


def _origin(tiles: Tiles, members: np.ndarray) -> tuple[list[str], list[str]]:
    """Which slides and patients the training tiles `members` come from: facts and warnings."""
    if tiles.positions is None or not len(members):
        return [], []
    slides = tiles.positions.slide[tiles.train]
    everywhere, here = Counter(slides.tolist()), Counter(slides[members].tolist())
    facts = [_from(slides[members], slides, "slide")]
    if tiles.patients is not None:
        patients = tiles.patients[tiles.train]
        facts.append(_from(patients[members], patients, "patient"))
    (slide, n), warnings = here.most_common(1)[0], []
    share, expected = n / len(members), everywhere[slide] / len(slides)
    odds = (n + 0.5) / (len(members) - n + 0.5)  # a half more of each, so that few tiles make no certainty
    if len(everywhere) > 1 and share > DOMINATES and odds * (1 - expected) >= ODDS * expected:
        warnings.append(
            f"One slide dominates: {slide} has {share:.0%} of these tiles, but {expected:.0%} of all. "
            "The cluster may be a batch effect."
        )
    return facts, warnings


def _from(here: np.ndarray, everywhere: np.ndarray, noun: str) -> str:
    """A sentence on the slides or patients that these tiles come from."""
    counts, total = Counter(here[here != ""].tolist()), len({*everywhere.tolist()} - {""})
    most = counts.most_common(SEVERAL)
    shares = ", ".join(f"{name} {n / len(here):.0%}" for name, n in most)
    more = f" and {len(counts) - len(most)} more" if len(counts) > len(most) else ""
    return f"From {len(counts)} of {_count(total, noun)}{': ' * bool(shares)}{shares}{more}."


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def _map(tiles: Tiles, members: np.ndarray, small: Tensor | None) -> tuple[np.ndarray, str] | None:
    """The slide with most of these training tiles, small: all its tiles pale, these in their colours."""
    if tiles.positions is None or small is None or not len(members):
        return None
    indices = tiles.train[members]
    slide = Counter(tiles.positions.slide[indices].tolist()).most_common(1)[0][0]
    on_it = np.flatnonzero(tiles.positions.slide == slide)
    lit = np.isin(on_it, indices)
    on_it = on_it[lit.argsort(kind="stable")]  # those in colour lie on top
    x, y, sides = (tiles.positions[name][on_it] for name in ("x", "y", "side"))
    left, top = x.min(), y.min()
    width, height = ((at + sides).max() - at.min() for at in (x, y))
    scale = MAP_SIDE / max(width, height)
    picture = np.full((max(1, round(height * scale)), max(1, round(width * scale)), 3), 255, np.uint8)
    side = max(1, int(np.ceil(sides.max() * scale)))
    images = F.interpolate(small[on_it].float(), (side, side), mode="area")
    n_grey = len(on_it) - lit.sum()
    images[:n_grey] = 255 - 0.35 * (255 - images[:n_grey].mean(1, keepdim=True))
    for column, row, image in zip((x - left) * scale, (y - top) * scale, images.byte(), strict=True):
        part = picture[int(row) : int(row) + side, int(column) : int(column) + side]
        part[:] = image.permute(1, 2, 0).numpy()[: part.shape[0], : part.shape[1]]
    return picture, f"{slide}: tiles of this cluster in colour, others in grey"


def _small(tiles: Tiles) -> Tensor:
    """All tiles at 16 px, uint8 (N, 3, 16, 16)."""
    parts = np.array_split(np.arange(len(tiles.images)), -(-len(tiles.images) // 256))
    return torch.cat([F.interpolate(tiles.tensor(part).float(), (16, 16), mode="area").byte() for part in parts])
