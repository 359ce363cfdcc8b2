"""The jobs of `test_processes` beside this file: called there, and run as a script by processes of torchrun."""

import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from pfiles import cached, latents
from pfiles.classifier import Classifier
from pfiles.cluster_bank import ClusterBank
from pfiles.drawing.sampling import generate_to_folder
from pfiles.learning import autoencoder, diffusion, loop
from pfiles.learning.clusters import train_clusters
from pfiles.machine import processes
from pfiles.machine.runtime import pick_device, seeded
from pfiles.machine.speed import EAGER
from pfiles.paths import atomic_write
from pfiles.settings import SavingSettings
from pfiles.tiles import dataset
from pfiles.tiles.dataset import Tiles
from tests import killed
from tests.conftest import make_tiles
from tests.killed import SETTINGS, K, tiny_draw, tiny_networks


def train(folder: Path, epochs: int = 4) -> None:
    """Twenty steps of the autoencoder's training and as many of the first stage's, in batches of 16, some of 17."""
    pick_device()
    images = torch.tensor(make_tiles(82)).permute(0, 3, 1, 2).contiguous()
    saving = SavingSettings(every_minutes=60)
    vqvae, discriminator, unet, clusters = tiny_networks()
    settings = replace(SETTINGS.autoencoder, epochs=epochs, learning_rate=1e-4)
    job = loop.Job("autoencoder", 7, 16, folder / "autoencoder", {}, saving, EAGER)
    autoencoder.train_autoencoder(
        vqvae=vqvae, discriminator=discriminator, images=images, settings=settings, job=job,
        perceptual=autoencoder.make_perceptual(settings, "cpu"),
    )  # fmt: skip

    vqvae = tiny_networks()[0].eval().requires_grad_(False)  # the same in both, whatever the first training's rounding
    codes = latents.encode_tiles(vqvae, images)
    stage = replace(SETTINGS.training, epochs=epochs, learning_rate=1e-4)
    job = loop.Job("training", 7, 16, folder / "training", {}, saving, EAGER)
    diffusion.train_stage(
        unet=unet, bank=ClusterBank([clusters]), space=latents.LatentSpace(vqvae), images=images, codes=codes,
        settings=SETTINGS.diffusion, stage=stage, job=job,
    )  # fmt: skip
    with atomic_write(folder / "result.pt") as file:
        torch.save([network.state_dict() for network in (discriminator, unet, clusters)], file)


def clusters(folder: Path) -> None:
    """Twenty steps of the classifiers of three numbers of clusters, which are computed as one network."""
    pick_device()
    images = torch.tensor(make_tiles(82)).permute(0, 3, 1, 2).contiguous()
    vqvae = tiny_networks()[0].eval().requires_grad_(False)
    with seeded(7, "classifiers"):
        classifiers = ClusterBank(Classifier(vqvae.z_channels, k) for k in (3, 4, 6))
    stage = replace(SETTINGS.clusters, epochs=4, learning_rate=1e-4)
    train_clusters(
        bank=classifiers, vqvae=vqvae, images=images, codes=latents.encode_tiles(vqvae, images),
        settings=SETTINGS.diffusion, stage=stage,
        job=loop.Job("clusters", 7, 16, folder / "clusters", {}, SavingSettings(every_minutes=60), EAGER),
    )  # fmt: skip
    with atomic_write(folder / "result.pt") as file:
        torch.save([one.state_dict() for one in classifiers], file)


def generate(folder: Path) -> None:
    pick_device()
    generate_to_folder(
        tiny_draw(), folder, np.arange(1, 12), torch.arange(11) % K, seed=3, batch_size=4, note={"job": "images"}
    )


def field(folder: Path) -> None:
    pick_device()
    killed.field(folder)


def codes(folder: Path) -> None:
    """The hash of some tiles and the codes of two of their views; says which tiles this process encoded."""
    device = pick_device()
    images = torch.tensor(make_tiles(82)).permute(0, 3, 1, 2).contiguous()
    vqvae = tiny_networks()[0].eval().requires_grad_(False)
    tiles = Tiles(images, np.arange(82), np.arange(0), "tiles", state="a state")
    encoded = []

    def encode(begin: int, end: int) -> torch.Tensor:
        encoded.append([begin, end])
        return latents.encode_views(vqvae, images[begin:end], 2)

    with (
        patch.dict(os.environ, XDG_CACHE_HOME=str(folder / "cache")),
        patch.object(dataset, "HASHED", 8),
        patch.object(cached, "AT_ONCE", 10),
    ):
        tiles.hash_together()
        codes = cached.cached_codes(folder / "codes.pt", {"made": "from"}, 82, encode, device)
        result = {"hash": tiles.fingerprint(), "codes": codes.tolist(), "encoded": encoded}
    (folder / f"{processes.rank()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    jobs = {"train": train, "clusters": clusters, "generate": generate, "field": field, "codes": codes}
    jobs["long"] = partial(train, epochs=400)
    jobs[sys.argv[1]](Path(sys.argv[2]))
