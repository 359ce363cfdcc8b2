"""The published way of doing the work: the same numbers, computed as the authors' code computes them.

Attention builds and returns its weights, as `nn.MultiheadAttention` called with its defaults does; tiles go one by one
through PIL and torchvision; the frozen encoder sees every tile and its view in every step; each loss is fetched from
the device in each step; images are drawn one per call over all time steps; metrics take one pair at a time; float32,
one process. Nothing in `pfiles` uses this: it is what the speed of `pfiles` is measured against.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from pfiles.blocks import SelfAttention
from pfiles.learning.losses import affine_kl, conditional_entropy, marginal_entropy
from pfiles.measuring.pairs import PUBLISHED_SIDE

affine_view = transforms.RandomAffine(degrees=5, translate=(0.05, 0.05), scale=(0.95, 1.05), fill=(130, 97, 154))
to_tensor = transforms.ToTensor()


class MaterialisedAttention(SelfAttention):
    """`SelfAttention` through `nn.MultiheadAttention.forward`, which returns the weights unless told not to."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (B, H*W, C)
        out, _ = nn.MultiheadAttention.forward(self, tokens, tokens, tokens)
        return out.transpose(1, 2).reshape(b, c, h, w)


def materialise_attention(*networks: nn.Module) -> None:
    """Give every self-attention of the networks its published computation, in place; parameters stay as they are."""
    for network in networks:
        for module in network.modules():
            if isinstance(module, SelfAttention):
                module.__class__ = MaterialisedAttention


def tiles_one_by_one(images: np.ndarray, index: Sequence[int], view: Callable = lambda image: image) -> Tensor:
    """The tiles `index` of uint8 images (N, H, W, 3), each through PIL and `view`, as float (B, 3, H, W) in [0, 1].

    view: from PIL image to PIL image; `affine_view` draws its parameters from torch's global generator.
    """
    return torch.stack([to_tensor(view(Image.fromarray(images[i]))) for i in index])


def stage_step(
    unet: nn.Module,
    classifier: nn.Module,
    vqvae: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    x_affine: Tensor,
    t: Tensor,
    noise: Tensor,
    alpha_bar: Tensor,
    weights: Mapping[str, float],
) -> dict[str, float]:
    """One step of the first training, from tiles `x` and their affine views, both (B, 3, H, W) in [0, 1].

    t: time steps (B,). noise: like the latents. alpha_bar: (T,) of the diffusion, on the CPU.
    weights: of the loss terms by name. Returns all terms and their weighted sum as plain numbers.
    """
    optimizer.zero_grad()
    with torch.no_grad():
        z, _ = vqvae.encode(x)
        z_affine, _ = vqvae.encode(x_affine)
    p, p_affine = (classifier(latent).flatten(1).softmax(dim=1) for latent in (z, z_affine))
    signal = alpha_bar.to(z.device)[t].view(-1, 1, 1, 1)
    noisy = (signal.sqrt() * z + (1 - signal).sqrt() * noise).to(z.dtype)
    terms = {
        "mse": F.mse_loss(unet(noisy, t, p.argmax(dim=1)), noise),
        "marginal_entropy": marginal_entropy(p),
        "conditional_entropy": conditional_entropy(p),
        "affine_kl": affine_kl(p, p_affine),
    }
    loss = sum(weights[name] * term for name, term in terms.items())
    loss.backward()
    optimizer.step()
    return {name: term.item() for name, term in {"loss": loss, **terms}.items()}


@torch.no_grad()
def sample_one(
    unet: nn.Module,
    decode: Callable[[Tensor], Tensor],
    betas: Tensor,
    cluster: int,
    latent_shape: tuple[int, int, int],
    rng: torch.Generator,
) -> Tensor:
    """One image (3, H, W) in [0, 1] on the CPU, through all time steps (Ho et al. 2020, algorithm 2).

    betas: (T,) on the CPU; their tables move to the device in every step. rng: on the UNet's device.
    """
    device = rng.device
    alphas = 1 - betas
    alpha_bars = alphas.cumprod(0)
    condition = torch.tensor([cluster], device=device)
    x = torch.randn((1, *latent_shape), generator=rng, device=device)
    for i in reversed(range(len(betas))):
        t = torch.full((1,), i, device=device)
        predicted = unet(x, t, condition)
        beta, alpha, alpha_bar = (table.to(device)[t].float() for table in (betas, alphas, alpha_bars))
        x = (x - beta / (1 - alpha_bar).sqrt() * predicted) / alpha.sqrt()
        if i > 0:
            variance = (1 - alpha_bars.to(device)[t - 1]) / (1 - alpha_bars.to(device)[t]) * betas.to(device)[t]
            x = x + variance.sqrt().float() * torch.randn(x.shape, generator=rng, device=device)
    return decode(x)[0].clamp(0, 1).cpu()


def ssim_one_by_one(originals: Sequence[Path], generated: Sequence[Path]) -> list[float]:
    """SSIM (Gaussian window, per colour channel) of each pair of image files through scikit-image."""
    from skimage.metrics import structural_similarity

    return [
        structural_similarity(
            *(np.asarray(Image.open(file)) for file in pair),
            channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for pair in zip(originals, generated, strict=True)
    ]  # fmt: skip


def ms_ssim_one_by_one(originals: Sequence[Path], generated: Sequence[Path]) -> list[float]:
    """MS-SSIM of each pair of image files at the published size through torchmetrics.

    The same work as pytorch-msssim's, with other values for unlike images: torchmetrics counts a reflected border at
    the coarsest scale, averages over the colour channels before it multiplies the scales, and drops the last row of
    an odd side.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as score

    size = (PUBLISHED_SIDE, PUBLISHED_SIDE)
    return [
        score(*(to_tensor(Image.open(file).resize(size, Image.BICUBIC))[None] for file in pair), data_range=1.0).item()
        for pair in zip(originals, generated, strict=True)
    ]
