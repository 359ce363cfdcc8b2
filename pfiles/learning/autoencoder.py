"""Training of the VQ-GAN, the first of all (the paper, section 3.2), and of its decoder alone."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfiles import efficientnet
from pfiles.discriminator import Discriminator, FeatureDiscriminator, PolishDiscriminator
from pfiles.learning.log import History
from pfiles.learning.loop import Job, LearningRateSchedule, Objective, train
from pfiles.learning.losses import (
    Perceptual,
    adversarial_loss,
    autoencoder_terms,
    colour_loss,
    equivariance_loss,
    hinge_loss,
    ms_ssim_loss,
    passing_loss,
    photograph_loss,
    polish_terms,
)
from pfiles.lpips import LPIPS
from pfiles.machine import processes
from pfiles.machine.runtime import make_rng
from pfiles.settings import AutoencoderSettings, PolishSettings
from pfiles.tiles.pixels import to_unit
from pfiles.tiles.views import random_dihedral
from pfiles.vqvae import VQVAE

REVIVE_FROM = 16  # tiles whose encodings replace dead codes


def make_perceptual(settings: AutoencoderSettings, device: torch.device | str) -> Perceptual:
    """The perceptual loss of the settings, from reconstructions and tiles in [0, 1] to a scalar."""
    if settings.perceptual == "ms-ssim":
        return ms_ssim_loss
    if settings.perceptual == "photographs":
        return partial(photograph_loss, efficientnet.lite0(device))
    lpips = LPIPS().load_pretrained().to(device)
    return lambda a, b: lpips(a, b, normalize=not settings.lpips_in_unit_range).mean()


def make_polish_discriminator(
    settings: PolishSettings, device: torch.device | str, maps: Callable[[Tensor], list[Tensor]] | None = None
) -> PolishDiscriminator | FeatureDiscriminator:
    """The discriminator of the polish that the settings describe, untrained.

    maps: those that it judges in place of pixels; None: of EfficientNet-Lite0, whose weights are loaded.
    """
    sizes: dict[str, Any] = dict(settings.discriminator)
    if settings.discriminator_sees == "pixels":
        return PolishDiscriminator(**sizes).to(device)
    return FeatureDiscriminator(maps or efficientnet.lite0(device).maps, **sizes).to(device)


def train_autoencoder(
    *,
    vqvae: VQVAE,
    discriminator: Discriminator,
    images: Tensor,
    perceptual: Perceptual,
    settings: AutoencoderSettings,
    job: Job,
    picture: Callable[[VQVAE], Tensor] | None = None,
) -> History:
    """Train the VQ-GAN (the paper, section 3.2) on `images` (N, 3, S, S) uint8, in place.

    The autoencoder minimises `losses.autoencoder_terms` and, after `discriminator_start_step` steps, + w_a * (how far
    its images are from passing for real ones). From then on the discriminator minimises w_a times the mean of its two
    least-squares losses.

    perceptual: see `make_perceptual`. picture: what such an autoencoder makes, see `loop.train`.
    """
    # Networks and optimisers.
    autoencoding = _Autoencoding(vqvae.train(), settings.equivariance_weight > 0)
    autoencode = job.speed.accelerate(processes.distribute(autoencoding))
    discriminate = job.speed.accelerate(processes.distribute(discriminator.train()))
    optimizer_g, optimizer_d = (_adam(network, settings, job) for network in (vqvae, discriminator))
    state = {"vqvae": vqvae, "discriminator": discriminator, "optimizer_g": optimizer_g, "optimizer_d": optimizer_d}
    code_counts = torch.zeros(vqvae.embedding.num_embeddings, device=images.device)  # uses of each code in this epoch

    def objectives(index: Tensor, random: dict[str, Tensor], step: int) -> Iterator[Objective]:
        # Reconstruct the tiles.
        x = to_unit(random["tiles"])  # (B, 3, S, S)
        reconstruction, z, coarse, quantisation, codes = autoencode(x)  # z (B, z, h, w), codes (B, h, w)
        reconstruction = reconstruction.float()
        code_counts.index_add_(0, codes.flatten(), torch.ones_like(codes.flatten(), dtype=code_counts.dtype))

        # The autoencoder's loss, with what makes its latents smooth, and the adversarial term once it has begun.
        terms = autoencoder_terms(x, reconstruction, quantisation, perceptual, settings)
        if settings.colour_weight:
            terms["colour"] = settings.colour_weight * colour_loss(z.float(), x)
        if coarse is not None:
            terms["equivariance"] = settings.equivariance_weight * equivariance_loss(coarse.float(), x)
        adversarial = step >= settings.discriminator_start_step
        if adversarial:
            passing = adversarial_loss(discriminate(reconstruction).float(), real=True)
            terms["adversarial"] = settings.adversarial_weight * passing
        yield Objective([optimizer_g], terms)

        # The discriminator's loss.
        if adversarial:
            if not settings.generator_gradient_leaks:
                optimizer_d.zero_grad()
            generated = adversarial_loss(discriminate(reconstruction.detach()).float(), real=False)
            real = adversarial_loss(discriminate(x).float(), real=True)
            yield Objective([optimizer_d], {"discriminator": settings.adversarial_weight * (generated + real) / 2})

    def after_epoch(epoch: int) -> dict[str, float]:
        counts = processes.total(code_counts)
        share = counts / counts.sum()
        row = {"codes_used": int((counts > 0).sum()), "perplexity": (-torch.xlogy(share, share).sum()).exp().item()}
        if settings.revive_dead_codes and epoch + 1 < settings.epochs:  # the decoder must still see the new codes
            rng = make_rng(job.seed, job.name, "revive", epoch)
            sample = torch.randperm(len(images), generator=rng)[:REVIVE_FROM].to(images.device)
            revive_codes(vqvae, counts == 0, to_unit(images[sample]), rng)
        code_counts.zero_()
        return row

    history = train(
        job,
        num_epochs=settings.epochs,
        num_tiles=len(images),
        sample_random=partial(sample_tiles, images, settings.dihedral_views),
        objectives=objectives,
        state=state,
        schedule=LearningRateSchedule(settings.warmup_steps, settings.decay),
        clip_norm=settings.clip_norm,
        counters={"uses": code_counts},
        after_epoch=after_epoch,
        picture=picture and partial(picture, vqvae),
    )
    vqvae.eval().requires_grad_(False)
    return history


def sample_tiles(images: Tensor, dihedral_views: bool, index: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
    """The "tiles" of a step (B, 3, S, S), each in a random one of its eight views where `dihedral_views`."""
    tiles = images[index]
    return {"tiles": random_dihedral(tiles, rng) if dihedral_views else tiles}


def polish_decoder(
    *,
    vqvae: VQVAE,
    discriminator: PolishDiscriminator | FeatureDiscriminator,
    images: Tensor,
    perceptual: Perceptual,
    settings: PolishSettings,
    clip_norm: float | None,
    job: Job,
    picture: Callable[[VQVAE], Tensor] | None = None,
) -> History:
    """Train the decoder on alone, in place, so that fine detail comes back that a mean error cannot ask for.

    Encoder and codebook stay as they are, and with them every code, cluster and UNet. The decoder minimises
    `losses.polish_terms` + w_a `losses.passing_loss`; the discriminator its `losses.hinge_loss`. Both learning rates
    fall to zero along a cosine.

    images: uint8 (N, 3, S, S), each shown in a random one of its eight views. clip_norm: see `train`.
    """
    # Networks and optimisers: of the autoencoder, the decoder alone learns.
    decoder = nn.ModuleList([vqvae.post_quant_conv, *(m for n, m in vqvae.named_children() if n.startswith("decoder"))])
    vqvae.train().requires_grad_(False)
    decoder.requires_grad_(True)
    encode = job.speed.accelerate(vqvae.encode_codes)
    decode = job.speed.accelerate(processes.distribute(_Decoding(vqvae)))
    discriminate = job.speed.accelerate(processes.distribute(discriminator.train()))
    optimizer_g, optimizer_d = (_adam(network, settings, job) for network in (decoder, discriminator))
    state = {"vqvae": vqvae, "discriminator": discriminator, "optimizer_g": optimizer_g, "optimizer_d": optimizer_d}

    def objectives(index: Tensor, random: dict[str, Tensor], step: int) -> Iterator[Objective]:
        # Reconstruct the tiles from their codes.
        x = to_unit(random["tiles"])  # (B, 3, S, S)
        with torch.no_grad():
            z = vqvae.embed(encode(x))  # (B, z, h, w)
        reconstruction = decode(z).float()

        # The decoder's loss.
        terms = polish_terms(x, reconstruction, perceptual, settings)
        terms["adversarial"] = settings.adversarial_weight * passing_loss(discriminate(reconstruction).float())
        yield Objective([optimizer_g], terms)

        # The discriminator's loss; the decoder's left a gradient in it.
        optimizer_d.zero_grad()
        loss = hinge_loss(discriminate(x).float(), discriminate(reconstruction.detach()).float())
        yield Objective([optimizer_d], {"discriminator": loss})

    history = train(
        job,
        num_epochs=settings.epochs,
        num_tiles=len(images),
        sample_random=partial(sample_tiles, images, True),
        objectives=objectives,
        state=state,
        schedule=LearningRateSchedule(decay="cosine"),
        clip_norm=clip_norm,
        picture=picture and partial(picture, vqvae),
    )
    vqvae.eval().requires_grad_(False)
    return history


def _adam(network: nn.Module, settings: AutoencoderSettings | PolishSettings, job: Job) -> torch.optim.Optimizer:
    fused = job.speed.fused or None
    return torch.optim.Adam(network.parameters(), settings.learning_rate, settings.adam_betas, fused=fused)


class _Decoding(nn.Module):
    """The decoder as a network of its own, for several processes."""

    def __init__(self, vqvae: VQVAE):
        super().__init__()
        self.vqvae = vqvae

    def forward(self, z: Tensor) -> Tensor:
        return self.vqvae.decode(z)


class _Autoencoding(nn.Module):
    """One pass of the autoencoder in training.

    Images -> reconstruction, quantised latents, what the decoder makes of the latents at half their resolution (None
    unless `coarse`), losses of the codebook, codes.
    """

    def __init__(self, vqvae: VQVAE, coarse: bool):
        super().__init__()
        self.vqvae, self.coarse = vqvae, coarse

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Tensor], Tensor]:
        z, losses, codes = self.vqvae.quantize(self.vqvae.encode_continuous(x))
        coarse = self.vqvae.decode(F.avg_pool2d(z, 2)) if self.coarse else None
        return self.vqvae.decode(z), z, coarse, losses, codes


@torch.no_grad()
def revive_codes(vqvae: VQVAE, dead: Tensor, x: Tensor, rng: torch.Generator) -> None:
    """Move the codebook entries marked in `dead` (codebook_size,) onto random encodings of the images `x`.

    A code that no tile is nearest to gets no gradient and stays dead; this gives it a new start (Dhariwal et al. 2020).
    """
    vectors = vqvae.encode_continuous(x).permute(0, 2, 3, 1).flatten(0, 2)
    picks = torch.randint(len(vectors), (int(dead.sum()),), generator=rng).to(x.device)
    vqvae.embedding.weight[dead] = vectors[picks]
