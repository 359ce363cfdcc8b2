"""What a pathologist would measure: stain, nuclei, background."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pfiles.measuring import morphometry
from pfiles.reporting.page import Section
from pfiles.reporting.sections.data import MIN_IMAGES, EvaluationData, clusters_left_out
from pfiles.reporting.sections.record import SectionRecord
from pfiles.reporting.tables import plain

MOST_CLUSTERS = 32  # that have boxes of their own


def make_section(data: EvaluationData, seed: int) -> Section:
    """What a pathologist would measure, of all images and of each cluster."""
    threshold = morphometry.nucleus_threshold(data.real)
    real, generated = (morphometry.measure(images, threshold) for images in (data.real, data.generated))
    table, left_out = morphometry_by_cluster(real, generated, data.real_ids, data.generated_ids, seed)
    notes = [
        f"Nuclei are where haematoxylin exceeds an optical density of {threshold:.3f}, found in the real images. The "
        "Wasserstein distance has a 95 % interval; its floor is that of two random halves of the real images. The "
        "table has what puts tiles of known quality in order, the figure all measurements."
    ]
    scores = {
        "Wasserstein distance": table.distance[: len(morphometry.FEATURES)].dropna().to_dict(),
        "details": {"morphometry": plain(table)},
    }
    pictures = [plot_morphometry(real, generated, data.real_ids, data.generated_ids)]
    ranking = table[[name.rpartition(": ")[2] in morphometry.RANKS for name in table.index]]
    return Section("Morphometry", notes + [left_out] * bool(left_out), [ranking], pictures, scores)


def morphometry_by_cluster(
    real: pd.DataFrame,
    generated: pd.DataFrame,
    real_ids: np.ndarray | None,
    generated_ids: np.ndarray | None,
    seed: int,
) -> tuple[pd.DataFrame, str]:
    """`morphometry.compare` of all images and of each cluster that has enough, and a sentence on those that have not.

    real, generated: tables of `morphometry.measure`; real_ids, generated_ids: the cluster of each row, 0-based,
    or None for all alone.
    """
    tables, left_out = {"all": morphometry.compare(real, generated, seed)}, []
    clusters = np.zeros(0, int)
    if real_ids is not None and generated_ids is not None:
        clusters = np.unique([*real_ids, *generated_ids])
    for cluster in clusters:
        of = real[real_ids == cluster], generated[generated_ids == cluster]
        if min(map(len, of)) < MIN_IMAGES:
            left_out.append(f"{cluster + 1} ({len(of[0])} real, {len(of[1])} generated)")
        else:
            tables[f"cluster {cluster + 1}"] = morphometry.compare(*of, seed)
    table = pd.concat(tables)
    table.index = [f"{group}: {name}" for group, name in table.index]
    return table, clusters_left_out(left_out)


def plot_morphometry(
    real: pd.DataFrame,
    generated: pd.DataFrame,
    real_ids: np.ndarray | None = None,
    generated_ids: np.ndarray | None = None,
) -> Figure:
    """One plot per column of `morphometry.measure`: boxes of real beside generated images, of all and of each cluster.

    real_ids, generated_ids: the cluster, 0-based, of each row; None: all images only. Of more than 32
    clusters those with most real images are drawn, and the figure says so. Boxes span the middle half, whiskers 5 to
    95 %, the line is the median.
    """
    k, sizes = 0, np.zeros(0, int)
    if real_ids is not None and generated_ids is not None:
        k = 1 + int(max(real_ids.max(), generated_ids.max()))
        sizes = np.bincount(real_ids, minlength=k)
    largest = np.sort(np.argsort(-sizes, kind="stable")[:MOST_CLUSTERS])
    sides = (
        ("real", real, real_ids, -0.19, "C0"),
        ("generated", generated, generated_ids, 0.19, "C1"),
    )
    fig, axes = plt.subplots(2, 3, figsize=(max(9, 3 + 0.9 * len(largest)), 6), layout="constrained")
    places = np.arange(len(largest) + 1)
    for ax, (name, title) in zip(axes.flat, morphometry.FEATURES.items(), strict=True):
        for _, table, ids, shift, colour in sides:
            groups = [table[name], *(table[name][ids == cluster] for cluster in largest)]
            ax.boxplot(
                [group.dropna() for group in groups], positions=places + shift, widths=0.34, whis=(5, 95),
                showfliers=False, patch_artist=True, boxprops={"facecolor": colour}, medianprops={"color": "black"},
            )  # fmt: skip
        ax.set(title=title, xticks=places, xticklabels=["all", *largest + 1], xlabel="cluster" if k else "")
        if k:
            ax.axvline(0.5, color="grey", linewidth=0.5)
    if len(largest) < k:
        fig.supxlabel(f"the {len(largest)} of {k} clusters with most real images")
    handles = [plt.Rectangle((0, 0), 1, 1, facecolor=colour) for *_, colour in sides]
    fig.legend(handles, [side[0] for side in sides], loc="outside upper right", ncols=2)
    return fig


RECORD = SectionRecord(
    title="Morphometry",
    question="are stain, nuclei and background alike?",
    make=lambda data, options: [make_section(data, options.seed)],
)
