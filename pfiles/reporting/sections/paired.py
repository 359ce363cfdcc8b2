"""Scores of pairs of images: SSIM, MS-SSIM and LPIPS, each beside its controls."""

import time
from collections.abc import Mapping, Sequence
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pfiles.errors import InputError
from pfiles.lpips import LPIPS
from pfiles.measuring import controls, pairs
from pfiles.reporting.page import Section
from pfiles.reporting.sections.data import EvaluationData, Options
from pfiles.reporting.sections.record import SectionRecord
from pfiles.reporting.tables import plain

PAIRED = {
    "ssim_published": ("SSIM (published reading)", pairs.ssim_published),
    "ssim": ("SSIM (per channel)", pairs.ssim),
    "ms_ssim": ("MS-SSIM", pairs.ms_ssim),
}  # paired scores that need no weights: the name in summary.json, the title, the score
BY_NOTEBOOK = {"part 10": ("ssim_published", "ssim"), "part 11": ("ms_ssim",), "part 12": ("lpips",)}
COMPARED = 5  # images beside each real one: the generated one and its controls


def make_sections(
    names: Sequence[str],
    real: Tensor,
    generated: Tensor,
    *,
    cluster_ids: np.ndarray | None,
    seed: int,
    device: torch.device | str,
    lpips_required: bool = False,
) -> list[Section]:
    """The paired scores `names`, of PAIRED or "lpips", with their controls: pictures first, then a section for each.

    lpips_required: whether LPIPS without its weights is an InputError, or is noted as unavailable.
    """
    scores: dict[str, tuple[str, pairs.PairScore]] = {
        name: (PAIRED[name][0], partial(PAIRED[name][1], device=device)) for name in names if name in PAIRED
    }
    notes, unavailable = [], {}
    if "lpips" in names:
        try:
            scores["lpips"] = "LPIPS", pairs.lpips_score(LPIPS().load_pretrained().to(device), device)
        except InputError as error:
            if lpips_required:
                raise
            notes.append(f"LPIPS is unavailable: {error}")
            unavailable = {"lpips": "unavailable"}
    if "ms_ssim" in names:
        notes.append(pairs.ms_ssim_rule(real.shape[2]))
    tables, sections = {}, []
    for name, (title, score) in scores.items():
        table = tables[title] = controls.paired_controls(score, real, generated, cluster_ids, seed)
        recorded = {name: table["mean"].to_dict(), "details": {name: plain(table)}}
        sections.append(Section(title, [controls.verdict(title, table)], [table], scores=recorded))
    pictures = [plot_controls(tables)] if tables else []
    return [Section("Paired scores and their controls", notes, [], pictures, unavailable), *sections]


def plot_controls(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """One plot per pair score: the mean of generated images and of each control of `controls.paired_controls`.

    Bars are 95 % intervals; the generated images' goes through the whole plot as a band.
    """
    rows = max(map(len, tables.values()))
    fig, axes = plt.subplots(
        1, len(tables), figsize=(2.2 + 2.6 * len(tables), 0.6 + 0.4 * rows), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        ax.axvspan(table.low.iloc[0], table.high.iloc[0], color="C1", alpha=0.3)
        for i, row in enumerate(table.itertuples()):
            errors = [[max(row.mean - row.low, 0)], [max(row.high - row.mean, 0)]]
            ax.errorbar(row.mean, i, xerr=errors, fmt="o", color="C0" if i else "C1", capsize=3)
        ax.set(title=title, yticks=range(len(table)), yticklabels=table.index)
    axes[0][0].invert_yaxis()
    return fig


def _make(data: EvaluationData, options: Options) -> list[Section]:
    names, ids = [*PAIRED, "lpips"], data.real_ids
    return make_sections(names, data.real, data.generated, cluster_ids=ids, seed=options.seed, device=options.device)


def seconds_per_pair(names: Sequence[str], tiles: Tensor, device: torch.device | str) -> float:
    """Seconds per pair of the scores `names`: the real tile with the generated one and with its controls."""
    scores = [
        pairs.lpips_score(LPIPS().load_pretrained().to(device), device)
        if name == "lpips"
        else partial(PAIRED[name][1], device=device)
        for name in names
    ]
    began = time.monotonic()
    for score in scores:
        score(tiles, tiles.flip(0))
    return COMPARED * (time.monotonic() - began) / len(tiles)


RECORD = SectionRecord(
    title="Paired scores",
    question="how similar is a generated tile to a real one of its cluster: SSIM, MS-SSIM, LPIPS?",
    applies=lambda data: data.is_paired,
    make=_make,
)
