"""The parts of SSIM and MS-SSIM (Wang et al. 2003, 2004) that scores and a loss share.

Colours of images are maps of their own: (1, 3 N, H, W), all reds first, which lie side by side at each place in memory
(channels last), so that each step below runs over all of them at once. On a CPU that is several times as fast as one
image after the other. Values lie in [-0.5, 0.5]: around 0 float32 keeps the digits of small variances.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

C1, C2 = 0.01**2, 0.03**2  # the constants of SSIM for images in [0, 1]
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales, Wang et al. 2003
FEW = 2**18  # values of a set of maps up to which sets are filtered together; changes speed only


def centred_maps(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] as maps (1, 3 N, H, W)."""
    return (images.permute(2, 3, 1, 0) - 0.5).contiguous().flatten(2)[None].permute(0, 3, 1, 2)


def image_means(maps: Tensor) -> Tensor:
    """(1, 3 N, H, W) -> the mean of each colour of each image (3, N)."""
    return maps.mean((0, 2, 3)).view(3, -1)


class Moments(NamedTuple):
    """Means and variances over a window at each place of s = x + y and d = x - y, of which all of SSIM follows.

    4 cov(x, y) = var(s) - var(d), and 2 (var(x) + var(y)) = var(s) + var(d); the means likewise. These are four maps
    to filter, not five.
    """

    mean_s: Tensor
    mean_d: Tensor
    var_s: Tensor
    var_d: Tensor

    def luminance(self) -> Tensor:
        """2 mean(x) mean(y) over mean(x)^2 + mean(y)^2, stabilised by C1."""
        s, d = (self.mean_s + 1).square(), self.mean_d.square()  # x and y were centred by 0.5 each
        return (s - d + 2 * C1) / (s + d + 2 * C1)

    def structure(self, unbiased: float = 1.0) -> Tensor:
        """Contrast times structure: 2 cov(x, y) over var(x) + var(y), stabilised by C2.

        unbiased: factor of the variances.
        """
        var_s = self.var_s + 2 * C2 / unbiased
        return (var_s - self.var_d) / (var_s + self.var_d)


def moments(x: Tensor, y: Tensor, window_means: Callable[[Tensor], Tensor]) -> Moments:
    """The moments of maps x and y; window_means: the means of maps (B, 3 N, H, W) over a window."""
    s, d = x + y, x - y
    sets = s, d, s.square(), d.square()
    mean_s, mean_d, mean_ss, mean_dd = (
        window_means(torch.cat(sets)).split(1) if s.numel() <= FEW else map(window_means, sets)
    )
    return Moments(
        mean_s,
        mean_d,
        torch.addcmul(mean_ss, mean_s, mean_s, value=-1),
        torch.addcmul(mean_dd, mean_d, mean_d, value=-1),
    )


def gaussian_means(maps: Tensor, window: int = 11) -> Tensor:
    """(B, C, H, W) -> means over a square Gaussian window of sigma 1.5 where it fits in."""
    offsets = torch.arange(window, device=maps.device, dtype=maps.dtype) - window // 2
    weights = torch.exp(-offsets.square() / (2 * 1.5**2))
    weights = (weights / weights.sum()).repeat(maps.shape[1], 1, 1, 1)
    return F.conv2d(F.conv2d(maps, weights, groups=len(weights)), weights.mT, groups=len(weights))


def multiscale_ssim(x: Tensor, y: Tensor, window: int = 11) -> Tensor:
    """MS-SSIM over five scales of images x and y (N, 3, H, W) in [0, 1], at most 1 for equal ones. -> (N,)

    The mean over colours. The Gaussian window must fit into the smallest scale: sides must exceed 16 (window - 1).
    """
    x, y = centred_maps(x), centred_maps(y)
    product = torch.ones(1, device=x.device)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS, start=1):
        local_moments = moments(x, y, lambda maps: gaussian_means(maps, window))
        term = local_moments.structure()
        if scale == len(MS_SSIM_WEIGHTS):
            term = term * local_moments.luminance()
        else:
            x, y = map(_halve, (x, y))
        mean = image_means(term)
        # below 0 it counts as 0; the lower bound is for the gradient there, which would be 0 times infinity
        product = product * torch.where(mean > 0, mean.clamp_min(1e-12) ** weight, 0.0)
    return product.mean(0)


def _halve(maps: Tensor) -> Tensor:
    """Means of 2 x 2 pixels; an odd side begins and ends with black, as in the implementations in use."""
    padding = [side % 2 for side in maps.shape[2:]]
    if any(padding):
        maps = F.pad(maps, (padding[1], padding[1], padding[0], padding[0]), value=-0.5)
    return F.avg_pool2d(maps, 2)
