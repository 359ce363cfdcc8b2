"""Shared by all tests: where reference files lie, tiny settings, tiny tiles, tiny runs."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from pfiles import artifacts, checkpoints, draw, latents, learn
from pfiles.__main__ import main
from pfiles.classifier import Classifier
from pfiles.cluster_bank import ClusterBank
from pfiles.clusterers import KMeansClusters, fit_kmeans, make_clusterer
from pfiles.discriminator import Discriminator
from pfiles.drawing.generator import Generator
from pfiles.latents import mean_channel_softmax
from pfiles.learning import autoencoder, diffusion, loop
from pfiles.machine.runtime import seeded
from pfiles.machine.speed import EAGER
from pfiles.run import open_run
from pfiles.settings import SavingSettings, get_settings
from pfiles.tiles.pixels import to_unit
from pfiles.unet_cond_base import UNet, make_unet
from pfiles.vqvae import make_vqvae

SHARED = Path(__file__).resolve().parents[2] / "shared"  # reference files beside a checkout; not part of the project

TINY = {  # networks, tiles and trainings of seconds
    "image_size_px": 48,
    "max_train_tiles": 24,
    "autoencoder.batch_size": 8,
    "diffusion.batch_size": 8,
    "autoencoder.vqvae": {"down_channels": [8, 8, 16], "num_heads": 2, "norm_channels": 4, "codebook_size": 32},
    "autoencoder.discriminator": {"conv_channels": [8, 16]},
    "autoencoder.epochs": 2,
    "autoencoder.perceptual": "ms-ssim",
    "autoencoder.colour_weight": 0.0,  # its least squares turn rounding into more than rounding
    "autoencoder.discriminator_start_step": 3,
    "autoencoder.adversarial_weight": 0.05,
    "autoencoder.polish.epochs": 1,
    "autoencoder.polish.discriminator_sees": "pixels",
    "autoencoder.polish.discriminator": {"conv_channels": [8, 16]},
    "clusters.epochs": 1,
    "diffusion.unet": {"down_channels": [16, 16, 16], "t_emb_dim": 16, "num_layers": 1, "num_heads": 2,
                       "norm_channels": 4, "conv_out_channels": 16},
    "diffusion.num_timesteps": 20,
    "training.epochs": 1,
    "finetuning1.epochs": 1,
    "finetuning2.epochs": 1,
    "sampling.steps": 4,
    "sampling.batch_size": 5,
    "sampling.num_generated": 12,
    "sampling.per_cluster": 3,
    "sampling.guide": "itself",
}  # fmt: skip
SIZES = TINY["autoencoder.vqvae"]
PLAIN_LEARNING = {  # for tests that work a training out by hand: nothing but the loss and one optimiser
    "clusters_first": False,
    "autoencoder.reconstruction": "mse",
    "autoencoder.dihedral_views": False,
    "autoencoder.learning_rate": 1e-3,
    "autoencoder.warmup_steps": 0,
    "autoencoder.decay": "constant",
    "autoencoder.clip_norm": None,
    "diffusion.prediction": "noise",
    "diffusion.latent_scaling": False,
    "diffusion.latent_views": False,
    "diffusion.dihedral_views": False,
    "diffusion.condition_dropout": 0.0,
    "sampling.guidance": 1.0,
    "training.trains_clusters": True,
    "finetuning2.trains_clusters": True,
    **{f"{stage}.{name}": value
       for stage, rate in (("training", 1e-3), ("finetuning1", 4e-4), ("finetuning2", 1e-4))
       for name, value in {"optimizer": "adam", "learning_rate": rate, "warmup_steps": 0, "decay": "constant",
                           "clip_norm": None, "ema_decay": 0.0, "affine_weight": 0.04}.items()},
}  # fmt: skip

SLOW = {  # files of tests that train, start a kernel, a browser or another process, or compute for seconds
    "test_artifacts", "test_atlas_in_browser", "test_autoencoder", "test_benchmarks", "test_builtin", "test_check",
    "test_choose_k", "test_command_line", "test_coordinates", "test_cpu", "test_diffusion", "test_disk",
    "test_earlier_runs", "test_evaluation", "test_execute", "test_experiments", "test_export", "test_field",
    "test_field_check", "test_field_report", "test_fields", "test_form_in_browser", "test_fuzz", "test_in_diffusers",
    "test_join", "test_kill", "test_maps", "test_memorisation", "test_notebook_safety", "test_notebooks", "test_paper",
    "test_papermill", "test_processes", "test_reader_study", "test_reproduce", "test_resume", "test_run", "test_share",
    "test_speed", "test_starting", "test_structure", "test_tiler", "test_tissue", "test_twin", "test_two_sample",
    "test_usefulness", "test_variations", "test_watch",
}  # fmt: skip


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where slow tests are left out, their files are not even imported."""
    return True if config.option.markexpr == "not slow" and collection_path.stem in SLOW else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SLOW or {"job", "browser"} & {*item.fixturenames}:  # whoever asks for a job trains
            item.add_marker(pytest.mark.slow)


def shared(path: str) -> Path:
    """A reference file beside the checkout; the test that asks is skipped where it is absent."""
    file = SHARED / path
    if not file.exists():
        pytest.skip(f"needs the reference file {path}, which is not part of the project: {file} is absent")
    return file


def make_tiles(n: int, side: int = 48, seed: int = 0) -> np.ndarray:
    """Smooth random colour tiles (n, side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)


@pytest.fixture(autouse=True)
def figures_closed():
    """No test sees the figures of those before it; matplotlib warns once more than 20 are open."""
    yield
    plt.close("all")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """What tests keep of one data set or another goes to a folder of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def no_choices(monkeypatch):
    """A run.toml of the checkout's user says nothing to tests."""
    monkeypatch.setenv("KPC_RUN_TOML", "")


@pytest.fixture
def browser():
    """Headless Chromium; the test that asks is skipped where it is not installed."""
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(f"needs a browser, none of {', '.join(names)} is installed: apt-get install {names[0]}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def tiny():
    return get_settings("demo", TINY | PLAIN_LEARNING)


@pytest.fixture
def tiles() -> np.ndarray:
    return make_tiles(30)


def png(tile):
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "PNG")
    return buffer.getvalue()


def assert_refused(arguments, capsys, out):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert printed.err.rstrip().endswith(".")
    assert printed.out == ""
    assert not out.exists()


def write(folder, names, tiles, suffix="png"):
    folder.mkdir(exist_ok=True)
    for name, tile in zip(names, tiles, strict=True):
        Image.fromarray(tile).save(folder / f"{name}.{suffix}", quality=95)


def relative_error(actual, expected):
    actual, expected = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
    assert actual.shape == expected.shape
    return ((actual - expected).norm() / expected.norm()).item()


K = 3


@pytest.fixture
def images():
    return torch.tensor(make_tiles(24)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture
def job(tmp_path):
    saving = SavingSettings(every_minutes=60)
    return loop.Job("test", 1, 8, tmp_path / "test", {"a": {"b": 1}}, saving, EAGER)


def autoencoder_networks(tiny):
    with seeded(0, "networks"):
        return make_vqvae(tiny.autoencoder), Discriminator(**tiny.autoencoder.discriminator)


def stage_networks(tiny, kind="classifier"):
    vqvae, _ = autoencoder_networks(tiny)
    vqvae.eval().requires_grad_(False)
    with seeded(0, "stage"):
        return vqvae, UNet(16, K, **tiny.diffusion.unet), make_clusterer(kind, 16, K)


def another_unet(generator):
    """A UNet of the generator's sizes with other weights."""
    with seeded(1, "guide"):
        return make_unet(generator.settings.diffusion, 16, K).eval().requires_grad_(False)


@pytest.fixture
def generator(tiny):
    vqvae, unet, clusterer = stage_networks(tiny)
    space = latents.LatentSpace.of_training(vqvae, torch.arange(32).view(2, 4, 4))
    return Generator(unet, ClusterBank([clusterer]), space, tiny, torch.tensor([0.5, 0.0, 0.5]), {"mpp": 1.0})


def train_stage(tiny, stage, networks, images, job):
    vqvae, unet, clusters = networks
    codes = latents.encode_tiles(vqvae, images)
    if isinstance(clusters, KMeansClusters):
        fit_kmeans(clusters, latents.latent_batches(vqvae, codes), seed=0)
    return diffusion.train_stage(
        unet=unet, bank=ClusterBank([clusters]), space=latents.LatentSpace(vqvae), images=images, codes=codes,
        settings=tiny.diffusion, stage=stage, job=job,
    )  # fmt: skip


def train_autoencoder(networks, images, perceptual, settings, job):
    vqvae, discriminator = networks
    return autoencoder.train_autoencoder(
        vqvae=vqvae, discriminator=discriminator, images=images, perceptual=perceptual, settings=settings, job=job
    )


# classifiers of several numbers of clusters

KS = (3, 5, 4)


def classifiers(ks=KS, channels=128):
    with seeded("every k"):
        classifiers = [Classifier(16, k, channels) for k in ks]
        for one in classifiers:  # batch norm in another state than the first
            one.train()(torch.randn(6, 16, 12, 12))
        return ClusterBank(classifiers)


def weights(network):
    return torch.cat([value.flatten() for value in network.state_dict().values() if value.is_floating_point()]).double()


# runs of seconds: opened on a folder's `tiles.npy`, trained, and finished up to the images and the CSV

OVERRIDES = TINY | {"clusters.epochs": 1, "autoencoder.polish.epochs": 1}
STAGES = ("training", "finetuning1", "finetuning2")
CARD = {
    "licence": "cc-by-nc-4.0", "organ": "lung | left", "species": "human", "stain": "H&E", "scanner": "Aperio AT2, 20x",
    "consent": "vote 12/34", "intended_use": "teaching; not for diagnosis",
}  # fmt: skip


def opened(folder, **changed):
    arguments = {
        "notebook": "part_test", "n_clusters": K, "clustering": "classifier", "data": str(folder / "tiles.npy"),
        "preset": "demo", "overrides": OVERRIDES, "out": str(folder / "out"),
    }  # fmt: skip
    return open_run(**(arguments | changed))


def parameters(folder, **changed):
    run = {"n_clusters": K, "clustering": "classifier", "data": str(folder / "tiles.npy"), "preset": "demo"}
    return run | {"out": str(folder / "out"), "overrides": OVERRIDES} | changed


def train(run):
    learn.autoencoder(run, *learn.new_autoencoder(run))
    for stage in STAGES:
        networks = learn.new_networks(run) if stage == "training" else run.networks(checkpoints.START[stage])
        if stage == "training" and run.clustering == "classifier":
            learn.clusters(run, networks.bank)
        learn.unet(run, stage, networks)


def finish(run):
    train(run)
    artifacts.write_training_images(run)
    draw.to_folder(run, run.assignment.cluster_ids[run.selected_tiles])
    table = pd.DataFrame(mean_channel_softmax(run.vqvae, run.codes).numpy())
    table["cluster"], table["probability"] = (column.numpy() for column in run.assignment)
    artifacts.write_latent_csv(run, table)


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """A finished tiny run with the classifier, which no test changes, and other tiles of the same shape and number."""
    folder = tmp_path_factory.mktemp("made")
    np.save(folder / "tiles.npy", make_tiles(44))
    np.save(folder / "other.npy", make_tiles(44, seed=1))
    finish(opened(folder))
    return folder


@pytest.fixture
def done(run_dir, tmp_path):
    """A copy of it that a test may change."""
    return Path(shutil.copytree(run_dir, tmp_path / "run"))


def tiny_options(overrides=OVERRIDES):
    """Settings as options of a command."""
    return [part for name, value in overrides.items() for part in ("--set", f"{name}={json.dumps(value)}")]


# what the authors published, at tiny size

PAPER = {name: TINY[name] for name in ("image_size_px", "max_train_tiles", "autoencoder.vqvae", "diffusion.unet",
         "sampling.steps")} | {"sampling.per_cluster": 11}  # fmt: skip


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory):
    """A folder laid out as the published archives: untrained networks, random tiles and what these networks make of
    them."""
    folder, settings = tmp_path_factory.mktemp("published"), get_settings("paper", PAPER)
    for name in ("kpc_ldm", "clusters_14/models_14"):
        (folder / name).mkdir(parents=True)
    tiles = make_tiles(26)
    np.save(folder / "slice128_Block2_11K.npy", tiles[:, None].repeat(8, axis=1))
    stages = {"training": "20250127_600", "finetuning1": "20250128_130", "finetuning2": "20250128_70"}
    with seeded(0, "published"):
        vqvae = make_vqvae(settings.autoencoder).eval()
        unets = {stage: UNet(vqvae.z_channels, 14, **settings.diffusion.unet) for stage in stages}
        classifiers = {stage: Classifier(vqvae.z_channels, 14) for stage in ("training", "finetuning2")}
    images = torch.tensor(tiles[:24]).permute(0, 3, 1, 2).contiguous()
    vectors = vqvae.encode_continuous(to_unit(images)).detach().transpose(0, 1).flatten(1).T  # (24 * h * w, z)
    vqvae.embedding.weight.data = vectors[:: len(vectors) // 31][:32].clone()  # codes that tell tiles apart
    codes = latents.encode_tiles(vqvae, images)
    for classifier in classifiers.values():  # otherwise all tiles are of one cluster
        *layers, last, _ = classifier.eval().classifier
        logits = last(nn.Sequential(*layers)(vqvae.embed(codes)))
        last.bias.data -= logits.mean((0, 2, 3))
    torch.save(vqvae.state_dict(), folder / "kpc_ldm" / "vqvae_autoencoder_ckpt.pth")
    for stage, classifier in classifiers.items():
        path = folder / "clusters_14" / "models_14" / f"classifier_{stage}_ckpt_{stages[stage]}_14.pth"
        torch.save(classifier.state_dict(), path)
    assigned = latents.predict_clusters(vqvae, classifiers["finetuning2"], codes)
    table = latents.latent_table(mean_channel_softmax(vqvae, codes).detach(), *assigned)
    table.to_csv(folder / "clusters_14" / "HHH14_C14_D14.csv", header=False, index=False)
    with zipfile.ZipFile(folder / "trained_models.zip", "w") as archive:
        for stage, unet in unets.items():
            content = io.BytesIO()
            torch.save(unet.state_dict(), content)
            archive.writestr(f"trained_models/unet_{stage}_ckpt_{stages[stage]}_14.pth", content.getvalue())
    with zipfile.ZipFile(folder / "Images.zip", "w") as archive:
        for kind, images in (("org", tiles[:24]), ("gen_14", make_tiles(24, seed=1))):
            for number, image in enumerate(images, 1):
                content = io.BytesIO()
                Image.fromarray(image).resize((66, 66)).save(content, "JPEG")
                archive.writestr(f"Images/{kind}/{number}.jpg", content.getvalue())
    return folder
