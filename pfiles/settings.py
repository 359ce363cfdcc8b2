"""Every hyper-parameter of a run, by preset; each field holds its limits."""

from collections.abc import Mapping
from dataclasses import asdict, field, fields, is_dataclass, replace
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from pfiles.drawing.samplers import SOLVERS
from pfiles.errors import InputError

if TYPE_CHECKING:
    Sampler = str
else:  # the names of the samplers stand beside them
    Sampler = Literal[tuple(SOLVERS)]

CHECKED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # strict: neither true nor "1" is a number
# Kinds of settings. In the error for a wrong value, the title names the type and the description the range.
WHOLE = {"title": "a whole number", "description": "a whole number of at least {ge}"}
Count = Annotated[int, Field(ge=1, le=10**9, **WHOLE)]
Passes = Annotated[int, Field(ge=0, le=10**9, **WHOLE)]
Steps = Annotated[int, Field(ge=0, **WHOLE)]
Timesteps = Annotated[int, Field(ge=1, le=10**6, **WHOLE)]
Pixels = Annotated[
    Count, Field(ge=48, multiple_of=16, title="a whole number", description="a multiple of {multiple_of} from {ge} on")
]
Weight = Annotated[float, Field(ge=0, title="a number", description="at least {ge}")]
Positive = Annotated[float, Field(gt=0, title="a number", description="above {gt}")]
Share = Annotated[float, Field(ge=0, lt=1, title="a number", description="at least {ge} and below {lt}")]
Part = Annotated[float, Field(gt=0, le=1, title="a number", description="above {gt} and at most {le}")]
Betas = Annotated[
    tuple[Share, Share], Field(title="2 numbers", description="two numbers of at least {ge} and below {lt}")
]
Level = Annotated[int, Field(ge=0, le=255)]
Colour = Annotated[tuple[Level, Level, Level], Field(title="3 numbers", description="three levels of {ge} ... {le}")]
Size = Annotated[int, Field(ge=1)]
Sizes = Annotated[list[Size] | tuple[Size, ...], Field(min_length=1)]
Arguments = Annotated[
    Mapping[str, Size | Sizes],
    Field(title="arguments by name", description="a whole number from {ge} on or a list of them"),
]
Decay = Literal["constant", "cosine"]


@dataclass(frozen=True, config=CHECKED)
class PolishSettings:
    """The decoder goes on alone on the frozen codes, against a discriminator of its own, to bring fine detail back.

    Codes, UNet and clusters stay valid.
    """

    epochs: Passes = 0  # passes over the training tiles; 0: no polish
    batch_size: Count = 8  # tiles per step
    # what the discriminator sees: the pixels, or the features of a network that learnt from photographs
    discriminator_sees: Literal["pixels", "photographs"] = "pixels"
    discriminator: Arguments = field(default_factory=dict)  # arguments of it that are not its defaults
    learning_rate: Positive = 5e-4  # of Adam at the start, for decoder and discriminator; falls to 0 along a cosine
    adam_betas: Betas = (0.5, 0.9)  # decay of Adam's two moments
    perceptual_weight: Weight = 0.2
    adversarial_weight: Weight = 0.1  # of the decoder's loss against the discriminator
    # share of the polished weights in the decoder's, the rest being those before: less texture, and fewer artefacts
    blend: Part = 1.0


@dataclass(frozen=True, config=CHECKED)
class AutoencoderSettings:
    """Training of the VQ-GAN, the first of all."""

    vqvae: Arguments = field(default_factory=dict)  # arguments of VQVAE that are not the paper's
    discriminator: Arguments = field(default_factory=dict)  # likewise of Discriminator
    # how the decoder doubles its resolution: transposed convolutions (published), or nearest-neighbour enlargement and
    # a convolution, whose kernel does not overlap itself
    upsampling: Literal["transposed", "resize"] = "transposed"
    epochs: Passes = 20  # passes over the training tiles; 0: keep the autoencoder of start_from but for the polish
    batch_size: Count = 16  # tiles per step
    learning_rate: Positive = 1e-4  # of Adam, for autoencoder and discriminator
    warmup_steps: Steps = 0  # steps over which the learning rate grows from 0
    decay: Decay = "constant"  # of the learning rate after them; cosine: to 0 at the end
    clip_norm: Positive | None = None  # largest norm of a step's gradient; None: no limit
    adam_betas: Betas = (0.5, 0.999)  # decay of Adam's two moments
    dihedral_views: bool = False  # show each tile in a random one of its eight views, turned and mirrored
    reconstruction: Literal["mse", "l1"] = "mse"  # mean squared (published) or absolute error of the pixels
    # lpips downloads the weights of VGG16; photographs needs a package that holds those of EfficientNet-Lite0
    perceptual: Literal["lpips", "ms-ssim", "photographs"] = "lpips"
    perceptual_weight: Weight = 1.0
    codebook_weight: Weight = 1.0
    commitment_weight: Weight = 0.2
    # two terms that make latents smooth, so that a UNet learns the arrangement of the tissue sooner; 0: as published
    colour_weight: Weight = 0.0  # of what a linear map of the latents does not tell of the colour of their place
    equivariance_weight: Weight = 0.0  # of the error of what is decoded from latents at half their resolution
    adversarial_weight: Weight = 0.5  # of the adversarial loss and of the discriminator's
    discriminator_start_step: Steps = 1000  # adversarial terms begin after so many steps
    lpips_in_unit_range: bool = True  # published: LPIPS gets [0, 1] in training though it is made for [-1, 1]
    generator_gradient_leaks: bool = True  # published: the adversarial gradient stays in the discriminator's step
    revive_dead_codes: bool = False  # give codes that an epoch did not use a new place among the encodings
    polish: PolishSettings = PolishSettings()


@dataclass(frozen=True, config=CHECKED)
class DiffusionSettings:
    """What the three trainings of the conditional UNet share."""

    unet: Arguments = field(default_factory=dict)  # arguments of UNet that are not the paper's
    batch_size: Count = 16  # tiles per step; information maximisation wants at least as many as clusters
    num_timesteps: Timesteps = 1000  # T
    beta_start: Positive = 1e-4  # variance of the first step
    beta_end: Share = 0.02  # variance of the last step
    # what the UNet predicts: the noise (published), or v = alpha * noise - sigma * z (Salimans & Ho 2022)
    prediction: Literal["noise", "v"] = "noise"
    latent_scaling: bool = False  # latents of zero mean and unit variance over the training tiles
    # how noisy the latents are that the UNet learns from: all times alike (published), or sigma / alpha log-normal
    times: Literal["uniform", "log-normal"] = "uniform"
    # whether one deviation scales all channels, which keeps their proportions, or each channel its own
    shared_scale: bool = False
    latent_views: bool = False  # a tile's latents in a random one of its eight views, all encoded once
    marginal_entropy_weight: Weight = 0.1  # l_me
    conditional_entropy_weight: Weight = 0.06  # l_ce
    affine_fill: Colour | None = (130, 97, 154)  # RGB outside a moved tile; None: mean training colour
    dihedral_views: bool = False  # turn and mirror the view a tile must agree with, so that no cluster is a direction
    condition_dropout: Share = 0.0  # share of tiles that train without their cluster; guidance needs some


@dataclass(frozen=True, config=CHECKED)
class StageSettings:
    """One of the trainings of the conditional UNet, or that of the clusters alone."""

    epochs: Count  # passes over the training tiles
    optimizer: Literal["adadelta", "adam", "adamw"]  # adadelta: published for the first and third stage
    learning_rate: Positive
    trains_clusters: bool  # whether a classifier learns beside the UNet; k-means never does
    affine_weight: Weight = 0.0  # l_af, of the agreement between a tile and its affine view
    warmup_steps: Steps = 0  # steps over which the learning rate grows from 0
    decay: Decay = "constant"  # of the learning rate after them; cosine: to 0 at the end
    clip_norm: Positive | None = None  # largest norm of a step's gradient; None: no limit
    ema_decay: Share = 0.0  # of the moving average of the UNet's weights that becomes the result; 0: the last weights


@dataclass(frozen=True, config=CHECKED)
class SamplingSettings:
    """How images are drawn."""

    steps: Count = 1000  # denoising steps per image; fewer than num_timesteps skips evenly
    sampler: Sampler = "ddpm"  # dpm-solver++ is made for 10 to 50 steps
    guidance: Weight = 1.0  # w: noise predicted without cluster + w * (with - without); needs condition_dropout
    # which UNet's prediction without cluster guidance leads away from: its own, or its own after the first training
    guide: Literal["itself", "training"] = "itself"
    accept: Part = 1.0  # of part 6: the share of drawn images that pass; the others are drawn anew
    batch_size: Count = 100  # images at once: memory and speed, and single values by one level of 255
    num_generated: Count | None = None  # images of part 6; None: one per training tile
    per_cluster: Count = 100  # images of part 9 for each cluster


CLASSIFIED_PLACES = 8  # latents along a side, which a classifier of clusters, or a judge of tiles, halves three times
DRAWING = ("steps", "sampler", "guidance", "guide")  # of SamplingSettings: those on which an image's pixels depend


def drawing_settings(sampling: SamplingSettings) -> dict[str, Any]:
    """The settings in DRAWING by name; `guide` only where it is not the UNet itself, as versions before had none."""
    values = {name: getattr(sampling, name) for name in DRAWING}
    if sampling.guide == "itself":
        del values["guide"]
    return values


@dataclass(frozen=True, config=CHECKED)
class SavingSettings:
    """How often a training leaves a resume point: whichever comes first, and always at its end and when stopped."""

    every_minutes: Weight = 5.0
    every_epochs: Count | None = None  # None: by time alone


@dataclass(frozen=True, config=CHECKED)
class Settings:
    """All settings of a run. The defaults are the published ones (preset "paper"), quirks included."""

    image_size_px: Pixels = 128  # side of the tiles the networks see
    max_train_tiles: Count | None = None  # training tiles used, evenly spaced; None: all
    icc: bool = False  # bring the files of tiles to sRGB from their colour profiles (ICC)
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    diffusion: DiffusionSettings = DiffusionSettings()
    # autoencoder and UNet begin from the weights of a generator's folder, of an earlier run's, or of "starter"
    start_from: str | None = None
    clusters_first: bool = False  # learn the clusters before the UNet and keep them, so that its condition cannot drift
    clusters: StageSettings = StageSettings(60, "adam", 1e-3, trains_clusters=True, affine_weight=0.04)  # that training
    training: StageSettings = StageSettings(600, "adadelta", 0.003, trains_clusters=True, affine_weight=0.04)
    finetuning1: StageSettings = StageSettings(130, "adam", 1e-4, trains_clusters=False)
    finetuning2: StageSettings = StageSettings(70, "adadelta", 0.003, trains_clusters=True, affine_weight=0.05)
    sampling: SamplingSettings = SamplingSettings()
    saving: SavingSettings = SavingSettings()
    # bf16: faster where there is hardware for it; numbers change in the third digit. auto: where a measurement says so
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    # auto: what makes this machine fast and changes no more than the last digits; off: plain PyTorch
    speed: Literal["auto", "off"] = "auto"
    lpips_required: bool = True  # whether part 12 stops where LPIPS has no weights, or records it as unavailable


SMALL = {"num_heads": 4, "norm_channels": 8}  # of networks whose widths are small
PRESETS: dict[str, Settings] = {
    # exactly what was published
    "paper": Settings(),
    # the same system as one would train it today: the published defects mended, a coarser space of smoother latents
    # that is learnt and polished against features of photographs, v-prediction on latents of unit variance, clusters
    # learnt first and independent of direction, AdamW with warm-up and cosine, guidance away from the UNet after its
    # short first training, and a solver of few steps
    "recommended": Settings(
        precision="auto",
        autoencoder=AutoencoderSettings(
            vqvae={"down_channels": (32, 64, 128, 256), "z_channels": 8, "codebook_size": 2048},
            upsampling="resize",
            warmup_steps=500,
            decay="cosine",
            clip_norm=1.0,
            dihedral_views=True,
            reconstruction="l1",
            perceptual="photographs",
            perceptual_weight=0.2,
            colour_weight=0.1,
            adversarial_weight=0.0,
            discriminator_start_step=10**9,
            lpips_in_unit_range=False,
            generator_gradient_leaks=False,
            revive_dead_codes=True,
            polish=PolishSettings(epochs=8, discriminator_sees="photographs", batch_size=16),
        ),
        diffusion=DiffusionSettings(
            prediction="v",
            latent_scaling=True,
            shared_scale=True,
            times="log-normal",
            affine_fill=None,
            dihedral_views=True,
            condition_dropout=0.1,
        ),
        clusters_first=True,
        clusters=StageSettings(60, "adam", 1e-3, trains_clusters=True, affine_weight=0.05, decay="cosine"),
        training=StageSettings(80, "adamw", 2e-4, trains_clusters=False, warmup_steps=1000),
        finetuning1=StageSettings(650, "adamw", 2e-4, trains_clusters=False, decay="cosine", warmup_steps=100),
        finetuning2=StageSettings(70, "adamw", 5e-5, trains_clusters=False, decay="cosine", warmup_steps=100),
        sampling=SamplingSettings(steps=25, sampler="dpm-solver++", guidance=1.5, guide="training"),
    ),
    # the same at small size: tiles of 64 px, small networks, a few minutes on two CPU cores, every stage really trains
    "demo": Settings(
        image_size_px=64,
        max_train_tiles=1000,
        autoencoder=AutoencoderSettings(
            vqvae={"down_channels": (16, 32, 64, 96), "z_channels": 8, "codebook_size": 512, **SMALL},
            discriminator={"conv_channels": (16, 32, 64)},
            upsampling="resize",
            epochs=6,
            batch_size=8,
            learning_rate=2e-3,
            warmup_steps=50,
            decay="cosine",
            clip_norm=1.0,
            adam_betas=(0.9, 0.99),
            dihedral_views=True,
            reconstruction="l1",
            perceptual="photographs",
            perceptual_weight=0.2,
            colour_weight=0.1,
            adversarial_weight=0.0,
            discriminator_start_step=10**9,
            revive_dead_codes=True,
            polish=PolishSettings(epochs=4, discriminator_sees="photographs", discriminator={"channels": 32}),
        ),
        diffusion=DiffusionSettings(
            unet={"down_channels": (64, 96, 128), "t_emb_dim": 64, "num_layers": 1, "conv_out_channels": 64, **SMALL},
            batch_size=32,
            prediction="v",
            latent_scaling=True,
            shared_scale=True,
            times="log-normal",
            affine_fill=None,
            dihedral_views=True,
            condition_dropout=0.1,
        ),
        clusters_first=True,
        clusters=StageSettings(12, "adam", 1e-3, trains_clusters=True, affine_weight=0.05, decay="cosine"),
        training=StageSettings(10, "adamw", 2e-3, trains_clusters=False, warmup_steps=100),
        finetuning1=StageSettings(40, "adamw", 2e-3, trains_clusters=False, decay="cosine", warmup_steps=20),
        finetuning2=StageSettings(5, "adamw", 5e-4, trains_clusters=False, decay="cosine", warmup_steps=20),
        sampling=SamplingSettings(
            steps=12, sampler="dpm-solver++", guidance=1.5, guide="training", num_generated=200, per_cluster=20
        ),
        lpips_required=False,
    ),
}


# Settings that an earlier version had, and the value that left them out: it is read as before, another one refused.
REMOVED = {"diffusion.min_snr_gamma": None}
CLUSTERING = {"paper": "classifier", "recommended": "kmeans", "demo": "kmeans"}  # of presets, unless one is asked for


def clustering_of(preset: str) -> str:
    """How a preset finds clusters, "classifier" or "kmeans"; InputError for an unknown preset."""
    _require_preset(preset)
    return CLUSTERING[preset]


def _require_preset(preset: str) -> None:
    if not isinstance(preset, str) or preset not in PRESETS:
        raise InputError(f"Unknown preset {preset!r}: choose one of {', '.join(PRESETS)}.")


def get_settings(preset: str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings of `preset`, with some fields changed.

    overrides: new values by field, such as {"image_size_px": 64, "training.epochs": 2}.
    Raises InputError for an unknown preset or field, or a value that cannot be.
    """
    _require_preset(preset)
    settings = PRESETS[preset]
    if not isinstance(overrides, Mapping | None):
        raise InputError(f'overrides must be values by name, such as {{"training.epochs": 2}}, but is {overrides!r}.')
    for name, value in (overrides or {}).items():
        if name not in REMOVED:
            settings = _replace(settings, str(name), value)
        elif value != REMOVED[name]:
            raise InputError(f"{name} is no setting any more: leave it out, or take version 1.0.")
    if (steps := settings.sampling.steps) > (most := settings.diffusion.num_timesteps):
        raise InputError(f"sampling.steps must not exceed diffusion.num_timesteps, {most}, but is {steps}.")
    if settings.sampling.guidance != 1 and not settings.diffusion.condition_dropout:
        raise InputError("sampling.guidance needs a UNet trained with diffusion.condition_dropout, such as 0.1.")
    if not settings.autoencoder.epochs and not (settings.start_from and settings.autoencoder.polish.epochs):
        missing = "set both start_from and autoencoder.polish.epochs"
        raise InputError(f"autoencoder.epochs = 0 keeps the autoencoder that start_from names: {missing}.")
    _require_side_that_halves(settings)
    if (first := settings.diffusion.beta_start) > (last := settings.diffusion.beta_end):
        raise InputError(f"diffusion.beta_start, {first}, must not exceed beta_end, {last}.")
    return settings


def _require_side_that_halves(settings: Settings) -> None:
    """InputError unless the UNet can fold and halve the latents of the tiles without a remainder, and a classifier can
    halve them three times."""
    vqvae: Mapping[str, Any] = settings.autoencoder.vqvae
    unet: Mapping[str, Any] = settings.diffusion.unet
    of_unet, of_vqvae = unet.get("down_channels", (128, 256, 256, 256)), vqvae.get("down_channels", (32, 64, 128))
    fold, enlarge = unet.get("fold", 1), vqvae.get("enlarge", 1)
    if any(isinstance(widths, int) for widths in (of_unet, of_vqvae)) or not all(
        isinstance(number, int) for number in (fold, enlarge)
    ):
        return  # the networks refuse these themselves
    if enlarge.bit_count() != 1:
        raise InputError(f"autoencoder.vqvae.enlarge must be a power of two, such as 1 or 2, but is {enlarge}.")
    factor = fold * enlarge * 2 ** max(len(of_unet) - 2 + len(of_vqvae) - 1, 0)
    if settings.image_size_px % factor:
        raise InputError(
            f"image_size_px must be a multiple of {factor} px, as autoencoder and UNet halve and fold the tiles so "
            f"often, but is {settings.image_size_px}."
        )
    halvings = len(of_vqvae) - 1 + enlarge.bit_length() - 1
    least = CLASSIFIED_PLACES * 2**halvings
    if settings.image_size_px < least:
        raise InputError(
            f"image_size_px must be at least {least} px, as the autoencoder halves the tiles {halvings} times "
            f"and a classifier of clusters needs {CLASSIFIED_PLACES} latents a side, but is {settings.image_size_px}."
        )


def _replace(group: Any, path: str, value: Any, at: str = "") -> Any:
    """`group` with `value` at the dotted `path`; `at` leads to the group, for the error."""
    name, dot, inner_path = path.partition(".")
    if name not in (values := {f.name: getattr(group, f.name) for f in fields(group)}):
        raise InputError(
            f"Unknown setting {name!r}: {type(group).__name__} has {', '.join(values)}, not {at + path!r}."
        )
    if is_dataclass(values[name]) != bool(dot):
        subject = f"{at}{name} is a {'single setting' if dot else 'group of settings'}"
        raise InputError(f"{subject}: write a name such as training.epochs or image_size_px.")
    new = _replace(values[name], inner_path, value, f"{at}{name}.") if dot else value
    try:
        return replace(group, **{name: tuple(new) if isinstance(new, list) else new})  # JSON has no tuples
    except ValidationError as error:
        raise InputError(_sentence(group, name, value, at, error.errors()[0])) from None


def _sentence(group: Any, name: str, value: Any, at: str, wrong: Mapping[str, Any]) -> str:
    """What `name` must be and is not, by the first error that pydantic found."""
    kind, context, where = get_type_hints(type(group), include_extras=True)[name], wrong.get("ctx", {}), wrong["loc"]
    declared = [Field(title="true or false", description=""), *_declared(kind)]
    limits = {limit: most for part in declared for entry in part.metadata for limit, most in asdict(entry).items()}
    expected = ("at most {le}" if "le" in context and len(where) == 1 else declared[-1].description).format(**limits)
    if wrong["type"] == "literal_error":
        expected = context["expected"].replace(", ", " or ")
    elif len(where) > 2 and where[-1] != "[key]":  # one argument of a network
        name, value = f"{name}.{where[1]}", value[where[1]]
    elif not limits.keys() & context.keys():
        expected = f"{declared[-1].title}{' or null' * (NoneType in get_args(kind))}, such as {getattr(group, name)!r}"
    return f"{at}{name} must be {expected}, but is {value!r}."


def _declared(kind: Any) -> list[FieldInfo]:
    """All that an annotation and its parts declare, the outermost last."""
    return [kind] if isinstance(kind, FieldInfo) else [info for part in get_args(kind) for info in _declared(part)]
