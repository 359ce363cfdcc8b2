"""The terms of the training losses. Natural logarithms; every function returns a scalar.

Probabilities have the shape (B, k), or (B, n, k) for n classifiers at once, whose mean is returned.

Information maximisation (the paper, section 3.5; Krause et al. 2010, Hu et al. 2017): with p_i the cluster
probabilities of tile i and p'_i those of its affine view,

    L = MSE_noise - l_me * ME + l_ce * CE + l_af * AF

where ME is high when all clusters are used, CE low when each tile is certain of its cluster, and AF low when
a tile and its view agree.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pfiles.ssim import multiscale_ssim

EPS = 1e-8  # published; keeps log(0) finite


def marginal_entropy(p: Tensor) -> Tensor:
    """ME = H(mean_i p_i) in [0, ln k], from probabilities p."""
    mean = p.mean(dim=0)
    return -(mean * (mean + EPS).log()).sum(-1).mean()


def conditional_entropy(p: Tensor) -> Tensor:
    """CE = mean_i H(p_i) in [0, ln k], from probabilities p."""
    return -(p * (p + EPS).log()).sum(-1).mean()


def affine_kl(p: Tensor, p_affine: Tensor) -> Tensor:
    """AF = mean_i KL(p_i || p'_i) >= 0; the gradient flows through both arguments, as published."""
    return (p * ((p + EPS).log() - (p_affine + EPS).log())).sum(-1).mean()


def adversarial_loss(logits: Tensor, real: bool) -> Tensor:
    """Least-squares GAN loss (Mao et al. 2017): the mean squared distance of all patch logits to 1 (real) or 0."""
    return F.mse_loss(logits, torch.full_like(logits, float(real)))


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's hinge loss (Lim & Ye 2017) of its logits for real and for generated images."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def ms_ssim_loss(a: Tensor, b: Tensor) -> Tensor:
    """1 - MS-SSIM (Wang et al. 2003) of images in [0, 1], averaged over the batch; needs no pretrained network.

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
