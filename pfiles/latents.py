"""Tiles in the latent space of a trained autoencoder: their codes, their clusters, their row in the published CSV."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfiles.clusterers import KMeansClusters, probabilities
from pfiles.errors import InputError
from pfiles.machine.processes import progress
from pfiles.machine.runtime import eval_mode
from pfiles.tiles.pixels import to_unit
from pfiles.tiles.views import dihedral
from pfiles.vqvae import VQVAE

BATCH_SIZE = 64  # tiles at once; changes memory and speed only


def encode_tiles(vqvae: VQVAE, images: Tensor) -> Tensor:
    """uint8 images (N, 3, H, W) -> codebook indices (N, h, w), on images' device.

    An index takes one byte where there are up to 256 codes, two where there are up to 32,768.

    The autoencoder is frozen after its own training, so the codes of a tile never change: a whole training set of
    latents is N * h * w bytes, and `vqvae.embed` gives the latents back exactly.
    """
    return torch.cat(
        _encode(vqvae, progress(images.split(BATCH_SIZE), desc="encode tiles", unit="batch", leave=False, delay=2))
    )


def _encode(vqvae: VQVAE, batches: Iterable[Tensor]) -> list[Tensor]:
    number = vqvae.embedding.num_embeddings
    dtype = torch.uint8 if number <= 2**8 else torch.int16 if number <= 2**15 else torch.int32
    with eval_mode(vqvae):
        return [vqvae.encode_codes(to_unit(batch)).to(dtype) for batch in batches]


def decode_codes(vqvae: VQVAE, codes: Tensor) -> Tensor:
    """Codebook indices (N, h, w) -> images (N, 3, H, W) in [0, 1], on codes' device."""
    with eval_mode(vqvae):
        batches = progress(codes.split(BATCH_SIZE), desc="decode tiles", unit="batch", leave=False, delay=2)
        return torch.cat([vqvae.decode(vqvae.embed(batch)).clamp(0, 1) for batch in batches])


def reconstruct(vqvae: VQVAE, images: Tensor) -> Tensor:
    """uint8 images (N, 3, H, W) -> the autoencoder's output for them, in [0, 1], on images' device."""
    return decode_codes(vqvae, encode_tiles(vqvae, images))


@dataclass(frozen=True)
class LatentSpace:
    """Where the UNet works: the autoencoder's latents, brought to zero mean and unit variance, or as they are.

    mean, std: (z, 1, 1) over the training tiles; None leaves the latents as they are, as published. `of_training` says
    what unit variance means.
    """

    vqvae: VQVAE
    mean: Tensor | None = None
    std: Tensor | None = None

    @classmethod
    def of_training(cls, vqvae: VQVAE, codes: Tensor, shared_scale: bool = False) -> "LatentSpace":
        """Scaled by mean and deviation of the latents of `codes` (..., h, w), of any integer type.

        shared_scale: divide all channels by one deviation, the root of their mean variance. Their proportions stay as
            the autoencoder made them, so that noise destroys what varies little first.
        """
        entries = vqvae.embedding.weight.detach().double()
        share = codes.flatten().long().bincount(minlength=len(entries)).double() / codes.numel()
        mean = share @ entries
        variance = share @ (entries - mean).square()
        std = (variance.mean().expand_as(variance) if shared_scale else variance).sqrt()
        std = torch.where(std > 0, std, 1.0)  # a channel that never varies stays as it is
        return cls(vqvae, *(value.float()[:, None, None] for value in (mean, std)))

    def embed(self, codes: Tensor) -> Tensor:
        """Codebook indices (B, h, w) -> the latents (B, z, h, w) that the UNet learns from."""
        return self.scale(self.vqvae.embed(codes))

    def scale(self, z: Tensor) -> Tensor:
        """The autoencoder's latents (B, z, h, w) -> the UNet's."""
        return z if self.mean is None or self.std is None else (z - self.mean) / self.std

    def decode(self, z: Tensor) -> Tensor:
        """What the UNet draws (B, z, h, w) -> images (B, 3, H, W), not clamped."""
        return self.vqvae.decode(z if self.mean is None or self.std is None else z * self.std + self.mean)

    def as_json(self) -> dict[str, list[float]] | None:
        """The scaling in plain values, as it is kept beside the UNet's checkpoint; `from_json` reads it."""
        if self.mean is None or self.std is None:
            return None
        return {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}

    @classmethod
    def from_json(cls, vqvae: VQVAE, scaling: dict[str, list[float]] | None) -> "LatentSpace":
        if scaling is None:
            return cls(vqvae)
        weight = vqvae.embedding.weight
        return cls(vqvae, *(weight.new_tensor(scaling[name])[:, None, None] for name in ("mean", "std")))


def encode_views(vqvae: VQVAE, images: Tensor, number: int = 8) -> Tensor:
    """uint8 images (N, 3, S, S) -> the codes of the first `number` of their eight dihedral views (V, N, h, w), of which
    the first is the image itself, as `encode_tiles` gives them, but without a bar."""
    views = (dihedral(images, torch.full((len(images),), view, device=images.device)) for view in range(number))
    return torch.stack([torch.cat(_encode(vqvae, view.split(BATCH_SIZE))) for view in views])


def latent_batches(vqvae: VQVAE, codes: Tensor) -> Iterator[Tensor]:
    """The latents (B, z, h, w) of `codes` (N, h, w), batch by batch."""
    for batch in codes.split(BATCH_SIZE):
        yield vqvae.embed(batch).detach()


class Assignment(NamedTuple):
    """The cluster (N,) int64, 0-based, of each tile and its probability (N,), both on the CPU."""

    cluster_ids: Tensor
    probabilities: Tensor


def predict_clusters(vqvae: VQVAE, clusterer: nn.Module, codes: Tensor) -> Assignment:
    """The clusters of tiles by their codebook indices (N, h, w)."""
    with eval_mode(clusterer):
        best = [probabilities(clusterer, z).max(dim=1) for z in latent_batches(vqvae, codes)]
    return Assignment(torch.cat([b.indices for b in best]).cpu(), torch.cat([b.values for b in best]).cpu())


def centre_and_border(vqvae: VQVAE, clusterer: nn.Module, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cluster (N,) of each tile as `predict_clusters` gives it, and how central and how near the border it lies.

    The second (N,) is the distance of the tile from the mean of its cluster's tiles, Euclidean, in the features of
    k-means whatever the clustering: mean and deviation of each latent channel, each standardised over all tiles. The
    third (N,) is by how much the probability of its cluster exceeds that of the next best, 0 at the border. On the CPU.
    """
    with eval_mode(clusterer):
        parts = [
            (*probabilities(clusterer, z).topk(2).values.T, KMeansClusters.statistics(z))
            for z in latent_batches(vqvae, codes)
        ]
    first, second, features = (torch.cat(part) for part in zip(*parts, strict=True))
    cluster_ids, _ = predict_clusters(vqvae, clusterer, codes)
    features = features.double().cpu()
    scale = features.std(0, correction=0)
    features = (features - features.mean(0)) / torch.where(scale > 0, scale, 1.0)
    member = F.one_hot(cluster_ids).double()  # (N, k)
    centres = member.T @ features / member.sum(0).clamp_min(1)[:, None]
    return cluster_ids, (features - centres[cluster_ids]).norm(dim=1), (first - second).cpu()


class LatentRows(NamedTuple):
    """The rows of a CSV such as part 5 writes: features (N, z), cluster (N,), 0-based, and its probability (N,)."""

    features: np.ndarray
    cluster_ids: np.ndarray
    probabilities: np.ndarray


def read_latent_csv(path: Path, n_clusters: int | None = None) -> LatentRows:
    """Read a CSV such as part 5 writes.

    n_clusters: refuse clusters from this number on. InputError if the file is not such a table.
    """
    try:
        table = pd.read_csv(path, header=None, dtype=float).to_numpy()
    except Exception as error:  # pandas raises many kinds of errors for broken files
        raise InputError(f"{path} cannot be read as a table of numbers ({error}): run part 5 again.") from error
    expected = f"{path} must hold a row of features, cluster and probability for each tile"
    if table.shape[1] < 3:
        raise InputError(f"{expected}, but has {table.shape[1]} columns: run part 5 again.")
    cluster_ids = table[:, -2]
    if not np.isfinite(table).all():
        row = int(np.isfinite(table).all(axis=1).argmin()) + 1
        raise InputError(f"{expected}, but row {row} lacks a number or holds one that is not finite: run part 5 again.")
    wrong = (cluster_ids < 0) | (cluster_ids != cluster_ids.round()) | (cluster_ids >= (n_clusters or np.inf))
    if wrong.any():
        below = "" if n_clusters is None else f" below {n_clusters}"
        raise InputError(
            f"{expected}, but row {int(wrong.argmax()) + 1} has cluster {cluster_ids[wrong][0]:g}, where a whole "
            f"number from 0 on{below} belongs: run part 5 again."
        )
    return LatentRows(table[:, :-2], cluster_ids.astype(int), table[:, -1])


def mean_channel_softmax(vqvae: VQVAE, codes: Tensor) -> Tensor:
    """The published features of a tile for the cluster-validity indices: (N, z), every row sums to 1, on the CPU.

    The softmax over the channels of each latent vector, averaged over the h x w positions.
    """
    return torch.cat([z.softmax(dim=1).mean((2, 3)) for z in latent_batches(vqvae, codes)]).cpu()


def latent_table(features: Tensor, cluster_ids: Tensor, probabilities: Tensor) -> pd.DataFrame:
    """The published CSV: a row of features, cluster (0-based) and its probability for each tile."""
    return pd.DataFrame(features.numpy()).assign(cluster=cluster_ids.numpy(), probability=probabilities.numpy())


def pair_cluster_ids(latent_csv: Path, names: Sequence[str]) -> np.ndarray:
    """The cluster (N,) of the training tile that each name, its number from 1, belongs to."""
    if not latent_csv.exists():
        raise InputError(f"There is no {latent_csv}: run part_5_latent_space_extraction first.")
    if wrong := [name for name in names if not name.isdecimal() or int(name) < 1]:
        raise InputError(f"Images must be named by their number from 1, such as 17.png, but there is {wrong[0]!r}.")
    cluster_ids = read_latent_csv(latent_csv).cluster_ids
    rows = np.array([int(name) for name in names]) - 1
    if rows.max() >= len(cluster_ids):
        raise InputError(
            f"{latent_csv} has {len(cluster_ids)} rows, but image {rows.max() + 1} needs one: run part 5 again."
        )
    return cluster_ids[rows]
