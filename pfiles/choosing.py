"""Clusters of every number of clusters and of several seeds, learnt together without a UNet, and compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pfiles import checkpoints
from pfiles.clusterers import KMeansClusters, fit_kmeans_to, make_clusterer
from pfiles.errors import InputError
from pfiles.latents import latent_batches, latent_table, mean_channel_softmax, predict_clusters
from pfiles.learning import clusters
from pfiles.learning.log import History
from pfiles.learning.loop import Job
from pfiles.machine.processes import progress
from pfiles.measuring import stability
from pfiles.reporting import tables
from pfiles.session import OpenRun
from pfiles.spreadsheet import write_csv
from pfiles.tiles.dataset import Tiles

PARTS = {"all": slice(None), "half_1": slice(0, None, 2), "half_2": slice(1, None, 2)}  # of the training tiles


@dataclass(frozen=True, eq=False)
class Learnt:
    """Clusterings of every k.

    clusterers: by k and seed, of all training tiles. halves: by k, of every other tile and of the tiles between.
    histories: of the trainings on all tiles, by stage; none of k-means.
    """

    clusterers: dict[tuple[int, int], nn.Module]
    halves: dict[int, tuple[nn.Module, nn.Module]]
    histories: dict[str, History]


def learn(run: OpenRun, seeds: int) -> Learnt:
    """Learn the clusters of every k of a run: from so many seeds on all training tiles, from one on each half of them.

    A classifier learns as long and with the same losses as beside a UNet (in the stages that train clusters, or, with
    the setting clusters_first, in their own training), and from the run's own seed becomes the same. Other seeds begin
    with other weights, but see the same tiles and views in the same order: those are encoded once for all.
    """
    check(run.tiles, run.ks, seeds)
    own = [(k, run.seed) for k in run.ks]
    every = [(k, run.seed + i) for i in range(seeds) for k in run.ks]
    clusterers, histories = _learn_part(run, "all", every)
    halves = [_learn_part(run, part, own)[0] for part in ("half_1", "half_2")]
    if run.clustering == "classifier" and run.settings.clusters_first:
        for one in run.of_each_k:
            one.keep_clusters(clusterers[one.n_clusters, one.seed])
    run.end_restart()
    return Learnt(clusterers, {k: tuple(half[k, run.seed] for half in halves) for k in run.ks}, histories)


def check(tiles: Tiles, ks: Sequence[int], seeds: int) -> None:
    """InputError where so many clusters, or seeds, cannot be learnt."""
    if not isinstance(seeds, int) or seeds < 1:
        raise InputError(f"seeds must be a whole number of at least 1, but is {seeds!r}.")
    if 2 * max(ks) > (n := len(tiles.train)):
        raise InputError(f"Clusters are also learnt on each half of the {n} training tiles: choose at most {n // 2}.")


def _learn_part(
    run: OpenRun, part: str, which: Sequence[tuple[int, int]]
) -> tuple[dict[tuple[int, int], nn.Module], dict[str, History]]:
    """The clusterings of those k and seeds on a part of the training tiles, and how their trainings went."""
    codes = run.views[:, PARTS[part]]
    if run.clustering == "kmeans":
        found = {(k, seed): make_clusterer("kmeans", run.vqvae.z_channels, k).to(run.device) for k, seed in which}
        with torch.no_grad():
            statistics = torch.cat([KMeansClusters.statistics(z) for z in latent_batches(run.vqvae, codes[0])])
        for (_, seed), one in found.items():
            fit_kmeans_to(one, statistics, seed)
        return found, {}
    found = {(k, seed): run.new_clusterer(k, seed) for k, seed in which}
    together, histories = nn.ModuleList(found.values()), {}
    images = run.train_images[PARTS[part]]
    settings, seeds, batch_size = run.settings, [seed for _, seed in which], run.settings.diffusion.batch_size
    stages = ["clusters"] if settings.clusters_first else ["training", "finetuning2"]
    for stage in stages:
        how = getattr(settings, stage)
        if not how.trains_clusters:
            continue
        starts_from = {"autoencoder": run.vqvae} | ({"clusters": together} if histories else {})
        belongs_to = checkpoints.identity(
            settings, ["diffusion", stage], run.tiles, run.seed, starts_from,
            n_clusters=run.n_clusters, clustering=run.clustering, seeds=seeds, part=part,
        )  # fmt: skip
        folder = run.paths.choosing / f"{stage}_{part}"
        histories[stage] = clusters.train_clusters(
            classifier=together, vqvae=run.vqvae, images=images, codes=codes, settings=settings.diffusion, stage=how,
            job=Job(stage, run.seed, batch_size, folder, belongs_to, settings.saving, run.speed, run.restart_name,
                    outdates=run.foreign_csvs),
        )  # fmt: skip
    if not histories:
        raise InputError("No training of these settings learns clusters: set clusters_first to true.")
    for one in found.values():
        one.to(memory_format=torch.contiguous_format)  # as a checkpoint gives it back, so that rounding is the same
    return found, histories


def assign(run: OpenRun, learnt: Learnt) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """The cluster (N,), 0-based, of each training tile and its probability (N,), by k and seed."""
    return {which: predict_clusters(run.vqvae, one, run.codes) for which, one in learnt.clusterers.items()}


def write_csvs(run: OpenRun, learnt: Learnt, assigned: dict[tuple[int, int], tuple[Tensor, Tensor]]) -> None:
    """Write the CSV of every k, from the run's own seed, as part 5 does."""
    features = mean_channel_softmax(run.vqvae, run.codes)
    for one in run.of_each_k:
        which = one.n_clusters, one.seed
        one.write_latent_csv(latent_table(features, *assigned[which]), learnt.clusterers[which])


def compare(
    run: OpenRun, learnt: Learnt, assigned: dict[tuple[int, int], tuple[Tensor, Tensor]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The five indices, occupancy and invariance by k and seed; and what stays the same, by k.

    The columns of the second: "seeds" and "halves", the adjusted Rand index between clusterings of two seeds and of two
    halves of the tiles; "next k" that with the next k of the same seed, "nested" the share of tiles whose cluster there
    takes most of its tiles from their cluster here.
    """
    features = mean_channel_softmax(run.vqvae, run.codes).numpy()
    cluster_ids = {which: ids.numpy() for which, (ids, _) in assigned.items()}
    rows = {}
    for which, one in progress(learnt.clusterers.items(), desc="compare clusters", unit="clustering"):
        views = np.stack([predict_clusters(run.vqvae, one, view)[0].numpy() for view in run.eight_views])
        rows[which] = stability.describe(features, cluster_ids[which], which[0]) | {
            "same in 8 views": stability.unmoved(views)
        }
    seeds = sorted({seed for _, seed in cluster_ids})
    same: dict[int, dict[str, float]] = {}
    for k, halves in learnt.halves.items():
        on_halves = [predict_clusters(run.vqvae, one, run.codes)[0].numpy() for one in halves]
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


def conclude(run: OpenRun, table: pd.DataFrame, same: pd.DataFrame) -> str:
    """What the numbers support, in one sentence, which is recorded with them; they also become a CSV, a row for each k.

    table: `stability.over_seeds` of the first table of `compare`; same: the second.
    """
    flat = table.set_axis([" ".join(names) for names in table.columns], axis=1).join(same)
    write_csv(run.paths.choosing / "choose_k.csv", flat, index=True)
    sentence = stability.verdict(table, same["seeds"])
    run.record({"supported": sentence, "details": tables.plain(flat)})
    return sentence
