"""Shared by the tests of measures."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from pfiles.tiles import pixels
from pfiles.tiles.dataset import Tiles
from pfiles.tiles.pixels import as_array, as_tensor
from tests.conftest import make_tiles


@pytest.fixture
def two_sets():
    rng = np.random.default_rng(0)
    a = make_tiles(6, 64)
    b = np.clip(a + rng.normal(0, 30, a.shape), 0, 255).astype(np.uint8)
    return pixels.as_tensor(a), pixels.as_tensor(b)


def tissue(n, side=64, seed=0):
    """Random tiles with structure of the size of nuclei, in the colours of H&E: uint8 (n, 3, side, side)."""
    noise = np.random.default_rng(seed).standard_normal((n, side, side, 3))  # axes as ever: the tiles stay the same
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 0)) + 0.5 * ndimage.gaussian_filter(noise, (0, 6, 6, 0))
    smooth += smooth.mean(axis=3, keepdims=True)
    return as_tensor((np.array([170, 120, 180]) + 35 * smooth / smooth.std()).clip(0, 255).astype(np.uint8))


def picture(image):
    return Image.fromarray(as_array(image[None])[0])


def as_jpeg(image):
    buffer = io.BytesIO()
    picture(image).save(buffer, "JPEG", quality=75)
    return as_tensor(np.asarray(Image.open(buffer))[None])[0]


def moved(image, down, right):
    return image.roll((down, right), (1, 2))


COPIES = {
    "exact": lambda x: x,
    "mirrored": lambda x: x.flip(2),
    "turned": lambda x: x.rot90(3, (1, 2)),
    "mirrored and turned": lambda x: x.flip(2).rot90(1, (1, 2)),
    "moved": lambda x: moved(x, 2, -2),
    "jpeg": as_jpeg,
    "5 % brighter": lambda x: (x * 1.05).clamp(0, 255).byte(),
    "5 % darker": lambda x: (x * 0.95).byte(),
    "all of these": lambda x: as_jpeg((moved(x.flip(1), -1, 2) * 0.95).byte()),
}


@pytest.fixture(scope="module")
def real():
    return Tiles(tissue(180), np.arange(120), np.arange(120, 180), "random tissue")


@pytest.fixture(scope="module")
def planted(real):
    """Honest images 0 ... 29, and behind them a copy of another training tile for each kind of copy."""
    copies = [copy(real.images[10 * i]) for i, copy in enumerate(COPIES.values())]
    return torch.cat([tissue(30, seed=1), torch.stack(copies)])


FAR = [(6, -6), (-10, 3), (0, 16), (16, 16), (-16, 16), (-12, -16), (3, -3), (14, -9)]  # pixels, of 64


def cut_from_larger(shifts, seed=5):
    """A tile of 64 px from each larger piece of tissue, and the same piece cut `shifts` further down and right."""
    pieces = tissue(len(shifts), side=96, seed=seed)
    moved = [piece[:, 16 + y : 80 + y, 16 + x : 80 + x] for piece, (y, x) in zip(pieces, shifts, strict=True)]
    return pieces[:, :, 16:80, 16:80], torch.stack(moved)
