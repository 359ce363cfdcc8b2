"""How long each notebook of a run takes on this machine, from some steps of each training and of each measure."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from pfiles import draw, learn
from pfiles.checkpoints import START
from pfiles.errors import extra
from pfiles.latents import encode_tiles
from pfiles.machine.processes import progress
from pfiles.measuring import tile_network
from pfiles.measuring.certificate import copies_of_a_kind
from pfiles.measuring.memorisation import nearest_tiles
from pfiles.measuring.planted import KINDS
from pfiles.measuring.two_sample import BLURS_PX
from pfiles.paths import Paths
from pfiles.reporting import atlas, evaluation
from pfiles.reporting.sections import copies, paired, structure
from pfiles.reporting.sections.record import Work
from pfiles.run import Run
from pfiles.tiles.pixels import evenly_spaced

STEPS = 20  # measured of each training
FEW, PATIENCE = 2, 20  # where the second step says that all would take longer than so many seconds, two must do
DRAWN_FOR_FIGURES = 5  # tiles of parts 4, 7 and 8
AT_ONCE = 16  # tiles drawn to measure with
SEARCHED_AMONG = 1000  # training tiles at most in which copies are looked for


def estimate(run: Run) -> Iterator[tuple[str, float, str]]:
    """The name of each notebook, its seconds on this machine once it has begun, and what they were measured from."""
    with extra("notebooks"):
        from IPython.utils.capture import capture_output

    settings, n, k = run.settings, len(run.tiles.train), max(run.ks)  # a UNet of several k takes as long as of one
    ae, diffusion, drawing = settings.autoencoder, settings.diffusion, settings.sampling
    batches = {
        "autoencoder": ae.batch_size, "polish": ae.polish.batch_size, "clusters": diffusion.batch_size,
        **dict.fromkeys(START, diffusion.batch_size),
    }  # fmt: skip
    n_tiles = min(n, max(*batches.values(), k))
    per_epoch = {name: max(1, n_tiles // size) for name, size in batches.items()}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, progress(total=7, desc="measure", leave=False) as bar:
        steps, small = FEW, shortened(run, n_tiles, FEW, Path(folder, "few"))
        with capture_output():
            first = seconds_of_epoch(small, "autoencoder") / per_epoch["autoencoder"]
        bar.update()
        # on a GPU the first steps are slow, as they compile, and the others are fast
        if run.device.type == "cuda" or first * STEPS < PATIENCE:
            steps, small = STEPS, shortened(run, n_tiles, STEPS, Path(folder, "all"))
        polish, clusters = ["polish"] * bool(ae.polish.epochs), ["clusters"] * settings.clusters_first
        for name in ["autoencoder", *polish, *clusters, *START]:
            with capture_output():
                seconds[name] = seconds_of_epoch(small, name) / per_epoch[name]
            bar.update()
        with capture_output():
            tile_seconds = _seconds_per_tile(small) * drawing.steps / small.settings.sampling.steps
            sorting, scoring = _seconds_of_sorting(small), _seconds_of_scores(small)
            (prepared, searched), read = _seconds_of_search(run), n * _seconds_of_encoding(small)
    epochs = {"autoencoder": ae.epochs, "polish": ae.polish.epochs}
    epochs |= {name: getattr(settings, name).epochs for name in ("clusters", *START)}
    total = {name: each * epochs[name] * max(1, n // batches[name]) for name, each in seconds.items()}
    trained = f"from {steps} steps of each training"
    yield "train_autoencoder", total["autoencoder"] + total.get("polish", 0), trained
    encoding = read * (8 if diffusion.latent_views else 1)
    yield "part 1", encoding + total["training"] + total.get("clusters", 0), trained
    yield "part 2", total["finetuning1"], trained
    yield "part 3", total["finetuning2"], trained
    from_drawing = f"from {small.settings.sampling.steps} of {drawing.steps} steps of drawing"
    yield "parts 4, 7 and 8, each", tile_seconds * DRAWN_FOR_FIGURES, from_drawing
    yield "part 6", tile_seconds * (drawing.num_generated or n) / drawing.accept, from_drawing
    generated, real = drawing.per_cluster * k, drawing.num_generated or n
    small_networks = f"from {STEPS} steps of the small networks that measure"
    blurs = 1 if run.preset == "demo" else len(BLURS_PX)
    work = Work(real, n, blurs, sorting, prepared, searched, structure.seconds_per_tile(run.train_images[:AT_ONCE]))
    yield "part 9", tile_seconds * generated, from_drawing
    seconds_13 = sum(record.seconds(work) for record in evaluation.SECTIONS)
    yield "part 13", seconds_13, f"{small_networks}, and from a search for copies"
    for part, score in scoring.items():
        yield part, real * score, f"from {AT_ONCE} pairs" if score else "as VGG16's weights are not there"
    search = f"from a search for copies of {AT_ONCE} images"
    planted = len(KINDS) * copies_of_a_kind(len(run.tiles.train))
    yield "part 14", read + copies.seconds_of_section(work, real, len(run.tiles.test) + planted), search
    atlas_tiles = atlas.SHOWN * k
    seconds_16 = copies.seconds_of_search(work, atlas_tiles + min(atlas.HELD_OUT, len(run.tiles.test)), n)
    yield "part 16", read + atlas_tiles * tile_seconds + seconds_16, f"{from_drawing} and {search}"
    yield "the others, each", read, f"from encoding {n_tiles} tiles"


def _seconds_of_sorting(small: Run) -> float:
    """Seconds of one training step of a small network that measures tiles."""
    tiles = small.train_images, torch.arange(len(small.train_images)) % 2
    began = time.monotonic()
    tile_network.train(tiles, tiles, 2, STEPS, (0, "check"), small.device)
    return (time.monotonic() - began) / STEPS


def _seconds_of_scores(small: Run) -> dict[str, float]:
    """Seconds to score a pair, for each of parts 10 to 12; 0 if the weights are missing: a check downloads nothing."""
    tiles = small.train_images[:AT_ONCE].cpu()
    return {
        part: 0.0 if "lpips" in names and not has_vgg16() else paired.seconds_per_pair(names, tiles, small.device)
        for part, names in paired.BY_NOTEBOOK.items()
    }


def _seconds_of_search(run: Run) -> tuple[float, float]:
    """Seconds of the search for copies: to index one training tile, and to look one image up."""
    places = run.tiles.train[evenly_spaced(len(run.tiles.train), SEARCHED_AMONG)]
    train, took = run.tiles.tensor(places), []
    for number in (1, 1 + AT_ONCE):
        began = time.monotonic()
        nearest_tiles(train[:number], train)
        took.append(time.monotonic() - began)
    each = max(0.0, took[1] - took[0]) / AT_ONCE
    return max(0.0, took[0] - each) / len(places), each


def _seconds_of_encoding(small: Run) -> float:
    """Seconds of encoding one tile."""
    began = time.monotonic()
    encode_tiles(small.vqvae, small.train_images)
    return (time.monotonic() - began) / len(small.train_images)


def shortened(run: Run, tiles: int, steps: int, folder: Path) -> Run:
    """The same run on so few tiles that an epoch is a step or few, for that many steps, in a folder of its own."""
    settings, drawing = run.settings, run.settings.sampling
    ae = settings.autoencoder
    polish = replace(ae.polish, epochs=steps if ae.polish.epochs else 0)
    downloads = ae.perceptual == "lpips" and not has_vgg16()
    perceptual = "ms-ssim" if downloads else ae.perceptual  # nothing is downloaded for a check
    ae = replace(ae, epochs=steps, polish=polish, perceptual=perceptual, discriminator_start_step=0)
    stages = {name: replace(getattr(settings, name), epochs=steps) for name in ("clusters", *START)}
    sampling = replace(drawing, steps=min(drawing.steps, steps), batch_size=min(drawing.batch_size, AT_ONCE))
    settings, k = replace(settings, autoencoder=ae, sampling=sampling, **stages), max(run.ks)
    paths = Paths(k, folder, run.clustering)
    places = run.tiles.train[evenly_spaced(len(run.tiles.train), tiles)]
    assets = {"tiles": replace(run.tiles, train=places, state=None)}  # not read a second time
    return replace(run, settings=settings, n_clusters=k, paths=paths, restart=False, assets=assets)


def seconds_of_epoch(small: Run, name: str) -> float:
    """Seconds of an epoch of the training of that name, measured here; the polish is measured with the autoencoder."""
    if name in ("autoencoder", "polish"):
        if name == "autoencoder":
            learn.autoencoder(small, *learn.new_autoencoder(small))
        return _last_seconds(small.paths.training_folder(name))
    origin = START.get(name)
    networks = learn.new_networks(small) if origin is None else small.networks(origin)
    if name != "clusters":
        learn.unet(small, name, networks)
    elif small.clustering == "classifier":
        learn.clusters(small, networks.bank)
    else:
        return 0.0
    return _last_seconds(small.paths.training_folder(name, small.clustering))


def _last_seconds(folder: Path) -> float:
    """Seconds of an epoch: the median over the later half of the epochs, as the first ones warm up."""
    seconds = pd.read_csv(folder / "log.csv").seconds
    return float(seconds[len(seconds) // 2 :].median())


def _seconds_per_tile(small: Run) -> float:
    ids = torch.arange(small.settings.sampling.batch_size) % small.k
    if small.device.type == "cuda":
        draw.tiles(small, ids, stage="training", progress=False)  # compiles
    began = time.monotonic()
    draw.tiles(small, ids, stage="training", progress=False)
    return (time.monotonic() - began) / len(ids)


def has_vgg16() -> bool:
    """Whether VGG16's ImageNet weights lie where torch looks for them."""
    return any(Path(torch.hub.get_dir(), "checkpoints").glob("vgg16-397923af.pth"))
