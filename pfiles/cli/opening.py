"""What a command that runs notebooks opens and checks before the first of them. It loads torch, which the command
itself does without: the notebooks' kernel does this for it."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypedDict

import torch

from pfiles.choices import DEFAULTS, resolve_choices
from pfiles.choose_k import require_learnable
from pfiles.cli.options import parse_overrides, resolve_data
from pfiles.clusterers import make_clusterer
from pfiles.discriminator import make_discriminator
from pfiles.drawing.samplers import make_solver
from pfiles.drawing.starting import starting_weights
from pfiles.errors import InputError
from pfiles.learning.autoencoder import make_polish_discriminator
from pfiles.learning.resume import name_of_restart
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.lpips import vgg16_file
from pfiles.machine.runtime import versions
from pfiles.paths import ROOT, Paths, atomic_write, expand, refuse_foreign
from pfiles.provenance import MADE_FROM
from pfiles.run import Run, open_run
from pfiles.settings import Settings
from pfiles.unet_cond_base import make_unet
from pfiles.vqvae import make_vqvae


class Plan(TypedDict):
    """What a command is to do, in values that JSON can hold.

    parameters: of its notebooks. ks: the numbers of clusters. paths: the arguments of `Paths`. executed: the folder
    that is locked while it works. restart: the name under which its trainings begin anew; None: they go on.
    restart_note: the file that keeps that name until the command is done. record: what summary.json says of it.
    """

    parameters: dict[str, Any]
    ks: list[int]
    paths: tuple[int | str, str | None, str]
    executed: str
    restart: str | None
    restart_note: str
    record: dict[str, Any]


def plan(section: str, options: Mapping[str, Any]) -> Plan:
    """Check all that a command is given, and say what it is to do.

    section: where summary.json keeps it, "run" or "clusters". options: those of the command.
    InputError if its notebooks could not do what they are asked to, or would replace other files.
    """
    args = argparse.Namespace(**options)
    opened, parameters = open_and_check(args)
    if section == "clusters":
        parameters |= {"seeds": args.seeds}
        require_learnable(opened.tiles, opened.ks, args.seeds)
    elif opened.settings.lpips_required:
        vgg16_file()  # part 12 needs it, after all trainings
    paths, tiles = opened.paths, opened.tiles
    if paths.root != ROOT:
        is_own = any((paths.root / name).exists() for name in ("kpc_ldm", "executed", f"org/{MADE_FROM}"))
        refuse_foreign(paths.root, ("summary.json", "Figures", "org"), is_own)
    _refuse_read_only(paths)
    executed = paths.root / "executed" / f"clusters_{paths.n_clusters}{paths.suffix}"
    note = executed / f"restart_{section}.json"
    record = {
        **parameters,
        "data": opened.data,
        "restart": args.restart,
        "settings": asdict(opened.settings),
        "data_fingerprint": tiles.fingerprint(),
        "mpp": tiles.mpp,
        "versions": versions(),
    }
    return {
        "parameters": parameters,
        "ks": [*opened.ks],
        "paths": (paths.n_clusters, None if paths.out is None else str(paths.out), paths.clustering),
        "executed": str(executed),
        "restart": name_of_restart(note, parameters) if args.restart else None,
        "restart_note": str(note),
        "record": record,
    }


def open_and_check(args: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """The run that a command describes, and the values for the notebooks' parameter cells; refuses wrong ones before
    any work."""
    options = {
        "n_clusters": args.clusters, "clustering": args.clustering, "data": args.data, "preset": args.preset,
        "overrides": parse_overrides(args.overrides), "seed": args.seed,
        "out": None if args.out is None else str(expand(args.out).absolute()),
    }  # fmt: skip
    choices = resolve_choices(options)
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
    """InputError if the settings describe networks that cannot be: they are built without memory and get a tile."""
    autoencoder, side = settings.autoencoder, settings.image_size_px
    try:
        with torch.device("meta"):
            vqvae = make_vqvae(autoencoder)
            image, _, _ = vqvae(torch.empty(2, 3, side, side))
            make_discriminator(autoencoder)(image)
            if autoencoder.polish.epochs:
                make_polish_discriminator(autoencoder.polish, "meta", maps=lambda image: [])
            unet = make_unet(settings.diffusion, vqvae.z_channels, sum(ks))
            z = torch.empty(2, *vqvae.latent_shape(side))
            make_clusterer(clustering, vqvae.z_channels, max(ks))(z)
            unet(z, torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    except Exception as error:  # torch raises many kinds of errors for impossible sizes
        reason = str(error).partition("\n")[0]
        raise InputError(
            "autoencoder.vqvae, autoencoder.discriminator, autoencoder.polish.discriminator or diffusion.unet describe "
            f"a network that cannot be built for tiles of {side} px ({reason})."
        ) from error


def _refuse_read_only(paths: Paths) -> None:
    """InputError if the folder of a run takes no file."""
    probe = paths.root / ".probe"
    try:
        with atomic_write(probe):
            pass
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"The output folder {paths.root} takes no file ({error.strerror}): mend that, or name another one with "
            "--out."
        ) from error
