"""The form in which a reader names clusters: plain widgets, each change saved at once."""

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets

from pfiles.errors import InputError
from pfiles.names import MARKS, Entry, ReaderNames
from pfiles.reporting import atlas

SIDES = {"small tiles": 48, "medium tiles": 72, "large tiles": 128}  # pixels on the screen
SAVED = "saved"


def form(rows: Sequence[atlas.Row], reading: ReaderNames) -> widgets.VBox:
    """The rows of the atlas, each with fields for what this reader says of the cluster; nobody else's names are shown.

    What is typed is in the reader's file at once, or a sentence beside the field says why it is not.
    """

    def show_all() -> None:
        for fields in all_fields:
            fields.show()

    head = _Head(reading, show_all)
    all_fields = [_Fields(row.number, reading, head.show) for row in rows]
    pictures = atlas.pictures(rows)
    bodies = [widgets.HTML(f'<div class="atlas">{atlas.row_html(row, pictures[row.number])}</div>') for row in rows]
    return widgets.VBox(
        [head.box, *(part for f, body in zip(all_fields, bodies, strict=True) for part in (f.box, body))]
    )


class _Head:
    """What stands above the rows: how far the reader is, how large the tiles are, and tables in and out."""

    def __init__(self, reading: ReaderNames, show_all: Callable[[], Any]):
        self.reading, self.show_all = reading, show_all
        self.style, self.message = widgets.HTML(), widgets.Label()
        self.progress = widgets.HTML(layout={"margin": "0 2em 0 0"})
        self.side = widgets.ToggleButtons(options=SIDES, value=72, style={"button_width": "9.5em"})
        write = widgets.Button(description="Write CSV", tooltip="A table for a spreadsheet, beside the file of names")
        self.upload = widgets.FileUpload(accept=".csv", description="Read CSV")
        self.side.observe(self._show_side, "value")
        self.upload.observe(self._read, "value")
        write.on_click(lambda _: self._try(lambda: f"Written: {reading.write_csv()}"))
        line = widgets.HBox([self.progress, self.side, write, self.upload], layout={"flex_flow": "row wrap"})
        self.box = widgets.VBox([self.style, line, self.message])
        self._show_side()
        self.show()

    def show(self) -> None:
        done = len(self.reading.names)
        self.progress.value = f"<b>{done} of {len(self.reading.entries)}</b> clusters have a name"

    def _show_side(self, _: Any = None) -> None:
        size = f".atlas .body {{ --tile: {self.side.value}px !important }}" * (self.side.value != 72)
        self.style.value = f"<style>{atlas.style()}{size}</style>"

    def _read(self, change: Any) -> None:
        if not change.new:
            return

        def read() -> str:
            self.reading.read_csv(bytes(change.new[0]["content"]))
            return f"Read {change.new[0]['name']}, and {SAVED}"

        self._try(read)
        self.upload.value = ()
        self.show_all()
        self.show()

    def _try(self, action: Callable[[], str]) -> None:
        try:
            self.message.value = action()
        except (InputError, OSError) as error:
            self.message.value = str(error)


class _Fields:
    """What a reader fills in for one cluster."""

    def __init__(self, number: int, reading: ReaderNames, saved: Callable[[], None]):
        self.number, self.reading, self.saved = number, reading, saved
        alone = [("stands alone", 0), *((f"same as {n}", n) for n in reading.entries if n != number)]
        self.fields = {
            "name": widgets.Text(placeholder="name", layout={"width": "17em"}),
            "mark": widgets.ToggleButtons(
                options=[("not judged", ""), *((mark, mark) for mark in MARKS)], style={"button_width": "7.5em"}
            ),
            "same_as": widgets.Dropdown(options=alone, layout={"width": "9em"}),
            "note": widgets.Textarea(placeholder="note", rows=1, layout={"width": "20em"}),
        }
        self.message = widgets.Label()
        title = widgets.HTML(f"<b style='font-size: 17px'>{number}</b>", layout={"width": "2em"})
        self.box = widgets.HBox(
            [title, *self.fields.values(), self.message],
            layout={"flex_flow": "row wrap", "align_items": "center", "border_top": "1px solid rgba(128,128,128,.4)",
                    "padding": "1em 0 .3em", "margin": "1em 0 0"},
        )  # fmt: skip
        self.show()
        for field in self.fields.values():
            field.observe(self._save, "value")

    def show(self) -> None:
        """The fields as they are saved."""
        entry = self.reading.entries[self.number]
        self.showing = True
        for name, field in self.fields.items():
            value = getattr(entry, name)
            field.value = 0 if value is None else value  # a list of choices shows nothing for None
        self.showing = False
        self.message.value = SAVED if entry != Entry() else ""

    def _save(self, change: Any) -> None:
        if self.showing:
            return
        name = next(name for name, field in self.fields.items() if field is change.owner)
        try:
            self.reading.save({self.number: {name: None if change.new == 0 else change.new}})
            self.message.value = SAVED
        except (InputError, OSError) as error:
            self.message.value = f"Not saved. {error}"
        self.saved()
