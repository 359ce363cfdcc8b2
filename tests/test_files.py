"""Paths, settings, checkpoints: found, written whole, and refused with a reason."""

import json
import os
import time
from dataclasses import FrozenInstanceError, asdict, is_dataclass, replace

import numpy as np
import pytest
import torch

from pfiles import checkpoints
from pfiles.checkpoints import checkpoint_name, find_checkpoint, load_weights, save_stage, save_weights
from pfiles.classifier import Classifier
from pfiles.clustering import KMeansClusters
from pfiles.errors import InputError
from pfiles.latents import LatentSpace
from pfiles.paths import Paths, atomic_write, read_json, write_json
from pfiles.settings import PRESETS, SavingSettings, Settings, get_settings
from pfiles.tiles.dataset import Tiles
from pfiles.tiles.pixels import as_tensor
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import make_vqvae
from tests.conftest import PLAIN_LEARNING, TINY, make_tiles


@pytest.fixture
def paths(tmp_path):
    return Paths(3, tmp_path)


def put(paths, name, module, **about):
    save_weights(module, paths.models / name, about)
    return paths.models / name


# paths


def test_published_names(tmp_path):
    paths = Paths(14, tmp_path)
    found = [paths.autoencoder, paths.models, paths.generated, paths.latent_csv, paths.figure(2, "C_14_3")]
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "kpc_ldm/vqvae_autoencoder_ckpt.pth",
        "clusters_14/models_14",
        "clusters_14/gen_14",
        "clusters_14/HHH14_C14_D14.csv",
        "Figures/Figure 2/C_14_3.jpg",
    ]
    assert checkpoint_name("unet", "training", 600, 14, "20250127") == "unet_training_ckpt_20250127_600_14.pth"


def test_the_files_of_kmeans_have_names_of_their_own(tmp_path):
    def names(clustering):
        paths = Paths(14, tmp_path, clustering)
        files = paths.generated, paths.latent_csv, paths.figure(2, "C_14_3"), paths.cluster_sheet
        trained = checkpoint_name("unet", "training", 600, 14, "20250127", clustering)
        return {*files, trained, checkpoint_name(clustering, "training", 600, 14, "20250127", clustering)}

    assert len(names("classifier") | names("kmeans")) == 12
    assert "unet_kmeans_training_ckpt_20250127_600_14.pth" in names("kmeans")
    assert tmp_path / "clusters_14" / "HHH14_C14_D14_kmeans.csv" in names("kmeans")


@pytest.mark.parametrize("n_clusters", [1, 0, -3, 2.5, "1", "fourteen", None])
def test_impossible_number_of_clusters(n_clusters):
    with pytest.raises(InputError, match="n_clusters must be a whole number of at least 2"):
        Paths(n_clusters)


def test_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file: name a folder"):
        Paths(14, tmp_path / "file")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError, match="disk full"), atomic_write(path) as file:  # noqa: PT012
        file.write(b"half of the new ")
        raise RuntimeError("disk full")
    assert read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["value.json"]


def test_json_refuses_nan_and_names_a_broken_file(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(InputError, match=r"b\.json is not valid JSON"):
        read_json(tmp_path / "b.json")


# settings


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
        found = (stage.epochs, stage.optimizer, stage.learning_rate, stage.trains_clusters, stage.affine_weight)
        assert found == expected
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

    given = dict(overrides(PRESETS[preset]))
    assert given.keys() >= {"image_size_px", "autoencoder.polish.epochs", "finetuning2.clip_norm"}
    assert get_settings(preset, given) == PRESETS[preset]


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


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("papers", {}, "Unknown preset 'papers': choose one of paper, recommended, demo"),
        ("demo", {"epochs": 3}, "Unknown setting 'epochs'"),
        ("demo", {"training.epoch": 3}, "Unknown setting 'epoch': StageSettings has"),
        ("demo", {"training": 3}, "training is a group of settings"),
        ("demo", {"image_size_px.x": 3}, "image_size_px is a single setting"),
        ("demo", {"training.epochs": 0}, "training.epochs must be a whole number of at least 1, but is 0"),
        ("demo", {"diffusion.batch_size": "many"}, "batch_size must be a whole number, such as 16, but is 'many'"),
        ("demo", {"diffusion.batch_size": 2.5}, "batch_size must be a whole number, such as 16, but is 2.5"),
        ("demo", {"image_size_px": 100}, "multiple of 16"),
        ("demo", {"image_size_px": 32}, "multiple of 16 from 48 on"),
        ("demo", {"max_train_tiles": "abc"}, "max_train_tiles must be a whole number or null, such as 1000"),
        ("paper", {"max_train_tiles": "abc"}, "max_train_tiles must be a whole number or null, such as None"),
        ("demo", {"sampling.num_generated": 0}, "sampling.num_generated must be a whole number of at least 1"),
        ("demo", {"training.learning_rate": "abc"}, "learning_rate must be a number, such as 0.002"),
        ("demo", {"autoencoder.vqvae": 3}, "vqvae must be arguments by name"),
        ("demo", {"sampling.steps": 1001}, "must not exceed diffusion.num_timesteps, 1000"),
        ("demo", {"autoencoder.perceptual": "vgg"}, "'lpips' or 'ms-ssim'"),
        ("demo", {"training.optimizer": "sgd"}, "'adadelta' or 'adam'"),
        ("demo", {"training.epochs": True}, "epochs must be a whole number, such as 12, but is True"),
        ("demo", {"diffusion.affine_fill": [1, 2]}, "affine_fill must be 3 numbers or null"),
        ("demo", {"diffusion.affine_fill": [1, 2, 256]}, "three levels of 0 ... 255"),
        ("demo", {"autoencoder.discriminator_start_step": 2.5}, "discriminator_start_step must be a whole number"),
        ("demo", {"training.learning_rate": 0}, r"training\.learning_rate must be above 0"),
        ("demo", {"training.ema_decay": 1.0}, r"training\.ema_decay must be at least 0 and below 1"),
        ("demo", {"saving.every_minutes": -1}, r"saving\.every_minutes must be at least 0"),
        ("demo", {"saving.every_epochs": 0}, r"saving\.every_epochs must be a whole number of at least 1"),
        ("paper", {"sampling.guidance": 2.0}, "needs a UNet trained with diffusion.condition_dropout"),
        ("demo", {"sampling.sampler": "euler"}, "'ddpm' or 'ddim' or"),
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


# checkpoints


def test_newest_checkpoint_of_the_right_clusters_and_clustering(paths):
    network = Classifier(16, 3)
    old = put(paths, "classifier_training_ckpt_20250127_600_3.pth", network, clustering="classifier")
    new = put(paths, "classifier_training_ckpt_20260101_5_3.pth", network, clustering="classifier")
    put(paths, "classifier_training_ckpt_20270101_5_4.pth", network, clustering="classifier")
    put(paths, "classifier_finetuning2_ckpt_20270101_5_3.pth", network, clustering="classifier")
    kmeans = put(paths, "classifier_training_ckpt_20270101_5_3.pth", network, clustering="kmeans")
    assert find_checkpoint(paths, "classifier", "training", "classifier") == new
    assert find_checkpoint(paths, "classifier", "training", "kmeans") == kmeans
    new.unlink()
    old.with_suffix(".json").unlink()  # a published file comes without
    assert find_checkpoint(paths, "classifier", "training", "classifier") == old


def test_of_one_day_the_last_written_counts(paths):
    network = Classifier(16, 3)
    first = put(paths, "classifier_training_ckpt_20260101_9_3.pth", network, clustering="classifier")
    second = put(paths, "classifier_training_ckpt_20260101_10_3.pth", network, clustering="classifier")
    os.utime(first, (time.time() + 60, time.time() + 60))
    assert find_checkpoint(paths, "classifier", "training", "classifier") == first
    os.utime(second, (time.time() + 120, time.time() + 120))
    assert find_checkpoint(paths, "classifier", "training", "classifier") == second


def test_the_last_training_counts_whatever_the_clock_says(paths):
    network = Classifier(16, 3)
    last = put(paths, "classifier_training_ckpt_20260101_9_3.pth", network, clustering="classifier", number=2)
    first = put(paths, "classifier_training_ckpt_20260202_9_3.pth", network, clustering="classifier", number=1)
    put(paths, "classifier_training_ckpt_20270202_9_3.pth", network).with_suffix(".json").unlink()  # from elsewhere
    assert find_checkpoint(paths, "classifier", "training", "classifier") == last
    last.unlink()
    assert find_checkpoint(paths, "classifier", "training", "classifier") == first


def test_each_training_gets_the_next_number(paths, stage):
    _, _, unet, _, about = stage
    other = KMeansClusters(16, 3)
    other.centroids += 1
    save_stage(paths, "training", unet, other, SPACE, 5, about)
    newest = find_checkpoint(paths, "kmeans", "training", "kmeans")
    assert read_json(newest.with_suffix(".json"))["number"] == 2
    assert read_json(newest.with_suffix(".json"))["weights"] == checkpoints.fingerprint(other)


def test_missing_checkpoints_name_what_makes_them(paths):
    with pytest.raises(InputError, match=r"no unet_finetuning1_ckpt_YYYYMMDD_EPOCHS_3\.pth .* run part_2_finetuning1"):
        find_checkpoint(paths, "unet", "finetuning1", "classifier")
    with pytest.raises(InputError, match=r"no autoencoder at .* run train_autoencoder first"):
        checkpoints.load_autoencoder(paths, get_settings("demo"), "cpu")


@pytest.mark.parametrize("preset", PRESETS)
def test_an_identity_is_what_a_file_gives_back(preset, tmp_path):
    tiles = Tiles(as_tensor(make_tiles(30)), np.arange(28), np.arange(28, 30), "made up")
    groups = ["autoencoder", "diffusion", "training"]
    identity = checkpoints.identity(get_settings(preset), groups, tiles, 5, {"unet": Classifier()}, n_clusters=3)
    write_json(tmp_path / "identity.json", identity)
    assert read_json(tmp_path / "identity.json") == identity
    assert identity["starts_from"]["unet"]
    longer = checkpoints.identity(
        get_settings(preset, {"training.epochs": 999}), groups, tiles, 5, {"unet": Classifier()}, n_clusters=3
    )
    # the number of epochs is no part of it, unless the learning rate falls towards the last of them
    assert (longer["settings"] == identity["settings"]) == (preset == "paper")


SPACE = LatentSpace(None)  # unscaled


@pytest.fixture
def stage(paths):
    """A saved first training with k-means, and what it was trained with."""
    settings = get_settings("demo", TINY | PLAIN_LEARNING)
    vqvae, unet = make_vqvae(settings.autoencoder), UNet(16, 3, **settings.diffusion.unet)
    clusters = KMeansClusters(16, 3)
    about = {
        "clustering": "kmeans",
        "starts_from": {"autoencoder": checkpoints.fingerprint_of_role(vqvae)},
        "settings": {"diffusion": asdict(settings.diffusion)},
    }
    save_stage(paths, "training", unet, clusters, SPACE, 4, about)
    return settings, vqvae, unet, clusters, about


def test_round_trip_of_a_stage(paths, stage):
    settings, vqvae, unet, clusters, _ = stage
    loaded = checkpoints.load_stage(paths, settings, "training", "kmeans", vqvae, "cpu")
    for a, b in zip(loaded[:2], (unet, clusters), strict=True):
        assert checkpoints.fingerprint(a) == checkpoints.fingerprint(b)
    later = checkpoints.load_clusterer(paths, "finetuning2", "kmeans", vqvae, "cpu")  # k-means stays as it is
    assert checkpoints.fingerprint(later) == checkpoints.fingerprint(clusters)
    plain = torch.load(next(paths.models.glob("unet_kmeans_*.pth")), weights_only=True)
    assert plain.keys() == unet.state_dict().keys()
    about = json.loads(next(paths.models.glob("unet_*.json")).read_text())
    assert (about["epochs"], about["network"], about["stage"]) == (4, "unet", "training")
    assert "torch" in about["versions"]


def test_networks_that_were_not_trained_together_are_refused(paths, stage):
    settings, vqvae, unet, clusters, about = stage
    with pytest.raises(InputError, match="trained with another autoencoder"):
        checkpoints.load_stage(paths, settings, "training", "kmeans", make_vqvae(settings.autoencoder), "cpu")
    save_stage(paths, "finetuning1", unet, clusters, SPACE, 1, about)
    checkpoints.load_stage(paths, settings, "finetuning1", "kmeans", vqvae, "cpu")
    other = KMeansClusters(16, 3)
    other.centroids += 1
    save_stage(paths, "training", unet, other, SPACE, 9, about)
    with pytest.raises(InputError, match=r"unet_kmeans_finetuning1.* was trained with another clusters"):
        checkpoints.load_stage(paths, settings, "finetuning1", "kmeans", vqvae, "cpu")


def test_the_scaling_of_the_latents_stays_with_the_unet(paths, stage):
    settings, vqvae, unet, clusters, about = stage
    scaled = replace(settings, diffusion=replace(settings.diffusion, latent_scaling=True))
    about = {**about, "settings": {"diffusion": {"latent_scaling": True, "prediction": settings.diffusion.prediction}}}
    space = LatentSpace.of_training(vqvae, torch.arange(32).view(2, 4, 4))
    save_stage(paths, "training", unet, clusters, space, 5, about)
    _, _, loaded = checkpoints.load_stage(paths, scaled, "training", "kmeans", vqvae, "cpu")
    assert torch.equal(loaded.mean, space.mean)
    assert torch.equal(loaded.std, space.std)
    with pytest.raises(InputError, match=r"trained with diffusion.latent_scaling = True, but the settings say False"):
        checkpoints.load_stage(paths, settings, "training", "kmeans", vqvae, "cpu")


def test_a_polished_decoder_leaves_the_unet_valid(paths, stage):
    settings, vqvae, _, _, _ = stage
    with torch.no_grad():
        vqvae.decoder_conv_out.weight += 1
    checkpoints.load_stage(paths, settings, "training", "kmeans", vqvae, "cpu")


def test_each_stage_saves_what_it_changed(paths, stage):
    _, _, unet, _, about = stage
    about = {**about, "clustering": "classifier"}
    for name in ("training", "finetuning1", "finetuning2"):
        save_stage(paths, name, unet, Classifier(16, 3), SPACE, 1, about)
    found = {path.name.split("_ckpt_")[0] for path in paths.models.glob("classifier_*.pth")}
    assert found == {"classifier_training", "classifier_finetuning2"}


def test_published_weights_are_not_replaced_unasked(paths):
    checkpoints.refuse_to_replace_foreign(paths.autoencoder)
    save_weights(Classifier(), paths.autoencoder, {})
    checkpoints.refuse_to_replace_foreign(paths.autoencoder)
    paths.autoencoder.with_suffix(".json").unlink()
    with pytest.raises(InputError, match="was not made here and would be replaced"):
        checkpoints.refuse_to_replace_foreign(paths.autoencoder)


def test_another_number_of_clusters_is_named(paths):
    path = put(paths, "a.pth", UNet(16, 5, (8, 8, 8), 8, 1, 2, 4, 8))
    with pytest.raises(InputError, match=r"expected class_emb.weight to be \(3, 8\), found \(5, 8\)"):
        load_weights(UNet(16, 3, (8, 8, 8), 8, 1, 2, 4, 8), path)
    with pytest.raises(InputError, match=r"does not fit Classifier .* found no such entry"):
        load_weights(Classifier(), path)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("kind", ["pickle", "truncated", "text", "empty", "list"])
def test_unsound_checkpoints_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pth"
    if kind == "pickle":
        torch.save({"conv.weight": Payload()}, path)
    elif kind == "truncated":
        torch.save(Classifier().state_dict(), path)
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes({"text": b"not a checkpoint", "empty": b""}[kind])
    with pytest.raises(InputError, match=r"bad\.pth"):
        load_weights(Classifier(), path)
    assert not (tmp_path / "pwned").exists()
