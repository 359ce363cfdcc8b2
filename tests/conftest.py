"""Shared by all tests: where reference files lie, tiny settings, tiny tiles."""

from pathlib import Path

import numpy as np
import pytest

from pfiles.settings import get_settings

SHARED = Path(__file__).resolve().parents[2] / "shared"  # reference files beside a checkout; not part of the project

TINY = {
    "image_size_px": 48,
    "max_train_tiles": 24,
    "autoencoder.batch_size": 8,
    "diffusion.batch_size": 8,
    "autoencoder.vqvae": {"down_channels": [8, 8, 16], "num_heads": 2, "norm_channels": 4, "codebook_size": 32},
    "autoencoder.discriminator": {"conv_channels": [8, 16]},
    "autoencoder.epochs": 2,
    "autoencoder.discriminator_start_step": 3,
    "diffusion.unet": {"down_channels": [16, 16, 16], "t_emb_dim": 16, "num_layers": 1, "num_heads": 2,
                       "norm_channels": 4, "conv_out_channels": 16},
    "diffusion.num_timesteps": 20,
    "training.epochs": 1,
    "finetuning1.epochs": 1,
    "finetuning2.epochs": 1,
    "sampling.steps": 4,
    "sampling.batch_size": 5,
    "sampling.num_generated": 12,
    "sampling.per_cluster": 3,
}  # fmt: skip


def shared(path: str) -> Path:
    """A reference file beside the checkout; the test that asks is skipped where it is absent."""
    file = SHARED / path
    if not file.exists():
        pytest.skip(f"needs the reference file {path}, which is not part of the project: {file} is absent")
    return file


def make_tiles(n: int, side: int = 48, seed: int = 0) -> np.ndarray:
    """Smooth random colour tiles (n, side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)


@pytest.fixture
def tiny():
    return get_settings("demo", TINY)


@pytest.fixture
def tiles() -> np.ndarray:
    return make_tiles(30)
