"""Letters of any script in pictures: from a font that is installed, or else as their codes."""

import matplotlib.pyplot as plt
from matplotlib.font_manager import FontProperties, findfont, get_font

FONTS = (  # of systems, for letters that matplotlib's own font lacks
    "Noto Sans CJK JP", "Noto Sans CJK SC", "IPAexGothic", "Hiragino Sans", "PingFang SC", "Yu Gothic", "MS Gothic",
    "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS", "Noto Sans Devanagari", "Nirmala UI", "Noto Sans Thai",
    "Leelawadee UI",
)  # fmt: skip


def readable(text: str) -> str:
    """The text as pictures can show it: letters that no font has become their codes, such as \\u6a19.

    Adds to matplotlib's fonts those of FONTS that are installed, where the text needs them.
    """
    families = plt.rcParams["font.family"]
    if _without_glyph(text, families):
        families = plt.rcParams["font.family"] = list(dict.fromkeys([*families, *filter(_is_installed, FONTS)]))
    missing = _without_glyph(text, families)
    codes = {c: " " if c.isspace() else c.encode("unicode_escape").decode() for c in missing}
    return "".join(codes.get(c, c) for c in text)


def literal(text: str) -> str:
    """`readable`, where matplotlib looks for formulas: a $ would begin one."""
    return readable(text).replace("$", r"\$")


def _without_glyph(text: str, families: list[str]) -> set[str]:
    """The letters of a text that none of the fonts has."""
    missing = {c for c in text if not (c.isascii() and (c.isprintable() or c == "\n"))}
    for family in families if missing else ():
        font = get_font(findfont(FontProperties(family=[family])))
        missing = {c for c in missing if not font.get_char_index(ord(c))}
    return missing


def _is_installed(family: str) -> bool:
    try:
        findfont(FontProperties(family=[family]), fallback_to_default=False)
    except ValueError:
        return False
    return True
