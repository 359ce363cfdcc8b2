"""What the measured work starts from: sizes, networks before any training, tiles, and the operations they need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import reference
from pfiles import learn
from pfiles.classifier import Classifier
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.machine.runtime import make_rng
from pfiles.run import Run, open_run
from pfiles.settings import Settings, get_settings
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE, make_vqvae

N_CLUSTERS = 14
KS = range(10, 17)  # the numbers of clusters of the paper
SOLVER, SOLVER_STEPS = "dpm-solver++", 20  # the fast sampler, and its steps for an image


@dataclass(frozen=True)
class Size:
    """How large the networks are, as changes of preset "paper", and how much of each work is really done."""

    overrides: Mapping[str, Any]
    ceiling: int  # side of the matrices whose product is the ceiling
    calls: int  # UNet calls in a row
    stage_steps: int  # steps of the first training
    tiles: int  # of the data path's 1,000
    ddpm_steps: int  # of the 1,000 when images are drawn
    solver_steps: int  # of the solver's
    single_images: int  # of the 16, drawn one by one
    pairs: int  # of the 1,000
    many: int  # of the 10,000
    many_steps: int  # of the 1,000 when many are drawn
    batch_sizes: tuple[int, ...]  # tried when many are drawn; the last is used for the 10,000

    @cached_property
    def settings(self) -> Settings:
        return get_settings("paper", self.overrides)


TINY = {
    "image_size_px": 64,
    "autoencoder.perceptual": "ms-ssim",
    "autoencoder.vqvae": {"down_channels": [8, 8, 16], "num_heads": 2, "norm_channels": 4, "codebook_size": 32},
    "diffusion.unet": {"down_channels": [16, 16, 16], "t_emb_dim": 16, "num_layers": 1, "num_heads": 2,
                       "norm_channels": 4, "conv_out_channels": 16},
}  # fmt: skip


def make_size(name: str, device: str, precision: str | None = None) -> Size:
    """Size "paper" or "tiny" for a device. precision: the product's, by default bf16 on a GPU and fp32 elsewhere."""
    on_gpu = device.startswith("cuda")
    of_all = {"precision": precision or ("bf16" if on_gpu else "fp32")}
    if name == "tiny":
        return Size(
            TINY | of_all, ceiling=64, calls=1, stage_steps=1, tiles=32, ddpm_steps=2,
            solver_steps=2, single_images=1, pairs=4, many=8, many_steps=2, batch_sizes=(4, 8),
        )  # fmt: skip
    if on_gpu:
        return Size(
            of_all, ceiling=8192, calls=20, stage_steps=50, tiles=1000, ddpm_steps=50,
            solver_steps=SOLVER_STEPS, single_images=1, pairs=1000, many=1000, many_steps=200,
            batch_sizes=(100, 500, 1000),
        )  # fmt: skip
    return Size(
        of_all, ceiling=2048, calls=1, stage_steps=1, tiles=64, ddpm_steps=3,
        solver_steps=5, single_images=2, pairs=100, many=16, many_steps=3, batch_sizes=(1, 4, 16),
    )  # fmt: skip


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, a multiplication and an addition counting as two."""

    convolutions: float
    all: float

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.convolutions + other.convolutions, self.all + other.all)

    def __rmul__(self, times: float) -> "Flops":
        return Flops(times * self.convolutions, times * self.all)


def count_flops(settings: Settings) -> dict[str, Flops]:
    """Of one image: "unet" and "classifier" for a call, "encode" up to the codebook, "decode"."""
    side = settings.image_size_px
    with torch.device("meta"):
        vqvae, unet = make_vqvae(settings.autoencoder), UNet(cls=N_CLUSTERS, **settings.diffusion.unet)
        classifier = Classifier(vqvae.z_channels, N_CLUSTERS)
        zero, latent = torch.zeros(1, dtype=torch.int64), torch.empty(1, *vqvae.latent_shape(side))
        image = torch.empty(1, 3, side, side)
    counts = {}
    for name, call in {
        "unet": lambda: unet(latent, zero, zero),
        "classifier": lambda: classifier(latent),
        "encode": lambda: vqvae.encode_continuous(image),
        "decode": lambda: vqvae.decode(latent),
    }.items():
        with FlopCounterMode(display=False) as counter:
            call()
        by_operation = counter.get_flop_counts()["Global"]
        counts[name] = Flops(by_operation[torch.ops.aten.convolution], counter.get_total_flops())
    return counts


@dataclass(frozen=True)
class Networks:
    vqvae: VQVAE
    unet: UNet
    classifier: Classifier

    def latent_shape(self, size: Size) -> tuple[int, int, int]:
        return self.vqvae.latent_shape(size.settings.image_size_px)


def open_untrained(
    preset: str, overrides: Mapping[str, Any], device: str, n_clusters: int | Sequence[int] = N_CLUSTERS
) -> Run:
    """A run on no tiles, from which nothing is written; its autoencoder is as before any training, and frozen."""
    run = open_run(
        "benchmarks", n_clusters, preset=preset, overrides={**overrides, "diffusion.latent_scaling": False}, seed=0,
        out=Path("benchmarks", "nowhere"), run_toml=False, assets={"device": torch.device(device)},
    )  # fmt: skip
    vqvae = learn.new_autoencoder(run)[0].eval().requires_grad_(False)
    return replace(run, assets={**run.assets, "vqvae": vqvae})


def make_networks(size: Size, device: str) -> Networks:
    """Networks of the size as before any training, the autoencoder frozen, all in eval mode."""
    run = open_untrained("paper", size.overrides, device)
    networks = learn.new_networks(run)
    return Networks(run.vqvae, networks.unet.eval(), networks.bank[0].eval())


def published_networks(size: Size, device: str) -> Networks:
    """The same with the published attention."""
    networks = make_networks(size, device)
    reference.materialise_attention(networks.vqvae, networks.unet)
    return networks


def smooth_tiles(n: int, side: int) -> Tensor:
    """Random tiles (n, 3, side, side) uint8: smooth colours with a little noise."""
    rng = make_rng("benchmark tiles")
    tiles = torch.empty(n, 3, side, side, dtype=torch.uint8)
    for part in tiles.split(256):  # in little memory, as that of the work is measured
        smooth = F.interpolate(torch.rand(len(part), 3, 8, 8, generator=rng), size=side, mode="bicubic")
        noisy = smooth + 0.03 * torch.randn(smooth.shape, generator=rng)
        part.copy_((255 * noisy.clamp(0, 1)).byte())
    return tiles


def scheduler_of(size: Size, num_timesteps: int) -> LinearNoiseScheduler:
    return LinearNoiseScheduler(num_timesteps, size.settings.diffusion.beta_start, size.settings.diffusion.beta_end)
