"""The seven long jobs at tiny size, each as a function of the folder it leaves its result in.

They run in processes of their own, which `test_kill` beside this file starts and kills.
"""

from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pfiles import latents
from pfiles.cluster_bank import ClusterBank
from pfiles.clusterers import make_clusterer
from pfiles.discriminator import Discriminator
from pfiles.drawing import field as drawing
from pfiles.drawing.generator import Generator
from pfiles.drawing.layout import make_layout
from pfiles.drawing.sampling import generate_to_folder, sample
from pfiles.fields import write_field
from pfiles.learning import autoencoder, diffusion, loop
from pfiles.learning.clusters import train_clusters
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.machine.runtime import seeded
from pfiles.machine.speed import Speed
from pfiles.paths import atomic_write
from pfiles.settings import SavingSettings, get_settings
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE, make_vqvae
from tests.conftest import PLAIN_LEARNING, TINY, make_tiles

K = 3
NUM_IMAGES = 12
SETTINGS = get_settings("demo", TINY | PLAIN_LEARNING)


def _job(folder: Path, name: str) -> loop.Job:
    saving = SavingSettings(every_minutes=0)  # a resume point after every step
    return loop.Job(name, 7, 8, folder, {"job": name}, saving, Speed(channels_last=True, fused=True))


def tiny_networks() -> tuple[VQVAE, Discriminator, UNet, torch.nn.Module]:
    with seeded(0, "killed"):
        return (
            make_vqvae(SETTINGS.autoencoder),
            Discriminator(**SETTINGS.autoencoder.discriminator),
            UNet(16, K, **SETTINGS.diffusion.unet),
            make_clusterer("classifier", 16, K),
        )


def _images() -> torch.Tensor:
    return torch.tensor(make_tiles(24)).permute(0, 3, 1, 2).contiguous()


def _finish(folder: Path, *networks: torch.nn.Module) -> None:
    with atomic_write(folder / "result.pt") as file:
        torch.save([network.state_dict() for network in networks], file)


def train_autoencoder(folder: Path) -> None:
    vqvae, discriminator, _, _ = tiny_networks()
    settings = replace(SETTINGS.autoencoder, epochs=4)
    perceptual = autoencoder.make_perceptual(settings, "cpu")
    autoencoder.train_autoencoder(
        vqvae=vqvae, discriminator=discriminator, images=_images(), perceptual=perceptual, settings=settings,
        job=_job(folder, "autoencoder"),
    )  # fmt: skip
    _finish(folder, vqvae, discriminator)


def stage(name: str, folder: Path) -> None:
    vqvae, _, unet, clusters = tiny_networks()
    vqvae.eval().requires_grad_(False)
    images = _images()
    codes = latents.encode_tiles(vqvae, images)
    settings = replace(SETTINGS.diffusion, condition_dropout=0.1, dihedral_views=True)
    stage_settings = replace(getattr(SETTINGS, name), epochs=5, ema_decay=0.99, warmup_steps=10)
    diffusion.train_stage(
        unet=unet, bank=ClusterBank([clusters]), space=latents.LatentSpace(vqvae), images=images, codes=codes,
        settings=settings, stage=stage_settings, job=_job(folder, name),
    )  # fmt: skip
    _finish(folder, unet, clusters)


def tiny_draw() -> partial:
    """`sample` with all but cluster ids and seeds given."""
    vqvae, _, unet, _ = tiny_networks()
    return partial(
        sample, unet, LinearNoiseScheduler(20), vqvae.decode, latent_shape=vqvae.latent_shape(48), num_steps=5,
        progress=False,
    )  # fmt: skip


def images(folder: Path) -> None:
    generate_to_folder(
        tiny_draw(),
        folder,
        range(NUM_IMAGES),
        torch.arange(NUM_IMAGES) % K,
        seed=3,
        batch_size=1,
        note={"job": "images"},
    )


def field(folder: Path) -> None:
    """A field of many small blocks, and the slide that is made of them."""
    drawing.BLOCK, drawing.EXCHANGES = 48, 2  # in this process alone
    vqvae, _, unet, clusters = tiny_networks()
    generator = Generator(unet, ClusterBank([clusters]), latents.LatentSpace(vqvae), SETTINGS)
    layout = make_layout(np.array([[0, 1], [2, 0]]), (220, 180), K)
    field = drawing.make_field(unet, generator.space, SETTINGS, layout, seed=3)
    write_field(generator, field, folder / "field.tiff")


def clusters(folder: Path) -> None:
    """Classifiers of several numbers of clusters together."""
    vqvae = tiny_networks()[0].eval().requires_grad_(False)
    with seeded(0, "killed clusters"):
        several = ClusterBank.make("classifier", 16, (2, 4))
    train_clusters(
        bank=several, vqvae=vqvae, images=_images(), codes=latents.encode_tiles(vqvae, _images()),
        settings=SETTINGS.diffusion, stage=replace(SETTINGS.training, epochs=5), job=_job(folder, "clusters"),
    )  # fmt: skip
    _finish(folder, several)


JOBS = {"autoencoder": train_autoencoder, "images": images, "field": field, "clusters": clusters}
JOBS |= {name: partial(stage, name) for name in ("training", "finetuning1", "finetuning2")}


def do(name: str, folder: Path) -> None:
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    with open(folder / "printed.txt", "a") as out, redirect_stdout(out):
        JOBS[name](folder)
