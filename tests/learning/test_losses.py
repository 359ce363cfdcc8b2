"""The loss terms, against numbers worked by hand."""

import math

import pytest
import torch
from pytorch_msssim import ms_ssim

from pfiles.learning.losses import adversarial_loss, affine_kl, conditional_entropy, marginal_entropy, ms_ssim_loss

LN2 = math.log(2)
P = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
Q = torch.tensor([[0.25, 0.25, 0.5], [0.25, 0.25, 0.5]])


def test_marginal_entropy():
    # mean (3/8, 3/8, 1/4): 2 * 3/8 ln(8/3) + 1/4 ln 4
    expected = 0.75 * math.log(8 / 3) + 0.25 * math.log(4)
    assert marginal_entropy(P).item() == pytest.approx(expected, abs=1e-6)


def test_conditional_entropy():
    # (ln 2 + (1/4 ln 4 + 1/4 ln 4 + 1/2 ln 2)) / 2 = (ln 2 + 1.5 ln 2) / 2
    assert conditional_entropy(P).item() == pytest.approx(1.25 * LN2, abs=1e-6)


def test_affine_kl():
    # first row: 1/2 ln(2) + 1/2 ln(2) = ln 2; second row 0
    assert affine_kl(P, Q).item() == pytest.approx(LN2 / 2, abs=1e-6)
    assert affine_kl(P, P).item() == 0


def test_affine_kl_has_a_gradient_through_both_arguments():
    p, q = (x.clamp(0.05).requires_grad_() for x in (P.clone(), Q.clone()))
    affine_kl(p, q).backward()
    assert p.grad.abs().sum() > 0
    assert q.grad.abs().sum() > 0


def test_epsilon_is_the_published_one():
    # a certain, all-in-one batch: -ln(1 + 1e-8) + 0, not a NaN
    certain = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert marginal_entropy(certain).item() == pytest.approx(-math.log(1 + 1e-8), rel=1e-6)
    # KL from certainty to the wrong certainty is ln(1 / eps)
    assert affine_kl(certain, certain.flip(1)).item() == pytest.approx(math.log((1 + 1e-8) / 1e-8), rel=1e-9)


def test_adversarial_loss():
    logits = torch.tensor([0.0, 1.0, 3.0])
    assert adversarial_loss(logits, real=True).item() == pytest.approx((1 + 0 + 4) / 3)
    assert adversarial_loss(logits, real=False).item() == pytest.approx((0 + 1 + 9) / 3)


@pytest.mark.parametrize(("side", "window"), [(33, 3), (64, 3), (65, 5), (97, 7), (128, 7), (161, 11), (231, 11)])
def test_ms_ssim_window_fits_the_image(side, window):
    a, b = torch.rand(2, 2, 3, side, side, generator=torch.Generator().manual_seed(side)).clamp(0.2, 0.8)
    b = (a + b) / 2
    gauss = torch.exp(-(torch.arange(window, dtype=torch.float64) - window // 2).square() / (2 * 1.5**2))
    gauss = (gauss / gauss.sum()).expand(3, 1, 1, -1)  # its own is in single precision, and so wrong by 1e-6
    expected = 1 - ms_ssim(a.double(), b.double(), data_range=1.0, win=gauss)
    assert ms_ssim_loss(a, b).item() == pytest.approx(expected.item())
    assert ms_ssim_loss(a, a).item() == pytest.approx(0, abs=1e-6)


def test_ms_ssim_refuses_small_images():
    with pytest.raises(ValueError, match="more than 32 px"):
        ms_ssim_loss(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
