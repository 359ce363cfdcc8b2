"""Numbers about images: paired similarities with their controls, and the summary that a run collects.

Paired scores of a generated image and the training image whose cluster it shares say little about a generator:
beside each the notebooks print the same score for controls, such as a flat colour (see `paired_controls`), and one
sentence that says which of them it can tell from generated images (see `verdict`).
"""

from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from pfiles.data import as_tensor, image_files, mean_colour, read_images, to_unit
from pfiles.errors import InputError
from pfiles.latents import read_latent_csv
from pfiles.lpips import LPIPS
from pfiles.paths import read_json, write_json
from pfiles.runtime import derive_seed, pick_device

PUBLISHED_SIDE = 231  # pixels; the published images were saved through matplotlib at this size
BATCH_SIZE = 16  # pairs at once; changes memory and speed only
C1, C2 = 0.01**2, 0.03**2  # the constants of SSIM for images in [0, 1]
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales, Wang et al. 2003
RESAMPLES = 1000  # of a bootstrap

PairScore = Callable[[np.ndarray, np.ndarray], np.ndarray]  # two uint8 (N, H, W, 3) -> (N,)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair of images (N, 3, H, W) in [0, 1]; higher is closer. -> (N,)

    At most 100 dB, which equal images get.
    """
    return -10 * (a - b).square().flatten(1).mean(dim=1).clamp_min(1e-10).log10()


def ssim_published(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM as the published notebook computes it: a 3 x 3 x 3 window that takes colour for a third axis of space.

    a, b: uint8 (N, H, W, 3). Returns (N,), at most 1 for equal images. It rates any two images of one overall
    colour as similar; kept so that the published 0.7988 has its meaning. Variances are those of a sample (27 / 26),
    and only windows that lie inside the image in all three axes count.
    """

    def window_means(maps: Tensor) -> Tensor:
        colours = maps.unflatten(1, (3, -1)).mean(1)  # the window spans all three
        return F.avg_pool2d(colours, 3, stride=1)

    moments = _moments(*map(_centred_maps, (a, b)), window_means)
    return (_luminance(*moments) * _structure(*moments, unbiased=27 / 26)).mean((0, 2, 3)).cpu().numpy()


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM of Wang et al. 2004: Gaussian window of sigma 1.5 within each colour channel, averaged over channels.

    a, b: uint8 (N, H, W, 3), sides of at least 11 px. Returns (N,), at most 1 for equal images. Only windows inside
    the image count.
    """
    moments = _moments(*map(_centred_maps, (a, b)), _gaussian_means)
    return _image_means(_luminance(*moments) * _structure(*moments)).mean(0).cpu().numpy()


def ms_ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """MS-SSIM of Wang et al. 2003, five scales with an 11 px window; at most 1 for equal images.

    a, b: uint8 (N, H, W, 3). Five scales need sides of more than 160 px: smaller images are enlarged to the published
    231 px first (bicubic), see `ms_ssim_rule`. Returns (N,).
    """
    x, y = (_centred_maps(_enlarge(images)) for images in (a, b))
    product = 1
    for scale, weight in enumerate(MS_SSIM_WEIGHTS, start=1):
        moments = _moments(x, y, _gaussian_means)
        term = _structure(*moments)
        if scale == len(MS_SSIM_WEIGHTS):
            term *= _luminance(*moments)
        else:
            x, y = map(_halve, (x, y))
        product = product * _image_means(term).clamp_min(0) ** weight
    return product.mean(0).cpu().numpy()


def ms_ssim_rule(side: int) -> str:
    """What `ms_ssim` does with images of `side` pixels, in words."""
    if side > 160:
        return f"MS-SSIM: images are compared at their own {side} px."
    return (
        f"MS-SSIM: images of {side} px are enlarged to {PUBLISHED_SIDE} px (bicubic), the size of the published files, "
        "as five scales need more than 160 px."
    )


def _centred_maps(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> float (1, 3 N, H, W) in [-0.5, 0.5], all reds first, on the GPU where there is one.

    The maps of a batch lie side by side at each place in memory (channels last), so that every step below runs over
    all of them at once; that is several times as fast on a CPU as one image after the other. Around 0 float32 keeps
    the digits of small variances.
    """
    maps = torch.from_numpy(np.ascontiguousarray(images)).to(pick_device()).permute(1, 2, 3, 0)  # (H, W, 3, N)
    return to_unit(maps.contiguous()).sub_(0.5).flatten(2)[None].permute(0, 3, 1, 2)


def _image_means(maps: Tensor) -> Tensor:
    """(1, 3 N, H, W) -> the mean of each colour of each image (3, N)."""
    return maps.mean((0, 2, 3)).view(3, -1)


def _moments(x: Tensor, y: Tensor, window_means: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means and variances over a window at each place of s = x + y and d = x - y, of which all of SSIM follows.

    4 cov(x, y) = var(s) - var(d), and 2 (var(x) + var(y)) = var(s) + var(d); the means likewise. These are four maps
    to filter, not five. x, y: `_centred_maps`.
    """
    s, d = x + y, x - y
    mean_s, mean_d = window_means(s), window_means(d)
    var_s = window_means(s.square_()).addcmul_(mean_s, mean_s, value=-1)
    var_d = window_means(d.square_()).addcmul_(mean_d, mean_d, value=-1)
    return mean_s, mean_d, var_s, var_d


def _luminance(mean_s: Tensor, mean_d: Tensor, var_s: Tensor, var_d: Tensor) -> Tensor:
    """2 mean(x) mean(y) over mean(x)^2 + mean(y)^2, stabilised by C1."""
    s, d = (mean_s + 1).square_(), mean_d.square()  # x and y were centred by 0.5 each
    return (s - d).add_(2 * C1) / (s + d).add_(2 * C1)


def _structure(mean_s: Tensor, mean_d: Tensor, var_s: Tensor, var_d: Tensor, unbiased: float = 1.0) -> Tensor:
    """Contrast times structure, 2 cov(x, y) over var(x) + var(y), stabilised by C2; `unbiased`: factor of variances."""
    var_s = var_s + 2 * C2 / unbiased
    return (var_s - var_d).div_(var_s.add_(var_d))


def _gaussian_means(maps: Tensor) -> Tensor:
    """(1, C, H, W) -> means over the 11 x 11 Gaussian window of sigma 1.5 where it fits in, (1, C, H - 10, W - 10)."""
    offsets = torch.arange(-5, 6, device=maps.device)
    weights = torch.exp(-offsets.square() / (2 * 1.5**2))
    weights = (weights / weights.sum()).repeat(maps.shape[1], 1, 1, 1)
    return F.conv2d(F.conv2d(maps, weights, groups=len(weights)), weights.mT, groups=len(weights))


def _halve(maps: Tensor) -> Tensor:
    """Means of 2 x 2 pixels; an odd side begins and ends with black, as in the implementations in use."""
    padding = [side % 2 for side in maps.shape[2:]]
    if any(padding):
        maps = F.pad(maps, (padding[1], padding[1], padding[0], padding[0]), value=-0.5)
    return F.avg_pool2d(maps, 2)


def _enlarge(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3), at the published size (bicubic) where a side is too short for MS-SSIM."""
    if min(images.shape[1:3]) > 160:
        return images
    size = (PUBLISHED_SIDE, PUBLISHED_SIDE)
    large = F.interpolate(as_tensor(np.ascontiguousarray(images)), size, mode="bicubic", antialias=True)
    return large.permute(0, 2, 3, 1).numpy()


def lpips_score(network: LPIPS, device: torch.device | str = "cpu") -> PairScore:
    """LPIPS (0 for equal images, higher is farther) as a pair score; inputs are scaled to [-1, 1]."""

    @torch.no_grad()
    def score(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        x, y = (to_unit(as_tensor(images).to(device)) for images in (a, b))
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # ten bits are too few for 1e-4
            return network(x, y, normalize=True).flatten().cpu().numpy()

    return score


def score_pairs(score: PairScore, a: np.ndarray, b: np.ndarray, name: str = "pairs") -> np.ndarray:
    """`score` of all pairs in batches, with a progress bar. -> (N,)"""
    batches = [slice(i, i + BATCH_SIZE) for i in range(0, len(a), BATCH_SIZE)]
    return np.concatenate(
        [score(a[part], np.ascontiguousarray(b[part])) for part in tqdm(batches, desc=name, unit="batch", leave=False)]
    )


def paired_controls(
    score: PairScore, real: np.ndarray, generated: np.ndarray, labels: np.ndarray | None, seed: int
) -> pd.DataFrame:
    """A pair score of (real, generated), and of controls on the same real images.

    real, generated: uint8 (N, H, W, 3), pair i sharing the cluster labels[i]; without labels all are one cluster. The
    controls pair each real image with another real one of its cluster, with a real one of another cluster, with a
    flat image of the mean colour, and with itself. An image that has no such partner is left out, and so is a control
    where none has. A generator that a pair score can judge must beat the controls.

    One row for each: "pairs", their "mean" with its 95 % bootstrap interval from "low" to "high", and the mean
    "difference" of the generated image's score from the control's on the same real image, likewise. "distinguishable"
    says whether that interval excludes 0. The row "generated" has no difference.
    """
    rng = np.random.default_rng(derive_seed(seed, "partners"))
    everyone = np.arange(len(real))
    same, other = everyone.copy(), everyone.copy()
    clusters = np.zeros(len(real), int) if labels is None else labels
    for cluster in np.unique(clusters):
        members, others = rng.permutation(everyone[clusters == cluster]), everyone[clusters != cluster]
        same[members] = np.roll(members, 1)
        if len(others):
            other[members] = rng.choice(others, len(members))
    flat = np.broadcast_to(np.array(mean_colour(as_tensor(real)), np.uint8), real.shape)
    partners = {
        "another real tile" + (" of the cluster" if labels is not None else ""): (everyone[same != everyone], same),
        "a real tile of another cluster": (everyone[other != everyone], other),
        "the real tile itself": (everyone, everyone),
    }
    scores = {
        name: (rows, score_pairs(score, real[rows], real[partner[rows]], name))
        for name, (rows, partner) in partners.items()
        if len(rows)
    }
    scores["flat mean colour"] = everyone, score_pairs(score, real, flat, "flat mean colour")
    scores["the real tile itself"] = scores.pop("the real tile itself")  # the last row
    ours = score_pairs(score, real, generated, "generated")
    table = {"generated": {"pairs": len(ours)} | _mean_with_interval(ours, seed, ("mean", "low", "high"))}
    for name, (rows, values) in scores.items():
        difference = _mean_with_interval(ours[rows] - values, seed, ("difference", "difference_low", "difference_high"))
        differs = difference["difference_low"] > 0 or difference["difference_high"] < 0
        own = _mean_with_interval(values, seed, ("mean", "low", "high"))
        table[name] = {"pairs": len(rows)} | own | difference | {"distinguishable": differs}
    return pd.DataFrame.from_dict(table, orient="index")


def bootstrap_interval(
    values: np.ndarray, seed: int, statistic: Callable[[np.ndarray], float] = np.mean
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic of values (N,) over resamples of them (Efron 1979)."""
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    resampled = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(RESAMPLES)]
    return tuple(np.percentile(resampled, (2.5, 97.5)).tolist())


def _mean_with_interval(values: np.ndarray, seed: int, names: tuple[str, str, str]) -> dict[str, float]:
    values = values.astype(float)
    return dict(zip(names, (float(values.mean()), *bootstrap_interval(values, seed)), strict=True))


def verdict(name: str, table: pd.DataFrame) -> str:
    """One sentence: from which controls of `paired_controls` generated images can be told by the score `name`."""
    ours, controls = table.iloc[0], table.iloc[1:]
    differs = controls.distinguishable.astype(bool)
    told = [
        f"{control} ({'higher' if row.difference > 0 else 'lower'} by {abs(row.difference):.3f})"
        for control, row in controls[differs].iterrows()
    ]
    not_told = list(controls.index[~differs])
    parts = [f"can be told from {_listed(told, 'and')}"] if told else []
    parts += [f"cannot be told from {_listed(not_told, 'or')}"] if not_told else []
    return (
        f"{name} of generated tiles is {ours['mean']:.3f} (95 % interval {ours['low']:.3f} to {ours['high']:.3f}): "
        f"by it they {', but '.join(parts)}; two can be told apart where the 95 % bootstrap interval of their paired "
        "difference excludes 0."
    )


def _listed(items: Sequence[str], word: str) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return f" {word} ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def plain(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The rows of a table by name as plain values for JSON, without the empty ones."""
    rows = table.astype(object).to_dict("index")
    return {str(name): {key: _plain(v) for key, v in row.items() if not pd.isna(v)} for name, row in rows.items()}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def resize(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 (N, H, W, 3) -> (N, side, side, 3), bicubic."""
    with ThreadPool() as pool:
        return np.stack(
            pool.map(lambda image: np.asarray(Image.fromarray(image).resize((side, side), Image.BICUBIC)), images)
        )


def load_pairs(originals: Path, generated: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Read two folders of images that pair by name, whatever their file type.

    Returns the names in numerical order, and both folders' images as uint8 (N, H, W, 3); generated ones of another
    size are brought to the originals' (bicubic), and it says so. Raises InputError where the names differ.
    """
    folders = [list_images(folder) for folder in (originals, generated)]
    missing = [list(a.keys() - b.keys()) for a, b in (folders, folders[::-1])]
    if any(missing):
        only_first, only_second = (_first_names(names) for names in missing)
        raise InputError(
            f"Images pair by name, but of {len(folders[0])} in {originals} {only_first} there alone, and of "
            f"{len(folders[1])} in {generated} {only_second} there alone: write both folders in one run."
        )
    names = list(folders[0])
    real, fake = (read_images(files[name] for name in names) for files in folders)
    return names, real, match_size(fake, real)


def list_images(folder: Path) -> dict[str, Path]:
    """`image_files` of a folder that must hold some."""
    files = image_files(folder)
    if not files:
        raise InputError(f"There are no images in {folder}: run the notebook that writes them first.")
    return files


def _first_names(names: Sequence[str]) -> str:
    """["3", "1", "2", "11"] -> "1, 2, 3 (and 1 more) are"."""
    if not names:
        return "none is"
    shown = ", ".join(sorted(names, key=lambda name: (len(name), name))[:3])
    more = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"


def match_size(generated: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Generated images (N, H, W, 3) at the size of the real ones; it says so where it resizes."""
    if generated.shape[1] == real.shape[1]:
        return generated
    print(f"Generated images of {generated.shape[1]} px are resized to the originals' {real.shape[1]} px (bicubic).")
    return resize(generated, real.shape[1])


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
