"""A report of sentences, tables and figures: as text, as JSON, and as one HTML page that needs nothing else."""

import base64
import html
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pfiles.paths import read_json, refuse_foreign, write_json, write_text
from pfiles.reporting.doubts import doubts
from pfiles.reporting.tables import plain

WIDTH = 100  # letters of a line in a notebook
STYLE = """body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px }
img { max-width: 100%; display: block; margin: 1em 0 }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd } tbody th { text-align: left }"""


class Section(NamedTuple):
    """A part of a report: sentences, then figures, then tables.

    scores: what a run's summary keeps of it, in plain values; what is under "details" is not printed with a run.
    """

    title: str
    notes: Sequence[str]
    tables: Sequence[pd.DataFrame] = ()
    figures: Sequence[Figure] = ()
    scores: Mapping[str, Any] = MappingProxyType({})


def show(*sections: Section) -> None:
    """Sections in a notebook, where the cell that makes them stands."""
    from IPython.display import display

    for section in sections:
        print(section.title, "-" * len(section.title), *map(_wrapped, _sentences(section)), sep="\n")
        for figure in section.figures:
            display(figure)
            plt.close(figure)  # else the notebook shows it again at the end of the cell
        with pd.option_context("display.html.use_mathjax", False):  # a $ in a name begins no formula
            for table in section.tables:
                display(_formatted(table))
        print()


def show_scores(scores: Mapping[str, Any], n_clusters: int | None = None) -> None:
    """A notebook's numbers, a line each, and a sentence for each that says that the result is of no use."""
    for name, value in scores.items():
        print(f"{name.replace('_', ' ')}: {f'{value:.5g}' if isinstance(value, float) else value}")
    for sentence in doubts(scores, n_clusters):
        print(f"\n{_wrapped(f'Of no use yet: {sentence}')}")


def _wrapped(text: str) -> str:
    """For a notebook, which would break lines in the middle of words."""
    lines = text.splitlines()
    return "\n".join(textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False) for line in lines)


def _sentences(section: Section) -> list[str]:
    """The notes of a section, and that its result is of no use where it is."""
    return [*section.notes, *(f"Of no use yet: {sentence}" for sentence in doubts(section.scores))]


def all_scores(*sections: Section) -> dict[str, Any]:
    """The scores of several sections for one entry of a run's summary, their details together."""
    scores: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for section in sections:
        scores |= {name: value for name, value in section.scores.items() if name != "details"}
        details |= section.scores.get("details", {})
    return scores | ({"details": details} if details else {})


def as_text(sections: Sequence[Section]) -> str:
    """The report as text for a terminal."""
    parts = []
    for section in sections:
        parts += [f"{section.title}\n{'-' * len(section.title)}", *_sentences(section)]
        parts += [_formatted(table).to_string() for table in section.tables]
    return "\n\n".join(parts)


def refuse_other_report(folder: Path, name: str = "evaluation") -> None:
    """InputError if `folder` holds files of the names that `write_report` gives, which it did not write."""
    about = read_json(folder / f"{name}.json", {}).get("about")
    refuse_foreign(folder, (f"{name}.json", f"{name}.html"), isinstance(about, dict))


def write_report(
    sections: Sequence[Section],
    folder: Path,
    about: dict[str, Any],
    title: str = "Evaluation of generated images",
    name: str = "evaluation",
) -> tuple[Path, Path]:
    """Write `evaluation.json` and the self-contained `evaluation.html`, or others of that name, each whole or not at
    all.

    about: what was evaluated, in plain values.
    """
    contents = {
        section.title: {"notes": _sentences(section), "tables": [plain(table) for table in section.tables]}
        for section in sections
    }
    json_file, html_file = folder / f"{name}.json", folder / f"{name}.html"
    page = _page(sections, about, title)
    write_json(json_file, {"about": about, **contents})
    write_text(html_file, page)
    return json_file, html_file


def _page(sections: Sequence[Section], about: dict[str, Any], title: str) -> str:
    facts = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in about.items())
    body = [f"<h1>{html.escape(title)}</h1><table><tbody>{facts}</tbody></table>"]
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        body += [f"<p>{html.escape(note)}</p>" for note in _sentences(section)]
        body += [f'<img alt="{html.escape(section.title)}" src="{_as_data(figure)}">' for figure in section.figures]
        body += [_formatted(table).to_html(border=0) for table in section.tables]
    lines = "\n".join(body)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n{lines}\n</body></html>\n"
    )


def _formatted(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers as text of four digits; empty if there is none."""

    def text_of(value: Any) -> str:
        if isinstance(value, str):
            return value
        if pd.isna(value):
            return ""
        if isinstance(value, bool | np.bool_):
            return "yes" if value else "no"
        return f"{value:d}" if isinstance(value, int | np.integer) else f"{value:.4g}"

    return table.astype(object).map(text_of)


def _as_data(figure: Figure) -> str:
    """A figure as a data address that holds its PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
