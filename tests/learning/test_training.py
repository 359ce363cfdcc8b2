"""The trainings: what they minimise, and that a stopped one goes on as if nothing had happened."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pfiles import latents
from pfiles.classifier import Classifier
from pfiles.clustering import KMeansClusters, fit_kmeans, make_clusterer, probabilities
from pfiles.discriminator import PolishDiscriminator
from pfiles.errors import InputError
from pfiles.learning import autoencoder, diffusion, loop
from pfiles.learning.loop import epoch_batches
from pfiles.learning.losses import hinge_loss
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.settings import SavingSettings
from pfiles.unet_cond_base import UNet
from tests.conftest import K, autoencoder_networks, stage_networks, train_autoencoder, train_stage


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_autoencoder_learns(tiny, images, job):
    vqvae, discriminator = autoencoder_networks(tiny)
    settings = replace(tiny.autoencoder, epochs=15)
    history = train_autoencoder(
        (vqvae, discriminator), images, autoencoder.make_perceptual(settings, "cpu"), settings, job
    )
    assert [row["epoch"] for row in history] == list(range(1, 16))
    assert history[-1]["reconstruction"] < history[0]["reconstruction"] / 2
    assert "generator" not in history[0]  # adversarial terms begin after step 3, the first of the second epoch
    assert "discriminator" in history[1]
    assert history[-1]["codes_used"] > 4
    assert not any(p.requires_grad for p in vqvae.parameters())


def test_loss_is_the_weighted_sum_of_its_terms(tiny, images, job):
    settings = replace(tiny.autoencoder, perceptual_weight=0.5, codebook_weight=2.0, commitment_weight=0.2)
    history = train_autoencoder(autoencoder_networks(tiny), images, lambda a, b: (a - b).abs().mean(), settings, job)
    terms = ("reconstruction", "perceptual", "codebook", "commitment", "generator")
    assert history[1]["loss"] == pytest.approx(sum(history[1][name] for name in terms), rel=1e-5)


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


class StoppedError(Exception):
    pass


def stop_after(monkeypatch, module, calls):
    """Stop the training in the middle of an epoch, as a kill would."""
    original, count = module.to_unit, [0]

    def counted(images):
        count[0] += 1
        if count[0] > calls:
            raise StoppedError
        return original(images)

    monkeypatch.setattr(module, "to_unit", counted)


def test_a_stopped_autoencoder_training_goes_on_exactly(tiny, images, job, tmp_path, monkeypatch):
    settings = replace(tiny.autoencoder, epochs=4)
    perceptual = autoencoder.make_perceptual(settings, "cpu")
    whole = autoencoder_networks(tiny)
    history = train_autoencoder(whole, images, perceptual, settings, job)

    broken = replace(job, folder=tmp_path / "broken", saving=SavingSettings(every_minutes=0))
    with monkeypatch.context() as patch:
        stop_after(patch, autoencoder, 11)
        with pytest.raises(StoppedError):
            train_autoencoder(autoencoder_networks(tiny), images, perceptual, settings, broken)
    again = autoencoder_networks(tiny)
    resumed = train_autoencoder(again, images, perceptual, settings, broken)
    assert equal(whole[0], again[0])
    assert equal(whole[1], again[1])
    timing = dict.fromkeys(("seconds", "images_per_second", "memory_gb"), 0)
    for a, b in zip(history, resumed, strict=True):
        assert {**a, **timing} == {**b, **timing}


def test_a_stopped_stage_goes_on_exactly(tiny, images, job, tmp_path, monkeypatch):
    stage = replace(tiny.training, epochs=4)
    whole = stage_networks(tiny)
    train_stage(tiny, stage, whole, images, job)
    broken = replace(job, folder=tmp_path / "broken", saving=SavingSettings(every_minutes=0))
    with monkeypatch.context() as patch:
        stop_after(patch, diffusion, 8)
        with pytest.raises(StoppedError):
            train_stage(tiny, stage, stage_networks(tiny), images, broken)
    again = stage_networks(tiny)
    train_stage(tiny, stage, again, images, broken)
    assert equal(whole[1], again[1])
    assert equal(whole[2], again[2])


def test_a_finished_training_returns_at_once_unless_restarted(tiny, images, job, capsys):
    first = stage_networks(tiny)
    train_stage(tiny, tiny.training, first, images, job)
    again = stage_networks(tiny)
    train_stage(tiny, tiny.training, again, images, job)
    assert equal(first[1], again[1])
    assert "test is done already: 1 epochs" in capsys.readouterr().out
    longer = stage_networks(tiny)
    assert len(train_stage(tiny, replace(tiny.training, epochs=2), longer, images, job)) == 2
    capsys.readouterr()
    train_stage(tiny, tiny.training, stage_networks(tiny), images, replace(job, restart=True))
    assert "done already" not in capsys.readouterr().out


@pytest.fixture
def stopped(monkeypatch):
    """A function that makes the next training stop after so many steps, with a resume point at each; None: at none."""
    step = loop._step

    def stop_after(steps):
        left = [steps]

        def one(*args):
            if left[0] == 0:
                raise StoppedError
            left[0] -= 1
            return step(*args)

        monkeypatch.setattr(loop, "_step", step if steps is None else one)

    return stop_after


def test_a_restart_is_done_once(tiny, images, job, stopped, capsys):
    stage, every = replace(tiny.training, epochs=2), replace(job, saving=SavingSettings(every_minutes=0), restart=True)
    train_stage(tiny, stage, stage_networks(tiny), images, job)
    stopped(4)
    with pytest.raises(StoppedError):
        train_stage(tiny, stage, stage_networks(tiny), images, every)
    stopped(0)
    with pytest.raises(StoppedError):  # at once, and what was begun is still there
        train_stage(tiny, stage, stage_networks(tiny), images, every)
    capsys.readouterr()
    stopped(None)
    train_stage(tiny, stage, stage_networks(tiny), images, every)
    assert "test goes on after step 4 of 6" in capsys.readouterr().out
    train_stage(tiny, stage, stage_networks(tiny), images, every)  # asked for again, after its end
    assert "goes on" not in (printed := capsys.readouterr().out)
    assert "done already" not in printed


def test_a_restart_begins_anew_where_it_was_stopped_before_its_first_step(tiny, images, job, stopped, capsys):
    train_stage(tiny, tiny.training, stage_networks(tiny), images, job)
    stopped(0)
    with pytest.raises(StoppedError):
        train_stage(tiny, tiny.training, stage_networks(tiny), images, replace(job, restart=True))
    stopped(None)
    capsys.readouterr()
    train_stage(tiny, tiny.training, stage_networks(tiny), images, replace(job, restart=True))
    assert "test " not in capsys.readouterr().out  # neither goes on nor is done


def test_another_restart_is_not_the_one_that_was_begun(tiny, images, job, stopped, capsys):
    every = replace(job, saving=SavingSettings(every_minutes=0), restart=True)
    stopped(2)
    with pytest.raises(StoppedError):
        train_stage(tiny, tiny.training, stage_networks(tiny), images, every)
    stopped(None)
    train_stage(tiny, tiny.training, stage_networks(tiny), images, replace(every, identity={"a": {"b": 2}}))
    assert "goes on" not in capsys.readouterr().out


def test_a_job_that_slurm_put_back_does_not_restart_twice(tiny, images, job, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    for count, number, done in ((None, "17", False), ("1", "17", True), ("1", "18", False), ("0", "18", False)):
        monkeypatch.setenv("SLURM_JOB_ID", number)
        if count is not None:
            monkeypatch.setenv("SLURM_RESTART_COUNT", count)
        train_stage(tiny, tiny.training, stage_networks(tiny), images, replace(job, restart=True))
        assert ("done already" in capsys.readouterr().out) == done


def test_a_resume_point_of_another_training_is_refused(tiny, images, job):
    train_stage(tiny, tiny.training, stage_networks(tiny), images, job)
    with pytest.raises(InputError, match=r"a\.b was 1 and is 2"):
        train_stage(tiny, tiny.training, stage_networks(tiny), images, replace(job, identity={"a": {"b": 2}}))


def test_a_loss_that_is_not_finite_stops_the_training(tiny, images, job):
    settings = replace(tiny.autoencoder, epochs=3)
    calls = []

    def perceptual(a, b):
        calls.append(1)
        return a.mean() * (float("nan") if len(calls) > 4 else 1)

    with pytest.raises(
        FloatingPointError,
        match=r"of test became NaN or infinite in step 5 \(epoch 2, training tiles \[\d+, .*\]\); .* is the start",
    ):
        train_autoencoder(autoencoder_networks(tiny), images, perceptual, settings, job)
    assert not (job.folder / "resume.pt").exists()


def test_a_training_begins_anew_where_its_start_was_trained_since(tiny, images, job, capsys):
    first, second = (replace(job, identity={"a": 1, "starts_from": {"unet": name}}) for name in "xy")
    train_stage(tiny, tiny.training, stage_networks(tiny), images, first)
    capsys.readouterr()
    train_stage(tiny, tiny.training, stage_networks(tiny), images, second)
    printed = capsys.readouterr().out
    assert "Begins anew, as what it starts from was trained since (unet)" in printed
    assert "done already" not in printed


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


def test_every_epoch_draws_anew_and_a_seed_repeats(tiny, images, job, monkeypatch):
    def orders(seed):
        seen = []

        def record(n, batch_size, generator):
            batches = epoch_batches(n, batch_size, generator)
            seen.append(torch.cat(batches).tolist())
            return batches

        monkeypatch.setattr(loop, "epoch_batches", record)
        again = replace(job, seed=seed, restart=True)
        train_stage(tiny, replace(tiny.training, epochs=3), stage_networks(tiny), images, again)
        return seen[1:]  # the first call only counts the steps

    first = orders(1)
    assert len({tuple(order) for order in first}) == 3
    assert orders(1) == first
    assert orders(2) != first


def test_training_leaves_the_global_random_state_alone(tiny, images, job):
    before = torch.get_rng_state()
    train_stage(tiny, tiny.training, stage_networks(tiny), images, job)
    assert torch.equal(torch.get_rng_state(), before)


def test_kmeans_logits_are_the_posterior_of_equal_gaussians():
    generator = torch.Generator().manual_seed(0)
    z = torch.cat([torch.randn(40, 4, 6, 6, generator=generator) * (1 + i) + 3 * i for i in range(K)])
    clusters = fit_kmeans(KMeansClusters(4, K), z.split(50), seed=3)
    features = (clusters.statistics(z) - clusters.mean) / clusters.scale
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(8), rtol=1e-4, atol=1e-4)
    distance = torch.cdist(features, clusters.centroids)
    p = probabilities(clusters, z)
    assert torch.equal(p.argmax(1), distance.argmin(1))
    assert p.argmax(1).view(K, 40).unique(dim=1).shape == (K, 1)  # the three groups are found
    variance = distance.min(1).values.square().mean() / 8  # mean squared distance per feature
    torch.testing.assert_close(clusters.variance, variance, rtol=1e-4, atol=0)
    # of densities exp(-d^2 / 2 s^2) the logarithms are the logits, and the shares the probabilities
    torch.testing.assert_close(clusters(z).flatten(1), -distance.square() / (2 * variance), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(p, torch.softmax(-distance.square() / (2 * variance), dim=1), rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_kmeans_of_identical_tiles_is_finite():
    clusters = fit_kmeans(KMeansClusters(4, 2), [torch.ones(10, 4, 3, 3)], seed=0)
    assert probabilities(clusters, torch.ones(2, 4, 3, 3)).isfinite().all()


@pytest.mark.parametrize("kind", ["classifier", "kmeans"])
def test_both_clusterings_give_probabilities(kind):
    p = probabilities(make_clusterer(kind, 16, 5).eval(), torch.randn(3, 16, 32, 32))
    assert p.shape == (3, 5)
    torch.testing.assert_close(p.sum(1), torch.ones(3))


def test_prediction_gives_the_mode_back(tiny, images):
    vqvae, _, clusters = stage_networks(tiny)
    clusters.train()
    labels, confidence = latents.predict_clusters(vqvae, clusters, latents.encode_tiles(vqvae, images))
    assert clusters.training
    assert isinstance(clusters, Classifier)
    assert labels.shape == confidence.shape == (24,)
    assert confidence.min() >= 1 / K


def test_features_of_the_csv(tiny, images):
    vqvae, _ = autoencoder_networks(tiny)
    codes = latents.encode_tiles(vqvae, images)
    features = latents.mean_channel_softmax(vqvae, codes)
    torch.testing.assert_close(features.sum(1), torch.ones(24))
    vectors = vqvae.embedding.weight[codes[5].long().flatten()].exp()  # (h*w, z), worked out for one tile
    torch.testing.assert_close(features[5], (vectors / vectors.sum(1, keepdim=True)).mean(0))


def test_the_average_of_the_weights_is_the_result(tiny, images, job, monkeypatch):
    """Worked out beside the training: every step's weights, averaged with the decay of that step."""
    seen = []
    original = loop.update

    def recorded(optimizer, clip_norm):
        norm = original(optimizer, clip_norm)
        if not any(p is networks[1].conv_in.weight for p in optimizer.param_groups[0]["params"]):
            return norm  # of the classifier
        seen.append(networks[1].conv_in.weight.detach().clone())
        return norm

    monkeypatch.setattr(loop, "update", recorded)
    networks = stage_networks(tiny)
    average = networks[1].conv_in.weight.detach().clone()
    train_stage(tiny, replace(tiny.training, epochs=4, ema_decay=0.5), networks, images, job)
    for number, weights in enumerate(seen):
        decay = min(0.5, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(networks[1].conv_in.weight.detach(), average, rtol=1e-5, atol=1e-6)
    assert not torch.equal(average, seen[-1])


def test_the_learning_rate_warms_up(tiny, images, job):
    history = train_stage(tiny, replace(tiny.finetuning1, epochs=4, warmup_steps=9), stage_networks(tiny), images, job)
    rates = [row["learning_rate"] / tiny.finetuning1.learning_rate for row in history]
    assert rates == pytest.approx([3 / 9, 6 / 9, 1, 1])


def test_min_snr_weights_the_error(tiny, images, job, monkeypatch):
    """With gamma above every signal-to-noise ratio nothing changes; with a tiny one the loss is gamma * error / SNR."""
    stage = replace(tiny.finetuning1, epochs=1)
    losses = {}
    for gamma in (None, 1e9, 1e-6):
        diffusion = replace(tiny, diffusion=replace(tiny.diffusion, min_snr_gamma=gamma))
        row = train_stage(diffusion, stage, stage_networks(tiny), images, replace(job, restart=True))[0]
        losses[gamma] = row["loss"]
        assert gamma is None or row["loss"] == row["weighted_mse"] != row["mse"] or gamma == 1e9
    assert losses[1e9] == pytest.approx(losses[None], rel=1e-6)
    assert losses[1e-6] < 1e-3 * losses[None]
    alpha_bar = LinearNoiseScheduler(20).alpha_cumprod[7].item()
    snr = LinearNoiseScheduler(20).signal_to_noise(torch.tensor([7])).item()
    assert snr == pytest.approx(alpha_bar / (1 - alpha_bar))


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
    seen = []
    monkeypatch.setattr(UNet, "forward", lambda self, x, t, c, f=UNet.forward: seen.append(c) or f(self, x, t, c))
    train_stage(settings, replace(tiny.training, epochs=8), stage_networks(tiny), images, job)
    assert 0.35 < (torch.cat(seen) < 0).float().mean() < 0.65


def test_the_log_is_a_table_and_event_files(tiny, images, job):
    history = train_stage(tiny, replace(tiny.training, epochs=2), stage_networks(tiny), images, job)
    table = pd.read_csv(job.folder / "log.csv")
    for found, row in zip(table.to_dict("records"), history, strict=True):
        assert found == pytest.approx(row)
    events = EventAccumulator(str(job.folder)).Reload()
    assert [scalar.step for scalar in events.Scalars("mse")] == [1, 2]
    assert [scalar.value for scalar in events.Scalars("marginal_entropy")] == pytest.approx(
        [row["marginal_entropy"] for row in history]
    )
    assert {"loss", "mse", "affine_kl", "gradient_norm", "learning_rate", "images_per_second"} <= set(table)


def test_a_precision_may_change_on_the_way_and_it_is_said(tiny, images, job, capsys):
    stage = replace(tiny.training, epochs=1)
    identity = {"settings": {"precision": "bf16"}}
    train_stage(tiny, stage, stage_networks(tiny), images, replace(job, identity=identity))
    identity = {"settings": {"precision": "fp32"}}
    longer = replace(stage, epochs=2)
    assert len(train_stage(tiny, longer, stage_networks(tiny), images, replace(job, identity=identity))) == 2
    assert "Goes on in fp32; until here it was bf16" in capsys.readouterr().out


def test_the_learning_rate_falls_along_a_cosine():
    pace = loop.Pace(warmup_steps=2, decay="cosine")
    factors = [pace.factor(number, 8) for number in range(8)]
    assert factors[0] == pytest.approx(0.5)  # half of the warm-up, at the top of the cosine
    assert factors[4] == pytest.approx(0.5)  # half-way down
    assert factors[7] == pytest.approx(0.5 + 0.5 * np.cos(np.pi * 7 / 8))
    assert loop.Pace().factor(7, 8) == 1


def test_each_optimiser_is_clipped_by_its_own_norm():
    layers = [torch.nn.Linear(1, 1, bias=False) for _ in range(2)]
    optimizers = [torch.optim.SGD(layer.parameters(), 1.0) for layer in layers]
    for layer, size in zip(layers, (3.0, 0.25), strict=True):
        torch.nn.init.zeros_(layer.weight)
        layer.weight.grad = torch.full((1, 1), size)
    norms = [loop.update(optimizer, clip_norm=1.0).item() for optimizer in optimizers]
    assert norms == [3.0, 0.25]
    assert layers[0].weight.item() == pytest.approx(-1, abs=1e-5)
    assert layers[1].weight.item() == pytest.approx(-0.25)


def recording_unet(tiny):
    """A UNet that keeps what it was given and returns zero, with one parameter to train."""

    class Recorder(UNet):
        def forward(self, x, t, cond_input=None):
            self.seen.append((x.detach().clone(), t.clone(), cond_input.clone()))
            return 0 * super().forward(x, t, cond_input)

    unet = Recorder(16, K, **tiny.diffusion.unet)
    unet.seen = []
    return unet


def test_velocity_of_scaled_latents_is_what_the_unet_learns(tiny, images, job):
    """From what a UNet that answers zero was given, its error is worked out again: mean of v squared."""
    settings = replace(tiny.diffusion, prediction="v", latent_scaling=True)
    vqvae, _, clusters = stage_networks(tiny)
    codes = latents.encode_tiles(vqvae, images)
    space = latents.LatentSpace.of_training(vqvae, codes)
    z = torch.cat([space.embed(code[None]) for code in codes])
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
    used = z.std((0, 2, 3)) > 0
    torch.testing.assert_close(z.std((0, 2, 3), correction=0)[used], torch.ones(int(used.sum())), atol=1e-3, rtol=0)
    torch.testing.assert_close(space.decode(space.scale(z)), vqvae.decode(z * 1.0), atol=1e-3, rtol=1e-3)

    unet, drawn = recording_unet(tiny), []
    stage = replace(tiny.finetuning1, epochs=1)
    scheduler = LinearNoiseScheduler(settings.num_timesteps, settings.beta_start, settings.beta_end)
    original = scheduler.velocity

    class Watched(LinearNoiseScheduler):
        def velocity(self, x0, noise, t):
            drawn.append((x0, noise, t))
            return super().velocity(x0, noise, t)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusion, "LinearNoiseScheduler", Watched)
        history = diffusion.train_stage(
            unet=unet, clusterer=clusters, space=space, images=images, codes=codes, settings=settings, stage=stage,
            job=job,
        )  # fmt: skip
    errors = []
    for (x, t, _), (x0, noise, _) in zip(unet.seen, drawn, strict=True):
        alpha_bar = scheduler.alpha_cumprod[t].view(-1, 1, 1, 1)
        torch.testing.assert_close(
            x.double(), alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise, atol=1e-5, rtol=0
        )
        errors.append((alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0).square().mean().item())
        torch.testing.assert_close(original(x0, noise, t).double().square().mean().item(), errors[-1])
    assert history[0]["mse"] == pytest.approx(np.mean(errors), rel=1e-5)


def test_views_of_latents_are_learnt_from(tiny, images, job):
    """Every latent that the UNet is given without noise is one of the eight views of its tile."""
    vqvae, _, clusters = stage_networks(tiny)
    views = latents.encode_views(vqvae, images)
    assert torch.equal(views[0], latents.encode_tiles(vqvae, images))
    unet = recording_unet(tiny)
    settings = replace(tiny.diffusion, beta_start=1e-12, beta_end=1e-12)
    diffusion.train_stage(
        unet=unet, clusterer=clusters, space=latents.LatentSpace(vqvae), images=images, codes=views,
        settings=settings, stage=replace(tiny.finetuning1, epochs=3), job=job,
    )  # fmt: skip
    known = vqvae.embed(views.flatten(0, 1)).flatten(1)
    given = torch.cat([x for x, _, _ in unet.seen]).flatten(1)
    distance, which = torch.cdist(given, known, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert distance.max() < 1e-3
    assert len((which // len(images)).unique()) > 4
    clustered = torch.cat([latents.predict_clusters(vqvae, clusters, view)[0] for view in views])
    assert torch.equal(torch.cat([c for _, _, c in unet.seen]), clustered[which])  # each view's own cluster


def test_clusters_learnt_alone_equal_those_learnt_beside_the_unet(tiny, images, job):
    """No gradient passes between the two: bit for bit."""
    beside, alone = stage_networks(tiny), stage_networks(tiny)
    stage = replace(tiny.training, epochs=3)
    train_stage(tiny, stage, beside, images, job)
    codes = latents.encode_tiles(alone[0], images)
    diffusion.train_clusters(
        classifier=alone[2], vqvae=alone[0], images=images, codes=codes, settings=tiny.diffusion, stage=stage,
        job=replace(job, folder=job.folder / "alone"),
    )  # fmt: skip
    for a, b in zip(beside[2].state_dict().values(), alone[2].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_polishing_changes_the_decoder_alone(tiny, images, job):
    vqvae, _ = autoencoder_networks(tiny)
    before = {name: value.clone() for name, value in vqvae.state_dict().items()}
    codes = latents.encode_tiles(vqvae, images)
    judge = PolishDiscriminator(conv_channels=(8, 16))
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


def test_the_polish_discriminator_learns_the_hinge_loss_alone(tiny, images, job, monkeypatch):
    """The generator's gradient never reaches its step: with real tiles and copies alike, its hinge loss stays 2."""
    assert hinge_loss(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.5])).item() == pytest.approx(0.5 + 0.75)
    vqvae, _ = autoencoder_networks(tiny)
    judge = PolishDiscriminator(conv_channels=(8, 16))
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
