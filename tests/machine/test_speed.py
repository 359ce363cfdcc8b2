"""Faster ways to compute give the same numbers."""

import copy
import traceback
from dataclasses import replace

import pytest
import torch

from pfiles.drawing.sampling import image_seeds, sample
from pfiles.learning import autoencoder, loop
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.machine import speed
from pfiles.machine.runtime import make_rng
from pfiles.machine.speed import EAGER, Speed, pick_speed
from pfiles.settings import get_settings
from tests.conftest import K, autoencoder_networks, stage_networks, train_autoencoder, train_stage

WAYS = {"channels_last": Speed(channels_last=True), "fused": Speed(fused=True)}
CPU = torch.device("cpu")


def unet_input(batch=4):
    generator = make_rng("speed")
    x = torch.randn(batch, 16, 16, 16, generator=generator)
    return x, torch.arange(batch) * 5, torch.arange(batch) % K


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("optimizer", ["adadelta", "adam", "adamw"])
def test_a_stage_learns_the_same(tiny, images, job, name, optimizer):
    stage = replace(tiny.training, epochs=3, optimizer=optimizer)
    plain = train_stage(tiny, stage, stage_networks(tiny), images, job)
    fast = train_stage(tiny, stage, stage_networks(tiny), images, replace(job, speed=WAYS[name], restart=True))
    for a, b in zip(plain, fast, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-3)


@pytest.mark.parametrize("name", WAYS)
def test_the_autoencoder_learns_the_same(tiny, images, job, name):
    perceptual = autoencoder.make_perceptual(tiny.autoencoder, "cpu")
    histories = [
        train_autoencoder(
            autoencoder_networks(tiny), images, perceptual, tiny.autoencoder, replace(job, speed=speed, restart=True)
        )
        for speed in (EAGER, WAYS[name])
    ]
    for a, b in zip(*histories, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)


def test_sampling_draws_the_same(tiny):
    _, unet, _ = stage_networks(tiny)
    arguments = (LinearNoiseScheduler(20), lambda z: z[:, :3] / 4 + 0.5, [0, 1, 2], image_seeds(0, range(3)))
    options = {"latent_shape": (16, 12, 12), "num_steps": 6, "progress": False}
    plain = sample(unet, *arguments, **options)
    fast = sample(unet, *arguments, **options, speed=WAYS["channels_last"])
    assert (plain.int() - fast.int()).abs().max() <= 1


def test_bf16_is_close_and_gives_float32_weights(tiny, images, job):
    _, unet, _ = stage_networks(tiny)
    arguments = unet_input()
    with torch.no_grad():
        exact = unet(*arguments)
        close = Speed(bf16=True).accelerate(unet)(*arguments).float()
    error = ((close - exact).norm() / exact.norm()).item()
    assert 0 < error < 0.02
    stage = replace(tiny.training, epochs=2)
    plain = train_stage(tiny, stage, stage_networks(tiny), images, job)
    networks = stage_networks(tiny)
    fast = train_stage(tiny, stage, networks, images, replace(job, speed=Speed(bf16=True), restart=True))
    assert fast[-1]["loss"] == pytest.approx(plain[-1]["loss"], rel=0.02)
    assert all(p.dtype == torch.float32 for p in networks[1].parameters())


def test_networks_compile_to_one_graph_with_the_same_result(tiny):
    """A break in the graph would end the CUDA graph there."""
    vqvae, unet, clusters = stage_networks(tiny)
    x = torch.rand(2, 3, 48, 48, generator=make_rng("x"))
    for forward, arguments in ((unet, unet_input(2)), (clusters, (unet_input(2)[0],)), (vqvae.encode_codes, (x,))):
        torch._dynamo.reset()
        compiled = torch.compile(copy.deepcopy(forward), fullgraph=True, dynamic=False, backend="aot_eager")
        torch.testing.assert_close(compiled(*arguments), copy.deepcopy(forward)(*arguments), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("learns", [True, False])
def test_no_step_waits_for_the_device(tiny, images, job, monkeypatch, learns):
    """Between two looks no tensor's value is asked for: on a GPU the host would wait for all that is queued."""
    stage = tiny.training if learns else tiny.finetuning1
    networks = stage_networks(tiny)
    requests = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                files = [frame.filename for frame in traceback.extract_stack()]
                if not any("torch/optim" in name for name in files):  # they count their steps on the CPU
                    requests.append((str(function), files[-3:]))
            return function(*args, **(kwargs or {}))

    original = loop._step

    def watched(*args):
        with Watch():
            return original(*args)

    monkeypatch.setattr(loop, "_step", watched)
    train_stage(tiny, stage, networks, images, job)
    train_autoencoder(autoencoder_networks(tiny), images, lambda a, b: (a - b).square().mean(), tiny.autoencoder,
        replace(job, folder=job.folder / "autoencoder"),
    )  # fmt: skip
    assert requests == []


def test_what_is_chosen_is_printed_once(capsys):
    assert pick_speed(get_settings("paper"), CPU) == Speed(channels_last=True, fused=True, yield_cores=True)
    assert (
        capsys.readouterr().out
        == "fp32 on cpu, channels_last + fused + yield_cores (setting speed='auto'), 1 process(es)\n"
    )
    assert pick_speed(get_settings("paper", {"speed": "off"}), CPU) == EAGER
    assert pick_speed(get_settings("paper", {"speed": "off", "precision": "bf16"}), CPU) == Speed(bf16=True)


def test_bf16_only_where_the_hardware_has_it_and_it_pays(monkeypatch):
    """No instructions: no measurement either, as that may take minutes."""
    seconds = {True: 1.0, False: 2.0}
    monkeypatch.setattr(speed, "_step_seconds", lambda bf16: seconds[bf16])
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False})
    assert speed.pick_precision(CPU) == "fp32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert speed.pick_precision(CPU) == "bf16"
    seconds[True] = 1.9
    assert speed.pick_precision(CPU) == "fp32"


def test_the_measured_step_is_a_step_of_training():
    assert all(0 < speed._step_seconds(bf16) < 10 for bf16 in (True, False))
