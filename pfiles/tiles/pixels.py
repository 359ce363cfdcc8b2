"""Pixels in their two forms, uint8 and float in [0, 1], and what is simple to say of them.

Images are tensors (N, 3, H, W). Files, Pillow and scikit-image have arrays (N, H, W, 3): functions that meet them
convert inside, by `as_tensor` and `as_array`.
"""

import warnings
from multiprocessing.pool import ThreadPool

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pfiles.errors import InputError


def evenly_spaced(n: int, count: int) -> np.ndarray:
    """`count` indices out of n, evenly spaced from the first to the last; all of them where there are no more."""
    return np.linspace(0, n - 1, min(n, count)).round().astype(int)


def as_tensor(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> (N, 3, H, W), in the same memory: what is mapped from a file stays there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes into it
        return torch.from_numpy(images).permute(0, 3, 1, 2)


def as_array(images: Tensor) -> np.ndarray:
    """uint8 (N, 3, H, W) -> (N, H, W, 3), each image in one piece of memory."""
    return np.ascontiguousarray(images.cpu().permute(0, 2, 3, 1).numpy())


def require_tiles(images: Tensor) -> None:
    """InputError for anything but square uint8 images (N, 3, S, S)."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise InputError(
            f"Expected uint8 tiles of shape (N, 3, S, S), but got {images.dtype} of shape "
            f"{tuple(images.shape)}: give square RGB tiles of 0 ... 255."
        )


def to_unit(images: Tensor) -> Tensor:
    """uint8 0 ... 255 -> float32 0 ... 1, any shape."""
    return images.float() / 255


def to_uint8(images: Tensor) -> Tensor:
    """float images, clamped to [0, 1] -> uint8, rounded to the nearest level, any shape."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def to_8_bits(samples: np.ndarray, most: int) -> np.ndarray:
    """Samples of 0 ... `most` -> uint8 0 ... 255, rounded; what is above `most` becomes 255. Any shape."""
    return np.rint(np.minimum(samples, most) * (255 / most)).astype(np.uint8)


def mean_colour(images: Tensor) -> tuple[int, int, int]:
    """The rounded mean RGB of uint8 images (N, 3, H, W)."""
    means = torch.cat([batch.double().mean((2, 3)) for batch in images.split(64)])  # (N, 3); float64 takes 8 x memory
    return tuple(round(c) for c in means.mean(0).tolist())


def resize(images: Tensor, side: int) -> Tensor:
    """uint8 (N, 3, H, W) -> (N, 3, side, side), bicubic."""

    def resized(image: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))

    with ThreadPool() as pool:
        return as_tensor(np.stack(pool.map(resized, as_array(images)))).contiguous()


def match_size(generated: Tensor, side: int) -> Tensor:
    """Generated images (N, 3, H, W) at the size (side, side) of the real ones; it says so where it resizes."""
    if generated.shape[2] == side:
        return generated
    print(f"Generated images of {generated.shape[2]} px are resized to the originals' {side} px (bicubic).")
    return resize(generated, side)
