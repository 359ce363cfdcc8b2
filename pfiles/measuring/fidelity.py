"""Does the condition hold? Generated tiles are sorted into clusters again, by the clusters and by a second judge.

The classifier that set the condition also judges, and was trained beside the UNet. The second judge is a classifier
that never saw the UNet's training: it learnt the clusters from every other real tile, and its agreement with them on
the remaining real tiles is the most that generated ones can be expected to reach.
"""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from pfiles.classifier import Classifier
from pfiles.errors import InputError
from pfiles.latents import predict_clusters
from pfiles.learning.loop import epoch_batches
from pfiles.machine.processes import progress
from pfiles.machine.runtime import make_rng, seeded
from pfiles.vqvae import VQVAE

PUBLISHED = 73 / 100  # of the published samples of cluster 1, the share that was assigned to it again
JUDGE_EPOCHS = 8
JUDGE_BATCH = 32
JUDGE_LEARNING_RATE = 1e-3  # of Adam at the start; it falls to 0 along a cosine


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    from scipy import stats  # a third of a second to import, which few notebooks need

    interval = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def student_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean of independent values and its 95 % interval by Student's t; the ends are nan of a single value."""
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, float("nan"), float("nan")
    from scipy import stats

    half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def agreement(matrix: np.ndarray) -> pd.DataFrame:
    """The accuracy in each cluster and overall of a confusion matrix (k, k): rows requested, columns re-predicted.

    One row per cluster that was requested, counting from 1, and "all": "right" of "tiles", their share "accuracy" and
    its 95 % Wilson interval from "low" to "high".
    """
    counts = {f"cluster {c + 1}": (matrix[c, c], matrix[c].sum()) for c in range(len(matrix)) if matrix[c].any()}
    if not counts:
        raise InputError("There is no tile whose cluster could be judged.")
    counts["all"] = matrix.trace(), matrix.sum()
    rows = {}
    for name, (right, tiles) in counts.items():
        low, high = wilson_interval(int(right), int(tiles))
        rows[name] = {"right": int(right), "tiles": int(tiles), "accuracy": right / tiles, "low": low, "high": high}
    return pd.DataFrame.from_dict(rows, orient="index")


def train_judge(
    vqvae: VQVAE, codes: Tensor, cluster_ids: Tensor, n_clusters: int, seed: int
) -> tuple[Classifier, float]:
    """A new classifier that learnt the clusters of every other tile, and its agreement on the tiles between.

    codes: `latents.encode_tiles` of the real training tiles (N, h, w); cluster_ids: their clusters (N,).
    It is trained with them as labels (cross-entropy, Adam), unlike the information-maximisation classifier.
    """
    if len(codes) < 2:
        raise InputError(f"A second judge needs at least 2 training tiles, but there are {len(codes)}.")
    device = codes.device
    with seeded(seed, "judge"):
        judge = Classifier(vqvae.z_channels, n_clusters).to(device)
    optimizer = torch.optim.Adam(judge.parameters(), JUDGE_LEARNING_RATE, fused=True)
    seen_codes, seen_ids = codes[::2], cluster_ids[::2].to(device)
    steps = JUDGE_EPOCHS * max(1, len(seen_codes) // JUDGE_BATCH)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    judge.train()
    for epoch in progress(range(JUDGE_EPOCHS), desc="second judge", unit="epoch", leave=False):
        batches = epoch_batches(len(seen_codes), JUDGE_BATCH, make_rng(seed, "judge", epoch))
        for index in batches:
            index = index.to(device)
            logits = judge(vqvae.embed(seen_codes[index]).detach()).flatten(1)
            optimizer.zero_grad()
            F.cross_entropy(logits, seen_ids[index]).backward()
            optimizer.step()
            decay.step()
    judge.eval()
    verdicts, _ = predict_clusters(vqvae, judge, codes[1::2])
    return judge, float((verdicts == cluster_ids[1::2].cpu()).float().mean())
