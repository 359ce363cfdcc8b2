"""Tables of numbers as people and files want them."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pfiles.machine.locks import locked
from pfiles.paths import read_json, write_json
from pfiles.provenance import Provenance


def plain(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The rows of a table by name as plain values for JSON, without the empty ones."""
    rows = table.astype(object).to_dict("index")
    return {str(name): {key: _plain(v) for key, v in row.items() if not pd.isna(v)} for name, row in rows.items()}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def mark_best(table: pd.DataFrame, directions: Mapping[str, str]) -> pd.DataFrame:
    """The table as text with 5 decimals, a star at the best of several rows in each column ("higher" or "lower" is
    better)."""
    marked = table.map("{:.5f}".format)
    if len(table) < 2:
        return marked  # nothing to be better than
    for name, direction in directions.items():
        best = table[name].idxmax() if direction == "higher" else table[name].idxmin()
        marked.loc[best, name] += " *"
    return marked


def record(summary: Path, section: str, values: Mapping[str, Any], provenance: Provenance | None = None) -> None:
    """Put `values` (plain numbers, text, lists) under `section` of the run's summary file.

    provenance: of what they were measured on, kept in a file beside it, for `provenances` to give back.
    """
    with locked(summary.parent):
        write_json(summary, read_json(summary, {}) | {section: dict(values)})
        if provenance is not None and (note := provenance.as_note()):
            note |= {"sha256": _hash(values)}
            write_json(beside(summary), read_json(beside(summary), {}) | {section: note})


def provenances(summary: Path) -> dict[str, Provenance]:
    """The provenance of each section's numbers, where it is known; not of numbers that were replaced since."""
    recorded, notes = read_json(summary, {}), read_json(beside(summary), {})
    hashes = {name: _hash(values) for name, values in recorded.items()}
    return {
        name: Provenance.from_note(note)
        for name, note in notes.items()
        if isinstance(note, dict) and note.get("sha256") == hashes.get(name, 0)
    }


def beside(summary: Path) -> Path:
    return summary.with_name(f"{summary.stem}_identities.json")


def _hash(values: Mapping[str, Any]) -> str:
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
