"""How far generated tiles are built like tissue: the reach of structure, and how tiles of that reach look."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pfiles.cached import cached_tensor
from pfiles.errors import InputError
from pfiles.measuring import structure
from pfiles.reporting import figures
from pfiles.reporting.page import Section
from pfiles.reporting.sections.data import HELD_OUT, EvaluationData
from pfiles.reporting.sections.record import SectionRecord, SummaryLine, Work
from pfiles.reporting.tables import plain
from pfiles.tiles.pixels import evenly_spaced

TITLE = "Reach of structure"
SHOWN = 10  # tiles of a row in the picture
# That are measured at most: noise, every size of blocks and the real tiles, as they are and decoded; four sets compared
MOST_SETS = 2 * (1 + len(structure.BLOCKS) + 1) + 4


def make_section(data: EvaluationData, seed: int) -> Section:
    """The reach of generated tiles beside that of reconstructed and held-out ones, overall and for each cluster."""
    try:
        tables, ladder = _measure(data, seed)
    except InputError as error:
        return Section(TITLE, [f"Left out: {error}"])
    overall = pd.DataFrame({name: table.loc["all"] for name, table in tables.items()}).T
    words = {name: structure.in_words(reach, ladder.side, data.mpp) for name, reach in overall.reach.items()}
    row, best = overall.loc["generated"], next(name for name in (HELD_OUT, "training tiles") if name in words)
    notes = [
        "Generated tiles show as much structure as real tiles that were cut into blocks of "
        f"{words['generated']} and shuffled; 95 % interval {row.low:.1f} to {row.high:.1f} px. Reach of {best}: "
        f"{words[best]}.",
        "Share is 0 for noise of the same spectrum and 1 for training tiles. Tiles that show glass are left out. "
        "Generated tiles are held against shuffled tiles that the same autoencoder decoded, if it is known.",
    ]
    by_cluster = tables["generated"].drop("all")
    block = round(row.reach)
    recorded = {
        "built_like_tissue": f"{_up_to(words['generated'])}; real tissue {words[best]}",
        "reach_of_structure_px": overall.reach.to_dict(),
        "share_of_structure": overall.share.to_dict(),
        "details": {"structure": {"overall": plain(overall), "generated, by cluster": plain(by_cluster)}},
    }
    pictures = [
        figures.show_tiles(
            examples(data, block, seed),
            SHOWN,
            f"Top: real tiles; middle: real tiles shuffled in blocks of {block} px; bottom: generated tiles",
            mpp=data.mpp,
        ),
        plot_ladder(structure.shares(ladder), overall),
    ]
    return Section(TITLE, notes, [overall, by_cluster][: 1 + (not by_cluster.empty)], pictures, recorded)


def _measure(data: EvaluationData, seed: int) -> tuple[dict[str, pd.DataFrame], structure.Ladder]:
    """The table of `structure.reaches` of each set that can be measured, and the ladder of the generated tiles.

    Generated tiles are held against shuffled training tiles that the autoencoder decoded as it did them, where it is
    known; all other tiles against shuffled training tiles as they are.
    Clusters count where those of real and of generated tiles are known. InputError if one of these two sets cannot
    be measured; held-out tiles that cannot have no row.
    """
    has_ids = data.real_ids is not None and data.generated_ids is not None
    real_ids, generated_ids = (data.real_ids, data.generated_ids) if has_ids else (None, None)
    raw = ladder = structure.make_ladder(data.real, seed, real_ids)
    if data.vqvae is not None:
        ladder = structure.make_ladder(data.real, seed, real_ids, data.reconstruct, _keeper(data, seed))
    tables = {"generated": structure.reaches(ladder, data.generated, seed, generated_ids)}
    if data.reconstructed is not None:
        tables["reconstructed"] = structure.reaches(raw, data.reconstructed, seed, real_ids)
    tables["training tiles"] = structure.reaches(raw, data.real, seed, real_ids)
    if data.held_out is not None:
        try:
            ids = data.held_out_ids if has_ids else None
            tables[HELD_OUT] = structure.reaches(raw, data.held_out, seed, ids)
        except InputError:
            pass  # too few of them, or of another kind: the training tiles stand for real tissue
    return tables, ladder


def _keeper(data: EvaluationData, seed: int) -> Callable[[Callable[[], Tensor]], Tensor]:
    """What keeps the decoded ladder in `data.ladder`, for as long as it would be made of the same tiles alike."""
    if data.ladder is None:
        return lambda measure: measure()
    path, made_from = data.ladder
    measure_of = {"blocks": [*structure.BLOCKS], "sigmas": [*structure.SIGMAS], "tiles": structure.TILES, "seed": seed}
    return partial(cached_tensor, path, {**made_from, **measure_of})


def examples(data: EvaluationData, block: int, seed: int) -> Tensor:
    """Three rows of tiles: real ones, shuffled ones, generated ones; of one cluster in each column, where known."""
    places = evenly_spaced(len(data.generated), SHOWN)
    few = evenly_spaced(len(data.real), structure.TILES)
    tiles, ids = data.real[few], np.zeros(len(few), int)
    columns = evenly_spaced(len(few), SHOWN)
    if data.real_ids is not None and data.generated_ids is not None:
        ids = data.real_ids[few]
        members = [np.flatnonzero(ids == cluster) for cluster in data.generated_ids[places]]
        columns = np.array([rows[i % len(rows)] if len(rows) else i for i, rows in enumerate(members)])
    rows = tiles, structure.shuffled(tiles, block, seed, ids)
    return torch.cat([*(row[columns].cpu() for row in rows), data.generated[places].cpu()])


def plot_ladder(shares: pd.Series, overall: pd.DataFrame) -> Figure:
    """The share of each rung over its block, and where each set stands between them."""
    fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
    ax.plot(shares.index, shares, color="grey", marker="o", label="real tiles, shuffled")
    for i, (name, row) in enumerate(overall.iterrows()):
        ax.errorbar(
            row.reach, row.share, xerr=[[row.reach - row.low], [row.high - row.reach]], marker="s", color=f"C{i}",
            capsize=3, label=name,
        )  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_xticks(shares.index, shares.index)
    ax.set(title="reach of structure", xlabel="reach, pixels", ylabel="share of real structure")
    ax.legend(fontsize="small", loc="upper left")
    return fig


def seconds_per_tile(tiles: Tensor) -> float:
    """What measuring takes on this machine, from uint8 tiles (N, 3, S, S)."""
    began = time.monotonic()
    structure.coherence_of(tiles, np.ones(tiles.shape[2:]))
    return (time.monotonic() - began) / len(tiles)


def _up_to(reach: str) -> str:
    """How far tiles are built like tissue, from their reach `in_words`, which names its end where it lies at one."""
    return reach if reach.startswith(("at most", "beyond")) else f"up to {reach}"


def _built_like_tissue(scores: Mapping[str, Any]) -> str | None:
    return scores.get("built_like_tissue")


def _seconds(work: Work) -> float:
    return MOST_SETS * min(work.generated, structure.TILES) * work.structure_tile


RECORD = SectionRecord(
    title=TITLE,
    question="how far are tiles built like tissue?",
    make=lambda data, options: [make_section(data, options.seed)],
    seconds=_seconds,
    lines=(
        SummaryLine(
            2, "Built like tissue", _built_like_tissue,
            "not known, with so few tiles or as the real ones have no structure to measure",
            says="the largest scale of structure in generated tiles: real tiles cut into blocks of this size and "
            "shuffled show as much",
            best="as far as real tissue",
        ),
    ),
)  # fmt: skip
