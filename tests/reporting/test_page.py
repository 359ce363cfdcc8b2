"""Sections of a report: shown in a notebook, written whole or not at all."""

import numpy as np
import pandas as pd
import pytest

from pfiles.reporting import figures, page


def test_a_report_that_fails_leaves_no_file(tmp_path, monkeypatch):
    sections = [page.Section("A <b>", ["x & y"], [pd.DataFrame({"v": [1.5, np.nan]}, index=["a", "b"])])]
    page.write_report(sections, tmp_path, {"real": "a"})
    written = (tmp_path / "evaluation.html").read_text()
    assert "A &lt;b&gt;" in written
    assert "x &amp; y" in written
    assert "1.5" in page.as_text(sections)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="JSON"):
        page.write_report(sections, tmp_path, {"real": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_section_is_shown_in_a_notebook(monkeypatch, capsys):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    figure = figures.plot_sizes([1, 2], "", "", "")
    table = pd.DataFrame({"v": [1.5]}, index=["a"])
    page.show(page.Section("Title", ["A sentence."], [table], [figure]))
    assert capsys.readouterr().out.startswith("Title\n-----\nA sentence.\n")
    assert shown[0] is figure  # pictures before tables
    assert shown[1].to_dict() == {"v": {"a": "1.5"}}
    assert not figures.plt.fignum_exists(figure.number)  # nor shown again


def test_scores_of_sections_are_one_entry():
    sections = [
        page.Section("a", [], scores={"x": 1, "details": {"one": 2}}),
        page.Section("b", []),
        page.Section("c", [], scores={"y": 3, "details": {"two": 4}}),
    ]
    assert page.all_scores(*sections) == {"x": 1, "y": 3, "details": {"one": 2, "two": 4}}
    assert page.all_scores(sections[1]) == {}
