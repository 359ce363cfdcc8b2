"""The commands that run notebooks, one after the other: `run` and `demo`, `clusters`, and `cells` for one of them.

The notebooks are the only place where the order of work within a step is written.
"""

import argparse
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from pfiles import choosing
from pfiles.choices import DEFAULTS, OF_NO_CLUSTERS, choose
from pfiles.cli.execute import STOPPED, end_kernel, execute, run_cells, start_kernel
from pfiles.cli.options import parse_overrides, resolve_data
from pfiles.cli.summary import print_summary
from pfiles.clusterers import make_clusterer
from pfiles.discriminator import make_discriminator
from pfiles.drawing.samplers import make_solver
from pfiles.drawing.starting import starting_weights
from pfiles.errors import InputError
from pfiles.learning.resume import name_of_restart
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.lpips import vgg16_file
from pfiles.machine.locks import locked
from pfiles.machine.runtime import versions
from pfiles.paths import ROOT, Paths, atomic_write, expand, read_json, refuse_foreign, write_json
from pfiles.provenance import MADE_FROM
from pfiles.run import Run, open_run
from pfiles.settings import Settings
from pfiles.unet_cond_base import make_unet
from pfiles.vqvae import make_vqvae

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
ON_REQUEST = {  # by the option that asks for it
    "fields": "clusters_14/part_17_fields",  # takes minutes
    "reader_study": "clusters_14/part_18_reader_study",  # people have to answer
}
FOR_ALL_K = NOTEBOOKS[: NOTEBOOKS.index("clusters_14/part_3_finetuning2") + 1]  # once for several k, as the last one
CHOOSE_K = ("choose_k", "internal_cluster_validation_metrics")
NO_TOML = {"run_toml": False}  # for notebooks: run.toml has been read, they get its choices as parameters
Step = tuple[str, dict[str, Any]]  # a notebook and its parameters


def run(args: argparse.Namespace) -> int:
    """All notebooks in order: `run` and `demo`."""
    opened, parameters = _open_and_check(args)
    requested = [name for option, name in ON_REQUEST.items() if getattr(args, option)]
    names = (*NOTEBOOKS[:-1], *requested, NOTEBOOKS[-1])
    steps: list[Step] = [(name, parameters) for name in names]
    if opened.settings.lpips_required:
        vgg16_file()  # part 12 needs it, after all trainings
    if len(opened.ks) > 1:
        per_k = [(name, {**parameters, "n_clusters": k}) for k in opened.ks for name in names[len(FOR_ALL_K) : -1]]
        steps = [*steps[: len(FOR_ALL_K)], *per_k, steps[-1]]
    return _execute_steps(args, opened, parameters, steps)


def choose_k(args: argparse.Namespace) -> int:
    """The clusters of every k, and what the numbers support: `clusters`."""
    opened, parameters = _open_and_check(args)
    parameters |= {"seeds": args.seeds}
    choosing.check(opened.tiles, opened.ks, args.seeds)
    steps: list[Step] = [(name, parameters) for name in CHOOSE_K]
    if not opened.paths.autoencoder.exists():
        steps.insert(0, ("train_autoencoder", parameters))
    return _execute_steps(args, opened, parameters, steps, "clusters")


def cells(args: argparse.Namespace) -> int:
    """One notebook's code in this process."""
    notebooks = {name.rpartition("/")[2]: name for name in (*NOTEBOOKS, *ON_REQUEST.values(), CHOOSE_K[0])}
    name = notebooks.get(args.notebook.removesuffix(".ipynb").rpartition("/")[2])
    if name is None:
        raise InputError(f"There is no notebook {args.notebook!r}: choose one of {', '.join(notebooks)}.")
    _, parameters = _open_and_check(args)
    run_cells(ROOT / f"{name}.ipynb", {**parameters, "seeds": args.seeds} | NO_TOML)
    return 0


def make_again(notebooks: Sequence[str], choices: Mapping[str, Any], out: Path) -> None:
    """The code of some notebooks, one after the other in this process; what they say goes to a file in `out`."""
    if unknown := sorted({*notebooks} - {*NOTEBOOKS}):
        raise InputError(f"There is no notebook {unknown[0]!r} in this version: use the version that packed the run.")
    log = out / "reproduce.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(notebooks, start=1):
        print(f"[{number:2}/{len(notebooks)}] {name}", flush=True)
        with open(log, "a") as said, redirect_stdout(said):
            run_cells(ROOT / f"{name}.ipynb", {**choices, "restart": False} | NO_TOML)
        plt.close("all")


def _open_and_check(args: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """The run that a command describes, and the values for the notebooks' parameter cells; refuses wrong ones before
    any work."""
    if not (ROOT / "clusters_14").is_dir():
        raise InputError("The notebooks do not come with the installed package: run this in a checkout of the code.")
    options = {
        "n_clusters": args.clusters, "clustering": args.clustering, "data": args.data, "preset": args.preset,
        "overrides": parse_overrides(args.overrides), "seed": args.seed,
        "out": None if args.out is None else str(expand(args.out).absolute()),
    }  # fmt: skip
    choices = choose(options)
    data = resolve_data(args.data, choices["data"])
    opened = open_run("run", **choices | {"data": data}, run_toml=False, looks=True)
    settings = opened.settings
    _try_networks(settings, opened.ks, opened.clustering)
    diffusion, sampling = settings.diffusion, settings.sampling
    scheduler = LinearNoiseScheduler(diffusion.num_timesteps, diffusion.beta_start, diffusion.beta_end)
    make_solver(sampling.sampler, scheduler, sampling.steps)
    if settings.start_from is not None:
        starting_weights(settings.start_from, settings.diffusion)
    opened.tiles  # noqa: B018 - read and checked
    # notebooks that need no tiles ask for none unless they are named
    named = None if choices["data"] is None else data
    parameters = {**choices, "n_clusters": opened.n_clusters, "data": named, "restart": args.restart}
    if args.seed is None and choices["seed"] == DEFAULTS["seed"]:
        del parameters["seed"]  # each notebook's own
    return opened, parameters


def _try_networks(settings: Settings, ks: Sequence[int], clustering: str) -> None:
    """InputError where the settings describe networks that cannot be: they are built without memory and get a tile."""
    autoencoder, side = settings.autoencoder, settings.image_size_px
    try:
        with torch.device("meta"):
            vqvae = make_vqvae(autoencoder)
            image, _, _ = vqvae(torch.empty(2, 3, side, side))
            make_discriminator(autoencoder)(image)
            unet = make_unet(settings.diffusion, vqvae.z_channels, sum(ks))
            z = torch.empty(2, *vqvae.latent_shape(side))
            make_clusterer(clustering, vqvae.z_channels, max(ks))(z)
            unet(z, torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    except Exception as error:  # torch raises many kinds of errors for impossible sizes
        reason = str(error).partition("\n")[0]
        raise InputError(
            "autoencoder.vqvae, autoencoder.discriminator or diffusion.unet describe a network that cannot be built "
            f"for tiles of {side} px ({reason})."
        ) from error


def _execute_steps(
    args: argparse.Namespace, opened: Run, parameters: dict[str, Any], steps: Sequence[Step], section: str = "run"
) -> int:
    """Run notebooks, each with its parameters, and print what they recorded; the exit status.

    parameters: those of the command, which summary.json keeps in its `section`.
    """
    paths, tiles = opened.paths, opened.tiles
    if paths.root != ROOT:
        is_own = any((paths.root / name).exists() for name in ("kpc_ldm", "executed", f"org/{MADE_FROM}"))
        refuse_foreign(paths.root, ("summary.json", "Figures", "org"), is_own)
    _refuse_read_only(paths.root)
    executed = paths.root / "executed" / f"clusters_{paths.n_clusters}{paths.suffix}"
    restart = executed / f"restart_{section}.json"
    restart_parameters = {"restart": name_of_restart(restart, parameters)} if args.restart else {}
    began = time.monotonic()
    busy = (
        f"Another run with these clusters is at work in {paths.root}: wait for it, or name another folder with --out."
    )
    with locked(executed, busy), ExitStack() as stack:
        kernel = start_kernel()
        stack.callback(end_kernel, kernel)
        for number, (name, step_parameters) in enumerate(steps, start=1):
            folder = f"clusters_{step_parameters['n_clusters']}{paths.suffix}"
            title = name if step_parameters is parameters else name.replace("clusters_14", folder)
            print(f"[{number:2}/{len(steps)}] {title} ", end="", flush=True)
            started = time.monotonic()
            target = _executed_path(paths, name, folder)
            failure = execute(ROOT / f"{name}.ipynb", target, step_parameters | restart_parameters | NO_TOML, kernel)
            if failure is not None:
                return _tell_failure(*failure, target)
            print(f"{time.monotonic() - started:.0f} s", flush=True)

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    summary = read_json(paths.summary, {})
    summary[section] = {
        **parameters,
        "data": opened.data,
        "restart": args.restart,
        "settings": asdict(opened.settings),
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


def _executed_path(paths: Paths, name: str, folder: str) -> Path:
    """Where a notebook goes with its outputs; folder: that of its clusters."""
    suffix = paths.suffix if name not in OF_NO_CLUSTERS and "/" not in name else ""
    return paths.root / "executed" / f"{name.replace('clusters_14', folder)}{suffix}.ipynb"


def _tell_failure(kind: str, message: str, target: Path) -> int:
    """Print why a notebook stopped; the exit status."""
    print("stopped" if kind in STOPPED else "failed", flush=True)
    print(f"{'' if kind in STOPPED else 'error: '}{message}", file=sys.stderr)
    if target.exists():
        print(f"The notebook up to there: {target}", file=sys.stderr)
    return {InputError.__name__: 2, **STOPPED}.get(kind, 1)


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
