"""The pictures: grids of tiles, loss curves, confusion matrices, and the panels of the paper's Figures 1 to 4."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from MODULE import INDICES
from pfiles.measuring import stability
from pfiles.paths import Paths, atomic_write
from pfiles.reporting.lettering import literal
from pfiles.tiles.pixels import evenly_spaced

DPI = 300  # of saved panels, as published
MOST_PIXELS = 65000  # of a side of a saved figure; a JPEG can have 65,500
FIGURE_4_PUBLISHED = (691, 755, 467, 733, 979)  # places among the 1,000 published test tiles


def tile_grid(images: Tensor, columns: int, border: int = 0) -> np.ndarray:
    """uint8 images (N, 3, H, W) -> one image (H', W', 3), row by row, with borders of 2 px, black or of that level.

    White tiles fill the last row, so that grids of as many columns have one width.
    """
    white = images.new_full((-len(images) % columns, *images.shape[1:]), 255)
    framed = F.pad(torch.cat([images, white]), (2, 0, 2, 0), value=border)  # above and left of each tile
    framed = framed.unflatten(0, (-1, columns))
    grid = framed.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (H', W', 3) without the last borders
    return F.pad(grid, (0, 0, 0, 2, 0, 2), value=border).numpy()


def show_tiles(
    images: Tensor,
    columns: int = 10,
    title: str = "",
    *,
    rows: Sequence[str] = (),
    tops: Sequence[str] = (),
    mpp: float | None = None,
) -> Figure:
    """A grid of uint8 tiles (N, 3, H, W) with a title above.

    rows, tops: labels at the left of the rows and above the columns; all labels are plain text. mpp: microns per pixel
    of the tiles, for a scale bar below the grid; None: not known, no bar.
    """
    grid = tile_grid(images, columns)
    width = columns * 0.8
    heads = 0.35 * (bool(title) + bool(tops))
    fig, ax = plt.subplots(figsize=(width + 0.4 * bool(rows), width * grid.shape[0] / grid.shape[1] + heads))
    ax.imshow(grid)
    pitch = images.shape[2] + 2  # pixels from tile to tile
    ax.set_yticks([(i + 0.5) * pitch for i in range(len(rows))], [literal(row) for row in rows])
    ax.xaxis.tick_top()
    narrow = ["\n".join(textwrap.wrap(literal(top), 11)) for top in tops]
    ax.set_xticks([(i + 0.5) * pitch for i in range(len(tops))], narrow, size="small")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(literal(title))
    _draw_scale_bar(ax, grid.shape, images.shape[3], mpp)
    fig.tight_layout(pad=0.2)
    return fig


def show_rows(
    rows: Sequence[Tensor], labels: Sequence[str], title: str = "", mpp: float | None = None, columns: int = 10
) -> Figure:
    """As `show_tiles`, with the first `columns` tiles of each of `rows` in a row of its own, beside its label.

    rows: uint8 (n, 3, H, W), at least one of them with a tile; white tiles fill the shorter ones.
    """
    columns = min(columns, max(map(len, rows)))
    white = torch.full_like(next(tiles for tiles in rows if len(tiles))[:1], 255)
    filled = [torch.cat([tiles[:columns], *[white] * (columns - len(tiles))]) for tiles in rows]
    return show_tiles(torch.cat(filled), columns, title, rows=labels, mpp=mpp)


def show_pair_rows(
    real: Tensor, generated: Tensor, cluster_ids: Sequence[int] | Tensor | np.ndarray, mpp: float | None,
    names: Mapping[int, str] | None = None, columns: int = 10,
) -> Figure:  # fmt: skip
    """The first `columns` training tiles above the generated ones of the same clusters (N,), 0-based."""
    columns = min(columns, len(real))
    tops = [cluster_label(int(cluster) + 1, names) for cluster in cluster_ids[:columns]]
    tiles = torch.cat([real[:columns], generated[:columns]])
    return show_tiles(tiles, columns, "Clusters", rows=["training tile", "generated"], tops=tops, mpp=mpp)


def scale_bar_length(side_um: float) -> float:
    """The longest of 1, 2, 5, 10, 20, 50 ... microns that is no longer than a tile of `side_um`."""
    power = 10.0 ** math.floor(math.log10(side_um))
    return power * max(digit for digit in (1, 2, 5) if digit * power <= side_um * (1 + 1e-9))


def _draw_scale_bar(ax: Axes, shape: tuple[int, ...], side: int, mpp: float | None) -> None:
    """Draw a bar of a round length below the right end of a grid of that shape, of tiles of `side` pixels."""
    if mpp is None:
        return
    microns = scale_bar_length(side * mpp)
    right, below = shape[1] - 2, shape[0] + 0.12 * side
    ax.plot([right - microns / mpp, right], [below, below], color="black", linewidth=2, clip_on=False)
    ax.text(right, below + 0.08 * side, f"{microns:g} µm", ha="right", va="top", size="small", clip_on=False)
    ax.set(xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5))  # the bar lies outside and moves no limit


def draw_bar_inside(ax: Axes, width: float, mpp: float | None) -> None:
    """Draw a bar of a round length, at most a third of `width` pixels, into the lower right of a picture."""
    if mpp is not None:
        microns = scale_bar_length(width * mpp / 3)
        label = f"{microns / 1000:g} mm" if microns >= 1000 else f"{microns:g} µm"
        ax.add_artist(AnchoredSizeBar(ax.transData, microns / mpp, label, "lower right"))


def cluster_label(number: int, names: Mapping[int, str] | None = None) -> str:
    """The number of a cluster, from 1, with its name if it has one, in a few short lines."""
    return "\n".join(textwrap.wrap(f"{number} {(names or {}).get(number, '')}".strip(), 18))


def cluster_labels(k: int, names: Mapping[int, str] | None = None) -> list[str]:
    """The labels of k clusters, for an axis of a plot of our own."""
    return [literal(cluster_label(number, names)) for number in range(1, k + 1)]


def cluster_sheet(
    left: Sequence[Tensor],
    right: Sequence[Tensor],
    titles: tuple[str, str],
    names: Mapping[int, str] | None = None,
    mpp: float | None = None,
) -> Figure:
    """Two columns of tile rows, one row per cluster: left[c] and right[c] are uint8 tiles (n, 3, H, W) of cluster c.

    names: of clusters, by their numbers from 1. mpp: microns per pixel, for a scale bar; None: not known. A cluster
    without tiles has white ones.
    """
    white = torch.full_like(next(tiles for tiles in (*left, *right) if len(tiles))[:1], 255)
    columns = [max(len(tiles) for tiles in side) for side in (left, right)]
    # inches; fixed margins, as a fitted layout takes minutes for many rows
    tile, margin, head, foot = 0.6, 0.4, 0.35, 0.05 if mpp is None else 0.3
    width, height = tile * sum(columns) + margin + 0.2, tile * len(left) + head + foot
    fig, axes = plt.subplots(
        len(left), 2, figsize=(width, height), width_ratios=columns, squeeze=False,
        gridspec_kw={"left": margin / width, "right": 1 - 0.05 / width, "bottom": foot / height,
                     "top": 1 - head / height, "wspace": 0.3 / width, "hspace": 0.05},
    )  # fmt: skip
    for row, pair in zip(axes, zip(left, right, strict=True), strict=True):
        for ax, tiles, n in zip(row, pair, columns, strict=True):
            ax.set_axis_off()
            grid = tile_grid(tiles if len(tiles) else white, n)
            ax.imshow(grid)
    _draw_scale_bar(axes[-1][1], grid.shape, white.shape[3], mpp)
    for label, (ax, _) in zip(cluster_labels(len(left), names), axes, strict=True):
        ax.text(-0.02, 0.5, label, transform=ax.transAxes, ha="right", va="center")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(literal(title))
    return fig


def save_sheet(panels: Sequence[Path], path: Path, columns: int = 1, letters: str = "") -> bool:
    """Write saved panels, row by row, as one image; whether all were there, as otherwise none is written.

    letters: one for each panel, at its upper left. All panels get the width of the widest.
    """
    if not all(panel.exists() for panel in panels):
        return False
    images = [Image.open(panel).convert("RGB") for panel in panels]
    width, gap = max(image.width for image in images), DPI // 10
    images = [image.resize((width, round(image.height * width / image.width))) for image in images]
    head = DPI // 4 if letters else 0  # room for the letter above each panel
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    heights = [head + gap + max(image.height for image in row) for row in rows]
    sheet = Image.new("RGB", (min(columns, len(images)) * (width + gap), sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, image in enumerate(images):
        x, y = number % columns * (width + gap), sum(heights[: number // columns])
        sheet.paste(image, (x, y + head))
        pen.text((x, y), letters[number : number + 1], "black", ImageFont.load_default(head or 1))
    reduced = min(1.0, MOST_PIXELS / max(sheet.size))
    content = io.BytesIO()
    sheet.resize([round(reduced * side) for side in sheet.size]).save(content, path.suffix[1:].replace("jpg", "jpeg"))
    with atomic_write(path) as file:
        file.write(content.getbuffer())
    return True


def save_figure(fig: Figure, path: Path, dpi: int = DPI) -> None:
    """Write a figure as an image, whole or not at all; one too large for a JPEG at `dpi` gets fewer dots per inch."""
    content = io.BytesIO()  # on a full disk Pillow would write a cut-off file without an error
    dpi = min(dpi, MOST_PIXELS / (max(fig.get_size_inches()) + 1))  # an inch more for labels that stand out
    fig.savefig(content, dpi=dpi, format=path.suffix[1:], bbox_inches="tight", pad_inches=0.02)
    with atomic_write(path) as file:
        file.write(content.getbuffer())


def save_figure_4(paths: Paths) -> bool:
    """`save_sheet` of the panels of Figure 4 of a run, which parts 4, 7 and 8 save."""
    panels = [paths.figure(4, f"{letter}_k{paths.n_clusters}") for letter in "abcd"]
    return save_sheet(panels, paths.figure(4, f"sheet_k{paths.n_clusters}"), 2, "abcd")


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
        if reference is not None and name in reference:
            ax.axhline(reference[name], color="grey", linestyle="--")
        ax.set(title=name.replace("_", " "), xlabel="epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    fig.suptitle(literal(title))
    return fig


def plot_sizes(
    sizes: Sequence[int], title: str, xlabel: str, ylabel: str, names: Mapping[int, str] | None = None
) -> Figure:
    """A bar for each size, counting from 1 as the paper counts clusters, and their mean as a dashed line.

    names: of clusters, by these numbers.
    """
    fig, ax = plt.subplots(figsize=(6, 2.5), layout="constrained")
    numbers = np.arange(1, len(sizes) + 1)
    ax.bar(numbers, sizes)
    ax.axhline(np.mean(np.asarray(sizes)), color="grey", linestyle="--")
    ax.set(title=literal(title), xlabel=xlabel, ylabel=ylabel)
    if len(sizes) < 30:
        ax.set_xticks(numbers, cluster_labels(len(sizes), names), rotation=90 if names else 0)
    return fig


def plot_indices(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """One plot per column of `table` against its index, the number of clusters."""
    fig, axes = plt.subplots(1, len(titles), figsize=(3.2 * len(titles), 2.8), layout="constrained")
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        ax.plot(table.index, table[name], marker="o")
        ax.set(title=title, xlabel="k", xticks=table.index)
        ax.title.set_size("small")
    return fig


def plot_choice(rows: pd.DataFrame, same: pd.DataFrame) -> Figure:
    """The tables of `choose_k.compare` against k: one plot for each index and for what else speaks for a k or against.

    A dot for each seed, their mean with its 95 % interval, and a cross for the published value at k = 14 where it lies
    within the axes; the title tells both.
    """
    table = stability.over_seeds(rows)
    columns = [*stability.FIVE, "clusters used", "KL to uniform", "same in 8 views"]
    fig, axes = plt.subplots(2, 5, figsize=(17, 6.4), layout="constrained")
    for ax, name in zip(axes.flat, columns, strict=False):
        column = table[name]
        reach = np.nan_to_num(np.stack([column["mean"] - column["low"], column["high"] - column["mean"]]))
        ax.errorbar(column.index, column["mean"], reach, marker="o", capsize=3)
        ax.plot(rows.index.get_level_values("k"), rows[name], ".", color="grey", alpha=0.6)
        title = name
        if name in stability.PUBLISHED:
            index, published = INDICES[name], stability.PUBLISHED[name]
            title = f"{index.name} ({index.direction} is better)\npublished, k = {stability.PUBLISHED_K}: {published:g}"
            if stability.PUBLISHED_K in column.index:
                title += f", here {column.loc[stability.PUBLISHED_K, 'mean']:.5g}"
            limits = ax.get_xlim(), ax.get_ylim()
            ax.plot(stability.PUBLISHED_K, published, "x", color="tab:red", markersize=9)
            ax.set(xlim=limits[0], ylim=limits[1])
        ax.set_title(title, size="small")
    axes.flat[5].plot(table.index, table.index, color="grey", linestyle="--", linewidth=1)  # all in use
    for ax, names, title in (
        (axes.flat[8], ("seeds", "halves"), "agreement between two seeds, and\nbetween halves of the tiles (ARI)"),
        (
            axes.flat[9],
            ("next k", "nested"),
            "agreement with the next k (ARI), and tiles whose\ncluster there is mostly made of their own",
        ),
    ):
        for name in names:
            if name in same:
                ax.plot(same.index, same[name], marker="o", label=name)
        ax.set_title(title, size="small")
        ax.set_ylim(0, 1.02)
        ax.legend(fontsize="small")
    for ax in axes.flat:
        ax.set(xlabel="k", xticks=table.index)
    return fig


def plot_flow(by_k: Mapping[int, np.ndarray]) -> Figure:
    """How the clusters of each k split into those of the next: bars of tiles, joined by bands as wide as their tiles.

    by_k: the clusters of the same tiles (N,), 0-based, by k. Within a column they stand so that bands cross little,
    each with its number from 1; a cluster has the colour of that cluster of the first k which gave it most tiles.
    """
    ks = [*by_k]
    n = len(by_k[ks[0]])
    gap = 0.012 * n
    fig, ax = plt.subplots(figsize=(1.9 * len(ks) + 1, 7), layout="constrained")
    palette = plt.get_cmap("tab20")(np.arange(20))
    height = np.empty(n)  # of each tile in the column before: where bands come from, and what orders the next column
    colour = np.empty((n, 4))  # of each cluster in the column before
    bottoms: dict[int, np.ndarray] = {}
    for column, k in enumerate(ks):
        ids, present = by_k[k], np.unique(by_k[k])
        if column:
            before = by_k[ks[column - 1]]
            centre = [height[ids == c].mean() for c in present]
            table = stability.contingency(before, ids)
            colours = {c: colour[table[:, c].argmax()] for c in present}
        else:
            centre = [-(ids == c).sum() for c in present]
            colours = {c: palette[i % 20] for i, c in enumerate(present)}
        order = present[np.argsort(centre, kind="stable")]
        place, bottom = 0.0, np.zeros(ids.max() + 1)
        for c in order:
            size = (ids == c).sum()
            bottom[c] = place
            ax.bar(column, size, 0.16, place, color=colours[c], edgecolor="black", linewidth=0.5)
            ax.text(column, place + size / 2, c + 1, ha="center", va="center", size="x-small")
            height[ids == c] = place + size / 2
            place += size + gap
        if column:
            left, right = bottoms[column - 1].copy(), bottom.copy()
            rank = {c: i for i, c in enumerate(order)}
            members = np.unique(before)
            for a in members[np.argsort(bottoms[column - 1][members], kind="stable")]:
                for b in sorted(np.flatnonzero(table[a]), key=rank.__getitem__):
                    width = table[a, b]
                    _band(ax, column - 0.92, column - 0.08, left[a], right[b], width, colour[a])
                    left[a] += width
                    right[b] += width
        bottoms[column] = bottom
        colour = np.array([colours.get(c, (0, 0, 0, 0)) for c in range(ids.max() + 1)])
    ax.set_xticks(range(len(ks)), [f"k = {k}" for k in ks])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_title(f"How clusters split from one k to the next ({n} tiles)")
    return fig


def _band(ax: Axes, x0: float, x1: float, y0: float, y1: float, width: float, colour: np.ndarray) -> None:
    """A smooth band of one width from (x0, y0) to (x1, y1), its lower corners."""
    x = np.linspace(0, 1, 30)
    rise = y0 + (y1 - y0) * (3 * x**2 - 2 * x**3)
    ax.fill_between(x0 + (x1 - x0) * x, rise, rise + width, color=colour, alpha=0.45, linewidth=0)


def figure_4_tiles(n_test: int) -> np.ndarray:
    """Which test tiles Figure 4 shows: the published five where there are so many, otherwise five evenly spaced."""
    if n_test > max(FIGURE_4_PUBLISHED):
        return np.array(FIGURE_4_PUBLISHED)
    return evenly_spaced(n_test, 5)


def show_pairs(
    left: Tensor, right: Tensor, captions: Sequence[str], title: str, columns: int = 5, mpp: float | None = None
) -> Figure:
    """Pairs of uint8 tiles (N, 3, H, W) side by side, left | right, each below its caption.

    mpp: microns per pixel, for a scale bar below the last pair; None: not known.
    """
    rows = -(-len(captions) // columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(2.4 * columns, 1.5 * rows + 0.4), squeeze=False, layout="constrained"
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, a, b, caption in zip(axes.flat, left, right, captions, strict=False):
        grid = tile_grid(torch.stack([a, b]), 2)
        ax.imshow(grid)
        ax.set_title(literal(caption), size="small")
    _draw_scale_bar(axes.flat[len(captions) - 1], grid.shape, left.shape[3], mpp)
    fig.suptitle(literal(title), size="medium")
    return fig
