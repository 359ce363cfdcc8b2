"""The command line: run the notebooks in order, without a browser.

    python -m pfiles draw --from starter --cluster 3 --number 64 --out DIR
    python -m pfiles draw --from RUN --cluster keratin --number 64 --out DIR
    python -m pfiles check --data PATH --preset NAME
    python -m pfiles demo [--out DIR]
    python -m pfiles tile SLIDE_OR_FOLDER ... --out DIR
    python -m pfiles clusters --clusters 10-16 --seeds 3 --data PATH --preset NAME --out DIR
    python -m pfiles run --data PATH --preset NAME --clusters 14 --clustering classifier --out DIR
    torchrun --nproc-per-node 4 -m pfiles cells part_1_training --data PATH --out DIR
    python -m pfiles map --slide FILE --run DIR
    python -m pfiles evaluate --real DIR --generated DIR
    python -m pfiles watch --out DIR
    python -m pfiles export --generated DIR --data PATH --out DIR
    python -m pfiles share --run DIR --out FOLDER --card card.toml

The notebooks are the only place where the order of work within a step is written; `demo`, `run` and `clusters` only run
them one after the other with the given parameters, and print what they recorded. `clusters` learns the clusters of
several k, to choose among them. `draw` draws tiles with trained networks, such as the small ones that come with the
project, `tile` cuts slides into tiles, `map` shows trained clusters on slides that were not trained on, `evaluate`
compares two folders of images, `check` says whether this machine is ready for a run and how long it will take, `watch`
shows a running training, `export` copies the generated images that repeat no training tile, `share` writes a run's
generator for others.
"""

import argparse
import ast
import asyncio
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import nbformat
import torch
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from pfiles.checkpoints import fingerprint_of_role
from pfiles.choices import DEFAULTS, OF_NO_CLUSTERS, choose
from pfiles.clusterers import CLUSTERINGS, make_clusterer
from pfiles.discriminator import Discriminator
from pfiles.drawing.generator import starting_weights
from pfiles.drawing.samplers import make_solver
from pfiles.errors import InputError, TerminatedError
from pfiles.identity import FINGERPRINT, flatten
from pfiles.learning.resume import name_of_restart
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.lpips import vgg16_file
from pfiles.machine.locks import locked
from pfiles.machine.processes import progress
from pfiles.machine.runtime import pick_device, versions
from pfiles.measuring.features import EXTRACTORS
from pfiles.paths import (
    ROOT,
    Paths,
    atomic_write,
    expand,
    numbers_of_clusters,
    read_json,
    write_json,
)
from pfiles.reporting.card import BLANKS, read_card
from pfiles.reporting.tables import identities
from pfiles.settings import PRESETS, Settings
from pfiles.tiles.dataset import EMBEDDED, data_or_default
from pfiles.tiles.files import list_images, read_images, refuse_other_images, write_tiles
from pfiles.tiles.slides import Tiling
from pfiles.tiles.sources import PICTURES, read_source
from pfiles.tiles.tiler import find_slides, tile_slides
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import make_vqvae

if TYPE_CHECKING:
    from pfiles.session import OpenRun

NOTEBOOKS = (
    "train_autoencoder",
    "autoencoder_output",
    "save_training_images",
    "clusters_14/part_1_training",
    "clusters_14/part_2_finetuning1",
    "clusters_14/part_3_finetuning2",
    "clusters_14/part_4_sampling_clustering",
    "clusters_14/part_5_latent_space_extraction",
    "clusters_14/part_6_conditional_generation",
    "clusters_14/part_7_sampling_after_first_training",
    "clusters_14/part_8_sampling_after_finetuning1",
    "clusters_14/part_9_conditional_generation_using_cluster_IDs",
    "clusters_14/part_10_SSIM",
    "clusters_14/part_11_MSSSIM",
    "clusters_14/part_12_LPIPS",
    "clusters_14/part_13_distribution_metrics",
    "clusters_14/part_14_memorisation",
    "clusters_14/part_15_cluster_maps",
    "clusters_14/part_16_cluster_atlas",
    "internal_cluster_validation_metrics",
)
TOGETHER = NOTEBOOKS[:6]  # run once for several k, as the last does; those between them run for each
CHOOSING = ("choose_k", "internal_cluster_validation_metrics")
CHOICES = {*DEFAULTS, "restart"} - {"n_clusters"}  # of a notebook, beside the parameters of its own
SECTIONS = {"run", "clusters"}  # of summary.json, each told by the command of that name
SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: TerminatedError}  # and what they end as
STOPPED = {error.__name__: 128 + number for number, error in SIGNALS.items()}
STOPPED_MESSAGE = "Stopped: run the same command again to go on."


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 done, 1 a notebook failed or the disk took no file, 2 something given is wrong, 130 or 143 stopped by Ctrl-C or
    SIGTERM.
    """
    args = None
    try:
        args = _parser().parse_args(arguments)
        if not args.reads_choices:
            os.environ["KPC_RUN_TOML"] = ""
        return args.run(args)
    except (InputError, OSError) as error:
        if args is not None and args.debug:
            raise
        is_input = isinstance(error, InputError)
        sentence = error if is_input else f"{error}: mend that and run the same command again to go on."
        print(f"error: {sentence}", file=sys.stderr)
        return 2 if is_input else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help shows what can be given.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m pfiles", description="Run the notebooks in order, headless.")
    commands = parser.add_subparsers(required=True, metavar="command")
    demo = commands.add_parser("demo", help="everything at small size on embedded tissue: minutes on two CPU cores")
    run = commands.add_parser("run", help="everything on your tiles")
    choose_k = commands.add_parser(
        "clusters", help="the clusters of every k without a UNet: how many do the tiles support?"
    )
    cells = commands.add_parser("cells", help="one notebook's code, in this process; what torchrun starts")
    cells.add_argument("notebook", help="such as part_1_training")
    draw = commands.add_parser("draw", help="tiles of a trained generator, such as the small one that comes along")
    draw.add_argument(
        "--from", default="starter", metavar="FOLDER", dest="folder", help="a generator, or a run; default starter"
    )
    draw.add_argument(
        "--cluster", metavar="C", help="a name, or a number from 1; default: all, as often as in the training"
    )
    draw.add_argument("--number", type=int, default=64, metavar="N", help="how many tiles; default 64")
    draw.add_argument("--seed", type=int, default=765, help="of the first tile's noise; default 765")
    draw.add_argument("--out", required=True, metavar="DIR", help="for tiles/1.png ..., tiles.csv and sheet.jpg")
    tile = commands.add_parser("tile", help="cut whole slides into tiles of one size and scale")
    on_slide = commands.add_parser("map", help="the clusters of a run on slides that it was not trained on")
    on_slide.add_argument("--slide", required=True, nargs="+", metavar="FILE", help="slides, or folders of them")
    on_slide.add_argument(
        "--run", required=True, metavar="DIR", dest="folder", help="of `run`, or a generator's, such as starter"
    )
    on_slide.add_argument(
        "--mpp", type=float, help="microns per pixel of its tiles; needed where DIR does not tell them"
    )
    on_slide.add_argument("--mpp-of-slide", type=float, help="microns per pixel of slides that do not tell theirs")
    on_slide.add_argument("--min-tissue", type=float, default=0.5, help="least share of tissue in a tile; default 0.5")
    on_slide.add_argument(
        "--frame",
        choices=("qupath", "file"),
        default="qupath",
        help="whose pixel 0, 0 the GeoJSON counts from; default qupath",
    )
    on_slide.add_argument(
        "--min-region", type=int, default=1, metavar="N", help="no region of fewer tiles in the GeoJSON; default 1"
    )
    on_slide.add_argument("--out", default="maps", metavar="DIR", help="for maps, tables and tiles; default ./maps")
    evaluate = commands.add_parser("evaluate", help="every measure of a folder of generated images against real ones")
    demo.set_defaults(data="embedded", preset="demo", clusters=6, clustering="kmeans")  # what so few tiles support
    export = commands.add_parser("export", help="copy the generated images that repeat no training tile, with a report")
    export.add_argument("--generated", required=True, metavar="DIR", help="folder of generated images, such as gen_14")
    export.add_argument(
        "--out", required=True, metavar="DIR", help="new folder: images/, report.json, closest_pairs.png"
    )
    share = commands.add_parser(
        "share", help="a run's generator in a folder for others, with a card that says what it is"
    )
    _add_sharing(share)
    watch = commands.add_parser("watch", help="a running training: rate, time left, last epochs, newest picture")
    watch.add_argument("--out", metavar="DIR", help="the run's folder; default: this repository's own folders")
    watch.add_argument("--once", action="store_true", help="look once instead of until it is done")
    check = commands.add_parser("check", help="is this machine ready for a run, and how long will it take")
    check.add_argument("--fast", action="store_true", help="measure no steps, and estimate no times")
    for command in (run, choose_k, cells, export, check):
        command.add_argument("--data", help=".npy, folder or .zip of tiles, or 'embedded'; default $KPC_DATA, or that")
        command.add_argument("--preset", help=f"{', '.join(PRESETS)}; default paper")
    for command, default in ((run, None), (choose_k, "10-16"), (cells, None)):
        of = "number of clusters, or several such as 10-16"
        command.add_argument("--clusters", default=default, metavar="K", help=f"{of}; default {default or 14}")
    check.add_argument("--clusters", metavar="K", help="number of clusters, or several such as 10-16; default 14")
    for command in (draw, on_slide, share):
        _add_choices(command)
    for command in (run, choose_k, cells, check):
        command.add_argument("--clustering", help=f"{' or '.join(CLUSTERINGS)}; default classifier")
    for command in (demo, run, choose_k, cells, check):
        command.add_argument("--out", help="folder for all results; default: this repository's own folders")
        command.add_argument("--seed", type=int, help="the notebooks' own seeds where this is not given")
    for command in (choose_k, cells):
        command.add_argument(
            "--seeds", type=int, default=3, help="how often choose_k learns each clustering; default 3"
        )
    for command in (demo, run, choose_k, cells, export, check):
        command.add_argument(
            "--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides",
            help="change a setting, such as training.epochs=2; may be repeated",
        )  # fmt: skip
    for command in (demo, run, choose_k, cells):
        command.add_argument("--restart", action="store_true", help="train anew where a run was begun before")
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show where in the code an input was refused")
    evaluate.add_argument("--real", required=True, metavar="DIR", help="real images, such as org")
    evaluate.add_argument("--generated", required=True, metavar="DIR", help="generated images, such as gen_14")
    evaluate.add_argument("--clusters-csv", metavar="FILE", help="clusters of the images, such as HHH14_C14_D14.csv")
    evaluate.add_argument("--autoencoder", metavar="FILE", help="checkpoint of the VQ-GAN, to compare in its features")
    evaluate.add_argument("--held-out", metavar="DATA", help="real tiles that no network saw: .npy, folder or .zip")
    evaluate.add_argument(
        "--features", metavar="NAME", help=f"{', '.join(EXTRACTORS)}; default random, and autoencoder if given"
    )
    evaluate.add_argument("--unpaired", action="store_true", help="images do not pair by name: no paired scores")
    evaluate.add_argument("--seed", type=int, default=765, help="of controls, subsets and bootstraps; default 765")
    evaluate.add_argument(
        "--out", default=".", metavar="DIR", help="for evaluation.json and evaluation.html; default here"
    )
    _add_tiling(tile)
    actions = {draw: _draw, demo: _run, run: _run, cells: _cells, tile: _tile, evaluate: _evaluate, export: _export}
    actions |= {share: _share, watch: _watch, check: _check, on_slide: _map, choose_k: _choose_k}
    for command, action in actions.items():
        command.set_defaults(run=action, reads_choices=command in (run, choose_k, cells, check, watch))
    return parser


def _add_tiling(tile: argparse.ArgumentParser) -> None:
    default = Tiling()
    tile.add_argument(
        "slides", nargs="+", metavar="SLIDE_OR_FOLDER", help="what OpenSlide reads, or plain PNG, JPEG, TIFF"
    )
    tile.add_argument(
        "--out", required=True, metavar="DIR", help="for tiles.npy, tiles.csv and a picture of each slide"
    )
    tile.add_argument("--mpp", type=float, default=default.mpp, help="microns per pixel of the tiles; default 1")
    tile.add_argument("--size", type=int, default=default.size, help="side of a tile in pixels; default 128")
    tile.add_argument("--stride", type=int, help="pixels from tile to tile; default the size")
    tile.add_argument(
        "--min-tissue", type=float, default=default.min_tissue, help="least share of tissue in a tile; default 0.5"
    )
    tile.add_argument(
        "--min-sharpness", type=float, default=default.min_sharpness, help="see tiles.csv; default 0, all"
    )
    tile.add_argument("--per-slide", type=int, metavar="N", help="no more tiles of a slide, evenly over its tissue")
    tile.add_argument("--seed", type=int, default=default.seed, help="of that choice; default 765")
    tile.add_argument("--mpp-of-slide", type=float, help="microns per pixel of slides that do not tell theirs")
    tile.add_argument("--slides-csv", metavar="FILE", help="table with columns slide, and patient or label or both")
    tile.add_argument("--pseudonyms", action="store_true", help="call slides S001 ...; the key is written beside DIR")


def _add_sharing(share: argparse.ArgumentParser) -> None:
    share.add_argument("--run", required=True, metavar="DIR", dest="folder", help="folder of a finished run")
    share.add_argument("--out", required=True, metavar="FOLDER", help="new folder: networks, README.md, sheet.jpg")
    share.add_argument("--card", metavar="FILE", help="TOML or JSON that says the following; options count more")
    for name, meaning in BLANKS.items():
        share.add_argument(f"--{name.replace('_', '-')}", metavar="TEXT", help=meaning.replace("%", "%%"))


def _add_choices(command: argparse.ArgumentParser) -> None:
    """What a run was started with, where its summary.json does not say it, as after a run in notebooks."""
    for name in ("data", "preset", "clustering"):
        command.add_argument(f"--{name}", help="of the run, where its summary.json does not say it")
    command.add_argument("--clusters", type=int, metavar="K", help="likewise; or one of the run's, if it has several")
    command.add_argument("--set", action="append", metavar="NAME=VALUE", dest="overrides", help="likewise")


def _choices(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What `_add_choices` was given, and what else is known of the run in `folder`."""
    from pfiles.session import choices_of  # seconds to import

    data = None if args.data is None else _data(args.data)
    overrides = None if args.overrides is None else _overrides(args.overrides)
    given = {"clustering": args.clustering, "data": data, "preset": args.preset, "overrides": overrides}
    return choices_of(folder, n_clusters=args.clusters, **given)


def _share(args: argparse.Namespace) -> int:
    from pfiles.session import open_run  # seconds to import
    from pfiles.share import share

    folder, out = expand(args.folder).absolute(), expand(args.out).absolute()
    card = read_card(args.card and expand(args.card), {name: getattr(args, name) for name in BLANKS})
    choices = _choices(args, folder)
    run = open_run("share", **choices, out=folder)
    gate = share(run, out, card, preset=run.preset, overrides=choices.get("overrides", {}))
    print(
        f"The gate passed: {gate['closer']:.1%} of {gate['images']} generated tiles are as near to a training tile as "
        f"the closest 1 % of held-out tiles.\n{out} is ready. Read its README.md. To put it on the Hugging Face hub:\n"
        f"    hf auth login\n    hf upload YOUR-NAME/NAME-OF-THE-GENERATOR {out}"
    )
    return 0


def _check(args: argparse.Namespace) -> int:
    from pfiles.check import check  # seconds to import

    out = None if args.out is None else expand(args.out).absolute()
    data = None if args.data is None else _data(args.data)
    overrides = _overrides(args.overrides)
    return int(not check(args.clusters, args.clustering, data, args.preset, overrides, out, not args.fast))


def _watch(args: argparse.Namespace) -> int:
    from pfiles.watch import watch  # seconds to import

    watch(None if args.out is None else expand(args.out).absolute(), once=args.once)
    return 0


def _tile(args: argparse.Namespace) -> int:
    tiling = Tiling(**{field.name: getattr(args, field.name) for field in fields(Tiling)})
    table = None if args.slides_csv is None else expand(args.slides_csv).absolute()
    slides = [expand(path).absolute() for path in args.slides]
    tile_slides(slides, expand(args.out).absolute(), tiling, table, args.pseudonyms)
    return 0


def _opened(args: argparse.Namespace) -> tuple["OpenRun", dict[str, Any]]:
    """The run that a command describes, and the values for the notebooks' parameter cells; refuses wrong ones before
    any work."""
    from pfiles.session import open_run  # seconds to import

    if not (ROOT / "clusters_14").is_dir():
        raise InputError("The notebooks do not come with the installed package: run this in a checkout of the code.")
    given = {
        "n_clusters": args.clusters, "clustering": args.clustering, "data": args.data, "preset": args.preset,
        "overrides": _overrides(args.overrides), "seed": args.seed,
        "out": None if args.out is None else str(expand(args.out).absolute()),
    }  # fmt: skip
    chosen = choose(given)
    os.environ["KPC_RUN_TOML"] = ""  # it has been read: the notebooks are told what was chosen
    told = args.data is None and chosen["data"] not in (None, *EMBEDDED)  # by run.toml
    data = str((ROOT / expand(chosen["data"])).resolve()) if told else _data(chosen["data"])
    run = open_run("run", **chosen | {"data": data})
    settings = run.settings
    _try_networks(settings, run.ks, run.clustering)
    diffusion, sampling = settings.diffusion, settings.sampling
    scheduler = LinearNoiseScheduler(diffusion.num_timesteps, diffusion.beta_start, diffusion.beta_end)
    make_solver(sampling.sampler, scheduler, sampling.steps)
    if settings.start_from is not None:
        starting_weights(settings.start_from)
    run.tiles  # noqa: B018 - read and checked
    named = None if chosen["data"] is None else data  # notebooks that need no tiles ask for none unless they are named
    parameters = {**chosen, "n_clusters": run.n_clusters, "data": named, "restart": args.restart}
    if args.seed is None and chosen["seed"] == DEFAULTS["seed"]:
        del parameters["seed"]  # each notebook's own
    return run, parameters


def _try_networks(settings: Settings, ks: Sequence[int], clustering: str) -> None:
    """InputError where the settings describe networks that cannot be: they are built without memory and get a tile."""
    autoencoder, side = settings.autoencoder, settings.image_size_px
    try:
        with torch.device("meta"):
            vqvae = make_vqvae(autoencoder)
            image, _, _ = vqvae(torch.empty(2, 3, side, side))
            Discriminator(**autoencoder.discriminator)(image)
            unet = UNet(vqvae.z_channels, sum(ks), **settings.diffusion.unet)
            z = torch.empty(2, *vqvae.latent_shape(side))
            make_clusterer(clustering, vqvae.z_channels, max(ks))(z)
            unet(z, torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    except Exception as error:  # torch raises many kinds of errors for impossible sizes
        reason = str(error).partition("\n")[0]
        raise InputError(
            "autoencoder.vqvae, autoencoder.discriminator or diffusion.unet describe a network that cannot be built "
            f"for tiles of {side} px ({reason})."
        ) from error


def _cells(args: argparse.Namespace) -> int:
    known = {name.rpartition("/")[2]: name for name in (*NOTEBOOKS, CHOOSING[0])}
    name = known.get(args.notebook.removesuffix(".ipynb").rpartition("/")[2])
    if name is None:
        raise InputError(f"There is no notebook {args.notebook!r}: choose one of {', '.join(known)}.")
    _, parameters = _opened(args)
    run_cells(ROOT / f"{name}.ipynb", {**parameters, "seeds": args.seeds})
    return 0


def run_cells(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Run a notebook's code in this process with some of its parameters changed, as a script; figures are not shown.

    For torchrun and accelerate's notebook_launcher, which start the same code in several processes.
    """
    os.environ["MPLBACKEND"] = "Agg"
    os.chdir(notebook.parent)
    names: dict[str, Any] = {}
    for number, cell in enumerate(with_parameters(notebook, parameters).cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{notebook.name}, cell {number}", "exec"), names)


def _run(args: argparse.Namespace) -> int:
    run, parameters = _opened(args)
    steps = [(name, parameters) for name in NOTEBOOKS]
    if run.settings.lpips_required:
        vgg16_file()  # part 12 needs it, after all trainings
    if len(run.ks) > 1:
        each = [(name, {**parameters, "n_clusters": k}) for k in run.ks for name in NOTEBOOKS[len(TOGETHER) : -1]]
        steps = [*steps[: len(TOGETHER)], *each, steps[-1]]
    return _execute_all(args, run, parameters, steps)


def _choose_k(args: argparse.Namespace) -> int:
    from pfiles import choosing  # seconds to import

    run, parameters = _opened(args)
    parameters |= {"seeds": args.seeds}
    choosing.check(run.tiles, run.ks, args.seeds)
    steps = [(name, parameters) for name in CHOOSING]
    if not run.paths.autoencoder.exists():
        steps.insert(0, ("train_autoencoder", parameters))
    return _execute_all(args, run, parameters, steps, "clusters")


def _execute_all(
    args: argparse.Namespace,
    run: "OpenRun",
    parameters: dict[str, Any],
    steps: Sequence[tuple[str, dict[str, Any]]],
    section: str = "run",
) -> int:
    """Run notebooks, each with its parameters, and print what they recorded; `parameters` are those of the command,
    which summary.json keeps in its `section`."""
    paths, tiles = run.paths, run.tiles
    _refuse_read_only(paths.root)
    own_folder = paths.root / "executed" / f"clusters_{paths.n_clusters}{paths.suffix}"
    restart = own_folder / f"restart_{section}.json"
    given = {"restart": name_of_restart(restart, parameters)} if args.restart else {}
    began = time.monotonic()
    notebooks = [ROOT / f"{name}.ipynb" for name, _ in steps]
    busy = (
        f"Another run with these clusters is at work in {paths.root}: wait for it, or name another folder with --out."
    )
    with locked(own_folder, busy), closing(started_ahead(notebooks)) as kernels:
        for number, (name, own) in enumerate(steps, start=1):
            folder = f"clusters_{own['n_clusters']}{paths.suffix}"
            shown = name if own is parameters else name.replace("clusters_14", folder)
            print(f"[{number:2}/{len(steps)}] {shown} ", end="", flush=True)
            started = time.monotonic()
            of_clusters = paths.suffix if name not in OF_NO_CLUSTERS and "/" not in name else ""
            target = paths.root / "executed" / f"{name.replace('clusters_14', folder)}{of_clusters}.ipynb"
            failure = execute(notebooks[number - 1], target, own | given, next(kernels))
            if failure is not None:
                kind, message = failure
                print("stopped" if kind in STOPPED else "failed", flush=True)
                print(f"{'' if kind in STOPPED else 'error: '}{message}", file=sys.stderr)
                if target.exists():
                    print(f"The notebook up to there: {target}", file=sys.stderr)
                return {InputError.__name__: 2, **STOPPED}.get(kind, 1)
            print(f"{time.monotonic() - started:.0f} s", flush=True)

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    summary = read_json(paths.summary, {})
    summary[section] = {
        **parameters,
        "data": run.data,
        "restart": args.restart,
        "settings": asdict(run.settings),
        "data_fingerprint": tiles.fingerprint(),
        "mpp": tiles.mpp,
        "versions": versions(),
        "seconds": round(time.monotonic() - began),
        "peak_memory_gb": round(peak, 2),
    }
    with locked(paths.root):
        write_json(paths.summary, read_json(paths.summary, {}) | {section: summary[section]})
    restart.unlink(missing_ok=True)
    print_summary(summary, paths, section)
    return 0


def _refuse_read_only(root: Path) -> None:
    """InputError where the folder of a run takes no file."""
    probe = root / ".probe"
    try:
        with atomic_write(probe):
            pass
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"The output folder {root} takes no file ({error.strerror}): mend that, or name another one with --out."
        ) from error


def _export(args: argparse.Namespace) -> int:
    from pfiles.measuring.pairs import PUBLISHED_SIDE
    from pfiles.reporting import export  # seconds to import
    from pfiles.session import open_run

    generated, out = (expand(folder).absolute() for folder in (args.generated, args.out))
    side = read_images([*list_images(generated).values()][:1]).shape[2]
    overrides = {**_overrides(args.overrides), "max_train_tiles": None, "precision": "fp32"}
    if side != PUBLISHED_SIDE:  # else they are tiles enlarged by the authors' way of saving them
        overrides["image_size_px"] = side
    if args.data is None and export.made_from(generated) is None:
        raise InputError(f"Nothing in {generated} says which tiles its images were made from: name them with --data.")
    run = open_run("export", 2, data=_data(args.data), preset=args.preset, overrides=overrides)
    gate = export.export(generated, run.tiles, out)
    share, low, high, expected = (f"{gate[name]:.1%}" for name in ("closer", "low", "high", "expected"))
    print(
        f"{gate['exported']} of {len(gate['images'])} images passed: {out / 'images'}\n"
        f"{gate['withheld']} were withheld: they are closer to a training tile than {gate['threshold']:.3f}, as "
        f"the closest 1 % of {gate['held_out_tiles']} held-out tiles are.\n"
        f"That is {share}, 95 % interval {low} to {high}. Of images like the held-out tiles {expected} would be "
        f"expected, and this share or a larger one has a chance of {gate['chance']:.2g}."
    )
    return 0


def _data(given: str | None) -> str:
    data = data_or_default(given or None)
    return data if data in EMBEDDED else str(expand(data).resolve())  # notebooks run in their own folders


def _draw(args: argparse.Namespace) -> int:
    from pfiles.drawing.generator import Generator  # seconds to import
    from pfiles.drawing.sampling import write_table
    from pfiles.reporting import figures
    from pfiles.session import open_run

    if args.number < 1:
        raise InputError(f"--number must be at least 1, but is {args.number}.")
    out, numbers = expand(args.out).absolute(), range(1, args.number + 1)
    refuse_other_images(out / "tiles", numbers)
    folder = expand(args.folder).absolute()
    if (folder / "summary.json").exists():
        generator = open_run("draw", **_choices(args, folder), out=folder).generator()
    else:
        generator = Generator.load(folder if folder.exists() else args.folder, pick_device())
    cluster_ids = generator.cluster_ids(args.number, args.seed, args.cluster)
    images = generator.draw(cluster_ids, seed=args.seed)
    write_tiles(out / "tiles", numbers, images)
    write_table(out, numbers, cluster_ids, generator.names, args.seed)
    order = cluster_ids.argsort(stable=True)[:100]
    figures.save_figure(figures.show_tiles(images[order], title="Generated tiles, by cluster"), out / "sheet.jpg")
    print(f"{args.number} tiles in {out / 'tiles'}, all of them in {out / 'sheet.jpg'}")
    return 0


def _map(args: argparse.Namespace) -> int:
    from pfiles.drawing.generator import Generator  # seconds to import
    from pfiles.reporting import maps, page
    from pfiles.session import MADE_FROM, open_run

    folder, out = (expand(path).absolute() for path in (args.folder, args.out))
    if (folder / "summary.json").exists():
        run = open_run("map", **_choices(args, folder), out=folder)
        trained = Generator(*run.networks(), run.settings, torch.empty(0), names=run.names)
        mpp = args.mpp or read_json(run.paths.summary).get("run", {}).get("mpp")
    else:
        trained = Generator.load(folder if folder.exists() else args.folder, pick_device())
        mpp = args.mpp or trained.mpp
    if mpp is None:
        raise InputError(f"{folder} does not tell the scale of its tiles: give it as --mpp.")
    side = trained.settings.image_size_px
    tiling = Tiling(mpp, side, min_tissue=args.min_tissue, mpp_of_slide=args.mpp_of_slide)
    slides = find_slides([expand(path).absolute() for path in args.slide], out)
    networks = {"autoencoder": trained.space.vqvae, "clusters": trained.clusterer}
    of = {name: fingerprint_of_role(network) for name, network in networks.items()}
    of["slides"] = sorted(slide.name for slide in slides)
    if read_json(out / MADE_FROM, of) != of:
        raise InputError(f"{out} holds maps of other slides or of other networks: name another folder with --out.")
    write_json(out / MADE_FROM, of)
    tile_slides(slides, out / "tiles", tiling, show_split=False)
    tiles = read_source(out / "tiles")
    bar = progress(tiles.images.split(4096), desc="assign tiles", unit="batch", leave=False, delay=2)
    parts = [trained.assign(some) for some in bar]
    assigned = maps.Assigned(tiles.positions, *(torch.cat(part).numpy() for part in zip(*parts, strict=True)))
    section = maps.write_maps(
        out, assigned, tiles.images, trained.n_clusters, names=trained.names, pictures=out / "tiles" / PICTURES,
        frame=args.frame, min_region=args.min_region,
    )  # fmt: skip
    print(page.as_text([section]))
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from pfiles.reporting import evaluation, page  # seconds to import

    given = {"clusters_csv": args.clusters_csv, "autoencoder": args.autoencoder, "held_out": args.held_out}
    given = {name: None if value is None else expand(value).absolute() for name, value in given.items()}
    real, generated, out = (expand(folder).absolute() for folder in (args.real, args.generated, args.out))
    if out.exists() and not out.is_dir():
        raise InputError(f"The output folder {out} is a file: name a folder, existing or new.")
    sections = evaluation.evaluate(
        real, generated, **given, features=args.features, paired=not args.unpaired, seed=args.seed, device=pick_device()
    )
    print(page.as_text(sections))
    about = {"real": str(real), "generated": str(generated), "seed": args.seed, **versions()}
    print("\nwritten", *page.write_report(sections, out, about), sep="\n  ")
    return 0


def _overrides(pairs: list[str]) -> dict[str, Any]:
    """["batch_size=8", ...] -> {"batch_size": 8, ...}: values are JSON, or text where they are not."""
    overrides = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--set takes NAME=VALUE, such as training.epochs=2, but got {pair!r}.")
        try:
            overrides[name] = json.loads(value)
        except ValueError:
            overrides[name] = value
    return overrides


def started_ahead(notebooks: Sequence[Path]) -> Iterator[AsyncKernelManager]:
    """A kernel for each notebook in turn; the next one loads torch and pfiles while a notebook still runs."""
    managers: list[AsyncKernelManager] = []
    try:
        for number in range(len(notebooks)):
            managers += map(start_kernel, notebooks[len(managers) : number + 2])
            yield managers[number]
    finally:
        for manager in managers:
            end_kernel(manager, now=True)


def start_kernel(notebook: Path) -> AsyncKernelManager:
    """A kernel in the notebook's folder: this Python's own, whatever "python3" a user has registered."""
    os.environ["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))
    load = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pfiles.session; del sys.path[0], sys, pfiles"
    manager = AsyncKernelManager(kernel_name="python3")
    quiet = "--log-level=ERROR"  # a kernel warns about its local ports each time it starts
    given = [quiet, f"--IPKernelApp.exec_lines={load}"]
    asyncio.run(manager.start_kernel(cwd=str(notebook.parent), extra_arguments=given))
    return manager


def end_kernel(manager: AsyncKernelManager, now: bool = False) -> None:
    """End it, if that has not happened yet; `now`: without asking."""
    if manager.has_kernel:
        asyncio.run(manager.shutdown_kernel(now=now))


def execute(
    notebook: Path, target: Path, parameters: Mapping[str, Any], kernel: AsyncKernelManager | None = None
) -> tuple[str, str] | None:
    """Run a notebook in its own folder with some of its parameters changed, and write it with its outputs to `target`.

    kernel: one that was started for it, see `start_kernel`; it ends with the notebook.

    Only what the cell tagged "parameters" assigns is changed, in a cell put behind it. An interrupt or SIGTERM
    goes on to the notebook, whose trainings then leave a resume point.
    Returns None, or the name and the message of the error that stopped it: that of the notebook, also where the disk
    that stopped it takes no `target` either.
    """
    book = with_parameters(notebook, parameters)
    client = NotebookClient(book, km=kernel or start_kernel(notebook), timeout=None)
    received: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        received.append(number)
        if client.km.has_kernel:
            os.kill(client.km.provisioner.pid, number)

    handlers = {number: signal.signal(number, pass_on) for number in SIGNALS}
    failure = None
    try:
        with ThreadPoolExecutor(1) as pool:  # in the main thread nbclient would shut the notebook down on a signal
            pool.submit(client.execute).result()
    except CellExecutionError as error:
        failure = error.ename, error.evalue or (STOPPED_MESSAGE if error.ename in STOPPED else error.ename)
    except (DeadKernelError, AssertionError):  # the latter from nbclient, which asserts that it still has a kernel
        failure = "DeadKernelError", "the notebook's process ended, most likely because memory ran out."
        if received:
            failure = SIGNALS[received[0]].__name__, STOPPED_MESSAGE
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        end_kernel(client.km)
        with suppress(OSError) if failure else nullcontext(), atomic_write(target) as file:
            file.write(nbformat.writes(book).encode())
    if failure is None and received:
        failure = SIGNALS[received[0]].__name__, STOPPED_MESSAGE
    return failure


def with_parameters(notebook: Path, parameters: Mapping[str, Any]) -> nbformat.NotebookNode:
    """The notebook with a cell behind its parameters that changes those it has, and adds the others to its choices."""
    book = nbformat.read(notebook, as_version=4)
    index, cell = next((i, c) for i, c in enumerate(book.cells) if "parameters" in c.metadata.get("tags", []))
    known = {name.id for node in ast.parse(cell.source).body for name in getattr(node, "targets", ())}
    changed = [f"{name} = {value!r}" for name, value in parameters.items() if name in known]
    if "choices" in known:
        others = {name: value for name, value in parameters.items() if name in CHOICES - known}
        changed.append(f"choices |= {others!r}")
    source = "\n".join(changed)
    book.cells.insert(index + 1, nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]}))
    return book


def print_summary(summary: Mapping[str, Any], paths: Paths, command: str = "run") -> None:
    """The numbers that the notebooks recorded, and where the pictures are, of the run that `command` tells of."""
    of_each = [replace(paths, n_clusters=k) for k in numbers_of_clusters(paths.n_clusters)]
    own_folders = tuple(f"{own.cluster_folder.name}{paths.suffix}/" for own in (paths, *of_each))
    data = {name: flatten(of).get(FINGERPRINT) for name, of in identities(paths.summary).items()}
    of_others = [name for name, found in data.items() if found not in (None, summary[command]["data_fingerprint"])]
    print("\nnotebook                                             metric                             value")
    for section, values in summary.items():
        if section in SECTIONS - {command}:
            continue
        if section == command:
            values = {name: values[name] for name in ("data_fingerprint", "seconds", "peak_memory_gb")}
        if "/" in section and not section.startswith(own_folders):
            continue  # another number of clusters in the same folder
        if section in of_others:
            continue
        for name, value in _rows(values):
            shown = f"{value:.5g}" if isinstance(value, float) else value
            print(f"{section if len(of_each) > 1 else section.removeprefix(own_folders[0]):<52} {name:<34} {shown}")
    if of_others:
        print(f"\nleft out, as these numbers are of other data: {', '.join(of_others)}")
    print("\nfigures")
    for folder in sorted((paths.root / "Figures").glob("Figure *")):
        print(f"  {folder}: {', '.join(path.name for path in sorted(folder.glob('*.jpg'), key=_natural))}")
    if sheets := [sheet for own in of_each if (sheet := own.cluster_sheet).exists()]:
        print("cluster sheet", *sheets, sep="\n  ")
    if atlases := [atlas for own in of_each if (atlas := own.atlas).exists()]:
        print("atlas of the clusters", *atlases, sep="\n  ")
    print(f"summary\n  {paths.summary}")


def _rows(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Names and values of nested mappings; what is called "details" stays in the file."""
    rows = []
    for name, value in values.items():
        if name == "details":
            continue
        if isinstance(value, Mapping):
            rows += _rows(value, f"{prefix}{name}: ")
        elif value is not None:  # not known
            rows.append((f"{prefix}{name}", value))
    return rows


def _natural(path: Path) -> tuple[int, str]:
    return len(path.name), path.name


if __name__ == "__main__":
    sys.exit(main())
