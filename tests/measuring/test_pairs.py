"""Image metrics against independent implementations."""

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_msssim import ms_ssim, ssim
from skimage.metrics import structural_similarity

from pfiles.lpips import LPIPS
from pfiles.measuring import pairs
from pfiles.tiles import pixels
from tests.conftest import make_tiles


def test_psnr_by_hand():
    a, b = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.1)
    assert pairs.psnr(a, b).tolist() == pytest.approx([20.0, 20.0], abs=1e-5)  # 10 log10(1 / 0.01)
    assert pairs.psnr(a, a).tolist() == [100, 100]


def test_ssim_equals_another_implementation(two_sets):
    a, b = (images.double() for images in two_sets)
    expected = ssim(a, b, data_range=255, size_average=False)
    np.testing.assert_allclose(pairs.ssim(*two_sets), expected, atol=1e-5)


def hard_pairs():
    """Pairs on which single precision goes wrong: bright and flat, noise, black against white, sides that are odd."""
    rng = np.random.default_rng(1)
    flat = np.full((1, 64, 64, 3), (243, 240, 244), np.uint8)
    dots = flat.copy()
    dots[:, ::7, ::5] -= 1
    yield flat, dots
    yield flat, np.full_like(flat, (240, 235, 244))
    yield rng.integers(0, 256, (2, 3, 61, 61, 3), dtype=np.uint8)
    yield np.zeros_like(flat), np.full_like(flat, 255)
    yield make_tiles(3, 128, seed=3), make_tiles(3, 128, seed=4)


@pytest.mark.parametrize(("a", "b"), list(hard_pairs()))
def test_both_readings_of_ssim_equal_scikit_image(a, b):
    gaussian = {"channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for score, reading in ((pairs.ssim, gaussian), (pairs.ssim_published, {"win_size": 3})):
        expected = [structural_similarity(x, y, data_range=255, **reading) for x, y in zip(a, b, strict=True)]
        np.testing.assert_allclose(score(pixels.as_tensor(a), pixels.as_tensor(b)), expected, atol=2e-5)


@pytest.mark.parametrize("side", [64, 128, 160, 164, 232])
def test_ms_ssim_enlarges_what_is_too_small(side):
    a = make_tiles(3, side, seed=1)
    b = np.clip(a + np.random.default_rng(2).normal(0, (20, 60, 200), (side, side, 3, 3)).transpose(3, 0, 1, 2), 0, 255)
    x, y = a, b = a, b.astype(np.uint8)
    if side <= 160:
        x, y = (np.stack([np.asarray(Image.fromarray(i).resize((231, 231), Image.BICUBIC)) for i in v]) for v in (a, b))
        assert f"images of {side} px are enlarged to 231 px" in pairs.ms_ssim_rule(side)
    else:
        assert f"their own {side} px" in pairs.ms_ssim_rule(side)
    a, b, x, y = map(pixels.as_tensor, (a, b, x, y))
    expected = ms_ssim(x.float(), y.float(), data_range=255, size_average=False)
    assert expected.min() > 0.05
    np.testing.assert_allclose(pairs.ms_ssim(a, b), expected, atol=1e-4)


@pytest.mark.parametrize("score", [pairs.ssim, pairs.ssim_published, pairs.ms_ssim])
def test_equal_images_score_one(score, two_sets):
    np.testing.assert_allclose(score(two_sets[0], two_sets[0]), 1, atol=1e-5)


@pytest.mark.parametrize("score", [pairs.ssim, pairs.ssim_published, pairs.ms_ssim])
def test_scores_do_not_depend_on_the_batch(score, two_sets):
    together = score(*two_sets)
    alone = np.concatenate([score(a[None], b[None]) for a, b in zip(*two_sets, strict=True)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.slow
def test_lpips_score_takes_uint8(two_sets):
    network = LPIPS()
    state = {name: torch.rand(tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict(state)
    a, b = two_sets
    x, y = (v.float() / 127.5 - 1 for v in two_sets)
    np.testing.assert_allclose(pairs.lpips_score(network)(a, b), network(x, y).flatten(), rtol=1e-4)
