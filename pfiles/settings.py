"""Every hyper-parameter of a run, by preset."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from pfiles.errors import InputError


@dataclass(frozen=True)
class PolishSettings:
    """The decoder goes on alone on the frozen codes, against a discriminator of its own: fine detail comes back."""

    epochs: int = 0
    batch_size: int = 8
    discriminator: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 5e-4
    adam_betas: tuple[float, float] = (0.5, 0.9)
    perceptual_weight: float = 0.2
    adversarial_weight: float = 0.1


@dataclass(frozen=True)
class AutoencoderSettings:
    """Training of the VQ-GAN, the first of all."""

    vqvae: Mapping[str, Any] = field(default_factory=dict)  # arguments of VQVAE that are not the paper's
    discriminator: Mapping[str, Any] = field(default_factory=dict)  # likewise of Discriminator
    epochs: int = 20  # passes over the training tiles
    batch_size: int = 16  # tiles per step
    learning_rate: float = 1e-4  # of Adam, for autoencoder and discriminator
    adam_betas: tuple[float, float] = (0.5, 0.999)  # decay of Adam's two moments
    perceptual: str = "lpips"  # or "ms-ssim", which needs no download
    perceptual_weight: float = 1.0
    codebook_weight: float = 1.0
    commitment_weight: float = 0.2
    adversarial_weight: float = 0.5  # of the generator's and of the discriminator's loss
    discriminator_start_step: int = 1000  # adversarial terms begin after so many steps
    lpips_in_unit_range: bool = True  # published: LPIPS gets [0, 1] in training though it is made for [-1, 1]
    generator_gradient_leaks: bool = True  # published: the generator's gradient stays in the discriminator's step
    upsampling: str = "transposed"
    reconstruction: str = "mse"
    dihedral_views: bool = False
    warmup_steps: int = 0
    decay: str = "constant"
    clip_norm: float | None = None
    polish: PolishSettings = PolishSettings()
    revive_dead_codes: bool = False  # give codes that an epoch did not use a new place among the encodings


@dataclass(frozen=True)
class DiffusionSettings:
    """What the three trainings of the conditional UNet share."""

    unet: Mapping[str, Any] = field(default_factory=dict)  # arguments of UNet that are not the paper's
    batch_size: int = 16  # tiles per step; information maximisation wants at least as many as clusters
    num_timesteps: int = 1000  # T
    beta_start: float = 1e-4  # variance of the first step
    beta_end: float = 0.02  # variance of the last step
    marginal_entropy_weight: float = 0.1  # l_me
    conditional_entropy_weight: float = 0.06  # l_ce
    affine_fill: tuple[int, int, int] | None = (130, 97, 154)  # RGB outside a moved tile; None: mean training colour
    dihedral_views: bool = False  # turn and mirror the view a tile must agree with, so that no cluster is a direction
    prediction: str = "noise"
    latent_scaling: bool = False
    latent_views: bool = False
    min_snr_gamma: float | None = None  # weight min(SNR, gamma) / SNR of each tile's noise error; None: 1
    condition_dropout: float = 0.0  # share of tiles that train without their cluster; guidance needs some


@dataclass(frozen=True)
class StageSettings:
    """One of the three trainings of the conditional UNet."""

    epochs: int  # passes over the training tiles
    optimizer: str  # "adadelta" (published for the first and third stage), "adam" or "adamw"
    learning_rate: float
    trains_clusters: bool  # whether a classifier learns beside the UNet; k-means never does
    affine_weight: float = 0.0  # l_af, of the agreement between a tile and its affine view
    warmup_steps: int = 0  # steps over which the learning rate grows from 0
    decay: str = "constant"
    clip_norm: float | None = None
    ema_decay: float = 0.0  # of the moving average of the UNet's weights that becomes the result; 0: the last weights


@dataclass(frozen=True)
class SamplingSettings:
    """Drawing images."""

    steps: int = 1000  # denoising steps per image; fewer than num_timesteps skips evenly
    sampler: str = "ddpm"  # or "ddim", or, with diffusers installed, "dpm-solver++" or "unipc", made for 10 to 50 steps
    guidance: float = 1.0  # w: noise predicted without cluster + w * (with - without); needs condition_dropout
    batch_size: int = 100  # images at once; changes memory and speed only
    num_generated: int | None = None  # images of part 6; None: one per training tile
    per_cluster: int = 100  # images of part 9 for each cluster


@dataclass(frozen=True)
class SavingSettings:
    """How often a training leaves a resume point: whichever comes first, and always at its end and when stopped."""

    every_minutes: float = 5.0
    every_epochs: int | None = None  # None: by time alone


@dataclass(frozen=True)
class Settings:
    """All of a run. The defaults are the published ones (preset "paper"), quirks included."""

    image_size_px: int = 128  # side of the tiles the networks see; a multiple of 16
    max_train_tiles: int | None = None  # training tiles used, evenly spaced; None: all
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    diffusion: DiffusionSettings = DiffusionSettings()
    clusters_first: bool = False
    clusters: StageSettings = StageSettings(60, "adam", 1e-3, trains_clusters=True, affine_weight=0.04)
    training: StageSettings = StageSettings(600, "adadelta", 0.003, trains_clusters=True, affine_weight=0.04)
    finetuning1: StageSettings = StageSettings(130, "adam", 1e-4, trains_clusters=False)
    finetuning2: StageSettings = StageSettings(70, "adadelta", 0.003, trains_clusters=True, affine_weight=0.05)
    sampling: SamplingSettings = SamplingSettings()
    saving: SavingSettings = SavingSettings()
    precision: str = "fp32"  # or "bf16": faster where there is hardware for it; numbers change in the third digit
    speed: str = "auto"  # what makes this machine fast and changes no more than the last digits; "off": plain PyTorch
    lpips_required: bool = True  # whether part 12 stops where LPIPS has no weights, or records it as unavailable


PRESETS: dict[str, Settings] = {
    # exactly what was published
    "paper": Settings(),
    # the same system as one would train it today: the published defects mended, better optimiser, averaged weights,
    # clusters that do not depend on the direction a tile lies in, and a solver of few steps
    "recommended": Settings(
        precision="bf16",
        autoencoder=AutoencoderSettings(
            lpips_in_unit_range=False, generator_gradient_leaks=False, revive_dead_codes=True
        ),
        diffusion=DiffusionSettings(affine_fill=None, dihedral_views=True, min_snr_gamma=5.0, condition_dropout=0.1),
        training=StageSettings(
            600, "adamw", 1e-4, trains_clusters=True, affine_weight=0.04, warmup_steps=1000, ema_decay=0.9999
        ),
        finetuning1=StageSettings(130, "adamw", 1e-4, trains_clusters=False, warmup_steps=1000, ema_decay=0.9999),
        finetuning2=StageSettings(
            70, "adamw", 5e-5, trains_clusters=True, affine_weight=0.05, warmup_steps=1000, ema_decay=0.9999
        ),
        sampling=SamplingSettings(steps=25, sampler="dpm-solver++"),
    ),
    # small networks and tiles: a few minutes on two CPU cores, every stage really trains
    "demo": Settings(
        image_size_px=64,
        max_train_tiles=1000,
        autoencoder=AutoencoderSettings(
            vqvae={"down_channels": (16, 32, 64), "num_heads": 4, "norm_channels": 8},
            discriminator={"conv_channels": (16, 32, 64)},
            epochs=10,
            batch_size=8,
            learning_rate=1e-3,
            adam_betas=(0.9, 0.99),
            perceptual="ms-ssim",
            perceptual_weight=0.2,
            adversarial_weight=0.05,
            discriminator_start_step=400,
            revive_dead_codes=True,
        ),
        diffusion=DiffusionSettings(
            unet={
                "down_channels": (64, 64, 64),
                "t_emb_dim": 64,
                "num_layers": 1,
                "num_heads": 4,
                "norm_channels": 8,
                "conv_out_channels": 64,
            },
            beta_end=0.012,
            affine_fill=None,
        ),
        training=StageSettings(22, "adam", 1e-3, trains_clusters=True, affine_weight=0.04),
        finetuning1=StageSettings(18, "adam", 4e-4, trains_clusters=False),
        finetuning2=StageSettings(8, "adam", 1e-4, trains_clusters=True, affine_weight=0.05),
        sampling=SamplingSettings(steps=50, num_generated=200, per_cluster=10),
        lpips_required=False,
    ),
}


def get_settings(preset: str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings of `preset`, with some fields changed.

    overrides: new values by field, such as {"image_size_px": 64, "training.epochs": 2}.
    Raises InputError for an unknown preset or field, or a value that cannot be.
    """
    if not isinstance(preset, str) or preset not in PRESETS:
        raise InputError(f"Unknown preset {preset!r}: choose one of {', '.join(PRESETS)}.")
    settings = PRESETS[preset]
    if not isinstance(overrides, Mapping | None):
        raise InputError(f'overrides must be values by name, such as {{"training.epochs": 2}}, but is {overrides!r}.')
    for name, value in (overrides or {}).items():
        settings = _replace(settings, str(name).split("."), value)
    _check(settings)
    return settings


def _replace(group: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    known = {f.name for f in fields(group)}
    if name not in known:
        raise InputError(f"Unknown setting {name!r}: {type(group).__name__} has {', '.join(sorted(known))}.")
    current = getattr(group, name)
    if is_dataclass(current) != bool(rest):
        what = "a group of settings" if is_dataclass(current) else "a single setting"
        raise InputError(f"{name} is {what}: write a name such as training.epochs or image_size_px.")
    if rest:
        return replace(group, **{name: _replace(current, rest, value)})
    if isinstance(value, list):  # JSON has no tuples
        value = tuple(value)
    kind = get_type_hints(type(group))[name]
    if not _fits(value, kind):
        raise InputError(f"{name} must be {_in_words(kind)}, such as {current!r}, but is {value!r}.")
    return replace(group, **{name: value})


def _fits(value: Any, kind: Any) -> bool:
    """Whether `value` can stand in a field declared as `kind`; whole numbers pass for float, true and false do not."""
    parts = get_args(kind)
    if get_origin(kind) is UnionType:
        return any(_fits(value, part) for part in parts)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if get_origin(kind) is Mapping:
        return isinstance(value, Mapping)
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max  # False for NaN
    return type(value) is kind


def _in_words(kind: Any) -> str:
    if get_origin(kind) is UnionType:
        return " or ".join(map(_in_words, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} numbers"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return words.get(kind, "arguments by name")


def _check(settings: Settings) -> None:
    counts = {
        "image_size_px": settings.image_size_px,
        "autoencoder.batch_size": settings.autoencoder.batch_size,
        "diffusion.batch_size": settings.diffusion.batch_size,
        "diffusion.num_timesteps": settings.diffusion.num_timesteps,
        "autoencoder.epochs": settings.autoencoder.epochs,
        "training.epochs": settings.training.epochs,
        "finetuning1.epochs": settings.finetuning1.epochs,
        "finetuning2.epochs": settings.finetuning2.epochs,
        "sampling.steps": settings.sampling.steps,
        "sampling.batch_size": settings.sampling.batch_size,
        "sampling.per_cluster": settings.sampling.per_cluster,
    }
    optional = {
        "max_train_tiles": settings.max_train_tiles,
        "sampling.num_generated": settings.sampling.num_generated,
        "saving.every_epochs": settings.saving.every_epochs,
    }
    counts |= {name: value for name, value in optional.items() if value is not None}
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, but is {value!r}.")
        most = 10**6 if name == "diffusion.num_timesteps" else 10**9
        if value > most:
            raise InputError(f"{name} must be at most {most}, but is {value!r}.")
    networks = {
        "autoencoder.vqvae": settings.autoencoder.vqvae,
        "autoencoder.discriminator": settings.autoencoder.discriminator,
        "diffusion.unet": settings.diffusion.unet,
    }
    for name, arguments in networks.items():
        for argument, value in arguments.items():
            sizes = value if isinstance(value, list | tuple) else [value]
            if not sizes or not all(type(size) is int and size > 0 for size in sizes):
                raise InputError(
                    f"{name} takes sizes, whole numbers from 1 on or lists of them, but {argument} is {value!r}."
                )
    _check_ranges(settings)
    if settings.image_size_px % 16 or settings.image_size_px < 48:
        raise InputError(f"image_size_px must be a multiple of 16 from 48 on, but is {settings.image_size_px}.")
    if settings.sampling.steps > settings.diffusion.num_timesteps:
        raise InputError(
            f"sampling.steps must not exceed diffusion.num_timesteps, {settings.diffusion.num_timesteps}, "
            f"but is {settings.sampling.steps}."
        )
    if settings.sampling.guidance != 1 and not settings.diffusion.condition_dropout:
        raise InputError("sampling.guidance needs a UNet trained with diffusion.condition_dropout, such as 0.1.")
    choices = {
        "precision": (settings.precision, ("fp32", "bf16")),
        "speed": (settings.speed, ("auto", "off")),
        "sampling.sampler": (settings.sampling.sampler, ("ddpm", "ddim", "dpm-solver++", "unipc")),
        "autoencoder.perceptual": (settings.autoencoder.perceptual, ("lpips", "ms-ssim")),
        **{
            f"{name}.optimizer": (getattr(settings, name).optimizer, ("adadelta", "adam", "adamw"))
            for name in ("training", "finetuning1", "finetuning2")
        },
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise InputError(f"{name} must be {' or '.join(map(repr, allowed))}, but is {value!r}.")


def _check_ranges(settings: Settings) -> None:
    autoencoder, diffusion = settings.autoencoder, settings.diffusion
    stages = {name: getattr(settings, name) for name in ("training", "finetuning1", "finetuning2")}
    positive = {"autoencoder.learning_rate": autoencoder.learning_rate, "diffusion.beta_start": diffusion.beta_start}
    positive |= {f"{name}.learning_rate": stage.learning_rate for name, stage in stages.items()}
    if diffusion.min_snr_gamma is not None:
        positive["diffusion.min_snr_gamma"] = diffusion.min_snr_gamma
    not_negative = {
        "autoencoder.discriminator_start_step": autoencoder.discriminator_start_step,
        "saving.every_minutes": settings.saving.every_minutes,
        "sampling.guidance": settings.sampling.guidance,
        **{f"{name}.warmup_steps": stage.warmup_steps for name, stage in stages.items()},
        **{
            f"{group}.{field.name}": getattr(values, field.name)
            for group, values in (("autoencoder", autoencoder), ("diffusion", diffusion), *stages.items())
            for field in fields(values)
            if field.name.endswith("_weight")
        },
    }
    below_one = {
        "diffusion.condition_dropout": diffusion.condition_dropout,
        "diffusion.beta_end": diffusion.beta_end,
        **{f"autoencoder.adam_betas[{i}]": beta for i, beta in enumerate(autoencoder.adam_betas)},
        **{f"{name}.ema_decay": stage.ema_decay for name, stage in stages.items()},
    }
    for name, value in positive.items():
        if not value > 0:
            raise InputError(f"{name} must be above 0, but is {value!r}.")
    for name, value in not_negative.items():
        if value < 0:
            raise InputError(f"{name} must be at least 0, but is {value!r}.")
    for name, value in below_one.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} must be at least 0 and below 1, but is {value!r}.")
    if diffusion.beta_start > diffusion.beta_end:
        raise InputError(
            f"diffusion.beta_start, {diffusion.beta_start}, must not exceed beta_end, {diffusion.beta_end}."
        )
    if diffusion.affine_fill is not None and not all(0 <= level <= 255 for level in diffusion.affine_fill):
        raise InputError(f"diffusion.affine_fill must be three levels of 0 ... 255, but is {diffusion.affine_fill!r}.")
