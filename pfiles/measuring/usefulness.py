"""Are generated tiles of use to a classifier? The classification accuracy score (CAS) of Ravuri and Vinyals 2019.

A network trained on generated tiles, with the cluster each was asked for as its class, is tested on held-out real
tiles, beside the same network trained on as many real tiles. With labels of the real tiles, which no training of the
generator saw, the same is asked of what a user wants to tell apart.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pfiles.errors import InputError
from pfiles.machine.runtime import make_rng
from pfiles.measuring.fidelity import student_interval
from pfiles.measuring.tile_network import BATCH_SIZE, logits, require_large_enough, train
from pfiles.tiles.pixels import evenly_spaced

TILES = 1000  # to learn from at most, thinned evenly
TEST_TILES = 1000  # likewise
MIN_TILES = 20
EPOCHS = 20  # over the largest set to learn from; every network of a table takes as many steps
TRIALS = 3  # trainings from new weights and other orders; the interval is over these
VALIDATION = 5  # every fifth tile to learn from, in a random order, chooses the state that is kept


class Usefulness(NamedTuple):
    """How well networks that learnt from different sets of tiles sort held-out real tiles.

    table: a row for each set; "accuracy", the mean over trainings, and its 95 % interval (Student's t) from "low" to
    "high"; "of real", the ratio to the row "real tiles", and its interval; "tiles" learnt from, "trainings".
    by_class: the share of the held-out tiles of each class (rows) that networks of each set (columns) sorted rightly,
    and how many such tiles there are.
    test_tiles: how many those were.
    """

    table: pd.DataFrame
    by_class: pd.DataFrame
    test_tiles: int

    @property
    def of_real(self) -> float:
        """Accuracy with generated tiles alone over that with real tiles."""
        return float(self.table.loc[GENERATED, "of real"])


REAL, GENERATED, BOTH = "real tiles", "generated tiles", "real and generated tiles"


def cas(
    generated: Tensor,
    generated_ids: Tensor,
    real: Tensor,
    real_ids: Tensor,
    held_out: Tensor,
    held_out_ids: Tensor,
    n_clusters: int,
    seed: int,
    device: torch.device | str,
    trials: int = TRIALS,
) -> Usefulness:
    """Sorting by cluster, learnt from generated tiles and from as many real ones.

    generated, real, held_out: uint8 tiles (N, 3, S, S); generated_ids: the clusters (N,), 0-based, that generated tiles
    were asked for; the other clusters are those that the run's own clusterer finds in the real tiles.
    """
    sets = {REAL: (real, real_ids), GENERATED: (generated, generated_ids)}
    _check(sets, (held_out, held_out_ids))
    size = min(TILES, len(real), len(generated))
    names = [f"cluster {cluster + 1}" for cluster in range(n_clusters)]
    train_sets = {name: _thin(*pair, size) for name, pair in sets.items()}
    return _compare(train_sets, (held_out, held_out_ids), names, seed, device, trials)


def with_labels(
    generated: Tensor,
    generated_ids: Tensor,
    real: Tensor,
    real_ids: Tensor,
    real_labels: np.ndarray,
    held_out: Tensor,
    held_out_labels: np.ndarray,
    seed: int,
    device: torch.device | str,
    trials: int = TRIALS,
) -> Usefulness:
    """Sorting by label, learnt from real tiles, from generated ones, and from both.

    real_labels, held_out_labels: the label (N,) of each real tile, text or numbers. A generated tile takes the label
    that most real training tiles of its cluster have; one of a cluster without training tiles is left out.
    """
    names, codes = np.unique(np.asarray(real_labels), return_inverse=True)
    code_of_label = {name: code for code, name in enumerate(names.tolist())}
    if unknown := sorted({str(name) for name in np.asarray(held_out_labels).tolist() if name not in code_of_label}):
        raise InputError(f"Held-out tiles have the label {unknown[0]}, which no training tile has: check the labels.")
    labels = torch.from_numpy(codes)
    test = torch.tensor([code_of_label[name] for name in np.asarray(held_out_labels).tolist()])
    majority = {int(c): int(labels[real_ids == c].mode().values) for c in real_ids.unique()}
    has_label = torch.tensor([int(c) in majority for c in generated_ids], dtype=torch.bool)
    generated_labels = torch.tensor([majority[int(c)] for c in generated_ids[has_label]], dtype=torch.int64)
    sets = {REAL: (real, labels), GENERATED: (generated[has_label], generated_labels)}
    _check(sets, (held_out, test))
    train_sets = {name: _thin(*pair, min(TILES, len(pair[0]))) for name, pair in sets.items()}
    images, classes = (torch.cat(parts) for parts in zip(*train_sets.values(), strict=True))
    train_sets[BOTH] = images, classes
    return _compare(train_sets, (held_out, test), [str(name) for name in names], seed, device, trials)


def _thin(images: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    index = torch.from_numpy(evenly_spaced(len(images), size))
    return images[index], labels.cpu()[index]


def _compare(
    sets: Mapping[str, tuple[Tensor, Tensor]],
    test: tuple[Tensor, Tensor],
    classes: list[str],
    seed: int,
    device: torch.device | str,
    trials: int,
) -> Usefulness:
    """Networks that learn from each of `sets`, all with as many steps, tested on the same real tiles."""
    images, labels = _thin(*test, min(TEST_TILES, len(test[0])))
    steps = EPOCHS * -(-max(len(tiles) for tiles, _ in sets.values()) // BATCH_SIZE)
    is_right = {
        name: torch.stack([sorted_rightly(*pair, images, labels, len(classes), steps, (seed, name, trial), device)
                           for trial in range(trials)])
        for name, pair in sets.items()
    }  # fmt: skip
    accuracy = {name: right.double().mean(1).numpy() for name, right in is_right.items()}  # of each training
    rows = {}
    for name, values in accuracy.items():
        mean, low, high = _interval(values)
        ratio, ratio_low, ratio_high = _interval(values / accuracy[REAL].mean())
        rows[name] = {
            "accuracy": mean,
            "low": low,
            "high": min(high, 1.0),
            "tiles": len(sets[name][0]),
            "trainings": trials,
        }
        if name != REAL:
            rows[name] |= {"of real": ratio, "of real, low": ratio_low, "of real, high": ratio_high}
    by_class = {
        name: {c: float(right[:, labels == i].double().mean()) for i, c in enumerate(classes) if (labels == i).any()}
        for name, right in is_right.items()
    }
    table = pd.DataFrame(by_class)
    table["held-out tiles"] = [int((labels == classes.index(c)).sum()) for c in table.index]
    return Usefulness(pd.DataFrame.from_dict(rows, orient="index"), table, len(images))


def sorted_rightly(
    train_set: Tensor,
    train_labels: Tensor,
    images: Tensor,
    labels: Tensor,
    classes: int,
    steps: int,
    seed: tuple[int | str, ...],
    device: torch.device | str,
) -> Tensor:
    """Which of the tiles `images` a network, trained on `train_set`, puts into their class. -> bool (N,)"""
    seed = ("usefulness", *seed)
    order = torch.randperm(len(train_set), generator=make_rng(*seed, "validation"))
    validation, training = order[::VALIDATION], order[torch.arange(len(order)) % VALIDATION > 0]
    parts = [(train_set[index], train_labels[index]) for index in (training, validation)]
    trained = train(parts[0], parts[1], classes, steps, seed, device)
    return logits(trained.network, images).argmax(1).cpu() == labels


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of the values of several trainings, and its 95 % interval by Student's t, from 0 on."""
    mean, low, high = student_interval(values)
    return mean, max(low, 0.0), high


def _check(sets: Mapping[str, tuple[Tensor, Tensor]], test: tuple[Tensor, Tensor]) -> None:
    for name, (images, labels) in {**sets, "held-out tiles": test}.items():
        require_large_enough(images)
        if len(images) != len(labels):
            raise InputError(f"Each of the {name} needs a class, but there are {len(labels)} for {len(images)} tiles.")
        if len(images) < MIN_TILES:
            raise InputError(
                f"What tiles are worth to a classifier needs at least {MIN_TILES} {name}, but there are {len(images)}."
            )
        if images.shape[1:] != test[0].shape[1:]:
            raise InputError(
                f"A classifier takes tiles of one size, but {name} have {images.shape[2]} px and held-out tiles "
                f"{test[0].shape[2]} px: bring them to one size first."
            )
