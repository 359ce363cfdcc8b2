"""Training of the VQ-GAN, the first of all (the paper, section 3.2)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfiles.discriminator import Discriminator
from pfiles.learning.log import History
from pfiles.learning.loop import Run, _train, _update, _weighted
from pfiles.learning.losses import adversarial_loss, ms_ssim_loss
from pfiles.lpips import LPIPS
from pfiles.machine import processes
from pfiles.machine.runtime import make_generator
from pfiles.settings import AutoencoderSettings
from pfiles.tiles.pixels import to_unit
from pfiles.vqvae import VQVAE

REVIVE_FROM = 16  # tiles whose encodings replace dead codes


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
