"""The trainings of the conditional UNet and of the clusters (the paper, sections 3.4 and 3.5)."""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pfiles.classifier import Classifier
from pfiles.clustering import probabilities
from pfiles.latents import LatentSpace, predict_clusters
from pfiles.learning.log import History
from pfiles.learning.loop import Job, Objective, Pace, train
from pfiles.learning.losses import affine_kl, conditional_entropy, marginal_entropy
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.machine import processes
from pfiles.settings import DiffusionSettings, StageSettings
from pfiles.tiles.pixels import mean_colour, to_unit
from pfiles.tiles.views import random_affine, random_dihedral
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE


def train_stage(
    *,
    unet: UNet,
    clusterer: nn.Module,
    space: LatentSpace,
    images: Tensor,
    codes: Tensor,
    settings: DiffusionSettings,
    stage: StageSettings,
    job: Job,
    picture: Callable[[UNet], Tensor] | None = None,
) -> History:
    """Train the UNet, and with it a classifier where the stage does, in place.

    Every step minimises the mean squared error of the predicted noise (or velocity), the cluster of each tile being
    the condition. A classifier in training adds the terms of `cluster_terms`. Its argmax, the condition, passes no
    gradient: the two networks share a loss and nothing else. Clusters that do not learn are predicted once.

    images: uint8 (N, 3, S, S), needed for the affine views only.
    codes: of the tiles (N, h, w), see `latents.encode_tiles`, or of their views (8, N, h, w), see `encode_views`: then
        each tile of a step is learnt in a view drawn at random.
    picture: what such a UNet draws, see `loop.train`.
    """
    codes, device, vqvae = codes.view(-1, *codes.shape[-3:]), codes.device, space.vqvae
    scheduler = LinearNoiseScheduler(settings.num_timesteps, settings.beta_start, settings.beta_end)
    learns = stage.trains_clusters and isinstance(clusterer, Classifier)
    parts = {"unet": unet.train(), "optimizer": make_optimizer(stage, unet, job)}
    predict = job.speed.fast(processes.distribute(unet))
    if learns:
        parts |= {"classifier": clusterer.train(), "cluster_optimizer": make_optimizer(stage, clusterer, job)}
        classify = job.speed.fast(processes.distribute(clusterer))
        encode = job.speed.fast(vqvae.encode_codes)
        fill = settings.affine_fill or mean_colour(images)
    else:
        clusters = torch.stack([predict_clusters(vqvae, clusterer, view)[0] for view in codes]).to(device)
    if stage.ema_decay:
        parts["averaged"] = averaged = copy.deepcopy(unet).requires_grad_(False)

    def draw(index: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = {}
        if learns:
            drawn["moved"] = move(images[index], generator, fill, settings.dihedral_views)
        drawn["t"] = torch.randint(scheduler.num_timesteps, (len(index),), generator=generator, device=device)
        shape = (len(index), vqvae.z_channels, *codes.shape[2:])
        drawn["noise"] = torch.randn(shape, generator=generator, device=device)
        if settings.condition_dropout:
            uniform = torch.rand(len(index), generator=generator, device=device)
            drawn["unconditioned"] = uniform < settings.condition_dropout
        if len(codes) > 1:
            drawn["view"] = torch.randint(len(codes), (len(index),), generator=generator, device=device)
        return drawn

    def learn(own: Tensor, drawn: dict[str, Tensor], number: int) -> Iterator[Objective]:
        view = drawn.get("view", torch.zeros_like(own))
        z = vqvae.embed(codes[view, own])
        terms, optimizers = {}, [parts["optimizer"]]
        if learns:
            p = probabilities(classify, z)
            terms = cluster_terms(p, probabilities(classify, embed_moved(vqvae, encode, drawn["moved"])))
            optimizers.append(parts["cluster_optimizer"])
            cluster = p.argmax(dim=1)
        else:
            cluster = clusters[view, own]
        if settings.condition_dropout:
            cluster = torch.where(drawn["unconditioned"], -1, cluster)

        x0, noise, t = space.scale(z), drawn["noise"], drawn["t"]
        target = noise if settings.prediction == "noise" else scheduler.velocity(x0, noise, t)
        predicted = predict(scheduler.add_noise(x0, noise, t), t, cluster).float()
        error = (predicted - target).square().mean((1, 2, 3))
        terms["mse"] = error.mean()
        weights = cluster_weights(settings, stage)
        if settings.min_snr_gamma is not None:
            terms["weighted_mse"] = (error * min_snr_weight(scheduler, t, settings)).mean()
            weights["mse"] = 0.0
        yield Objective(optimizers, terms, weights)
        if stage.ema_decay:
            decay = min(stage.ema_decay, (1 + number) / (10 + number))  # the average follows faster at first
            get_ema_multi_avg_fn(decay)([*averaged.parameters()], [*unet.parameters()], None)

    history = train(
        job, num_epochs=stage.epochs, num_tiles=codes.shape[1], draw=draw, learn=learn, parts=parts, pace=_pace(stage),
        picture=picture and partial(picture, parts.get("averaged", unet)),
    )  # fmt: skip
    if stage.ema_decay:
        unet.load_state_dict(averaged.state_dict())
    return history


def train_clusters(
    *,
    classifier: Classifier,
    vqvae: VQVAE,
    images: Tensor,
    codes: Tensor,
    settings: DiffusionSettings,
    stage: StageSettings,
    job: Job,
) -> History:
    """Train a classifier by information maximisation without a UNet beside it, in place.

    No gradient ever passes between the two, so that the UNet may as well learn afterwards, from clusters that no longer
    change. Arguments as in `train_stage`.
    """
    codes = codes.view(-1, *codes.shape[-3:])
    parts = {"classifier": classifier.train(), "cluster_optimizer": make_optimizer(stage, classifier, job)}
    classify = job.speed.fast(processes.distribute(classifier))
    encode = job.speed.fast(vqvae.encode_codes)
    fill = settings.affine_fill or mean_colour(images)

    def draw(index: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = {"moved": move(images[index], generator, fill, settings.dihedral_views)}
        if len(codes) > 1:
            drawn["view"] = torch.randint(len(codes), (len(index),), generator=generator, device=codes.device)
        return drawn

    def learn(own: Tensor, drawn: dict[str, Tensor], number: int) -> Iterator[Objective]:
        z = vqvae.embed(codes[drawn.get("view", torch.zeros_like(own)), own])
        p, p_moved = (probabilities(classify, x) for x in (z, embed_moved(vqvae, encode, drawn["moved"])))
        yield Objective([parts["cluster_optimizer"]], cluster_terms(p, p_moved), cluster_weights(settings, stage))

    return train(
        job, num_epochs=stage.epochs, num_tiles=codes.shape[1], draw=draw, learn=learn, parts=parts, pace=_pace(stage)
    )


def move(images: Tensor, generator: torch.Generator, fill: tuple[int, int, int], dihedral: bool) -> Tensor:
    """The view (B, 3, S, S) of each tile with which its cluster must agree: moved a little, and turned and mirrored
    where `dihedral`."""
    moved = random_affine(images, generator, fill=fill)
    return random_dihedral(moved, generator) if dihedral else moved


@torch.no_grad()
def embed_moved(vqvae: VQVAE, encode: nn.Module, moved: Tensor) -> Tensor:
    """The latents of moved views; the encoder is frozen."""
    return vqvae.embed(encode(to_unit(moved)))


def cluster_terms(p: Tensor, p_moved: Tensor) -> dict[str, Tensor]:
    """ME, CE and AF of the paper's section 3.5 (see `losses`); the marginal entropy is that of the whole batch."""
    return {
        "marginal_entropy": marginal_entropy(processes.batch_mean(p)[None]),
        "conditional_entropy": conditional_entropy(p),
        "affine_kl": affine_kl(p, p_moved),
    }


def cluster_weights(settings: DiffusionSettings, stage: StageSettings) -> dict[str, float]:
    """-l_me, l_ce and l_af, the weights of `cluster_terms` in the loss."""
    return {
        "marginal_entropy": -settings.marginal_entropy_weight,
        "conditional_entropy": settings.conditional_entropy_weight,
        "affine_kl": stage.affine_weight,
    }


def min_snr_weight(scheduler: LinearNoiseScheduler, t: Tensor, settings: DiffusionSettings) -> Tensor:
    """The weight (B,) of each tile's error at time t (B,), Hang et al. 2023: min(SNR, gamma) / SNR for a predicted
    noise, min(SNR, gamma) / (SNR + 1) for a velocity; both weigh the error of the implied x_0 by min(SNR, gamma)."""
    snr = scheduler.signal_to_noise(t)
    return (snr.clamp_max(settings.min_snr_gamma) / (snr + (settings.prediction == "v"))).float()


def make_optimizer(stage: StageSettings, network: nn.Module, job: Job) -> torch.optim.Optimizer:
    if stage.optimizer == "adadelta":
        return torch.optim.Adadelta(network.parameters(), stage.learning_rate)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[stage.optimizer]
    return kind(network.parameters(), stage.learning_rate, fused=job.speed.fused or None)


def _pace(stage: StageSettings) -> Pace:
    return Pace(stage.warmup_steps, stage.decay, stage.clip_norm)
