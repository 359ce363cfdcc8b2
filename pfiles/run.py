"""A run, opened once: its settings, its paths, and what is made of them when it is first asked for.

`learn`, `draw`, `artifacts` and `report` are what is done with it. `Run` has more members than other classes here, as
each thing that can be asked of a run is one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pfiles import checkpoints
from pfiles.cached import cached_codes
from pfiles.choices import DEFAULTS, K_INDEPENDENT_NOTEBOOKS, resolve_choices
from pfiles.cluster_bank import ClusterBank
from pfiles.clusterers import require_clustering
from pfiles.discriminator import Discriminator, FeatureDiscriminator, PolishDiscriminator
from pfiles.drawing.generator import Generator
from pfiles.drawing.starting import starting_weights
from pfiles.errors import InputError
from pfiles.latents import Assignment, encode_tiles, encode_views, predict_clusters
from pfiles.machine import processes
from pfiles.machine.runtime import pick_device
from pfiles.machine.speed import Speed, pick_precision, pick_speed
from pfiles.names import load_reader_names, majority_names
from pfiles.paths import Paths, name_of_numbers, numbers_of_clusters, read_json, write_json
from pfiles.provenance import IGNORED, Provenance, require_same_run
from pfiles.settings import Settings, get_settings
from pfiles.tiles.dataset import Tiles, load_tiles, refuse_results_among_tiles
from pfiles.tiles.pixels import evenly_spaced
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE

NO_SETTINGS = ("im_channels", "cls", "upsampling", "maps")  # arguments of networks that follow from something else
INDEPENDENT_OF_K = ("device", "speed", "tiles", "vqvae", "view_codes")  # assets that runs of several k share


@dataclass(frozen=True, eq=False)
class Run:
    """See `open_run`. What takes time is made when it is first asked for, and kept, the codes of the tiles in a file.

    restart: whether trainings begin anew, or the name under which they do so once.
    assets: what is there already, by the name of the property that would make it.
    """

    notebook: str
    n_clusters: int | str
    clustering: str
    data: str | Path | None
    preset: str
    settings: Settings
    seed: int
    paths: Paths
    restart: bool | str = False
    assets: Mapping[str, Any] = field(default_factory=dict, repr=False)
    _networks: dict[str, Generator] = field(default_factory=dict, init=False, repr=False)  # by stage, once loaded

    def __post_init__(self):
        vars(self).update(self.assets)

    @property
    def ks(self) -> tuple[int, ...]:
        """The values of k in this run; usually one."""
        return numbers_of_clusters(self.n_clusters)

    @property
    def k(self) -> int:
        """The number of clusters of all k together, which is the number of rows of the UNet's embedding."""
        return sum(self.ks)

    @cached_property
    def per_k(self) -> tuple["Run", ...]:
        """A run of each k alone; this run itself if it has only one k."""
        if len(self.ks) == 1:
            return (self,)
        assets = {name: getattr(self, name) for name in INDEPENDENT_OF_K}
        return tuple(
            replace(self, n_clusters=k, paths=replace(self.paths, n_clusters=k), assets=assets) for k in self.ks
        )

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
        processes.join()
        tiles = load_tiles(self.data, settings.image_size_px, settings.max_train_tiles, max(self.ks), settings.icc)
        tiles.hash_together()
        print(f"{len(tiles.train)} training and {len(tiles.test)} test tiles from {tiles.source}")
        return tiles

    @cached_property
    def train_images(self) -> Tensor:
        """The training tiles as uint8 (N, 3, S, S) on the device."""
        return self.tiles.tensor(self.tiles.train, self.device)

    @cached_property
    def test_images(self) -> Tensor:
        """The test tiles, likewise."""
        return self.tiles.tensor(self.tiles.test, self.device)

    @cached_property
    def selected_tiles(self) -> np.ndarray:
        """The training tiles (places among them, from 0) that `org` and part 6 use: evenly spaced."""
        return evenly_spaced(len(self.tiles.train), self.settings.sampling.num_generated or len(self.tiles.train))

    @cached_property
    def provenance(self) -> Provenance:
        """What every file of this run agrees with, if it says so: data, settings, clusters. Seeds may differ."""
        return self.provenance_of("autoencoder", "diffusion", "clusters", *checkpoints.START).without(*IGNORED)

    def provenance_of(
        self, *groups: str, parents: Mapping[str, str] | None = None, of_clusters: bool = True, **inputs: Any
    ) -> Provenance:
        """The provenance of what is made with these groups of settings and networks, see `Provenance.of`.

        of_clusters: whether number and kind of clusters count.
        """
        clusters = {"n_clusters": self.n_clusters, "clustering": self.clustering} if of_clusters else {}
        if self.settings.start_from is not None:
            inputs["start_weights"] = checkpoints.fingerprint_of_state(self.start_weights)
        return Provenance.of(self.settings, groups, self.tiles, self.seed, parents, **clusters, **inputs)

    @cached_property
    def start_weights(self) -> dict[str, Tensor]:
        """The tensors that autoencoder and UNet begin from, where the setting start_from names some."""
        start_from = self.settings.start_from
        return {} if start_from is None else starting_weights(start_from, self.settings.diffusion)

    @cached_property
    def vqvae(self) -> VQVAE:
        """The trained autoencoder, frozen."""
        vqvae = checkpoints.load_autoencoder(self.paths, self.settings, self.device)
        recorded = checkpoints.provenance_of(self.paths.autoencoder, vqvae)
        require_same_run(recorded, self.provenance, self.paths.autoencoder)
        return vqvae

    @cached_property
    def view_codes(self) -> Tensor:
        """The codes that the UNet learns from, (V, N, h, w): of the training tiles, or of their eight views."""
        return encoded_tiles(self, self.settings.diffusion.latent_views, self.paths.codes)

    @property
    def codes(self) -> Tensor:
        """The codebook indices (N, h, w) of the training tiles."""
        return self.view_codes[0]

    @cached_property
    def bank(self) -> ClusterBank:
        """The clusterers after the last stage."""
        return checkpoints.load_clusterer(
            self.paths, "finetuning2", self.clustering, self.vqvae, self.device, self.settings.clusters_first,
            self.provenance,
        )  # fmt: skip

    @cached_property
    def assignment(self) -> Assignment:
        """The cluster of each training tile and its probability."""
        return self.assign()

    def assign(self, images: Tensor | None = None, stage: str | None = None) -> Assignment:
        """The cluster and probability of images, uint8 (N, 3, S, S), or training tiles; stage: None for the last."""
        bank = self.bank if stage is None else self.networks(stage).bank
        codes = self.codes if images is None else encode_tiles(self.vqvae, images.to(self.device))
        return predict_clusters(self.vqvae, bank, codes)

    def networks(self, stage: str = "finetuning2") -> Generator:
        """The trained networks after a stage."""
        if stage not in self._networks:
            unet, bank, space, guide = checkpoints.load_stage(
                self.paths, self.settings, stage, self.clustering, self.vqvae, self.device, self.provenance
            )
            self._networks[stage] = Generator(unet, bank, space, self.settings, speed=self.speed, guide=guide)
        return self._networks[stage]

    @property
    def names(self) -> dict[int, str]:
        """The names of the clusters, by their numbers from 1, on which those who named them agree."""
        fingerprint = checkpoints.fingerprint_of_clusters(self.vqvae, self.bank)
        return majority_names(load_reader_names(self.paths.cluster_folder, fingerprint, self.k))


def encoded_tiles(run: Run, views: bool, path: Path) -> Tensor:
    """The codes of the training tiles (1, N, h, w), or of their eight views (8, N, h, w), cached in `path`.

    All processes of a job make them together. On a CPU they stay in that file, which is mapped.
    """
    made_from = {
        "autoencoder": checkpoints.inference_fingerprint(run.vqvae),
        "data": run.tiles.fingerprint(),
        "views": views,
    }

    def encode(begin: int, end: int) -> Tensor:
        return encode_views(run.vqvae, run.tiles.tensor(run.tiles.train[begin:end], run.device), 8 if views else 1)

    return cached_codes(path, made_from, len(run.tiles.train), encode, run.device).to(run.device)


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
    run_toml: bool = True,
    assets: Mapping[str, Any] | None = None,
    looks: bool = False,
    **misspelt: Any,
) -> Run:
    """Open the run that these parameters describe; nothing is read but its settings until it is asked for.

    With precision="auto" the run's folder keeps which precision was chosen when it was first opened, unless `looks`.

    None takes the value from run.toml, or the default in `choices.DEFAULTS`.
    notebook: who opens it, such as "part_1_training"; its numbers are recorded under that name.
    n_clusters: k; or several, such as "10-16" or [10, 12, 14], whose clusters and UNet are then trained together.
    clustering: "classifier" or "kmeans"; None: as the preset says. data: see `load_tiles`. preset, overrides: see
        `get_settings`.
    out: folder for all results; None: this repository. restart: train anew instead of going on.
    run_toml: whether to read run.toml. assets: see `Run`. looks: it is opened to be looked at, and decides nothing for
        its trainings. misspelt: any other name, which is refused.
    """
    if misspelt:
        names = ", ".join([*DEFAULTS, "restart"])
        raise InputError(f"A run has no choice {', '.join(misspelt)}: it has {names}.")
    arguments = {
        "n_clusters": n_clusters, "clustering": clustering, "data": data, "preset": preset, "overrides": overrides,
        "seed": seed, "out": out,
    }  # fmt: skip
    choices = resolve_choices(arguments, run_toml)
    require_clustering(choices["clustering"])
    if notebook in K_INDEPENDENT_NOTEBOOKS:
        choices["clustering"] = Paths.clustering  # whose files bear no mark
    n_clusters = name_of_numbers(numbers_of_clusters(choices["n_clusters"]))
    if isinstance(n_clusters, str) and notebook.startswith("part_") and notebook not in checkpoints.MADE_BY.values():
        raise InputError(f"{notebook} works with one number of clusters: set n_clusters to one of {n_clusters}.")
    settings = get_settings(choices["preset"], choices["overrides"])
    _require_arguments(settings)
    if choices["clustering"] == "classifier" and notebook not in K_INDEPENDENT_NOTEBOOKS:
        _require_learnt_clusters(settings)
    if settings.sampling.num_generated == 1:
        raise InputError("sampling.num_generated must be at least 2, as part 13 compares distributions, but is 1.")
    paths = Paths(n_clusters, choices["out"], choices["clustering"])
    if settings.precision == "auto":
        settings = replace(settings, precision=_precision(paths, looks))
    return Run(
        notebook, n_clusters, choices["clustering"], choices["data"], choices["preset"], settings, choices["seed"],
        paths, restart, assets or {},
    )  # fmt: skip


def _require_arguments(settings: Settings) -> None:
    """InputError where a network is given an argument that it does not have."""
    autoencoder, polish = settings.autoencoder, settings.autoencoder.polish
    judge = PolishDiscriminator if polish.discriminator_sees == "pixels" else FeatureDiscriminator
    for name, network, arguments in (
        ("autoencoder.vqvae", VQVAE, autoencoder.vqvae),
        ("autoencoder.discriminator", Discriminator, autoencoder.discriminator),
        ("autoencoder.polish.discriminator", judge, polish.discriminator),
        ("diffusion.unet", UNet, settings.diffusion.unet),
    ):
        accepted = [argument for argument in signature(network).parameters if argument not in NO_SETTINGS]
        if unknown := [argument for argument in arguments if argument not in accepted]:
            raise InputError(f"{name} has no {unknown[0]}: it has {', '.join(accepted)}.")


def _require_learnt_clusters(settings: Settings) -> None:
    """InputError if no training would teach a classifier, so that clusters would be what chance made of it."""
    if not (settings.clusters_first or settings.training.trains_clusters or settings.finetuning2.trains_clusters):
        raise InputError(
            "No training of these settings learns clusters: set clusters_first or training.trains_clusters to true, "
            'or take clustering = "kmeans".'
        )


def _precision(paths: Paths, looks: bool) -> Literal["fp32", "bf16"]:
    """What "auto" is for this run: chosen when it is first opened for work and kept, so that a resumed run computes
    alike."""
    recorded = read_json(paths.precision, {}).get("precision")
    if recorded in ("fp32", "bf16"):
        return recorded
    device = pick_device()
    pays = processes.is_first() and pick_precision(device) == "bf16"
    precision: Literal["fp32", "bf16"] = "bf16" if processes.agree(int(pays), device) else "fp32"
    if not looks:
        write_json(paths.precision, {"precision": precision, "device": str(device)})
        print(f"This run computes in {precision} (setting precision='auto'; {paths.precision} keeps it)")
    return precision


def choices_of(folder: Path, **arguments: Any) -> dict[str, Any]:
    """How the run in `folder` was started, for `open_run`: as summary.json says of a run that a command finished there.

    arguments: those of `open_run`, which count more, None for what is not given. n_clusters has to be among them where
    the run has several. What neither says is as run.toml says.
    """
    recorded = read_json(folder / "summary.json", {}).get("run", {})
    names = ("n_clusters", "clustering", "data", "preset", "overrides", "seed")
    arguments = {name: value for name, value in arguments.items() if value is not None}
    choices = {name: recorded[name] for name in names if name in recorded} | arguments
    ks = numbers_of_clusters(recorded["n_clusters"]) if recorded else ()
    if len(ks) > 1 and arguments.get("n_clusters") not in ks:
        raise InputError(
            f"The run in {folder} has {', '.join(map(str, ks))} clusters: name one of these numbers with --clusters."
        )
    return choices
