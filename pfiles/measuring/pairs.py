"""Numbers about images: paired similarities with their controls, and the summary that a run collects.

Paired scores of a generated image and the training image whose cluster it shares say little about a generator:
beside each the notebooks print the same score for controls, such as a flat colour (see `paired_controls`), and one
sentence that says which of them it can tell from generated images (see `verdict`).
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pfiles.lpips import LPIPS
from pfiles.machine.processes import progress
from pfiles.ssim import centred_maps, gaussian_means, image_means, moments, multiscale_ssim
from pfiles.tiles.pixels import to_unit

PUBLISHED_SIDE = 231  # pixels; the published images were saved through matplotlib at this size
BATCH_SIZE = 16  # pairs at once; changes memory and speed only

PairScore = Callable[[Tensor, Tensor], np.ndarray]  # two uint8 (N, 3, H, W) -> (N,)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair of images (N, 3, H, W) in [0, 1]; higher is closer. -> (N,)

    At most 100 dB, which equal images get.
    """
    return -10 * (a - b).square().flatten(1).mean(dim=1).clamp_min(1e-10).log10()


def ssim_published(a: Tensor, b: Tensor, device: torch.device | str = "cpu") -> np.ndarray:
    """SSIM as the published notebook computes it: a 3 x 3 x 3 window that takes colour for a third axis of space.

    a, b: uint8 (N, 3, H, W). Returns (N,), at most 1 for equal images. It rates any two images of one overall
    colour as similar; kept so that the published 0.7988 has its meaning. Variances are those of a sample (27 / 26),
    and only windows that lie inside the image in all three axes count.
    """

    def window_means(maps: Tensor) -> Tensor:
        colours = maps.unflatten(1, (3, -1)).mean(1)  # the window spans all three
        return F.avg_pool2d(colours, 3, stride=1)

    x, y = _maps(a, b, device)
    local_moments = moments(x, y, window_means)
    return (local_moments.luminance() * local_moments.structure(unbiased=27 / 26)).mean((0, 2, 3)).cpu().numpy()


def ssim(a: Tensor, b: Tensor, device: torch.device | str = "cpu") -> np.ndarray:
    """SSIM of Wang et al. 2004: Gaussian window of sigma 1.5 within each colour channel, averaged over channels.

    a, b: uint8 (N, 3, H, W), sides of at least 11 px. Returns (N,), at most 1 for equal images. Only windows inside
    the image count.
    """
    x, y = _maps(a, b, device)
    local_moments = moments(x, y, gaussian_means)
    return image_means(local_moments.luminance() * local_moments.structure()).mean(0).cpu().numpy()


def ms_ssim(a: Tensor, b: Tensor, device: torch.device | str = "cpu") -> np.ndarray:
    """MS-SSIM of Wang et al. 2003, five scales with an 11 px window; at most 1 for equal images.

    a, b: uint8 (N, 3, H, W). Five scales need sides of more than 160 px: smaller images are enlarged to the published
    231 px first (bicubic), see `ms_ssim_rule`. Returns (N,).
    """
    x, y = (to_unit(_enlarge(images).to(device)) for images in (a, b))
    return multiscale_ssim(x, y).cpu().numpy()


def ms_ssim_rule(side: int) -> str:
    """What `ms_ssim` does with images of `side` pixels, in words."""
    if side > 160:
        return f"MS-SSIM: images are compared at their own {side} px."
    return (
        f"MS-SSIM: images of {side} px are enlarged to {PUBLISHED_SIDE} px (bicubic), the size of the published files, "
        "as five scales need more than 160 px."
    )


def _maps(a: Tensor, b: Tensor, device: torch.device | str) -> list[Tensor]:
    return [centred_maps(to_unit(images.to(device))) for images in (a, b)]


def _enlarge(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W), at the published size (bicubic) where a side is too short for MS-SSIM."""
    if min(images.shape[2:]) > 160:
        return images
    return F.interpolate(images, (PUBLISHED_SIDE, PUBLISHED_SIDE), mode="bicubic", antialias=True)


def lpips_score(network: LPIPS, device: torch.device | str = "cpu") -> PairScore:
    """LPIPS (0 for equal images, higher is farther) as a pair score; inputs are scaled to [-1, 1]."""

    @torch.no_grad()
    def score(a: Tensor, b: Tensor) -> np.ndarray:
        x, y = (to_unit(images.to(device)).contiguous(memory_format=torch.channels_last) for images in (a, b))
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # ten bits are too few for 1e-4
            return network(x, y, normalize=True).flatten().cpu().numpy()

    return score


def score_pairs(score: PairScore, a: Tensor, b: Tensor, name: str = "pairs") -> np.ndarray:
    """`score` of all pairs in batches, with a progress bar. -> (N,)"""
    batches = [slice(i, i + BATCH_SIZE) for i in range(0, len(a), BATCH_SIZE)]
    return np.concatenate([score(a[part], b[part]) for part in progress(batches, desc=name, unit="batch", leave=False)])
