"""The trainings of the conditional UNet and of the clusters (the paper, sections 3.4 and 3.5)."""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pfiles.classifier import Classifier, stack, stacked_probabilities, unstack
from pfiles.clusterers import each_of
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

    clusterer: a clustering, or an nn.ModuleList of several, whose clusters have the UNet's rows one after the other:
        in each step the condition of a tile is its cluster in one of them, drawn at random.
    images: uint8 (N, 3, S, S), needed for the affine views only.
    codes: of the tiles (N, h, w), see `latents.encode_tiles`, or of their views (8, N, h, w), see `encode_views`: then
        each tile of a step is learnt in a view drawn at random.
    picture: what such a UNet draws, see `loop.train`.
    """
    codes, device, vqvae = codes.view(-1, *codes.shape[-3:]), codes.device, space.vqvae
    scheduler = LinearNoiseScheduler(settings.num_timesteps, settings.beta_start, settings.beta_end)
    parts = {"unet": unet.train(), "optimizer": make_optimizer(stage, unet, job)}
    predict = job.speed.fast(processes.distribute(unet))
    clusterers = each_of(clusterer)
    rows = torch.tensor([0, *(one.n_clusters for one in clusterers)], device=device).cumsum(0)[:-1]  # each one's first
    learning = None
    if stage.trains_clusters and isinstance(clusterers[0], Classifier):
        learning = _Clusters(clusterers, vqvae, images, codes, settings, stage, job)
        parts |= learning.parts
    else:
        of_each = [torch.stack([predict_clusters(vqvae, one, view)[0] for view in codes]) for one in clusterers]
        fixed_ids = torch.stack(of_each).to(device) + rows[:, None, None]
    if stage.ema_decay:
        parts["averaged"] = averaged = copy.deepcopy(unet).requires_grad_(False)

    def draw(index: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = learning.draw(index, generator) if learning else {}
        drawn |= draw_noise((len(index), vqvae.z_channels, *codes.shape[2:]), scheduler, settings, generator)
        if len(codes) > 1 and not learning:
            drawn["view"] = draw_view(codes, index, generator)
        if len(clusterers) > 1:
            drawn["which"] = torch.randint(len(clusterers), (len(index),), generator=generator, device=device)
        return drawn

    def learn(own: Tensor, drawn: dict[str, Tensor], number: int) -> Iterator[Objective]:
        none = torch.zeros_like(own)
        view, which = drawn.get("view", none), drawn.get("which", none)
        z = vqvae.embed(codes[view, own])
        terms, weights, optimizers = {}, {}, [parts["optimizer"]]
        if learning:
            p, terms, weights = learning.terms(z, drawn["moved"])
            optimizers.append(parts["cluster_optimizer"])
            cluster_ids = (p.argmax(-1) + rows).gather(1, which[:, None])[:, 0]
        else:
            cluster_ids = fixed_ids[which, view, own]
        error, weight = denoising_terms(predict, space.scale(z), cluster_ids, drawn, scheduler, settings)
        yield Objective(optimizers, terms | error, weights | weight)
        if stage.ema_decay:
            decay = min(stage.ema_decay, (1 + number) / (10 + number))  # the average follows faster at first
            get_ema_multi_avg_fn(decay)([*averaged.parameters()], [*unet.parameters()], None)

    history = train(
        job, num_epochs=stage.epochs, num_tiles=codes.shape[1], draw=draw, learn=learn, parts=parts, pace=_pace(stage),
        picture=picture and partial(picture, parts.get("averaged", unet)),
    )  # fmt: skip
    if learning:
        learning.give_back()
    if stage.ema_decay:
        unet.load_state_dict(averaged.state_dict())
    return history


def draw_noise(
    shape: tuple[int, int, int, int],
    scheduler: LinearNoiseScheduler,
    settings: DiffusionSettings,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """All that is random in a step of the UNet, for latents of a shape (B, z, h, w): a time "t" (B,) in 0 ... T - 1, a
    standard normal "noise" and, where condition dropout is set, which of them learn "unconditioned" (B,) bool."""
    number, device = shape[0], generator.device
    drawn = {
        "t": torch.randint(scheduler.num_timesteps, (number,), generator=generator, device=device),
        "noise": torch.randn(shape, generator=generator, device=device),
    }
    if settings.condition_dropout:
        drawn["unconditioned"] = torch.rand(number, generator=generator, device=device) < settings.condition_dropout
    return drawn


def denoising_terms(
    predict: nn.Module,
    x0: Tensor,
    cluster_ids: Tensor,
    drawn: dict[str, Tensor],
    scheduler: LinearNoiseScheduler,
    settings: DiffusionSettings,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The mean squared error of what the UNet predicts for the latents x_0 (B, z, h, w) under the noise that was drawn
    for them (the paper, section 3.4), and its weights in the loss.

    predict: the UNet. The target is the noise, or the velocity (Salimans & Ho 2022) where the settings say so.
    """
    noise, t = drawn["noise"], drawn["t"]
    if settings.condition_dropout:
        cluster_ids = torch.where(drawn["unconditioned"], -1, cluster_ids)
    target = noise if settings.prediction == "noise" else scheduler.velocity(x0, noise, t)
    predicted = predict(scheduler.add_noise(x0, noise, t), t, cluster_ids).float()
    error = (predicted - target).square().mean((1, 2, 3))
    if settings.min_snr_gamma is None:
        return {"mse": error.mean()}, {}
    weighted = (error * min_snr_weight(scheduler, t, settings)).mean()
    return {"mse": error.mean(), "weighted_mse": weighted}, {"mse": 0.0}


def train_clusters(
    *,
    classifier: nn.Module,
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

    classifier: one, or an nn.ModuleList of several. They learn from the same views, which are encoded once for all, and
        are computed together, each as if it learnt alone but for rounding.
    Other arguments as in `train_stage`.
    """
    codes = codes.view(-1, *codes.shape[-3:])
    learning = _Clusters(each_of(classifier), vqvae, images, codes, settings, stage, job)

    def learn(own: Tensor, drawn: dict[str, Tensor], number: int) -> Iterator[Objective]:
        z = vqvae.embed(codes[drawn.get("view", torch.zeros_like(own)), own])
        _, terms, weights = learning.terms(z, drawn["moved"])
        yield Objective([learning.parts["cluster_optimizer"]], terms, weights)

    history = train(
        job, num_epochs=stage.epochs, num_tiles=codes.shape[1], draw=learning.draw, learn=learn, parts=learning.parts,
        pace=_pace(stage),
    )  # fmt: skip
    learning.give_back()
    return history


class _Clusters:
    """Classifiers that learn together, as one network, from the same tiles and their moved views.

    parts: what a step changes. Arguments as in `train_clusters`.
    """

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        vqvae: VQVAE,
        images: Tensor,
        codes: Tensor,
        settings: DiffusionSettings,
        stage: StageSettings,
        job: Job,
    ):
        self.classifiers, self.vqvae, self.images, self.codes, self.settings = (
            classifiers, vqvae, images, codes, settings,
        )  # fmt: skip
        self.network = stack(classifiers).train()
        self.parts = {"classifier": self.network, "cluster_optimizer": make_optimizer(stage, self.network, job)}
        self.parts["cluster_optimizer"].param_groups[0]["together"] = len(classifiers)
        self.classify = job.speed.fast(processes.distribute(self.network))
        self.encode = job.speed.fast(vqvae.encode_codes)
        self.fill = settings.affine_fill or mean_colour(images)
        self.weights = cluster_weights(settings, stage)

    def draw(self, index: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The same numbers for one classifier as for many, and with a UNet as without."""
        drawn = {"moved": move(self.images[index], generator, self.fill, self.settings.dihedral_views)}
        if len(self.codes) > 1:
            drawn["view"] = draw_view(self.codes, index, generator)
        return drawn

    def terms(self, z: Tensor, moved: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, float]]:
        """The probabilities (B, n, k), `cluster_terms` as means over the n classifiers, and their weights in the sum
        of their losses."""
        sizes = [one.n_clusters for one in self.classifiers]
        views = z, embed_moved(self.vqvae, self.encode, moved)
        p, p_moved = (stacked_probabilities(self.classify(view), sizes) for view in views)
        weights = {name: len(sizes) * weight for name, weight in self.weights.items()}
        return p, cluster_terms(p, p_moved), weights

    def give_back(self) -> None:
        """Let the classifiers have what they learnt."""
        if len(self.classifiers) > 1:
            unstack(self.network, self.classifiers)
        for one in self.classifiers:
            one.train()


def draw_view(codes: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
    """Which of the views in `codes` (V, N, h, w) each of the tiles (B,) is learnt in."""
    return torch.randint(len(codes), (len(index),), generator=generator, device=codes.device)


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
