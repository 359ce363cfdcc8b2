"""Pixels in their two forms, uint8 and float in [0, 1], and what is simple to say of them."""

from multiprocessing.pool import ThreadPool

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def evenly_spaced(n: int, count: int) -> np.ndarray:
    """`count` indices out of n, evenly spaced from the first to the last; all of them where there are no more."""
    return np.linspace(0, n - 1, min(n, count)).round().astype(int)


def as_tensor(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> (N, 3, H, W)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def to_unit(images: Tensor) -> Tensor:
    """uint8 0 ... 255 -> float32 0 ... 1, any shape."""
    return images.float() / 255


def to_uint8(images: Tensor) -> Tensor:
    """float images, clamped to [0, 1] -> uint8, rounded to the nearest level, any shape."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def mean_colour(images: Tensor) -> tuple[int, int, int]:
    """The rounded mean RGB of uint8 images (N, 3, H, W)."""
    means = torch.cat([batch.double().mean((2, 3)) for batch in images.split(64)])  # (N, 3); float64 takes 8 x memory
    return tuple(round(c) for c in means.mean(0).tolist())


def resize(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 (N, H, W, 3) -> (N, side, side, 3), bicubic."""
    with ThreadPool() as pool:
        return np.stack(
            pool.map(lambda image: np.asarray(Image.fromarray(image).resize((side, side), Image.BICUBIC)), images)
        )


def match_size(generated: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Generated images (N, H, W, 3) at the size of the real ones; it says so where it resizes."""
    if generated.shape[1] == real.shape[1]:
        return generated
    print(f"Generated images of {generated.shape[1]} px are resized to the originals' {real.shape[1]} px (bicubic).")
    return resize(generated, real.shape[1])
