"""The pictures: grids of tiles, loss curves, confusion matrices, and the panels of the paper's Figures 1 to 4."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from pfiles.data import evenly_spaced
from pfiles.paths import atomic_write

DPI = 300  # of saved panels, as published
FIGURE_4_PUBLISHED = (691, 755, 467, 733, 979)  # places among the 1,000 published test tiles


def tile_grid(images: Tensor, columns: int) -> np.ndarray:
    """uint8 images (N, 3, H, W) -> one image (H', W', 3), row by row, with black borders of 2 px.

    White tiles fill the last row, so that grids of as many columns have one width.
    """
    white = images.new_full((-len(images) % columns, *images.shape[1:]), 255)
    return make_grid(torch.cat([images, white]), nrow=columns, padding=2).permute(1, 2, 0).numpy()


def show_tiles(images: Tensor, columns: int = 10, title: str = "", label: str = "") -> Figure:
    """A grid of uint8 tiles (N, 3, H, W) with a title above, and a label along its left side."""
    grid = tile_grid(images, columns)
    width = columns * 0.8
    fig, ax = plt.subplots(
        figsize=(width + 0.4 * bool(label), width * grid.shape[0] / grid.shape[1] + 0.35 * bool(title))
    )
    ax.imshow(grid)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_title(title)
    ax.set_ylabel(label)
    fig.tight_layout(pad=0.2)
    return fig


def cluster_sheet(left: Sequence[Tensor], right: Sequence[Tensor], titles: tuple[str, str]) -> Figure:
    """Two columns of tile rows, one row per cluster: left[c] and right[c] are uint8 tiles (n, 3, H, W) of cluster c."""
    columns = [max(len(tiles) for tiles in side) for side in (left, right)]
    tile_inch = 0.6
    fig, axes = plt.subplots(
        len(left), 2, figsize=(tile_inch * sum(columns) + 0.5, tile_inch * len(left) + 0.4), width_ratios=columns,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for row, pair in zip(axes, zip(left, right, strict=True), strict=True):
        for ax, tiles, n in zip(row, pair, columns, strict=True):
            ax.set_axis_off()
            if len(tiles):
                ax.imshow(tile_grid(tiles, n))
    for cluster, (ax, _) in enumerate(axes, start=1):
        ax.text(-0.02, 0.5, cluster, transform=ax.transAxes, ha="right", va="center")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title)
    return fig


def save_figure(fig: Figure, path: Path) -> None:
    """Write a figure as an image, whole or not at all."""
    content = io.BytesIO()  # of a file on a disk that fills up Pillow would lose the end without a word
    fig.savefig(content, dpi=DPI, format=path.suffix[1:], bbox_inches="tight", pad_inches=0.02)
    with atomic_write(path) as file:
        file.write(content.getbuffer())


def plot_history(history: Sequence[dict[str, float]], title: str, reference: dict[str, float] | None = None) -> Figure:
    """One small plot per loss term against the epoch.

    reference: a dashed line in the plot of a term, such as {"mse": 1.0}.
    """
    skipped = ("epoch", "seconds")
    names = list(dict.fromkeys(name for row in history for name in row if name not in skipped))
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(3 * columns, 2.3 * rows), squeeze=False, layout="constrained")
    for ax, name in zip(axes.flat, names, strict=False):
        points = [(row["epoch"], row[name]) for row in history if name in row]
        ax.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None)
        if name in (reference or {}):
            ax.axhline(reference[name], color="grey", linestyle="--")
        ax.set(title=name.replace("_", " "), xlabel="epoch")
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    fig.suptitle(title)
    return fig


def plot_sizes(sizes: Sequence[int], title: str, xlabel: str, ylabel: str) -> Figure:
    """A bar for each size, counting from 1 as the paper counts clusters, and their mean as a dashed line."""
    fig, ax = plt.subplots(figsize=(6, 2.5), layout="constrained")
    numbers = np.arange(1, len(sizes) + 1)
    ax.bar(numbers, sizes)
    ax.axhline(np.mean(np.asarray(sizes)), color="grey", linestyle="--")
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if len(sizes) < 30:
        ax.set_xticks(numbers)
    return fig


def plot_indices(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """One plot per column of `table` against its index, the number of clusters."""
    fig, axes = plt.subplots(1, len(titles), figsize=(3.2 * len(titles), 2.8), layout="constrained")
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        ax.plot(table.index, table[name], marker="o")
        ax.set(title=title, xlabel="k", xticks=table.index)
        ax.title.set_size("small")
    return fig


def figure_4_tiles(n_test: int) -> np.ndarray:
    """Which test tiles Figure 4 shows: the published five where there are so many, otherwise five evenly spaced."""
    if n_test > max(FIGURE_4_PUBLISHED):
        return np.array(FIGURE_4_PUBLISHED)
    return evenly_spaced(n_test, 5)


def plot_confusion(matrix: np.ndarray, title: str) -> Figure:
    """A confusion matrix of requested (rows) against re-predicted clusters (columns), counting from 1."""
    from sklearn.metrics import ConfusionMatrixDisplay

    fig, ax = plt.subplots(figsize=(6, 5.5), layout="constrained")
    display = ConfusionMatrixDisplay(matrix, display_labels=range(1, len(matrix) + 1))
    display.plot(ax=ax, colorbar=False, cmap="Blues")
    ax.set(title=title, xlabel="re-predicted cluster", ylabel="requested cluster")
    return fig
