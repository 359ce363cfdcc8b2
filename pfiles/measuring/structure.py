"""How far are tiles built? The reach of structure: the size of block up to which a set of tiles is like tissue.

Real tiles that are cut into blocks and shuffled have right colours, texture and nuclei, and no structure wider than a
block. The reach of a set of tiles is the size of block at which shuffled real tiles keep their direction as well as
the set does. Direction is measured by the coherence of the structure tensor (Bigun and Granlund 1987; as a share, Jahne
1993, Spatio-temporal image processing; Weickert's coherence, 1999, is the square of the numerator alone): with the
gradient (gx, gy) of a grey tile, smoothed by a Gaussian of `sigma`, and the tensor (gx^2, gx gy, gy^2), averaged by a
Gaussian, the window,

    coherence = sum of sqrt((Jxx - Jyy)^2 + 4 Jxy^2) / sum of (Jxx + Jyy)    over the places of a tile:

0 where gradients have no common direction over the window, 1 where they have one; a place counts as its gradients do.

Gradients of 1, 2 and 3 px count, under a window of 1/8 of the side: the fine scale parts blocks of 4 to 16 px, the
coarse ones see the arrangement and no fine speckle. At each scale 0 is the coherence of noise of the same spectrum, and
1 that of untouched real tiles; their mean, in which a scale weighs 1 / sigma^2, as it has so many independent places,
is the *share* of real structure. It rises with the blocks, and its place between the shuffled tiles gives the reach.

What would fool coherence is taken off before. Every set is brought to one spectrum, the same in all directions, by the
set's own mean power at each frequency: that takes off a grid that all tiles show, a direction that the whole set has,
blur and grain. Tiles that show glass, whose rim is a straight edge, are left out. A taper hides the tile's border.

A decoder paints edges of its own: the coarser it is, the more built even shuffled tiles look behind it. So tiles that
an autoencoder decoded are held against real tiles, shuffled and decoded by the same one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from pfiles.errors import InputError
from pfiles.machine.processes import progress
from pfiles.machine.runtime import derive_seed
from pfiles.measuring.two_sample import blur
from pfiles.tiles.pixels import evenly_spaced, require_tiles

SIGMAS = (1.0, 2.0, 3.0)  # pixels, of the gradients
WINDOW = 1 / 8  # of the side: the window's standard deviation
BLOCKS = (4, 8, 16, 32, 64)  # pixels, each twice the one before; of a tile those up to half of its side
SEAM = 1  # pixels on either side of a seam over which two blocks are blended
TAPER, EDGE = 1 / 4, 1 / 8  # of the side: over which a tile fades at its border, and from which on gradients count
GLASS_LEVEL, GLASS_PX = 215, 2.0  # glass is where no colour is darker, of 255, behind a Gaussian of so many pixels
GLASS_SHARE = 0.05  # of its area, from which on a tile is left out
MIN_SIDE = 32  # pixels: three sizes of blocks
MIN_TILES = 20  # of a set or a cluster
TILES = 500  # of a set at most, thinned evenly
RESAMPLES = 1000  # of the bootstrap
AT_ONCE = 100  # tiles; changes memory and speed only
NOISE = 0  # the rung of noise, whose blocks are none


@dataclass(frozen=True)
class Ladder:
    """Coherences of tiles whose reach is known, all made of the same real tiles.

    side: of the tiles, pixels. spectrum: the power (S, S) that every set is brought to. weights: of the three scales
    (3,), such that the weighted sum of real tiles exceeds that of noise by 1. rungs: weighted sums (N,) of noise
    (key 0) and of real tiles shuffled in blocks (key: their size in pixels). real: of the untouched tiles (N,).
    cluster_ids: of tile i of all of them (N,), 0-based; all 0 where clusters are not known.
    """

    side: int
    spectrum: np.ndarray
    weights: np.ndarray
    rungs: dict[int, np.ndarray]
    real: np.ndarray
    cluster_ids: np.ndarray

    @property
    def blocks(self) -> list[int]:
        """The sizes of blocks in pixels, in ascending order."""
        return [block for block in self.rungs if block != NOISE]


def make_ladder(
    real: Tensor,
    seed: int,
    cluster_ids: np.ndarray | None = None,
    through: Callable[[Tensor], Tensor] | None = None,
    keep: Callable[[Callable[[], Tensor]], Tensor] = lambda measure: measure(),
) -> Ladder:
    """The ladder of real tiles, uint8 (N, 3, S, S), of at most 500 of them without glass.

    cluster_ids: (N,), 0-based; blocks are exchanged between tiles of one cluster. None: between all tiles.
    through: what the tiles to be measured went through, such as the autoencoder that decoded them, from uint8 tiles to
        uint8 tiles. All tiles of the ladder go through it as well: a coarse decoder paints edges of its own, by which
        even noise seems built. None: the tiles were not decoded.
    keep: gives the tensor that the function it gets computes, or the same tensor of an earlier call.
    InputError for tiles that are too few or too small, show glass, are all alike, or have no structure to measure.
    """
    require_tiles(real)
    ids = np.zeros(len(real), int) if cluster_ids is None else np.asarray(cluster_ids)
    places = np.flatnonzero(~shows_glass(real))
    places = places[evenly_spaced(len(places), TILES)]
    _check(real, places, "real")
    tiles, ids = real[places], ids[places]
    blocks = blocks_of(tiles.shape[2])

    def measure() -> Tensor:
        sets = [tiles, noise_like(tiles, seed), *(shuffled(tiles, block, seed, ids) for block in blocks)]
        if through is not None:
            sets = [through(part).cpu() for part in sets]
        spectrum = isotropic(mean_power(sets[0]))
        return torch.from_numpy(np.concatenate([spectrum, *(coherence_of(part, spectrum) for part in sets)], None))

    side = tiles.shape[2]
    numbers = keep(measure).numpy()
    spectrum, coherences = numbers[: side**2].reshape(side, side), numbers[side**2 :].reshape(-1, len(ids), len(SIGMAS))
    untouched, rungs = coherences[0], dict(zip((NOISE, *blocks), coherences[1:], strict=True))
    over_noise = (untouched - rungs[NOISE]).mean(0)
    precision = np.square(1 / np.array(SIGMAS))
    weights = precision / precision.sum() / over_noise.clip(1e-6)
    weighted = {block: coherence @ weights for block, coherence in rungs.items()}
    ladder = Ladder(side, spectrum, weights, weighted, untouched @ weights, ids)
    if not (over_noise > 0).all() or not _ascends(ladder, np.arange(len(ids))):
        decoded = " behind their decoder" if through else ""
        raise InputError(
            f"The {len(ids)} real tiles{decoded} keep their direction no better than when they are shuffled in blocks "
            f"of {blocks[0]} px: they have no structure whose reach could be measured."
        )
    return ladder


def blocks_of(side: int) -> list[int]:
    """The blocks that tiles of that side, at least 32 px, are shuffled in."""
    return [block for block in BLOCKS if 2 * block <= side]


def reaches(ladder: Ladder, tiles: Tensor, seed: int, cluster_ids: np.ndarray | None = None) -> pd.DataFrame:
    """The reach of structure of a set of tiles, uint8 (M, 3, S, S): a row "all", and one for each cluster.

    Columns: "reach" in pixels, from the smallest block of the ladder ("at most") to the largest ("beyond"), by
    interpolation over the logarithm of the size; "low" and "high", its 95 % bootstrap interval (percentiles) over tiles
    and rungs; "share" of real structure, 0 for noise and 1 for untouched real tiles, without bounds; "tiles" that
    count; "glass", tiles left out for glass.

    cluster_ids: (M,), 0-based, as the ladder's. Each tile is held against the ladder of its own cluster, so that sets
    may hold the clusters in other proportions. Clusters with fewer than 20 tiles on either side have no row.
    At most 500 tiles of the set count. InputError as for `make_ladder`.
    """
    require_tiles(tiles)
    if tiles.shape[2] != ladder.side:
        raise InputError(
            f"The reach of structure compares tiles of one size, but got {ladder.side} px and {tiles.shape[2]} px: "
            "bring them to one size first."
        )
    ids = np.zeros(len(tiles), int) if cluster_ids is None else np.asarray(cluster_ids)
    of_ladder = ladder.cluster_ids if cluster_ids is not None else np.zeros_like(ladder.cluster_ids)
    thinned = evenly_spaced(len(tiles), TILES)
    has_glass = shows_glass(tiles[thinned])
    places = thinned[~has_glass & np.isin(ids[thinned], of_ladder)]
    _check(tiles, places, "compared")
    coherence = coherence_of(tiles[places], ladder.spectrum) @ ladder.weights
    glass_ids, ids = ids[thinned[has_glass]], ids[places]
    rows = {"all": _reach(ladder, coherence, _matched(of_ladder, ids), seed) | {"glass": len(glass_ids)}}
    for cluster in np.unique(ids) if cluster_ids is not None else []:
        of_set, steps = coherence[ids == cluster], np.flatnonzero(of_ladder == cluster)
        if min(len(of_set), len(steps)) >= MIN_TILES and _ascends(ladder, steps):
            row = _reach(ladder, of_set, steps, seed)
            rows[f"cluster {cluster + 1}"] = row | {"glass": int((glass_ids == cluster).sum())}
    return pd.DataFrame.from_dict(rows, orient="index")


def shares(ladder: Ladder) -> pd.Series:
    """The share of real structure that each rung has, by its block in pixels; what `reaches` interpolates."""
    noise = ladder.rungs[NOISE].mean()
    return pd.Series(
        {block: (ladder.rungs[block].mean() - noise) / (ladder.real.mean() - noise) for block in ladder.blocks}
    )


def in_words(reach: float, side: int, mpp: float | None = None) -> str:
    """A reach of pixels, of tiles of that side, in a few words: "7 px (3.4 um)", "beyond 32 px".

    mpp: microns per pixel; None if not known.
    """
    blocks = blocks_of(side)
    words: dict[float, str] = {blocks[0]: "at most ", blocks[-1]: "beyond "}
    at_end = words.get(reach, "")
    return f"{at_end}{reach:.0f} px" + (f" ({reach * mpp:.2g} um)" if mpp else "")


def shows_glass(tiles: Tensor) -> np.ndarray:
    """Which uint8 tiles (N, 3, S, S) show glass on 5 % of their area or more, as booleans (N,)."""
    shares = [(blur(part, GLASS_PX).amin(1) >= GLASS_LEVEL).float().mean((1, 2)).cpu() for part in tiles.split(AT_ONCE)]
    return torch.cat(shares).numpy() >= GLASS_SHARE if shares else np.zeros(0, bool)


def shuffled(tiles: Tensor, block: int, seed: int, cluster_ids: np.ndarray | None = None) -> Tensor:
    """As many tiles made of blocks of `block` px from anywhere in uint8 `tiles` (N, 3, S, S), on the CPU.

    The blocks of tile i come from tiles of its cluster, so that its kind of tissue stays. Seams are blended: of the two
    pixels at a seam each has one third of the neighbouring block.
    """
    ids = np.zeros(len(tiles), int) if cluster_ids is None else np.asarray(cluster_ids)
    rng = np.random.default_rng(derive_seed(seed, "shuffled blocks", block))
    side, patch = tiles.shape[2], block + 2 * SEAM
    across = -(-side // block)
    number, size = across**2, across * block
    sources, reach = tiles.cpu().numpy(), np.arange(patch)
    members = {cluster: np.flatnonzero(ids == cluster) for cluster in np.unique(ids)}
    weight = torch.ones(patch)
    weight[: 2 * SEAM] = torch.tensor([1 / 3, 2 / 3])
    weight[-2 * SEAM :] = torch.tensor([2 / 3, 1 / 3])
    weights = (weight[:, None] * weight).flatten()[None, :, None].expand(1, -1, number)
    whole: dict[str, Any] = {"output_size": (size, size), "kernel_size": patch, "stride": block, "padding": SEAM}
    total = F.fold(weights, **whole)
    batches = []
    for start in range(0, len(tiles), AT_ONCE):
        places = range(start, min(start + AT_ONCE, len(tiles)))
        source = np.stack([rng.choice(members[ids[i]], number) for i in places])[..., None, None]
        top, left = rng.integers(0, side - patch + 1, (2, len(places), number, 1))
        cut = sources[source, :, (top + reach)[..., :, None], (left + reach)[..., None, :]]  # (n, number, p, p, 3)
        columns = torch.from_numpy(cut).float().permute(0, 4, 2, 3, 1).reshape(len(places), 3, patch**2, number)
        whole_tiles = F.fold((columns * weights[:, None]).flatten(1, 2), **whole) / total
        batches.append(whole_tiles[..., :side, :side].round().to(torch.uint8))
    return torch.cat(batches)


def noise_like(tiles: Tensor, seed: int) -> Tensor:
    """Grey Gaussian noise with the radial spectrum of uint8 tiles (N, 3, S, S), as many; on the CPU.

    Tile i has the mean colour of real tile i and, but for what 0 and 255 cut off, its contrast.
    """
    rng = np.random.default_rng(derive_seed(seed, "noise of a spectrum"))
    amplitude = np.sqrt(isotropic(mean_power(tiles)))
    amplitude[0, 0] = 0
    batches = []
    for part in tiles.cpu().split(AT_ONCE):
        white = np.fft.fft2(rng.standard_normal((len(part), *amplitude.shape)))
        noise = np.fft.ifft2(white * amplitude).real
        contrast = part.float().mean(1).std((1, 2)).numpy() / noise.std((1, 2))
        grey = torch.from_numpy(noise * contrast[:, None, None]).float()[:, None]
        batches.append((part.float().mean((2, 3), keepdim=True) + grey).round().clamp(0, 255).to(torch.uint8))
    return torch.cat(batches)


def _spectra(tiles: Tensor) -> Iterator[np.ndarray]:
    """The Fourier transforms (n, S, S) of grey tiles, tapered, less their mean, each of power 1 (flat ones: 0)."""
    side = tiles.shape[2]
    from_border = np.minimum(np.arange(side) + 0.5, side - 0.5 - np.arange(side))
    taper = np.sin(np.pi / 2 * np.minimum(from_border / (TAPER * side), 1)) ** 2
    window = np.outer(taper, taper).astype(np.float32)
    for part in progress(tiles.split(AT_ONCE), desc="structure", unit="batch", leave=False, delay=2):
        grey = part.float().mean(1).cpu().numpy()
        grey -= (grey * window).sum((1, 2), keepdims=True) / window.sum()
        transform = np.fft.fft2(grey * window).astype(np.complex64)
        transform[:, 0, 0] = 0
        power = np.square(np.abs(transform)).sum((1, 2), keepdims=True)
        yield np.divide(transform, np.sqrt(power), out=np.zeros_like(transform), where=power > 1e-6)


def mean_power(tiles: Tensor) -> np.ndarray:
    """The mean power (S, S) of tiles, each of total power 1; at frequency 0, where there is none, that of its ring."""
    power = sum(np.square(np.abs(part)).sum(0, dtype=np.float64) for part in _spectra(tiles)) / len(tiles)
    power[0, 0] = power[0, 1]
    return power.clip(1e-12)


def isotropic(power: np.ndarray) -> np.ndarray:
    """A spectrum (S, S) that has at each frequency the geometric mean over all directions: lines do not count."""
    side = len(power)
    frequency = np.fft.fftfreq(side) * side
    ring = np.hypot(frequency[:, None], frequency).round().astype(int).ravel()
    return np.exp(np.bincount(ring, np.log(power).ravel()) / np.bincount(ring))[ring].reshape(side, side)


def coherence_of(tiles: Tensor, spectrum: np.ndarray, power: np.ndarray | None = None) -> np.ndarray:
    """The coherence of each tile at each of the three scales (N, 3), after the set was brought to `spectrum`.

    power: of the set that the tiles are from, by `mean_power`; None: they are the whole set.

    Flat tiles have none. With z = gx + i gy, z^2 is (Jxx - Jyy) + 2 i Jxy before the window, and |z|^2 their sum.
    """
    side = tiles.shape[2]
    gain = np.sqrt(spectrum / (mean_power(tiles) if power is None else power)).astype(np.float32)
    frequency = 2 * np.pi * np.fft.fftfreq(side).astype(np.float32)
    y, x = frequency[:, None], frequency
    squared = x**2 + y**2
    window = np.exp(-((WINDOW * side) ** 2) * squared / 2)
    edge = round(EDGE * side)
    counts = np.zeros((side, side), np.float32)
    counts[edge : side - edge, edge : side - edge] = 1
    rows = []
    for transform in _spectra(tiles):
        scales = []
        for sigma in SIGMAS:
            z = np.fft.ifft2(transform * gain * np.exp(-(sigma**2) * squared / 2) * (1j * x - y))
            doubled = np.fft.ifft2(np.fft.fft2(z**2 * counts) * window)
            energy = (np.square(np.abs(z)) * counts).sum((1, 2))
            scales.append(np.divide(np.abs(doubled).sum((1, 2)), energy, out=np.zeros_like(energy), where=energy > 0))
        rows.append(np.stack(scales, axis=1))
    return np.concatenate(rows)


def _reach(ladder: Ladder, coherence: np.ndarray, steps: np.ndarray, seed: int) -> dict[str, float]:
    """The row of `reaches` of one set, by its weighted coherences (M,), against the tiles `steps` of the ladder."""
    from scipy import stats  # a third of a second to import, which few notebooks need

    def position(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return _position(*(each.mean(axis) for each in samples), smallest=ladder.blocks[0])

    samples = [coherence, *(ladder.rungs[block][steps] for block in ladder.blocks)]
    interval = stats.bootstrap(
        samples, position, n_resamples=RESAMPLES, vectorized=True, method="percentile", batch=50,
        rng=np.random.default_rng(derive_seed(seed, "reach of structure")),
    ).confidence_interval  # fmt: skip
    noise, real = ladder.rungs[NOISE][steps].mean(), ladder.real[steps].mean()
    return {
        "reach": float(position(*samples)),
        "low": float(interval.low),
        "high": float(interval.high),
        "share": float((coherence.mean() - noise) / (real - noise)),
        "tiles": len(coherence),
    }


def _position(value: np.ndarray, *levels: np.ndarray, smallest: int) -> np.ndarray:
    """Where values (...) lie between the levels (...) of blocks whose size doubles from `smallest` on, in pixels.

    A level that falls where it should rise, as it may by chance, counts as equal to the one below.
    """
    rising = np.maximum.accumulate(np.stack(levels), axis=0)
    gaps, over = np.diff(rising, axis=0), value - rising[:-1]
    parts = np.where(gaps > 0, (over / np.where(gaps > 0, gaps, 1)).clip(0, 1), over > 0)
    return smallest * 2.0 ** parts.sum(0)


def _ascends(ladder: Ladder, steps: np.ndarray) -> bool:
    """Whether real tiles exceed noise, and the largest blocks the smallest, by three standard errors."""
    pairs = (
        (ladder.real[steps], ladder.rungs[NOISE][steps]),
        (ladder.rungs[ladder.blocks[-1]][steps], ladder.rungs[ladder.blocks[0]][steps]),
    )
    return all(high.mean() - low.mean() > 3 * np.sqrt((high.var() + low.var()) / len(steps)) for high, low in pairs)


def _matched(of_ladder: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Rows of the ladder, about as many as it has, in which each cluster is as frequent as in `ids`."""
    times = max(1, len(of_ladder) // len(ids))
    counts = zip(*np.unique(ids, return_counts=True), strict=True)
    return np.concatenate([np.resize(np.flatnonzero(of_ladder == c), times * number) for c, number in counts])


def _check(tiles: Tensor, places: np.ndarray, name: str) -> None:
    """InputError if the tiles at `places`, those without glass, cannot be measured."""
    if tiles.shape[2] < MIN_SIDE:
        raise InputError(f"Structure needs tiles of at least {MIN_SIDE} px, but got {tiles.shape[2]} px.")
    if len(places) < MIN_TILES:
        raise InputError(
            f"The reach of structure needs at least {MIN_TILES} {name} tiles without glass, but only {len(places)} of "
            f"{len(tiles)} are: give more tiles of tissue."
        )
    tissue = tiles[places]
    if bool((tissue == tissue[:1]).all()) or bool((tissue == tissue[:, :, :1, :1]).all()):
        raise InputError(
            f"All {len(tissue)} {name} tiles are alike or of one colour: they have no structure to measure."
        )
