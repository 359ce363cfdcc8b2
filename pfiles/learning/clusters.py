"""The training of the clusters by information maximisation, alone or beside a UNet (the paper, section 3.5)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pfiles.cluster_bank import ClusterBank
from pfiles.learning.log import History
from pfiles.learning.loop import Job, Objective, make_optimizer, schedule_of, train
from pfiles.learning.losses import information_terms, information_weights
from pfiles.machine import processes
from pfiles.settings import DiffusionSettings, StageSettings
from pfiles.tiles.pixels import mean_colour, to_unit
from pfiles.tiles.views import random_affine, random_dihedral
from pfiles.vqvae import VQVAE


def train_clusters(
    *,
    bank: ClusterBank,
    vqvae: VQVAE,
    images: Tensor,
    codes: Tensor,
    settings: DiffusionSettings,
    stage: StageSettings,
    job: Job,
) -> History:
    """Train classifiers by information maximisation without a UNet beside them, in place.

    No gradient ever passes between classifier and UNet, so that the UNet may as well learn afterwards, from clusters
    that no longer change. One classifier becomes, bit for bit, what it would have become beside a UNet.

    bank: of classifiers. They learn from the same views, which are encoded once for all, and are computed together,
        each as if it learnt alone but for rounding.
    images: uint8 (N, 3, S, S), for the affine views. codes: of the tiles (N, h, w), or of their views (V, N, h, w).
    """
    trainer = ClusterTrainer(bank, vqvae, images, codes, settings, stage, job)

    def objectives(index: Tensor, random: dict[str, Tensor], step: int) -> Iterator[Objective]:
        # Latents of the tiles, each in the view that was drawn for it.
        view = random.get("view", torch.zeros_like(index))
        z = vqvae.embed(trainer.codes[view, index])  # (B, z, h, w)

        # Probabilities of both views, and the information terms.
        _, terms, weights = trainer.loss_terms(z, random["affine"])
        yield Objective([trainer.optimizer], terms, weights)

    history = train(
        job,
        num_epochs=stage.epochs,
        num_tiles=trainer.codes.shape[1],
        sample_random=trainer.sample_random,
        objectives=objectives,
        state=trainer.state,
        schedule=schedule_of(stage),
        clip_norm=stage.clip_norm,
    )
    trainer.give_back()
    return history


class ClusterTrainer:
    """Classifiers that learn together, as one network, from the same tiles and their affine views.

    codes: as (V, N, h, w). state: what a step changes, by name. Arguments as in `train_clusters`.
    """

    def __init__(
        self,
        bank: ClusterBank,
        vqvae: VQVAE,
        images: Tensor,
        codes: Tensor,
        settings: DiffusionSettings,
        stage: StageSettings,
        job: Job,
    ):
        self.bank, self.vqvae, self.images = bank, vqvae, images
        self.codes = codes.view(-1, *codes.shape[-3:])
        self.fill = settings.affine_fill or mean_colour(images)
        self.dihedral = settings.dihedral_views
        self.weights = information_weights(settings, stage)
        self.network = bank.stacked().train()
        self.optimizer = make_optimizer(stage, self.network, job.speed)
        self.optimizer.param_groups[0]["together"] = len(bank)
        self.state = {"classifier": self.network, "cluster_optimizer": self.optimizer}
        self.classify = job.speed.accelerate(processes.distribute(self.network))
        self.encode = job.speed.accelerate(vqvae.encode_codes)

    def sample_random(self, index: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """The "affine" views (B, 3, S, S) of the tiles `index` (B,), and, of several, the "view" (B,) of their codes.

        They are the same for one classifier as for many, and with a UNet as without.
        """
        random = {"affine": affine_view(self.images[index], rng, self.fill, self.dihedral)}
        if len(self.codes) > 1:
            random["view"] = sample_view(self.codes, index, rng)
        return random

    def loss_terms(self, z: Tensor, affine: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, float]]:
        """The probabilities (B, n, k) of latents z (B, z, h, w); `information_terms` as means over the n classifiers;
        and their weights in the sum of the classifiers' losses.

        affine: the affine views of the same tiles, uint8 (B, 3, S, S).
        """
        z_affine = encode_affine_view(self.vqvae, self.encode, affine)
        p, p_affine = (self.bank.probabilities(self.classify(latents)) for latents in (z, z_affine))
        weights = {name: len(self.bank) * weight for name, weight in self.weights.items()}
        return p, information_terms(p, p_affine), weights

    def give_back(self) -> None:
        """Copy what the network learnt into the classifiers."""
        self.bank.take_back(self.network)
        self.bank.train()


def sample_view(codes: Tensor, index: Tensor, rng: torch.Generator) -> Tensor:
    """A random view (B,), of those in `codes` (V, N, h, w), for each of the tiles `index` (B,)."""
    return torch.randint(len(codes), (len(index),), generator=rng, device=codes.device)


def affine_view(images: Tensor, rng: torch.Generator, fill: tuple[int, int, int], dihedral: bool) -> Tensor:
    """The view (B, 3, S, S) of each tile with which its cluster must agree: moved, turned and scaled a little.

    fill: RGB outside the tile. dihedral: turn and mirror it as well, in one of eight ways.
    """
    affine = random_affine(images, rng, fill=fill)
    return random_dihedral(affine, rng) if dihedral else affine


@torch.no_grad()
def encode_affine_view(vqvae: VQVAE, encode: Callable[[Tensor], Tensor], affine: Tensor) -> Tensor:
    """The latents (B, z, h, w) of affine views, uint8 (B, 3, S, S); the encoder is frozen."""
    return vqvae.embed(encode(to_unit(affine)))
