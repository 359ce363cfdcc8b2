"""SSIM's parts against an independent implementation; the scores made of them: measuring/test_pairs.py."""

import pytest
import torch
from pytorch_msssim import ms_ssim

from pfiles import ssim


@pytest.fixture
def images():
    """(2, 4, 3, 65, 80) in [0, 1]: two sets that are alike."""
    x = torch.rand(4, 3, 65, 80, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.stack([x, 0.7 * x + 0.3 * x.flip(3)])


def test_multiscale_ssim_and_its_gradient_equal_pytorch_msssim(images):
    ours, others = (images[0].clone().requires_grad_() for _ in range(2))
    similarity = ssim.multiscale_ssim(ours, images[1], window=5)
    expected = ms_ssim(others, images[1], data_range=1.0, win_size=5, size_average=False)
    torch.testing.assert_close(similarity, expected, rtol=1e-6, atol=1e-6)  # its window is in single precision
    similarity.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, others.grad, rtol=1e-4, atol=1e-7)


def test_few_maps_are_filtered_together_with_the_same_result(images, monkeypatch):
    together = ssim.multiscale_ssim(*images, window=5)
    monkeypatch.setattr(ssim, "FEW", 0)
    torch.testing.assert_close(ssim.multiscale_ssim(*images, window=5), together)


def test_the_opposite_of_an_image_counts_as_unlike_and_has_a_finite_gradient(images):
    x = images[0].clone().requires_grad_()
    similarity = ssim.multiscale_ssim(x, 1 - images[0], window=5)  # structure is negative
    similarity.sum().backward()
    assert similarity.tolist() == [0] * 4
    assert x.grad.isfinite().all()
