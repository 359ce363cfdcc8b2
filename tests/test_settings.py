"""Settings: the published numbers, and values that are refused with a reason."""

from dataclasses import FrozenInstanceError, asdict, is_dataclass, replace

import pytest

from pfiles.errors import InputError
from pfiles.settings import PRESETS, SavingSettings, Settings, get_settings


def test_paper_preset_holds_the_published_numbers():
    s = PRESETS["paper"]
    assert (s.image_size_px, s.max_train_tiles) == (128, None)
    a = s.autoencoder
    assert a.batch_size == s.diffusion.batch_size == 16
    assert (a.epochs, a.learning_rate, a.adam_betas, a.perceptual) == (20, 1e-4, (0.5, 0.999), "lpips")
    weights = (a.perceptual_weight, a.codebook_weight, a.commitment_weight, a.adversarial_weight)
    assert weights == (1, 1, 0.2, 0.5)
    assert (a.discriminator_start_step, a.lpips_in_unit_range, a.generator_gradient_leaks) == (1000, True, True)
    assert not a.revive_dead_codes
    d = s.diffusion
    assert (d.num_timesteps, d.beta_start, d.beta_end) == (1000, 1e-4, 0.02)
    assert (d.marginal_entropy_weight, d.conditional_entropy_weight, d.affine_fill) == (0.1, 0.06, (130, 97, 154))
    for stage, expected in (
        (s.training, (600, "adadelta", 0.003, True, 0.04)),
        (s.finetuning1, (130, "adam", 1e-4, False, 0.0)),
        (s.finetuning2, (70, "adadelta", 0.003, True, 0.05)),
    ):
        values = (stage.epochs, stage.optimizer, stage.learning_rate, stage.trains_clusters, stage.affine_weight)
        assert values == expected
    assert (s.sampling.steps, s.sampling.num_generated, s.sampling.per_cluster) == (1000, None, 100)
    assert a.vqvae == a.discriminator == d.unet == {}
    assert (a.upsampling, a.reconstruction, a.dihedral_views) == ("transposed", "mse", False)
    assert (a.warmup_steps, a.decay, a.clip_norm, a.polish.epochs) == (0, "constant", None, 0)
    assert (d.prediction, d.latent_scaling, d.latent_views, s.clusters_first) == ("noise", False, False, False)
    assert {(stage.decay, stage.clip_norm) for stage in (s.training, s.finetuning1, s.finetuning2)} == {
        ("constant", None)
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_passes_its_own_checks(preset):
    def overrides(group, above=""):
        for name, value in asdict(group).items():
            inner = getattr(group, name)
            yield from overrides(inner, f"{above}{name}.") if is_dataclass(inner) else [(f"{above}{name}", value)]

    values = dict(overrides(PRESETS[preset]))
    assert values.keys() >= {"image_size_px", "autoencoder.polish.epochs", "finetuning2.clip_norm"}
    assert get_settings(preset, values) == PRESETS[preset]


def test_settings_are_plain_frozen_dataclasses():
    settings = get_settings("paper")
    assert settings == Settings()
    assert hash(settings.saving) == hash(SavingSettings())
    assert replace(settings, clusters_first=True) != settings
    with pytest.raises(FrozenInstanceError):
        settings.image_size_px = 64
    with pytest.raises(ValueError, match="every_hours"):
        SavingSettings(every_hours=1)
    with pytest.raises(ValueError, match="every_minutes"):
        replace(settings.saving, every_minutes=float("inf"))


def test_overrides():
    settings = get_settings("paper", {"training.epochs": 2, "image_size_px": 64, "autoencoder.adam_betas": [0.9, 0.99]})
    assert (settings.training.epochs, settings.image_size_px, settings.autoencoder.adam_betas) == (2, 64, (0.9, 0.99))
    assert PRESETS["paper"].training.epochs == 600


def test_a_removed_setting_that_was_not_in_use_is_read_as_before():
    assert get_settings("demo", {"diffusion.min_snr_gamma": None}) == get_settings("demo")


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("papers", {}, "Unknown preset 'papers': choose one of paper, recommended, demo"),
        ("demo", {"epochs": 3}, "Unknown setting 'epochs'"),
        ("demo", {"training.epoch": 3}, "Unknown setting 'epoch': StageSettings has"),
        ("demo", {"training": 3}, "training is a group of settings"),
        ("demo", {"image_size_px.x": 3}, "image_size_px is a single setting"),
        ("demo", {"training.epochs": 0}, "training.epochs must be a whole number of at least 1, but is 0"),
        ("demo", {"diffusion.batch_size": "many"}, "batch_size must be a whole number, such as 32, but is 'many'"),
        ("demo", {"diffusion.batch_size": 2.5}, "batch_size must be a whole number, such as 32, but is 2.5"),
        ("demo", {"image_size_px": 100}, "multiple of 16"),
        ("demo", {"image_size_px": 32}, "multiple of 16 from 48 on"),
        ("demo", {"max_train_tiles": "abc"}, "max_train_tiles must be a whole number or null, such as 1000"),
        ("paper", {"max_train_tiles": "abc"}, "max_train_tiles must be a whole number or null, such as None"),
        ("demo", {"sampling.num_generated": 0}, "sampling.num_generated must be a whole number of at least 1"),
        ("demo", {"training.learning_rate": "abc"}, "learning_rate must be a number, such as 0.002"),
        ("demo", {"autoencoder.vqvae": 3}, "vqvae must be arguments by name"),
        ("demo", {"sampling.steps": 1001}, "must not exceed diffusion.num_timesteps, 1000"),
        ("demo", {"diffusion.unet": {"down_channels": [16, 16, 16], "fold": 16}}, "multiple of 256 px"),
        ("demo", {"image_size_px": 48, "autoencoder.vqvae": {"down_channels": [8, 8, 8, 8]}}, "must be at least 64 px"),
        ("paper", {"image_size_px": 80, "diffusion.unet": {"fold": 4}}, "image_size_px must be a multiple of 64 px"),
        ("demo", {"autoencoder.vqvae": {"enlarge": 3}}, "enlarge must be a power of two, such as 1 or 2, but is 3"),
        ("paper", {"image_size_px": 80, "autoencoder.vqvae": {"enlarge": 2}}, "must be a multiple of 32 px"),
        ("demo", {"autoencoder.vqvae": {"down_channels": [8, 8, 8, 8], "enlarge": 2}}, "must be at least 128 px"),
        ("demo", {"autoencoder.epochs": 0}, "autoencoder.epochs = 0 keeps the autoencoder that start_from names"),
        (
            "paper",
            {"autoencoder.epochs": 0, "start_from": "starter"},
            "set both start_from and autoencoder.polish.epochs",
        ),
        ("demo", {"autoencoder.perceptual": "vgg"}, "'lpips' or 'ms-ssim' or 'photographs'"),
        ("demo", {"training.optimizer": "sgd"}, "'adadelta' or 'adam'"),
        ("demo", {"training.epochs": True}, "epochs must be a whole number, such as 10, but is True"),
        ("demo", {"diffusion.affine_fill": [1, 2]}, "affine_fill must be 3 numbers or null"),
        ("demo", {"diffusion.affine_fill": [1, 2, 256]}, "three levels of 0 ... 255"),
        ("demo", {"autoencoder.discriminator_start_step": 2.5}, "discriminator_start_step must be a whole number"),
        ("demo", {"training.learning_rate": 0}, r"training\.learning_rate must be above 0"),
        ("demo", {"training.ema_decay": 1.0}, r"training\.ema_decay must be at least 0 and below 1"),
        ("demo", {"saving.every_minutes": -1}, r"saving\.every_minutes must be at least 0"),
        ("demo", {"saving.every_epochs": 0}, r"saving\.every_epochs must be a whole number of at least 1"),
        ("paper", {"sampling.guidance": 2.0}, "needs a UNet trained with diffusion.condition_dropout"),
        ("demo", {"sampling.sampler": "unknown"}, "'ddpm' or 'ddim' or"),
        ("demo", {"speed": "max"}, "speed must be 'auto' or 'off'"),
        ("demo", {"precision": "fp16"}, "precision must be 'auto' or 'fp32' or 'bf16'"),
        ("demo", {"autoencoder.upsampling": "bilinear"}, "autoencoder.upsampling must be 'transposed' or 'resize'"),
        ("demo", {"autoencoder.reconstruction": "l2"}, "autoencoder.reconstruction must be 'mse' or 'l1'"),
        ("demo", {"autoencoder.dihedral_views": 1}, "autoencoder.dihedral_views must be true or false"),
        ("demo", {"autoencoder.warmup_steps": -1}, "autoencoder.warmup_steps must be a whole number of at least 0"),
        ("demo", {"autoencoder.decay": "linear"}, "autoencoder.decay must be 'constant' or 'cosine', but is 'linear'"),
        ("demo", {"autoencoder.clip_norm": 0}, "autoencoder.clip_norm must be above 0, but is 0"),
        ("demo", {"autoencoder.clip_norm": "1"}, "autoencoder.clip_norm must be a number or null, such as 1.0"),
        ("demo", {"autoencoder.polish": {}}, "autoencoder.polish is a group of settings"),
        ("demo", {"autoencoder.polish.epoch": 1}, "'epoch': PolishSettings has .*, not 'autoencoder.polish.epoch'"),
        ("demo", {"autoencoder.polish.epochs": -1}, r"polish\.epochs must be a whole number of at least 0, but is -1"),
        ("demo", {"autoencoder.polish.epochs": 10**10}, r"polish\.epochs must be at most 1000000000"),
        ("demo", {"autoencoder.polish.batch_size": 0}, r"polish\.batch_size must be a whole number of at least 1"),
        (
            "demo",
            {"autoencoder.polish.discriminator": {"a": [8, -8]}},
            r"discriminator\.a must be .*, but is \[8, -8\]",
        ),
        ("demo", {"autoencoder.polish.discriminator": {3: 8}}, r"discriminator must be arguments by name.*\{3: 8\}"),
        ("demo", {"autoencoder.polish.learning_rate": 0}, r"polish\.learning_rate must be above 0"),
        ("demo", {"autoencoder.polish.adam_betas": [0.5, 1]}, "two numbers of at least 0 and below 1, .* is .0.5, 1"),
        ("demo", {"autoencoder.polish.adam_betas": [0.5]}, r"polish\.adam_betas must be 2 numbers, such as"),
        ("demo", {"autoencoder.polish.perceptual_weight": -1}, r"polish\.perceptual_weight must be at least 0"),
        ("demo", {"autoencoder.polish.adversarial_weight": True}, r"adversarial_weight must be a number, .* is True"),
        ("demo", {"diffusion.min_snr_gamma": 5.0}, r"^diffusion\.min_snr_gamma is no setting any more: leave it out"),
        ("demo", {"sampling.sampler": "unipc"}, r"^sampling\.sampler must be .*, but is 'unipc'\.$"),
        ("demo", {"diffusion.prediction": "x0"}, "diffusion.prediction must be 'noise' or 'v'"),
        ("demo", {"diffusion.latent_scaling": "yes"}, "diffusion.latent_scaling must be true or false"),
        ("demo", {"diffusion.latent_views": None}, "diffusion.latent_views must be true or false"),
        ("demo", {"finetuning2.decay": 3}, "finetuning2.decay must be 'constant' or 'cosine', but is 3"),
        ("demo", {"training.clip_norm": float("nan")}, "training.clip_norm must be a number or null.* but is nan"),
        ("demo", {"clusters_first": 1}, "clusters_first must be true or false"),
        ("demo", {"clusters.epochs": 0}, "clusters.epochs must be a whole number of at least 1"),
        ("demo", {"clusters": None}, "clusters is a group of settings"),
        ("demo", {"diffusion.num_timesteps": 10**6 + 1}, "diffusion.num_timesteps must be at most 1000000"),
    ],
)
def test_bad_settings(preset, overrides, message):
    with pytest.raises(InputError, match=message):
        get_settings(preset, overrides)
