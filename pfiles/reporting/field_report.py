"""What a field is worth: it is read back, its joints are looked for, and its crops are compared with training tiles."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pfiles.errors import InputError
from pfiles.latents import Assignment
from pfiles.machine.processes import progress
from pfiles.machine.runtime import derive_seed
from pfiles.measuring import field_check, structure
from pfiles.measuring.fidelity import wilson_interval
from pfiles.measuring.field_check import SEARCHED, Joints
from pfiles.measuring.memorisation import COPY, Judgement, search_and_judge
from pfiles.measuring.two_sample import TwoSampleTest
from pfiles.reporting.page import Section
from pfiles.reporting.tables import plain
from pfiles.tiles.dataset import Tiles
from pfiles.tiles.pixels import as_tensor, evenly_spaced
from pfiles.tiles.readers import SlideReader, open_slide, read_rgb

ENOUGH, SEAMLESS = 0.8, 0.55  # of places read back as asked, and of squares across joints that are told: the targets
LARGER = 2  # tiles along the side of the crops whose structure is compared with a slide's
AT_ONCE = 256  # tiles; changes memory only


def check_field(
    path: Path,
    painted: pd.DataFrame,
    joints: Joints,
    assign: Callable[[Tensor], Assignment],
    n_clusters: int,
    seed: int,
    device: torch.device | str,
    real: Tiles | None = None,
    real_crops: Tensor | None = None,
    draw: Callable[[list[int]], Tensor] | None = None,
) -> Section:
    """What a field's slide shows, with all numbers as scores.

    painted: as `fields.asked_tiles`. assign: uint8 tiles (N, 3, S, S) -> their clusters and confidence, such as
    `Generator.assign`. real: the tiles that the generator learnt from, with held-out ones; None: no search for copies.
    real_crops: uint8 (N, 3, 2 S, 2 S) of a real slide, every S px, for structure larger than a tile; their first tiles,
    which do not overlap, for repetition; None: structure is not compared. draw: clusters, 0-based -> separate tiles,
    which are read back too; None: no such tiles.
    """
    side = int(painted["side"].iloc[0]) if len(painted) else 0
    if not side:
        raise InputError(f"{path} has no tile of tissue to look at: draw a larger field.")
    with open_slide(path) as slide:
        places, ids = painted[["x", "y"]].to_numpy(int), painted["cluster"].to_numpy(int) - 1
        scores: dict[str, Any] = {}
        said, tables = _read_back(
            slide, places, ids, painted["share"].to_numpy(float), side, assign, n_clusters, scores
        )
        if draw is not None:
            said += _separate(ids[evenly_spaced(len(ids), SEARCHED)].tolist(), draw, assign, scores)
        sampled = evenly_spaced(len(places), 2 * SEARCHED)
        tiles = crops(slide, places[sampled], side)
        for measure in (
            lambda: _seams(slide, joints, seed, device, scores),
            lambda: _drift(tiles, places[sampled], ids[sampled], _is_surrounded(places, ids, side)[sampled], scores),
            lambda: _repetition(tiles, _as_tiles(real_crops, real), scores),
            lambda: _structure(slide, places, ids, side, real_crops, seed, scores),
            lambda: _copies(slide, places, side, seed, real, scores),
        ):
            try:
                said += measure()
            except InputError as error:
                said.append(f"Not measured: {error}")
    return Section("What the field is worth", said, tables, scores=scores)


def crops(slide: SlideReader, corners: np.ndarray, side: int) -> Tensor:
    """Squares of a slide at x and y (N, 2), uint8 (N, 3, side, side)."""
    images = [np.asarray(read_rgb(slide, int(x), int(y), 0, side, side)) for x, y in corners]
    return as_tensor(np.stack(images)).contiguous()


def _read_back(
    slide: SlideReader, places: np.ndarray, ids: np.ndarray, shares: np.ndarray, side: int,
    assign: Callable[[Tensor], Assignment], n_clusters: int, scores: dict[str, Any],
) -> tuple[list[str], list[pd.DataFrame]]:  # fmt: skip
    parts = range(0, len(places), AT_ONCE)
    bar = progress(parts, desc="read back", unit="batch", leave=False, delay=2)
    read_ids = torch.cat([assign(crops(slide, places[at : at + AT_ONCE], side))[0] for at in bar]).numpy()
    tables = field_check.read_back(ids, read_ids, shares, n_clusters)
    scores["read back"] = {name: plain(table) for name, table in tables.items()}
    said = []
    for name, table in tables.items():
        share, low, high = table.loc["all", ["accuracy", "low", "high"]]
        where = "places" if name == "all" else "places inside of one cluster"
        count = int(table.loc["all", "tiles"])
        said.append(f"{share:.0%} ({low:.0%} to {high:.0%}) of {count} {where} are read back as the cluster asked for.")
    verdict = "reached" if tables["all"].loc["all", "accuracy"] >= ENOUGH else "missed"
    said.append(f"Real tiles side by side are always read back. The target of {ENOUGH:.0%} of that is {verdict}.")
    return said, [*tables.values()]


def _separate(
    ids: list[int], draw: Callable[[list[int]], Tensor], assign: Callable[[Tensor], Assignment], scores: dict[str, Any]
) -> list[str]:
    """How often separate tiles, drawn for some of the field's places, are read back as the cluster asked for."""
    right = int((assign(draw(ids))[0] == torch.tensor(ids)).sum())
    (low, high), share = wilson_interval(right, len(ids)), right / len(ids)
    of_separate = scores["read back"]["all"]["all"]["accuracy"] / share if share else None
    scores["separate tiles"] = {
        "accuracy": share, "low": low, "high": high, "tiles": len(ids), "field": of_separate
    }  # fmt: skip
    sentence = f"Of {len(ids)} separate tiles of the same clusters {share:.0%} ({low:.0%} to {high:.0%}) are"
    return [sentence + ("." if of_separate is None else f"; the field reaches {of_separate:.0%} of that.")]


def _seams(
    slide: SlideReader, joints: Joints, seed: int, device: torch.device | str, scores: dict[str, Any]
) -> list[str]:
    size = slide.level_dimensions[0]
    corners = field_check.window_corners(size, joints)
    if not len(corners):
        raise InputError("Seams need a field of several windows: draw a larger one.")
    tests = field_check.seams(crops(slide, corners, 2 * joints.every), joints.every, seed, device)
    scores["seams"] = {
        "drawn": tests.across_joints.row(),
        "side by side": tests.side_by_side.row(),
        "inside": tests.inside.row(),
    }
    across: TwoSampleTest = tests.across_joints
    sentence = (
        f"Squares across joints are told from squares inside in {across}, across joints of tiles side by side in "
        f"{tests.side_by_side}, and squares inside from each other in {tests.inside}; chance is 50 %."
    )
    if across.accuracy is None:
        return [sentence]
    verdict = "reached" if across.accuracy <= SEAMLESS else "missed"
    return [f"{sentence} The target of at most {SEAMLESS:.0%} is {verdict}."]


def _is_surrounded(places: np.ndarray, ids: np.ndarray, side: int) -> np.ndarray:
    """Which tiles (N,) have no neighbour of another cluster, into which they would blend."""
    of_place = dict(zip(map(tuple, (places // side).tolist()), ids.tolist(), strict=True))
    around = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    return np.array(
        [all(of_place.get((x + dx, y + dy), of) == of for dx, dy in around) for (x, y), of in of_place.items()]
    )


def _drift(
    tiles: Tensor, places: np.ndarray, ids: np.ndarray, surrounded: np.ndarray, scores: dict[str, Any]
) -> list[str]:
    scores["drift"] = slope = field_check.drift(
        tiles[torch.from_numpy(surrounded)], places[surrounded], ids[surrounded]
    )
    return [
        "Colours change by at most {levels:.1f} of 255 levels (standard error {standard_error:.1f}) from edge to edge; "
        "tiles of one cluster differ by {spread:.1f}.".format_map({**slope, "levels": abs(slope["levels"])})
    ]


def _as_tiles(real_crops: Tensor | None, real: Tiles | None) -> Tensor | None:
    """Tiles that do not overlap: of the real slide, or else held-out ones."""
    if real_crops is None:
        return None if real is None else real.tensor(real.test)
    side = real_crops.shape[3] // LARGER
    return real_crops[:, :, :side, :side].contiguous()


def _repetition(tiles: Tensor, real: Tensor | None, scores: dict[str, Any]) -> list[str]:
    scores["repetition"] = search = field_check.repetition(tiles, real)
    sentence = "{copies} of {searched} crops come twice in the field".format_map(search)
    if search["closer"] is None:
        return [f"{sentence}; the nearest two differ by {search['smallest']:.2f}, copies by less than {COPY}."]
    closer, expected = search["closer"], search["expected"]
    return [f"{sentence}; {closer:.1%} are nearer to another than the nearest {expected:.1%} of real tiles are."]


def _structure(
    slide: SlideReader, places: np.ndarray, ids: np.ndarray, side: int, real: Tensor | None, seed: int,
    scores: dict[str, Any],
) -> list[str]:  # fmt: skip
    if real is None:
        return []
    large = LARGER * side
    inside = (places[:, 0] + large <= slide.level_dimensions[0][0]) & (
        places[:, 1] + large <= slide.level_dimensions[0][1]
    )
    if not inside.any():
        raise InputError(f"Structure is seen in crops of {large} px, of which the field holds none with tissue.")
    ladder = structure.make_ladder(real, seed)
    table = structure.reaches(ladder, crops(slide, places[inside][: structure.TILES], large), seed)
    held = structure.reaches(ladder, real, seed)
    scores["structure"] = {"field": plain(table)["all"], "real": plain(held)["all"]}
    reach, of_real = (structure.in_words(of.loc["all", "reach"], large) for of in (table, held))
    return [f"Crops of {large} px are built like tissue up to {reach}; those of the real slide up to {of_real}."]


def _copies(
    slide: SlideReader, places: np.ndarray, side: int, seed: int, real: Tiles | None, scores: dict[str, Any]
) -> list[str]:
    if real is None:
        return ["Copies of training tiles were not looked for: name the generator's tiles with --real."]
    crop, nearest, judged, leak = gate(slide, places, side, seed, real)
    copies = int((nearest.distance < judged["outright"]).sum())
    scores["copies"] = {**judged, "copies": copies, "searched": len(crop), "hand_on": not copies}
    sentence = (
        f"{copies} of {len(crop)} crops at random places are copies of a training tile; {judged['closer']:.1%} are "
        "nearer to one than the closest 1 % of held-out tiles."
    )
    return [sentence + " Do not hand this field on: draw it with another seed." * bool(copies), *[leak] * bool(leak)]


def gate(
    slide: SlideReader, places: np.ndarray, side: int, seed: int, real: Tiles, most: int = SEARCHED
) -> tuple[Tensor, pd.DataFrame, Judgement, str]:
    """At most `most` crops near `places` of tissue, moved at random, and what `search_and_judge` says of them."""
    rng = np.random.default_rng(derive_seed(seed, "crops for the gate"))
    corners = places[np.sort(rng.permutation(len(places))[:most])]
    last = np.array(slide.level_dimensions[0]) - side
    crop = crops(slide, np.minimum(corners + rng.integers(0, side, corners.shape), last), side)
    nearest, _, judged, leak = search_and_judge(crop, real.tensor(real.train), real.tensor(real.test), real.source)
    return crop, nearest, judged, leak
