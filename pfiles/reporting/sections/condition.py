"""Whether generated tiles are of the cluster they were asked for."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from pfiles.latents import predict_clusters
from pfiles.measuring import fidelity
from pfiles.reporting.figures import cluster_labels
from pfiles.reporting.page import Section
from pfiles.reporting.sections.data import EvaluationData
from pfiles.reporting.sections.record import SectionRecord, SummaryLine
from pfiles.reporting.tables import plain


def make_section(data: EvaluationData, seed: int) -> Section:
    """Whether generated tiles are of the cluster they were asked for, by the clusterer itself, where there is one, and
    by a second judge."""
    from sklearn.metrics import confusion_matrix  # half a second to import, which few notebooks need

    vqvae, k, (real_ids, generated_ids) = data.autoencoder, data.k, data.ids
    judge, ceiling = fidelity.train_judge(vqvae, data.real_codes, torch.as_tensor(real_ids), k, seed)
    judges = ({} if data.clusterer is None else {"the clusters": data.clusterer}) | {"second judge": judge}
    matrices = {
        name: confusion_matrix(
            generated_ids, predict_clusters(vqvae, network, data.generated_codes).cluster_ids, labels=range(k)
        )
        for name, network in judges.items()
    }
    tables = {name: fidelity.agreement(matrix) for name, matrix in matrices.items()}
    again, by_judge = matrices["second judge"], tables["second judge"].drop("all")
    worst = by_judge.accuracy.idxmin()
    chance = 1 / k
    references = {"second judge, real tiles": ceiling, "published, cluster 1": fidelity.PUBLISHED, "chance": chance}
    share = again.trace() / again.sum()
    notes = [
        f"The second judge sorts {share:.1%} of the generated tiles into the cluster they were asked for. It agrees "
        f"with the clusters on {ceiling:.1%} of the real tiles it did not learn from, the most that can be expected; "
        f"chance is {chance:.1%}. Intervals are Wilson's, 95 %."
    ]
    scores = {
        "by_chance": chance,
        "second_judge": {"share_assigned": share, "agreement_on_real_tiles": ceiling},
        "worst_cluster": f"{worst}, of which {by_judge.accuracy[worst]:.0%} are sorted as asked",
        "details": {name: plain(table) for name, table in tables.items()},
    }
    pictures = [plot_agreement(tables, references)]
    if (matrix := matrices.get("the clusters")) is not None:
        scores["share_assigned_to_requested_cluster"] = matrix.trace() / matrix.sum()
        scores["by_cluster"] = (matrix.diagonal() / matrix.sum(axis=1).clip(1)).tolist()
        pictures.insert(0, plot_confusion(matrix, "requested and re-predicted clusters", data.names))
    beside = pd.concat([table.add_suffix(f", by {name}") for name, table in tables.items()], axis=1)
    return Section("Condition", notes, [beside], pictures, scores)


def plot_confusion(matrix: np.ndarray, title: str, names: Mapping[int, str] | None = None) -> Figure:
    """A confusion matrix of requested (rows) against re-predicted clusters (columns), counting from 1.

    names: of clusters, by these numbers.
    """
    from sklearn.metrics import ConfusionMatrixDisplay

    fig, ax = plt.subplots(figsize=(6, 5.5), layout="constrained")
    display = ConfusionMatrixDisplay(matrix, display_labels=cluster_labels(len(matrix), names))
    display.plot(ax=ax, colorbar=False, cmap="Blues", xticks_rotation="vertical" if names else "horizontal")
    ax.set(title=title, xlabel="re-predicted cluster", ylabel="requested cluster")
    return fig


def plot_agreement(judges: Mapping[str, pd.DataFrame], references: Mapping[str, float]) -> Figure:
    """The accuracy of each cluster by each judge, tables of `fidelity.agreement` with their 95 % intervals.

    references: shares by name, as dashed lines.
    """
    fig, ax = plt.subplots(figsize=(8, 3), layout="constrained")
    width = 0.8 / len(judges)
    for i, (name, table) in enumerate(judges.items()):
        errors = (table.accuracy - table.low).clip(0), (table.high - table.accuracy).clip(0)
        places = np.arange(len(table)) + (i - (len(judges) - 1) / 2) * width
        ax.bar(places, table.accuracy, width, yerr=errors, capsize=2, label=f"judged by {name}")
    for i, (name, value) in enumerate(references.items(), start=len(judges)):
        ax.axhline(value, color=f"C{i}", linestyle="--", label=name)
    names = table.index.str.removeprefix("cluster ")
    ax.set(xlabel="requested cluster", ylabel="share assigned to it", ylim=(0, 1.02), xticks=range(len(names)))
    ax.set_xticklabels(names)
    fig.legend(fontsize="small", loc="outside right upper")
    return fig


def _sorted_as_asked(scores: Mapping[str, Any]) -> str | None:
    if "second_judge" not in scores:
        return None
    return (
        "in {second_judge[share_assigned]:.0%}; real tiles in {second_judge[agreement_on_real_tiles]:.0%} "
        "({by_chance:.0%} is chance)".format_map(scores)
    )


RECORD = SectionRecord(
    title="Condition fidelity",
    question="is a tile of the cluster it was asked for?",
    applies=lambda data: data.real_ids is not None and data.vqvae is not None,
    make=lambda data, options: [make_section(data, options.seed)],
    lines=(
        SummaryLine(
            3, "Sorted as asked", _sorted_as_asked, "not known without the clusters and the autoencoder",
            says="how many generated tiles a second judge puts into the cluster they were asked for",
            best="near what it reaches on real tiles",
        ),
        SummaryLine(
            6, "Worst tissue", lambda scores: scores.get("worst_cluster"),
            "not known without the clusters and the autoencoder",
            says="the cluster whose tiles are least often sorted as asked",
            best="look at its row in the cluster sheet",
        ),
    ),
)  # fmt: skip
