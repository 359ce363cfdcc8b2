"""Letters that no font has are written by their codes; letters of an installed font stay as they are."""

import matplotlib.pyplot as plt
import pytest

from pfiles.reporting import lettering
from pfiles.reporting.lettering import literal, readable


@pytest.fixture(autouse=True)
def bare_fonts(monkeypatch):
    monkeypatch.setattr(lettering, "FONTS", ())
    with plt.rc_context({"font.family": ["DejaVu Sans"]}):
        yield


@pytest.mark.parametrize(
    ("text", "letters"),
    [("標本 1", r"\u6a19\u672c 1"), ("é Ω ж ב $x$ \\", "é Ω ж ב $x$ \\"), ("a\u3000b\tc\nd", "a b c\nd"),
     ("\U00020bb7", r"\U00020bb7")],
)  # fmt: skip
def test_letters_without_a_font_are_shown_as_codes(text, letters):
    assert readable(text) == letters
    assert literal(text) == letters.replace("$", r"\$")
    assert plt.rcParams["font.family"] == ["DejaVu Sans"]


def test_an_installed_font_lends_its_letters(monkeypatch):
    monkeypatch.setattr(lettering, "FONTS", ("no such font", "STIXGeneral"))  # the latter comes with matplotlib
    assert readable("\u1d81 標") == "\u1d81 \\u6a19"
    assert plt.rcParams["font.family"] == ["DejaVu Sans", "STIXGeneral"]
