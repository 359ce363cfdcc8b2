"""A small network that learns to sort tiles by what it sees in their pixels: what the two-sample test and CAS share."""

import math
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfiles.errors import InputError
from pfiles.learning.loop import epoch_batches
from pfiles.machine.processes import progress
from pfiles.machine.runtime import eval_mode, make_rng, seeded
from pfiles.tiles.pixels import require_tiles, to_unit
from pfiles.tiles.views import random_dihedral

CHANNELS = (16, 32, 64)  # of the three convolutions
BATCH_SIZE = 32  # tiles of a step
LEARNING_RATE = 5e-3  # the highest, of AdamW; it rises over a tenth of the steps and falls as a cosine
CHECKS = 20  # looks at the validation part in the course of a training
SURE = 0.02  # cross-entropy of the validation part below which there is nothing left to learn
MIN_SIDE = 16  # pixels
EVALUATE_AT_ONCE = 100  # tiles; changes memory and speed only


class TileNetwork(nn.Module):
    """Float tiles (B, 3, S, S) in [0, 1] -> logits (B, classes).

    Three convolutions of stride 2, group norm, which unlike batch norm is the same in training and in testing, and
    the mean over all positions. `mean` and `scale` standardise the colours.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, classes: int, mean: Tensor, scale: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        layers: list[nn.Module] = []
        for before, after in zip((3, *CHANNELS), CHANNELS, strict=False):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(4, after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(CHANNELS[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features((x - self.mean) / self.scale).mean((2, 3)))


class Trained(NamedTuple):
    """A network in the state of its best look at the validation part, with its accuracy and cross-entropy there."""

    network: TileNetwork
    accuracy: float
    loss: float


def train(
    learn: tuple[Tensor, Tensor],
    validate: tuple[Tensor, Tensor],
    classes: int,
    steps: int,
    seed: Sequence[int | str],
    device: torch.device | str,
) -> Trained:
    """Train a new `TileNetwork` with cross-entropy (AdamW) on random dihedral views of the tiles.

    learn, validate: uint8 tiles (N, 3, S, S) with their classes (N,). The state that sorted most of the validation
    tiles rightly is kept, of several the one of lowest cross-entropy; training ends early once it is sure of all.
    seed: everything random follows from these, at one number of threads.
    """
    images, labels = (part.to(device) for part in learn)
    require_large_enough(images)
    colours = to_unit(images).transpose(0, 1).flatten(1)  # (3, N S S)
    mean, scale = (c[None, :, None, None] for c in (colours.mean(1), colours.std(1).clamp_min(1 / 255)))
    with seeded(*seed, "network"):
        network = TileNetwork(classes, mean, scale).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=1e-2, fused=True)
    warm_up, check_every = max(1, steps // 10), max(1, steps // CHECKS)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warm_up) / steps)),
    )
    rng = make_rng(*seed, "views", device=device)
    best, state = (-1.0, 0.0), {}
    batches = progress(_batches(len(images), steps, seed), total=steps, desc="small network", leave=False, delay=2)
    for step, index in enumerate(batches, start=1):
        index = index.to(device)
        optimizer.zero_grad()
        F.cross_entropy(network(to_unit(random_dihedral(images[index], rng))), labels[index]).backward()
        optimizer.step()
        schedule.step()
        if step % check_every == 0 or step == steps:
            accuracy, loss = _score(network, *validate)
            if (accuracy, -loss) > best:
                best = accuracy, -loss
                state = {name: value.clone() for name, value in network.state_dict().items()}
            if accuracy == 1 and loss < SURE:
                break
    network.load_state_dict(state)
    return Trained(network.eval(), best[0], -best[1])


def _batches(n: int, steps: int, seed: Sequence[int | str]) -> Iterator[Tensor]:
    """The indices of `steps` batches of n tiles, in shuffled epochs."""
    epochs = (epoch_batches(n, BATCH_SIZE, make_rng(*seed, "order", epoch)) for epoch in count())
    return islice(chain.from_iterable(epochs), steps)


def logits(network: TileNetwork, images: Tensor) -> Tensor:
    """The network's logits (N, classes) of uint8 tiles (N, 3, S, S), on the network's device."""
    device = network.mean.device
    with eval_mode(network):
        return torch.cat([network(to_unit(batch.to(device))) for batch in images.split(EVALUATE_AT_ONCE)])


def require_large_enough(images: Tensor) -> None:
    """InputError for anything but uint8 tiles (N, 3, S, S) that three halvings leave something of."""
    require_tiles(images)
    if images.shape[2] < MIN_SIDE:
        raise InputError(f"Tiles must measure at least {MIN_SIDE} px, but these are {images.shape[2]} px.")


def _score(network: TileNetwork, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy and cross-entropy on some tiles."""
    class_logits = logits(network, images)
    labels = labels.to(class_logits.device)
    return float((class_logits.argmax(1) == labels).float().mean()), float(F.cross_entropy(class_logits, labels))
