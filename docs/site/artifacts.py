"""Draws docs/artifacts.svg, what a run makes and out of what, from the table: python docs/site/artifacts.py

Each file stands one column to the right of the last one that it is made from. An arrow that others imply is left out.
"""

import re
from pathlib import Path

from pfiles.artifacts import ARTIFACTS

DOCS = Path(__file__).resolve().parents[1]
GREY, BLUE, GREEN = "#7d8590", "#3b6ea8", "#3f7d58"
WIDTH, HEIGHT, STEP_X, STEP_Y, MARGIN = 140, 50, 166, 68, 8
TILES = "tiles"  # what all is made from
PARENTS = {TILES: ()} | {artifact.name: artifact.made_from for artifact in ARTIFACTS}


def depth(name: str) -> int:
    """How many steps lie between the tiles and a file."""
    return max((1 + depth(parent) for parent in PARENTS[name]), default=0)


def ancestors(name: str) -> set[str]:
    return set(PARENTS[name]).union(*map(ancestors, PARENTS[name]))


def direct_parents(name: str) -> list[str]:
    """What a file is made from, without what its other parents are made from already."""
    return [p for p in PARENTS[name] if not any(p in ancestors(other) for other in PARENTS[name])]


def places() -> dict[str, tuple[int, int]]:
    """The upper left corner of each box, px."""
    rows: dict[int, int] = {}
    corners = {}
    for name in PARENTS:
        column = depth(name)
        corners[name] = (MARGIN + STEP_X * column, MARGIN + STEP_Y * rows.get(column, 0))
        rows[column] = rows.get(column, 0) + 1
    return corners


def box(x: int, y: int, title: str, notebook: str) -> str:
    """notebook: what makes it; "" for the tiles, which are given."""
    lines = [(title, 12, "bold"), *([(notebook, 10, "normal")] if notebook else [])]
    first = y + HEIGHT / 2 + 4 - 7.5 * (len(lines) - 1)
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="7" fill="{BLUE if notebook else GREEN}"/>'
        + "".join(
            f'<text x="{x + WIDTH / 2}" y="{first + 15 * i}" font-size="{size}" font-weight="{weight}" fill="white" '
            f'text-anchor="middle">{line}</text>'
            for i, (line, size, weight) in enumerate(lines)
        )
    )


def arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    """From the right side of one box to the left side of another."""
    x, y = start[0] + WIDTH, start[1] + HEIGHT // 2
    to_x, to_y = end[0] - 5, end[1] + HEIGHT // 2
    middle = to_x - (STEP_X - WIDTH) // 2
    return (
        f'<polyline points="{x},{y} {middle},{y} {middle},{to_y} {to_x},{to_y}" fill="none" stroke="{GREY}" '
        'stroke-width="2" marker-end="url(#head)"/>'
    )


def diagram() -> str:
    corners = places()
    notebooks = {artifact.name: re.match(r"part_\d+|.*", artifact.made_by)[0] for artifact in ARTIFACTS}
    arrows = [arrow(corners[parent], corners[name]) for name in PARENTS for parent in direct_parents(name)]
    boxes = [box(*corners[name], name, notebooks.get(name, "")) for name in PARENTS]
    width, height = (max(side) for side in zip(*corners.values(), strict=True))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + WIDTH + MARGIN} {height + HEIGHT + MARGIN}" '
        'font-family="Helvetica, Arial, sans-serif">\n<title>What a run makes, and out of what</title>\n'
        '<defs><marker id="head" viewBox="0 0 10 10" refX="6" refY="5" markerWidth="5" markerHeight="5" orient="auto">'
        f'<path d="M0,0 L10,5 L0,10 z" fill="{GREY}"/></marker></defs>\n' + "\n".join([*arrows, *boxes]) + "\n</svg>\n"
    )


if __name__ == "__main__":
    (DOCS / "artifacts.svg").write_text(diagram())
