"""The options of each command, one function per command. Nothing here loads torch, so help comes at once.

The names of clusterings and of features are written out for that reason; a test holds them to the code's.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pfiles.cli import shared
from pfiles.errors import InputError
from pfiles.reporting.card import BLANKS
from pfiles.tiles.slides import Tiling

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["_Parser"]

FEATURE_NAMES = "random, autoencoder, inception, imagenet, imagenet-deeper"
DESCRIPTION = "Generate histopathology tiles by cluster, without labels. COMMAND --help lists a command's options."
JUDGED = 500  # as `share` has it
STRENGTH = 0.7  # as `drawing.sampling` has it


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help shows what can be given.")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command and its options; InputError for unknown ones. arguments: None for those of this process."""
    return make_parser().parse_args(arguments)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands. It calls itself as it was started: `kpc-ldm` or `python -m pfiles`."""
    program = "kpc-ldm" if Path(sys.argv[0]).stem == "kpc-ldm" else "python -m pfiles"
    parser = _Parser(prog=program, description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for add in (
        _add_check, _add_demo, _add_run, _add_clusters, _add_cells, _add_watch, _add_status, _add_draw, _add_field,
        _add_twin, _add_vary, _add_tile, _add_map, _add_evaluate, _add_export, _add_share, _add_paper,
        _add_reader_study, _add_pack, _add_reproduce,
    ):  # fmt: skip
        add(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show where in the code an input was refused")
    return parser


def _command(commands: "Commands", name: str, summary: str) -> _Parser:
    """A command whose summary stands in the list of commands and at the top of its own help."""
    return commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")


def _add_check(commands: "Commands") -> None:
    check = _command(commands, "check", "say whether this machine is ready for a run, and how long the run will take")
    check.add_argument("--fast", action="store_true", help="check only; measure no steps and estimate no times")
    shared.add_tiles_and_preset(check)
    shared.add_k(check)
    shared.add_clustering(check)
    shared.add_out_and_seed(check)
    shared.add_settings(check)


def _add_demo(commands: "Commands") -> None:
    demo = _command(commands, "demo", "run all notebooks at small size on embedded tissue, in minutes on two CPU cores")
    demo.set_defaults(data="embedded", preset="demo", clusters=6, clustering="kmeans")  # what so few tiles support
    shared.add_out_and_seed(demo)
    shared.add_settings(demo)
    shared.add_restart(demo)
    shared.add_on_request(demo)


def _add_run(commands: "Commands") -> None:
    run = _command(commands, "run", "run all notebooks on your tiles")
    shared.add_tiles_and_preset(run)
    shared.add_k(run)
    shared.add_clustering(run)
    shared.add_out_and_seed(run)
    shared.add_settings(run)
    shared.add_restart(run)
    shared.add_on_request(run)


def _add_clusters(commands: "Commands") -> None:
    clusters = _command(
        commands, "clusters", "learn the clusters of every k without a UNet, and say how many the tiles support"
    )
    shared.add_tiles_and_preset(clusters)
    shared.add_k(clusters, default="10-16")
    shared.add_clustering(clusters)
    shared.add_out_and_seed(clusters)
    shared.add_seeds(clusters)
    shared.add_settings(clusters)
    shared.add_restart(clusters)


def _add_cells(commands: "Commands") -> None:
    cells = _command(commands, "cells", "run one notebook's code in this process; torchrun starts this command")
    cells.add_argument("notebook", help="name of a notebook, such as part_1_training")
    shared.add_tiles_and_preset(cells)
    shared.add_k(cells)
    shared.add_clustering(cells)
    shared.add_out_and_seed(cells)
    shared.add_seeds(cells)
    shared.add_settings(cells)
    shared.add_restart(cells)


def _add_watch(commands: "Commands") -> None:
    watch = _command(commands, "watch", "show a running training: rate, time left, last epochs, newest picture")
    watch.add_argument("--out", metavar="DIR", help="the run's folder; default: this repository's own folders")
    watch.add_argument("--once", action="store_true", help="look once, not until the training is done")


def _add_status(commands: "Commands") -> None:
    status = _command(commands, "status", "list the files of a run: made, stale and why, missing, or foreign")
    status.add_argument("--run", default=".", metavar="DIR", dest="folder", help="the run's folder; default .")
    shared.add_started_with(status)


def _add_draw(commands: "Commands") -> None:
    draw = _command(
        commands, "draw", "draw tiles with a trained generator, such as the small one that comes with the project"
    )
    shared.add_generator(draw)
    draw.add_argument(
        "--cluster", metavar="C",
        help="a cluster's name, or its number from 1; default: all clusters, as often as among the training tiles",
    )  # fmt: skip
    draw.add_argument("--number", type=int, default=64, metavar="N", help="how many tiles; default 64")
    draw.add_argument("--seed", type=int, default=765, help="seed of the first tile's noise; default 765")
    draw.add_argument(
        "--accept", type=float, default=1.0, metavar="SHARE",
        help="share of the drawn tiles of each cluster to keep; the least real ones are drawn anew; default 1: all",
    )  # fmt: skip
    draw.add_argument("--out", required=True, metavar="DIR", help="folder for tiles/1.png ..., tiles.csv and sheet.jpg")
    shared.add_started_with(draw)


def _add_field(commands: "Commands") -> None:
    field = _command(commands, "field", "draw tissue larger than a tile, with each cluster where a layout puts it")
    shared.add_generator(field)
    field.add_argument(
        "--layout", required=True, metavar="FILE_OR_CLUSTER",
        help="PNG or .npy of cluster numbers, CSV of names, GeoJSON, a slide's tile_clusters.csv; or one cluster",
    )  # fmt: skip
    field.add_argument("--out", required=True, metavar="FIELD.tiff", help="the field; three more files lie beside it")
    field.add_argument(
        "--size", type=int, nargs=2, metavar=("W", "H"),
        help="size of the field in pixels; default: one tile for each cell of the layout",
    )  # fmt: skip
    field.add_argument("--seed", type=int, default=765, help="seed of all noise; default 765")
    field.add_argument(
        "--stride", type=int, metavar="PX",
        help="pixels from window to window; default: a tile's side; a smaller stride takes longer",
    )  # fmt: skip
    field.add_argument(
        "--blend", type=int, metavar="PX",
        help="width of the border in which two clusters blend; default: 1/4 of a tile's side",
    )  # fmt: skip
    field.add_argument(
        "--background", metavar="C", help="cluster, or glass, for places that have no class in the layout"
    )
    field.add_argument("--real", metavar="DATA", help="tiles that the generator learnt from, to look for copies")
    field.add_argument("--real-slide", metavar="FILE", help="a real slide, to compare structure larger than a tile")
    field.add_argument("--no-check", action="store_true", help="do not read the field back, nor look for joints")
    field.add_argument("--region", type=int, nargs=4, metavar=("X", "Y", "W", "H"), help="draw only this part, in px")
    field.add_argument("--mpp", type=float, help="microns per pixel of the tiles, if the generator does not say")
    field.add_argument("--mpp-of-slide", type=float, help="microns per pixel of the GeoJSON's or the real slide")
    shared.add_tissue(field)
    shared.add_started_with(field)


def _add_twin(commands: "Commands") -> None:
    twin = _command(commands, "twin", "draw a field that has the layout of a slide and none of its pixels")
    twin.add_argument("--slide", required=True, metavar="FILE", help="the slide")
    twin.add_argument("--run", required=True, metavar="DIR", dest="folder", help="folder of a run or of a generator")
    twin.add_argument("--out", required=True, metavar="TWIN.tiff", help="the twin; four more files lie beside it")
    twin.add_argument("--real", metavar="DATA", help="tiles that the generator learnt from, if DIR is no run")
    twin.add_argument("--seed", type=int, default=765, help="seed of all noise; default 765")
    twin.add_argument("--stride", type=int, metavar="PX", help="see field")
    twin.add_argument("--blend", type=int, metavar="PX", help="see field")
    twin.add_argument("--mpp", type=float, help="microns per pixel of the tiles, if DIR does not say")
    twin.add_argument("--mpp-of-slide", type=float, help="microns per pixel of the slide; overrides its file")
    shared.add_tissue(twin)
    shared.add_started_with(twin)


def _add_vary(commands: "Commands") -> None:
    vary = _command(commands, "vary", "draw variations of real tiles, as their own cluster or as another")
    vary.add_argument("tiles", metavar="TILE_OR_FOLDER", help="PNG, JPEG or TIFF; scaled to the generator's side")
    shared.add_generator(vary)
    vary.add_argument(
        "--strength", type=float, nargs="+", default=[STRENGTH], metavar="S",
        help=f"share of the steps to draw anew, above 0 and at most 1; one row for each value; default {STRENGTH}",
    )  # fmt: skip
    vary.add_argument(
        "--real", metavar="DATA",
        help="tiles that the generator learnt from, if --from is no run; no copy of them is written",
    )  # fmt: skip
    vary.add_argument(
        "--number", type=int, default=8, metavar="N", help="variations of each tile at each strength; default 8"
    )
    vary.add_argument(
        "--cluster", nargs="+", default=[], metavar="C",
        help="draw each tile as these clusters too: names, or numbers from 1",
    )  # fmt: skip
    vary.add_argument("--seed", type=int, default=765, help="seed of the noise; default 765")
    vary.add_argument("--out", required=True, metavar="DIR", help="new folder: tiles/, variations.csv, sheet.jpg")
    shared.add_started_with(vary)


def _add_tile(commands: "Commands") -> None:
    tile = _command(commands, "tile", "cut whole slides into tiles of one size and scale")
    default = Tiling()
    tile.add_argument(
        "slides", nargs="*", metavar="SLIDE_OR_FOLDER", help="what OpenSlide reads, or plain PNG, JPEG, TIFF"
    )
    tile.add_argument(
        "--out", required=True, metavar="DIR", help="folder for tiles.npy, tiles.csv and a picture of each slide"
    )
    tile.add_argument("--mpp", type=float, default=default.mpp, help="microns per pixel of the tiles; default 1")
    tile.add_argument("--size", type=int, default=default.size, help="side of a tile in pixels; default 128")
    tile.add_argument("--stride", type=int, help="pixels from tile to tile; default: the size")
    shared.add_tissue(tile)
    tile.add_argument(
        "--min-sharpness", type=float, default=default.min_sharpness,
        help="smallest sharpness of a tile, as in tiles.csv; default 0: all tiles",
    )  # fmt: skip
    tile.add_argument(
        "--regions", metavar="GEOJSON", dest="regions_path",
        help="cut only inside these annotations from QuPath; or a folder with SLIDE.geojson for each slide",
    )  # fmt: skip
    tile.add_argument(
        "--coordinates", metavar="H5", dest="coordinates_path",
        help="cut at the places that CLAM or TRIDENT chose; or a folder with SLIDE.h5 for each slide",
    )  # fmt: skip
    tile.set_defaults(regions=None, coordinates=None)
    tile.add_argument("--dry-run", action="store_true", help="cut nothing: make the pictures and count the tiles")
    tile.add_argument(
        "--per-slide", type=int, metavar="N", help="cut at most N tiles of a slide, evenly over its tissue"
    )
    tile.add_argument("--seed", type=int, default=default.seed, help="seed of that choice; default 765")
    shared.add_reading(tile)
    tile.add_argument("--pseudonyms", action="store_true", help="call slides S001 ...; the key is written beside DIR")
    tile.add_argument(
        "--part", type=shared.part, metavar="I/N",
        help="cut part I of N of all slides; give each part its own job and its own DIR",
    )  # fmt: skip
    tile.add_argument("--join", nargs="+", metavar="DIR_OF_PART", help="join these parts in DIR; give no slides")


def _add_map(commands: "Commands") -> None:
    maps = _command(commands, "map", "map a run's clusters on slides that it was not trained on")
    maps.add_argument("--slide", required=True, nargs="+", metavar="FILE", help="slides, or folders of them")
    maps.add_argument(
        "--run", required=True, metavar="DIR", dest="folder", help="folder of a run or of a generator, such as starter"
    )
    maps.add_argument("--mpp", type=float, help="microns per pixel of the run's tiles; needed if DIR does not say")
    shared.add_reading(maps)
    shared.add_tissue(maps)
    maps.add_argument(
        "--frame", choices=("qupath", "file"), default="qupath",
        help="whose corner the GeoJSON counts pixels from; default qupath",
    )  # fmt: skip
    maps.add_argument(
        "--min-region", type=int, default=1, metavar="N",
        help="leave regions of fewer tiles out of the GeoJSON; default 1",
    )  # fmt: skip
    maps.add_argument("--out", default="maps", metavar="DIR", help="folder for maps, tables and tiles; default ./maps")
    shared.add_started_with(maps)


def _add_evaluate(commands: "Commands") -> None:
    evaluate = _command(commands, "evaluate", "compare generated images with real ones by every measure")
    evaluate.add_argument("--real", required=True, metavar="DIR", help="real images, such as org")
    evaluate.add_argument("--generated", required=True, metavar="DIR", help="generated images, such as gen_14")
    evaluate.add_argument("--clusters-csv", metavar="FILE", help="clusters of the images, such as HHH14_C14_D14.csv")
    evaluate.add_argument("--autoencoder", metavar="FILE", help="checkpoint of the VQ-GAN, to compare its features too")
    evaluate.add_argument("--held-out", metavar="DATA", help="real tiles that no network saw: .npy, folder or .zip")
    evaluate.add_argument(
        "--features",
        nargs="+",
        metavar="NAME",
        help=f"{FEATURE_NAMES}; default: random, and autoencoder with --autoencoder. Or files of your own: REAL.npy "
        "GENERATED.npy [HELD_OUT.npy], with a row for each image in the order of the images' names",
    )

    evaluate.add_argument(
        "--unpaired", action="store_true", help="leave out paired scores, if images do not pair by name"
    )
    evaluate.add_argument("--seed", type=int, default=765, help="seed of controls, subsets and bootstraps; default 765")
    evaluate.add_argument(
        "--out", default=".", metavar="DIR",
        help="folder for evaluation.json and evaluation.html; default: the current folder",
    )  # fmt: skip


def _add_export(commands: "Commands") -> None:
    export = _command(commands, "export", "copy the generated images that repeat no training tile, and write a report")
    export.add_argument("--generated", required=True, metavar="DIR", help="folder of generated images, such as gen_14")
    export.add_argument(
        "--out", required=True, metavar="DIR", help="new folder: images/, report.json, closest_pairs.png"
    )
    shared.add_exhaustive(export)
    shared.add_tiles_and_preset(export)
    shared.add_settings(export)


def _add_share(commands: "Commands") -> None:
    share = _command(commands, "share", "write a run's generator into a folder for others, with a model card")
    share.add_argument("--run", required=True, metavar="DIR", dest="folder", help="folder of a finished run")
    share.add_argument("--out", required=True, metavar="FOLDER", help="new folder: networks, README.md, sheet.jpg")
    share.add_argument(
        "--card", metavar="FILE",
        help="TOML or JSON file with the entries of the card listed below; options override it",
    )  # fmt: skip
    share.add_argument(
        "--judged", type=int, default=JUDGED, metavar="N", help=f"tiles that the gate draws; default {JUDGED}"
    )
    shared.add_exhaustive(share)
    share.add_argument(
        "--field", nargs="+", default=[], metavar="FIELD.tiff",
        help="fields of this run to hand on too; a field that holds a copy is refused",
    )  # fmt: skip
    for name, meaning in BLANKS.items():
        share.add_argument(f"--{name.replace('_', '-')}", metavar="TEXT", help=meaning.replace("%", "%%"))
    shared.add_started_with(share)


def _add_paper(commands: "Commands") -> None:
    paper = _command(
        commands, "paper", "put the published files in their places, and make their numbers and figures again"
    )
    paper.add_argument(
        "--archive", required=True, nargs="+", metavar="DIR_OR_ZIP",
        help="where the published files lie, all or some of them",
    )  # fmt: skip
    paper.add_argument("--out", help="folder for all results; default: this repository's own folders")
    shared.add_settings(paper)


def _add_reader_study(commands: "Commands") -> None:
    study = _command(
        commands, "reader-study", "make pages on which people judge real and generated tiles, and score their answers"
    )
    study.add_argument("--run", metavar="DIR", dest="folder", help="make pages from this finished run")
    study.add_argument(
        "--score", nargs="+", metavar="FILE", help="score the files that readers saved, such as study/*.json"
    )
    study.add_argument(
        "--out", metavar="DIR",
        help="new folder for the pages, or for results; default for results: score, beside the answers",
    )  # fmt: skip
    study.add_argument(
        "--question", choices=("real", "cluster"), default="real",
        help="the question to readers: is this tile real, or of which cluster is it",
    )  # fmt: skip
    study.add_argument(
        "--tiles", type=int, default=60, metavar="N", help="number of tiles, half of them real; default 60"
    )
    study.add_argument("--readers", type=int, default=4, metavar="N", help="number of pages; default 4")
    study.add_argument(
        "--scale", type=float, default=4, metavar="X", help="how many times tiles are enlarged; default 4"
    )
    shared.add_started_with(study)


def _add_pack(commands: "Commands") -> None:
    pack = _command(commands, "pack", "write a run as one zip (an RO-Crate), to hand it over or to archive it")
    pack.add_argument("--run", required=True, metavar="DIR", dest="folder", help="folder of a finished run")
    pack.add_argument("--out", required=True, metavar="ZIP", help="the zip to write, such as run.zip")
    pack.add_argument("--checkpoints", action="store_true", help="put the trained networks in too")
    pack.add_argument("--tiles", action="store_true", help="put in the tiles, and the images of org and gen_k")
    pack.add_argument("--licence", metavar="TEXT", help="licence of all but the code, such as CC-BY-4.0")
    shared.add_started_with(pack)


def _add_reproduce(commands: "Commands") -> None:
    reproduce = _command(commands, "reproduce", "make a packed run again, and say what is equal and what is not")
    reproduce.add_argument("crate", metavar="ZIP", help="a zip that pack wrote")
    reproduce.add_argument("--data", metavar="PATH", help="the run's tiles; needed if the zip holds none")
    reproduce.add_argument(
        "--out", default="reproduced", metavar="DIR", help="folder for the new run; default ./reproduced"
    )
    shared.add_settings(reproduce)
