"""How good is each single tile? Held against the run's training tiles and its held-out ones.

Four numbers: the probability of the cluster that was asked for; realism, by the run's own features; how near the
nearest training tile is; and the share of structure. Realism is what tiles are chosen by (discriminator rejection
sampling, Azadi et al. 2019): a logistic regression learns from features of the run's autoencoder which tiles are real
ones and which were drawn for this purpose alone. Its log-odds are given as a percentile among held-out tiles. So no
measure that looks at these features may report on tiles that were chosen by it.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pfiles.clusterers import probabilities
from pfiles.drawing.soundness import read_shapes
from pfiles.errors import InputError
from pfiles.latents import decode_codes, encode_tiles, latent_batches
from pfiles.machine.processes import progress
from pfiles.machine.runtime import eval_mode
from pfiles.measuring.memorisation import nearest_tiles
from pfiles.measuring.structure import (
    MIN_SIDE,
    MIN_TILES,
    SIGMAS,
    coherence_of,
    isotropic,
    mean_power,
    noise_like,
    shows_glass,
)
from pfiles.tiles.pixels import evenly_spaced, to_uint8, to_unit
from pfiles.vqvae import VQVAE

FILE = "quality.safetensors"  # of a standard, in the folder of a generator
COLUMNS = ("probability", "realism", "nearest", "structure")
TRAIN_TILES, HELD_OUT_TILES = 1000, 500  # that count, thinned evenly
PER_CLUSTER = 20  # tiles drawn to learn from
BATCH_SIZE = 50  # images at once; changes memory and speed only
PERCENT = np.arange(101)


@dataclass(frozen=True, eq=False)
class Standard:
    """What single tiles of a generator are held against; a few numbers that show no tile.

    mean, scale: of the features of training tiles (d,). weights: of these features, once standardised, by which a tile
    is real rather than drawn (d,). held_out: the percentiles 0 ... 100 of the log-odds of held-out tiles (101,), and
    drawn: of those of drawn tiles of each cluster (k, 101). nearest: of the distance of held-out tiles to the nearest
    training tile (101,), empty where that was not looked for. spectrum, power: the power (S, S) that tiles are brought
    to, and that of the drawn tiles; scales: weights of the three scales of coherence, and the value of noise (4,).
    These three are empty where real tiles have no structure to measure.
    """

    mean: Tensor
    scale: Tensor
    weights: Tensor
    held_out: Tensor
    drawn: Tensor
    nearest: Tensor
    spectrum: Tensor
    power: Tensor
    scales: Tensor

    def odds(self, features: np.ndarray) -> np.ndarray:
        """By how much tiles of these features (N, d) are real rather than drawn (N,); higher is better."""
        return ((torch.from_numpy(features) - self.mean) / self.scale @ self.weights).numpy()

    def passes(self, odds: np.ndarray, cluster_ids: np.ndarray, accept: float) -> np.ndarray:
        """Which of tiles of these clusters (N,), 0-based, are among the best of their cluster, as booleans (N,).

        accept: the share of drawn tiles that passes, above 0 and at most 1.
        """
        limits = [np.interp(100 * (1 - accept), PERCENT, row) for row in self.drawn.numpy()]
        return odds >= np.array(limits)[cluster_ids] if accept < 1 else np.ones(len(odds), bool)


def make_standard(
    vqvae: VQVAE, train: Tensor, held_out: Tensor, generated: Tensor, cluster_ids: np.ndarray, n_clusters: int,
    seed: int, search: bool = True,
) -> Standard:  # fmt: skip
    """From training, held-out and drawn tiles, uint8 (N, 3, S, S), the last of the clusters (N,), 0-based.

    The drawn tiles must be drawn for this alone: what is learnt from a tile flatters it. search: whether the training
    tile nearest to each held-out one is looked for, which takes longest. InputError for fewer than two tiles of a kind.
    """
    fewest = min(map(len, (train, held_out, generated)))
    if fewest < 2:
        raise InputError(f"The quality of tiles needs at least 2 training, held-out and drawn tiles, but has {fewest}.")
    all_of_train = train
    held_out = held_out[evenly_spaced(len(held_out), HELD_OUT_TILES)]
    train = train[evenly_spaced(len(train), TRAIN_TILES)]
    of_train, of_held_out, of_generated = (own_features(vqvae, tiles) for tiles in (train, held_out, generated))
    mean, scale, weights = learn(of_train, of_generated)
    of_held_out, of_generated = ((features - mean) / scale @ weights for features in (of_held_out, of_generated))
    by_cluster = [of_generated[cluster_ids == cluster] for cluster in range(n_clusters)]
    tables = {
        "mean": mean, "scale": scale, "weights": weights, "held_out": np.percentile(of_held_out, PERCENT),
        "drawn": np.stack([np.percentile(part if len(part) else of_generated, PERCENT) for part in by_cluster]),
        "nearest": np.percentile(nearest_tiles(held_out, all_of_train).distance, PERCENT) if search else np.zeros(0),
        **_structure_tables(vqvae, train, generated, seed),
    }  # fmt: skip
    return Standard(**{name: torch.from_numpy(np.asarray(table, np.float32)) for name, table in tables.items()})


def learn(of_train: np.ndarray, of_generated: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and scale of the features of training tiles (N, d), and the weights of the features so standardised, by
    which a logistic regression tells these from drawn tiles (M, d); each (d,)."""
    from sklearn.linear_model import LogisticRegression  # half a second to import, which few notebooks need

    mean, deviation = of_train.mean(0), of_train.std(0)
    scale = np.where(deviation > 1e-6, deviation, 1)
    learner = LogisticRegression(C=1 / len(mean), class_weight="balanced", max_iter=1000)
    is_real = np.repeat([1, 0], [len(of_train), len(of_generated)])
    learner.fit((np.concatenate([of_train, of_generated]) - mean) / scale, is_real)
    return mean, scale, learner.coef_[0]


def _structure_tables(vqvae: VQVAE, train: Tensor, generated: Tensor, seed: int) -> dict[str, np.ndarray]:
    """Of real tiles that the autoencoder decoded, as it did the drawn ones: 0 is noise and 1 their mean."""
    tiles = train[~shows_glass(train)][:HELD_OUT_TILES]
    lacking = {"spectrum": np.zeros((0, 0)), "power": np.zeros((0, 0)), "scales": np.zeros(0)}
    if len(tiles) < MIN_TILES or tiles.shape[2] < MIN_SIDE:
        return lacking
    tiles, noise = (_through(vqvae, each) for each in (tiles, noise_like(tiles, seed)))
    spectrum = isotropic(mean_power(tiles))
    of_real, of_noise = (coherence_of(each, spectrum).mean(0) for each in (tiles, noise))
    if not (of_real > of_noise).all():
        return lacking
    precision = np.square(1 / np.array(SIGMAS))
    weights = precision / precision.sum() / (of_real - of_noise)
    return {"spectrum": spectrum, "power": mean_power(generated), "scales": np.append(weights, of_noise @ weights)}


def _through(vqvae: VQVAE, tiles: Tensor) -> Tensor:
    """What the autoencoder makes of uint8 tiles, on the CPU."""
    return to_uint8(decode_codes(vqvae, encode_tiles(vqvae, tiles.to(next(vqvae.parameters()).device)))).cpu()


def own_features(vqvae: VQVAE, images: Tensor) -> np.ndarray:
    """What the run's own encoder sees in uint8 images (N, 3, S, S): mean and standard deviation over the positions of
    each channel after each of its layers. -> (N, d) float32"""
    device, rows = next(vqvae.parameters()).device, []
    with torch.no_grad(), eval_mode(vqvae):
        for part in progress(images.split(BATCH_SIZE), desc="realism", unit="batch", leave=False, delay=2):
            z, maps = vqvae.encoder_conv_in(to_unit(part.to(device))), []
            for layer in (*vqvae.encoder_layers, *vqvae.encoder_mids):
                z = layer(z)
                maps.append(z)
            statistics = [each for z in maps for each in (z.mean((2, 3)), z.std((2, 3), correction=0))]
            rows.append(torch.cat(statistics, dim=1).cpu())
    return torch.cat(rows).numpy()


def measure(
    standard: Standard | None, vqvae: VQVAE, clusterer: nn.Module, images: Tensor, cluster_ids: Tensor,
    train: Tensor | None = None, odds: np.ndarray | None = None,
) -> pd.DataFrame:  # fmt: skip
    """A row for each of drawn tiles, uint8 (N, 3, S, S), that were asked for from the clusters (N,), 0-based.

    standard: None where there is none; then the probability alone is known, and the rest is NaN. odds: `Standard.odds`
    of the tiles (N,), where they are known already.
    probability: of the cluster asked for, by the run's clusters. realism: the percentage of held-out tiles that look
    less real. nearest: the percentage of held-out tiles that are nearer to a training tile, among `train`; NaN where
    these are not at hand. structure: 0 for noise and 1 for real tiles behind the same decoder, without bounds; NaN
    for tiles that show glass, and where it cannot be measured.
    """
    codes = encode_tiles(vqvae, images.to(next(vqvae.parameters()).device))
    with eval_mode(clusterer):
        shares = torch.cat([probabilities(clusterer, z) for z in latent_batches(vqvae, codes)]).cpu()
    table = pd.DataFrame(np.nan, index=range(len(images)), columns=COLUMNS)
    table["probability"] = shares.gather(1, cluster_ids[:, None].cpu())[:, 0].numpy()
    if standard is None:
        return table
    odds = standard.odds(own_features(vqvae, images)) if odds is None else odds
    table["realism"] = np.interp(odds, standard.held_out.numpy(), PERCENT)
    if train is not None and len(standard.nearest):
        table["nearest"] = np.interp(nearest_tiles(images, train).distance, standard.nearest.numpy(), PERCENT)
    if len(standard.scales):
        coherence = coherence_of(images, standard.spectrum.numpy(), standard.power.numpy())
        of_tiles = coherence @ standard.scales[:3].numpy() - standard.scales[3].item()
        table["structure"] = np.where(shows_glass(images), np.nan, of_tiles)
    return table


def as_bytes(standard: Standard) -> bytes:
    """The content of the file that `read_standard` reads."""
    return save({field.name: getattr(standard, field.name).contiguous() for field in fields(Standard)})


def read_standard(path: Path, n_clusters: int, side: int) -> Standard:
    """The standard in a file; InputError for one that is not of so many clusters, is of tiles of another side in
    pixels, or does not fit together."""
    shapes = read_shapes(path)
    width = shapes.get("mean", ())
    sizes = {"mean": width, "scale": width, "weights": width, "held_out": (101,), "drawn": (n_clusters, 101)}
    squares = {shapes.get(name) for name in ("spectrum", "power")}
    fits = set(shapes) == {field.name for field in fields(Standard)} and all(shapes[n] == s for n, s in sizes.items())
    if not fits or squares not in ({(side, side)}, {(0, 0)}):  # empty without structure
        raise InputError(f"{path} does not fit the generator beside it: get it anew, or remove it.")
    try:
        return Standard(**load_file(path))
    except SafetensorError as error:
        raise InputError(f"{path} cannot be read ({error}): get it anew, or remove it.") from error
