"""The trainings of a run: each trains networks in place and saves them.

from pfiles import learn

networks = learn.new_networks(run)
history = learn.unet(run, "training", networks)
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pfiles import artifacts, checkpoints
from pfiles.cluster_bank import ClusterBank
from pfiles.clusterers import Clusterer, KMeansClusters, fit_kmeans, make_clusterer
from pfiles.discriminator import Discriminator, make_discriminator
from pfiles.drawing.generator import Generator
from pfiles.drawing.starting import begin_from
from pfiles.latents import LatentSpace, latent_batches, reconstruct
from pfiles.learning import autoencoder as vq_gan
from pfiles.learning import clusters as information
from pfiles.learning import diffusion
from pfiles.learning.log import PICTURED, History
from pfiles.learning.loop import Job, steps_per_epoch
from pfiles.learning.losses import information_weights
from pfiles.learning.resume import load_resume_point, name_of_restart
from pfiles.machine.runtime import seeded
from pfiles.paths import read_json
from pfiles.run import Run
from pfiles.settings import StageSettings
from pfiles.tiles.pixels import to_uint8
from pfiles.unet_cond_base import UNet, make_unet
from pfiles.vqvae import VQVAE, make_vqvae

PICTURE_STEPS = 10  # denoising steps of the tiles that show how far a training is


# The autoencoder


def new_autoencoder(run: Run) -> tuple[VQVAE, Discriminator]:
    """Autoencoder and discriminator before any training. InputError if a foreign autoencoder would be replaced."""
    if not run.restart:
        checkpoints.refuse_to_replace_foreign(run.paths.autoencoder)
    with seeded(run.seed, "autoencoder"):
        vqvae = make_vqvae(run.settings.autoencoder)
        discriminator = make_discriminator(run.settings.autoencoder)
    if run.settings.start_from is not None:
        begin_from(vqvae, run.start_weights, "vqvae.", absent=vqvae.enlarging)
    return vqvae.to(run.device), discriminator.to(run.device)


def autoencoder(run: Run, vqvae: VQVAE, discriminator: Discriminator) -> History:
    """Train the VQ-GAN in place on the training tiles, polish its decoder if the settings say so, and save it.

    Without epochs it is kept as `start_from` brought it, and the history is that of the polish.
    """
    settings = run.settings.autoencoder
    note = run.provenance_of(*artifacts.settings_of("autoencoder"), of_clusters=False).as_note()
    history: History = []
    if settings.epochs:
        history = vq_gan.train_autoencoder(
            vqvae=vqvae,
            discriminator=discriminator,
            images=run.train_images,
            perceptual=vq_gan.make_perceptual(settings, run.device),
            settings=settings,
            job=make_job(run, "autoencoder", run.paths.training_folder("autoencoder"), note, settings.batch_size),
            picture=partial(_reconstructed, run),
        )
    polish = _polish(run, vqvae) if settings.polish.epochs else []
    note = {**note, "epochs": len(history)}
    if not checkpoints.is_saved(vqvae, run.paths.autoencoder, note):
        checkpoints.save_weights(vqvae, run.paths.autoencoder, note)
    print(f"Saved {run.paths.autoencoder}")
    end_restart(run)
    return history or polish


def _polish(run: Run, vqvae: VQVAE) -> History:
    settings = run.settings.autoencoder
    with seeded(run.seed, "polish"):
        discriminator = vq_gan.make_polish_discriminator(settings.polish, run.device)
    provenance = run.provenance_of(
        "autoencoder",
        parents={"autoencoder": checkpoints.fingerprint(vqvae)},  # its decoder counts as well
        of_clusters=False,
        polish={name: value for name, value in asdict(settings.polish).items() if name != "blend"},
    )
    folder = run.paths.training_folder("polish")
    before = copy.deepcopy(vqvae.state_dict())
    history = vq_gan.polish_decoder(
        vqvae=vqvae,
        discriminator=discriminator,
        images=run.train_images,
        perceptual=vq_gan.make_perceptual(settings, run.device),
        settings=settings.polish,
        clip_norm=settings.clip_norm,
        job=make_job(run, "polish", folder, provenance.as_note(), settings.polish.batch_size),
        picture=partial(_reconstructed, run),
    )
    if settings.polish.blend < 1:
        polished = vqvae.state_dict()
        vqvae.load_state_dict({name: before[name].lerp(polished[name], settings.polish.blend) for name in before})
    return history


def before_polish(run: Run, vqvae: VQVAE) -> VQVAE | None:
    """The autoencoder as its training or `start_from` left it, before `autoencoder` polished its decoder; None if
    nothing was polished.

    vqvae: the polished one.
    """
    settings = run.settings.autoencoder
    if not settings.epochs:
        return new_autoencoder(run)[0].eval().requires_grad_(False)
    note = run.provenance_of(*artifacts.settings_of("autoencoder"), of_clusters=False).as_note()
    point = load_resume_point(run.paths.training_folder("autoencoder"), note) if settings.polish.epochs else None
    if point is None:
        return None
    earlier = copy.deepcopy(vqvae)
    earlier.load_state_dict(point["parts"]["vqvae"])
    return earlier


def _reconstructed(run: Run, vqvae: VQVAE) -> Tensor:
    """Two rows of four training tiles, each above the row of what the autoencoder makes of them."""
    tiles = run.train_images[torch.arange(8) * len(run.train_images) // 8]
    rebuilt = to_uint8(reconstruct(vqvae, tiles))
    return torch.cat([rows for pair in zip(tiles.split(4), rebuilt.split(4), strict=True) for rows in pair])


# Clusters and UNet


def new_networks(run: Run) -> Generator:
    """UNet and clusters before any training; k-means is fitted to the latents."""
    diffusion_settings = run.settings.diffusion
    channels = run.vqvae.z_channels  # before the seed, as loading it draws random numbers
    with seeded(run.seed, "training"):
        unet = make_unet(diffusion_settings, channels, run.k).to(run.device)
    if run.settings.start_from is not None:
        begin_from(unet, run.start_weights, "unet.", anew=["class_emb.weight"])
    bank = ClusterBank(new_clusterer(run, k, run.seed) for k in run.ks)
    space = LatentSpace(run.vqvae)
    if diffusion_settings.latent_scaling:
        space = LatentSpace.of_training(run.vqvae, run.view_codes, diffusion_settings.shared_scale)
    return Generator(unet, bank, space, run.settings, speed=run.speed)


def new_clusterer(run: Run, k: int, seed: int) -> Clusterer:
    """An untrained classifier of k clusters, or a fitted k-means; independent of the UNet."""
    channels = run.vqvae.z_channels  # before the seed, as loading it draws random numbers
    with seeded(seed, "clusters", k):
        clusterer = make_clusterer(run.clustering, channels, k).to(run.device)
    if isinstance(clusterer, KMeansClusters):
        fit_kmeans(clusterer, latent_batches(run.vqvae, run.codes), seed)
    return clusterer


def clusters(run: Run, bank: ClusterBank) -> History:
    """Train the classifiers of a run in place, without a UNet (setting clusters_first).

    Where `choose_k` has learnt the same ones, they are taken from there.
    """
    if not run.restart and all(has_cached_classifier(part) for part in run.per_k):
        for part, clusterer in zip(run.per_k, bank, strict=True):
            checkpoints.load_weights(clusterer, cached_classifier(part))
        print(f"The clusters were learnt before, in {run.paths.choose_k}.")
        return pd.read_csv(run.paths.choose_k / "clusters_all" / "log.csv").to_dict("records")
    return information.train_clusters(
        bank=bank,
        vqvae=run.vqvae,
        images=run.train_images,
        codes=run.view_codes,
        settings=run.settings.diffusion,
        stage=run.settings.clusters,
        job=_stage_job(run, "clusters", _classifier_note(run)),
    )


def cache_classifier(run: Run, clusterer: nn.Module) -> None:
    """Keep a classifier that `choose_k` learnt, for `clusters` of a run of this k to take."""
    path, note = cached_classifier(run), _note_of_cached(run)
    if not checkpoints.is_saved(clusterer, path, note):
        checkpoints.save_weights(clusterer, path, note)


def has_cached_classifier(run: Run) -> bool:
    """Whether a cached classifier of this k has these settings, epochs, data and seed."""
    path = cached_classifier(run)
    note = read_json(path.with_suffix(".json")) if path.exists() else None
    if note is None:
        return False
    epochs = note["settings"]["clusters"].get("epochs")  # where an earlier version kept them, if at all
    note = {"epochs": epochs} | checkpoints.without(note, "weights", "versions", "replaces")
    return checkpoints.same_note(note, _note_of_cached(run))


def cached_classifier(run: Run) -> Path:
    return run.paths.choose_k / f"classifier_{run.n_clusters}.pth"


def _note_of_cached(run: Run) -> dict[str, Any]:
    """The note of a cached classifier. It holds the number of epochs too, as the classifier is trained no further."""
    return {**_classifier_note(run), "epochs": run.settings.clusters.epochs}


def _classifier_note(run: Run) -> dict[str, Any]:
    parents = checkpoints.fingerprints({"autoencoder": run.vqvae})
    return run.provenance_of("diffusion", "clusters", parents=parents).as_note()


def unet(run: Run, stage: str, networks: Generator) -> History:
    """Train the networks in place through "training", "finetuning1" or "finetuning2", and save what changed.

    Of several numbers of clusters the networks of each k are saved as well, as if they had been trained alone.
    """
    before = _with_each_k(run, networks)
    notes = {part: _stage_note(part, stage, generator) for part, generator in before.items()}
    history = diffusion.train_stage(
        unet=networks.unet,
        bank=networks.bank,
        space=networks.space,
        images=run.train_images,
        codes=run.view_codes,
        settings=run.settings.diffusion,
        stage=stage_settings(run, stage),
        job=_stage_job(run, stage, notes[run]),
        picture=partial(_preview, run, networks),
    )
    clusters_first = (run.provenance_of("clusters").settings or {})["clusters"] if run.settings.clusters_first else None
    for part, generator in _with_each_k(run, networks).items():
        checkpoints.save_stage(
            part.paths,
            stage,
            generator.unet,
            generator.bank,
            generator.space,
            len(history),
            notes[part],
            clusters_first,
        )
    end_restart(run)
    return history


def _with_each_k(run: Run, networks: Generator) -> dict[Run, Generator]:
    """The networks of a run and, where it has several k, of the run of each k alone, whose UNet is a copy."""
    if len(run.ks) == 1:
        return {run: networks}
    return {run: networks} | dict(zip(run.per_k, networks.split_by_k(), strict=True))


def _stage_note(run: Run, stage: str, networks: Generator) -> dict[str, Any]:
    """The provenance of the networks after a stage, `networks` being those before it."""
    parents: dict[str, nn.Module] = {"autoencoder": run.vqvae}
    if checkpoints.START[stage] is not None:
        parents |= {"unet": networks.unet, "clusters": networks.bank}
    groups = artifacts.settings_of(f"UNet after {stage}")
    return run.provenance_of(*groups, parents=checkpoints.fingerprints(parents)).as_note()


def _preview(run: Run, networks: Generator, unet: UNet) -> Tensor:
    """16 tiles of the clusters in turn, in few steps; of the same noise whatever the UNet has learnt."""
    sampling, settings = run.settings.sampling, run.settings
    if settings.diffusion.num_timesteps > PICTURE_STEPS:
        sampling = replace(sampling, sampler="dpm-solver++", steps=PICTURE_STEPS)
    generator = Generator(unet, networks.bank, networks.space, replace(settings, sampling=sampling))
    return generator.draw(torch.arange(PICTURED) % run.k, progress=False)


def stage_settings(run: Run, stage: str) -> StageSettings:
    """The settings of "training", "finetuning1" or "finetuning2"; clusters that were learnt first learn no more."""
    settings = getattr(run.settings, stage)
    return replace(settings, trains_clusters=False) if run.settings.clusters_first else settings


def objective_text(run: Run, stage: str) -> str:
    """The loss of a stage in words and numbers, and how often it is lowered by a step."""
    settings, diffusion_settings = stage_settings(run, stage), run.settings.diffusion
    steps = settings.epochs * steps_per_epoch(len(run.codes), diffusion_settings.batch_size)
    target = {"noise": "the noise", "v": "the velocity v = alpha noise - sigma latent"}[diffusion_settings.prediction]
    text = f"{steps:,} steps ({settings.epochs} epochs) of {settings.optimizer}: mean squared error of {target}"
    text += ", given the cluster"
    if settings.trains_clusters and run.clustering == "classifier":
        weights = information_weights(diffusion_settings, settings)
        text += "".join(f" {'-' if w < 0 else '+'} {abs(w)} {name}" for name, w in weights.items())
    return text


# What all trainings share


def _stage_job(run: Run, stage: str, note: Mapping[str, Any]) -> Job:
    folder = run.paths.training_folder(stage, run.clustering)
    return make_job(run, stage, folder, note, run.settings.diffusion.batch_size)


def make_job(
    run: Run,
    name: str,
    folder: Path,
    note: Mapping[str, Any],
    batch_size: int,
    blocked_by: Sequence[Path] | None = None,
) -> Job:
    """Describe a training; it refuses to start if existing files would make a later step of this run fail.

    note: its provenance. blocked_by: those files; None: see `artifacts.blocked_by`.
    """
    if blocked_by is None:
        blocked_by = artifacts.blocked_by(run, folder)
    return Job(name, run.seed, batch_size, folder, note, run.settings.saving, run.speed, restart_name(run), blocked_by)


def restart_name(run: Run) -> str | bool:
    """The run's `restart`; True becomes a name shared by all trainings of this notebook, until `end_restart`."""
    if run.restart is not True:
        return run.restart
    provenance = run.provenance_of("autoencoder", "diffusion", "clusters", *checkpoints.START)
    return name_of_restart(_restart_record(run), provenance.as_note())


def end_restart(run: Run) -> None:
    """Forget the restart; call this when the last training of a notebook is done."""
    _restart_record(run).unlink(missing_ok=True)


def _restart_record(run: Run) -> Path:
    name = f"restart_{run.notebook}_{run.n_clusters}{run.paths.suffix}.json"
    return run.paths.autoencoder.parent / name
