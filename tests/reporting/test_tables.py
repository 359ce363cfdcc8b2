"""Tables and the summary: plain values, marks, and what is kept."""

import json

import numpy as np
import pandas as pd

from pfiles.reporting import tables


def test_tables_become_plain_values():
    table = pd.DataFrame({"a": [1, np.nan], "b": [True, np.nan]}, index=["x", 3])
    assert tables.plain(table) == {"x": {"a": 1.0, "b": True}, "3": {}}
    json.dumps(tables.plain(table))


def test_the_best_of_each_column_is_marked():
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [0.5, 0.25]}, index=[10, 14])
    marked = tables.mark_best(table, {"a": "higher", "b": "lower"})
    assert marked.to_numpy().tolist() == [["1.00000", "0.50000"], ["2.00000 *", "0.25000 *"]]
    assert tables.mark_best(table[:0], {"a": "higher"}).empty
    assert tables.mark_best(table[:1], {"a": "higher", "b": "lower"}).to_numpy().tolist() == [["1.00000", "0.50000"]]


def test_summary_keeps_other_sections(tmp_path):
    tables.record(tmp_path / "s.json", "a", {"x": 1})
    tables.record(tmp_path / "s.json", "b", {"x": 2})
    tables.record(tmp_path / "s.json", "a", {"x": 3})
    assert tables.read_json(tmp_path / "s.json") == {"a": {"x": 3}, "b": {"x": 2}}
