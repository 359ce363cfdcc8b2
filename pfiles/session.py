"""A run, opened once: notebooks and commands get from it tiles, networks, clusters, training, drawing and paths."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pfiles import checkpoints
from pfiles.choices import DEFAULTS, OF_NO_CLUSTERS, choose
from pfiles.classifier import Classifier
from pfiles.clusterers import check_clustering, each_of, fit_kmeans, make_clusterer
from pfiles.discriminator import Discriminator, PolishDiscriminator
from pfiles.drawing.generator import Generator, begin_from, starting_weights
from pfiles.drawing.sampling import generate_to_folder, write_table
from pfiles.errors import InputError
from pfiles.identity import (
    GENERATED_WITH,
    MADE_FROM,
    NOT_COMPARED,
    Identity,
    differences,
    of_csv,
    same_identity,
    without,
)
from pfiles.latents import (
    LatentSpace,
    encode_tiles,
    encode_views,
    latent_batches,
    pair_cluster_ids,
    predict_clusters,
    read_latent_csv,
    reconstruct,
)
from pfiles.learning import autoencoder, clusters, diffusion
from pfiles.learning.log import PICTURED, History
from pfiles.learning.loop import Job
from pfiles.learning.losses import information_weights
from pfiles.learning.resume import name_of_restart
from pfiles.machine import processes
from pfiles.machine.runtime import pick_device, seeded
from pfiles.machine.speed import Speed, pick_precision, pick_speed
from pfiles.names import Reading, agreed, check_reader, readings_in
from pfiles.paths import Paths, atomic_write, name_of_numbers, numbers_of_clusters, read_json, write_json
from pfiles.reporting import figures, maps, tables
from pfiles.reporting.page import Section
from pfiles.reporting.sections.data import EvaluationData
from pfiles.settings import Settings, StageSettings, get_settings
from pfiles.tiles.dataset import Tiles, are_there, load_tiles, refuse_results_among_tiles
from pfiles.tiles.files import image_files, list_images, load_pairs, read_images, refuse_other_images, write_tiles
from pfiles.tiles.pixels import evenly_spaced, match_size, to_uint8
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE, make_vqvae

PICTURE_STEPS = 10  # denoising steps of the tiles that show how far a training is
AT_ONCE = 4096  # tiles that are brought into memory to be assigned


class Networks(NamedTuple):
    """What draws after a stage: the UNet, the clusters that are its condition, and the latents it works on.

    clusterer: of a run of several numbers of clusters an nn.ModuleList of one for each; their clusters have the UNet's
        rows one after the other.
    """

    unet: UNet
    clusterer: nn.Module
    space: LatentSpace

    def of_each_k(self) -> list["Networks"]:
        """The networks for each number of clusters alone, the UNets as copies; these where there is only one."""
        if not isinstance(self.clusterer, nn.ModuleList):
            return [self]
        firsts = np.cumsum([0, *(one.n_clusters for one in self.clusterer)])
        return [
            Networks(self.unet.of_clusters(first, one.n_clusters), one, self.space)
            for first, one in zip(firsts.tolist(), self.clusterer, strict=False)
        ]


def open_run(
    notebook: str,
    n_clusters: int | str | Sequence[int] | None = None,
    clustering: str | None = None,
    data: str | Path | None = None,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    restart: bool | str = False,
) -> "OpenRun":
    """Open the run that these parameters describe; nothing is read but its settings until it is asked for.

    With precision="auto" the run's folder keeps which precision was chosen when it was first opened.

    What is None is as run.toml says, see `choices`, and otherwise as published.
    notebook: who opens it, such as "part_1_training"; its numbers are recorded under that name.
    n_clusters: k; or several, such as "10-16" or [10, 12, 14], whose clusters and UNet are then trained together.
    clustering: "classifier" or "kmeans". data: see `load_tiles`. preset, overrides: see `get_settings`.
    out: folder for all results; None: this repository. restart: train anew instead of going on.
    """
    given = {
        "n_clusters": n_clusters, "clustering": clustering, "data": data, "preset": preset, "overrides": overrides,
        "seed": seed, "out": out,
    }  # fmt: skip
    chosen = choose(given)
    check_clustering(chosen["clustering"])
    if notebook in OF_NO_CLUSTERS:
        chosen["clustering"] = DEFAULTS["clustering"]
    n_clusters = name_of_numbers(numbers_of_clusters(chosen["n_clusters"]))
    if isinstance(n_clusters, str) and notebook.startswith("part_") and notebook not in checkpoints.MADE_BY.values():
        raise InputError(f"{notebook} works with one number of clusters: set n_clusters to one of {n_clusters}.")
    settings = get_settings(chosen["preset"], chosen["overrides"])
    if settings.sampling.num_generated == 1:
        raise InputError("sampling.num_generated must be at least 2, as part 13 compares distributions, but is 1.")
    paths = Paths(n_clusters, chosen["out"], chosen["clustering"])
    if settings.precision == "auto":
        settings = replace(settings, precision=_precision(paths))
    return OpenRun(
        notebook, n_clusters, chosen["clustering"], chosen["data"], chosen["preset"], settings,
        chosen["seed"], paths, restart,
    )  # fmt: skip


def _precision(paths: Paths) -> str:
    """What "auto" is for this run: chosen when it is first opened and kept, so that a resumed run computes alike."""
    kept = read_json(paths.precision, {}).get("precision")
    if kept in ("fp32", "bf16"):
        return kept
    device = pick_device()
    pays = processes.is_first() and pick_precision(device) == "bf16"
    chosen = "bf16" if processes.agree(int(pays), device) else "fp32"
    write_json(paths.precision, {"precision": chosen, "device": str(device)})
    print(f"This run computes in {chosen} (setting precision='auto'; {paths.precision} keeps it)")
    return chosen


def choices_of(folder: Path, **given: Any) -> dict[str, Any]:
    """How the run in `folder` was started, for `open_run`: as summary.json says of a run that a command finished there.

    given: arguments of `open_run`, which count more, None for what is not given. n_clusters has to be among them where
    the run has several. What neither says is as run.toml says.
    """
    known = read_json(folder / "summary.json", {}).get("run", {})
    names = ("n_clusters", "clustering", "data", "preset", "overrides", "seed")
    asked = {name: value for name, value in given.items() if value is not None}
    chosen = {name: known[name] for name in names if name in known} | asked
    ks = numbers_of_clusters(known["n_clusters"]) if known else ()
    if len(ks) > 1 and asked.get("n_clusters") not in ks:
        raise InputError(
            f"The run in {folder} has {', '.join(map(str, ks))} clusters: name one of these numbers with --clusters."
        )
    return chosen


@dataclass(frozen=True, eq=False)
class OpenRun:
    """See `open_run`. What takes time is made when it is first asked for, and kept."""

    notebook: str
    n_clusters: int | str
    clustering: str
    data: str | Path | None
    preset: str
    settings: Settings
    seed: int
    paths: Paths
    restart: bool | str
    told: dict[str, Any] = field(default_factory=dict, init=False)  # by the files that were read without their tiles

    @property
    def ks(self) -> tuple[int, ...]:
        """The numbers of clusters, of which a run has one unless told otherwise."""
        return numbers_of_clusters(self.n_clusters)

    @cached_property
    def of_each_k(self) -> tuple["OpenRun", ...]:
        """A run of each number of clusters alone; this one where it has only one."""
        if len(self.ks) == 1:
            return (self,)
        runs = tuple(replace(self, n_clusters=k, paths=replace(self.paths, n_clusters=k)) for k in self.ks)
        for run in runs:  # what does not depend on k is made once
            vars(run).update({name: getattr(self, name) for name in ("device", "speed", "tiles", "vqvae", "views")})
        return runs

    @cached_property
    def device(self) -> torch.device:
        return pick_device()

    @cached_property
    def speed(self) -> Speed:
        return pick_speed(self.settings, self.device)

    @cached_property
    def tiles(self) -> Tiles:
        settings = self.settings
        refuse_results_among_tiles(self.data, self.paths.root)
        tiles = load_tiles(self.data, settings.image_size_px, settings.max_train_tiles, max(self.ks))
        print(f"{len(tiles.train)} training and {len(tiles.test)} test tiles from {tiles.source}")
        return tiles

    @cached_property
    def train_images(self) -> Tensor:
        """The training tiles as uint8 (N, 3, S, S) on the device."""
        return self.tiles.tensor(self.tiles.train, self.device)

    @cached_property
    def test_images(self) -> Tensor:
        return self.tiles.tensor(self.tiles.test, self.device)

    @cached_property
    def vqvae(self) -> VQVAE:
        """The trained autoencoder, frozen."""
        vqvae = checkpoints.load_autoencoder(self.paths, self.settings, self.device)
        same_identity(checkpoints.about_weights(self.paths.autoencoder, vqvae), self.identity, self.paths.autoencoder)
        return vqvae

    @cached_property
    def identity(self) -> Identity:
        """What every file of this run agrees with, if it tells it: data, settings, clusters. Seeds may differ."""
        return without(self._whole_identity(), *NOT_COMPARED)

    @cached_property
    def views(self) -> Tensor:
        """The codes that the UNet learns from, (V, N, h, w): of the training tiles, or of their eight views.

        They are kept beside the autoencoder, as every training needs them.
        """
        return self._encoded(self.settings.diffusion.latent_views, self.paths.codes)

    @property
    def eight_views(self) -> Tensor:
        """The codes of the eight views of the training tiles (8, N, h, w), whatever the UNet learns from."""
        return self.views if len(self.views) == 8 else self._encoded(True, self.paths.choosing / "eight_views.pt")

    def _encoded(self, views: bool, path: Path) -> Tensor:
        encode = encode_views if views else lambda *given: encode_tiles(*given)[None]
        made_from = {
            "autoencoder": checkpoints.fingerprint_of_role(self.vqvae),
            "data": self.tiles.fingerprint(),
            "views": views,
        }
        return checkpoints.cached_tensor(path, made_from, lambda: encode(self.vqvae, self.train_images)).to(self.device)

    @property
    def codes(self) -> Tensor:
        """The codebook indices (N, h, w) of the training tiles."""
        return self.views[0]

    @cached_property
    def chosen(self) -> Any:
        """Which training tiles (places among them, from 0) `org` and part 6 use: evenly spaced."""
        return evenly_spaced(len(self.tiles.train), self.settings.sampling.num_generated or len(self.tiles.train))

    # training

    def new_autoencoder(self) -> tuple[VQVAE, Discriminator]:
        """Autoencoder and discriminator before any training."""
        if not self.restart:
            checkpoints.refuse_to_replace_foreign(self.paths.autoencoder)
        with seeded(self.seed, "autoencoder"):
            vqvae = make_vqvae(self.settings.autoencoder)
            discriminator = Discriminator(**self.settings.autoencoder.discriminator)
        if self.settings.start_from is not None:
            begin_from(vqvae, self._start_weights, "vqvae.")
        return vqvae.to(self.device), discriminator.to(self.device)

    def train_autoencoder(self, vqvae: VQVAE, discriminator: Discriminator) -> History:
        """Train the VQ-GAN in place on the training tiles, polish its decoder if the settings say so, and save it."""
        settings = self.settings.autoencoder
        identity = self._identity_of(["autoencoder"], {})
        perceptual = autoencoder.make_perceptual(settings, self.device)
        history = autoencoder.train_autoencoder(
            vqvae=vqvae,
            discriminator=discriminator,
            images=self.train_images,
            perceptual=perceptual,
            settings=settings,
            job=self._job("autoencoder", self.paths.training_folder("autoencoder"), identity, settings.batch_size),
            picture=self._reconstructed,
        )
        if settings.polish.epochs:
            with seeded(self.seed, "polish"):
                judge = PolishDiscriminator(**settings.polish.discriminator).to(self.device)
            begun = self._identity_of(["autoencoder"], {}, polish=asdict(settings.polish))
            begun["starts_from"] = {"autoencoder": checkpoints.fingerprint(vqvae)}  # its decoder counts as well
            autoencoder.polish_decoder(
                vqvae=vqvae,
                discriminator=judge,
                images=self.train_images,
                perceptual=perceptual,
                settings=settings.polish,
                clip_norm=settings.clip_norm,
                job=self._job("polish", self.paths.training_folder("polish"), begun, settings.polish.batch_size),
                picture=self._reconstructed,
            )
        about = {**identity, "epochs": len(history)}
        if not checkpoints.is_saved(vqvae, self.paths.autoencoder, about):
            checkpoints.save_weights(vqvae, self.paths.autoencoder, about)
        print(f"Saved {self.paths.autoencoder}")
        self.end_restart()
        return history

    def new_networks(self) -> Networks:
        """UNet and clusters before any training; k-means is fitted to the latents."""
        with seeded(self.seed, "training"):
            unet = UNet(self.vqvae.z_channels, sum(self.ks), **self.settings.diffusion.unet).to(self.device)
        if self.settings.start_from is not None:
            begin_from(unet, self._start_weights, "unet.", anew=["class_emb.weight"])
        clusterers = [self.new_clusterer(k, self.seed) for k in self.ks]
        diffusion = self.settings.diffusion
        space = LatentSpace(self.vqvae)
        if diffusion.latent_scaling:
            space = LatentSpace.of_training(self.vqvae, self.views, diffusion.shared_scale)
        return Networks(unet, clusterers[0] if len(clusterers) == 1 else nn.ModuleList(clusterers), space)

    def new_clusterer(self, k: int, seed: int) -> nn.Module:
        """The clustering of k clusters before any training, or, of k-means, after it: the same for whatever is trained
        beside it."""
        with seeded(seed, "clusters", k):
            clusterer = make_clusterer(self.clustering, self.vqvae.z_channels, k).to(self.device)
        if self.clustering == "kmeans":
            fit_kmeans(clusterer, latent_batches(self.vqvae, self.codes), seed)
        return clusterer

    def train_clusters(self, clusterer: nn.Module) -> History:
        """Train the classifier, or those of every k, in place without a UNet (setting clusters_first).

        Where `choose_k` has learnt the same ones, they are taken from there.
        """
        alone, each = self.of_each_k, each_of(clusterer)
        if not self.restart and all(run._has_kept() for run in alone):
            for run, one in zip(alone, each, strict=True):
                checkpoints.load_weights(one, run._kept)
            print(f"The clusters were learnt before, in {self.paths.choosing}.")
            return pd.read_csv(self.paths.choosing / "clusters_all" / "log.csv").to_dict("records")
        identity = self._identity(["diffusion", "clusters"], {"autoencoder": self.vqvae})
        return clusters.train_clusters(
            classifier=clusterer,
            vqvae=self.vqvae,
            images=self.train_images,
            codes=self.views,
            settings=self.settings.diffusion,
            stage=self.settings.clusters,
            job=self._stage_job("clusters", identity),
        )

    def keep_clusters(self, clusterer: Classifier) -> None:
        """Keep a classifier that `choose_k` learnt, for `train_clusters` of this k to take."""
        identity = self._identity(["diffusion", "clusters"], {"autoencoder": self.vqvae})
        if not checkpoints.is_saved(clusterer, self._kept, identity):
            checkpoints.save_weights(clusterer, self._kept, identity)

    def _has_kept(self) -> bool:
        """Whether `keep_clusters` kept a classifier of this k, of these settings, data and seed."""
        identity = self._identity(["diffusion", "clusters"], {"autoencoder": self.vqvae})
        about = read_json(self._kept.with_suffix(".json")) if self._kept.exists() else None
        return about is not None and not differences(without(about, "weights", "versions", "replaces"), identity)

    @property
    def _kept(self) -> Path:
        return self.paths.choosing / f"classifier_{self.n_clusters}.pth"

    def stage(self, name: str) -> StageSettings:
        """The settings of "training", "finetuning1" or "finetuning2"; clusters that were learnt first learn no more."""
        stage = getattr(self.settings, name)
        return replace(stage, trains_clusters=False) if self.settings.clusters_first else stage

    def what_is_minimised(self, name: str) -> str:
        """The loss of a stage in words and numbers."""
        stage, how = self.stage(name), self.settings.diffusion
        target = {"noise": "the noise", "v": "the velocity v = alpha noise - sigma latent"}[how.prediction]
        text = f"{stage.epochs} epochs of {stage.optimizer}: mean squared error of {target}, the cluster being given"
        if stage.trains_clusters and self.clustering == "classifier":
            weights = information_weights(how, stage)
            text += "".join(f" {'-' if w < 0 else '+'} {abs(w)} {name}" for name, w in weights.items())
        return text

    def how_images_are_drawn(self) -> str:
        how = self.settings.sampling
        return f"{how.sampler}, {how.steps} steps, guidance {how.guidance}; each image has a seed of its own"

    def train(self, name: str, networks: Networks) -> History:
        """Train the networks in place through the stage of that name, and save what it changed.

        Of several numbers of clusters the networks of each k are saved as well, as if they had been trained alone.
        """
        runs = (self, *(self.of_each_k if len(self.ks) > 1 else ()))
        begin = (networks, *(networks.of_each_k() if len(self.ks) > 1 else ()))
        identities = [run._stage_identity(name, own) for run, own in zip(runs, begin, strict=True)]
        del begin
        history = diffusion.train_stage(
            unet=networks.unet,
            clusterer=networks.clusterer,
            space=networks.space,
            images=self.train_images,
            codes=self.views,
            settings=self.settings.diffusion,
            stage=self.stage(name),
            job=self._stage_job(name, identities[0]),
            picture=partial(self._drawn, networks),
        )
        ended = (networks, *(networks.of_each_k() if len(self.ks) > 1 else ()))
        for run, own, identity in zip(runs, ended, identities, strict=True):
            checkpoints.save_stage(run.paths, name, *own, len(history), identity, self.settings.clusters_first)
        self.end_restart()
        return history

    def _stage_identity(self, name: str, networks: Networks) -> dict[str, Any]:
        """What the networks after a stage depend on, `networks` being those before it."""
        starts_from = {"autoencoder": self.vqvae}
        if checkpoints.START[name] is not None:
            starts_from |= {"unet": networks.unet, "clusters": networks.clusterer}
        return self._identity(["diffusion", name], starts_from)

    def _reconstructed(self, vqvae: VQVAE) -> Tensor:
        """Two rows of four training tiles, each above the row of what the autoencoder makes of them."""
        tiles = self.train_images[torch.arange(8) * len(self.train_images) // 8]
        made = to_uint8(reconstruct(vqvae, tiles))
        return torch.cat([rows for pair in zip(tiles.split(4), made.split(4), strict=True) for rows in pair])

    def _drawn(self, networks: Networks, unet: UNet) -> Tensor:
        """16 tiles of the clusters in turn, in few steps; of the same noise whatever the UNet has learnt."""
        few, settings = self.settings.sampling, self.settings
        if settings.diffusion.num_timesteps > PICTURE_STEPS:
            few = replace(few, sampler="dpm-solver++", steps=PICTURE_STEPS)
        generator = Generator(unet, networks.clusterer, networks.space, replace(settings, sampling=few), torch.empty(0))
        return generator.draw(torch.arange(PICTURED) % sum(self.ks), progress=False)

    def _whole_identity(self) -> Identity:
        return self._identity(["autoencoder", "diffusion", "clusters", *checkpoints.START], {})

    def _identity(self, groups: Sequence[str], starts_from: Mapping[str, nn.Module]) -> dict[str, Any]:
        return self._identity_of(groups, starts_from, n_clusters=self.n_clusters, clustering=self.clustering)

    def _identity_of(
        self, groups: Sequence[str], starts_from: Mapping[str, nn.Module], **inputs: Any
    ) -> dict[str, Any]:
        if self.settings.start_from is not None:
            inputs["start_weights"] = self._start_fingerprint
        return checkpoints.identity(self.settings, groups, self.tiles, self.seed, starts_from, **inputs)

    @cached_property
    def _start_weights(self) -> dict[str, Tensor]:
        return starting_weights(self.settings.start_from)

    @cached_property
    def _start_fingerprint(self) -> str:
        """Of what lies at the path `start_from` by now."""
        return checkpoints.fingerprint_of_state(self._start_weights)

    def _stage_job(self, name: str, identity: Mapping[str, Any]) -> Job:
        folder = self.paths.training_folder(name, self.clustering)
        return self._job(name, folder, identity, self.settings.diffusion.batch_size)

    def _job(self, name: str, folder: Path, identity: Mapping[str, Any], batch_size: int) -> Job:
        """A training, which begins only where nothing would stop this run later: files of other tiles or networks."""
        if self.paths.training_images.exists():
            self._same_training_images()
        of_all = folder.parent == self.paths.autoencoder.parent
        drawn = self.paths.root.glob("clusters_*/gen_*") if of_all else [paths.generated for paths in self._of_ks]
        return Job(
            name, self.seed, batch_size, folder, identity, self.settings.saving, self.speed, self.restart_name,
            outdates=[*sorted(drawn), *self.foreign_csvs],
        )  # fmt: skip

    @property
    def _of_ks(self) -> list[Paths]:
        return [replace(self.paths, n_clusters=k) for k in self.ks]

    @property
    def foreign_csvs(self) -> list[Path]:
        """The CSVs, of each k, that do not say which run they are of: this run's cannot be written in their place."""
        found = [paths.latent_csv for paths in self._of_ks if paths.latent_csv.exists()]
        return [path for path in found if of_csv(path) is None]

    @cached_property
    def restart_name(self) -> str | bool:
        """`restart`, with a name where it has none, by which all trainings of this notebook are restarted together:
        the same one until the last of them is done, see `end_restart`."""
        return name_of_restart(self._restart_note, self._whole_identity()) if self.restart is True else self.restart

    def end_restart(self) -> None:
        """To be called when the last training of a notebook is done."""
        self._restart_note.unlink(missing_ok=True)

    @property
    def _restart_note(self) -> Path:
        name = f"restart_{self.notebook}_{self.n_clusters}{self.paths.suffix}.json"
        return self.paths.autoencoder.parent / name

    # after training

    @cache  # noqa: B019 - a run lives as long as its notebook
    def networks(self, stage: str = "finetuning2") -> Networks:
        """The trained networks after a stage."""
        return Networks(
            *checkpoints.load_stage(
                self.paths, self.settings, stage, self.clustering, self.vqvae, self.device, self.identity
            )
        )

    @cached_property
    def clusterer(self) -> nn.Module:
        """The clusters after the last stage."""
        return checkpoints.load_clusterer(
            self.paths, "finetuning2", self.clustering, self.vqvae, self.device, self.settings.clusters_first,
            self.identity,
        )  # fmt: skip

    def assign(self, images: Tensor | None = None, stage: str | None = None) -> tuple[Tensor, Tensor]:
        """The cluster (N,), 0-based, of uint8 images (N, 3, S, S) and its probability (N,), both on the CPU.

        images: None for the training tiles, whose codes are kept. stage: None for the clusters after the last.
        """
        clusterer = self.clusterer if stage is None else self.networks(stage).clusterer
        codes = self.codes if images is None else encode_tiles(self.vqvae, images.to(self.device))
        return predict_clusters(self.vqvae, clusterer, codes)

    @cached_property
    def assigned(self) -> tuple[Tensor, Tensor]:
        """`assign` of the training tiles."""
        return self.assign()

    def sets(self, generated: Tensor, cluster_ids: Tensor | None = None) -> EvaluationData:
        """Generated tiles, uint8 (N, 3, S, S), beside the training and the test tiles, all on the CPU, to be measured.

        cluster_ids: the clusters (N,), 0-based, that they were asked for; None: no measure will ask for clusters.
        """
        real, held_out = (self.tiles.tensor(part) for part in (self.tiles.train, self.tiles.test))
        if cluster_ids is None:
            return EvaluationData(real, generated, held_out, vqvae=self.vqvae, codes=self.codes, mpp=self.tiles.mpp)
        ids = (self.assigned[0], cluster_ids, self.assign(self.test_images)[0])
        labels = map(self.tiles.labels_of, (self.tiles.train, self.tiles.test))
        return EvaluationData(
            real, generated, held_out, *map(np.asarray, ids), *labels, vqvae=self.vqvae, codes=self.codes,
            clusterer=self.clusterer, n_clusters=self.n_clusters, names=self.names, mpp=self.tiles.mpp,
        )  # fmt: skip

    def assign_all(self) -> tuple[np.ndarray, np.ndarray]:
        """The cluster (N,), 0-based, of each of `tiles`, on whatever side of the split, and its probability (N,)."""
        tiles = self.tiles
        cluster_ids, confidence = np.empty(len(tiles.images), np.int64), np.empty(len(tiles.images))
        rest = np.setdiff1d(np.arange(len(tiles.images)), tiles.train)
        parts = [(tiles.train, self.assigned)]
        bar = processes.progress(
            np.split(rest, range(AT_ONCE, len(rest), AT_ONCE)), desc="assign tiles", unit="batch", leave=False, delay=2
        )
        parts += [(some, self.assign(tiles.tensor(some))) for some in bar]
        for some, (of_some, sure) in parts:
            cluster_ids[some], confidence[some] = of_some, sure
        return cluster_ids, confidence

    def examples(self, cluster: int, number: int) -> Tensor:
        """At most `number` training tiles of a cluster, evenly spaced over its tiles: uint8 (n, 3, S, S) on the CPU."""
        members = self.tiles.train[(self.assigned[0] == cluster).numpy()]
        return self.tiles.tensor(members[evenly_spaced(len(members), number)])

    def draw(
        self,
        cluster_ids: Tensor | Sequence[int] | str,
        number: int | Sequence[int] = 1,
        stage: str = "finetuning2",
        progress: bool = True,
        *,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """A generated tile for each cluster id, uint8 (N, 3, S, S) on the CPU, as the settings' `sampling` says.

        cluster_ids: or the name of a cluster, of which `number` are drawn. seeds: one for each tile, which may also be
        given as the second argument; None: those of its place in `cluster_ids`.
        """
        if not isinstance(number, int | np.integer):
            number, seeds = 1, number
        by_name = isinstance(cluster_ids, str)
        drawing = self.generator(stage) if by_name else Generator(
            *self.networks(stage), self.settings, torch.empty(0), speed=self.speed
        )  # fmt: skip
        return drawing.draw(cluster_ids, number=number, seed=self.seed, seeds=seeds, progress=progress)

    def generator(self, stage: str = "finetuning2") -> Generator:
        """What this run learnt, ready to be saved and handed on."""
        sizes = self.assigned[0].bincount(minlength=self.n_clusters)
        networks = self.networks(stage)
        return Generator(
            *networks, self.settings, sizes / sizes.sum(), names=self.names, speed=self.speed, mpp=self.tiles.mpp
        )

    # names of the clusters

    def reading(self, reader: str) -> Reading:
        """What a reader calls the clusters; what is named in it is kept in `names_READER.json` at once."""
        path = self.paths.names_of(check_reader(reader))
        return Reading.load(path, checkpoints.fingerprint_of_clusters(self.vqvae, self.clusterer), self.n_clusters)

    @property
    def readings(self) -> list[Reading]:
        """Of all readers who named these clusters."""
        fingerprint = checkpoints.fingerprint_of_clusters(self.vqvae, self.clusterer)
        return readings_in(self.paths.cluster_folder, fingerprint, self.n_clusters)

    @property
    def names(self) -> dict[int, str]:
        """The names of the clusters, by their numbers from 1, on which those who named them agree."""
        return agreed(self.readings)

    def test_samples(self, stage: str) -> tuple[Tensor, Tensor, Tensor]:
        """The test tiles that Figure 4 shows, their clusters, and a tile drawn from each cluster after that stage.

        The noise is the same for every stage, so that what is drawn differs by the training alone.
        """
        shown = self.tiles.tensor(self.tiles.test[figures.figure_4_tiles(len(self.tiles.test))])
        cluster_ids, _ = self.assign(shown, stage)
        print("clusters:", [cluster + 1 for cluster in cluster_ids.tolist()])
        return shown, cluster_ids, self.draw(cluster_ids, stage=stage)

    # files of this run

    def save_panel(self, figure: Figure, number: int, name: str) -> None:
        """Write a panel of Figure 3 or 4 twice: as published, where the last run replaces it whatever its k, and with k
        in its name."""
        for path in (self.paths.figure(number, name), self.paths.figure(number, f"{name}_k{self.n_clusters}")):
            figures.save_figure(figure, path)

    def write_training_images(self) -> None:
        """Write the `chosen` training tiles into `org`."""
        folder, numbers, note = self.paths.training_images, self.chosen + 1, self.paths.training_images / MADE_FROM
        own = self._same_training_images()
        processes.wait_for_all()  # before any of them writes what another would find there
        write_json(note, own)
        write_tiles(folder, numbers, self.tiles.tensor(self.tiles.train[self.chosen]))

    def _same_training_images(self) -> dict[str, Any]:
        """What the images in `org` must be of; InputError where those that are there are of other tiles."""
        folder = self.paths.training_images
        refuse_other_images(folder, self.chosen + 1)
        own = without(checkpoints.identity(self.settings, [], self.tiles, self.seed), *NOT_COMPARED)
        if image_files(folder):
            if not (note := folder / MADE_FROM).exists():
                raise InputError(f"{folder} does not say of which tiles its images are: move or delete it first.")
            same_identity(read_json(note), own, folder)
        return own

    def write_latent_csv(self, table: pd.DataFrame, clusterer: nn.Module | None = None) -> None:
        """Write the rows of all training tiles as published, and beside them what they are of.

        clusterer: whose clusters they are; None: those after the last stage. Others do not replace these. InputError
        where there is a file that does not say which run it is of, such as the published one.
        """
        path, stage = self.paths.latent_csv, "finetuning2"
        if clusterer is not None and path.exists():
            stage = checkpoints.stage_of_clusters(stage, self.clustering, self.settings.clusters_first)
            trained = checkpoints.weights_of(self.paths, self.clustering, stage, self.clustering)
            if trained not in (None, checkpoints.fingerprint(clusterer)):
                print(f"{path} is left as it is: it is of clusters that were trained with a UNet.")
                return
        content = table.to_csv(header=False, index=False).encode()
        if path in self.foreign_csvs and path.read_bytes() != content:
            raise InputError(f"{path} does not say which run it is of: move it away for one of this run.")
        with atomic_write(path) as file:
            file.write(content)
        networks = {"autoencoder": self.vqvae, "clusters": clusterer or self.clusterer}
        about = {**self._identity(["diffusion"], networks), "sha256": sha256(content).hexdigest()}
        write_json(path.with_suffix(".json"), about)

    def draw_to_folder(self, cluster_ids: Tensor, only: tuple[int, int] | None = None) -> None:
        """Draw a tile for each of the `chosen` training tiles into `gen_k`, those that are not there yet."""

        def draw(cluster_ids: Tensor, seeds: Sequence[int]) -> Tensor:
            return self.draw(cluster_ids, seeds=seeds, progress=False)

        batch_size = self.settings.sampling.batch_size
        generate_to_folder(
            draw,
            self.paths.generated,
            self.chosen + 1,
            cluster_ids,
            seed=self.seed,
            batch_size=batch_size,
            identity=self._drawn_from(),
            only=only,
        )
        write_table(self.paths.generated, self.chosen + 1, cluster_ids, self.names, self.seed)

    def write_generated_table(self) -> None:
        """Write `tiles.csv` of `gen_k` anew, with the names that clusters have now, where it is of these networks."""
        with suppress(InputError):
            self.generated()
            seed = read_json(self.paths.generated / GENERATED_WITH, {}).get("seed", self.seed)
            write_table(self.paths.generated, self.chosen + 1, self.assigned[0][self.chosen], self.names, seed)

    def samples(self, number: int) -> tuple[Tensor, Tensor]:
        """`number` generated tiles of each cluster, uint8 (k * number, 3, S, S), and the clusters (k * number,) asked
        for. They are kept beside the networks, so that an atlas opens at once."""
        cluster_ids = torch.arange(self.n_clusters).repeat_interleave(number)
        path = self.paths.models / f"atlas_tiles{self.paths.suffix}.pt"
        made_from = {**self._drawn_from(), "number": number}
        return checkpoints.cached_tensor(path, made_from, lambda: self.draw(cluster_ids)), cluster_ids

    def _drawn_from(self) -> dict[str, Any]:
        """All that the images of a folder depend on."""
        networks = self.networks()
        starts_from = {"autoencoder": self.vqvae, "unet": networks.unet, "clusters": networks.clusterer}
        return checkpoints.identity(
            self.settings, ["diffusion"], self.tiles, self.seed, starts_from, **self._drawn_with()
        )

    def _drawn_with(self) -> dict[str, Any]:
        return {**self._sampling(), "decoder": checkpoints.fingerprint(self.vqvae)}

    def _sampling(self) -> dict[str, Any]:
        how = self.settings.sampling
        return {"steps": how.steps, "sampler": how.sampler, "guidance": how.guidance}

    def generated(self) -> dict[str, Path]:
        """The files of `gen_k` by name. InputError where they are of other networks, data or settings."""
        folder = self.paths.generated
        files = list_images(folder)
        newest = {
            "autoencoder": checkpoints.fingerprint_of_role(self.vqvae),
            "unet": checkpoints.weights_of(self.paths, "unet", "finetuning2", self.clustering),
        }
        known = {name: weights for name, weights in newest.items() if weights is not None}
        same_identity(
            read_json(folder / GENERATED_WITH), {**self.identity, **self._drawn_with(), "starts_from": known}, folder
        )
        return files

    def generated_images(self) -> tuple[list[str], Tensor]:
        """The names of `generated`, and the images, uint8 (N, 3, S, S) at the size of the tiles."""
        files = self.generated()
        return [*files], match_size(read_images(files.values()), self.settings.image_size_px)

    def _as_told(self) -> Identity:
        """`identity`, as far as it is known to those who need no tiles: nothing where no data are named, for which the
        embedded tiles would stand, or where they are not there."""
        named = self.data is not None or "KPC_DATA" in os.environ
        return self.identity if named and are_there(self.data) else {}

    def cluster_ids_of(self, names: Sequence[str]) -> np.ndarray:
        """The clusters (N,) that the CSV gives the training tiles of these numbers, from 1. InputError where it is of
        other networks, data or settings."""
        path, networks = self.paths.latent_csv, {"autoencoder": self.vqvae, "clusters": self.clusterer}
        cluster_ids = pair_cluster_ids(path, names)
        fingerprints = {name: checkpoints.fingerprint_of_role(network) for name, network in networks.items()}
        same_identity(of_csv(path), {**self.identity, "starts_from": fingerprints}, path)
        return cluster_ids

    def pairs(self) -> tuple[Tensor, Tensor, np.ndarray]:
        """Training tiles and the generated ones of the same numbers, both uint8 (N, 3, H, W), and their clusters (N,).

        InputError where `org`, `gen_k` and the CSV are not of one run.
        """
        original, generated, csv = self.paths.training_images, self.paths.generated, self.paths.latent_csv
        for folder in (original, generated):
            list_images(folder)
        drawn, table = read_json(generated / GENERATED_WITH), of_csv(csv)
        told = self._as_told()
        same_identity(drawn, {**told, **self._sampling()} if told else {}, generated)
        for path, about in ((original, read_json(original / MADE_FROM)), (csv, table)):
            same_identity(about, without(drawn or table or {}, *NOT_COMPARED), f"{path} beside {generated}")
        self.told.update(drawn or table or {})
        names, real, fake = load_pairs(original, generated)
        print(f"{len(names)} pairs of {real.shape[2]} px")
        return real, fake, pair_cluster_ids(csv, names)

    def latent_csvs(self) -> dict[int, Path]:
        """The CSVs of every k, by k. InputError where they are of different data."""
        found = self.paths.latent_csvs()
        if not found:
            raise InputError(f"There is no clusters_*/HHH*_C*_D*.csv in {self.paths.root}: run part_5 first.")
        first, *others = [(path, of_csv(path)) for path in found.values()]
        told = without(self._as_told(), "n_clusters", "clustering")
        same_identity(first[1], told, first[0])
        alike = without(first[1] or {}, *NOT_COMPARED, "n_clusters", "clustering", "starts_from.clusters", "sha256")
        for path, about in others:
            same_identity(about, alike, f"{path} beside {first[0]}")
        self.told.update({name: first[1][name] for name in ("data", "clustering")} if first[1] else {})
        return found

    def map_clusters(self) -> Section:
        """Write the maps of all tiles' clusters on their slides, see `maps.write_maps`; and tell what they show.

        Tiles that do not tell where they were cut have no map, and the section says so.
        """
        tiles, folder, of_run = self.tiles, self.paths.maps, self._assigned_with()
        if tiles.positions is None:
            why = "These tiles do not tell where they were cut, so there is no map"
            return Section("Cluster maps", [f"{why}: python -m pfiles tile cuts tiles that do."])
        section = maps.write_maps(
            folder, maps.Assigned(tiles.positions, *self.assign_all()), tiles.images, self.n_clusters,
            names=self.names, patients=tiles.patients, pictures=tiles.pictures, seed=self.seed,
        )  # fmt: skip
        write_json(folder / MADE_FROM, self._identity(["diffusion"], of_run))
        return section

    def _assigned_with(self) -> dict[str, nn.Module]:
        return {"autoencoder": self.vqvae, "clusters": self.clusterer}

    def assigned_of_every_k(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """The clusters (N,), 0-based, of the training tiles and their probabilities (N,), by k, as the CSVs tell."""
        found = {}
        for k, path in self.latent_csvs().items():
            _, cluster_ids = read_latent_csv(path, k)
            if len(cluster_ids) == len(self.tiles.train):
                found[k] = cluster_ids, pd.read_csv(path, header=None).iloc[:, -1].to_numpy()
        return found

    def record(self, scores: Mapping[str, Any]) -> None:
        """Put the notebook's numbers into the run's summary, and beside it the identity of what they are of."""
        part, suffix = self.notebook.startswith("part_"), self.paths.suffix
        section = f"clusters_{self.n_clusters}{suffix}/{self.notebook}" if part else f"{self.notebook}{suffix}"
        of = self._whole_identity() if "tiles" in vars(self) else self.told
        tables.record(self.paths.summary, section, scores, of)
