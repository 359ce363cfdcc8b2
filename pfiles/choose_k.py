"""Clusters of every number of clusters and of several seeds, learnt together without a UNet, and compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pfiles import artifacts, checkpoints, learn
from pfiles.cluster_bank import ClusterBank
from pfiles.clusterers import Clusterer, KMeansClusters, fit_kmeans_to
from pfiles.errors import InputError
from pfiles.latents import Assignment, latent_batches, latent_table, mean_channel_softmax, predict_clusters
from pfiles.learning import clusters
from pfiles.learning.log import History
from pfiles.machine.processes import progress
from pfiles.measuring import stability
from pfiles.provenance import Provenance
from pfiles.reporting import tables
from pfiles.run import Run, encoded_tiles
from pfiles.spreadsheet import write_csv
from pfiles.tiles.dataset import Tiles

PARTS = {"all": slice(None), "half_1": slice(0, None, 2), "half_2": slice(1, None, 2)}  # of the training tiles


@dataclass(frozen=True, eq=False)
class Clusterings:
    """Clusterings of every k.

    clusterers: by k and seed, of all training tiles. halves: by k, of every other tile and of the tiles between.
    histories: of the trainings on all tiles, by stage; none of k-means.
    """

    clusterers: dict[tuple[int, int], Clusterer]
    halves: dict[int, tuple[Clusterer, Clusterer]]
    histories: dict[str, History]


def learn_every_k(run: Run, seeds: int) -> Clusterings:
    """Learn the clusters of every k of a run: from so many seeds on all training tiles, from one on each half of them.

    A classifier learns as long and with the same losses as beside a UNet (in the stages that train clusters, or, with
    the setting clusters_first, in their own training), and from the run's own seed becomes the same. Other seeds begin
    with other weights, but see the same tiles and views in the same order: those are encoded once for all.
    """
    require_learnable(run.tiles, run.ks, seeds)
    of_own_seed = [(k, run.seed) for k in run.ks]
    of_every_seed = [(k, run.seed + i) for i in range(seeds) for k in run.ks]
    clusterers, histories = _learn_part(run, "all", of_every_seed)
    first, second = (_learn_part(run, part, of_own_seed)[0] for part in ("half_1", "half_2"))
    if run.clustering == "classifier" and run.settings.clusters_first:
        for run_of_k in run.per_k:
            learn.cache_classifier(run_of_k, clusterers[run_of_k.k, run_of_k.seed])
    learn.end_restart(run)
    return Clusterings(clusterers, {k: (first[k, run.seed], second[k, run.seed]) for k in run.ks}, histories)


def require_learnable(tiles: Tiles, ks: Sequence[int], seeds: int) -> None:
    """InputError if so many clusters, or seeds, cannot be learnt."""
    if not isinstance(seeds, int) or seeds < 1:
        raise InputError(f"seeds must be a whole number of at least 1, but is {seeds!r}.")
    if 2 * max(ks) > (n := len(tiles.train)):
        raise InputError(f"Clusters are also learnt on each half of the {n} training tiles: choose at most {n // 2}.")


def _learn_part(
    run: Run, part: str, ks_and_seeds: Sequence[tuple[int, int]]
) -> tuple[dict[tuple[int, int], Clusterer], dict[str, History]]:
    """The clusterings of those k and seeds on a part of the training tiles, and how their trainings went."""
    codes = run.view_codes[:, PARTS[part]]
    if run.clustering == "kmeans":
        with torch.no_grad():
            statistics = torch.cat([KMeansClusters.statistics(z) for z in latent_batches(run.vqvae, codes[0])])
        return {
            (k, seed): fit_kmeans_to(KMeansClusters(run.vqvae.z_channels, k).to(run.device), statistics, seed)
            for k, seed in ks_and_seeds
        }, {}
    clusterers = {(k, seed): learn.new_clusterer(run, k, seed) for k, seed in ks_and_seeds}
    bank = ClusterBank(clusterers.values())
    histories: dict[str, History] = {}
    images = run.train_images[PARTS[part]]
    settings, seeds = run.settings, [seed for _, seed in ks_and_seeds]
    stages = ["clusters"] if settings.clusters_first else ["training", "finetuning2"]
    for stage in stages:
        stage_settings = getattr(settings, stage)
        if not stage_settings.trains_clusters:
            continue
        parents = {"autoencoder": run.vqvae} | ({"clusters": bank} if histories else {})
        provenance = Provenance.of(
            settings, ("diffusion", stage), run.tiles, run.seed, checkpoints.fingerprints(parents),
            n_clusters=run.n_clusters, clustering=run.clustering, seeds=seeds, part=part,
        )  # fmt: skip
        folder = run.paths.choose_k / f"{stage}_{part}"
        histories[stage] = clusters.train_clusters(
            bank=bank, vqvae=run.vqvae, images=images, codes=codes, settings=settings.diffusion, stage=stage_settings,
            job=learn.make_job(
                run, stage, folder, provenance.as_note(), settings.diffusion.batch_size, artifacts.unknown_csvs(run)
            ),
        )  # fmt: skip
    for clusterer in clusterers.values():
        # as a checkpoint gives it back, so that rounding is the same
        clusterer.to(memory_format=torch.contiguous_format)
    return clusterers, histories


def assign(run: Run, clusterings: Clusterings) -> dict[tuple[int, int], Assignment]:
    """The cluster of each training tile and its probability, by k and seed."""
    return {key: predict_clusters(run.vqvae, clusterer, run.codes) for key, clusterer in clusterings.clusterers.items()}


def write_csvs(run: Run, clusterings: Clusterings, assignments: Mapping[tuple[int, int], Assignment]) -> None:
    """Write the CSV of every k, from the run's own seed, as part 5 does."""
    features = mean_channel_softmax(run.vqvae, run.codes)
    for run_of_k in run.per_k:
        key = run_of_k.k, run_of_k.seed
        table = latent_table(features, *assignments[key])
        artifacts.write_latent_csv(run_of_k, table, ClusterBank([clusterings.clusterers[key]]))


def compare(
    run: Run, clusterings: Clusterings, assignments: Mapping[tuple[int, int], Assignment]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The five indices, occupancy and invariance by k and seed; and what stays the same, by k.

    The columns of the second: "seeds" and "halves", the adjusted Rand index between clusterings of two seeds and of two
    halves of the tiles; "next k" that with the next k of the same seed, "nested" the share of tiles whose cluster there
    takes most of its tiles from their cluster here.
    """
    features = mean_channel_softmax(run.vqvae, run.codes).numpy()
    cluster_ids = {key: assignment.cluster_ids.numpy() for key, assignment in assignments.items()}
    rows, orientations = {}, all_orientations(run)
    for key, clusterer in progress(clusterings.clusterers.items(), desc="compare clusters", unit="clustering"):
        views = np.stack([predict_clusters(run.vqvae, clusterer, view).cluster_ids.numpy() for view in orientations])
        rows[key] = stability.describe(features, cluster_ids[key], key[0]) | {
            "same in 8 views": stability.unmoved(views)
        }
    seeds = sorted({seed for _, seed in cluster_ids})
    same: dict[int, dict[str, float]] = {}
    for k, halves in clusterings.halves.items():
        on_halves = [predict_clusters(run.vqvae, clusterer, run.codes).cluster_ids.numpy() for clusterer in halves]
        same[k] = {
            "seeds": stability.between_seeds(np.stack([cluster_ids[k, seed] for seed in seeds])),
            "halves": stability.adjusted_rand(*on_halves),
        }
    for k, following in pairwise(run.ks):
        pairs = [(cluster_ids[k, seed], cluster_ids[following, seed]) for seed in seeds]
        same[k]["next k"] = float(np.mean([stability.adjusted_rand(*pair) for pair in pairs]))
        same[k]["nested"] = float(np.mean([stability.nested(*pair) for pair in pairs]))
    rows = pd.DataFrame.from_dict(rows, orient="index")
    rows.index = pd.MultiIndex.from_tuples(rows.index, names=["k", "seed"])
    return rows, pd.DataFrame.from_dict(same, orient="index").rename_axis("k")


def all_orientations(run: Run) -> Tensor:
    """The codes of the eight views of the training tiles (8, N, h, w), whatever the UNet learns from."""
    return (
        run.view_codes if len(run.view_codes) == 8 else encoded_tiles(run, True, run.paths.choose_k / "eight_views.pt")
    )


def conclude(run: Run, table: pd.DataFrame, same: pd.DataFrame) -> str:
    """What the numbers support, in one sentence, which is recorded with them; they also become a CSV, a row for each k.

    table: `stability.over_seeds` of the first table of `compare`; same: the second.
    """
    flat = table.set_axis([" ".join(names) for names in table.columns], axis=1).join(same)
    write_csv(run.paths.choose_k / "choose_k.csv", flat, index=True)
    sentence = stability.verdict(table, same["seeds"])
    artifacts.record(run, {"supported": sentence, "details": tables.plain(flat)})
    return sentence
