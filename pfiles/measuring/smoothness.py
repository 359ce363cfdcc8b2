"""Can a UNet learn these latents? How smooth they are, and how many dimensions they use.

Where neighbouring places of a latent have nothing in common, as in white noise, noise hides the arrangement of the
tissue first, and a UNet learns it last. Where averages over neighbours keep most of the variance, as in the tiles
themselves, the arrangement is what a UNet learns first (Skorokhodov et al. 2025).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pfiles.errors import InputError
from pfiles.latents import latent_batches
from pfiles.tiles.pixels import evenly_spaced
from pfiles.vqvae import VQVAE

SIDES = (2, 4, 8)  # places: of the squares that are averaged
TILES = 1000  # of a set at most, thinned evenly


def smoothness_of_codes(vqvae: VQVAE, codes: Tensor) -> dict[str, float]:
    """`smoothness` of the latents of tiles, by their codebook indices (N, h, w); of 1,000 tiles at most."""
    return smoothness(torch.cat([*latent_batches(vqvae, codes[evenly_spaced(len(codes), TILES)])]))


def smoothness(latents: Tensor) -> dict[str, float]:
    """The share of the latents' variance that their averages over 2 x 2, 4 x 4 and 8 x 8 places keep, and their rank.

    latents: (N, z, h, w). Squares that do not fit, as 8 x 8 in a latent of 6 x 6 places, are left out.
    Returns "kept_2x2" and so on, each in [0, 1], with 1 / side^2 for white noise, and "effective_rank", the exponential
    of the entropy of the eigenvalues' shares of the channels' covariance, in [1, z] (Roy and Vetterli 2007).
    InputError for latents that are the same at every place of every tile.
    """
    z = latents.detach().double().cpu()
    z = z - z.mean((0, 2, 3), keepdim=True)
    rows = z.movedim(1, -1).flatten(0, 2)  # (N h w, z)
    covariance = rows.T @ rows / len(rows)
    variance = covariance.trace()
    if not variance > 1e-12:
        raise InputError("The latents are the same at every place: the autoencoder uses one code for all tissue.")
    fitting = [side for side in SIDES if min(z.shape[2:]) >= side]
    shares = {side: F.avg_pool2d(z, side).square().sum(1).mean() / variance for side in fitting}
    share = torch.linalg.eigvalsh(covariance).clamp_min(0) / variance
    rank = (-torch.xlogy(share, share).sum()).exp()
    return {f"kept_{side}x{side}": value.item() for side, value in shares.items()} | {"effective_rank": rank.item()}


def in_words(scores: dict[str, float]) -> str:
    """What `smoothness` gives as a sentence."""
    shares = ", ".join(
        f"{value:.0%} over {name.removeprefix('kept_').replace('x', ' x ')}"
        for name, value in scores.items()
        if name != "effective_rank"
    )
    return (
        f"Averages of the latents keep {shares} places (white noise: 25 %, 6 %, 2 %; 60 % or more of 2 x 2 is smooth); "
        f"effective rank {scores['effective_rank']:.1f}"
    )
