"""The pictures hold the tiles they should, in their places."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from PIL import Image
from torchvision.utils import make_grid

from pfiles.measuring import stability
from pfiles.paths import Paths
from pfiles.reporting import figures
from pfiles.reporting.sections import condition
from pfiles.tiles.pixels import as_array


def test_tile_grid_is_row_by_row_with_black_borders():
    images = torch.arange(1, 6, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 4, 4) * 40
    grid = figures.tile_grid(images, columns=3)
    assert grid.shape == (2 * 4 + 3 * 2, 3 * 4 + 4 * 2, 3)
    centres = grid[4::6, 4::6, 0]
    assert centres.tolist() == [[40, 80, 120], [160, 200, 255]]  # the last place is filled up with white
    assert (grid[:2] == 0).all()
    assert (grid[:, -2:] == 0).all()
    whole = torch.cat([images, images.new_full((1, 3, 4, 4), 255)])
    assert (grid == make_grid(whole, nrow=3, padding=2).permute(1, 2, 0).numpy()).all()


def test_saved_figures_are_readable_and_whole(tmp_path):
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    path = tmp_path / "Figures" / "Figure 1" / "a.jpg"
    figures.save_figure(figures.show_tiles(images, columns=4, title="Original", rows=["Cluster 1"]), path)
    assert np.asarray(Image.open(path)).ndim == 3
    assert [p.name for p in path.parent.iterdir()] == ["a.jpg"]


def test_a_cluster_without_tiles_has_a_white_row():
    two, none = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, 3, 8, 8, dtype=torch.uint8)
    figure = figures.cluster_sheet([two, none], [two, two], ("left", "right"))
    pictures = [ax.images[0].get_array() for ax in figure.axes]  # row by row
    assert len({picture.shape for picture in pictures}) == 1
    tiles = [picture[2:10, 2:10] for picture in pictures]
    assert [(tile == 255).all() for tile in tiles] == [False, False, True, False]


def test_names_stand_beside_the_numbers(tmp_path):
    """A name is text, also one that matplotlib would read as a formula."""
    names = {1: r"$\frac$", 2: "stratified squamous epithelium"}
    two = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    sheet = figures.cluster_sheet([two] * 3, [two] * 3, ("left", "right"), names)
    labels = [text.get_text() for ax in sheet.axes for text in ax.texts]
    assert labels == [r"1 \$\frac\$", "2 stratified\nsquamous\nepithelium", "3"]
    figures.save_figure(sheet, tmp_path / "sheet.png", dpi=50)
    bars = figures.plot_sizes([1, 2, 3], "title", "x", "y", {3: "a $ and a $"})
    assert [tick.get_text() for tick in bars.axes[0].get_xticklabels()] == ["1", "2", r"3 a \$ and a \$"]
    figures.save_figure(bars, tmp_path / "bars.png", dpi=50)
    matrix = condition.plot_confusion(np.eye(3, dtype=int), "title", {2: "keratin"})
    assert [tick.get_text() for tick in matrix.axes[0].get_yticklabels()] == ["1", "2 keratin", "3"]
    plt.close("all")


def test_the_ticks_of_a_training_of_one_epoch_are_whole():
    figure = figures.plot_history([{"epoch": 1, "mse": 0.5}], "title")
    figure.canvas.draw()
    low, high = figure.axes[0].get_xlim()
    ticks = [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high]
    assert ticks == [1]


def test_history_plots_every_term_and_its_reference():
    history = [{"epoch": 1, "mse": 1.0, "seconds": 3}, {"epoch": 2, "mse": 0.5, "adversarial": 0.2, "seconds": 3}]
    figure = figures.plot_history(history, "title", {"mse": 1.0})
    plots = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in plots] == ["mse", "adversarial"]
    assert [len(ax.lines) for ax in plots] == [2, 1]
    assert plots[1].lines[0].get_xydata().tolist() == [[2, 0.2]]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_figure_too_large_for_its_file_gets_fewer_dots(suffix, tmp_path):
    """A sheet of 400 clusters is 240 inches high: 72,000 px at 300 dots per inch, of which a JPEG holds 65,500."""
    figure = plt.figure(figsize=(0.02, 240))
    figure.add_axes((0, 0, 1, 1), xticks=[], yticks=[])
    figures.save_figure(figure, tmp_path / f"sheet.{suffix}")
    with Image.open(tmp_path / f"sheet.{suffix}") as image:
        assert 64000 < image.height <= 65500
    plt.close(figure)


def test_figure_4_tiles():
    assert figures.figure_4_tiles(1000).tolist() == [691, 755, 467, 733, 979]
    assert figures.figure_4_tiles(9).tolist() == [0, 2, 4, 6, 8]


def test_the_flow_shows_every_tile():
    """The bars of each column are its clusters' tiles; the bands between two columns hold every tile once."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 3, 60)
    clusters = {3: coarse, 4: np.where(rng.random(60) < 0.3, 3, coarse), 5: rng.integers(0, 4, 60)}  # one stays empty
    ax = figures.plot_flow(clusters).axes[0]
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    for column, cluster_ids in enumerate(clusters.values()):
        heights = sorted(bar.get_height() for bar in bars if round(bar.get_x() + bar.get_width() / 2) == column)
        assert heights == sorted(np.unique(cluster_ids, return_counts=True)[1])
    pairs = [stability.contingency(clusters[k], clusters[k + 1]) for k in (3, 4)]
    assert len(ax.collections) == sum((table > 0).sum() for table in pairs)
    widths = []
    for band in ax.collections:
        [path] = band.get_paths()
        left = path.vertices[path.vertices[:, 0] == path.vertices[:, 0].min()]
        widths.append(np.ptp(left[:, 1]))
    assert sum(widths) == pytest.approx(2 * 60)


def test_pairs_are_shown_side_by_side(planted):
    tiles = planted[:7]
    figure = figures.show_pairs(tiles, tiles.flip(0), [str(i) for i in range(7)], "title")
    plots = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in plots] == [str(i) for i in range(7)]
    grid = plots[0].images[0].get_array()
    both = as_array(planted[[0, 6]])
    np.testing.assert_array_equal(grid[2:66, 2:66], both[0])
    np.testing.assert_array_equal(grid[2:66, 68:132], both[1])


def test_labels_of_tiles_are_text_and_the_scale_bar_has_a_round_length():
    """Of tiles of 32 px at 2 microns a pixel, 64 microns, the longest round length is 50: 25 px."""
    images = torch.full((6, 3, 32, 32), 7, dtype=torch.uint8)
    figure = figures.show_tiles(images, 3, "a $ and a $", rows=["1 $x$", "2"], tops=["3 squamous epithelium"], mpp=2)
    (ax,) = figure.axes
    assert ax.get_title() == r"a \$ and a \$"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [r"1 \$x\$", "2"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["3 squamous\nepithelium"]
    (bar,), (length,) = ax.lines, ax.texts
    assert length.get_text() == "50 µm"
    assert np.ptp(bar.get_xdata()) == 25
    assert bar.get_ydata()[0] > ax.images[0].get_array().shape[0]  # below the tiles, over none
    assert not figures.show_tiles(images, 3).axes[0].lines
    sheet = figures.cluster_sheet([images], [images], ("left", "right"), mpp=0.5)
    assert {text.get_text() for ax in sheet.axes for text in ax.texts} == {"10 µm", "1"}
    pairs = figures.show_pairs(images, images, ["$a", "b$"], "$", mpp=0.5)
    assert [ax.get_title() for ax in pairs.axes[:2]] == [r"\$a", r"b\$"]
    assert [text.get_text() for ax in pairs.axes for text in ax.texts] == ["10 µm"]
    plt.close("all")


# the side of a tile: the bar, both in microns
SCALES = {64: 50, 50: 50, 49: 20, 128: 100, 10: 10, 0.3: 0.2, 1000: 1000}


@pytest.mark.parametrize("side", SCALES)
def test_the_scale_bar_is_the_longest_round_length_within_a_tile(side):
    assert figures.scale_bar_length(side) == pytest.approx(SCALES[side])


def test_rows_of_fewer_tiles_are_filled_with_white():
    tiles = torch.zeros(12, 3, 8, 8, dtype=torch.uint8)
    figure = figures.show_rows([tiles, tiles[:2], tiles[:0]], ["1", "2", "3"])
    grid = figure.axes[0].images[0].get_array()
    white = (grid[3::10, 3::10] == 255).all(axis=2)
    assert white.tolist() == [[False] * 10, [False] * 2 + [True] * 8, [True] * 10]
    plt.close(figure)


def test_panels_become_one_sheet_once_all_are_there(tmp_path):
    paths = Paths(3, tmp_path)
    grey = {"a": 0, "b": 60, "c": 120, "d": 180}
    for letter, level in grey.items():
        assert not figures.save_figure_4(paths)
        path = paths.figure(4, f"{letter}_k3")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (400 if letter == "d" else 200, 100), (level,) * 3).save(path)
    assert figures.save_figure_4(paths)
    sheet = np.asarray(Image.open(paths.figure(4, "sheet_k3")).convert("L")).astype(int)
    middle = sheet[:, 200], sheet[:, 630]  # the columns of a, c and of b, d; all are as wide as the widest
    for column, levels in zip(middle, ((0, 120), (60, 180)), strict=True):
        assert all((abs(column - level) < 4).sum() >= 90 for level in levels)
    assert sheet.shape[1] == 2 * (400 + 30)
    assert (sheet[:75, :75] < 100).any()  # the letter
    assert not [*tmp_path.rglob("*.tmp*")]
