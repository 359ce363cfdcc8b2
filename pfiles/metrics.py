"""Numbers about images: paired similarities, and the summary that a run collects.

Paired scores of a generated image and the training image whose cluster it shares say little about a generator:
beside each the notebooks print the same score for controls, such as a flat colour (see `paired_controls`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from pfiles.data import as_tensor, image_files, read_images, to_unit
from pfiles.errors import InputError
from pfiles.latents import read_latent_csv
from pfiles.lpips import LPIPS
from pfiles.paths import read_json, write_json

PUBLISHED_SIDE = 231  # pixels; the published images were saved through matplotlib at this size
BATCH_SIZE = 50

PairScore = Callable[[np.ndarray, np.ndarray], np.ndarray]  # two uint8 (N, H, W, 3) -> (N,)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair of images (N, 3, H, W) in [0, 1]; higher is closer. -> (N,)

    At most 100 dB, which equal images get.
    """
    return -10 * (a - b).square().flatten(1).mean(dim=1).clamp_min(1e-10).log10()


def ssim_published(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM as the published notebook computes it: a 3 x 3 x 3 window that takes colour for a third axis of space.

    a, b: uint8 (N, H, W, 3). Returns (N,), at most 1 for equal images. It rates any two images of one overall
    colour as similar; kept so that the published 0.7988 has its meaning.
    """
    from skimage.metrics import structural_similarity

    return np.array([structural_similarity(x, y, win_size=3, data_range=255) for x, y in zip(a, b, strict=True)])


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM of Wang et al. 2004: Gaussian window of sigma 1.5 within each colour channel, averaged over channels.

    a, b: uint8 (N, H, W, 3). Returns (N,), at most 1 for equal images.
    """
    from skimage.metrics import structural_similarity

    return np.array(
        [
            structural_similarity(
                x, y, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
            for x, y in zip(a, b, strict=True)
        ]
    )


def ms_ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """MS-SSIM of Wang et al. 2003, five scales with an 11 px window; at most 1 for equal images.

    a, b: uint8 (N, H, W, 3). Five scales need sides of more than 160 px: smaller images are enlarged to the published
    231 px first (bicubic), see `ms_ssim_rule`. Returns (N,).
    """
    from pytorch_msssim import ms_ssim as score

    def prepare(images: np.ndarray) -> Tensor:
        if min(images.shape[1:3]) <= 160:
            images = resize(images, PUBLISHED_SIDE)
        return to_unit(as_tensor(images))

    return score(prepare(a), prepare(b), data_range=1.0, size_average=False).numpy()


def ms_ssim_rule(side: int) -> str:
    """What `ms_ssim` does with images of `side` pixels, in words."""
    if side > 160:
        return f"images are compared at their own {side} px"
    return f"images of {side} px are enlarged to {PUBLISHED_SIDE} px (bicubic): five scales need more than 160 px"


def lpips_score(network: LPIPS, device: torch.device | str = "cpu") -> PairScore:
    """LPIPS (0 for equal images, higher is farther) as a pair score; inputs are scaled to [-1, 1]."""

    @torch.no_grad()
    def score(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        x, y = (to_unit(as_tensor(images).to(device)) for images in (a, b))
        return network(x, y, normalize=True).flatten().cpu().numpy()

    return score


def score_pairs(score: PairScore, a: np.ndarray, b: np.ndarray, name: str = "pairs") -> np.ndarray:
    """`score` of all pairs in batches, with a progress bar. -> (N,)"""
    batches = [slice(i, i + BATCH_SIZE) for i in range(0, len(a), BATCH_SIZE)]
    return np.concatenate(
        [score(a[part], np.ascontiguousarray(b[part])) for part in tqdm(batches, desc=name, unit="batch", leave=False)]
    )


def paired_controls(
    score: PairScore, real: np.ndarray, generated: np.ndarray, labels: np.ndarray, seed: int
) -> dict[str, float | None]:
    """The mean of a pair score over (real, generated), and over controls on the same real images.

    real, generated: uint8 (N, H, W, 3), pair i sharing the cluster labels[i]. The controls pair each real image with
    another real one of its cluster, with a real one of another cluster, and with a flat image of the mean colour. An
    image that has no such partner is left out; None where none has. A generator that a pair score can judge must beat
    the controls.
    """
    rng = np.random.default_rng(seed)
    everyone = np.arange(len(real))
    same, other = everyone.copy(), everyone.copy()
    for cluster in np.unique(labels):
        members, others = rng.permutation(everyone[labels == cluster]), everyone[labels != cluster]
        same[members] = np.roll(members, 1)
        if len(others):
            other[members] = rng.choice(others, len(members))
    means = {"generated": float(score_pairs(score, real, generated, "generated").mean())}
    for name, partner in (("another real tile of the cluster", same), ("a real tile of another cluster", other)):
        rows = everyone[partner != everyone]
        means[name] = float(score_pairs(score, real[rows], real[partner[rows]], name).mean()) if len(rows) else None
    flat = np.broadcast_to(real.mean(axis=(0, 1, 2)).round().astype(np.uint8), real.shape)
    means["flat mean colour"] = float(score_pairs(score, real, flat, "flat mean colour").mean())
    return means


def resize(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 (N, H, W, 3) -> (N, side, side, 3), bicubic."""
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side), Image.BICUBIC)) for image in images])


def load_pairs(originals: Path, generated: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Read two folders of images that pair by name, whatever their file type.

    Returns the names in numerical order, and both folders' images as uint8 (N, H, W, 3); generated ones of another
    size are brought to the originals' (bicubic). Raises InputError where the names differ.
    """
    folders = [image_files(folder) for folder in (originals, generated)]
    for folder, files in zip((originals, generated), folders, strict=True):
        if not files:
            raise InputError(f"There are no images in {folder}: run the notebook that writes them first.")
    missing = [sorted(a.keys() - b.keys())[:3] for a, b in (folders, folders[::-1])]
    if any(missing):
        only_first, only_second = (", ".join(names) or "none" for names in missing)
        raise InputError(
            f"Images pair by name, but {originals} alone has {only_first} and {generated} alone has {only_second}: "
            "write both folders in one run."
        )
    names = list(folders[0])
    real, fake = (read_images(files[name] for name in names) for files in folders)
    if real.shape != fake.shape:
        print(f"Generated images of {fake.shape[1]} px are resized to the originals' {real.shape[1]} px (bicubic).")
        fake = resize(fake, real.shape[1])
    return names, real, fake


def pair_labels(latent_csv: Path, names: Sequence[str]) -> np.ndarray:
    """The cluster (N,) of the training tile that each name, its number from 1, belongs to."""
    if not latent_csv.exists():
        raise InputError(f"There is no {latent_csv}: run part_5_latent_space_extraction first.")
    if wrong := [name for name in names if not name.isdecimal() or int(name) < 1]:
        raise InputError(f"Images must be named by their number from 1, such as 17.png, but there is {wrong[0]!r}.")
    _, clusters = read_latent_csv(latent_csv)
    rows = np.array([int(name) for name in names]) - 1
    if rows.max() >= len(clusters):
        raise InputError(
            f"{latent_csv} has {len(clusters)} rows, but image {rows.max() + 1} needs one: run part 5 again."
        )
    return clusters[rows]


def mark_best(table: pd.DataFrame, directions: Mapping[str, str]) -> pd.DataFrame:
    """The table as text with 5 decimals, a star at the best row of each column ("higher" or "lower" is better)."""
    marked = table.map("{:.5f}".format)
    if table.empty:
        return marked
    for name, direction in directions.items():
        best = table[name].idxmax() if direction == "higher" else table[name].idxmin()
        marked.loc[best, name] += " *"
    return marked


def record(summary: Path, section: str, values: Mapping[str, Any]) -> None:
    """Put `values` (plain numbers, text, lists) under `section` of the run's summary file."""
    write_json(summary, read_json(summary, {}) | {section: dict(values)})
