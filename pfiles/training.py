"""The trainings: the VQ-GAN, and the three stages of the conditional latent diffusion model.

Each training goes on where it was stopped: `_epochs` keeps a resume point and every random number comes from
generators made for one epoch, so a continued run draws what an unbroken one would.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from pfiles.checkpoints import load_resume_point, save_resume_point
from pfiles.classifier import Classifier
from pfiles.clustering import probabilities
from pfiles.data import epoch_batches, mean_colour, random_affine, to_unit
from pfiles.discriminator import Discriminator
from pfiles.latents import predict_clusters
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.losses import adversarial_loss, affine_kl, conditional_entropy, marginal_entropy, ms_ssim_loss
from pfiles.lpips import LPIPS
from pfiles.runtime import make_generator
from pfiles.settings import AutoencoderSettings, DiffusionSettings, StageSettings
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE

SAVE_EVERY_S = 60  # seconds between resume points; the last epoch always leaves one
REVIVE_FROM = 16  # tiles whose encodings replace dead codes

History = list[dict[str, float]]  # one row per epoch: the mean of each loss term


@dataclass(frozen=True)
class Run:
    """What a training depends on besides its networks, tiles and settings, and where it leaves its resume point.

    name: the training's name; with `seed` it decides every random number.
    identity: all that the result depends on, in plain values; a resume point of another identity is refused.
    restart: begin anew, whatever resume point there is.
    """

    name: str
    seed: int
    batch_size: int
    resume_point: Path
    identity: Mapping[str, Any]
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
        torch.optim.Adam(network.parameters(), settings.learning_rate, settings.adam_betas)
        for network in (vqvae, discriminator)
    )
    usage = torch.zeros(vqvae.embedding.num_embeddings, dtype=torch.int64, device=images.device)
    vqvae.train()
    discriminator.train()

    def step(index: Tensor, number: int, generator: torch.Generator) -> dict[str, Tensor]:
        x = to_unit(images[index])
        adversarial = number >= settings.discriminator_start_step
        z, quantisation, codes = vqvae.quantize(vqvae.encode_continuous(x))
        reconstruction = vqvae.decode(z)
        usage.add_(codes.flatten().bincount(minlength=len(usage)))
        terms = {
            "reconstruction": F.mse_loss(reconstruction, x),
            "perceptual": settings.perceptual_weight * perceptual(reconstruction, x),
            "codebook": settings.codebook_weight * quantisation["codebook_loss"],
            "commitment": settings.commitment_weight * quantisation["commitment_loss"],
        }
        if adversarial:
            fooled = adversarial_loss(discriminator(reconstruction), real=True)
            terms["generator"] = settings.adversarial_weight * fooled
        loss = sum(terms.values())
        loss.backward()

        if adversarial:
            if not settings.generator_gradient_leaks:
                optimizer_d.zero_grad()
            fake = adversarial_loss(discriminator(reconstruction.detach()), real=False)
            real = adversarial_loss(discriminator(x), real=True)
            terms["discriminator"] = settings.adversarial_weight * (fake + real) / 2
            terms["discriminator"].backward()
            optimizer_d.step()
            optimizer_d.zero_grad()
        optimizer_g.step()
        optimizer_g.zero_grad()
        return {"loss": loss, **terms}

    def after_epoch(epoch: int, generator: torch.Generator) -> dict[str, float]:
        used = usage > 0
        usage.zero_()
        if settings.revive_dead_codes and epoch + 1 < settings.epochs:  # the decoder must still see the new codes
            some = torch.randperm(len(images), generator=generator)[:REVIVE_FROM].to(images.device)
            revive_codes(vqvae, ~used, to_unit(images[some]), generator)
        return {"codes_used": int(used.sum())}

    parts = {"vqvae": vqvae, "discriminator": discriminator, "optimizer_g": optimizer_g, "optimizer_d": optimizer_d}
    history = _epochs(settings.epochs, len(images), step, parts, run, after_epoch)
    vqvae.eval().requires_grad_(False)
    return history


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
    scheduler = LinearNoiseScheduler(settings.num_timesteps, settings.beta_start, settings.beta_end)
    learns = stage.trains_clusters and isinstance(clustering, Classifier)
    optimizer = {"adadelta": torch.optim.Adadelta, "adam": torch.optim.Adam}[stage.optimizer](
        [*unet.parameters(), *(clustering.parameters() if learns else ())], stage.learning_rate
    )
    parts = {"unet": unet.train(), "optimizer": optimizer}
    if learns:
        parts["classifier"] = clustering.train()
        fill = settings.affine_fill or mean_colour(images)
    else:
        clusters = predict_clusters(vqvae, clustering, codes)[0].to(codes.device)

    def step(index: Tensor, number: int, generator: torch.Generator) -> dict[str, Tensor]:
        z = vqvae.embed(codes[index])
        terms = {}
        if learns:
            p = probabilities(clustering, z)
            with torch.no_grad():
                z_affine, _ = vqvae.encode(to_unit(random_affine(images[index], generator, fill=fill)))
            terms["marginal_entropy"] = marginal_entropy(p)
            terms["conditional_entropy"] = conditional_entropy(p)
            terms["affine_kl"] = affine_kl(p, probabilities(clustering, z_affine))
            cluster = p.argmax(dim=1)
        else:
            cluster = clusters[index]
        t = torch.randint(scheduler.num_timesteps, (len(z),), generator=generator).to(z.device)
        noise = torch.randn(z.shape, generator=generator).to(z.device)
        terms["mse"] = F.mse_loss(unet(scheduler.add_noise(z, noise, t), t, cluster), noise)
        weights = {
            "mse": 1.0,
            "marginal_entropy": -settings.marginal_entropy_weight,
            "conditional_entropy": settings.conditional_entropy_weight,
            "affine_kl": stage.affine_weight,
        }
        loss = sum(weights[name] * term for name, term in terms.items())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss, **terms}

    return _epochs(stage.epochs, len(codes), step, parts, run)


def _epochs(
    num_epochs: int,
    num_tiles: int,
    step: Callable[[Tensor, int, torch.Generator], dict[str, Tensor]],
    parts: Mapping[str, nn.Module | torch.optim.Optimizer],
    run: Run,
    after_epoch: Callable[[int, torch.Generator], dict[str, float]] = lambda epoch, generator: {},
) -> History:
    """Run `step` over the shuffled tiles for `num_epochs`, from the resume point where there is one.

    step: takes the tiles' indices, the number of the step since the start, and the epoch's random generator (CPU);
        returns the loss terms, which are averaged over the epoch on their device.
    parts: all that changes, by name, a network first.
    after_epoch: is told the number of the epoch just done and adds to its row of the history.
    """
    device = next(next(iter(parts.values())).parameters()).device
    history: History = []
    point = None if run.restart else load_resume_point(run.resume_point, run.identity)
    if point is not None:
        history = point["history"]
        for name, part in parts.items():
            part.load_state_dict(point["parts"][name])
        print(f"{len(history)} of {num_epochs} epochs are done already ({run.resume_point.name}).")
    saved = time.monotonic()
    steps = len(epoch_batches(num_tiles, run.batch_size, torch.Generator()))  # per epoch
    with tqdm(total=num_epochs * steps, initial=len(history) * steps, desc=run.name, unit="step") as bar:
        for epoch in range(len(history), num_epochs):
            began = time.monotonic()
            generator = make_generator(run.seed, run.name, epoch)
            sums: dict[str, Tensor] = {}
            counts: dict[str, int] = {}
            for i, index in enumerate(epoch_batches(num_tiles, run.batch_size, generator)):
                for name, value in step(index.to(device), epoch * steps + i, generator).items():
                    sums[name] = sums.get(name, 0) + value.detach()
                    counts[name] = counts.get(name, 0) + 1
                bar.update()
            row = {name: (total / counts[name]).item() for name, total in sums.items()} | after_epoch(epoch, generator)
            if bad := [name for name, value in row.items() if not math.isfinite(value)]:
                raise FloatingPointError(
                    f"In epoch {epoch + 1} of {run.name} {', '.join(bad)} became NaN or infinite; "
                    f"the last good state is {run.resume_point if run.resume_point.exists() else 'the start'}."
                )
            history.append({"epoch": epoch + 1, **row, "seconds": time.monotonic() - began})
            bar.set_postfix({name: f"{row[name]:.4f}" for name in ("loss", "mse", "reconstruction") if name in row})
            if epoch + 1 == num_epochs or time.monotonic() - saved > SAVE_EVERY_S:
                state = {"history": history, "parts": {name: part.state_dict() for name, part in parts.items()}}
                save_resume_point(run.resume_point, run.identity, state)
                saved = time.monotonic()
    return history
