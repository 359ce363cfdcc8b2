"""Networks on disk: found, known by what they belong to, and refused with a reason."""

import json
import os
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from pfiles import checkpoints
from pfiles.checkpoints import find_checkpoint, load_weights, save_stage, save_weights
from pfiles.classifier import Classifier
from pfiles.cluster_bank import ClusterBank
from pfiles.clusterers import KMeansClusters
from pfiles.errors import InputError
from pfiles.latents import LatentSpace
from pfiles.paths import Paths, read_json, write_json
from pfiles.provenance import Provenance
from pfiles.settings import PRESETS, get_settings
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
    save_stage(paths, "training", unet, ClusterBank([other]), SPACE, 5, about)
    newest = find_checkpoint(paths, "kmeans", "training", "kmeans")
    assert read_json(newest.with_suffix(".json"))["number"] == 2
    assert read_json(newest.with_suffix(".json"))["weights"] == checkpoints.fingerprint(other)


def test_missing_checkpoints_name_what_makes_them(paths):
    with pytest.raises(InputError, match=r"no unet_finetuning1_ckpt_YYYYMMDD_EPOCHS_3\.pth .* run part_2_finetuning1"):
        find_checkpoint(paths, "unet", "finetuning1", "classifier")
    with pytest.raises(InputError, match=r"no autoencoder at .* run train_autoencoder first"):
        checkpoints.load_autoencoder(paths, get_settings("demo"), "cpu")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_provenance_is_what_a_file_gives_back(preset, tmp_path):
    tiles = Tiles(as_tensor(make_tiles(30)), np.arange(28), np.arange(28, 30), "made up")
    groups = ("autoencoder", "diffusion", "finetuning1")
    parents = checkpoints.fingerprints({"unet": Classifier()})
    note = Provenance.of(get_settings(preset), groups, tiles, 5, parents, n_clusters=3).as_note()
    write_json(tmp_path / "note.json", note)
    assert read_json(tmp_path / "note.json") == note
    assert note["starts_from"]["unet"]
    longer = Provenance.of(
        get_settings(preset, {"finetuning1.epochs": 999}), groups, tiles, 5, parents, n_clusters=3
    ).as_note()
    # the number of epochs is no part of it, unless the learning rate falls towards the last of them
    assert (longer["settings"] == note["settings"]) == (preset == "paper")


SPACE = LatentSpace(None)  # unscaled


@pytest.fixture
def stage(paths):
    """A saved first training with k-means, and what it was trained with."""
    settings = get_settings("demo", TINY | PLAIN_LEARNING)
    vqvae, unet = make_vqvae(settings.autoencoder), UNet(16, 3, **settings.diffusion.unet)
    clusters = ClusterBank.make("kmeans", 16, [3])
    about = {
        "clustering": "kmeans",
        "starts_from": {"autoencoder": checkpoints.inference_fingerprint(vqvae)},
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
    save_stage(paths, "training", unet, ClusterBank([other]), SPACE, 9, about)
    with pytest.raises(InputError, match=r"unet_kmeans_finetuning1.* was trained with another clusters"):
        checkpoints.load_stage(paths, settings, "finetuning1", "kmeans", vqvae, "cpu")


def test_the_scaling_of_the_latents_stays_with_the_unet(paths, stage):
    settings, vqvae, unet, clusters, about = stage
    scaled = replace(settings, diffusion=replace(settings.diffusion, latent_scaling=True))
    about = {**about, "settings": {"diffusion": {"latent_scaling": True, "prediction": settings.diffusion.prediction}}}
    space = LatentSpace.of_training(vqvae, torch.arange(32).view(2, 4, 4))
    save_stage(paths, "training", unet, clusters, space, 5, about)
    _, _, loaded, _ = checkpoints.load_stage(paths, scaled, "training", "kmeans", vqvae, "cpu")
    assert torch.equal(loaded.mean, space.mean)
    assert torch.equal(loaded.std, space.std)
    with pytest.raises(InputError, match=r"trained with diffusion.latent_scaling = True, but the settings say False"):
        checkpoints.load_stage(paths, settings, "training", "kmeans", vqvae, "cpu")


def test_a_unet_is_refused_with_other_steps_of_noise(paths, stage):
    settings, vqvae, unet, clusters, about = stage
    save_stage(paths, "training", unet, clusters, SPACE, 5, {**about, "settings": {"diffusion": {"beta_end": 0.03}}})
    changed = replace(settings, diffusion=replace(settings.diffusion, beta_end=0.03))
    checkpoints.load_stage(paths, changed, "training", "kmeans", vqvae, "cpu")
    with pytest.raises(InputError, match=r"trained with diffusion.beta_end = 0\.03, but the settings say 0\.02"):
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
        save_stage(paths, name, unet, ClusterBank.make("classifier", 16, [3]), SPACE, 1, about)
    stages = {path.name.split("_ckpt_")[0] for path in paths.models.glob("classifier_*.pth")}
    assert stages == {"classifier_training", "classifier_finetuning2"}


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


def test_a_missing_checkpoint_names_the_numbers_of_clusters_that_have_one(paths):
    """Those of other stages, and those in a copied folder, do not count."""
    network = Classifier(16, 3)
    for k, folder in ((10, "clusters_10"), (4, "clusters_4"), (5, "clusters_5 copy")):
        path = paths.root / folder / f"models_{k}" / f"classifier_training_ckpt_20270101_5_{k}.pth"
        save_weights(network, path, {"clustering": "classifier"})
    put(replace(paths, n_clusters=7), "classifier_finetuning2_ckpt_20270101_5_7.pth", network)
    with pytest.raises(InputError, match=r"first, or set n_clusters to one that was trained \(4, 10\)\."):
        find_checkpoint(paths, "classifier", "training", "classifier")
