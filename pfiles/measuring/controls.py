"""What a paired score is worth: the same score for controls, and one sentence that says what it can tell apart."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pfiles.machine.runtime import derive_seed
from pfiles.measuring.pairs import PairScore, score_pairs
from pfiles.tiles.pixels import mean_colour

RESAMPLES = 1000  # of a bootstrap
FLAT, ITSELF = "flat mean colour", "the real tile itself"  # controls


def paired_controls(
    score: PairScore, real: Tensor, generated: Tensor, cluster_ids: np.ndarray | None, seed: int
) -> pd.DataFrame:
    """A pair score of (real, generated), and of controls on the same real images.

    real, generated: uint8 (N, 3, H, W), pair i sharing cluster_ids[i]; without these all are of one cluster. The
    controls pair each real image with another real one of its cluster, with a real one of another cluster, with a
    flat image of the mean colour, and with itself. An image that has no such partner is left out, and so is a control
    where none has. A generator that a pair score can judge must beat the controls.

    One row for each: "pairs", their "mean" with its 95 % bootstrap interval from "low" to "high", and the mean
    "difference" of the generated image's score from the control's on the same real image, likewise. "distinguishable"
    says whether that interval excludes 0. The row "generated" has no difference.
    """
    rng = np.random.default_rng(derive_seed(seed, "partners"))
    everyone = np.arange(len(real))
    same_cluster, other_cluster = everyone.copy(), everyone.copy()
    ids = np.zeros(len(real), int) if cluster_ids is None else cluster_ids
    for cluster in np.unique(ids):
        members, outsiders = rng.permutation(everyone[ids == cluster]), everyone[ids != cluster]
        same_cluster[members] = np.roll(members, 1)
        if len(outsiders):
            other_cluster[members] = rng.choice(outsiders, len(members))
    flat = torch.tensor(mean_colour(real), dtype=torch.uint8)[:, None, None].expand(real.shape)
    partners = {
        "another real tile" + (" of the cluster" if cluster_ids is not None else ""): (
            everyone[same_cluster != everyone],
            same_cluster,
        ),
        "a real tile of another cluster": (everyone[other_cluster != everyone], other_cluster),
        ITSELF: (everyone, everyone),
    }
    scores = {
        name: (rows, score_pairs(score, real[rows], real[partner[rows]], name))
        for name, (rows, partner) in partners.items()
        if len(rows)
    }
    scores[FLAT] = everyone, score_pairs(score, real, flat, FLAT)
    scores[ITSELF] = scores.pop(ITSELF)  # the last row
    generated_scores = score_pairs(score, real, generated, "generated")
    columns = ("mean", "low", "high")
    table = {"generated": {"pairs": len(generated_scores)} | _mean_with_interval(generated_scores, seed, columns)}
    for name, (rows, values) in scores.items():
        differences = generated_scores[rows] - values
        difference = _mean_with_interval(differences, seed, ("difference", "difference_low", "difference_high"))
        differs = difference["difference_low"] > 0 or difference["difference_high"] < 0
        interval = _mean_with_interval(values, seed, columns)
        table[name] = {"pairs": len(rows)} | interval | difference | {"distinguishable": differs}
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
    """One sentence: from which controls of `paired_controls` generated images can be told by the score `name`, and
    whether a flat colour beats them, so that the score cannot judge them."""
    generated, controls = table.iloc[0], table.iloc[1:]
    differs = controls.distinguishable.astype(bool)
    differing = [
        f"{control} ({'higher' if row.difference > 0 else 'lower'} by {abs(row.difference):.3f})"
        for control, row in controls[differs].iterrows()
    ]
    alike = list(controls.index[~differs])
    parts = [f"can be told from {_listed(differing, 'and')}"] if differing else []
    parts += [f"cannot be told from {_listed(alike, 'or')}"] if alike else []
    flat, itself = table.loc[FLAT], table.loc[ITSELF]
    is_beaten = flat.distinguishable and flat.difference * itself.difference > 0  # on the side of the tile itself
    worth = "; it cannot judge these tiles, as one flat colour scores better" if is_beaten else ""
    return (
        f"{name} of generated tiles is {generated['mean']:.3f} (95 % interval {generated['low']:.3f} to "
        f"{generated['high']:.3f}): by it they {', but '.join(parts)}; two can be told apart if the 95 % bootstrap "
        f"interval of their paired difference excludes 0{worth}."
    )


def _listed(items: Sequence[str], word: str) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return f" {word} ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
