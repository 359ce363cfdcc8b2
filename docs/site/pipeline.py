"""Draws docs/pipeline.svg, the diagram of the pipeline: python docs/site/pipeline.py

Boxes bring their own background and words beside them are of a middle grey, so that it reads on white and on dark.
"""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

DOCS = Path(__file__).resolve().parents[1]
SHEET = DOCS.parent / "weights" / "starter" / "sheet.jpg"
GREY, BLUE, GREEN, CLUSTERS = "#7d8590", "#3b6ea8", "#3f7d58", ("#8a5fb0", "#d07a4b", "#3f8f8f")
ROWS = (2, 7, 0)  # of the sheet, from 0: the clusters that are shown
REAL_X, GENERATED_X, FIRST_Y, STEP_X, STEP_Y, SIDE = 55, 715, 51, 118.75, 126.6, 114  # where its tiles lie, px


def tile(x: float, y: float, side: float, row: int, column: int, left: float) -> str:
    """A tile of the starter's sheet."""
    corner = np.round([left + column * STEP_X, FIRST_Y + row * STEP_Y]).astype(int)
    data = io.BytesIO()
    cut = Image.open(SHEET).crop((*corner, *(corner + SIDE)))
    cut.thumbnail((2 * side, 2 * side))  # as sharp as a dense screen shows it
    cut.save(data, "JPEG", quality=85)
    code = base64.b64encode(data.getvalue()).decode()
    return f'<image x="{x}" y="{y}" width="{side}" height="{side}" href="data:image/jpeg;base64,{code}"/>'


def squares(x: float, y: float, side: float, colours: list[str]) -> str:
    """A grid of coloured squares, as many in a row as there are rows."""
    n = round(len(colours) ** 0.5)
    cell = side / n
    return "".join(
        f'<rect x="{x + i % n * cell:.1f}" y="{y + i // n * cell:.1f}" width="{cell:.1f}" height="{cell:.1f}" '
        f'fill="{colour}"/>'
        for i, colour in enumerate(colours)
    )


def words(x: float, y: float, *lines: str, size: int = 13, colour: str = GREY, weight: str = "normal") -> str:
    """Centred lines, the first at y."""
    return "".join(
        f'<text x="{x}" y="{y + 1.3 * size * i:.1f}" font-size="{size}" fill="{colour}" font-weight="{weight}" '
        f'text-anchor="middle">{line}</text>'
        for i, line in enumerate(lines)
    )


def box(x: float, y: float, width: float, height: float, colour: str, title: str, *lines: str) -> str:
    middle = y + height / 2 + 5 - 8.5 * len(lines)
    frame = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{colour}"/>'
    title = words(x + width / 2, middle, title, size=15, colour="white", weight="bold")
    return frame + title + words(x + width / 2, middle + 19, *lines, colour="white")


def arrow(*points: tuple[float, float]) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{GREY}" stroke-width="2.5" marker-end="url(#head)"/>'


def diagram() -> str:
    rng = np.random.default_rng(765)
    codes = [f"hsl({250 + rng.integers(90)} 45% {45 + rng.integers(35)}%)" for _ in range(64)]
    noise = [f"hsl({rng.integers(360)} 10% {20 + rng.integers(65)}%)" for _ in range(256)]
    parts = [
        # learning: tiles -> codes -> clusters
        words(36, 84, "learn", size=15, weight="bold"),
        *(tile(80 + 49 * (i % 2), 30 + 49 * (i // 2), 47, (2, 0, 7, 3)[i], i, REAL_X) for i in range(4)),
        words(128, 146, "tiles, no labels"),
        arrow((186, 78), (218, 78)),
        box(224, 46, 130, 64, BLUE, "VQ-GAN", "encoder"),
        words(289, 128, "train_autoencoder", size=12),
        arrow((358, 78), (388, 78)),
        squares(396, 30, 96, codes),
        words(444, 146, "codes"),
        arrow((500, 78), (530, 78)),
        box(536, 46, 150, 64, GREEN, "clusters", "k-means or classifier"),
        words(611, 128, "part_1", size=12),
        arrow((690, 78), (720, 78)),
    ]
    for i, (row, colour) in enumerate(zip(ROWS, CLUSTERS, strict=True)):
        y = 20 + 39 * i
        parts += [f'<rect x="728" y="{y}" width="166" height="35" rx="4" fill="{colour}"/>']
        parts += [words(742, y + 23, str(row + 1), size=14, colour="white", weight="bold")]
        parts += [tile(757 + 34 * j, y + 2, 31, row, j, REAL_X) for j in range(4)]
    parts += [
        words(811, 152, "similar tiles lie together"),
        # drawing: noise -> UNet -> latent -> tiles of a cluster
        words(36, 254, "draw", size=15, weight="bold"),
        squares(80, 200, 96, noise),
        words(128, 316, "noise"),
        arrow((186, 248), (218, 248)),
        box(224, 210, 268, 76, BLUE, "UNet", "removes noise in 25 to 1000 steps,", "conditioned on a cluster"),
        words(358, 304, "part_1, part_2, part_3", size=12),
        arrow((811, 160), (811, 178), (358, 178), (358, 204)),
        words(585, 172, "a cluster, by number or name"),
        arrow((496, 248), (530, 248)),
        box(536, 216, 150, 64, BLUE, "VQ-GAN", "decoder"),
        arrow((690, 248), (720, 248)),
        f'<rect x="728" y="196" width="166" height="104" rx="4" fill="{CLUSTERS[0]}"/>',
        *(tile(732 + 80 * i, 209, 78, ROWS[0], i, GENERATED_X) for i in range(2)),
        words(811, 318, "new tiles of that cluster"),
        words(611, 304, "part_6, draw", size=12),
        words(
            480, 350, "then: numbers with controls, a search for copies, an atlas for pathologists, maps on slides",
            size=14,
        ),
    ]  # fmt: skip
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 910 364" font-family="Helvetica, Arial, sans-serif">\n'
        "<title>From tiles to codes, clusters and new tiles</title>\n"
        f'<defs><marker id="head" viewBox="0 0 10 10" refX="6" refY="5" markerWidth="5" markerHeight="5" orient="auto">'
        f'<path d="M0,0 L10,5 L0,10 z" fill="{GREY}"/></marker></defs>\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    (DOCS / "pipeline.svg").write_text(diagram())
