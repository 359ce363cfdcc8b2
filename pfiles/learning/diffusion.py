"""The three trainings of the conditional UNet and of the clusters (the paper, sections 3.4 and 3.5)."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pfiles.classifier import Classifier
from pfiles.clustering import probabilities
from pfiles.latents import predict_clusters
from pfiles.learning.log import History
from pfiles.learning.loop import Run, _train, _update, _weighted
from pfiles.learning.losses import affine_kl, conditional_entropy, marginal_entropy
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.machine import processes
from pfiles.settings import DiffusionSettings, StageSettings
from pfiles.tiles.pixels import mean_colour, to_unit
from pfiles.tiles.views import random_affine, random_dihedral
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE


def train_stage(
    unet: UNet,
    clustering: nn.Module,
    vqvae: VQVAE,
    images: Tensor,
    codes: Tensor,
    settings: DiffusionSettings,
    stage: StageSettings,
    run: Run,
) -> History:
    """Train the UNet, and with it a classifier where the stage does, in place (the paper, sections 3.4 and 3.5).

    Every step minimises the mean squared error of the predicted noise, the cluster of each tile being the condition.
    A classifier in training adds -l_me ME + l_ce CE + l_af AF (see `losses`). Its argmax, the condition, passes no
    gradient: the two networks share an optimiser and nothing else. Clusters that do not learn are predicted once.

    images: uint8 (N, 3, S, S), needed for the affine views only; codes: their `latents.encode_tiles`.
    """
    device = codes.device
    scheduler = LinearNoiseScheduler(settings.num_timesteps, settings.beta_start, settings.beta_end)
    learns = stage.trains_clusters and isinstance(clustering, Classifier)
    optimizer = _make_optimizer(
        stage, [*unet.parameters(), *(clustering.parameters() if learns else ())], run.speed.fused
    )
    parts = {"unet": unet.train(), "optimizer": optimizer}
    predict = run.speed.fast(processes.distribute(unet))
    if learns:
        parts["classifier"] = clustering.train()
        classify = run.speed.fast(processes.distribute(clustering))
        encode = run.speed.fast(vqvae.encode_codes)
        fill = settings.affine_fill or mean_colour(images)
    else:
        clusters = predict_clusters(vqvae, clustering, codes)[0].to(device)
    if stage.ema_decay:
        averaged = copy.deepcopy(unet).requires_grad_(False)
        parts["averaged"] = averaged

    def step(index: Tensor, number: int, generator: torch.Generator) -> dict[str, Tensor]:
        own = processes.share(index)
        z = vqvae.embed(codes[own])
        terms, whole_batch = {}, {}
        if learns:
            views = random_affine(images[index], generator, fill=fill)
            if settings.dihedral_views:
                views = random_dihedral(views, generator)
            with torch.no_grad():
                z_view = vqvae.embed(encode(to_unit(processes.share(views))))
            p, p_view = (probabilities(classify, latents) for latents in (z, z_view))
            mean = processes.differentiable_total(p.sum(0, keepdim=True)) / len(index)
            whole_batch["marginal_entropy"] = marginal_entropy(mean)
            terms["conditional_entropy"] = conditional_entropy(p)
            terms["affine_kl"] = affine_kl(p, p_view)
            cluster = p.argmax(dim=1)
        else:
            cluster = clusters[own]
        t = torch.randint(scheduler.num_timesteps, (len(index),), generator=generator, device=device)
        noise = torch.randn((len(index), *z.shape[1:]), generator=generator, device=device)
        if settings.condition_dropout:
            drop = torch.rand(len(index), generator=generator, device=device) < settings.condition_dropout
            cluster = torch.where(processes.share(drop), -1, cluster)
        t, noise = processes.share(t), processes.share(noise)
        error = (predict(scheduler.add_noise(z, noise, t), t, cluster).float() - noise).square().mean((1, 2, 3))
        terms["mse"] = error.mean()
        objective = "mse"
        if settings.min_snr_gamma is not None:  # Hang et al. 2023, for a network that predicts the noise
            snr = scheduler.signal_to_noise(t)
            objective = "weighted_mse"
            terms[objective] = (error * (snr.clamp_max(settings.min_snr_gamma) / snr).float()).mean()
        terms = _weighted(terms, own, index) | whole_batch
        weights = {
            objective: 1.0,
            "marginal_entropy": -settings.marginal_entropy_weight,
            "conditional_entropy": settings.conditional_entropy_weight,
            "affine_kl": stage.affine_weight,
        }
        loss = sum(weights[name] * term for name, term in terms.items() if name in weights)
        loss.backward()
        if stage.warmup_steps:
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * min(1.0, (number + 1) / stage.warmup_steps)
        norm = _update(optimizer)
        if stage.ema_decay:
            decay = min(stage.ema_decay, (1 + number) / (10 + number))  # young weights are forgotten sooner
            get_ema_multi_avg_fn(decay)([*averaged.parameters()], [*unet.parameters()], None)
        return {"loss": loss, **terms, "gradient_norm": norm}

    history = _train(stage.epochs, len(codes), step, parts, run)
    if stage.ema_decay:
        unet.load_state_dict(averaged.state_dict())
    return history


def _make_optimizer(stage: StageSettings, parameters: Iterable[nn.Parameter], fused: bool) -> torch.optim.Optimizer:
    if stage.optimizer == "adadelta":
        return torch.optim.Adadelta(parameters, stage.learning_rate)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[stage.optimizer]
    return kind(parameters, stage.learning_rate, fused=fused or None)
