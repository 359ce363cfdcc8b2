"""What only a GPU can show: bf16 against float32, compiled against eager, resuming, and that no step waits.

The slowest, which compile, come last. Skipped where there is no GPU; `bash benchmarks/gpu.sh` runs them where there
is one.
"""

import copy
from dataclasses import replace

import pytest
import torch

from pfiles import latents
from pfiles.cluster_bank import ClusterBank
from pfiles.drawing.sampling import image_seeds, sample
from pfiles.learning import diffusion, loop
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.machine.runtime import make_rng
from pfiles.machine.speed import EAGER, Speed
from tests.conftest import K, stage_networks

DEVICE = "cuda"
FAST = Speed(channels_last=True, compiled=True, fused=True)
LATENT = (16, 12, 12)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a GPU: run bash benchmarks/gpu.sh where there is one"
    ),
]


@pytest.fixture
def networks(tiny):
    return tuple(network.to(DEVICE) for network in stage_networks(tiny))


def unet_input(batch=8):
    generator = make_rng("gpu")
    x = torch.randn(batch, *LATENT, generator=generator)
    return x.to(DEVICE), torch.arange(batch, device=DEVICE), torch.arange(batch, device=DEVICE) % K


def distance(a, b):
    """Relative L2 error; NaN is no agreement."""
    error = ((a.float() - b.float()).norm() / b.float().norm()).item()
    return error if error == error else float("inf")


def train(tiny, networks, tiles, speed, epochs=3):
    vqvae, unet, clusters = networks
    tiles = tiles.to(DEVICE)
    stage = replace(tiny.training, epochs=epochs)
    codes = latents.encode_tiles(vqvae, tiles)
    return diffusion.train_stage(
        unet=unet, bank=ClusterBank([clusters]), space=latents.LatentSpace(vqvae), images=tiles, codes=codes,
        settings=tiny.diffusion, stage=stage, job=speed,
    )  # fmt: skip


def draw(networks, clusters, seeds, speed=EAGER, batch_size=100):
    vqvae, unet, _ = networks
    return sample(
        unet, LinearNoiseScheduler(20), vqvae.decode, clusters, seeds, latent_shape=LATENT, num_steps=6,
        batch_size=batch_size, speed=speed, progress=False,
    ).float()  # fmt: skip


@torch.no_grad()
def test_the_gpu_computes_what_the_cpu_does(networks):
    _, unet, _ = networks
    arguments = unet_input()
    on_cpu = copy.deepcopy(unet).cpu()(*(a.cpu() for a in arguments))
    assert distance(unet(*arguments).cpu(), on_cpu) < 1e-3  # convolutions may use TF32


@torch.no_grad()
def test_bf16_is_float32_to_two_digits(networks):
    vqvae, unet, _ = networks
    arguments = unet_input()
    assert 0 < distance(Speed(bf16=True).accelerate(unet)(*arguments), unet(*arguments)) < 0.02
    z = vqvae.embed(torch.randint(32, (4, 12, 12), generator=make_rng("codes")).to(DEVICE))
    assert 0 < distance(Speed(bf16=True).accelerate(vqvae.decode)(z), vqvae.decode(z)) < 0.02


def test_an_image_does_not_depend_on_its_batch(networks):
    clusters, seeds = [0, 1, 2, 0], image_seeds(0, range(4))
    together, apart = draw(networks, clusters, seeds), draw(networks, clusters, seeds, batch_size=1)
    assert (together - apart).abs().mean() < 1


def test_a_stopped_training_goes_on(tiny, networks, images, job, tmp_path):
    again = copy.deepcopy(networks)
    whole = train(tiny, networks, images, job, epochs=4)
    broken = replace(job, folder=tmp_path / "broken")
    train(tiny, copy.deepcopy(again), images, broken, epochs=2)
    resumed = train(tiny, again, images, broken, epochs=4)
    assert [row["loss"] for row in resumed] == pytest.approx([row["loss"] for row in whole], rel=1e-3)
    for a, b in zip(again[1].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_no_step_waits_for_the_gpu(tiny, networks, images, job, monkeypatch):
    """CUDA's own watch: any call in a step for which the host must wait is an error."""
    original = loop._step

    def watched(*args):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "_step", watched)
    train(tiny, networks, images, job, epochs=1)


@torch.no_grad()
def test_compiled_networks_compute_the_same(networks):
    _, unet, _ = networks
    fast = FAST.accelerate(copy.deepcopy(unet))
    arguments = unet_input()
    for _ in range(3):  # eager, recorded, replayed
        torch.compiler.cudagraph_mark_step_begin()
        assert distance(fast(*arguments), unet(*arguments)) < 1e-3


def test_a_compiled_training_learns_the_same(tiny, networks, images, job):
    plain = train(tiny, copy.deepcopy(networks), images, job)
    fast = train(tiny, networks, images, replace(job, speed=FAST, restart=True))
    for a, b in zip(plain, fast, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-2)
        assert b["mse"] == pytest.approx(a["mse"], rel=1e-2)


def test_compiled_sampling_draws_the_same(networks):
    clusters, seeds = [0, 1, 2, 0], image_seeds(0, range(4))
    plain, fast = draw(networks, clusters, seeds), draw(networks, clusters, seeds, FAST)
    assert (plain - fast).abs().mean() < 1  # of 255 levels
    assert (plain[0] - plain[3]).abs().mean() > 5  # another seed is another image
