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

    displays = []
    monkeypatch.setattr(IPython.display, "display", displays.append)
    figure = figures.plot_sizes([1, 2], "", "", "")
    table = pd.DataFrame({"v": [1.5]}, index=["a"])
    page.show(page.Section("Title", ["A sentence.", "tissue " * 20], [table], [figure]))
    lines = " ".join(["tissue"] * 14), " ".join(["tissue"] * 6)  # no word is broken
    assert capsys.readouterr().out.startswith("Title\n-----\nA sentence.\n" + "\n".join(lines) + "\n")
    assert displays[0] is figure  # pictures before tables
    assert displays[1].to_dict() == {"v": {"a": "1.5"}}
    assert not figures.plt.fignum_exists(figure.number)  # nor shown again


def test_names_in_a_notebooks_table_are_text(monkeypatch):
    """Jupyter reads a table's text between two $ as a formula, unless the table says that it has none."""
    import IPython.display

    written = []
    monkeypatch.setattr(IPython.display, "display", lambda table: written.append(table._repr_html_()))
    page.show(page.Section("Title", [], [pd.DataFrame({"v": [1.5]}, index=["$x$ <b>"])]))
    assert "$x$ &lt;b&gt;" in written[0]
    assert "tex2jax_ignore" in written[0]


def test_scores_are_shown_with_five_digits_and_what_is_of_no_use(capsys):
    page.show_scores({"psnr_db": 16.123456789, "psnr_flat_colour_db": 18.3, "codes_used": 18})
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["psnr db: 16.123", "psnr flat colour db: 18.3", "codes used: 18", ""]
    assert lines[4].startswith("Of no use yet: Reconstructions (16.1 dB) are no better than one flat colour")
    assert max(map(len, lines)) <= 100


def test_scores_of_sections_are_one_entry():
    sections = [
        page.Section("a", [], scores={"x": 1, "details": {"one": 2}}),
        page.Section("b", []),
        page.Section("c", [], scores={"y": 3, "details": {"two": 4}}),
    ]
    assert page.all_scores(*sections) == {"x": 1, "y": 3, "details": {"one": 2, "two": 4}}
    assert page.all_scores(sections[1]) == {}
