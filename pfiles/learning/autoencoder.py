"""Training of the VQ-GAN, the first of all (the paper, section 3.2), and of its decoder alone."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfiles.discriminator import Discriminator, PolishDiscriminator
from pfiles.learning.log import History
from pfiles.learning.loop import Job, Objective, Pace, train
from pfiles.learning.losses import adversarial_loss, hinge_loss, ms_ssim_loss
from pfiles.lpips import LPIPS
from pfiles.machine import processes
from pfiles.machine.runtime import make_generator
from pfiles.settings import AutoencoderSettings, PolishSettings
from pfiles.tiles.pixels import to_unit
from pfiles.tiles.views import random_dihedral
from pfiles.vqvae import VQVAE

REVIVE_FROM = 16  # tiles whose encodings replace dead codes
RECONSTRUCTION = {"mse": F.mse_loss, "l1": F.l1_loss}


def make_perceptual(settings: AutoencoderSettings, device: torch.device | str) -> Callable[[Tensor, Tensor], Tensor]:
    """The perceptual loss of the settings, from two batches of images in [0, 1] to a scalar."""
    if settings.perceptual == "ms-ssim":
        return ms_ssim_loss
    lpips = LPIPS().load_pretrained().to(device)
    return lambda a, b: lpips(a, b, normalize=not settings.lpips_in_unit_range).mean()


def train_autoencoder(
    *,
    vqvae: VQVAE,
    discriminator: Discriminator,
    images: Tensor,
    perceptual: Callable[[Tensor, Tensor], Tensor],
    settings: AutoencoderSettings,
    job: Job,
    picture: Callable[[VQVAE], Tensor] | None = None,
) -> History:
    """Train the VQ-GAN (the paper, section 3.2) on `images` (N, 3, S, S) uint8, in place.

    The autoencoder minimises the reconstruction error (MSE as published, or L1) + w_p perceptual + w_c codebook + w_b
    commitment, and, after `discriminator_start_step` steps, + w_a * (how far its images are from passing for real
    ones). From then on the discriminator minimises w_a times the mean of its two least-squares losses.

    perceptual: see `make_perceptual`. picture: what such an autoencoder makes, see `loop.train`.
    """
    optimizer_g, optimizer_d = (
        torch.optim.Adam(
            network.parameters(), settings.learning_rate, settings.adam_betas, fused=job.speed.fused or None
        )
        for network in (vqvae, discriminator)
    )
    uses = torch.zeros(vqvae.embedding.num_embeddings, device=images.device)  # of each code in this epoch
    autoencode = job.speed.fast(processes.distribute(_Autoencoding(vqvae.train())))
    judge = job.speed.fast(processes.distribute(discriminator.train()))

    def learn(own: Tensor, drawn: dict[str, Tensor], number: int) -> Iterator[Objective]:
        x = to_unit(drawn["tiles"])
        reconstruction, quantisation, codes = autoencode(x)
        reconstruction = reconstruction.float()
        uses.index_add_(0, codes.flatten(), torch.ones_like(codes.flatten(), dtype=uses.dtype))
        terms = autoencoder_terms(x, reconstruction, quantisation, perceptual, settings)
        adversarial = number >= settings.discriminator_start_step
        if adversarial:
            fooled = adversarial_loss(judge(reconstruction).float(), real=True)
            terms["generator"] = settings.adversarial_weight * fooled
        yield Objective([optimizer_g], terms)
        if adversarial:
            if not settings.generator_gradient_leaks:
                optimizer_d.zero_grad()
            fake = adversarial_loss(judge(reconstruction.detach()).float(), real=False)
            real = adversarial_loss(judge(x).float(), real=True)
            yield Objective([optimizer_d], {"discriminator": settings.adversarial_weight * (fake + real) / 2})

    def after_epoch(epoch: int) -> dict[str, float]:
        used = processes.total(uses)
        share = used / used.sum()
        row = {"codes_used": int((used > 0).sum()), "perplexity": (-torch.xlogy(share, share).sum()).exp().item()}
        if settings.revive_dead_codes and epoch + 1 < settings.epochs:  # the decoder must still see the new codes
            generator = make_generator(job.seed, job.name, "revive", epoch)
            some = torch.randperm(len(images), generator=generator)[:REVIVE_FROM].to(images.device)
            revive_codes(vqvae, used == 0, to_unit(images[some]), generator)
        uses.zero_()
        return row

    history = train(
        job,
        num_epochs=settings.epochs,
        num_tiles=len(images),
        draw=partial(draw_tiles, images, settings.dihedral_views),
        learn=learn,
        parts={"vqvae": vqvae, "discriminator": discriminator, "optimizer_g": optimizer_g, "optimizer_d": optimizer_d},
        pace=Pace(settings.warmup_steps, settings.decay, settings.clip_norm),
        counters={"uses": uses},
        after_epoch=after_epoch,
        picture=picture and partial(picture, vqvae),
    )
    vqvae.eval().requires_grad_(False)
    return history


def draw_tiles(images: Tensor, dihedral_views: bool, index: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The "tiles" of a step (B, 3, S, S), each in a random one of its eight views where `dihedral_views`."""
    tiles = images[index]
    return {"tiles": random_dihedral(tiles, generator) if dihedral_views else tiles}


def autoencoder_terms(
    x: Tensor,
    reconstruction: Tensor,
    quantisation: dict[str, Tensor],
    perceptual: Callable[[Tensor, Tensor], Tensor],
    settings: AutoencoderSettings,
) -> dict[str, Tensor]:
    """What the autoencoder minimises for tiles x (B, 3, S, S) in [0, 1], but for the discriminator's verdict."""
    return {
        "reconstruction": RECONSTRUCTION[settings.reconstruction](reconstruction, x),
        "perceptual": settings.perceptual_weight * perceptual(reconstruction, x),
        "codebook": settings.codebook_weight * quantisation["codebook_loss"],
        "commitment": settings.commitment_weight * quantisation["commitment_loss"],
    }


def polish_decoder(
    *,
    vqvae: VQVAE,
    discriminator: PolishDiscriminator,
    images: Tensor,
    perceptual: Callable[[Tensor, Tensor], Tensor],
    settings: PolishSettings,
    clip_norm: float | None,
    job: Job,
    picture: Callable[[VQVAE], Tensor] | None = None,
) -> History:
    """Train the decoder on alone, in place, so that fine detail comes back that a mean error cannot ask for.

    Encoder and codebook stay as they are, and with them every code, cluster and UNet. The decoder minimises L1 + w_p
    perceptual + w_a times the hinge loss of passing for real (Lim & Ye 2017; Esser et al. 2021 for a VQ-GAN); the
    discriminator its own hinge loss. Both learning rates fall to zero along a cosine.

    images: uint8 (N, 3, S, S), each shown in a random one of its eight views. clip_norm: as in `Pace`.
    """
    decoder = nn.ModuleList([vqvae.post_quant_conv, *(m for n, m in vqvae.named_children() if n.startswith("decoder"))])
    vqvae.train().requires_grad_(False)
    decoder.requires_grad_(True)
    optimizers = [
        torch.optim.Adam(
            network.parameters(), settings.learning_rate, settings.adam_betas, fused=job.speed.fused or None
        )
        for network in (decoder, discriminator)
    ]
    encode = job.speed.fast(vqvae.encode_codes)
    decode = job.speed.fast(processes.distribute(_Decoding(vqvae)))
    judge = job.speed.fast(processes.distribute(discriminator.train()))

    def learn(own: Tensor, drawn: dict[str, Tensor], number: int) -> Iterator[Objective]:
        x = to_unit(drawn["tiles"])
        with torch.no_grad():
            z = vqvae.embed(encode(x))
        reconstruction = decode(z).float()
        terms = {
            "reconstruction": F.l1_loss(reconstruction, x),
            "perceptual": settings.perceptual_weight * perceptual(reconstruction, x),
            "generator": -settings.adversarial_weight * judge(reconstruction).float().mean(),
        }
        yield Objective(optimizers[:1], terms)
        optimizers[1].zero_grad()  # of the generator's loss
        loss = hinge_loss(judge(x).float(), judge(reconstruction.detach()).float())
        yield Objective(optimizers[1:], {"discriminator": loss})

    parts = {"vqvae": vqvae, "discriminator": discriminator, "optimizer_g": optimizers[0], "optimizer_d": optimizers[1]}
    history = train(
        job,
        num_epochs=settings.epochs,
        num_tiles=len(images),
        draw=partial(draw_tiles, images, True),
        learn=learn,
        parts=parts,
        pace=Pace(decay="cosine", clip_norm=clip_norm),
        picture=picture and partial(picture, vqvae),
    )
    vqvae.eval().requires_grad_(False)
    return history


class _Decoding(nn.Module):
    """The decoder as a network of its own, for several processes."""

    def __init__(self, vqvae: VQVAE):
        super().__init__()
        self.vqvae = vqvae

    def forward(self, z: Tensor) -> Tensor:
        return self.vqvae.decode(z)


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
