"""Is this machine ready for a run, and how long will it take: one line for each thing a run needs, green or red.

python -m pfiles check --data PATH --preset recommended
"""

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import psutil
import torch
from IPython.utils.capture import capture_output

from pfiles.checkpoints import START, find_checkpoint
from pfiles.discriminator import Discriminator
from pfiles.drawing.generator import STARTER
from pfiles.errors import InputError
from pfiles.latents import encode_tiles
from pfiles.lpips import LPIPS
from pfiles.machine.cpu import usable_cores
from pfiles.machine.processes import in_notebook, progress
from pfiles.measuring import pairs, tile_network, two_sample, usefulness
from pfiles.measuring.memorisation import nearest_tiles
from pfiles.paths import ROOT, Paths
from pfiles.reporting import atlas, evaluation
from pfiles.session import OpenRun, open_run
from pfiles.tiles.pixels import evenly_spaced
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import make_vqvae

STEPS = 20  # measured of each training
FEW, PATIENCE = 2, 20  # where the second step says that all would take longer than so many seconds, two must do
GREEN, RED, PLAIN = "\033[32m", "\033[31m", "\033[0m"  # as terminals and notebooks show colours
DRAWN_FOR_FIGURES = 5  # tiles of parts 4, 7 and 8
AT_ONCE = 16  # tiles drawn to measure with
SEARCHED_AMONG = 1000  # training tiles at most in which copies are looked for
START_UP = 3.0  # seconds until a notebook has loaded its packages
MOST_TOLD_APART = 9  # pairs of sets that part 13's two-sample test tells apart, those of its guards among them


class Line(NamedTuple):
    """One thing that was looked at. found: what there is; advice: what to do where that is not enough."""

    is_good: bool
    what: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        mark = f"{GREEN}ok   {PLAIN}" if self.is_good else f"{RED}mend {PLAIN}"
        return f"{mark}{self.what}: {self.found}{f'. {self.advice}' if self.advice else ''}"


def check(
    n_clusters: int | str | None = None, clustering: str | None = None, data: str | Path | None = None,
    preset: str | None = None, overrides: Mapping[str, Any] | None = None, out: str | Path | None = None,
    measure: bool = True,
) -> bool:  # fmt: skip
    """Print what a run with these choices finds here; whether all of it is good.

    What is None is as run.toml says. measure: train some steps of every training, in a folder that is removed again,
    and say how long each notebook will take: from seconds to two minutes.
    """
    run = open_run("check", n_clusters, clustering, data, preset, overrides, out=out)
    is_good = True
    for line in _lines(run, measure):
        print(line, flush=True)
        is_good &= line.is_good
    return is_good


def _lines(run: OpenRun, measure: bool) -> Iterator[Line]:
    yield _packages()
    yield _gpu(run, measure)
    try:
        with redirect_stdout(StringIO()) as said:
            tiles = run.tiles
        sizes = f"{len(tiles.train)} training and {len(tiles.test)} held-out tiles of {run.settings.image_size_px} px"
        split = " ".join(line for line in said.getvalue().splitlines()[:-1] if not line.startswith("Using"))
        yield Line(True, "data", f"{sizes} from {tiles.source}", split.removesuffix("."))
    except InputError as error:
        yield Line(False, "data", str(error))
        tiles = None
    yield _disk(run, 0 if tiles is None else len(tiles.train))
    yield from _weights(run)
    has_widgets = find_spec("ipywidgets") is not None
    advice = "" if has_widgets else "pip install -c constraints.txt ipywidgets: bars need none, but an atlas does"
    yield Line(has_widgets, "widgets", "in this kernel" if has_widgets else "missing", advice)
    if measure and tiles is not None:
        for name, seconds, how in estimate(run):
            yield Line(True, f"time of {name}", f"about {timedelta(seconds=round(START_UP + seconds))}, {how}")


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


def _gpu(run: OpenRun, measure: bool) -> Line:
    memory = f"{psutil.virtual_memory().available / 2**30:.0f} GiB of memory free"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        busy = free < total / 2
        found = f"{torch.cuda.get_device_name()} with {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, {memory}"
        return Line(not busy, "GPU", found, "Others use it: see nvidia-smi, or take another card" if busy else "")
    small = run.preset == "demo"
    times = "see the times below" if measure else "a check without --fast says how long it takes"
    advice = "" if small else f"preset {run.preset!r} is made for one: {times}, or take preset 'demo'"
    return Line(small, "GPU", f"none, {usable_cores()} CPU cores, {memory}", advice)


def _disk(run: OpenRun, tiles: int) -> Line:
    """Room for two resume points of each training (weights, two moments of each, averages), images and codes."""
    settings, side = run.settings, run.settings.image_size_px
    with torch.device("meta"):
        vqvae = make_vqvae(settings.autoencoder)
        networks = vqvae, Discriminator(**settings.autoencoder.discriminator)
        unet = UNet(vqvae.z_channels, sum(run.ks), **settings.diffusion.unet)
    first, later = (sum(p.numel() for network in some for p in network.parameters()) for some in (networks, [unet]))
    resumed = 2 * (2 * 3 * 4 * first + 3 * 4 * 4 * later)  # bytes: autoencoder and polish; three trainings of the UNet
    drawn = settings.sampling.num_generated or tiles
    need = resumed + 2 * drawn * 3 * side**2 + 8 * tiles * (side // vqvae.downscale) ** 2
    place = next(folder for folder in (run.paths.root, *run.paths.root.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / 2**30:.1f} GiB free in {place}, at most {need / 2**30:.2f} needed"
    if not os.access(place, os.W_OK):
        return Line(False, "disk", found, "The folder takes no file: name another one as out")
    return Line(free > need, "disk", found, "" if free > need else "Free some, or name a folder elsewhere as out")


def _weights(run: OpenRun) -> Iterator[Line]:
    """Which networks there are: of this run, of the starter, and VGG16's, where the settings ask for it."""
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
    if run.settings.autoencoder.perceptual == "lpips" or run.settings.lpips_required:
        has = _has_vgg16()
        found = "there" if has else f"not in {torch.hub.get_dir()}/checkpoints"
        advice = "It is downloaded on first use (528 MB); without a network see docs/settings.md"
        yield Line(has, "VGG16's ImageNet weights", found, "" if has else advice)


def _has_vgg16() -> bool:
    return any(Path(torch.hub.get_dir(), "checkpoints").glob("vgg16-397923af.pth"))


def estimate(run: OpenRun) -> Iterator[tuple[str, float, str]]:
    """The name of each notebook, its seconds on this machine once it has begun, and what they were measured from."""
    settings, n, k = run.settings, len(run.tiles.train), max(run.ks)  # a UNet of several k takes as long as of one
    ae, how, drawing = settings.autoencoder, settings.diffusion, settings.sampling
    batches = {
        "autoencoder": ae.batch_size, "polish": ae.polish.batch_size, "clusters": how.batch_size,
        **dict.fromkeys(START, how.batch_size),
    }  # fmt: skip
    few = min(n, max(*batches.values(), k))
    per_epoch = {name: max(1, few // size) for name, size in batches.items()}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, progress(total=6, desc="measure", leave=False) as bar:
        steps, small = FEW, _small(run, few, FEW, Path(folder, "few"))
        with capture_output():
            first = _seconds(small, "autoencoder") / per_epoch["autoencoder"]
        bar.update()
        # on a GPU the first steps are slow, as they compile, and the others are fast
        if run.device.type == "cuda" or first * STEPS < PATIENCE:
            steps, small = STEPS, _small(run, few, STEPS, Path(folder, "all"))
        for name in ["autoencoder", *["clusters"] * settings.clusters_first, *START]:
            with capture_output():
                seconds[name] = _seconds(small, name) / per_epoch[name]
                if name == "autoencoder" and ae.polish.epochs:
                    seconds["polish"] = _last_seconds(small.paths.training_folder("polish")) / per_epoch["polish"]
            bar.update()
        with capture_output():
            drawn = _seconds_per_tile(small) * drawing.steps / small.settings.sampling.steps
            sorting, scoring = _seconds_of_sorting(small), _seconds_of_scores(small)
            (prepared, searched), read = _seconds_of_search(run), n * _seconds_of_encoding(small)
    epochs = {"autoencoder": ae.epochs, "polish": ae.polish.epochs}
    epochs |= {name: getattr(settings, name).epochs for name in ("clusters", *START)}
    total = {name: each * epochs[name] * max(1, n // batches[name]) for name, each in seconds.items()}
    trained = f"from {steps} steps of each training"
    yield "train_autoencoder", total["autoencoder"] + total.get("polish", 0), trained
    encoding = read * (8 if how.latent_views else 1)
    yield "part 1", encoding + total["training"] + total.get("clusters", 0), trained
    yield "part 2", total["finetuning1"], trained
    yield "part 3", total["finetuning2"], trained
    said = f"from {small.settings.sampling.steps} of {drawing.steps} steps of drawing"
    yield "parts 4, 7 and 8, each", drawn * DRAWN_FOR_FIGURES, said
    yield "part 6", drawn * (drawing.num_generated or n), said
    generated, real = drawing.per_cluster * k, drawing.num_generated or n
    small_networks = f"from {STEPS} steps of the small networks that measure"
    yield "part 9", drawn * generated + sorting * _steps_of_sorting(generated), f"{said} and {small_networks}"
    blurs = 1 if run.preset == "demo" else len(two_sample.BLURS_PX)
    steps = _steps_of_sorting(real) + blurs * MOST_TOLD_APART * two_sample.TRIALS * two_sample.STEPS
    sorted_and_searched = sorting * steps + 2 * prepared + 2 * min(evaluation.SEARCHED, real) * searched
    yield "part 13", sorted_and_searched, f"{small_networks}, and from a search for copies"
    for part, score in scoring.items():
        yield part, real * score, f"from {AT_ONCE} pairs" if score else "as VGG16's weights are not there"
    search = f"from a search for copies of {AT_ONCE} images"
    yield "part 14", read + 2 * prepared + (real + len(run.tiles.test)) * searched, search
    shown = atlas.SHOWN * k
    yield "part 16", read + shown * drawn + prepared + shown * searched, f"{said} and {search}"
    yield "the others, each", read, f"from encoding {few} tiles"


def _steps_of_sorting(generated: int) -> int:
    """Of the networks that learn the clusters, from so many generated tiles and from as many real ones."""
    batches = -(-min(usefulness.TILES, generated) // tile_network.BATCH_SIZE)
    return 2 * usefulness.TRIALS * usefulness.EPOCHS * batches


def _seconds_of_sorting(small: OpenRun) -> float:
    """Of a step of a network that measures tiles."""
    tiles = small.train_images, torch.arange(len(small.train_images)) % 2
    began = time.monotonic()
    tile_network.train(tiles, tiles, 2, STEPS, (0, "check"), small.device)
    return (time.monotonic() - began) / STEPS


def _seconds_of_scores(small: OpenRun) -> dict[str, float]:
    """Of a pair in parts 10 to 12, which score the real tile with the generated one and with four controls."""
    tiles, device = small.train_images[:AT_ONCE].cpu(), small.device
    scores = {"part 10": (pairs.ssim_published, pairs.ssim), "part 11": (pairs.ms_ssim,), "part 12": ()}
    of_parts = {part: [partial(score, device=device) for score in some] for part, some in scores.items()}
    if _has_vgg16():
        of_parts["part 12"] = [pairs.lpips_score(LPIPS().load_pretrained().to(device), device)]
    found = {}
    for part, some in of_parts.items():
        began = time.monotonic()
        for score in some:
            score(tiles, tiles.flip(0))
        found[part] = 5 * (time.monotonic() - began) / len(tiles) if some else 0.0
    return found


def _seconds_of_search(run: OpenRun) -> tuple[float, float]:
    """Of the search for copies of images: once for all of them, and for each."""
    chosen = run.tiles.train[evenly_spaced(len(run.tiles.train), SEARCHED_AMONG)]
    train, took = run.tiles.tensor(chosen), []
    for number in (1, 1 + AT_ONCE):
        began = time.monotonic()
        nearest_tiles(train[:number], train)
        took.append((time.monotonic() - began) * len(run.tiles.train) / len(chosen))
    each = max(0.0, took[1] - took[0]) / AT_ONCE
    return took[0] - each, each


def _seconds_of_encoding(small: OpenRun) -> float:
    """Of a tile."""
    began = time.monotonic()
    encode_tiles(small.vqvae, small.train_images)
    return (time.monotonic() - began) / len(small.train_images)


def _small(run: OpenRun, tiles: int, steps: int, folder: Path) -> OpenRun:
    """The same run on so few tiles that an epoch is a step or few, for that many steps, in a folder of its own."""
    settings, how = run.settings, run.settings.sampling
    ae = settings.autoencoder
    polish = replace(ae.polish, epochs=steps if ae.polish.epochs else 0)
    perceptual = ae.perceptual if _has_vgg16() else "ms-ssim"  # nothing is downloaded for a check
    ae = replace(ae, epochs=steps, polish=polish, perceptual=perceptual, discriminator_start_step=0)
    stages = {name: replace(getattr(settings, name), epochs=steps) for name in ("clusters", *START)}
    sampling = replace(how, steps=min(how.steps, steps), batch_size=min(how.batch_size, AT_ONCE))
    settings, k = replace(settings, autoencoder=ae, sampling=sampling, **stages), max(run.ks)
    paths = Paths(k, folder, run.clustering)
    small = replace(run, settings=settings, n_clusters=k, paths=paths, restart=False)
    chosen = run.tiles.train[evenly_spaced(len(run.tiles.train), tiles)]
    vars(small)["tiles"] = replace(run.tiles, train=chosen, state=None)  # not read a second time
    return small


def _seconds(small: OpenRun, name: str) -> float:
    """Of an epoch of the training of that name, which is done here."""
    if name == "autoencoder":
        small.train_autoencoder(*small.new_autoencoder())
        return _last_seconds(small.paths.training_folder(name))
    networks = small.new_networks() if START.get(name) is None else small.networks(START[name])
    if name != "clusters":
        small.train(name, networks)
    elif small.clustering == "classifier":
        small.train_clusters(networks.clusterer)
    else:
        return 0.0
    return _last_seconds(small.paths.training_folder(name, small.clustering))


def _last_seconds(folder: Path) -> float:
    """Of an epoch, the median over the later half of them: the first ones warm up."""
    seconds = pd.read_csv(folder / "log.csv").seconds
    return float(seconds[len(seconds) // 2 :].median())


def _seconds_per_tile(small: OpenRun) -> float:
    ids = torch.arange(small.settings.sampling.batch_size) % small.n_clusters
    if small.device.type == "cuda":
        small.draw(ids, stage="training", progress=False)  # compiles
    began = time.monotonic()
    small.draw(ids, stage="training", progress=False)
    return (time.monotonic() - began) / len(ids)
