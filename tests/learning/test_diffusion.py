"""The stages of the UNet and the clusters: what they minimise, and from what they learn."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pfiles import latents
from pfiles.cluster_bank import ClusterBank
from pfiles.learning import diffusion
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.unet_cond_base import UNet
from tests.conftest import KS, K, stage_networks, train_stage
from tests.learning.conftest import equal


def test_stage_1_trains_both_networks(tiny, images, job):
    networks = stage_networks(tiny)
    _, unet, clusters = networks
    before = copy.deepcopy((unet, clusters))
    history = train_stage(tiny, tiny.training, networks, images, job)
    assert not equal(unet, before[0])
    assert not equal(clusters, before[1])
    row = history[0]
    weighted = row["mse"] - 0.1 * row["marginal_entropy"] + 0.06 * row["conditional_entropy"] + 0.04 * row["affine_kl"]
    assert row["loss"] == pytest.approx(weighted, rel=1e-5)
    # two passes through the classifier a step, as in the published checkpoints
    assert clusters.classifier.bnor1.num_batches_tracked == 2 * 3


def test_stage_2_trains_the_unet_alone(tiny, images, job):
    networks = stage_networks(tiny)
    _, unet, clusters = networks
    before = copy.deepcopy((unet, clusters))
    history = train_stage(tiny, tiny.finetuning1, networks, images, job)
    assert not equal(unet, before[0])
    assert equal(clusters, before[1])
    assert history[0]["loss"] == history[0]["mse"]


def test_kmeans_clusters_never_learn(tiny, images, job):
    networks = stage_networks(tiny, "kmeans")
    history = train_stage(tiny, tiny.training, networks, images, job)
    assert not any("entropy" in name or "affine" in name for name in history[0])


def test_noise_error_falls(tiny, images, job):
    stage = replace(tiny.finetuning1, epochs=60, learning_rate=2e-3)
    history = train_stage(tiny, stage, stage_networks(tiny), images, job)
    assert history[-1]["mse"] < 0.8 < history[0]["mse"]


def test_dropped_conditions_are_no_condition(tiny):
    _, unet, _ = stage_networks(tiny)
    x, t = torch.randn(2, 16, 12, 12), torch.tensor([3, 9])
    with torch.no_grad():
        one, none, mixed = (unet(x, t, c) for c in (torch.tensor([1, 1]), None, torch.tensor([1, -1])))
    torch.testing.assert_close(mixed[0], one[0])
    torch.testing.assert_close(mixed[1], none[1])
    assert not torch.allclose(one[1], none[1])


def test_condition_dropout_trains_both_ways(tiny, images, job, monkeypatch):
    settings = replace(tiny, diffusion=replace(tiny.diffusion, condition_dropout=0.5))
    conditions = []
    monkeypatch.setattr(UNet, "forward", lambda self, x, t, c, f=UNet.forward: conditions.append(c) or f(self, x, t, c))
    train_stage(settings, replace(tiny.training, epochs=8), stage_networks(tiny), images, job)
    assert 0.35 < (torch.cat(conditions) < 0).float().mean() < 0.65


def recording_unet(tiny):
    """A UNet that keeps what it was given and returns zero, with one parameter to train."""

    class Recorder(UNet):
        def forward(self, x, t, cond_input=None):
            self.calls.append((x.detach().clone(), t.clone(), cond_input.clone()))
            return 0 * super().forward(x, t, cond_input)

    unet = Recorder(16, K, **tiny.diffusion.unet)
    unet.calls = []
    return unet


def test_velocity_of_scaled_latents_is_what_the_unet_learns(tiny, images, job):
    """From what a UNet that answers zero was given, its error is worked out again: mean of v squared."""
    settings = replace(tiny.diffusion, prediction="v", latent_scaling=True)
    vqvae, _, clusters = stage_networks(tiny)
    codes = latents.encode_tiles(vqvae, images)
    space = latents.LatentSpace.of_training(vqvae, codes)
    z = torch.cat([space.embed(code[None]) for code in codes])
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
    varies = z.std((0, 2, 3)) > 0
    torch.testing.assert_close(z.std((0, 2, 3), correction=0)[varies], torch.ones(int(varies.sum())), atol=1e-3, rtol=0)
    torch.testing.assert_close(space.decode(space.scale(z)), vqvae.decode(z * 1.0), atol=1e-3, rtol=1e-3)

    unet, inputs = recording_unet(tiny), []
    stage = replace(tiny.finetuning1, epochs=1)
    scheduler = LinearNoiseScheduler(settings.num_timesteps, settings.beta_start, settings.beta_end)
    original = scheduler.velocity

    class Watched(LinearNoiseScheduler):
        def velocity(self, x0, noise, t):
            inputs.append((x0, noise, t))
            return super().velocity(x0, noise, t)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusion, "LinearNoiseScheduler", Watched)
        history = diffusion.train_stage(
            unet=unet, bank=ClusterBank([clusters]), space=space, images=images, codes=codes, settings=settings,
            stage=stage, job=job,
        )  # fmt: skip
    errors = []
    for (x, t, _), (x0, noise, _) in zip(unet.calls, inputs, strict=True):
        alpha_bar = scheduler.alpha_cumprod[t].view(-1, 1, 1, 1)
        torch.testing.assert_close(
            x.double(), alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise, atol=1e-5, rtol=0
        )
        errors.append((alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0).square().mean().item())
        torch.testing.assert_close(original(x0, noise, t).double().square().mean().item(), errors[-1])
    assert history[0]["mse"] == pytest.approx(np.mean(errors), rel=1e-5)


def test_uniform_times_are_those_of_version_1_0():
    scheduler = LinearNoiseScheduler()
    published = torch.randint(1000, (64,), generator=torch.Generator().manual_seed(3))
    assert torch.equal(diffusion.sample_times(64, scheduler, "uniform", torch.Generator().manual_seed(3)), published)


def test_log_normal_times_have_the_ratios_of_noise_that_they_say():
    """ln SNR = N(0.5, 2.2): half above 0.5, 16 % above 2.7, and none beyond the schedule's ends."""
    scheduler = LinearNoiseScheduler()
    t = diffusion.sample_times(100_000, scheduler, "log-normal", torch.Generator().manual_seed(0))
    assert 0 <= t.min() < t.max() <= 999
    log_snr = torch.logit(scheduler.alpha_cumprod)[t]
    assert (log_snr > 0.5).double().mean().item() == pytest.approx(0.5, abs=0.01)
    assert (log_snr > 2.7).double().mean().item() == pytest.approx(0.1587, abs=0.01)
    assert (log_snr > -1.7).double().mean().item() == pytest.approx(0.8413, abs=0.01)
    short = diffusion.sample_times(1000, LinearNoiseScheduler(4), "log-normal", torch.Generator().manual_seed(0))
    assert set(short.tolist()) == {1, 2, 3}  # the first is nearly without noise, and the last stands for all beyond


def test_views_of_latents_are_learnt_from(tiny, images, job):
    """Every latent that the UNet is given without noise is one of the eight views of its tile."""
    vqvae, _, clusters = stage_networks(tiny)
    views = latents.encode_views(vqvae, images)
    assert torch.equal(views[0], latents.encode_tiles(vqvae, images))
    unet = recording_unet(tiny)
    settings = replace(tiny.diffusion, beta_start=1e-12, beta_end=1e-12)
    diffusion.train_stage(
        unet=unet, bank=ClusterBank([clusters]), space=latents.LatentSpace(vqvae), images=images, codes=views,
        settings=settings, stage=replace(tiny.finetuning1, epochs=3), job=job,
    )  # fmt: skip
    latents_of_views = vqvae.embed(views.flatten(0, 1)).flatten(1)
    inputs = torch.cat([x for x, _, _ in unet.calls]).flatten(1)
    distance, which = torch.cdist(inputs, latents_of_views, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert distance.max() < 1e-3
    assert len((which // len(images)).unique()) > 4
    clustered = torch.cat([latents.predict_clusters(vqvae, clusters, view).cluster_ids for view in views])
    assert torch.equal(torch.cat([c for _, _, c in unet.calls]), clustered[which])  # each view's own cluster


@pytest.mark.parametrize("kind", ["classifier", "kmeans"])
def test_the_condition_is_a_row_of_one_k(tiny, images, job, kind):
    """Each tile is learnt with its cluster in each k about equally often, in the rows of that k."""
    vqvae, *_ = stage_networks(tiny)
    codes = latents.encode_tiles(vqvae, images)
    bank = ClusterBank.make(kind, 16, KS)
    if kind == "kmeans":
        for one in bank:
            nn.init.normal_(one.centroids)
    conditions = []

    class Recorder(UNet):
        def forward(self, x, t, cond_input=None):
            conditions.append(cond_input.clone())
            return super().forward(x, t, cond_input)

    unet = Recorder(16, sum(KS), **tiny.diffusion.unet)
    stage = replace(tiny.training, epochs=12, learning_rate=1e-9)
    diffusion.train_stage(
        unet=unet, bank=bank, space=latents.LatentSpace(vqvae), images=images, codes=codes,
        settings=tiny.diffusion, stage=stage, job=job,
    )  # fmt: skip
    rows = torch.cat(conditions)
    firsts = torch.tensor([0, 3, 8])
    which = torch.bucketize(rows, firsts[1:], right=True)
    assert (which.bincount() / len(rows) - 1 / 3).abs().max() < 0.1
    if kind == "kmeans":  # its clusters stay, so that every condition must be one that predict_clusters gives
        for i, one in enumerate(bank):
            cluster_ids, _ = latents.predict_clusters(vqvae, one, codes)
            counts = rows[which == i].bincount(minlength=12)[firsts[i] : firsts[i] + KS[i]]
            assert ((counts > 0) <= (cluster_ids.bincount(minlength=KS[i]) > 0)).all()
