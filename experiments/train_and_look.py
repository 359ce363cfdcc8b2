"""A few minutes of training at full size, and pictures of what came of it: a quick look at a machine and at tiles.

    python -m experiments.train_and_look [TILES] [--minutes 4] [--size tiny] [--out DIR]

Trains the VQ-GAN (MS-SSIM as perceptual loss, which needs no download) and then the UNet with its classifier, both by
Adam, for as many epochs as fit into the minutes by a step time measured first; where not even one does, on fewer
tiles. Leaves DIR/reconstructions.png, DIR/samples.png, a row for each cluster, and DIR/train_and_look.json.
"""

import copy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.inputs import TINY
from benchmarks.measure import device_name
from experiments.ablation import absolute
from experiments.short_run import make_parser
from pfiles.classifier import Classifier
from pfiles.cluster_bank import ClusterBank
from pfiles.discriminator import Discriminator
from pfiles.drawing.sampling import image_seeds, sample
from pfiles.errors import InputError
from pfiles.latents import LatentSpace, encode_tiles, predict_clusters, reconstruct
from pfiles.learning import autoencoder, diffusion, loop
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.machine.runtime import peak_memory_gb, pick_device, seeded, versions
from pfiles.machine.speed import pick_speed
from pfiles.measuring.pairs import psnr
from pfiles.paths import ROOT, write_json
from pfiles.reporting import figures
from pfiles.settings import SavingSettings, Settings, get_settings
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.pixels import evenly_spaced, to_uint8, to_unit
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import make_vqvae

SEED = 765
N_CLUSTERS = 14
PER_CLUSTER = 10  # images in a row of the sample grid
SHARES = {"autoencoder": 0.4, "unet": 0.4}  # of the minutes; the rest is for starting, measuring and sampling
PROBE_STEPS = 6  # steps of each of two epochs; the second one is timed

CHANGES = {
    "autoencoder.perceptual": "ms-ssim",
    "autoencoder.perceptual_weight": 0.2,
    "autoencoder.learning_rate": 2e-4,
    "autoencoder.adam_betas": (0.9, 0.99),
    "autoencoder.adversarial_weight": 0.05,
    "autoencoder.generator_gradient_leaks": False,
    "autoencoder.revive_dead_codes": True,
    "training.optimizer": "adam",
    "training.learning_rate": 2e-4,
    "training.warmup_steps": 100,
    "training.ema_decay": 0.999,
}
ON_A_GPU = {"precision": "bf16", "diffusion.batch_size": 64, "sampling.steps": 250}
IN_TINY = {
    "max_train_tiles": 64,
    "autoencoder.discriminator": {"conv_channels": [8, 16]},
    "sampling.steps": 5,
}


def main(arguments: list[str] | None = None) -> int:
    """Train, write pictures and numbers, and return the exit status: 0 done, 2 the tiles are not usable."""
    description, out = __doc__.splitlines()[0], ROOT / "benchmarks" / "results"
    args = make_parser("train_and_look", description, 4.0, "about so long in all", out).parse_args(arguments)
    device = pick_device()
    overrides = CHANGES | (ON_A_GPU if device.type == "cuda" else {}) | (TINY | IN_TINY if args.size == "tiny" else {})
    settings = get_settings("paper", overrides)
    try:
        report = train_and_look(absolute(args.tiles), settings, device, 60 * args.minutes, args.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(args.out / "train_and_look.json", report)
    print(
        f"reconstruction of test tiles {report['test_psnr_db']:.1f} dB, flat colour {report['flat_psnr_db']:.1f} dB; "
        f"noise error {report['unet']['mse'][-1]:.3f}; {report['clusters_used']} of {N_CLUSTERS} clusters in use; "
        f"{report['seconds']:.0f} s\n{args.out}"
    )
    return 0


def train_and_look(data: str, settings: Settings, device: torch.device, seconds: float, out: Path) -> dict[str, Any]:
    """Train both networks on the tiles of `data` for about `seconds`, write pictures to `out`, return the report."""
    began = time.monotonic()
    tiles = load_tiles(data, settings.image_size_px, settings.max_train_tiles, N_CLUSTERS)
    images, test = tiles.tensor(tiles.train, device), tiles.tensor(tiles.test, device)
    # compiling would take a good part of a few minutes
    speed = replace(pick_speed(settings, device), compiled=False)
    with seeded(SEED, "train and look"):
        vqvae = make_vqvae(settings.autoencoder).to(device)
        discriminator = Discriminator(**settings.autoencoder.discriminator).to(device)
        unet = UNet(vqvae.z_channels, N_CLUSTERS, **settings.diffusion.unet).to(device)
        classifier = Classifier(vqvae.z_channels, N_CLUSTERS).to(device)
    perceptual = autoencoder.make_perceptual(settings.autoencoder, device)

    def train_autoencoder(networks: list[nn.Module], part: Tensor, epochs: int, job: loop.Job) -> loop.History:
        # the adversarial terms begin after a third; the second epoch of two, which is timed, has them
        start = epochs * len(part) // job.batch_size // 3
        shorter = replace(settings.autoencoder, epochs=epochs, discriminator_start_step=start)
        return autoencoder.train_autoencoder(
            vqvae=networks[0], discriminator=networks[1], images=part, perceptual=perceptual, settings=shorter, job=job
        )

    def train_unet(networks: list[nn.Module], part: Tensor, epochs: int, job: loop.Job) -> loop.History:
        return diffusion.train_stage(
            unet=networks[0], bank=ClusterBank([networks[1]]), space=LatentSpace(vqvae), images=part,
            codes=encode_tiles(vqvae, part), job=job, stage=replace(settings.training, epochs=epochs),
            settings=replace(settings.diffusion, affine_fill=None),  # the mean colour, whatever the stain
        )  # fmt: skip

    report: dict[str, Any] = {"device": device_name(device.type), "data": tiles.source, "tiles": len(images)}
    with tempfile.TemporaryDirectory() as folder:
        for name, train, networks, batch_size in (
            ("autoencoder", train_autoencoder, [vqvae, discriminator], settings.autoencoder.batch_size),
            ("unet", train_unet, [unet, classifier], settings.diffusion.batch_size),
        ):
            saving = SavingSettings(every_minutes=60)
            job = loop.Job(name, SEED, batch_size, Path(folder, name), {}, saving, speed)
            report[name] = train_for(SHARES[name] * seconds, train, networks, images, job)

    examples = test[torch.as_tensor(evenly_spaced(len(test), 20), device=device)]
    rebuilt = reconstruct(vqvae, test)
    report["test_psnr_db"] = psnr(rebuilt, to_unit(test)).mean().item()
    flat = to_unit(images).mean((0, 2, 3), keepdim=True)
    report["flat_psnr_db"] = psnr(flat.expand_as(rebuilt), to_unit(test)).mean().item()
    pairs = torch.stack([examples.cpu(), to_uint8(reconstruct(vqvae, examples)).cpu()], dim=1)  # (20, 2, 3, S, S)
    # rows of ten tiles, each above its reconstruction
    pairs = pairs.unflatten(0, (-1, min(10, len(examples)))).transpose(1, 2).flatten(0, 2)
    figure = figures.show_tiles(pairs, min(10, len(examples)), "Test tiles above their reconstructions")
    figures.save_figure(figure, out / "reconstructions.png")

    clusters, _ = predict_clusters(vqvae, classifier, encode_tiles(vqvae, images))
    report["clusters_used"] = len(clusters.unique())
    cluster_ids = torch.arange(N_CLUSTERS).repeat_interleave(PER_CLUSTER)
    scheduler = LinearNoiseScheduler(
        settings.diffusion.num_timesteps, settings.diffusion.beta_start, settings.diffusion.beta_end
    )
    steps = settings.sampling.steps if device.type == "cuda" else min(50, settings.sampling.steps)
    sampling_began = time.monotonic()
    generated = sample(
        unet, scheduler, vqvae.decode, cluster_ids, image_seeds(SEED, range(len(cluster_ids))),
        latent_shape=vqvae.latent_shape(settings.image_size_px), num_steps=steps, speed=speed,
        batch_size=len(cluster_ids),
    )  # fmt: skip
    report["sampling"] = {"images": len(generated), "steps": steps, "seconds": time.monotonic() - sampling_began}
    real = [images[(clusters == c).to(device)][: PER_CLUSTER // 2].cpu() for c in range(N_CLUSTERS)]
    figure = figures.cluster_sheet(real, list(generated.split(PER_CLUSTER)), ("Training tiles", "Generated tiles"))
    figures.save_figure(figure, out / "samples.png")
    report |= {"peak_memory_gb": peak_memory_gb(device), "versions": versions(), "seconds": time.monotonic() - began}
    return report


def train_for(
    seconds: float, train: Callable[..., loop.History], networks: list[nn.Module], images: Tensor, job: loop.Job
) -> dict[str, Any]:
    """Train `networks` by `train(networks, images, epochs, job)` for about `seconds`; how long and what came of it.

    The time of a step is measured on copies of the networks.
    """
    few = images[: PROBE_STEPS * job.batch_size]
    with tempfile.TemporaryDirectory() as folder:
        probe = train(copy.deepcopy(networks), few, 2, replace(job, folder=Path(folder)))
    step_s = probe[-1]["seconds"] / max(1, len(few) // job.batch_size)
    affordable = max(1, int(seconds / step_s))  # steps
    subset = images[torch.as_tensor(evenly_spaced(len(images), affordable * job.batch_size), device=images.device)]
    epochs = max(1, affordable // max(1, len(subset) // job.batch_size))
    history = train(networks, subset, epochs, job)
    return summary(history, len(subset), epochs * max(1, len(subset) // job.batch_size))


def summary(history: loop.History, tiles: int, steps: int) -> dict[str, Any]:
    """What the report keeps of a training: its size, time, and each loss term per epoch."""
    timing = ("epoch", "seconds", "learning_rate", "images_per_second", "memory_gb")
    terms: Mapping[str, list[float]] = {
        name: [row.get(name) for row in history] for name in history[-1] if name not in timing
    }
    took = sum(row["seconds"] for row in history)
    return {"tiles": tiles, "steps": steps, "seconds": took, "ms_per_step": 1000 * took / steps, **terms}


if __name__ == "__main__":
    sys.exit(main())
