"""The trainings: the VQ-GAN, and the three stages of the conditional latent diffusion model.

Each training goes on where it was stopped, at any step. The order of the tiles comes from a random generator made for
the epoch, everything else that a step draws from one made for that step, so a continued run draws what an unbroken one
would. Several processes (see `processes`) share every batch: its random numbers are drawn whole by each, and losses
and gradients are the means over the whole batch.
"""

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pfiles import processes
from pfiles.checkpoints import last_resume_point, load_resume_point, not_a_resume_point, save_resume_point
from pfiles.classifier import Classifier
from pfiles.clustering import probabilities
from pfiles.data import epoch_batches, mean_colour, random_affine, random_dihedral, to_unit
from pfiles.discriminator import Discriminator
from pfiles.errors import InputError
from pfiles.latents import predict_clusters
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.logs import History, TrainingLog
from pfiles.losses import adversarial_loss, affine_kl, conditional_entropy, marginal_entropy, ms_ssim_loss
from pfiles.lpips import LPIPS
from pfiles.runtime import derive_seed, make_generator, peak_memory_gb, stop, stop_signals
from pfiles.settings import AutoencoderSettings, DiffusionSettings, SavingSettings, StageSettings
from pfiles.speed import Speed
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE

CHECK_EVERY = 50  # steps between looks at what the device has computed, for which the host must wait
REVIVE_FROM = 16  # tiles whose encodings replace dead codes


@dataclass(frozen=True)
class Run:
    """What a training depends on besides its networks, tiles and settings, and where it leaves resume points and logs.

    name: the training's name; with `seed` it decides every random number.
    batch_size: tiles per step, of all processes together.
    folder: of this training alone.
    identity: all that the result depends on, in plain values; a resume point of another identity is refused.
    restart: begin anew, whatever resume point there is.
    """

    name: str
    seed: int
    batch_size: int
    folder: Path
    identity: Mapping[str, Any]
    saving: SavingSettings
    speed: Speed
    restart: bool = False


def make_perceptual(settings: AutoencoderSettings, device: torch.device | str) -> Callable[[Tensor, Tensor], Tensor]:
    """The perceptual loss of the settings, from two batches of images in [0, 1] to a scalar."""
    if settings.perceptual == "ms-ssim":
        return ms_ssim_loss
    lpips = LPIPS().load_pretrained().to(device)
    return lambda a, b: lpips(a, b, normalize=not settings.lpips_in_unit_range).mean()


def train_autoencoder(
    vqvae: VQVAE,
    discriminator: Discriminator,
    images: Tensor,
    perceptual: Callable[[Tensor, Tensor], Tensor],
    settings: AutoencoderSettings,
    run: Run,
) -> History:
    """Train the VQ-GAN (the paper, section 3.2) on `images` (N, 3, S, S) uint8, in place.

    The autoencoder minimises MSE + w_p perceptual + w_c codebook + w_b commitment, and, after
    `discriminator_start_step` steps, + w_a * (how far its images are from passing for real ones). From then on the
    discriminator minimises w_a times the mean of its two least-squares losses.

    perceptual: see `make_perceptual`.
    """
    optimizer_g, optimizer_d = (
        torch.optim.Adam(
            network.parameters(), settings.learning_rate, settings.adam_betas, fused=run.speed.fused or None
        )
        for network in (vqvae, discriminator)
    )
    uses = torch.zeros(vqvae.embedding.num_embeddings, device=images.device)  # of each code in this epoch
    autoencode = run.speed.fast(processes.distribute(_Autoencoding(vqvae.train())))
    judge = run.speed.fast(processes.distribute(discriminator.train()))

    def step(index: Tensor, number: int, generator: torch.Generator) -> dict[str, Tensor]:
        own = processes.share(index)
        x = to_unit(images[own])
        reconstruction, quantisation, codes = autoencode(x)
        reconstruction = reconstruction.float()
        uses.index_add_(0, codes.flatten(), torch.ones_like(codes.flatten(), dtype=uses.dtype))
        terms = {
            "reconstruction": F.mse_loss(reconstruction, x),
            "perceptual": settings.perceptual_weight * perceptual(reconstruction, x),
            "codebook": settings.codebook_weight * quantisation["codebook_loss"],
            "commitment": settings.commitment_weight * quantisation["commitment_loss"],
        }
        adversarial = number >= settings.discriminator_start_step
        if adversarial:
            fooled = adversarial_loss(judge(reconstruction).float(), real=True)
            terms["generator"] = settings.adversarial_weight * fooled
        terms = _weighted(terms, own, index)
        loss = sum(terms.values())
        loss.backward()

        if adversarial:
            if not settings.generator_gradient_leaks:
                optimizer_d.zero_grad()
            fake = adversarial_loss(judge(reconstruction.detach()).float(), real=False)
            real = adversarial_loss(judge(x).float(), real=True)
            terms |= _weighted({"discriminator": settings.adversarial_weight * (fake + real) / 2}, own, index)
            terms["discriminator"].backward()
            optimizer_d.step()
            optimizer_d.zero_grad()
        return {"loss": loss, **terms, "gradient_norm": _update(optimizer_g)}

    def after_epoch(epoch: int) -> dict[str, float]:
        used = processes.total(uses)
        share = used / used.sum()
        row = {"codes_used": int((used > 0).sum()), "perplexity": (-torch.xlogy(share, share).sum()).exp().item()}
        if settings.revive_dead_codes and epoch + 1 < settings.epochs:  # the decoder must still see the new codes
            generator = make_generator(run.seed, run.name, "revive", epoch)
            some = torch.randperm(len(images), generator=generator)[:REVIVE_FROM].to(images.device)
            revive_codes(vqvae, used == 0, to_unit(images[some]), generator)
        uses.zero_()
        return row

    parts = {"vqvae": vqvae, "discriminator": discriminator, "optimizer_g": optimizer_g, "optimizer_d": optimizer_d}
    history = _train(settings.epochs, len(images), step, parts, run, {"uses": uses}, after_epoch)
    vqvae.eval().requires_grad_(False)
    return history


class _Autoencoding(nn.Module):
    """One pass of the autoencoder in training: images -> reconstruction, losses of the codebook, codes."""

    def __init__(self, vqvae: VQVAE):
        super().__init__()
        self.vqvae = vqvae

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        z, losses, codes = self.vqvae.quantize(self.vqvae.encode_continuous(x))
        return self.vqvae.decode(z), losses, codes


@torch.no_grad()
def revive_codes(vqvae: VQVAE, dead: Tensor, x: Tensor, generator: torch.Generator) -> None:
    """Move the codebook entries marked in `dead` (codebook_size,) onto random encodings of the images `x`.

    A code that no tile is nearest to gets no gradient and stays dead; this gives it a new start (Dhariwal et al. 2020).
    """
    vectors = vqvae.encode_continuous(x).permute(0, 2, 3, 1).flatten(0, 2)
    picks = torch.randint(len(vectors), (int(dead.sum()),), generator=generator).to(x.device)
    vqvae.embedding.weight[dead] = vectors[picks]


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


def _weighted(terms: Mapping[str, Tensor], own: Tensor, index: Tensor) -> dict[str, Tensor]:
    """Means over a process's tiles `own`, such that their mean over the processes is the mean over all of `index`."""
    weight = len(own) * processes.world_size() / len(index)
    return {name: term * weight for name, term in terms.items()} if weight != 1 else dict(terms)


def _update(optimizer: torch.optim.Optimizer) -> Tensor:
    """Apply and clear the gradients; returns their norm."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def _train(
    num_epochs: int,
    num_tiles: int,
    step: Callable[[Tensor, int, torch.Generator], dict[str, Tensor]],
    parts: Mapping[str, nn.Module | torch.optim.Optimizer],
    run: Run,
    counters: Mapping[str, Tensor] | None = None,
    after_epoch: Callable[[int], dict[str, float]] = lambda epoch: {},
) -> History:
    """Run `step` over the shuffled tiles for `num_epochs`, from the resume point where there is one.

    step: takes the tiles' indices, the number of the step since the start, and the step's random generator, all on
        the networks' device; returns the loss terms, which are averaged over the epoch there.
    parts: all that changes, by name, a network first. counters: tensors that `step` changes besides.
    after_epoch: is told the number of the epoch just done and adds to its row of the history.
    """
    if run.batch_size < processes.world_size():
        raise InputError(
            f"A batch of {run.batch_size} tiles cannot be shared by {processes.world_size()} processes: "
            "start fewer, or set a larger batch_size."
        )
    device = next(next(iter(parts.values())).parameters()).device
    steps = len(epoch_batches(num_tiles, run.batch_size, torch.Generator()))  # per epoch
    total_steps = num_epochs * steps
    state = {"step": 0, "history": [], "sums": {}, "counts": {}, "seconds": 0.0}
    point = None if run.restart else load_resume_point(run.folder, run.identity)
    if point is not None:
        try:
            for name, part in parts.items():
                part.load_state_dict(point["parts"][name])
            for name, counter in (counters or {}).items():
                counter.copy_(point["counters"][name])
            state = {name: point[name] for name in state}
            state["sums"] = {name: value.to(device) for name, value in state["sums"].items()}
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise not_a_resume_point(last_resume_point(run.folder)) from error
    history = state["history"]
    if state["step"] >= total_steps:
        print(f"{run.name} is done already: {len(history)} epochs ({run.folder}). To train anew, set restart = True.")
        return history
    if point is not None:
        print(f"{run.name} goes on after step {state['step']} of {total_steps} ({run.folder}).")

    def save() -> None:
        weights = {name: part.state_dict() for name, part in parts.items()}
        save_resume_point(run.folder, run.identity, {**state, "parts": weights, "counters": dict(counters or {})})

    for part in run.folder.glob(".*.part"):
        part.unlink(missing_ok=True)  # of a write that was killed
    log = TrainingLog(run.folder, len(history))
    generator = torch.Generator(device)
    first_bad = torch.full((), -1, device=device)
    optimizer = next(part for part in parts.values() if isinstance(part, torch.optim.Optimizer))
    began = saved = time.monotonic()
    began -= state["seconds"]
    batches: list[Tensor] = []
    with (
        processes.progress(total=total_steps, initial=state["step"], desc=run.name, unit="step") as bar,
        stop_signals() as signal_received,
        processes.lost_processes_told(),
    ):
        for number in range(state["step"], total_steps):
            epoch, place = divmod(number, steps)
            if not batches:
                batches = [batch.to(device) for batch in _batches(run, num_tiles, epoch)]
            generator.manual_seed(derive_seed(run.seed, run.name, number))
            run.speed.begin_step()
            terms = step(batches[place], number, generator)
            for name, value in terms.items():
                state["sums"][name] = state["sums"].get(name, 0) + value.detach()
                state["counts"][name] = state["counts"].get(name, 0) + 1
            bad = ~(terms["loss"].detach() + terms["gradient_norm"]).isfinite()
            first_bad = torch.where(bad & (first_bad < 0), number, first_bad)
            bar.update()
            state["step"] = number + 1

            last_of_epoch = place + 1 == steps
            look = last_of_epoch or (number + 1) % CHECK_EVERY == 0
            received = processes.agree(signal_received(), device) if look or processes.world_size() == 1 else 0
            due = time.monotonic() - saved > 60 * run.saving.every_minutes
            if look or due or received:
                _refuse_bad(int(first_bad), steps, num_tiles, run)
            if last_of_epoch:
                row = _epoch_means(state["sums"], state["counts"]) | after_epoch(epoch)
                row |= {
                    "learning_rate": optimizer.param_groups[0]["lr"],
                    "images_per_second": num_tiles / (time.monotonic() - began),
                    "memory_gb": peak_memory_gb(device),
                    "seconds": time.monotonic() - began,
                }
                history.append({"epoch": epoch + 1, **row})
                log.write(history)
                shown = ("loss", "mse", "reconstruction", "images_per_second")
                bar.set_postfix({name: f"{row[name]:.4g}" for name in shown if name in row})
                state["sums"], state["counts"], batches, began = {}, {}, [], time.monotonic()
                every = run.saving.every_epochs
                due = due or number + 1 == total_steps or (every is not None and (epoch + 1) % every == 0)
            state["seconds"] = time.monotonic() - began
            if due or received:
                save()
                saved = time.monotonic()
            if received:
                stop(received, f"{run.name} stopped after step {number + 1} of {total_steps}: run it again to go on.")
    log.close()
    return history


def _batches(run: Run, num_tiles: int, epoch: int) -> list[Tensor]:
    """The tiles of each step of an epoch, the same whenever it is asked for."""
    return epoch_batches(num_tiles, run.batch_size, make_generator(run.seed, run.name, "order", epoch))


def _refuse_bad(number: int, steps: int, num_tiles: int, run: Run) -> None:
    """FloatingPointError if `number` is a step, not -1: its loss or gradient was not finite."""
    if number < 0:
        return
    epoch, place = divmod(number, steps)
    tiles = _batches(run, num_tiles, epoch)[place]
    advice = '; overrides = {"precision": "fp32"} goes on from there in full precision' if run.speed.bf16 else ""
    raise FloatingPointError(
        f"Loss or gradient of {run.name} became NaN or infinite in step {number + 1} (epoch {epoch + 1}, training "
        f"tiles {tiles.tolist()}); the last good state is {last_resume_point(run.folder) or 'the start'}{advice}."
    )


def _epoch_means(sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, float]:
    """The means of the terms over the epoch's steps and over all processes."""
    stacked = torch.stack([sums[name] / counts[name] for name in sums])
    return dict(zip(sums, (processes.total(stacked) / processes.world_size()).tolist(), strict=True))
