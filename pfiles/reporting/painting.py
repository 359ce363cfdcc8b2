"""A layout that is painted in a notebook, and the field that is drawn for it.

Plain widgets, each click saved at once, or text where there are none.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from pfiles.drawing.layout import GLASS_WORD
from pfiles.errors import InputError
from pfiles.paths import atomic_write
from pfiles.reporting import maps
from pfiles.reporting.figures import draw_bar_inside
from pfiles.spreadsheet import as_csv, read_grid

LONGEST = 10.0  # inches of the longer side of a field's picture


def start(path: Path, rows: int, columns: int, clusters: int, text: str | None = None) -> None:
    """Write a layout to the CSV `path`: that of `text`; or, where there is no file yet, two clusters side by side.

    text: rows on lines of their own or behind a slash, cells behind commas, such as "1,1,2 / 1,2,2".
    """
    if text is None and path.exists():
        return
    if text is not None:
        grid = [
            [cell.strip() for cell in row.split(",")] for row in text.replace("/", "\n").splitlines() if row.strip()
        ]
        if len({len(row) for row in grid}) != 1:
            raise InputError(f"A grid must have as many cells in each row, but got {text!r}.")
    elif 1 <= rows <= 16 and 1 <= columns <= 16:
        grid = [["1" if 2 * column < columns else str(min(2, clusters)) for column in range(columns)]] * rows
    else:
        raise InputError(f"A grid to paint has 1 to 16 rows and columns, but {rows} x {columns} were asked.")
    _save(path, grid)


def form(path: Path, labels: Sequence[str]) -> widgets.VBox:
    """The cells of the layout `path` as buttons: choose a cluster, click where it shall lie.

    labels: of the clusters, the first that of cluster 1. What is clicked is in the file at once.
    """
    grid = read_grid(path)
    brushes = [(label, str(i)) for i, label in enumerate(labels, start=1)]
    brush = widgets.Dropdown(options=[*brushes, (GLASS_WORD, GLASS_WORD)], description="paint")
    buttons = [[widgets.Button(layout={"width": "5em", "height": "3em"}) for _ in row] for row in grid]
    message = widgets.Label()

    def show(row: int, column: int) -> None:
        button, cell = buttons[row][column], grid[row][column]
        button.description = cell
        colour = maps.colour(int(cell) - 1) if cell.isdecimal() else "#f0f0f0"
        red, green, blue = to_rgb(colour)
        button.style.button_color = colour
        button.style.text_color = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.45 else "white"

    def paint(row: int, column: int, _: Any = None) -> None:
        grid[row][column] = brush.value
        try:
            _save(path, grid)
            message.value = "saved"
        except OSError as error:
            message.value = f"Not saved. {error}"
        show(row, column)

    for row, line in enumerate(buttons):
        for column, button in enumerate(line):
            show(row, column)
            button.on_click(lambda _, row=row, column=column: paint(row, column))
    return widgets.VBox([brush, *(widgets.HBox(line) for line in buttons), message])


def show(field: Tensor, title: str, mpp: float | None = None) -> Figure:
    """A field, uint8 (3, H, W), with a bar of a round length where its scale is known."""
    height, width = field.shape[1:]
    inches = LONGEST / max(height, width)
    figure, ax = plt.subplots(figsize=(inches * width, inches * height), layout="constrained")
    ax.imshow(field.permute(1, 2, 0).numpy())
    ax.set_title(title)
    ax.set_axis_off()
    draw_bar_inside(ax, width, mpp)
    return figure


def _save(path: Path, grid: Sequence[Sequence[str]]) -> None:
    content = as_csv(pd.DataFrame(grid)).split(b"\n", 1)[1]  # without a line of titles
    with atomic_write(path) as file:
        file.write(content)
