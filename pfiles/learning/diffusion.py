"""The training of the conditional UNet, with a classifier beside it where a stage says so (the paper, section 3.4)."""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pfiles.cluster_bank import ClusterBank
from pfiles.latents import LatentSpace, predict_clusters
from pfiles.learning.clusters import ClusterTrainer, sample_view
from pfiles.learning.log import History
from pfiles.learning.loop import Job, Objective, make_optimizer, schedule_of, train
from pfiles.learning.losses import denoising_terms
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.machine import processes
from pfiles.settings import DiffusionSettings, StageSettings
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE

LOG_SNR = (0.5, 2.2)  # mean and deviation of ln(alpha_bar / (1 - alpha_bar)) where times are log-normal


def train_stage(
    *,
    unet: UNet,
    bank: ClusterBank,
    space: LatentSpace,
    images: Tensor,
    codes: Tensor,
    settings: DiffusionSettings,
    stage: StageSettings,
    job: Job,
    picture: Callable[[UNet], Tensor] | None = None,
) -> History:
    """Train the UNet, and with it a classifier where the stage does, in place.

    Every step minimises the error of the predicted noise or velocity, see `losses.denoising_terms`; the cluster of each
    tile is the condition. A classifier in training adds `losses.information_terms`. Its argmax, the condition, passes
    no gradient: the two networks share a loss and nothing else. Clusters that do not learn are predicted once.

    bank: the clusters of one or several k, which are the UNet's rows: in each step the condition of a tile is its
        cluster in one k, drawn at random.
    images: uint8 (N, 3, S, S), needed for the affine views only.
    codes: (N, h, w), see `latents.encode_tiles`, or (8, N, h, w), see `encode_views`: a step draws a view per tile.
    picture: what such a UNet draws, see `loop.train`. With averaged weights both are shown, the last weights above.
    """
    # Networks, optimiser, moving average of the weights.
    codes, device, vqvae = codes.view(-1, *codes.shape[-3:]), codes.device, space.vqvae  # codes (V, N, h, w)
    scheduler = LinearNoiseScheduler(settings.num_timesteps, settings.beta_start, settings.beta_end)
    optimizer = make_optimizer(stage, unet.train(), job.speed)
    predict = job.speed.accelerate(processes.distribute(unet))
    averaged = copy.deepcopy(unet).requires_grad_(False) if stage.ema_decay else None
    state = {"unet": unet, "optimizer": optimizer} | ({"averaged": averaged} if averaged else {})

    # Clusters of n numbers k: learnt beside the UNet, or predicted once.
    first_rows = torch.tensor(bank.first_rows, device=device)  # (n,)
    trainer = None
    if stage.trains_clusters and bank.kind == "classifier":
        trainer = ClusterTrainer(bank, vqvae, images, codes, settings, stage, job)
        state |= trainer.state
    else:
        cluster_ids_of_views = predict_rows(vqvae, bank, codes)  # (n, V, N)

    def sample_random(index: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        random = trainer.sample_random(index, rng) if trainer else {}
        random |= sample_noise((len(index), vqvae.z_channels, *codes.shape[2:]), scheduler, settings, rng)
        if len(codes) > 1 and not trainer:
            random["view"] = sample_view(codes, index, rng)
        if len(bank) > 1:
            random["k_index"] = torch.randint(len(bank), (len(index),), generator=rng, device=device)
        return random

    def objectives(index: Tensor, random: dict[str, Tensor], step: int) -> Iterator[Objective]:
        # Latents of the tiles, each in the view that was drawn for it.
        view, k_index = (random.get(name, torch.zeros_like(index)) for name in ("view", "k_index"))
        z = vqvae.embed(codes[view, index])  # (B, z, h, w)

        # The condition: the cluster of each tile, without a gradient.
        if trainer:
            p, terms, weights = trainer.loss_terms(z, random["affine"])  # (B, n, k)
            cluster_ids = (p.argmax(-1) + first_rows).gather(1, k_index[:, None])[:, 0]
        else:
            terms, weights = {}, {}
            cluster_ids = cluster_ids_of_views[k_index, view, index]  # (B,)

        # Error of what the UNet predicts under noise.
        terms |= denoise(predict, space.scale(z), cluster_ids, random, scheduler, settings)
        yield Objective([optimizer, *([trainer.optimizer] if trainer else [])], terms, weights)

        if averaged:
            move_average(averaged, unet, stage.ema_decay, step)

    history = train(
        job, num_epochs=stage.epochs, num_tiles=codes.shape[1], sample_random=sample_random, objectives=objectives,
        state=state, schedule=schedule_of(stage), clip_norm=stage.clip_norm,
        picture=picture and partial(_rows_of, picture, [unet, averaged] if averaged else [unet]),
    )  # fmt: skip
    if trainer:
        trainer.give_back()
    if averaged:
        unet.load_state_dict(averaged.state_dict())
    return history


def _rows_of(picture: Callable[[UNet], Tensor], networks: Sequence[UNet]) -> Tensor:
    """The rows of tiles that each network draws, below each other."""
    return torch.cat([picture(network) for network in networks])


def move_average(averaged: UNet, unet: UNet, decay: float, step: int) -> None:
    """Move the averaged weights towards the UNet's: with `decay`, from 0 to below 1, but faster in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    get_ema_multi_avg_fn(decay)([*averaged.parameters()], [*unet.parameters()], None)


def predict_rows(vqvae: VQVAE, bank: ClusterBank, codes: Tensor) -> Tensor:
    """The UNet's row (n, V, N) of the cluster that each of n clusterers gives each tile in each view.

    codes: (V, N, h, w); the result is on their device.
    """
    rows = [
        torch.stack([predict_clusters(vqvae, clusterer, view).cluster_ids for view in codes]).to(codes.device)
        + first_row
        for clusterer, first_row in zip(bank, bank.first_rows, strict=True)
    ]
    return torch.stack(rows)


def sample_noise(
    shape: tuple[int, int, int, int],
    scheduler: LinearNoiseScheduler,
    settings: DiffusionSettings,
    rng: torch.Generator,
) -> dict[str, Tensor]:
    """All that is random in a step of the UNet, for latents of a shape (B, z, h, w).

    "t": a time (B,) in 0 ... T - 1, see `sample_times`. "noise": standard normal, of that shape. "unconditioned": which
    tiles learn without their cluster (B,), where condition dropout is set.
    """
    batch, device = shape[0], rng.device
    random = {
        "t": sample_times(batch, scheduler, settings.times, rng),
        "noise": torch.randn(shape, generator=rng, device=device),
    }
    if settings.condition_dropout:
        random["unconditioned"] = torch.rand(batch, generator=rng, device=device) < settings.condition_dropout
    return random


def sample_times(number: int, scheduler: LinearNoiseScheduler, distribution: str, rng: torch.Generator) -> Tensor:
    """So many times (B,) in 0 ... T - 1: "uniform", or "log-normal" as the ratio of noise to signal is.

    Uniform times spend three of four steps where the noise is stronger than the signal. Log-normal ratios (Karras et
    al. 2022, section 5) spend most of them where noise hides the arrangement of the latents, and not the latents.
    """
    if distribution == "uniform":
        return torch.randint(scheduler.num_timesteps, (number,), generator=rng, device=rng.device)
    alpha_bar = scheduler.alpha_cumprod.to(rng.device)
    log_snr = (alpha_bar / (1 - alpha_bar)).log()  # falls with the time
    mean, deviation = LOG_SNR
    drawn_log_snr = mean + deviation * torch.randn(number, generator=rng, device=rng.device, dtype=alpha_bar.dtype)
    return torch.searchsorted(-log_snr, -drawn_log_snr).clamp_max(scheduler.num_timesteps - 1)


def denoise(
    predict: Callable[..., Tensor],
    x0: Tensor,
    cluster_ids: Tensor,
    random: dict[str, Tensor],
    scheduler: LinearNoiseScheduler,
    settings: DiffusionSettings,
) -> dict[str, Tensor]:
    """`losses.denoising_terms` of what the UNet predicts for latents under noise.

    predict: the UNet. x0: clean latents (B, z, h, w). cluster_ids: their conditions (B,). random: see `sample_noise`.
    """
    # Condition dropout, which classifier-free guidance needs (Ho & Salimans 2022): -1 is no condition.
    if settings.condition_dropout:
        cluster_ids = torch.where(random["unconditioned"], -1, cluster_ids)

    # Add the noise, and predict it or the velocity.
    noise, t = random["noise"], random["t"]
    predicted = predict(scheduler.add_noise(x0, noise, t), t, cluster_ids).float()  # (B, z, h, w)
    target = noise if settings.prediction == "noise" else scheduler.velocity(x0, noise, t)
    return denoising_terms(predicted, target)
