"""The command line: run the notebooks in order, without a browser.

    python -m pfiles demo [--out DIR]
    python -m pfiles run --data PATH --preset NAME --clusters 14 --clustering classifier --out DIR
    torchrun --nproc-per-node 4 -m pfiles cells part_1_training --data PATH --out DIR

The notebooks are the only place where the order of work within a step is written; this only runs them one after the
other with the given parameters, and prints what they recorded.
"""

import argparse
import ast
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import nbformat
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from pfiles.clustering import CLUSTERINGS, check_clustering, make_clustering
from pfiles.data import load_tiles
from pfiles.discriminator import Discriminator
from pfiles.errors import InputError, TerminatedError
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.paths import ROOT, Paths, atomic_write, expand, read_json, write_json
from pfiles.runtime import versions
from pfiles.samplers import make_solver
from pfiles.settings import PRESETS, Settings, get_settings
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE

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
    "internal_cluster_validation_metrics",
)
SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: TerminatedError}  # and what they end as
STOPPED = {error.__name__: 128 + number for number, error in SIGNALS.items()}
STOPPED_MESSAGE = "Stopped between two trainings: run the same command again to go on."


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 done, 1 a notebook failed or the disk took no file, 2 something given is wrong, 130 or 143 stopped by Ctrl-C or
    SIGTERM.
    """
    args = None
    try:
        args = _parser().parse_args(arguments)
        return {"demo": _run, "run": _run, "cells": _cells}[args.command](args)
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
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="everything at small size on embedded tissue: minutes on two CPU cores")
    run = commands.add_parser("run", help="everything on your tiles")
    cells = commands.add_parser("cells", help="one notebook's code, in this process; what torchrun starts")
    cells.add_argument("notebook", help="such as part_1_training")
    demo.set_defaults(data="embedded", preset="demo", clusters=14, clustering="classifier")
    for command in (run, cells):
        command.add_argument("--data", help=".npy, folder or .zip of tiles, or 'embedded'; default $KPC_DATA, or that")
        command.add_argument("--preset", default="paper", help=f"{' or '.join(PRESETS)}; default paper")
        command.add_argument("--clusters", type=int, default=14, metavar="K", help="number of clusters; default 14")
        command.add_argument("--clustering", default="classifier", help=f"{' or '.join(CLUSTERINGS)}")
    for command in (demo, run, cells):
        command.add_argument("--out", help="folder for all results; default: this repository's own folders")
        command.add_argument("--seed", type=int, help="the notebooks' own seeds where this is not given")
        command.add_argument(
            "--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides",
            help="change a setting, such as training.epochs=2; may be repeated",
        )  # fmt: skip
        command.add_argument("--restart", action="store_true", help="train anew where a run was begun before")
        command.add_argument("--debug", action="store_true", help="show where in the code an input was refused")
    return parser


def _parameters(args: argparse.Namespace) -> dict[str, Any]:
    """The values for the notebooks' parameter cells; refuses wrong ones before any work."""
    overrides = _overrides(args.overrides)
    settings = get_settings(args.preset, overrides)
    check_clustering(args.clustering)
    out = None if args.out is None else str(expand(args.out).absolute())
    Paths(args.clusters, out)
    data = args.data or os.environ.get("KPC_DATA") or "embedded"
    if data != "embedded":
        data = str(expand(data).resolve())  # the notebooks run in folders of their own
    load_tiles(data, settings.image_size_px, settings.max_train_tiles, args.clusters)
    _try_networks(settings, args.clusters, args.clustering)
    diffusion, sampling = settings.diffusion, settings.sampling
    scheduler = LinearNoiseScheduler(diffusion.num_timesteps, diffusion.beta_start, diffusion.beta_end)
    make_solver(sampling.sampler, scheduler, sampling.steps)

    parameters = {
        "n_clusters": args.clusters,
        "clustering": args.clustering,
        "data": data,
        "preset": args.preset,
        "overrides": overrides,
        "out": out,
        "restart": args.restart,
    }
    return parameters if args.seed is None else {**parameters, "seed": args.seed}


def _try_networks(settings: Settings, n_clusters: int, clustering: str) -> None:
    """InputError where the settings describe networks that cannot be: they are built without memory and get a tile."""
    autoencoder, side = settings.autoencoder, settings.image_size_px
    try:
        with torch.device("meta"):
            vqvae = VQVAE(**autoencoder.vqvae)
            image, _, _ = vqvae(torch.empty(2, 3, side, side))
            Discriminator(**autoencoder.discriminator)(image)
            unet = UNet(vqvae.z_channels, n_clusters, **settings.diffusion.unet)
            z = torch.empty(2, *vqvae.latent_shape(side))
            make_clustering(clustering, vqvae.z_channels, n_clusters)(z)
            unet(z, torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    except Exception as error:  # torch lets out whatever an impossible size trips
        reason = str(error).partition("\n")[0]
        raise InputError(
            "autoencoder.vqvae, autoencoder.discriminator or diffusion.unet describe a network that cannot be built "
            f"for tiles of {side} px ({reason})."
        ) from error


def _cells(args: argparse.Namespace) -> int:
    known = {name.rpartition("/")[2]: name for name in NOTEBOOKS}
    name = known.get(args.notebook.removesuffix(".ipynb").rpartition("/")[2])
    if name is None:
        raise InputError(f"There is no notebook {args.notebook!r}: choose one of {', '.join(known)}.")
    run_cells(ROOT / f"{name}.ipynb", _parameters(args))
    return 0


def run_cells(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Run a notebook's code in this process with some of its parameters changed, as a script; figures are not shown.

    For torchrun and accelerate's notebook_launcher, which start the same code in several processes.
    """
    os.environ["MPLBACKEND"] = "Agg"
    os.chdir(notebook.parent)
    names: dict[str, Any] = {}
    for number, cell in enumerate(_with_parameters(notebook, parameters).cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{notebook.name}, cell {number}", "exec"), names)


def _run(args: argparse.Namespace) -> int:
    parameters = _parameters(args)
    settings = get_settings(args.preset, parameters["overrides"])
    paths = Paths(args.clusters, parameters["out"])
    began = time.monotonic()
    for number, name in enumerate(NOTEBOOKS, start=1):
        print(f"[{number:2}/{len(NOTEBOOKS)}] {name} ", end="", flush=True)
        started = time.monotonic()
        target = paths.root / "executed" / f"{name.replace('clusters_14', paths.cluster_folder.name)}.ipynb"
        failure = execute(ROOT / f"{name}.ipynb", target, parameters)
        if failure is not None:
            kind, message = failure
            print("stopped" if kind in STOPPED else "failed", flush=True)
            print(
                f"{'' if kind in STOPPED else 'error: '}{message}\nThe notebook up to there: {target}", file=sys.stderr
            )
            return {InputError.__name__: 2, **STOPPED}.get(kind, 1)
        print(f"{time.monotonic() - started:.0f} s", flush=True)

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    summary = read_json(paths.summary, {})
    tiles = load_tiles(parameters["data"], settings.image_size_px, settings.max_train_tiles)
    summary["run"] = {
        **parameters,
        "settings": asdict(settings),
        "data_fingerprint": tiles.fingerprint(),
        "versions": versions(),
        "seconds": round(time.monotonic() - began),
        "peak_memory_gb": round(peak, 2),
    }
    write_json(paths.summary, summary)
    _print_summary(summary, paths)
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


def execute(notebook: Path, target: Path, parameters: Mapping[str, Any]) -> tuple[str, str] | None:
    """Run a notebook in its own folder with some of its parameters changed, and write it with its outputs to `target`.

    Only names that the cell tagged "parameters" assigns are changed, in a cell put behind it. An interrupt or SIGTERM
    goes on to the notebook, whose trainings then leave a resume point.
    Returns None, or the name and the message of the error that stopped it.
    """
    book = _with_parameters(notebook, parameters)
    # this Python's own kernel, whatever "python3" a user has registered
    os.environ["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))
    client = NotebookClient(
        book,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": notebook.parent}},
        extra_arguments=["--log-level=ERROR"],  # a kernel warns about its local ports each time it starts
    )
    received: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        received.append(number)
        if client.km is not None and client.km.has_kernel:
            os.kill(client.km.provisioner.pid, number)

    handlers = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        with ThreadPoolExecutor(1) as pool:  # in the main thread nbclient would shut the notebook down on a signal
            pool.submit(client.execute).result()
    except CellExecutionError as error:
        return error.ename, error.evalue
    except (DeadKernelError, AssertionError):  # the latter from nbclient, which asserts that it still has a kernel
        if received:
            return SIGNALS[received[0]].__name__, STOPPED_MESSAGE
        return "DeadKernelError", "the notebook's process ended, most likely because memory ran out."
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        with atomic_write(target) as file:
            file.write(nbformat.writes(book).encode())
    return (SIGNALS[received[0]].__name__, STOPPED_MESSAGE) if received else None


def _with_parameters(notebook: Path, parameters: Mapping[str, Any]) -> nbformat.NotebookNode:
    """The notebook with a cell behind its parameters that changes those it has."""
    book = nbformat.read(notebook, as_version=4)
    index, cell = next((i, c) for i, c in enumerate(book.cells) if "parameters" in c.metadata.get("tags", []))
    known = {name.id for node in ast.parse(cell.source).body for name in getattr(node, "targets", ())}
    source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items() if name in known)
    book.cells.insert(index + 1, nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]}))
    return book


def _print_summary(summary: Mapping[str, Any], paths: Paths) -> None:
    """Every number the notebooks of this run recorded, and where the pictures are."""
    own_folder = f"{paths.cluster_folder.name}/"
    print("\nnotebook                                             metric                             value")
    for section, values in summary.items():
        if section == "run":
            values = {name: values[name] for name in ("data_fingerprint", "seconds", "peak_memory_gb")}
        if "/" in section and not section.startswith(own_folder):
            continue  # another number of clusters in the same folder
        for name, value in _rows(values):
            shown = f"{value:.5g}" if isinstance(value, float) else value
            print(f"{section.removeprefix(own_folder):<52} {name:<34} {shown}")
    print("\nfigures")
    for folder in sorted((paths.root / "Figures").glob("Figure *")):
        print(f"  {folder}: {', '.join(path.name for path in sorted(folder.glob('*.jpg'), key=_natural))}")
    print(f"cluster sheet\n  {paths.cluster_sheet}\nsummary\n  {paths.summary}")


def _rows(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for name, value in values.items():
        rows += _rows(value, f"{prefix}{name}: ") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return rows


def _natural(path: Path) -> tuple[int, str]:
    return len(path.name), path.name


if __name__ == "__main__":
    sys.exit(main())
