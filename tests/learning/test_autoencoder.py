"""The autoencoder's training and polishing: what they minimise and what they change."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pfiles import efficientnet, latents
from pfiles.discriminator import FeatureDiscriminator, PolishDiscriminator
from pfiles.learning import autoencoder, loop
from pfiles.learning.losses import colour_loss, equivariance_loss, hinge_loss
from pfiles.tiles.pixels import to_unit
from tests.conftest import autoencoder_networks, train_autoencoder


def test_autoencoder_learns(tiny, images, job):
    vqvae, discriminator = autoencoder_networks(tiny)
    settings = replace(tiny.autoencoder, epochs=15)
    history = train_autoencoder(
        (vqvae, discriminator), images, autoencoder.make_perceptual(settings, "cpu"), settings, job
    )
    assert [row["epoch"] for row in history] == list(range(1, 16))
    assert history[-1]["reconstruction"] < history[0]["reconstruction"] / 2
    assert "adversarial" not in history[0]  # adversarial terms begin after step 3, the first of the second epoch
    assert "discriminator" in history[1]
    assert history[-1]["codes_used"] > 4
    assert not any(p.requires_grad for p in vqvae.parameters())


def test_loss_is_the_weighted_sum_of_its_terms(tiny, images, job):
    settings = replace(
        tiny.autoencoder, perceptual_weight=0.5, codebook_weight=2.0, commitment_weight=0.2, colour_weight=0.3
    )
    history = train_autoencoder(autoencoder_networks(tiny), images, lambda a, b: (a - b).abs().mean(), settings, job)
    terms = ("reconstruction", "perceptual", "codebook", "commitment", "colour", "adversarial")
    assert history[1]["loss"] == pytest.approx(sum(history[1][name] for name in terms), rel=1e-5)


def test_smooth_latents_are_asked_for_by_two_terms(tiny, images, job):
    """Both are part of the loss; after as many steps the latents tell more of the colours of their places."""
    losses = {}
    for weight in (0.0, 0.5):
        vqvae, discriminator = autoencoder_networks(tiny)
        settings = replace(tiny.autoencoder, epochs=15, colour_weight=weight, equivariance_weight=weight)
        perceptual = autoencoder.make_perceptual(settings, "cpu")
        folder = job.folder / str(weight)
        history = train_autoencoder((vqvae, discriminator), images, perceptual, settings, replace(job, folder=folder))
        x = images.float() / 255
        with torch.no_grad():
            z, _ = vqvae.encode(x)
            coarse = vqvae.decode(torch.nn.functional.avg_pool2d(z, 2))
        losses[weight] = colour_loss(z, x).item(), equivariance_loss(coarse, x).item()
        assert ("colour" in history[0], "equivariance" in history[0]) == (weight > 0, weight > 0)
    assert all(smooth < plain for smooth, plain in zip(losses[0.5], losses[0.0], strict=True))


@pytest.mark.parametrize("leaks", [True, False])
def test_generator_gradient_in_the_discriminators_step(tiny, images, job, leaks, monkeypatch):
    """With lr 1 and plain gradient descent the step is the gradient: compare it with the one computed apart."""
    monkeypatch.setattr(torch.optim, "Adam", lambda parameters, *args, **options: torch.optim.SGD(parameters, lr=1.0))
    vqvae, discriminator = autoencoder_networks(tiny)
    settings = replace(
        tiny.autoencoder, epochs=1, adversarial_weight=0.5, discriminator_start_step=0, generator_gradient_leaks=leaks
    )
    vqvae_0, discriminator_0 = copy.deepcopy(vqvae), copy.deepcopy(discriminator)
    whole = replace(job, batch_size=24)
    train_autoencoder((vqvae, discriminator), images, lambda a, b: a.new_zeros(()), settings, whole)

    x = images.float() / 255
    fake = vqvae_0(x)[0].detach()
    losses = [
        0.5 * ((discriminator_0(fake)) ** 2).mean() / 2,
        0.5 * ((discriminator_0(x) - 1) ** 2).mean() / 2,
        0.5 * ((discriminator_0(fake) - 1) ** 2).mean(),  # the generator's, which should not count
    ]
    sum(losses if leaks else losses[:2]).backward()
    for before, after in zip(discriminator_0.parameters(), discriminator.parameters(), strict=True):
        torch.testing.assert_close(before - before.grad, after, rtol=1e-4, atol=1e-6)


def test_dead_codes_move_onto_encodings(tiny, images):
    vqvae, _ = autoencoder_networks(tiny)
    before = vqvae.embedding.weight.detach().clone()
    dead = torch.zeros(32, dtype=torch.bool)
    dead[[3, 9]] = True
    x = images[:4].float() / 255
    autoencoder.revive_codes(vqvae, dead, x, torch.Generator().manual_seed(0))
    assert torch.equal(vqvae.embedding.weight[~dead], before[~dead])
    encodings = vqvae.encode_continuous(x).permute(0, 2, 3, 1).flatten(0, 2)
    distance = torch.cdist(vqvae.embedding.weight[dead], encodings).min(dim=1).values
    assert distance.max() < 1e-3


@pytest.mark.parametrize("in_unit_range", [True, False])
def test_lpips_in_training_gets_the_range_the_setting_says(tiny, monkeypatch, in_unit_range):
    calls = []

    class Recorder:
        def load_pretrained(self):
            return self

        def to(self, device):
            return self

        def __call__(self, a, b, normalize):
            calls.append(normalize)
            return torch.full((len(a), 1, 1, 1), 3.0)

    monkeypatch.setattr(autoencoder, "LPIPS", Recorder)
    settings = replace(tiny.autoencoder, perceptual="lpips", lpips_in_unit_range=in_unit_range)
    assert autoencoder.make_perceptual(settings, "cpu")(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)) == 3
    assert calls == [not in_unit_range]  # normalize=True is what brings [0, 1] to [-1, 1]


def test_the_perceptual_loss_of_photographs_punishes_blur_more_than_a_shade(tiny, images):
    """By the pixels' mean error the blurred tiles are the nearer ones."""
    if efficientnet.find_spec(efficientnet.LITE0_PACKAGE.replace("-", "_")) is None:
        pytest.skip(f"needs the optional package {efficientnet.LITE0_PACKAGE}")
    perceptual = autoencoder.make_perceptual(replace(tiny.autoencoder, perceptual="photographs"), "cpu")
    x = to_unit(images[:4])
    shade, blurred = (x + 0.02).clamp(0, 1), F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    assert perceptual(x, x).item() == pytest.approx(0, abs=1e-5)
    assert perceptual(blurred, x) > 3 * perceptual(shade, x)
    x.requires_grad_()
    perceptual(x, blurred).backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0


def pixel_judge():
    return PolishDiscriminator(conv_channels=(8, 16))


def feature_judge():
    network = efficientnet.EfficientNetLite().eval().requires_grad_(False)
    return FeatureDiscriminator(network.maps, channels=8, norm_channels=4)


@pytest.mark.parametrize("make_judge", [pixel_judge, feature_judge])
def test_polishing_changes_the_decoder_alone(tiny, images, job, make_judge):
    vqvae, _ = autoencoder_networks(tiny)
    before = {name: value.clone() for name, value in vqvae.state_dict().items()}
    codes = latents.encode_tiles(vqvae, images)
    judge = make_judge()
    history = autoencoder.polish_decoder(
        vqvae=vqvae, discriminator=judge, images=images, job=job, clip_norm=1.0,
        perceptual=autoencoder.make_perceptual(tiny.autoencoder, "cpu"),
        settings=replace(tiny.autoencoder.polish, epochs=20, learning_rate=2e-3, adversarial_weight=0.0),
    )  # fmt: skip
    assert history[-1]["reconstruction"] < 0.8 * history[0]["reconstruction"]
    changed = {name for name, value in vqvae.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("decoder", "post_quant")) for name in changed)
    assert torch.equal(latents.encode_tiles(vqvae, images), codes)


def test_the_discriminator_of_features_learns_its_heads_and_keeps_no_network_of_others():
    judge = feature_judge()
    network = judge.maps.__self__
    assert not {id(p) for p in judge.parameters()} & {id(p) for p in network.parameters()}
    x = torch.rand(2, 3, 64, 64, requires_grad=True)
    logits = judge(x)
    assert logits.shape == (2, 8 * 8 + 8 * 8 + 4 * 4 + 4 * 4)  # maps of 32, 16, 8 and 4 places, halved 2, 1, 1, 0 times
    logits.sum().backward()
    learnt = {name for name, p in judge.named_parameters() if p.grad is not None}
    assert learnt == {name for name, _ in judge.named_parameters() if name.startswith("heads")}
    assert x.grad.abs().max() > 0  # what the decoder learns by
    assert all(p.grad is None for p in network.parameters())


def test_the_polish_is_judged_by_what_the_settings_say(tiny, monkeypatch):
    monkeypatch.setattr(efficientnet, "lite0", lambda device: efficientnet.EfficientNetLite().to(device))
    polish = replace(tiny.autoencoder.polish, discriminator={})
    assert isinstance(autoencoder.make_polish_discriminator(polish, "cpu"), PolishDiscriminator)
    of_features = replace(polish, discriminator_sees="photographs", discriminator={"channels": 16})
    assert autoencoder.make_polish_discriminator(of_features, "cpu").mixtures[0].out_channels == 16


def test_the_polish_discriminator_learns_the_hinge_loss_alone(tiny, images, job, monkeypatch):
    """The generator's gradient never reaches its step: with real tiles and copies alike, its hinge loss stays 2."""
    assert hinge_loss(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.5])).item() == pytest.approx(0.5 + 0.75)
    vqvae, _ = autoencoder_networks(tiny)
    judge = pixel_judge()
    gradients = []
    original = loop.update

    def recorded(optimizer, clip_norm):
        if optimizer.param_groups[0]["params"][0] is judge[0].weight:
            gradients.append(judge[-1].bias.grad.clone())
        return original(optimizer, clip_norm)

    monkeypatch.setattr(loop, "update", recorded)
    settings = replace(tiny.autoencoder.polish, epochs=1, adversarial_weight=1e6)
    autoencoder.polish_decoder(
        vqvae=vqvae, discriminator=judge, images=images, perceptual=lambda a, b: a.new_zeros(()), settings=settings,
        clip_norm=1.0, job=job,
    )  # fmt: skip
    assert len(gradients) == 3
    assert max(g.abs().max().item() for g in gradients) <= 1  # of two hinge terms, whose slopes are at most 1 each way
