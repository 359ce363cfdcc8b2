"""Tables of numbers as people and files want them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pfiles.machine.locks import locked
from pfiles.paths import read_json, write_json


def plain(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The rows of a table by name as plain values for JSON, without the empty ones."""
    rows = table.astype(object).to_dict("index")
    return {str(name): {key: _plain(v) for key, v in row.items() if not pd.isna(v)} for name, row in rows.items()}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def mark_best(table: pd.DataFrame, directions: Mapping[str, str]) -> pd.DataFrame:
    """The table as text with 5 decimals, a star at the best row of each column ("higher" or "lower" is better)."""
    marked = table.map("{:.5f}".format)
    if table.empty:
        return marked
    for name, direction in directions.items():
        best = table[name].idxmax() if direction == "higher" else table[name].idxmin()
        marked.loc[best, name] += " *"
    return marked


def record(summary: Path, section: str, values: Mapping[str, Any]) -> None:
    """Put `values` (plain numbers, text, lists) under `section` of the run's summary file."""
    with locked(summary.parent):
        write_json(summary, read_json(summary, {}) | {section: dict(values)})
