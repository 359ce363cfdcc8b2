"""All losses, each under its equation: of the UNet, the clusters, the autoencoder and its discriminators.

A loss is a scalar, the mean over the tiles of a batch, unless its shape is given. Logarithms are natural. What a
training minimises is a weighted sum of them: `denoising_terms` and `information_terms` for the UNet and the clusters,
`autoencoder_terms` and `polish_terms` for the autoencoder.

Shapes: images x (B, 3, S, S) in [0, 1]; latents z (B, z, h, w); probabilities p of k clusters (B, k), or (B, n, k) for
n classifiers at once, whose mean is returned.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pfiles.efficientnet import EfficientNetLite
from pfiles.machine import processes
from pfiles.settings import AutoencoderSettings, DiffusionSettings, PolishSettings, StageSettings
from pfiles.ssim import multiscale_ssim

FEATURES_WEIGHT = 0.75  # of the features of photographs beside MS-SSIM
EPS = 1e-8  # published; keeps log(0) finite
RIDGE = 1e-4  # of each channel's variance, added in a regression on latents: channels may depend on each other
RECONSTRUCTION = {"mse": F.mse_loss, "l1": F.l1_loss}
Perceptual = Callable[[Tensor, Tensor], Tensor]  # two batches of images -> a scalar


# The UNet: denoising


def denoising_terms(predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
    """L = mean_i |u(x_t, t, c)_i - target_i|^2 / dim, Ho et al. 2020, equation 14; the paper, section 3.4.

    predicted: u(x_t, t, c), what the UNet answers for the noisy latents x_t = sqrt(alpha_bar_t) x_0 +
        sqrt(1 - alpha_bar_t) noise at the times t with the clusters c (B, z, h, w).
    target: the noise, or the velocity sqrt(alpha_bar_t) noise - sqrt(1 - alpha_bar_t) x_0 (Salimans & Ho 2022).
    """
    return {"mse": F.mse_loss(predicted, target)}


# The clusters: information maximisation (the paper, section 3.5; Krause et al. 2010, Hu et al. 2017)


def marginal_entropy(p: Tensor) -> Tensor:
    """ME = H(mean_i p_i) in [0, ln k]: high when all clusters are used."""
    mean = p.mean(dim=0)
    return -(mean * (mean + EPS).log()).sum(-1).mean()


def conditional_entropy(p: Tensor) -> Tensor:
    """CE = mean_i H(p_i) in [0, ln k]: low when each tile is certain of its cluster."""
    return -(p * (p + EPS).log()).sum(-1).mean()


def affine_kl(p: Tensor, p_affine: Tensor) -> Tensor:
    """AF = mean_i KL(p_i || p'_i) >= 0: low when a tile and its affine view p' agree.

    The gradient flows through both arguments, as published.
    """
    return (p * ((p + EPS).log() - (p_affine + EPS).log())).sum(-1).mean()


def information_terms(p: Tensor, p_affine: Tensor) -> dict[str, Tensor]:
    """L = - l_me ME + l_ce CE + l_af AF, the weights being those of `information_weights`.

    p, p_affine: of the tiles and of their affine views (B, n, k). The marginal entropy is that of the whole batch, of
    which several processes have a share each.
    """
    return {
        "marginal_entropy": marginal_entropy(processes.batch_mean(p)[None]),
        "conditional_entropy": conditional_entropy(p),
        "affine_kl": affine_kl(p, p_affine),
    }


def information_weights(settings: DiffusionSettings, stage: StageSettings) -> dict[str, float]:
    """-l_me, l_ce and l_af."""
    return {
        "marginal_entropy": -settings.marginal_entropy_weight,
        "conditional_entropy": settings.conditional_entropy_weight,
        "affine_kl": stage.affine_weight,
    }


# The autoencoder


def autoencoder_terms(
    x: Tensor,
    reconstruction: Tensor,
    quantisation: dict[str, Tensor],
    perceptual: Perceptual,
    settings: AutoencoderSettings,
) -> dict[str, Tensor]:
    """L = |x' - x| + w_p perceptual(x', x) + w_c |sg(z) - e|^2 + w_b |z - sg(e)|^2 (the paper, section 3.2).

    The first term is the mean squared error as published, or the mean absolute one. z is the encoder's output, e the
    codebook's nearest entry, sg stops the gradient (van den Oord et al. 2017, equation 3). Where the settings say so,
    `colour_loss`, `equivariance_loss` and the adversarial loss join in, see `learning.autoencoder`.

    x, reconstruction: x and x'. quantisation: the last two terms, as `VQVAE.quantize` gives them.
    """
    return {
        "reconstruction": RECONSTRUCTION[settings.reconstruction](reconstruction, x),
        "perceptual": settings.perceptual_weight * perceptual(reconstruction, x),
        "codebook": settings.codebook_weight * quantisation["codebook_loss"],
        "commitment": settings.commitment_weight * quantisation["commitment_loss"],
    }


def colour_loss(z: Tensor, x: Tensor) -> Tensor:
    """L = 1 - R^2 in [0, 1]: the share of a place's colour that no linear map of its latent vector predicts.

    R^2 is that of the linear regression of the tiles, averaged to the grid of the latents, on the latents of the whole
    batch. Where it is 1, the latents hold a small picture of the tile, and are as smooth as tissue is: what noise
    destroys last and a UNet learns first is then the arrangement of the tissue.

    z: (B, z, h, w). x: the tiles (B, 3, S, S).
    """
    colours = F.adaptive_avg_pool2d(x, (z.shape[2], z.shape[3]))  # (B, 3, h, w)
    rows = torch.cat([z, colours], dim=1).flatten(2)  # (B, z + 3, h * w)
    mean = processes.batch_mean(rows.mean(-1))  # (z + 3,)
    second = processes.batch_mean(rows @ rows.transpose(1, 2) / rows.shape[-1])  # (z + 3, z + 3)
    covariance = second - mean[:, None] * mean
    n = z.shape[1]
    of_z, of_both, of_colours = covariance[:n, :n], covariance[:n, n:], covariance[n:, n:]
    ridge = RIDGE * of_z.diagonal() + EPS
    explained = of_both * torch.linalg.solve(of_z + ridge.diag(), of_both)
    return 1 - explained.sum() / (of_colours.trace() + EPS)


def equivariance_loss(coarse: Tensor, x: Tensor) -> Tensor:
    """L = |D(A z) - A x|_1, with A the average over 2 x 2 places: scale equivariance (Kouzelis et al. 2025, EQ-VAE;
    Skorokhodov et al. 2025).

    coarse: D(A z), what the decoder makes of averaged latents (B, 3, S / 2, S / 2). x: the tiles (B, 3, S, S).
    """
    return F.l1_loss(coarse, F.avg_pool2d(x, 2))


def polish_terms(
    x: Tensor, reconstruction: Tensor, perceptual: Perceptual, settings: PolishSettings
) -> dict[str, Tensor]:
    """L = |x' - x|_1 + w_p perceptual(x', x), of the decoder alone; + w_a `passing_loss` (Esser et al. 2021).

    x, reconstruction: x and x'.
    """
    return {
        "reconstruction": F.l1_loss(reconstruction, x),
        "perceptual": settings.perceptual_weight * perceptual(reconstruction, x),
    }


def ms_ssim_loss(a: Tensor, b: Tensor) -> Tensor:
    """1 - MS-SSIM(a, b) (Wang et al. 2003), a perceptual loss that needs no pretrained network.

    Five scales with the largest odd Gaussian window up to 11 pixels that the shorter side S allows:
    S > 16 * (window - 1), so 7 at 128 px and 3 at 64 px. S must exceed 32.
    """
    largest = (min(a.shape[-2:]) - 1) // 16 + 1
    window = min(11, largest if largest % 2 else largest - 1)
    if window < 3:
        raise ValueError(
            f"MS-SSIM over five scales needs images of more than 32 px, but they have {tuple(a.shape[-2:])}."
        )
    return 1 - multiscale_ssim(a, b, window).mean()


def photograph_loss(network: EfficientNetLite, a: Tensor, b: Tensor) -> Tensor:
    """L = (1 - MS-SSIM(a, b)) + 0.75 `feature_map_loss`, in the maps of a network that learnt from photographs."""
    return ms_ssim_loss(a, b) + FEATURES_WEIGHT * feature_map_loss(network.maps(a), network.maps(b))


def feature_map_loss(maps: Sequence[Tensor], maps_of_x: Sequence[Tensor]) -> Tensor:
    """L = sum_l mean_(h, w) |u_l' - u_l|^2, u_l being the feature map of level l, brought to length 1 at each place.

    The distance of Zhang et al. 2018 (LPIPS, equation 1) with all weights 1, in [0, 4] for each level.

    maps, maps_of_x: of the reconstructions and of the tiles, each level (B, C, h, w).
    """
    pairs = zip(maps, maps_of_x, strict=True)
    return sum((F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean() for a, b in pairs)  # type: ignore[return-value]  # there are levels


# The discriminators


def adversarial_loss(logits: Tensor, real: bool) -> Tensor:
    """mean (D(x) - 1)^2 for real images, mean D(x)^2 for generated ones: least squares, Mao et al. 2017.

    logits: D(x) of all patches, of any shape. A decoder minimises the loss of its images passing for real ones.
    """
    return F.mse_loss(logits, torch.full_like(logits, float(real)))


def passing_loss(logits: Tensor) -> Tensor:
    """- mean D(x'), what a decoder minimises against a discriminator of `hinge_loss`, Lim & Ye 2017.

    logits: D(x') of its images, of any shape.
    """
    return -logits.mean()


def hinge_loss(real: Tensor, generated: Tensor) -> Tensor:
    """mean max(0, 1 - D(x)) + mean max(0, 1 + D(x')), what a discriminator minimises, Lim & Ye 2017.

    real, generated: its logits D(x) for real images and D(x') for generated ones, of any shape.
    """
    return F.relu(1 - real).mean() + F.relu(1 + generated).mean()
