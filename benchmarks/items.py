"""What is measured: each item does one stated piece of work the published way and the way of `pfiles`.

A job prepares networks and inputs for a size and a device and returns a run; a run does the work, or the part of it
that the item states, and returns the seconds that the whole takes. Networks are untrained, tiles are random and smooth:
neither changes the time, zeros would.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.inputs import (
    KS,
    N_CLUSTERS,
    SOLVER,
    SOLVER_STEPS,
    Flops,
    Networks,
    Size,
    make_networks,
    open_untrained,
    published_networks,
    scheduler_of,
    smooth_tiles,
)
from benchmarks.measure import Job, Run, peak_mb, seconds, synchronize
from pfiles import learn
from pfiles.cluster_bank import ClusterBank
from pfiles.drawing.generator import Generator
from pfiles.drawing.sampling import image_seeds, sample
from pfiles.latents import encode_tiles
from pfiles.learning import clusters, diffusion, loop
from pfiles.learning.log import History
from pfiles.learning.loop import epoch_batches
from pfiles.machine.runtime import derive_seed, make_rng, seeded
from pfiles.machine.speed import pick_speed
from pfiles.measuring import pairs
from pfiles.settings import DiffusionSettings, StageSettings
from pfiles.tiles import files
from pfiles.tiles.files import write_tiles
from pfiles.tiles.pixels import as_array, to_unit
from pfiles.tiles.views import random_affine
from pfiles.vqvae import VQVAE

# UNet forward, batch of 8


def unet_inputs(size: Size, networks: Networks, device: str) -> tuple[Tensor, Tensor, Tensor]:
    rng = make_rng("benchmark unet")
    x = torch.randn(8, *networks.latent_shape(size), generator=rng)
    t = torch.randint(size.settings.diffusion.num_timesteps, (8,), generator=rng)
    return x.to(device), t.to(device), (torch.arange(8) % N_CLUSTERS).to(device)


def unet_run(size: Size, device: str, networks: Networks, predict: Callable[..., Tensor]) -> Run:
    inputs = unet_inputs(size, networks, device)

    @torch.no_grad()
    def calls() -> None:
        for _ in range(size.calls):
            predict(*inputs)

    return lambda: {"seconds": seconds(device, calls) / size.calls}


def unet_reference(size: Size, device: str) -> Run:
    networks = published_networks(size, device)
    return unet_run(size, device, networks, networks.unet)


def unet_product(size: Size, device: str) -> Run:
    networks = make_networks(size, device)
    return unet_run(size, device, networks, pick_speed(size.settings, torch.device(device)).accelerate(networks.unet))


# One step of the first training, batch of 16


def loss_weights(diffusion: DiffusionSettings, stage: StageSettings) -> dict[str, float]:
    """The weight of each term in the first training's loss."""
    return {
        "mse": 1.0,
        "marginal_entropy": -diffusion.marginal_entropy_weight,
        "conditional_entropy": diffusion.conditional_entropy_weight,
        "affine_kl": stage.affine_weight,
    }


def stage_reference(size: Size, device: str) -> Run:
    networks = published_networks(size, device)
    diffusion, stage = size.settings.diffusion, size.settings.training
    networks.unet.train()
    networks.classifier.train()
    parameters = [*networks.unet.parameters(), *networks.classifier.parameters()]
    optimizer = torch.optim.Adadelta(parameters, lr=stage.learning_rate)
    alpha_bar = scheduler_of(size, diffusion.num_timesteps).alpha_cumprod
    images = as_array(smooth_tiles(16 * size.stage_steps, size.settings.image_size_px))
    weights = loss_weights(diffusion, stage)
    rng = make_rng("benchmark stage")

    def epoch() -> None:
        for index in epoch_batches(len(images), 16, rng):
            x = reference.tiles_one_by_one(images, index).to(device)
            with seeded(int(index[0]), "benchmark views"):
                x_affine = reference.tiles_one_by_one(images, index, reference.affine_view).to(device)
            t = torch.randint(diffusion.num_timesteps, (16,), generator=rng).to(device)
            noise = torch.randn(16, *networks.latent_shape(size), generator=rng).to(device)
            reference.stage_step(
                networks.unet, networks.classifier, networks.vqvae, optimizer, x, x_affine, t, noise, alpha_bar, weights
            )

    return lambda: {"seconds": seconds(device, epoch) / size.stage_steps}


def stage_product(size: Size, device: str) -> Run:
    networks = learn.new_networks(open_untrained("paper", size.overrides, device))
    return training_run(size, device, networks.space.vqvae, diffusion.train_stage, **learning(networks))


def learning(networks: Generator) -> dict[str, Any]:
    """What `learning.diffusion.train_stage` trains."""
    return {"unet": networks.unet, "bank": networks.bank, "space": networks.space}


def training_run(size: Size, device: str, vqvae: VQVAE, learn: Callable[..., History], **networks: Any) -> Run:
    """A step of a training of `learning.diffusion`, which gets the networks by name."""
    tiles = smooth_tiles(16 * size.stage_steps, size.settings.image_size_px).to(device)
    speed, codes = pick_speed(size.settings, torch.device(device)), encode_tiles(vqvae, tiles)
    stage = replace(size.settings.training, epochs=2)

    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            job = loop.Job("benchmark", 0, 16, Path(folder), {}, size.settings.saving, speed, restart=True)
            history = learn(
                **networks, images=tiles, codes=codes, settings=size.settings.diffusion, stage=stage, job=job
            )
        return {"seconds": history[-1]["seconds"] / size.stage_steps}  # its first epoch is the warm-up

    return run


# A step for every k, batch of 16, against seven steps of the first training


def seven_reference(size: Size, device: str) -> Run:
    step = stage_reference(size, device)
    return lambda: {"seconds": len(KS) * step()["seconds"]}


def clusters_product(size: Size, device: str, seeds: int = 1) -> Run:
    """The classifiers of every k and of so many seeds, without a UNet."""
    run = open_untrained("paper", size.overrides, device, KS)
    classifiers = ClusterBank(learn.new_clusterer(run, k, seed) for k in KS for seed in range(seeds))
    training = partial(clusters.train_clusters, vqvae=run.vqvae)
    return training_run(size, device, run.vqvae, training, bank=classifiers)


def one_unet_product(size: Size, device: str) -> Run:
    """The classifiers of every k, and one UNet for all of them."""
    networks = learn.new_networks(open_untrained("paper", size.overrides, device, KS))
    return training_run(size, device, networks.space.vqvae, diffusion.train_stage, **learning(networks))


# An epoch's data path: load, augment, encode


def data_reference(size: Size, device: str) -> Run:
    vqvae = published_networks(size, device).vqvae
    images = as_array(smooth_tiles(size.tiles, size.settings.image_size_px))

    @torch.no_grad()
    def epoch() -> None:
        for index in epoch_batches(len(images), 16, make_rng("benchmark data")):
            with seeded(int(index[0]), "benchmark views"):
                for view in (lambda image: image, reference.affine_view):
                    vqvae.encode(reference.tiles_one_by_one(images, index, view).to(device))

    return lambda: {"seconds": seconds(device, epoch) * 1000 / size.tiles}


def data_product(size: Size, device: str) -> Run:
    vqvae = make_networks(size, device).vqvae
    encode = pick_speed(size.settings, torch.device(device)).accelerate(vqvae.encode_codes)
    images = smooth_tiles(size.tiles, size.settings.image_size_px)
    codes = encode_tiles(vqvae, images.to(device))

    @torch.no_grad()
    def epoch() -> None:
        tiles = images.to(device)
        rng = make_rng("benchmark views", device=device)
        for index in epoch_batches(len(tiles), 16, make_rng("benchmark data")):
            index = index.to(device)
            vqvae.embed(codes[index])
            vqvae.embed(encode(to_unit(random_affine(tiles[index], rng))))

    return lambda: {"seconds": seconds(device, epoch) * 1000 / size.tiles}


# Images from noise


def timed_decode(device: str, decode: Callable[[Tensor], Tensor], spent: list[float]) -> Callable[[Tensor], Tensor]:
    """`decode`, which notes its time in `spent`: it happens once per image, however many steps there are."""

    def timed(z: Tensor) -> Tensor:
        images = []
        synchronize(device)
        spent.append(seconds(device, lambda: images.append(decode(z))))
        return images[0]

    return timed


def sampling_seconds(
    device: str, decode: Callable[[Tensor], Tensor], draw: Callable[[Callable[[Tensor], Tensor]], object], factor: float
) -> float:
    """Time of `draw(decode)` if its denoising steps were `factor` times as many."""
    spent: list[float] = []
    total = seconds(device, lambda: draw(timed_decode(device, decode, spent)))
    return (total - sum(spent)) * factor + sum(spent)


def one_by_one(size: Size, device: str) -> Run:
    """16 images through 1,000 time steps, one per call."""
    networks = published_networks(size, device)
    betas = scheduler_of(size, size.ddpm_steps).betas

    def draw(decode: Callable[[Tensor], Tensor]) -> None:
        for i in range(size.single_images):
            rng = torch.Generator(device).manual_seed(derive_seed("benchmark", i))
            reference.sample_one(networks.unet, decode, betas, i, networks.latent_shape(size), rng)

    factor = 1000 / size.ddpm_steps
    return lambda: {"seconds": sampling_seconds(device, networks.vqvae.decode, draw, factor) * 16 / size.single_images}


def draw_product(size: Size, device: str, n: int, batch_size: int, sampler: str, steps: int) -> Callable[[], float]:
    """A function that draws n images in `steps` steps and gives the seconds that 1,000 steps, or a solver's, take."""
    networks = make_networks(size, device)
    speed = pick_speed(size.settings, torch.device(device))
    cluster_ids = torch.arange(n) % N_CLUSTERS
    full_steps = SOLVER_STEPS if sampler == SOLVER else 1000
    scheduler = scheduler_of(size, 1000)

    def draw(decode: Callable[[Tensor], Tensor]) -> None:
        sample(
            networks.unet, scheduler, decode, cluster_ids, image_seeds(0, range(n)),
            latent_shape=networks.latent_shape(size), num_steps=steps, batch_size=batch_size, sampler=sampler,
            speed=speed, progress=False,
        )  # fmt: skip

    return lambda: sampling_seconds(device, networks.vqvae.decode, draw, full_steps / steps)


def sixteen(size: Size, device: str) -> Run:
    draw = draw_product(size, device, 16, 16, "ddpm", size.ddpm_steps)
    return lambda: {"seconds": draw()}


def sixteen_by_solver(size: Size, device: str) -> Run:
    draw = draw_product(size, device, 16, 16, SOLVER, size.solver_steps)
    return lambda: {"seconds": draw()}


def ten_thousand(size: Size, device: str) -> Run:
    draw = draw_product(size, device, size.many, size.batch_sizes[-1], "ddpm", size.many_steps)
    return lambda: {"seconds": draw() * 10_000 / size.many}


def ten_thousand_by_solver(size: Size, device: str) -> Run:
    draw = draw_product(size, device, size.many, size.batch_sizes[-1], SOLVER, size.solver_steps)
    return lambda: {"seconds": draw() * 10_000 / size.many}


def batch_sizes(size: Size, device: str) -> Run:
    """A step for an image, at each batch size and at the best of them."""
    draws = {n: draw_product(size, device, n, n, "ddpm", size.ddpm_steps) for n in size.batch_sizes}

    def run() -> dict[str, object]:
        tried = []
        for n, draw in draws.items():
            if torch.device(device).type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            tried.append({"batch_size": n, "seconds": draw() / 1000 / n, "peak_mb": peak_mb(device)})
        return {"seconds": min(row["seconds"] for row in tried), "tried": tried}

    return run


# SSIM and MS-SSIM of pairs of files


def pair_folders(size: Size) -> tuple[tempfile.TemporaryDirectory, list[Path], list[Path]]:
    """Two folders of PNG files below a temporary one, to be kept as long as they are needed: pairs by name."""
    root = tempfile.TemporaryDirectory()
    tiles = smooth_tiles(2 * size.pairs, size.settings.image_size_px)
    numbers = range(1, size.pairs + 1)
    folders = []
    for name, part in zip(("org", "gen"), (tiles[: size.pairs], tiles[size.pairs :]), strict=True):
        write_tiles(Path(root.name, name), numbers, part)
        folders.append([Path(root.name, name, f"{i}.png") for i in numbers])
    return root, *folders


def metrics_reference(size: Size, device: str) -> Run:
    root, originals, generated = pair_folders(size)

    def score() -> None:
        assert root, "keeps the folder"
        reference.ssim_one_by_one(originals, generated)
        reference.ms_ssim_one_by_one(originals, generated)

    return lambda: {"seconds": seconds(device, score) * 1000 / size.pairs}


def metrics_product(size: Size, device: str) -> Run:
    root, originals, generated = pair_folders(size)

    def score() -> None:
        assert root, "keeps the folder"
        _, real, fake = files.load_pairs(originals[0].parent, generated[0].parent)
        for pair_score in (pairs.ssim, pairs.ms_ssim):
            pairs.score_pairs(partial(pair_score, device=device), real, fake)

    return lambda: {"seconds": seconds(device, score) * 1000 / size.pairs}


@dataclass(frozen=True)
class Item:
    """name: for the command line. work: what the seconds are of. part: what of it is really done, where not all is.
    flops: what the product computes in that work, for its share of the ceiling. on_cpu: whether it is measured on a
    CPU unless named."""

    name: str
    work: str
    reference: Job | None
    product: Job
    part: Callable[[Size], str] = lambda size: ""
    flops: Callable[[dict[str, Flops]], Flops] | None = None
    on_cpu: bool = True


def images_flops(images: float, steps: int) -> Callable[[dict[str, Flops]], Flops]:
    return lambda counts: images * (steps * counts["unet"] + counts["decode"])


def classifiers_flops(n: int) -> Callable[[dict[str, Flops]], Flops]:
    """Of a step of n classifiers on 16 tiles: moved views encoded once, both views through each and back."""
    return lambda counts: 16 * counts["encode"] + 16 * 6 * n * counts["classifier"]


ITEMS = (
    Item("unet", "UNet forward, batch of 8", unet_reference, unet_product,
         flops=lambda counts: 8 * counts["unet"]),
    Item("stage", "a step of the first training, batch of 16", stage_reference, stage_product,
         flops=lambda counts: 16 * (3 * counts["unet"] + counts["encode"])),
    Item("clusters", "a step of the clusters of seven k, batch of 16", seven_reference, clusters_product,
         lambda size: "one of the seven published steps", classifiers_flops(len(KS))),
    Item("clusters-21", "the same with three seeds, 21 classifiers", None, partial(clusters_product, seeds=3),
         flops=classifiers_flops(3 * len(KS))),
    Item("every-k", "a step of the clusters of seven k and one UNet for all, batch of 16", seven_reference,
         one_unet_product, lambda size: "one of the seven published steps",
         lambda counts: classifiers_flops(len(KS))(counts) + 48 * counts["unet"]),
    Item("data", "load, augment and encode 1,000 tiles, an epoch's", data_reference, data_product,
         lambda size: f"{size.tiles} tiles", flops=lambda counts: 1000 * counts["encode"]),
    Item("ddpm", "16 images in 1,000 DDPM steps", one_by_one, sixteen,
         lambda size: f"{size.ddpm_steps} steps, {size.single_images} images one by one",
         images_flops(16, 1000)),
    Item("solver", f"16 images in {SOLVER_STEPS} steps of DPM-Solver++ against 1,000", one_by_one, sixteen_by_solver,
         lambda size: f"{size.solver_steps} steps against {size.ddpm_steps}, {size.single_images} images one by one",
         images_flops(16, SOLVER_STEPS)),
    Item("metrics", "SSIM and MS-SSIM of 1,000 pairs of files", metrics_reference, metrics_product,
         lambda size: f"{size.pairs} pairs"),
    Item("batch", "a DDPM step of one image at the best batch size", None, batch_sizes,
         lambda size: f"{size.ddpm_steps} steps", images_flops(1e-3, 1000), on_cpu=False),
    Item("ddpm-10000", "10,000 images in 1,000 DDPM steps", None, ten_thousand,
         lambda size: f"{size.many} images, {size.many_steps} steps", images_flops(10_000, 1000), on_cpu=False),
    Item("solver-10000", f"10,000 images in {SOLVER_STEPS} steps of DPM-Solver++", None, ten_thousand_by_solver,
         lambda size: f"{size.many} images, {size.solver_steps} steps", images_flops(10_000, SOLVER_STEPS),
         on_cpu=False),
)  # fmt: skip
