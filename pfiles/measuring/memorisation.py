"""Does a generator repeat its training tiles? The nearest tile of each image, and a gate that keeps copies back.

A distance alone says nothing: any two tiles share something, and how much depends on tissue and on the number of tiles.
So the nearest distances of generated images are held against those of held-out real tiles to the same training tiles,
found in the same way. An honest generator's images lie no closer to the training tiles than tissue never trained on.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy
import torch
import torch.nn.functional as F
from torch import Tensor

from pfiles.errors import InputError
from pfiles.machine.processes import progress
from pfiles.measuring.fidelity import wilson_interval

CLOSEST = 0.01  # share of the held-out tiles, the closest ones, whose distance is too close for a generated image
COPY = 0.1  # distance; copies of tissue saved as JPEG, moved and 5 % brighter come out below it
NEAR = 2  # pixels: shifts of up to so much, up, down, left and right, always count
FAR = 1 / 4  # of the side: shifts of up to so much count where the correlation is evident
EVIDENT = 0.5  # correlation; of all far shifts of unrelated tissue the best stays below it
SEEN = 1 / 4  # of the energy of either tile that must lie where they overlap
LAYOUT = 5 / 16  # of the side: structure coarser than this, such as an empty corner, does not count
COARSE_SIDE = 24  # pixels of the small images that make the shortlist
SHORTLIST = 64  # (view, training tile) pairs compared at full resolution for each image
KEYPOINTS = 20  # spots of a tile that stand out most; their patches make the shortlist of far shifts
PATCH = 7  # samples along the side of a patch, 1/32 of the tile's side apart
ALIKE = 64  # training tiles that hold a patch most like one of the image
FAR_SHORTLIST = 6  # of them, training tiles compared at all far shifts
BATCH_SIZE = 32  # images at once; changes memory and speed only
TILES_AT_ONCE = 1024  # whose patches are compared in the processor's cache
AT_ONCE = 2**14  # training tiles that are in memory as structure, and have shortlists of their own


def nearest_tiles(images: Tensor, train: Tensor) -> pd.DataFrame:
    """The nearest training tile of each image, in pixel space.

    images, train: uint8 (N, 3, S, S) and (M, 3, S, S). Both are made grey (mean of the colours), and their local mean
    over windows of 5/16 of the side is taken off, so that brightness, contrast and the coarse layout do not count.
    The distance of two tiles is 1 - c, where c is the correlation of what is left, the highest of the 8 views of the
    image (quarter turns, mirrored or not) and of the 25 shifts of up to 2 px each way: 0 for a copy, about 1 for tiles
    that share nothing, and 1 where one of them has no structure at all. Shifts of up to a quarter of the side each way
    count as well, with the correlation over the part that both tiles show, where it reaches 0.5; among so many shifts
    unrelated tissue reaches 0.3 by chance.

    Exact: c at full resolution, of all shifts, for the pairs on the shortlists. Shortlist of all shifts up to 2 px: the
    64 pairs of a view and a training tile whose versions of 24 x 24 px correlate best. Shortlist of far shifts: of the
    64 tiles that hold the patch most like one of the image, of 20 patches of each around the spots that stand out most,
    the 6 whose like patches lie no further apart than a quarter of the side. A copy leads them by far, so that it is
    seldom missed; among tiles that share next to nothing, the nearest of all can be missed for one nearly as near.

    Returns a row for each image: tile (index into train), distance, view (0 ... 7), shift_y and shift_x (pixels), to
    be shown by `aligned`. Of more than 16,384 training tiles, so many at a time have shortlists of their own, so that
    memory stays as it is for these: 4 bytes for each of their pixels, and 10 kB for each tile.
    """
    if images.shape[1:] != train.shape[1:] or images.shape[2] != images.shape[3]:
        raise InputError(
            f"Generated and training images must be square and of one size, but are {tuple(images.shape[1:])} and "
            f"{tuple(train.shape[1:])}: bring them to one size first."
        )
    found = [_nearest_of(images, some) for some in train.split(AT_ONCE)]
    best = found[0]
    for number, other in enumerate(found[1:], start=1):
        nearer = other.distance < best.distance
        best[nearer] = other[nearer].assign(tile=other.tile[nearer] + number * AT_ONCE)
    return best


def _nearest_of(images: Tensor, train: Tensor) -> pd.DataFrame:
    """`nearest_tiles` of training tiles that are searched at once."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        structure = torch.cat([*pool.map(_structure, train.split(BATCH_SIZE))])
        batches = pool.map(_patches, structure.split(BATCH_SIZE))
        patches = _Patches(*map(torch.cat, zip(*batches, strict=True)))
    by_spot = patches.patch.permute(1, 2, 0).contiguous()
    energy = torch.cat([_energy(part) for part in structure.split(BATCH_SIZE)])
    coarse = _coarse(structure)
    rows = []
    for start in progress(range(0, len(images), BATCH_SIZE), desc="nearest tiles", unit="batch", leave=False):
        views = _views(_structure(images[start : start + BATCH_SIZE]))  # (B, 8, S, S)
        scores = _coarse(views.flatten(0, 1)).unflatten(0, views.shape[:2]) @ coarse.T  # (B, 8, M)
        best = scores.flatten(1).topk(min(SHORTLIST, scores[0].numel())).indices  # (B, C)
        shared = _share_a_patch(_patches(views[:, 0]), patches, by_spot, int(FAR * train.shape[2]))  # (B, F) twice
        for image, pairs, far_tile, far_view in zip(views, best, *shared, strict=True):
            view, tile = pairs // len(train), pairs % len(train)
            peak = _peak(_correlate(image[view], structure[tile], energy[tile]))
            far = _peak(_correlate_far(image[far_view], structure[far_tile]))
            if far[0] >= max(EVIDENT, peak[0]):
                peak, view, tile = far, far_view, far_tile
            correlation, place, shift_y, shift_x = peak
            rows.append(
                {
                    "tile": int(tile[place]),
                    "distance": max(0.0, 1 - correlation),
                    "view": int(view[place]),
                    "shift_y": shift_y,
                    "shift_x": shift_x,
                }
            )
    return pd.DataFrame(rows)


def _structure(images: Tensor) -> Tensor:
    """uint8 (N, 3, S, S) -> float32 (N, S, S): grey less its local mean."""
    red, green, blue = images.unbind(1)
    grey = ((red.float() + green + blue) / 3).cpu().numpy()
    side = round(images.shape[2] * LAYOUT) | 1  # odd, so that turned images give turned results
    return torch.from_numpy(grey - scipy.ndimage.uniform_filter(grey, (0, side, side)))


def _coarse(structure: Tensor) -> Tensor:
    """(N, S, S) -> (N, 576): 24 x 24 px, scaled to length 1."""
    return F.normalize(F.adaptive_avg_pool2d(structure[:, None], COARSE_SIDE).flatten(1))


def _energy(structure: Tensor) -> Tensor:
    """(N, S, S) -> (N, 5, 5): the sum of squares over the window at each shift."""
    side = structure.shape[1]
    shift, at = torch.arange(2 * NEAR + 1)[:, None], torch.arange(side)
    inside = ((at >= shift) & (at < side - 2 * NEAR + shift)).float()  # (5, S)
    return inside @ structure.square() @ inside.T


def _views(images: Tensor) -> Tensor:
    """(N, S, S) -> (N, 8, S, S): turned by 0, 1, 2, 3 quarters, then the same mirrored left to right."""
    turned = torch.stack([images.rot90(quarters, (1, 2)) for quarters in range(4)], dim=1)
    return torch.cat([turned, turned.flip(3)], dim=1)


def _peak(correlation: Tensor) -> tuple[float, int, int, int]:
    """Of correlations (C, 2 R + 1, 2 R + 1) at shifts of up to R the highest, its place among the C, and its shifts."""
    place, y, x = map(int, np.unravel_index(int(correlation.argmax()), correlation.shape))
    radius = correlation.shape[1] // 2
    return float(correlation[place, y, x]), place, y - radius, x - radius


def _correlate(images: Tensor, tiles: Tensor, energy: Tensor) -> Tensor:
    """Of C pairs (C, S, S), the correlation of the image's inner part with every window of its tile. -> (C, 5, 5)"""
    inner = images[:, NEAR:-NEAR, NEAR:-NEAR]
    products = F.conv2d(tiles[None], inner[:, None], groups=len(tiles))[0]
    return products / (inner.square().sum((1, 2))[:, None, None] * energy).sqrt().clamp_min(1e-6)


def _correlate_far(images: Tensor, tiles: Tensor) -> Tensor:
    """Of C pairs (C, S, S), the correlation of image and tile where they overlap, at every shift of up to R = S / 4.

    Products at all shifts at once through Fourier transforms. -> (C, 2 R + 1, 2 R + 1), with -1 for the shifts that
    `_correlate` looks at, and where the overlap holds less than a quarter of the energy of either.
    """
    side = images.shape[1]
    radius = int(FAR * side)
    padded = (side + radius, side + radius)  # what wraps around meets zeros
    products = torch.fft.irfft2(torch.fft.rfft2(tiles, padded) * torch.fft.rfft2(images, padded).conj(), padded)
    products = products.roll((radius, radius), (1, 2))[:, : 2 * radius + 1, : 2 * radius + 1]
    shift, at = torch.arange(-radius, radius + 1)[:, None], torch.arange(side)
    inside = ((at >= shift) & (at < side + shift)).float()  # (2 R + 1, S): which rows of a tile overlap at each shift
    of_tiles, of_images = (
        rows @ x.square() @ rows.T for rows, x in ((inside, tiles), (inside.flip(0), images))
    )  # (C, 2 R + 1, 2 R + 1)
    correlation = products / (of_tiles * of_images).sqrt().clamp_min(1e-6)
    for energy, x in ((of_tiles, tiles), (of_images, images)):
        correlation[energy < SEEN * x.square().sum((1, 2))[:, None, None]] = -1
    correlation[:, radius - NEAR : radius + NEAR + 1, radius - NEAR : radius + NEAR + 1] = -1
    return correlation


class _Patches(NamedTuple):
    """Of N tiles the patches around the K spots of each that stand out most."""

    patch: Tensor  # (N, K, 49), of length 1, in the view that makes all views of a patch equal
    view: Tensor  # (N, K): that view
    place: Tensor  # (N, K, 2): y and x of the spot from the middle of the tile, pixels


def _patches(structure: Tensor) -> _Patches:
    """Patches that are the same wherever a tile is shifted to and however it is turned, of (N, S, S).

    A spot is a local maximum of the difference between the means over a small and over a larger window. The patch
    around it, sampled from the smaller means, is given in that one of its 8 views in which it is brightest towards one
    side, in a direction that no view leaves as it is.
    """
    side, images = structure.shape[1], structure.numpy()
    small, large, apart = (round(side * part / 128) | 1 for part in (7, 13, 9))  # odd, as in `_structure`
    smooth = scipy.ndimage.uniform_filter(images, (0, small, small))
    contrast = np.abs(smooth - scipy.ndimage.uniform_filter(images, (0, large, large)))
    contrast[contrast < scipy.ndimage.maximum_filter(contrast, (1, apart, apart))] = 0
    offsets = torch.from_numpy(np.rint((np.arange(PATCH) - PATCH // 2) * side / 32).astype(np.int64))
    margin = int(offsets[-1])
    inner = torch.from_numpy(contrast)[:, margin : side - margin, margin : side - margin]
    spot = inner.flatten(1).topk(KEYPOINTS).indices  # (N, K)
    y, x = spot // inner.shape[2] + margin, spot % inner.shape[2] + margin
    where = (y[..., None, None] + offsets[:, None]) * side + x[..., None, None] + offsets  # (N, K, 7, 7)
    patch = torch.from_numpy(smooth).flatten(1).gather(1, where.flatten(1)).view(*spot.shape, PATCH**2)
    patch = F.normalize(patch - patch.mean(2, keepdim=True), dim=2)
    pixels = _views(torch.arange(PATCH**2).view(1, PATCH, PATCH))[0].flatten(1)  # (8, 49): of the patch in each view
    direction = (2 * offsets[:, None] + offsets).flatten().float()
    view = (patch[..., pixels] @ direction).argmax(2)  # (N, K)
    return _Patches(patch.gather(2, pixels[view]), view, torch.stack([y, x], dim=2) - (side - 1) / 2)


def _share_a_patch(images: _Patches, tiles: _Patches, by_spot: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """For each of B images the F tiles that share a patch with it, such that it is shifted by up to `radius` pixels.

    by_spot: the tiles' patches (K, 49, M).

    -> (B, F) indices of the tiles, and (B, F) views of the image that then look like them.
    """
    flat, best = images.patch.flatten(0, 1), []
    for some in by_spot.split(TILES_AT_ONCE, dim=2):
        highest = flat @ some[0]  # (B K, M')
        for of_spot in some[1:]:
            torch.maximum(highest, flat @ of_spot, out=highest)
        best.append(highest.view(-1, KEYPOINTS, some.shape[2]).amax(1))
    tile = torch.cat(best, dim=1).topk(min(ALIKE, len(tiles.patch))).indices  # (B, A)
    likeness = torch.einsum("bkd, bald -> bakl", images.patch, tiles.patch[tile])  # of each two of their patches
    likeness, pair = likeness.flatten(2).max(2)  # (B, A)
    own, its = pair // KEYPOINTS, pair % KEYPOINTS
    between, turns = _dihedral()
    view = between[images.view.gather(1, own), tiles.view[tile, its]]  # (B, A)
    place = images.place[torch.arange(len(own))[:, None], own]  # (B, A, 2)
    shift = tiles.place[tile, its] - (turns[view] @ place[..., None])[..., 0]
    likeness[shift.abs().amax(2) > radius] = -1
    chosen = likeness.topk(min(FAR_SHORTLIST, likeness.shape[1])).indices  # (B, F)
    return tile.gather(1, chosen), view.gather(1, chosen)


def _dihedral() -> tuple[Tensor, Tensor]:
    """The view that leads from one view to another, and what a view does to a place.

    -> (8, 8): at [i, j] the view v of anything whose view j equals the thing's own view i; (8, 2, 2): the matrices
    that take y and x, from the middle, to where they are in each view.
    """
    corners = _views(torch.arange(4).view(1, 2, 2))[0]
    twice = _views(corners).transpose(0, 1)  # [j, v]
    between = (twice == corners[:, None, None]).all(-1).all(-1).int().argmax(2)
    quarter, mirror = torch.tensor([[0.0, -1], [1, 0]]), torch.tensor([[1.0, 0], [0, -1]])
    turned = torch.stack([torch.linalg.matrix_power(quarter, n) for n in range(4)])
    return between, torch.cat([turned, mirror @ turned])


def aligned(tile: Tensor, view: int, shift_y: int, shift_x: int) -> tuple[Tensor, Tensor]:
    """A training tile (3, S, S), shifted and turned as the image lies that `nearest_tiles` found it for.

    Beside it, as bool (S, S), where the tile reaches; its border is drawn on to fill the rest.
    """
    rows, columns = (torch.arange(tile.shape[1]) + shift for shift in (shift_y, shift_x))
    last = tile.shape[1] - 1
    moved = tile[:, rows.clamp(0, last)][:, :, columns.clamp(0, last)]
    inside = ((rows >= 0) & (rows <= last))[:, None] & (columns >= 0) & (columns <= last)

    def turned(image: Tensor) -> Tensor:
        return (image.flip(-1) if view >= 4 else image).rot90(-(view % 4), (-2, -1))

    return turned(moved), turned(inside)


def nearest_features(features: np.ndarray, train_features: np.ndarray) -> pd.DataFrame:
    """The nearest training tile of each image in any feature space: columns tile (index into train) and distance.

    features, train_features: (N, d) and (M, d) of any one extractor. Exact; the distance is Euclidean.
    """
    train = torch.from_numpy(train_features).double()
    parts = torch.from_numpy(features).double().split(1000)  # of which the distances to all of `train` fit in memory
    distance, tile = map(torch.cat, zip(*(torch.cdist(part, train).min(dim=1) for part in parts), strict=True))
    return pd.DataFrame({"tile": tile, "distance": distance})


def against_held_out(distances: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """How many of the nearest distances (N,) of images are closer than those of the closest 1 % of held-out tiles (M,).

    threshold: the distance below which those 1 % lie, the smallest of all where there are fewer than 99;
    closer: the share of `distances` below it, and low, high, its 95 % Wilson interval;
    expected: that share for images as far from the training tiles as held-out ones, 1 % or 1 of M + 1;
    chance: how probable it is for such images to show this share or a larger one. Unlike the interval, this
        allows for a threshold that few held-out tiles leave uncertain.
    """
    from scipy.stats import betabinom

    limit = float(np.quantile(held_out, CLOSEST, method="weibull"))
    n, count, m = len(distances), int((np.asarray(distances) < limit).sum()), len(held_out)
    rank = max(1.0, CLOSEST * (m + 1))  # of the threshold among the held-out distances
    low, high = wilson_interval(count, n)
    return {
        "threshold": limit,
        "closer": count / n,
        "low": low,
        "high": high,
        "expected": rank / (m + 1),
        "chance": float(betabinom.sf(count - 1, n, rank, m + 1 - rank)),
    }


def held_against(
    images: Tensor, train: Tensor, held_out: Tensor, source: str
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float | None], str]:
    """`nearest_tiles` among `train` of images and of held-out tiles, and what `judge` says of their distances."""
    nearest, nearest_held_out = (nearest_tiles(some, train) for some in (images, held_out))
    return nearest, nearest_held_out, *judge(nearest.distance, nearest_held_out.distance, source)


def judge(distances: np.ndarray, held_out: np.ndarray, source: str) -> tuple[dict[str, float | None], str]:
    """`against_held_out` for distances of `nearest_tiles`, and a sentence where the held-out tiles cannot say so much.

    That is where the closest 1 % of them are themselves copies of training tiles, closer than COPY: how close is too
    close is then unknown. The threshold becomes COPY, below which an image is a copy whatever the tissue, and expected
    and chance become None. The sentence, which names the `source` of the tiles, is empty otherwise.
    """
    found = against_held_out(distances, held_out)
    if found["threshold"] >= COPY:
        return {**found}, ""
    count, n = int((np.asarray(distances) < COPY).sum()), len(distances)
    low, high = wilson_interval(count, n)
    outright = {"threshold": COPY, "closer": count / n, "low": low, "high": high, "expected": None, "chance": None}
    return outright, (
        f"The closest 1 % of the held-out tiles of {source} are themselves copies of training tiles (distance "
        f"{found['threshold']:.3f}): remove duplicates, or name files so that no slide is on both sides of the split."
    )
