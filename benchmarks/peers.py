"""The conditional UNet and the autoencoder beside those of three public libraries, on the same work, in turn.

    pip install --no-deps --target PEERS --requirement benchmarks/peers.txt
    PYTHONPATH=PEERS python -m benchmarks.peers [--size tiny] [--repetitions 5] [--only NAME ...] [--beside PEER ...]

The libraries go into a folder of their own and run on the same torch, in the same precision and with the same threads.
Each UNet gets the same latents, time steps and clusters, has attention at every level where the library offers it, and
the width that brings its number of parameters closest to the paper's; architectures differ, so that the operations of a
pass do too, and the table gives the rate besides the time. "even widths" is a library's UNet that is as wide at full
resolution as below, and so has about the paper's shape. A training step is forward, backward and AdamW on the mean
squared error, in `pfiles` with all that its loop does besides; images are drawn in 20 solver steps without decoding.
Prints a table of ratios (the library's time by ours; above 1 ours is faster) with 95 % intervals, and writes a JSON.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.inputs import N_CLUSTERS, SOLVER_STEPS, Size, make_networks, make_size, scheduler_of, smooth_tiles
from benchmarks.measure import MeasurementError, Run, device_name, interleaved, seconds
from pfiles.cluster_bank import ClusterBank
from pfiles.drawing.sampling import image_seeds, sample
from pfiles.latents import LatentSpace
from pfiles.learning import diffusion, loop
from pfiles.machine.runtime import make_rng, pick_device, seeded, versions
from pfiles.machine.speed import pick_speed
from pfiles.measuring.fidelity import student_interval
from pfiles.paths import ROOT, write_json
from pfiles.settings import StageSettings
from pfiles.unet_cond_base import UNet

BATCH = 16
STEPS = 3  # training steps of a repetition
OURS = "pfiles"


@dataclass(frozen=True)
class Peer:
    """unet: one of a width, for latents of so many channels. call: its prediction for x, t and clusters.
    draw: latents from noise and clusters in `SOLVER_STEPS` steps, by the library's own solver."""

    packages: tuple[str, ...]
    unet: Callable[[int, int], nn.Module]
    call: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
    draw: Callable[[nn.Module, Tensor, Tensor], Tensor] | None


def diffusers_unet(channels: int, width: int, layers: int = 2, factors: Sequence[int] = (1, 2, 2)) -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32, in_channels=channels, out_channels=channels, num_class_embeds=N_CLUSTERS,
        layers_per_block=layers, block_out_channels=[width * factor for factor in factors], attention_head_dim=16,
        down_block_types=("AttnDownBlock2D",) * 3, up_block_types=("AttnUpBlock2D",) * 3, norm_num_groups=16,
    )  # fmt: skip


def diffusers_call(unet: nn.Module, x: Tensor, t: Tensor, cluster_ids: Tensor) -> Tensor:
    return unet(x, t, cluster_ids, return_dict=False)[0]


def diffusers_draw(unet: nn.Module, x: Tensor, cluster_ids: Tensor) -> Tensor:
    from diffusers import DPMSolverMultistepScheduler

    return _steps(DPMSolverMultistepScheduler(), partial(diffusers_call, unet), x, cluster_ids)


def _steps(scheduler: Any, predict: Callable[..., Tensor], x: Tensor, cluster_ids: Tensor) -> Tensor:
    """The loop that the documentation of diffusers and of MONAI shows."""
    scheduler.set_timesteps(SOLVER_STEPS)
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, t.expand(len(x)), cluster_ids), t, x)[0]
    return x


def lucidrains_unet(channels: int, width: int) -> nn.Module:
    from denoising_diffusion_pytorch.classifier_free_guidance import Unet

    return Unet(width, N_CLUSTERS, cond_drop_prob=0.0, dim_mults=(1, 2, 2), channels=channels)


def lucidrains_call(unet: nn.Module, x: Tensor, t: Tensor, cluster_ids: Tensor) -> Tensor:
    return unet(x, t, cluster_ids)


def monai_unet(channels: int, width: int, layers: int = 2, factors: Sequence[int] = (1, 2, 2)) -> nn.Module:
    from monai.networks.nets import DiffusionModelUNet

    return DiffusionModelUNet(
        2, channels, channels, num_res_blocks=layers, channels=[width * factor for factor in factors],
        attention_levels=(True,) * 3, norm_num_groups=16, num_head_channels=16, num_class_embeds=N_CLUSTERS,
        use_flash_attention=True,
    )  # fmt: skip


def monai_call(unet: nn.Module, x: Tensor, t: Tensor, cluster_ids: Tensor) -> Tensor:
    return unet(x, t, class_labels=cluster_ids)


def monai_draw(unet: nn.Module, x: Tensor, cluster_ids: Tensor) -> Tensor:
    from monai.networks.schedulers import DDIMScheduler

    return _steps(DDIMScheduler(), partial(monai_call, unet), x, cluster_ids)


EVEN = {"layers": 1, "factors": (1, 1, 1)}
PEERS = {
    "diffusers": Peer(("diffusers",), diffusers_unet, diffusers_call, diffusers_draw),
    "diffusers, even widths": Peer(("diffusers",), partial(diffusers_unet, **EVEN), diffusers_call, diffusers_draw),
    # its sampler cannot be called without guidance: it unpacks two predictions where there is one
    "denoising-diffusion-pytorch": Peer(("denoising-diffusion-pytorch",), lucidrains_unet, lucidrains_call, None),
    "MONAI": Peer(("monai",), monai_unet, monai_call, monai_draw),
    "MONAI, even widths": Peer(("monai",), partial(monai_unet, **EVEN), monai_call, monai_draw),
}


def closest_width(
    make: Callable[[int], nn.Module], n_parameters: int, widths: Iterable[int] = range(16, 257, 16)
) -> int:
    """The width at which the network's number of parameters is closest to `n_parameters`."""
    with torch.device("meta"):
        return min(widths, key=lambda width: abs(parameters(make(width)) - n_parameters))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def make_unet(name: str, size: Size, device: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A UNet of random weights, and the shape of the latents it is for."""
    networks = make_networks(size, device)
    shape = networks.latent_shape(size)
    if name == OURS:
        return networks.unet, shape
    make = partial(PEERS[name].unet, shape[0])
    width = closest_width(make, parameters(networks.unet))
    with seeded(0, "benchmark peer"):
        return make(width).to(device), shape


def autocast(size: Size, device: str) -> torch.autocast:
    """The precision of the settings for a library's network; those of `pfiles` see to it themselves."""
    return torch.autocast(device, torch.bfloat16, enabled=size.settings.precision == "bf16")


def inputs(shape: tuple[int, int, int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    rng = make_rng("benchmark peers")
    x = torch.randn(BATCH, *shape, generator=rng)
    t = torch.randint(1000, (BATCH,), generator=rng)
    return x.to(device), t.to(device), (torch.arange(BATCH) % N_CLUSTERS).to(device)


def forward(name: str, size: Size, device: str) -> Run:
    """A pass without gradients."""
    unet, shape = make_unet(name, size, device)
    unet.eval()
    x, t, cluster_ids = inputs(shape, device)
    call = (
        pick_speed(size.settings, torch.device(device)).accelerate(unet)
        if name == OURS
        else partial(PEERS[name].call, unet)
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(x, t, cluster_ids)  # the first call compiles, where there is something to compile
    about = {"parameters": parameters(unet), "gflop": counter.get_total_flops() / 1e9}

    def run() -> dict[str, Any]:
        with torch.no_grad(), autocast(size, device):
            return {"seconds": seconds(device, lambda: call(x, t, cluster_ids)), **about}

    return run


def step(name: str, size: Size, device: str) -> Run:
    """A training step."""
    unet, shape = make_unet(name, size, device)
    if name == OURS:
        return own_step(unet.train(), size, device)
    x0, t, cluster_ids = inputs(shape, device)
    optimizer = torch.optim.AdamW(unet.train().parameters(), lr=1e-4)
    scheduler = scheduler_of(size, 1000)

    def one() -> None:
        noise = torch.randn_like(x0)
        with autocast(size, device):
            predicted = PEERS[name].call(unet, scheduler.add_noise(x0, noise, t), t, cluster_ids)
        loss = (predicted.float() - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return lambda: {"seconds": seconds(device, lambda: [one() for _ in range(STEPS)]) / STEPS}


def own_step(unet: UNet, size: Size, device: str) -> Run:
    """That of `learning.diffusion.train_stage`, k-means clusters being the condition."""
    vqvae = make_networks(size, device).vqvae
    with seeded(0, "benchmark codes"):
        side = vqvae.latent_shape(size.settings.image_size_px)[1]
        codes = torch.randint(vqvae.embedding.num_embeddings, (STEPS * BATCH, side, side))
    bank = ClusterBank.make("kmeans", vqvae.z_channels, [N_CLUSTERS])
    stage = StageSettings(epochs=2, optimizer="adamw", learning_rate=1e-4, trains_clusters=False)
    speed = pick_speed(size.settings, torch.device(device))

    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            job = loop.Job("benchmark", 0, BATCH, Path(folder), {}, size.settings.saving, speed, restart=True)
            history = diffusion.train_stage(
                unet=unet, bank=bank, space=LatentSpace(vqvae), images=codes, codes=codes.to(device),
                settings=size.settings.diffusion, stage=stage, job=job,
            )  # fmt: skip
        return {"seconds": history[-1]["seconds"] / STEPS}  # its first epoch is the warm-up

    return run


def images(name: str, size: Size, device: str) -> Run:
    """A batch of latents from noise, without guidance."""
    unet, shape = make_unet(name, size, device)
    unet.eval()
    x, _, cluster_ids = inputs(shape, device)
    if name == OURS:
        speed = pick_speed(size.settings, torch.device(device))
        draw = partial(
            sample, unet, scheduler_of(size, 1000), _no_decoder, cluster_ids, image_seeds(0, range(BATCH)),
            latent_shape=shape, num_steps=SOLVER_STEPS, batch_size=BATCH, sampler="dpm-solver++", speed=speed,
            progress=False,
        )  # fmt: skip
    else:
        draw = partial(PEERS[name].draw, unet, x, cluster_ids)

    def run() -> dict[str, Any]:
        with torch.no_grad(), autocast(size, device):
            return {"seconds": seconds(device, draw)}

    return run


def _no_decoder(z: Tensor) -> Tensor:
    return z[:, :3, :8, :8].sigmoid()


def autoencoder_step(name: str, size: Size, device: str) -> Run:
    """A step of the autoencoder alone: forward, backward and Adam on the squared error and the codebook's losses."""
    x = smooth_tiles(BATCH, size.settings.image_size_px).to(device) / 255
    vqvae = make_networks(size, device).vqvae.requires_grad_(True)
    network = (vqvae if name == OURS else monai_vqvae(parameters(vqvae)).to(device)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=name == OURS or None)
    speed = pick_speed(size.settings, torch.device(device))
    call = speed.accelerate(network) if name == OURS else network
    about = {"parameters": parameters(network)}

    def one() -> None:
        with autocast(size, device):
            reconstruction, *_, quantisation = call(x)
        if name == OURS:
            quantisation = sum(quantisation.values())
        optimizer.zero_grad()
        ((reconstruction.float() - x).square().mean() + quantisation).backward()
        optimizer.step()

    return lambda: {"seconds": seconds(device, one), **about}


def monai_vqvae(n_parameters: int) -> nn.Module:
    """MONAI's VQ-VAE with two halvings, as ours, and the width that brings its parameters closest to so many."""
    from monai.networks.nets import VQVAE

    def make(width: int) -> nn.Module:
        return VQVAE(
            2, 3, 3, channels=(width, width), num_res_layers=2, num_res_channels=(width, width),
            downsample_parameters=((2, 4, 1, 1),) * 2, upsample_parameters=((2, 4, 1, 1, 0),) * 2,
            num_embeddings=1024, embedding_dim=16,
        )  # fmt: skip

    with seeded(0, "benchmark autoencoder"):
        return make(closest_width(make, n_parameters, range(16, 513, 16)))


WORKS = {
    "forward": (forward, (OURS, *PEERS)),
    "step": (step, (OURS, *PEERS)),
    "images": (images, (OURS, *(name for name, peer in PEERS.items() if peer.draw))),
    "autoencoder": (autoencoder_step, (OURS, "MONAI")),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure and return the exit status: 0 all measured, 1 some work failed."""
    args = _parser().parse_args(arguments)
    if args.repetitions < 2:
        raise SystemExit("--repetitions must be at least 2, as an interval needs them.")
    size = make_size(args.size, args.device, args.precision)
    machine = device_name(args.device)
    print(f"{machine}, torch {torch.__version__}, {size.settings.precision}, {args.repetitions} repetitions")
    rows, failed, beside = [], 0, args.beside or [*PEERS]
    for work in args.only or WORKS:
        job, names = WORKS[work]
        sides = {name: partial(job, name) for name in names if name == OURS or name in beside}
        try:
            measured = interleaved(sides, size, args.device, args.repetitions)
        except MeasurementError as error:
            print(f"{work} failed:\n{error}", file=sys.stderr)
            failed = 1
            continue
        ours = [run["seconds"] for run in measured[OURS]["runs"]]
        for name, side in measured.items():
            row = {"work": work, "by": name, **_about(side), **ratio([run["seconds"] for run in side["runs"]], ours)}
            rows.append(row)
            print(_line(row), flush=True)
    packages = {package: version(package) for name in beside for package in PEERS[name].packages}
    about = {"device": machine, "date": date.today().isoformat(), "versions": versions() | packages}
    write_json(args.out, {**about, "precision": size.settings.precision, "size": args.size, "rows": rows})
    print(args.out)
    return failed


def _about(side: dict[str, Any]) -> dict[str, Any]:
    """The repetitions of a side, its memory, and its parameters and operations where they were counted."""
    last = side["runs"][-1]
    counts = {key: last[key] for key in ("parameters", "gflop") if key in last}
    return {**counts, "seconds": [run["seconds"] for run in side["runs"]], "peak_mb": side["peak_mb"]}


def ratio(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """Their time by ours, the mean over repetitions that followed one another, with Student's 95 % interval."""
    return dict(zip(("ratio", "low", "high"), student_interval(np.divide(theirs, ours)), strict=True))


def _line(row: dict[str, Any]) -> str:
    seconds_each = float(np.median(row["seconds"]))
    size = f"{row['parameters'] / 1e6:5.1f} M" if "parameters" in row else " " * 7
    rate = f"{row['gflop'] / seconds_each:5.0f} GFLOP/s" if "gflop" in row else " " * 13
    times = f"{row['ratio']:5.2f} ({row['low']:.2f} to {row['high']:.2f})"
    return f"{row['work']:12}{row['by']:30}{seconds_each:8.3f} s  {size}  {rate}  {row['peak_mb']:7,.0f} MB  {times}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=WORKS, metavar="NAME", help=f"of {', '.join(WORKS)}")
    parser.add_argument("--beside", nargs="+", choices=PEERS, metavar="PEER", help=f"of {'; '.join(PEERS)}")
    parser.add_argument("--size", choices=("paper", "tiny"), default="paper", help="of the networks; default paper")
    parser.add_argument("--repetitions", type=int, default=5, help="that count, after one; default 5")
    parser.add_argument("--device", default=pick_device().type, choices=("cpu", "cuda"), help="default: a GPU if any")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of all; default bf16 on a GPU, else fp32")
    results = ROOT / "benchmarks" / "results"
    parser.add_argument("--out", type=Path, default=results / f"peers-{date.today()}.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
