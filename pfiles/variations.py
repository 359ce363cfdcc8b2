"""Variations of real tiles: which of them keep their cluster, and which come too near a real tile.

A variation that the gate of `export` would take for a copy is marked and never written as a file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pfiles.checkpoints import inference_fingerprint
from pfiles.drawing.generator import Generator
from pfiles.drawing.soundness import require_variations
from pfiles.errors import InputError
from pfiles.latents import reconstruct
from pfiles.machine.processes import progress
from pfiles.measuring.memorisation import COPY, judge, nearest_tiles
from pfiles.names import find_clusters
from pfiles.paths import atomic_folder, read_json, write_json
from pfiles.reporting import figures
from pfiles.spreadsheet import write_csv
from pfiles.tiles.dataset import Tiles
from pfiles.tiles.files import write_tiles
from pfiles.tiles.pixels import to_uint8

TABLE, NOTE, SHEET, MADE_BY = "variations.csv", "variations.json", "sheet.jpg", "python -m pfiles vary"
SHOWN = 4  # originals on the sheet
MARK = (220, 30, 30)  # colour of the frame around what is too near a real tile


class Gate(NamedTuple):
    """How near to a real tile is too near; see `make_gate`.

    limit: the distance of `nearest_tiles` below which a variation is a copy. real: the tiles (M, 3, S, S) that count
    besides the originals; none where there are no training tiles. likeness: of held-out tiles to their nearest
    training tile, the median of 1 - distance; None without tiles. words: where the limit comes from, a sentence.
    """

    limit: float
    real: Tensor | None
    likeness: float | None
    words: str


def make_gate(tiles: Tiles | None) -> Gate:
    """The gate of `export` for these tiles, all of them. None: there are only the originals, and outright copies."""
    if tiles is None:
        words = f"No training tiles were given: what differs from its original by less than {COPY} counts as a copy."
        return Gate(COPY, None, None, words)
    train, held_out = (tiles.tensor(part) for part in (tiles.train, tiles.test))
    distance = nearest_tiles(held_out, train).distance
    judged, leak = judge(distance, distance, tiles.source)
    limit = float(judged["threshold"] or COPY)
    words = leak or f"Closer to a real tile than {limit:.3f}, as the closest 1 % of held-out tiles are, is too near."
    return Gate(limit, train, 1 - float(distance.median()), words)


def test_tile(tiles: Tiles, number: int) -> Tensor:
    """The test tile of a number from 1, uint8 (1, 3, S, S); InputError where there is none."""
    if not 1 <= number <= len(tiles.test):
        raise InputError(f"Test tiles are numbered from 1 to {len(tiles.test):,}, but {number} was asked for.")
    return tiles.tensor(tiles.test[[number - 1]])


def check(generator: Generator, strengths: Sequence[float], number: int, clusters: Sequence[str]) -> None:
    """InputError for what `vary` cannot draw, before any work."""
    if not strengths:
        raise InputError("Variations need at least one strength, such as 0.7.")
    for strength in strengths:
        require_variations(strength, number)
    for name in clusters:
        find_clusters(name, generator.names, generator.n_clusters)


def vary(
    generator: Generator, tiles: Tensor, strengths: Sequence[float], number: int, seed: int, clusters: Sequence[str]
) -> tuple[Tensor, pd.DataFrame]:
    """`number` variations of each tile at each strength, as its own cluster and as each of `clusters`.

    tiles: uint8 (N, 3, S, S). clusters: names, or numbers from 1. Returns uint8 (V, 3, S, S), and a row for each:
    original (place in tiles), own (whether drawn as its own cluster), asked and read (0-based clusters), strength.
    """
    check(generator, strengths, number, clusters)
    images, rows = [], []
    tile_ids, _ = generator.assign(tiles)
    for name in (None, *clusters):
        if name is None:
            target_ids = tile_ids
        else:
            same_name = find_clusters(name, generator.names, generator.n_clusters)
            target_ids = torch.full_like(tile_ids, max(same_name, key=lambda cluster: float(generator.shares[cluster])))
        for strength in strengths:
            cluster = None if name is None else int(target_ids[0])
            varied = generator.vary(tiles, strength, number, seed, cluster=cluster).flatten(0, 1)
            read, _ = generator.assign(varied)
            images.append(varied)
            rows.append(
                pd.DataFrame(
                    {
                        "original": torch.arange(len(tiles)).repeat_interleave(number),
                        "own": name is None,
                        "asked": target_ids.repeat_interleave(number),
                        "read": read,
                        "strength": strength,
                    }
                )
            )
    return torch.cat(images), pd.concat(rows, ignore_index=True)


def add_distances(images: Tensor, table: pd.DataFrame, tiles: Tensor, gate: Gate) -> pd.DataFrame:
    """The rows of `vary` with two more distances of `nearest_tiles`, and whether the gate calls each a copy.

    to_original: from its own original. nearest: from any real tile, the originals among them. copy: whether that is
    below the gate's limit.
    """
    to_original = pd.Series(0.0, index=table.index)
    for original, rows in progress(table.groupby("original"), desc="originals", unit="tile", leave=False, delay=2):
        nearest_to_own = nearest_tiles(images[rows.index.to_list()], tiles[original : original + 1])
        to_original[rows.index] = nearest_to_own.distance.to_numpy()
    nearest = to_original
    if gate.real is not None:
        nearest = nearest_tiles(images, torch.cat([tiles, gate.real])).distance.combine(to_original, min)
    return table.assign(to_original=to_original, nearest=nearest, copy=nearest < gate.limit)


def curve(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the rows of `add_distances`, for each strength, of a tile's own cluster and of others.

    kept: the share that is read as the cluster asked for. likeness: to the original, 1 - distance. copies: the share.
    """
    groups = table.assign(kept=table["asked"] == table["read"], likeness=1 - table["to_original"])
    names = {"kept": "kept", "likeness": "likeness", "copy": "copies"}
    means = groups.groupby(["own", "strength"])[list(names)].mean().rename(columns=names)
    return means.reset_index().sort_values(["own", "strength"], ascending=[False, True], ignore_index=True)


def decoded_again(generator: Generator, tiles: Tensor) -> tuple[Tensor, float]:
    """The tiles' own codes, decoded without a variation, and the share that keeps its cluster."""
    device = next(generator.unet.parameters()).device
    images = to_uint8(reconstruct(generator.space.vqvae, tiles.to(device))).cpu()
    return images, float((generator.assign(images).cluster_ids == generator.assign(tiles).cluster_ids).double().mean())


def write_variations(
    generator: Generator, names: Sequence[str], tiles: Tensor, out: Path, gate: Gate, *, strengths: Sequence[float],
    number: int, seed: int, clusters: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Draw variations, see `vary`, and write the folder `out`, all at once: tiles/, a table, a sheet and a note.

    names: of the tiles. Marked variations are on the sheet alone. Returns what the note says. InputError where the
    folder holds anything else than such variations.
    """
    refuse_other_files(out)
    images, table = vary(generator, tiles, strengths, number, seed, clusters)
    table = add_distances(images, table, tiles, gate)
    _, kept_share = decoded_again(generator, tiles)
    networks = {"autoencoder": generator.space.vqvae, "unet": generator.unet, "clusters": generator.bank}
    networks |= {"guide": generator.guide} if generator.guide else {}
    note = {
        "made_by": MADE_BY, **{name: inference_fingerprint(network) for name, network in networks.items()},
        "seed": seed, "originals": len(tiles), "variations": len(table), "withheld": int(table["copy"].sum()),
        "limit": gate.limit, "rule": gate.words, "likeness_of_held_out_tiles": gate.likeness,
        "kept_when_decoded": kept_share, "curve": curve(table).to_dict("records"),
    }  # fmt: skip
    passed = (~table["copy"]).to_numpy()
    files = [f"{place}.png" if passes else "" for place, passes in enumerate(passed, start=1)]
    written = table.assign(file=files, original=[names[i] for i in table["original"]])
    written[["asked", "read"]] += 1
    with atomic_folder(out) as part:
        write_tiles(
            part / "tiles", [i + 1 for i in passed.nonzero()[0].tolist()], images[torch.tensor(passed.tolist())]
        )
        columns = ["file", "original", "strength", "asked", "read", "to_original", "nearest", "copy"]
        write_csv(part / TABLE, written[columns].round(4))
        figures.save_figure(show(images, table, tiles, generator.names, generator.mpp), part / SHEET)
        write_json(part / NOTE, note)
    return note


def refuse_other_files(out: Path) -> None:
    """InputError where the folder `out`, which is replaced as a whole, holds anything that `vary` did not write."""
    names = {"tiles", TABLE, NOTE, SHEET}
    others = [path.name for path in out.iterdir() if path.name not in names] if out.is_dir() else []
    is_ours = read_json(out / NOTE, {}).get("made_by") == MADE_BY
    if others or (out.exists() and not out.is_dir()) or (out.is_dir() and any(out.iterdir()) and not is_ours):
        raise InputError(f"{out} holds other files than variations: name an empty or a new folder.")


def in_words(note: Mapping[str, Any]) -> str:
    """What `write_variations` found, a line for each strength."""
    lines = [note["rule"]]
    for row in note["curve"]:
        kind = "as their own cluster" if row["own"] else "as others"
        lines.append(
            f"Strength {row['strength']:g}, {kind}: {row['kept']:.0%} are read as the cluster asked for, likeness to "
            f"the original {row['likeness']:.2f}, {row['copies']:.0%} too near a real tile."
        )
    lines.append(f"{note['kept_when_decoded']:.0%} of the originals keep their cluster when they are only decoded.")
    if note["likeness_of_held_out_tiles"] is not None:
        lines.append(f"Held-out tiles have a likeness of {note['likeness_of_held_out_tiles']:.2f} to a training tile.")
    return "\n".join(lines)


def show(
    images: Tensor, table: pd.DataFrame, tiles: Tensor, names: Mapping[int, str], mpp: float | None = None
) -> Figure:
    """The first tiles, each before its variations, a row for each strength and cluster; copies are framed in red."""
    rows, labels = [], []
    for original in range(min(SHOWN, len(tiles))):
        of_original = table[table["original"] == original]
        for (as_own_cluster, strength, cluster), group in of_original.groupby(["own", "strength", "asked"], sort=False):
            varied = images[group.index.to_list()].clone()
            _frame(varied, torch.tensor(group["copy"].to_list()))
            rows.append(torch.cat([tiles[original][None], varied]))
            label = figures.cluster_label(cluster + 1, names)
            labels.append(f"{strength:g}, {'own' if as_own_cluster else 'as'} {label}")
    title = "Each tile, then its variations by strength and cluster; framed in red: too near a real tile"
    return figures.show_rows(rows, labels, title, mpp, columns=max(map(len, rows)))


def _frame(images: Tensor, marked: Tensor) -> None:
    """Frame the marked ones of uint8 images (N, 3, S, S), in place."""
    width = max(2, images.shape[3] // 24)
    inside = torch.zeros(images.shape[2:], dtype=torch.bool)
    inside[width:-width, width:-width] = True
    colour = torch.tensor(MARK, dtype=torch.uint8)[:, None, None]
    images[marked] = torch.where(inside, images[marked], colour)
