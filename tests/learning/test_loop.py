"""What all trainings share: order of tiles, steps of the optimisers, the average of the weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pfiles.errors import InputError
from pfiles.learning import loop
from pfiles.learning.loop import epoch_batches
from tests.conftest import (
    autoencoder_networks,
    make_tiles,
    stage_networks,
    train_autoencoder,
    train_stage,
    weights,
    write,
)


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


def test_every_epoch_draws_anew_and_a_seed_repeats(tiny, images, job, monkeypatch):
    def orders(seed):
        tile_orders = []

        def record(n, batch_size, generator):
            batches = epoch_batches(n, batch_size, generator)
            tile_orders.append(torch.cat(batches).tolist())
            return batches

        monkeypatch.setattr(loop, "epoch_batches", record)
        again = replace(job, seed=seed, restart=True)
        train_stage(tiny, replace(tiny.training, epochs=3), stage_networks(tiny), images, again)
        return tile_orders

    first = orders(1)
    assert len({tuple(order) for order in first}) == 3
    assert orders(1) == first
    assert orders(2) != first


def test_training_leaves_the_global_random_state_alone(tiny, images, job):
    before = torch.get_rng_state()
    train_stage(tiny, tiny.training, stage_networks(tiny), images, job)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_average_of_the_weights_is_the_result(tiny, images, job, monkeypatch):
    """Worked out beside the training: every step's weights, averaged with the decay of that step."""
    tile_orders = []
    original = loop.update

    def recorded(optimizer, clip_norm):
        norm = original(optimizer, clip_norm)
        if not any(p is networks[1].conv_in.weight for p in optimizer.param_groups[0]["params"]):
            return norm  # of the classifier
        tile_orders.append(networks[1].conv_in.weight.detach().clone())
        return norm

    monkeypatch.setattr(loop, "update", recorded)
    networks = stage_networks(tiny)
    average = networks[1].conv_in.weight.detach().clone()
    train_stage(tiny, replace(tiny.training, epochs=4, ema_decay=0.5), networks, images, job)
    for number, weight in enumerate(tile_orders):
        decay = min(0.5, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(networks[1].conv_in.weight.detach(), average, rtol=1e-5, atol=1e-6)
    assert not torch.equal(average, tile_orders[-1])


def test_the_learning_rate_warms_up(tiny, images, job):
    history = train_stage(tiny, replace(tiny.finetuning1, epochs=4, warmup_steps=9), stage_networks(tiny), images, job)
    rates = [row["learning_rate"] / tiny.finetuning1.learning_rate for row in history]
    assert rates == pytest.approx([3 / 9, 6 / 9, 1, 1])


def test_the_learning_rate_falls_along_a_cosine():
    schedule = loop.LearningRateSchedule(warmup_steps=2, decay="cosine")
    factors = [schedule.factor(number, 8) for number in range(8)]
    assert factors[0] == pytest.approx(0.5)  # half of the warm-up, at the top of the cosine
    assert factors[4] == pytest.approx(0.5)  # half-way down
    assert factors[7] == pytest.approx(0.5 + 0.5 * np.cos(np.pi * 7 / 8))
    assert loop.LearningRateSchedule().factor(7, 8) == 1


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


@pytest.mark.parametrize(("n", "batch_size", "count"), [(10_000, 16, 625), (37, 16, 2), (5, 16, 1), (32, 16, 2)])
def test_epoch_batches_drop_no_tile(n, batch_size, count):
    batches = epoch_batches(n, batch_size, torch.Generator().manual_seed(0))
    assert len(batches) == count
    sizes = [len(batch) for batch in batches]
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(n))
    again = epoch_batches(n, batch_size, torch.Generator().manual_seed(1))
    assert not torch.equal(torch.cat(batches), torch.cat(again))


def test_each_of_several_networks_is_clipped_by_its_own_norm():
    layer = nn.Linear(1, 3, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    optimizer.param_groups[0]["together"] = 3
    nn.init.zeros_(layer.weight)
    layer.weight.grad = torch.tensor([[3.0], [0.25], [-4.0]])
    assert loop.update(optimizer, clip_norm=1.0).item() == pytest.approx((9 + 0.0625 + 16) ** 0.5)
    torch.testing.assert_close(layer.weight.data, torch.tensor([[-1.0], [-0.25], [1.0]]), atol=1e-5, rtol=0)


def test_a_refused_training_leaves_the_networks_as_they_were(tiny, images, job, tmp_path):
    """Images of the last training are there: one that would go on is refused before its resume point is loaded."""
    train_stage(tiny, tiny.finetuning1, stage_networks(tiny), images, job)
    networks = stage_networks(tiny)
    before = weights(networks[1])
    longer = replace(tiny.finetuning1, epochs=2)
    write(tmp_path / "gen", [1], make_tiles(1))
    with pytest.raises(InputError, match="would not belong to the networks that test trains"):
        train_stage(tiny, longer, networks, images, replace(job, blocked_by=[tmp_path / "gen"]))
    assert torch.equal(weights(networks[1]), before)
    train_stage(tiny, longer, networks, images, job)
    assert not torch.equal(weights(networks[1]), before)
