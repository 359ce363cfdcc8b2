"""A layout that is painted in a notebook: plain widgets, each click saved at once, or text where there are none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd

from pfiles.errors import InputError
from pfiles.paths import atomic_write
from pfiles.reporting import maps
from pfiles.spreadsheet import as_csv, read_grid


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
    brush = widgets.Dropdown(options=[(label, str(i)) for i, label in enumerate(labels, start=1)], description="paint")
    buttons = [[widgets.Button(layout={"width": "5em", "height": "3em"}) for _ in row] for row in grid]
    message = widgets.Label()

    def show(row: int, column: int) -> None:
        button, cell = buttons[row][column], grid[row][column]
        button.description = cell
        if cell.isdecimal():
            button.style.button_color = maps.colour(int(cell) - 1)

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


def _save(path: Path, grid: Sequence[Sequence[str]]) -> None:
    content = as_csv(pd.DataFrame(grid)).split(b"\n", 1)[1]  # without a line of titles
    with atomic_write(path) as file:
        file.write(content)
