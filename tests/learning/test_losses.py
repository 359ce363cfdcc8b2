"""The loss terms, against numbers worked by hand."""

import math

import pytest
import torch
from pytorch_msssim import ms_ssim
from sklearn.linear_model import LinearRegression

from pfiles.learning.losses import (
    adversarial_loss,
    affine_kl,
    autoencoder_terms,
    colour_loss,
    conditional_entropy,
    denoising_terms,
    equivariance_loss,
    feature_map_loss,
    hinge_loss,
    information_terms,
    information_weights,
    marginal_entropy,
    ms_ssim_loss,
    passing_loss,
    polish_terms,
)
from pfiles.settings import AutoencoderSettings, DiffusionSettings, PolishSettings, StageSettings

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


def test_feature_map_loss_by_hand():
    """Level one: (3, 4) and (4, 3) are (0.6, 0.8) and (0.8, 0.6), 0.08 apart. Level two: opposite, so 4, at one of two
    places, and alike but for their lengths at the other: 2 in the mean."""
    first = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), torch.tensor([4.0, 3.0]).view(1, 2, 1, 1)
    second = torch.tensor([[1.0, 5.0]]).view(1, 1, 1, 2), torch.tensor([[-2.0, 1.0]]).view(1, 1, 1, 2)
    assert feature_map_loss(*zip(first, second, strict=True)).item() == pytest.approx(0.08 + 2)


def test_denoising_terms():
    """Two latents of three numbers: squared errors (1 + 4 + 4) / 3 = 3 and (0 + 0 + 9) / 3 = 3, then halved weights."""
    predicted = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 3.0]]).view(2, 3, 1, 1)
    terms = denoising_terms(predicted, torch.zeros(2, 3, 1, 1))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx({"mse": 3})


def test_hinge_loss():
    # real: max(0, 1 - 2) = 0 and 1 - 0 = 1; generated: 1 + 0.5 and max(0, 1 - 3) = 0
    assert hinge_loss(torch.tensor([2.0, 0.0]), torch.tensor([0.5, -3.0])).item() == pytest.approx(0.5 + 0.75)


@pytest.mark.parametrize(("kind", "error"), [("mse", 0.25), ("l1", 0.5)])
def test_autoencoder_terms(kind, error):
    x, reconstruction = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)
    settings = AutoencoderSettings(
        reconstruction=kind, perceptual_weight=0.5, codebook_weight=2.0, commitment_weight=0.25
    )
    quantisation = {"codebook_loss": torch.tensor(3.0), "commitment_loss": torch.tensor(4.0)}
    terms = autoencoder_terms(x, reconstruction, quantisation, lambda a, b: (a - b).sum() / 48, settings)
    expected = {"reconstruction": error, "perceptual": 0.5, "codebook": 6.0, "commitment": 1.0}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)


def test_colour_loss_is_what_a_linear_regression_leaves():
    """Against scikit-learn's R^2 over all places of the batch; 0 where latents are the colours, in any basis."""
    rng = torch.Generator().manual_seed(0)
    x, noise = torch.rand(4, 3, 16, 16, generator=rng), torch.randn(4, 5, 4, 4, generator=rng)
    colours = torch.nn.functional.avg_pool2d(x, 4)
    z = torch.cat([colours[:, :1] - colours[:, 1:2] + 0.05 * noise[:, :1], noise[:, 1:]], dim=1)
    rows, targets = (part.movedim(1, -1).flatten(0, 2).numpy() for part in (z, colours))
    residual = targets - LinearRegression().fit(rows, targets).predict(rows)
    expected = (residual**2).sum() / ((targets - targets.mean(0)) ** 2).sum()
    assert 0.2 < expected < 0.9
    assert colour_loss(z, x).item() == pytest.approx(expected, rel=2e-3)
    mixed = torch.einsum("ij,bjhw->bihw", torch.randn(5, 3, generator=rng), colours)
    assert colour_loss(mixed, x).item() == pytest.approx(0, abs=1e-3)


def test_colour_loss_of_latents_that_are_all_alike_is_1_and_finite():
    z = torch.full((2, 4, 4, 4), 0.7, requires_grad=True)
    loss = colour_loss(z, torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-3)
    assert z.grad.isfinite().all()


def test_equivariance_loss():
    """Tiles of two columns, 0 and 1, are grey at half the resolution."""
    x = torch.tensor([0.0, 1.0]).repeat(2).expand(1, 3, 4, 4)
    assert equivariance_loss(torch.full((1, 3, 2, 2), 0.5), x).item() == 0
    assert equivariance_loss(torch.full((1, 3, 2, 2), 0.75), x).item() == pytest.approx(0.25)


def test_polish_terms():
    x, reconstruction = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5)
    terms = polish_terms(x, reconstruction, lambda a, b: (a - b).max(), PolishSettings(perceptual_weight=0.2))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"reconstruction": 0.5, "perceptual": 0.1}
    )
    assert passing_loss(torch.tensor([2.0, -4.0])).item() == pytest.approx(1)


def test_information_terms_and_weights():
    p = P[:, None]  # one classifier: (B, 1, k)
    terms = information_terms(p, Q[:, None])
    assert terms["marginal_entropy"].item() == pytest.approx(marginal_entropy(P).item())
    assert terms["conditional_entropy"].item() == pytest.approx(conditional_entropy(P).item())
    assert terms["affine_kl"].item() == pytest.approx(affine_kl(P, Q).item())
    stage = StageSettings(1, "adam", 1.0, trains_clusters=True, affine_weight=0.3)
    weights = information_weights(DiffusionSettings(marginal_entropy_weight=0.1), stage)
    assert weights == {"marginal_entropy": -0.1, "conditional_entropy": 0.06, "affine_kl": 0.3}
