"""What a run makes: one table of its files, and how each is written, read, and refused where it belongs to another run.

from pfiles import artifacts

artifacts.require(run, "latent CSV")
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import pandas as pd
from torch import Tensor

from pfiles import checkpoints
from pfiles.checkpoints import START
from pfiles.cluster_bank import ClusterBank
from pfiles.errors import InputError
from pfiles.latents import pair_cluster_ids
from pfiles.machine import processes
from pfiles.paths import atomic_write, read_json, write_json
from pfiles.provenance import (
    GENERATED_WITH,
    IGNORED,
    MADE_FROM,
    Provenance,
    of_csv,
    of_images,
    of_json,
    require_same_run,
)
from pfiles.reporting import tables
from pfiles.run import Run
from pfiles.settings import drawing_settings
from pfiles.tiles.dataset import are_there
from pfiles.tiles.files import image_files, list_images, load_pairs, read_images, refuse_other_images, write_tiles
from pfiles.tiles.pixels import match_size


@dataclass(frozen=True)
class Artifact:
    """A file, or a folder of images, that a run makes.

    path: where it lies in a run; None if there is none yet. made_by: the notebook that makes it.
    made_from: "tiles", and the artefacts whose newest weights it must have been made with, but for those `beside` it,
    which may have learnt since.
    settings: the groups of settings that count besides those of the artefacts that it is made from; of "sampling" only
    what pixels depend on. parent: its name in the notes of what is made from it. numbered: whether it is a folder of
    an image for each of the `selected_tiles`.
    """

    name: str
    path: Callable[[Run], Path | None]
    made_by: str
    made_from: tuple[str, ...]
    settings: tuple[str, ...] = ()
    parent: str = ""
    beside: tuple[str, ...] = ()
    numbered: bool = False


def _checkpoint(network: str, stage: str) -> Callable[[Run], Path | None]:
    def path(run: Run) -> Path | None:
        name = run.clustering if network == "clusters" else network
        return checkpoints.newest(run.paths, name, stage, run.clustering)

    return path


def _clusters(run: Run) -> Path | None:
    """The clusters' artefact: the checkpoint of the stage that made the clusters in use."""
    stage = checkpoints.stage_of_clusters("finetuning2", run.clustering, run.settings.clusters_first)
    return _checkpoint("clusters", stage)(run)


ARTIFACTS = (
    Artifact(
        "autoencoder", lambda run: run.paths.autoencoder, "train_autoencoder", ("tiles",), ("autoencoder",),
        parent="autoencoder",
    ),
    Artifact(
        "training images", lambda run: run.paths.training_images, "save_training_images", ("tiles",), numbered=True
    ),
    Artifact(
        "clusters", _clusters, "part_1_training", ("tiles", "autoencoder"),
        ("diffusion", "clusters", "training", "finetuning2"), parent="clusters",
    ),
    *(
        Artifact(
            f"UNet after {stage}", _checkpoint("unet", stage), checkpoints.MADE_BY[stage],
            ("tiles", "autoencoder", "clusters", *([] if before is None else [f"UNet after {before}"])),
            ("diffusion", stage), parent="unet", beside=("clusters",),
        )
        for stage, before in START.items()
    ),
    Artifact(
        "latent CSV", lambda run: run.paths.latent_csv, "part_5_latent_space_extraction",
        ("tiles", "autoencoder", "clusters"), ("diffusion",),
    ),
    Artifact(
        "generated images", lambda run: run.paths.generated, "part_6_conditional_generation",
        ("tiles", "autoencoder", "clusters", "UNet after finetuning2"), ("diffusion", "sampling"), numbered=True,
    ),
    Artifact(
        "maps", lambda run: run.paths.maps, "part_15_cluster_maps", ("tiles", "autoencoder", "clusters"), ("diffusion",)
    ),
)  # fmt: skip
BY_NAME = {artifact.name: artifact for artifact in ARTIFACTS}


# What is recorded, what must be, and whether they agree


def is_there(path: Path | None) -> TypeGuard[Path]:
    """Whether a file is there, or a folder with something in it."""
    return path is not None and path.exists() and (path.is_file() or any(path.iterdir()))


def require_there(run: Run, name: str) -> Path:
    """The path of an artefact; InputError if there is none, which names the numbers of clusters that have one."""
    path = BY_NAME[name].path(run)
    if is_there(path):
        return path
    others = (replace(run, n_clusters=n, paths=replace(run.paths, n_clusters=n)) for n in run.paths.numbers)
    ks = ", ".join(str(other.n_clusters) for other in others if is_there(BY_NAME[name].path(other)))
    advice = f", or set n_clusters to one that was made ({ks})" if ks else ""
    raise InputError(f"There is no {path or name}: run {BY_NAME[name].made_by} first{advice}.")


def recorded(run: Run, name: str) -> Provenance | None:
    """The provenance beside an artefact; None if it has none, as published files."""
    path = require_there(run, name)
    if path.is_dir():
        return of_images(path)
    if path.suffix == ".csv":
        return of_csv(path)
    note = read_json(path.with_suffix(".json"))
    if note is None or not checkpoints.is_made_here(path):
        return None
    return Provenance.from_note(note)


def expected(run: Run, name: str) -> Provenance:
    """What the provenance of an artefact must agree with in this run, by the table: its data and settings, and the
    newest weights of what it is made from, as far as these are known."""
    artifact = BY_NAME[name]
    if not artifact.settings:
        return Provenance.of(run.settings, (), run.tiles, run.seed).without(*IGNORED)
    inputs = _inputs(run) if "sampling" in artifact.settings else {}
    groups = sorted(_counting(artifact) - {"sampling"})
    return run.provenance_of(*groups, parents=_parents(run, artifact), **inputs).without(*IGNORED)


def settings_of(name: str) -> tuple[str, ...]:
    """The groups of settings that the note of an artefact holds whole: its own in the table."""
    return tuple(group for group in BY_NAME[name].settings if group != "sampling")


def _counting(artifact: Artifact) -> set[str]:
    """The groups of settings on which an artefact depends, by itself or by what it is made from."""
    parents = (BY_NAME[name] for name in artifact.made_from if name != "tiles")
    return set(artifact.settings).union(*map(_counting, parents))


def _parents(run: Run, artifact: Artifact) -> dict[str, str]:
    """The newest weights of what an artefact is made from, by the names in its note, where they are known."""
    artifacts = [BY_NAME[name] for name in artifact.made_from if name not in ("tiles", *artifact.beside)]
    parents = {
        part.parent: checkpoints.inference_fingerprint(run.vqvae)
        if part.name == "autoencoder"
        else _weights(part.path(run))
        for part in artifacts
    }
    return {name: weights for name, weights in parents.items() if weights is not None}


def _weights(path: Path | None) -> str | None:
    """The fingerprint of a checkpoint, from its note if it has one."""
    if path is None:
        return None
    weights = read_json(path.with_suffix(".json"), {}).get("weights")
    return weights or checkpoints.fingerprint_of_state(checkpoints.read_state(path))


def require(run: Run, name: str) -> Path:
    """The path of an artefact; InputError if there is none, if its provenance is not what this run expects, or if
    images are missing."""
    path, provenance = require_there(run, name), recorded(run, name)
    require_same_run(provenance, expected(run, name), path)
    if provenance is not None and (lack := lack_of(run, name)):
        raise InputError(f"{path} lacks {lack}.")
    return path


def lack_of(run: Run, name: str) -> str:
    """How many of the images of `selected_tiles` an unfinished folder lacks, and what to do; "" for none.

    A folder gets its provenance before its first image.
    """
    if not BY_NAME[name].numbered:
        return ""
    missing = {str(number) for number in run.selected_tiles + 1} - image_files(require_there(run, name)).keys()
    return f"{len(missing)} of {len(run.selected_tiles)} images: run {BY_NAME[name].made_by} again" if missing else ""


def _inputs(run: Run) -> dict[str, Any]:
    """What generated images depend on besides the groups of settings and the parents in their note."""
    return _sampling(run) | {"decoder": checkpoints.fingerprint(run.vqvae)}


def _sampling(run: Run) -> dict[str, Any]:
    sampling = run.settings.sampling
    accept = {"accept": sampling.accept} if sampling.accept < 1 else {}  # else as if there were no such setting
    return drawing_settings(sampling) | accept


# Before a training


def blocked_by(run: Run, folder: Path) -> list[Path]:
    """Files that forbid a training in `folder`: images that the present networks drew, which would become stale, and
    CSVs without provenance, which no later part may replace. InputError if the training images are of other tiles."""
    if run.paths.training_images.exists():
        require_own_training_images(run)
    of_every_k = folder.parent == run.paths.autoencoder.parent
    paths_per_k = [replace(run.paths, n_clusters=k) for k in run.ks]
    generated = run.paths.root.glob("clusters_*/gen_*") if of_every_k else [paths.generated for paths in paths_per_k]
    return [*sorted(generated), *unknown_csvs(run)]


def unknown_csvs(run: Run) -> list[Path]:
    """The CSVs, of each k, without provenance: this run never replaces them."""
    csvs = [replace(run.paths, n_clusters=k).latent_csv for k in run.ks]
    return [path for path in csvs if path.exists() and of_csv(path) is None]


# Training images


def write_training_images(run: Run) -> None:
    """Write the `selected_tiles` into `org`."""
    folder, note = run.paths.training_images, run.paths.training_images / MADE_FROM
    provenance = require_own_training_images(run)
    processes.wait_for_all()  # before any of them writes what another would find there
    write_json(note, provenance.as_note())
    write_tiles(folder, (run.selected_tiles + 1).tolist(), run.tiles.tensor(run.tiles.train[run.selected_tiles]))


def require_own_training_images(run: Run) -> Provenance:
    """The provenance that the images in `org` must have; InputError if those that are there are of other tiles."""
    folder, provenance = run.paths.training_images, expected(run, "training images")
    refuse_other_images(folder, run.selected_tiles + 1)
    if image_files(folder):
        if not (note := folder / MADE_FROM).exists():
            raise InputError(
                f"{folder} has no provenance, so its images may show other tiles: move or delete it first."
            )
        require_same_run(of_json(note), provenance, folder)
    return provenance


# The latent CSV


def write_latent_csv(run: Run, table: pd.DataFrame, clusters: ClusterBank | None = None) -> None:
    """Write the rows of all training tiles as published, and their provenance beside them.

    clusters: that the rows are of; None: those after the last stage. Others do not replace these. InputError if
    there is a file without provenance, such as the published one.
    """
    path = run.paths.latent_csv
    csv_weights = _weights(_clusters(run)) if clusters is not None and path.exists() else None
    if clusters is not None and csv_weights not in (None, checkpoints.fingerprint(clusters)):
        print(f"{path} stays as it is: its clusters were trained with a UNet.")
        return
    content = table.to_csv(header=False, index=False).encode()
    if path in unknown_csvs(run) and path.read_bytes() != content:
        raise InputError(f"{path} has no provenance and would be replaced: move it away first.")
    with atomic_write(path) as file:
        file.write(content)
    parents = checkpoints.fingerprints({"autoencoder": run.vqvae, "clusters": clusters or run.bank})
    note = run.provenance_of(*settings_of("latent CSV"), parents=parents).as_note()
    write_json(path.with_suffix(".json"), {**note, "sha256": sha256(content).hexdigest()})


def cluster_ids_of(run: Run, names: Sequence[str]) -> np.ndarray:
    """The clusters (N,) of training tiles by their numbers, from 1, from the CSV; see `require`."""
    return pair_cluster_ids(require(run, "latent CSV"), names)


class LatentCSVs(NamedTuple):
    """The CSVs of every k, by k, and what is known of their provenance."""

    paths: dict[int, Path]
    provenance: Provenance


def latent_csvs(run: Run) -> LatentCSVs:
    """The CSVs of every k. InputError if they are of different data, or of other data than this run."""
    paths = run.paths.latent_csvs()
    if not paths:
        raise InputError(f"There is no clusters_*/HHH*_C*_D*.csv in {run.paths.root}: run part_5 first.")
    recorded_in = {path: of_csv(path) for path in paths.values()}
    with_note = {path: provenance for path, provenance in recorded_in.items() if provenance is not None}
    first, of_first = next(iter(with_note.items()), (None, Provenance()))
    shared = of_first.without(*IGNORED, "n_clusters", "clustering", "starts_from.clusters", "sha256")
    for path, provenance in with_note.items():
        require_same_run(provenance, shared, f"{path} beside {first}")
    for path, of_path in recorded_in.items():
        require_same_run(of_path, known_provenance(run).without("n_clusters", "clustering"), path)
    inputs = {name: value for name, value in of_first.inputs.items() if name == "clustering"}
    return LatentCSVs(paths, Provenance(data=of_first.data, inputs=inputs))


# Generated images


def generated_provenance(run: Run) -> Provenance:
    """All that the images of `gen_k` depend on."""
    networks = run.networks()
    parents = checkpoints.fingerprints({"autoencoder": run.vqvae, "unet": networks.unet, "clusters": networks.bank})
    guide = {"guide_weights": checkpoints.fingerprint(networks.guide)} if networks.guide else {}
    groups = settings_of("generated images")
    return Provenance.of(run.settings, groups, run.tiles, run.seed, parents, **_inputs(run), **guide)


def generated_files(run: Run) -> dict[str, Path]:
    """The files of `gen_k` by name. InputError if they are of other networks, data or settings, or not all there."""
    return list_images(require(run, "generated images"))


def generated_images(run: Run) -> tuple[list[str], Tensor]:
    """The names of `generated_files`, and the images, uint8 (N, 3, S, S) at the size of the tiles."""
    files = generated_files(run)
    return [*files], match_size(read_images(files.values()), run.settings.image_size_px)


class Pairs(NamedTuple):
    """Training tiles and the generated ones of the same numbers, both uint8 (N, 3, H, W), their clusters (N,), and what
    is known of their provenance and of the microns per pixel of both."""

    real: Tensor
    generated: Tensor
    cluster_ids: np.ndarray
    provenance: Provenance
    mpp: float | None


def pairs(run: Run) -> Pairs:
    """The images of `org` and `gen_k`. InputError if they and the CSV are not of one run, or not all are there."""
    original, generated, csv = (require_there(run, n) for n in ("training images", "generated images", "latent CSV"))
    generated_provenance, csv_provenance = of_json(generated / GENERATED_WITH), of_csv(csv)
    expected = known_provenance(run)
    if expected.data is not None:
        expected = replace(expected, inputs={**expected.inputs, **_sampling(run)})
    require_same_run(generated_provenance, expected, generated)
    pair_provenance = generated_provenance or csv_provenance or Provenance()
    for path, provenance in ((original, of_json(original / MADE_FROM)), (csv, csv_provenance)):
        require_same_run(provenance, pair_provenance.without(*IGNORED), f"{path} beside {generated}")
    if expected.data is not None and generated_provenance is not None:
        for name in ("training images", "generated images"):  # both may have been left unfinished at the same tile
            if lack := lack_of(run, name):
                raise InputError(f"{BY_NAME[name].path(run)} lacks {lack}.")
    names, real, fake = load_pairs(original, generated)
    print(f"{len(names)} pairs of {real.shape[2]} px")
    mpp, side = None if expected.data is None else run.tiles.mpp, run.settings.image_size_px
    scale = mpp and mpp * side / real.shape[2]  # published files were enlarged
    return Pairs(real, fake, pair_cluster_ids(csv, names), pair_provenance, scale)


def known_provenance(run: Run) -> Provenance:
    """The run's provenance, for those who need no tiles: empty if no data are named, for which the embedded tiles would
    stand, or if they do not exist."""
    is_named = run.data is not None or "KPC_DATA" in os.environ
    return run.provenance if is_named and are_there(run.data) else Provenance()


# Numbers


def record(run: Run, scores: Mapping[str, Any], provenance: Provenance | None = None) -> None:
    """Put the notebook's numbers into the run's summary, and their provenance beside it.

    provenance: of what they were measured on; None: of the run.
    """
    part, suffix = run.notebook.startswith("part_"), run.paths.suffix
    section = f"clusters_{run.n_clusters}{suffix}/{run.notebook}" if part else f"{run.notebook}{suffix}"
    if provenance is None:
        provenance = run.provenance_of("autoencoder", "diffusion", "clusters", *START)
    tables.record(run.paths.summary, section, scores, provenance)
