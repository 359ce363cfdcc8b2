"""Thirteen small slides to try docs/slides.md on, cut from the one that ships with the project.

    python -m experiments.slides --out .

Writes slides/skin_01.tiff to skin_12.tiff, two of each of six patients that are made up, new_slide.tiff, and
slides.csv, which says whose they are. Each shows a part of the slide that no other shows, at 0.5 um/px.

    python -m experiments.slides --lung lung_he_5500.zip --out .

writes lung.tiff instead: test tiles of LC25000, laid out as three pieces of tissue. The zip holds tiles of 128 px in a
folder lung_he, and a table lung_he_labels.csv whose columns `file`, `tissue` and `split` say what each shows.
"""

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pfiles.errors import InputError, extra
from pfiles.paths import atomic_write, expand, refuse_foreign
from pfiles.spreadsheet import write_csv
from pfiles.tiles.builtin import SLIDE
from pfiles.tiles.readers import open_slide, read_rgb

ROWS, COLUMNS, SLIDES = 7, 2, 12  # of parts; the thirteenth is the new slide, and one is left over
LEFT, RIGHT = 700, 1900  # px, between which the slide is tissue
MPP, GLASS, MARGIN = 0.5, 243, 128  # um per pixel; levels; pixels around the tissue
PIECES = {  # of lung: the middle and half the width and height of an ellipse, in tiles
    "lung_n": (5.0, 3.0, 5.0, 2.6), "lung_aca": (4.6, 10.4, 4.6, 3.4), "lung_scc": (14.9, 6.4, 3.8, 5.4),
}  # fmt: skip
TILE, CELLS = 128, (14, 19)  # px; rows and columns of tiles


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


def make_lung_slide(archive: Path, out: Path) -> dict[str, list[tuple[int, int]]]:
    """Write lung.tiff; returns the rows and columns of each tissue's tiles. InputError where a file of its name is."""
    refuse_foreign(out, ("lung.tiff",), is_own=False)
    image, cells = np.full((CELLS[0] * TILE, CELLS[1] * TILE, 3), GLASS, np.uint8), {}
    with zipfile.ZipFile(archive) as file:
        labels = pd.read_csv(io.BytesIO(file.read("lung_he_labels.csv")))
        for tissue, (x, y, width, height) in PIECES.items():
            rows, columns = np.mgrid[: CELLS[0], : CELLS[1]] + 0.5
            inside = ((columns - x) / width) ** 2 + ((rows - y) / height) ** 2 < 1
            cells[tissue] = [(int(row), int(column)) for row, column in np.argwhere(inside)]
            files = labels.file[(labels.tissue == tissue) & (labels.split == "test")]
            for (row, column), tile in zip(cells[tissue], files, strict=False):
                pixels = np.asarray(Image.open(io.BytesIO(file.read(f"lung_he/{tile}"))).convert("RGB"))
                image[row * TILE :, column * TILE :][:TILE, :TILE] = pixels
    _write(out / "lung.tiff", image)
    return cells


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
    parser.add_argument("--out", required=True, help="for slides/, new_slide.tiff and slides.csv, or lung.tiff")
    parser.add_argument("--lung", metavar="ZIP", help="lung tiles of LC25000, from which to make lung.tiff alone")
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    out = expand(args.out).absolute()
    try:
        make_lung_slide(expand(args.lung), out) if args.lung else make_slides(out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
