"""Thirteen small slides to try docs/slides.md on, cut from the one that ships with the project.

    python -m experiments.slides --out .

Writes slides/skin_01.tiff to skin_12.tiff, two of each of six patients that are made up, new_slide.tiff, and
slides.csv, which says whose they are. Each shows a part of the slide that no other shows, at 0.5 um/px.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from pfiles.errors import InputError, extra
from pfiles.paths import atomic_write, expand, refuse_foreign
from pfiles.spreadsheet import write_csv
from pfiles.tiles.builtin import SLIDE
from pfiles.tiles.readers import open_slide, read_rgb

ROWS, COLUMNS, SLIDES = 7, 2, 12  # of parts; the thirteenth is the new slide, and one is left over
LEFT, RIGHT = 700, 1900  # px, between which the slide is tissue
MPP, GLASS, MARGIN = 0.5, 243, 128  # um per pixel; levels; pixels around the tissue


def make_slides(out: Path) -> None:
    """Write them; InputError where files of these names are there."""
    refuse_foreign(out, ("slides", "new_slide.tiff", "slides.csv"), is_own=False)
    with open_slide(SLIDE) as slide:
        image = np.asarray(read_rgb(slide, 0, 0, 0, *slide.level_dimensions[0]))
    parts = [
        part for row in np.array_split(image[:, LEFT:RIGHT], ROWS) for part in np.array_split(row, COLUMNS, axis=1)
    ]
    names = [f"skin_{number:02}" for number in range(1, SLIDES + 1)]
    for name, part in zip(names, parts, strict=False):
        _write(out / "slides" / f"{name}.tiff", part)
    _write(out / "new_slide.tiff", parts[SLIDES])
    patients = [f"patient_{number // 2 + 1}" for number in range(SLIDES)]
    write_csv(out / "slides.csv", pd.DataFrame({"slide": names, "patient": patients}))


def _write(path: Path, tissue: np.ndarray) -> None:
    """A tiled TIFF of the tissue on glass, which tells its scale."""
    with extra("slides"):
        import tifffile
    image = np.pad(tissue, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), constant_values=GLASS)
    with atomic_write(path) as file:
        tifffile.imwrite(
            file, image, photometric="rgb", compression="deflate", tile=(128, 128), metadata=None,
            resolution=(1e4 / MPP, 1e4 / MPP), resolutionunit="CENTIMETER",
        )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.slides")
    parser.add_argument("--out", required=True, help="for slides/, new_slide.tiff and slides.csv")
    return parser


def main(arguments: list[str] | None = None) -> int:
    try:
        make_slides(expand(_parser().parse_args(arguments).out).absolute())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
