"""The data from which a run's measures, maps and pictures are made.

from pfiles import report

data = report.evaluation_data(run, generated)
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pfiles import artifacts, checkpoints
from pfiles.latents import encode_tiles, predict_clusters, read_latent_csv
from pfiles.machine import processes
from pfiles.measuring.features import Extractor, make_extractor
from pfiles.names import ReaderNames, load_reader_names, require_reader_name
from pfiles.paths import write_json
from pfiles.provenance import MADE_FROM
from pfiles.reporting import evaluation, figures, maps
from pfiles.reporting.page import Section
from pfiles.reporting.sections.data import EvaluationData
from pfiles.run import Run
from pfiles.tiles.pixels import evenly_spaced

AT_ONCE = 4096  # tiles that are brought into memory to be assigned
MEASURED = 50_000  # training tiles, and test tiles, at most that a report has in memory, evenly spaced


def evaluation_data(run: Run, generated: Tensor, cluster_ids: Tensor | np.ndarray | None = None) -> EvaluationData:
    """Generated tiles, uint8 (N, 3, S, S), beside the training and the test tiles, all on the CPU, to be measured.

    Of more than 50,000 training or test tiles so many are measured, evenly spaced. Copies are looked for among all.
    cluster_ids: the clusters (N,), 0-based, that they were asked for; None: no measure will ask for clusters.
    """
    tiles = run.tiles
    places = evenly_spaced(len(tiles.train), MEASURED)
    of_real, of_held_out = tiles.train[places], tiles.test[evenly_spaced(len(tiles.test), MEASURED)]
    real, held_out, searched = tiles.tensor(of_real), tiles.tensor(of_held_out), tiles.rows(tiles.train)
    codes = run.codes[torch.from_numpy(places)]
    if cluster_ids is None:
        return EvaluationData(real, generated, held_out, searched, vqvae=run.vqvae, codes=codes, mpp=tiles.mpp)
    held_out_codes = encode_tiles(run.vqvae, held_out.to(run.device))
    held_out_ids, _ = predict_clusters(run.vqvae, run.bank, held_out_codes)
    real_labels, held_out_labels = map(tiles.labels_of, (of_real, of_held_out))
    return EvaluationData(
        real, generated, held_out, searched, run.assignment.cluster_ids.numpy()[places], np.asarray(cluster_ids),
        held_out_ids.numpy(), real_labels, held_out_labels, vqvae=run.vqvae, codes=codes,
        codes_of_held_out=held_out_codes, clusterer=run.bank, n_clusters=run.k, names=run.names, mpp=tiles.mpp,
        ladder=(run.paths.ladder, _ladder_key(run)),
    )  # fmt: skip


def _ladder_key(run: Run) -> dict[str, str]:
    """What the decoded ladder of structure is made from; the decoder counts as well."""
    networks = {"autoencoder": run.vqvae, "clusters": run.bank}
    weights = {name: checkpoints.fingerprint(network) for name, network in networks.items()}
    return {**weights, "data": run.tiles.fingerprint()}


def extractors(run: Run, kinds: Sequence[str]) -> list[Extractor]:
    """The extractors of these names, see `features.make_extractor`, that had no part in choosing the run's images."""
    selected = run.settings.sampling.accept < 1 and "autoencoder" in kinds
    if selected:
        print(evaluation.CHOSEN)
    return [make_extractor(kind, run.vqvae, run.device) for kind in kinds if not (selected and kind == "autoencoder")]


def examples(run: Run, cluster: int, number: int) -> Tensor:
    """At most `number` training tiles of a cluster, evenly spaced over its tiles: uint8 (n, 3, S, S) on the CPU."""
    members = run.tiles.train[(run.assignment.cluster_ids == cluster).numpy()]
    return run.tiles.tensor(members[evenly_spaced(len(members), number)])


def assign_every_tile(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """The cluster (N,), 0-based, of each tile, on whatever side of the split, and its probability (N,)."""
    tiles = run.tiles
    cluster_ids, confidence = np.empty(len(tiles.images), np.int64), np.empty(len(tiles.images))
    unread = np.setdiff1d(np.arange(len(tiles.images)), tiles.train)
    bar = processes.progress(
        np.split(unread, range(AT_ONCE, len(unread), AT_ONCE)), desc="assign tiles", unit="batch", leave=False, delay=2
    )
    parts = [(tiles.train, run.assignment), *((places, run.assign(tiles.tensor(places))) for places in bar)]
    for places, (ids, probabilities) in parts:
        cluster_ids[places], confidence[places] = ids, probabilities
    return cluster_ids, confidence


def assignments_per_k(run: Run) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The clusters (N,), 0-based, of the training tiles and their probabilities (N,), by k, as the CSVs have them."""
    assignments = {}
    for k, path in artifacts.latent_csvs(run).paths.items():
        _, cluster_ids, probabilities = read_latent_csv(path, k)
        if len(cluster_ids) == len(run.tiles.train):
            assignments[k] = cluster_ids, probabilities
    return assignments


def map_clusters(run: Run) -> Section:
    """Write the maps of all tiles' clusters on their slides, see `maps.write_maps`; and tell what they show.

    Tiles without positions have no map, and the section says so.
    """
    tiles, folder = run.tiles, run.paths.maps
    parents = checkpoints.fingerprints({"autoencoder": run.vqvae, "clusters": run.bank})
    if tiles.positions is None:
        why = "It is not known where these tiles were cut, so there is no map"
        return Section("Cluster maps", [f"{why}: python -m pfiles tile cuts tiles and records it."])
    section = maps.write_maps(
        folder, maps.ClusteredTiles(tiles.positions, *assign_every_tile(run)), tiles.images, run.k,
        names=run.names, patients=tiles.patients, pictures=tiles.pictures, seed=run.seed,
    )  # fmt: skip
    write_json(folder / MADE_FROM, run.provenance_of(*artifacts.settings_of("maps"), parents=parents).as_note())
    return section


def save_panel(run: Run, figure: Figure, number: int, name: str) -> None:
    """Write a panel of Figure 3 or 4 twice: as published, where the last run replaces it whatever its k, and with k in
    its name."""
    for path in (run.paths.figure(number, name), run.paths.figure(number, f"{name}_k{run.n_clusters}")):
        figures.save_figure(figure, path)


def reading(run: Run, reader: str) -> ReaderNames:
    """A reader's names for the clusters; each change is saved in `names_READER.json` at once."""
    path = run.paths.names_of(require_reader_name(reader))
    return ReaderNames.load(path, checkpoints.fingerprint_of_clusters(run.vqvae, run.bank), run.k)


def readings(run: Run) -> list[ReaderNames]:
    """The names of all readers who named these clusters."""
    fingerprint = checkpoints.fingerprint_of_clusters(run.vqvae, run.bank)
    return load_reader_names(run.paths.cluster_folder, fingerprint, run.k)
