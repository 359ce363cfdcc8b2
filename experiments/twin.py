"""The picture of a slide's twin: the slide, its clusters, the twin, and the clusters that are found on the twin.

    python -m experiments.twin --run DIR --out DIR [--slide FILE] [--region X Y W H] [--real DATA]

runs `python -m pfiles twin` for the slide, the embedded one if none is named, or for a region of it in pixels, unless
the twin is in the folder --out already, and writes twin.jpg beside it.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pfiles.__main__ import main as run_command
from pfiles.cli.options import open_generator
from pfiles.drawing.layout import GLASS, cells_of_tiles
from pfiles.fields import beside
from pfiles.paths import read_json
from pfiles.reporting import maps
from pfiles.reporting.field_report import crops
from pfiles.reporting.figures import draw_bar_inside, save_figure
from pfiles.spreadsheet import read_table
from pfiles.tiles.builtin import SLIDE
from pfiles.tiles.pyramid import write_pyramid
from pfiles.tiles.readers import open_slide, read_rgb
from pfiles.tiles.scale import scale_of
from pfiles.tiles.slides import Tiling
from pfiles.tiles.sources import TABLE, positions_of, read_tile_table
from pfiles.tiles.tiler import tile_slides


def main(arguments: list[str] | None = None) -> int:
    """Draw the twin if there is none yet, and its picture; the exit status is that of the command."""
    args = _parser().parse_args(arguments)
    twin, slide = args.out / "twin.tiff", args.slide
    with tempfile.TemporaryDirectory() as folder:
        if args.region:
            slide = cut(slide, args.region, Path(folder, "region.tiff"))
        if not twin.exists():
            real = [] if args.real is None else ["--real", args.real]
            status = run_command(["twin", "--slide", str(slide), "--run", args.folder, "--out", str(twin), *real])
            if status:
                return status
        figure = draw(slide, twin, args)
    save_figure(figure, args.out / "twin.jpg", dpi=120)
    print(f"{args.out / 'twin.jpg'}: {' '.join(read_json(beside(twin, 'report.json'), {})['said'][:3])}")
    return 0


def cut(slide: Path, region: list[int], path: Path) -> Path:
    """A region of a slide, x, y, width and height in pixels, as a slide of its own."""
    x, y, width, height = region
    with open_slide(slide) as reader:
        image = np.asarray(read_rgb(reader, x, y, 0, width, height))
        write_pyramid(
            path, lambda first, last: image[first:last], (width, height), scale_of(reader.properties, slide).mpp
        )
    return path


def draw(slide: Path, twin: Path, args: argparse.Namespace) -> Figure:
    """The four panels, over the part of the slide that has tiles."""
    generator, _ = open_generator(args, "twin")
    side, mpp = generator.settings.image_size_px, read_json(beside(twin, "json"), {})["mpp"]
    with tempfile.TemporaryDirectory() as folder:
        tile_slides([slide], Path(folder, "tiles"), Tiling(mpp, side), show_split=False)
        positions = positions_of(read_tile_table(Path(folder, "tiles", TABLE)))
    left, top = positions.x.min(), positions.y.min()
    with open_slide(slide) as reader:
        right, bottom = (positions.x + positions.side).max(), (positions.y + positions.side).max()
        pixels = np.asarray(read_rgb(reader, left, top, 0, right - left, bottom - top))
    table = read_table(beside(twin, "tiles.csv"))
    places, slide_ids = table[["x", "y"]].to_numpy(int), table["cluster"].to_numpy(int) - 1
    with open_slide(twin) as reader:
        width, height = reader.level_dimensions[0]
        pixels_of_twin = np.asarray(read_rgb(reader, 0, 0, 0, width, height))
        twin_ids = generator.assign(crops(reader, places, side)).cluster_ids.numpy()
    panels = {
        "A slide": pixels, "its clusters": coloured(places, side, slide_ids), "its twin, drawn": pixels_of_twin,
        "the twin's clusters": coloured(places, side, twin_ids),
    }  # fmt: skip
    figure, axes = plt.subplots(1, 4, figsize=(12, 2.93 * height / width + 0.55), layout="constrained")
    for ax, (words, image) in zip(axes, panels.items(), strict=True):
        ax.imshow(image, extent=(0, width, height, 0), interpolation="antialiased" if len(image) > 500 else "nearest")
        ax.set_title(words)
        ax.set_axis_off()
    draw_bar_inside(axes[0], width, mpp)
    handles = [Patch(facecolor=maps.colour(i), label=maps.title(i, generator.names)) for i in np.unique(slide_ids)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def coloured(places: np.ndarray, side: int, cluster_ids: np.ndarray) -> np.ndarray:
    """A map as an image (rows, columns, 3) in [0, 1], a pixel for each tile; white where there is none."""
    cells, _, _ = cells_of_tiles(*places.T, np.full(len(places), side), cluster_ids)
    image = np.ones((*cells.shape, 3))
    for cluster in np.unique(cluster_ids[cluster_ids != GLASS]):
        image[cells == cluster] = to_rgb(maps.colour(int(cluster)))
    return image


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.twin", description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, dest="folder", metavar="DIR", help="a finished run, such as the demo's")
    parser.add_argument("--real", metavar="DATA", help="tiles that the generator learnt from, if DIR is no run")
    parser.add_argument("--slide", type=Path, default=SLIDE, metavar="FILE", help="default: the embedded slide")
    parser.add_argument("--region", type=int, nargs=4, metavar=("X", "Y", "W", "H"), help="of the slide; default: all")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the twin and its picture")
    parser.set_defaults(data=None, preset=None, clusters=None, clustering=None, overrides=None)
    return parser


if __name__ == "__main__":
    sys.exit(main())
