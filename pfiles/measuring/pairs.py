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
from pfiles.tiles.pixels import to_unit

PUBLISHED_SIDE = 231  # pixels; the published images were saved through matplotlib at this size
BATCH_SIZE = 16  # pairs at once; changes memory and speed only
C1, C2 = 0.01**2, 0.03**2  # the constants of SSIM for images in [0, 1]
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales, Wang et al. 2003

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

    moments = _moments(*(_centred_maps(images, device) for images in (a, b)), window_means)
    return (_luminance(*moments) * _structure(*moments, unbiased=27 / 26)).mean((0, 2, 3)).cpu().numpy()


def ssim(a: Tensor, b: Tensor, device: torch.device | str = "cpu") -> np.ndarray:
    """SSIM of Wang et al. 2004: Gaussian window of sigma 1.5 within each colour channel, averaged over channels.

    a, b: uint8 (N, 3, H, W), sides of at least 11 px. Returns (N,), at most 1 for equal images. Only windows inside
    the image count.
    """
    moments = _moments(*(_centred_maps(images, device) for images in (a, b)), _gaussian_means)
    return _image_means(_luminance(*moments) * _structure(*moments)).mean(0).cpu().numpy()


def ms_ssim(a: Tensor, b: Tensor, device: torch.device | str = "cpu") -> np.ndarray:
    """MS-SSIM of Wang et al. 2003, five scales with an 11 px window; at most 1 for equal images.

    a, b: uint8 (N, 3, H, W). Five scales need sides of more than 160 px: smaller images are enlarged to the published
    231 px first (bicubic), see `ms_ssim_rule`. Returns (N,).
    """
    x, y = (_centred_maps(_enlarge(images), device) for images in (a, b))
    product = 1
    for scale, weight in enumerate(MS_SSIM_WEIGHTS, start=1):
        moments = _moments(x, y, _gaussian_means)
        term = _structure(*moments)
        if scale == len(MS_SSIM_WEIGHTS):
            term *= _luminance(*moments)
        else:
            x, y = map(_halve, (x, y))
        product = product * _image_means(term).clamp_min(0) ** weight
    return product.mean(0).cpu().numpy()


def ms_ssim_rule(side: int) -> str:
    """What `ms_ssim` does with images of `side` pixels, in words."""
    if side > 160:
        return f"MS-SSIM: images are compared at their own {side} px."
    return (
        f"MS-SSIM: images of {side} px are enlarged to {PUBLISHED_SIDE} px (bicubic), the size of the published files, "
        "as five scales need more than 160 px."
    )


def _centred_maps(images: Tensor, device: torch.device | str) -> Tensor:
    """uint8 (N, 3, H, W) -> float (1, 3 N, H, W) in [-0.5, 0.5], all reds first, on the device.

    The maps of a batch lie side by side at each place in memory (channels last), so that every step below runs over
    all of them at once; that is several times as fast on a CPU as one image after the other. Around 0 float32 keeps
    the digits of small variances.
    """
    maps = images.to(device).permute(2, 3, 1, 0)  # (H, W, 3, N)
    return to_unit(maps.contiguous()).sub_(0.5).flatten(2)[None].permute(0, 3, 1, 2)


def _image_means(maps: Tensor) -> Tensor:
    """(1, 3 N, H, W) -> the mean of each colour of each image (3, N)."""
    return maps.mean((0, 2, 3)).view(3, -1)


def _moments(x: Tensor, y: Tensor, window_means: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means and variances over a window at each place of s = x + y and d = x - y, of which all of SSIM follows.

    4 cov(x, y) = var(s) - var(d), and 2 (var(x) + var(y)) = var(s) + var(d); the means likewise. These are four maps
    to filter, not five. x, y: `_centred_maps`.
    """
    s, d = x + y, x - y
    mean_s, mean_d = window_means(s), window_means(d)
    var_s = window_means(s.square_()).addcmul_(mean_s, mean_s, value=-1)
    var_d = window_means(d.square_()).addcmul_(mean_d, mean_d, value=-1)
    return mean_s, mean_d, var_s, var_d


def _luminance(mean_s: Tensor, mean_d: Tensor, var_s: Tensor, var_d: Tensor) -> Tensor:
    """2 mean(x) mean(y) over mean(x)^2 + mean(y)^2, stabilised by C1."""
    s, d = (mean_s + 1).square_(), mean_d.square()  # x and y were centred by 0.5 each
    return (s - d).add_(2 * C1) / (s + d).add_(2 * C1)


def _structure(mean_s: Tensor, mean_d: Tensor, var_s: Tensor, var_d: Tensor, unbiased: float = 1.0) -> Tensor:
    """Contrast times structure, 2 cov(x, y) over var(x) + var(y), stabilised by C2; `unbiased`: factor of variances."""
    var_s = var_s + 2 * C2 / unbiased
    return (var_s - var_d).div_(var_s.add_(var_d))


def _gaussian_means(maps: Tensor) -> Tensor:
    """(1, C, H, W) -> means over the 11 x 11 Gaussian window of sigma 1.5 where it fits in, (1, C, H - 10, W - 10)."""
    offsets = torch.arange(-5, 6, device=maps.device)
    weights = torch.exp(-offsets.square() / (2 * 1.5**2))
    weights = (weights / weights.sum()).repeat(maps.shape[1], 1, 1, 1)
    return F.conv2d(F.conv2d(maps, weights, groups=len(weights)), weights.mT, groups=len(weights))


def _halve(maps: Tensor) -> Tensor:
    """Means of 2 x 2 pixels; an odd side begins and ends with black, as in the implementations in use."""
    padding = [side % 2 for side in maps.shape[2:]]
    if any(padding):
        maps = F.pad(maps, (padding[1], padding[1], padding[0], padding[0]), value=-0.5)
    return F.avg_pool2d(maps, 2)


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
