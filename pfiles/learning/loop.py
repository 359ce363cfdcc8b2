"""The loop that every training runs in: order of the tiles, updates, sharing among processes, resume, log, bad numbers.

A training gives it two functions. `sample_random` samples all that is random in a step, for the whole batch.
`objectives` computes, from this process's share, what is to be minimised. The order of the tiles comes from a random
generator made for the epoch, everything else from one made for the step; so a continued training samples what an
unbroken one would. Several processes (see `processes`) share every batch: each samples the random numbers of the whole
batch, and losses and gradients are the means over the whole batch.

A step is read in `_step`, from its random numbers to the optimisers; what stands around a step is read in `train`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfiles.errors import InputError
from pfiles.learning.log import History, TrainingLog
from pfiles.learning.progress import Progress
from pfiles.learning.resume import (
    begin_restart,
    end_restart,
    last_resume_point,
    load_resume_point,
    not_a_resume_point,
    restarts,
    save_resume_point,
)
from pfiles.machine import processes
from pfiles.machine.cpu import follow_idle_cores
from pfiles.machine.locks import locked
from pfiles.machine.runtime import derive_seed, make_rng, peak_memory_gb, stop, stop_signals
from pfiles.machine.speed import Speed
from pfiles.settings import SavingSettings, StageSettings
from pfiles.tiles.files import image_files

IN_BAR = ("loss", "mse", "reconstruction", "images_per_second")
CHECK_EVERY = 50  # steps between looks at what the device has computed, for which the host must wait


@dataclass(frozen=True)
class Job:
    """What a training depends on besides its networks, tiles and settings, and where it leaves resume points and logs.

    name: the training's name; with `seed` it decides every random number.
    batch_size: tiles per step, of all processes together.
    folder: of this training alone.
    note: the provenance of the result, see `Provenance.as_note`; a resume point of another one is refused.
    restart: begin anew, once, whatever resume point there is; as text a name, under which it is done once for all.
    blocked_by: folders of images, and files, that belong to the networks as they are; while steps are left to do,
        InputError if one exists.
    """

    name: str
    seed: int
    batch_size: int
    folder: Path
    note: Mapping[str, Any]
    saving: SavingSettings
    speed: Speed
    restart: bool | str = False
    blocked_by: Sequence[Path] = ()


@dataclass(frozen=True)
class Objective:
    """What is minimised together in a step.

    optimizers: of the networks that learn from it, each clipped and updated on its own.
    loss_terms: scalars by name, means over this process's tiles.
    weights: of the terms in the loss; 1 for a term that has none, 0 for one that is only recorded.
    """

    optimizers: Sequence[torch.optim.Optimizer]
    loss_terms: Mapping[str, Tensor]
    weights: Mapping[str, float] = field(default_factory=dict)

    def loss(self) -> Tensor:
        weighted = ((self.weights.get(name, 1.0), term) for name, term in self.loss_terms.items())
        return sum(weight * term for weight, term in weighted if weight)  # type: ignore[return-value]  # one weighs


@dataclass(frozen=True)
class LearningRateSchedule:
    """How the learning rate of a training changes.

    warmup_steps: steps over which it grows from 0.
    decay: "constant", or "cosine", along which it falls to zero at the end.
    """

    warmup_steps: int = 0
    decay: str = "constant"

    def factor(self, number: int, total_steps: int) -> float:
        """The share of the full learning rate in step `number`, counting from 0."""
        warm = min(1.0, (number + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warm * (0.5 + 0.5 * math.cos(math.pi * number / total_steps) if self.decay == "cosine" else 1.0)


def schedule_of(stage: StageSettings) -> LearningRateSchedule:
    return LearningRateSchedule(stage.warmup_steps, stage.decay)


def make_optimizer(stage: StageSettings, network: nn.Module, speed: Speed) -> torch.optim.Optimizer:
    if stage.optimizer == "adadelta":
        return torch.optim.Adadelta(network.parameters(), stage.learning_rate)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[stage.optimizer]
    return kind(network.parameters(), stage.learning_rate, fused=speed.fused or None)


SampleRandom = Callable[[Tensor, torch.Generator], dict[str, Tensor]]
Objectives = Callable[[Tensor, dict[str, Tensor], int], Iterator[Objective]]
TrainingState = Mapping[str, nn.Module | torch.optim.Optimizer]


def _with_locked_folder(train: Callable[..., History]) -> Callable[..., History]:
    """`train`, during which a second one in the same folder is refused."""

    @wraps(train)
    def locked_train(job: Job, **arguments: Any) -> History:
        busy = f"Another run trains in {job.folder}: wait until it ends or stop it, or name another folder as out."
        with locked(job.folder, busy):
            return train(job, **arguments)

    return locked_train


@_with_locked_folder
def train(
    job: Job,
    *,
    num_epochs: int,
    num_tiles: int,
    sample_random: SampleRandom,
    objectives: Objectives,
    state: TrainingState,
    schedule: LearningRateSchedule = LearningRateSchedule(),
    clip_norm: float | None = None,
    counters: Mapping[str, Tensor] | None = None,
    after_epoch: Callable[[int], dict[str, float]] = lambda epoch: {},
    picture: Callable[[], Tensor] | None = None,
) -> History:
    """Train over the shuffled tiles for `num_epochs`, from the resume point where there is one.

    sample_random: from the indices (B,) of a step's tiles and the step's random generator, both on the networks'
        device, to tensors by name whose rows belong to the tiles.
    objectives: from the indices of this process's tiles, their rows of those tensors, and the number of the step since
        the start, to one objective after another; each is minimised by one step before the next is asked for. The loss
        of the first is recorded as "loss".
    state: all that changes, by name, a network first. counters: tensors that `objectives` changes besides.
    after_epoch: gets the number of the epoch just done, adds to its row of the history. clip_norm: see `update`.
    picture: 16 n tiles, uint8 (16 n, 3, S, S), that show at a resume point what the networks make by now.
    """
    # Where the training begins: at the start, or at its resume point.
    device = next(next(part for part in state.values() if isinstance(part, nn.Module)).parameters()).device
    optimizers = [part for part in state.values() if isinstance(part, torch.optim.Optimizer)]
    full_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    total_steps = num_epochs * steps_per_epoch(num_tiles, job.batch_size)
    progress = _begin(job, state, counters or {}, total_steps, device)
    first_step, history = progress.step, progress.history
    if first_step >= total_steps:
        return _done_already(job, history)

    log, rng, saved = TrainingLog(job.folder, len(history)), torch.Generator(device), time.monotonic()
    with (
        processes.progress(total=total_steps, initial=first_step, desc=job.name, unit="step") as bar,
        stop_signals() as signal_received,
        log.end_told(),
        processes.lost_processes_told(),
        follow_idle_cores(job.speed.yield_cores) as follow_load,
    ):
        for number, index, last_of_epoch in _steps(job, num_epochs, num_tiles, first_step, device):
            # Random numbers and learning rate of this step.
            rng.manual_seed(derive_seed(job.seed, job.name, number))
            _set_rates(optimizers, full_rates, schedule.factor(number, total_steps))

            # Losses, gradients, updates.
            job.speed.begin_step()
            follow_load()
            progress.add(*_step(index, number, rng, sample_random, objectives, clip_norm))
            bar.update()

            # Look for bad numbers, signals and the time, now and then.
            look = last_of_epoch or progress.step % CHECK_EVERY == 0
            received = processes.agree(signal_received(), device) if look or processes.world_size() == 1 else 0
            due = time.monotonic() - saved > 60 * job.saving.every_minutes
            if look or due or received:
                _refuse_bad(int(progress.first_bad), num_tiles, job)
                log.tell(progress.step, total_steps, progress.step - first_step)

            # A row of the history for each epoch.
            if last_of_epoch:
                row = progress.means() | after_epoch(len(history))
                progress.end_epoch(row | _machine_row(optimizers[0], num_tiles, progress.seconds(), device))
                log.write(history)
                bar.set_postfix({name: f"{row[name]:.4g}" for name in IN_BAR if name in row})
                due = due or progress.step == total_steps or _saves_after(len(history), job.saving)

            # A resume point, and the end if a signal asked for it.
            if due or received:
                _save(job, state, counters or {}, progress)
                if picture is not None:
                    log.picture(progress.step, progress.step - first_step, picture)
                saved = time.monotonic()
            if received:
                stop(received, f"{job.name} stopped after step {number + 1} of {total_steps}: run it again to go on.")
    end_restart(job.folder)
    return history


def _begin(
    job: Job, state: TrainingState, counters: Mapping[str, Tensor], total_steps: int, device: torch.device
) -> Progress:
    """Where a training begins: at its resume point, which fills `state` and `counters`, if it has one.

    InputError, before any network is changed, if steps are left to do and files of `job.blocked_by` exist.
    """
    if job.batch_size < processes.world_size():
        raise InputError(
            f"A batch of {job.batch_size} tiles cannot be shared by {processes.world_size()} processes: "
            "start fewer, or set a larger batch_size."
        )
    progress = Progress(device)
    anew = processes.agree(int(restarts(job.folder, job.note, job.restart)), device)
    if anew:
        _refuse_blocked(job)
        begin_restart(job.folder, job.note, job.restart)
    point = None if anew else load_resume_point(job.folder, job.note)
    if point is None:
        _refuse_blocked(job)
    else:
        if _steps_done(point, job) < total_steps:
            _refuse_blocked(job)
        try:
            for name, part in state.items():
                part.load_state_dict(point["parts"][name])
            for name, counter in counters.items():
                counter.copy_(point["counters"][name])
            progress = Progress(device, point)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise not_a_resume_point(last_resume_point(job.folder)) from error
        if progress.step < total_steps:
            print(f"{job.name} goes on after step {progress.step} of {total_steps} ({job.folder}).")
    for leftover in job.folder.glob(".*.part"):
        leftover.unlink(missing_ok=True)  # of a write that was killed
    return progress


def _done_already(job: Job, history: History) -> History:
    end_restart(job.folder)
    print(f"{job.name} is done already: {len(history)} epochs ({job.folder}). To train anew, set restart = True.")
    return history


def _save(job: Job, state: TrainingState, counters: Mapping[str, Tensor], progress: Progress) -> None:
    """Leave a resume point, for `_begin`."""
    weights = {name: part.state_dict() for name, part in state.items()}
    save_resume_point(job.folder, job.note, {**progress.state(), "parts": weights, "counters": dict(counters)})


def _steps(
    job: Job, num_epochs: int, num_tiles: int, first_step: int, device: torch.device
) -> Iterator[tuple[int, Tensor, bool]]:
    """Each step from `first_step` on: its number, its tiles (B,), and whether it is the last one of its epoch."""
    steps = steps_per_epoch(num_tiles, job.batch_size)
    for epoch in range(first_step // steps, num_epochs):
        batches = [batch.to(device) for batch in _batches(job, num_tiles, epoch)]
        for number, batch in enumerate(batches, epoch * steps):
            if number >= first_step:
                yield number, batch, number + 1 == (epoch + 1) * steps


def _saves_after(epochs: int, saving: SavingSettings) -> bool:
    return saving.every_epochs is not None and epochs % saving.every_epochs == 0


def _set_rates(
    optimizers: Sequence[torch.optim.Optimizer], full_rates: Sequence[Sequence[float]], factor: float
) -> None:
    for optimizer, full in zip(optimizers, full_rates, strict=True):
        for group, rate in zip(optimizer.param_groups, full, strict=True):
            group["lr"] = rate * factor


def _step(
    index: Tensor,
    number: int,
    rng: torch.Generator,
    sample_random: SampleRandom,
    objectives: Objectives,
    clip_norm: float | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """One step on the tiles `index` of all processes: the terms to record, and whether every number was finite."""
    # Draw what is random for the whole batch, and take this process's share of it.
    random = {name: processes.share(rows) for name, rows in sample_random(index, rng).items()}
    share = processes.share(index)
    weight = len(share) * processes.world_size() / len(index)  # so that the processes' mean is the mean over all tiles
    terms: dict[str, Tensor] = {}
    checked = []
    for objective in objectives(share, random, number):
        # Gradient of the loss.
        loss = objective.loss() * weight
        loss.backward()

        # Clip it, and step the optimisers.
        norms = torch.stack([update(optimizer, clip_norm) for optimizer in objective.optimizers])

        # Keep the numbers for the log; they are looked at every CHECK_EVERY steps.
        norm = norms.norm() if len(norms) > 1 else norms[0]
        checked += [loss.detach(), norm]
        terms |= {name: term.detach() * weight for name, term in objective.loss_terms.items()}
        terms = {"loss": loss.detach(), **terms, "gradient_norm": norm} if "loss" not in terms else terms
    return terms, torch.stack(checked).isfinite().all()


def update(optimizer: torch.optim.Optimizer, clip_norm: float | None = None) -> Tensor:
    """Apply and clear the gradients, clipped to a norm of `clip_norm`, None for no limit; returns the norm they had.

    Where the optimiser's first group says that so many networks are computed `together`, each with its part of every
    parameter's first axis, each is clipped to a norm of its own.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if clip_norm is not None:
        networks: list[tuple[Tensor, Sequence[Tensor]]] = [(norm, gradients)]
        if (together := optimizer.param_groups[0].get("together", 1)) > 1:
            parts = zip(*(gradient.chunk(together) for gradient in gradients), strict=True)
            networks = [(nn.utils.get_total_norm(of_network), of_network) for of_network in parts]
        for network_norm, of_network in networks:
            torch._foreach_mul_(list(of_network), (clip_norm / (network_norm + 1e-6)).clamp(max=1.0))
    optimizer.step()
    optimizer.zero_grad()
    return norm


def epoch_batches(n: int, batch_size: int, rng: torch.Generator) -> list[Tensor]:
    """A shuffled epoch of n tiles in n // batch_size batches of nearly equal size, as published.

    No tile is dropped: a remainder enlarges batches by one (10,000 tiles at 16 are 625 batches). CPU index tensors.
    """
    return list(torch.randperm(n, generator=rng).tensor_split(steps_per_epoch(n, batch_size)))


def steps_per_epoch(n: int, batch_size: int) -> int:
    return max(1, n // batch_size)


def _batches(job: Job, num_tiles: int, epoch: int) -> list[Tensor]:
    """The tiles of each step of an epoch, the same whenever it is asked for."""
    return epoch_batches(num_tiles, job.batch_size, make_rng(job.seed, job.name, "order", epoch))


def _steps_done(point: Mapping[str, Any], job: Job) -> int:
    if not isinstance(point.get("step"), int):
        raise not_a_resume_point(last_resume_point(job.folder))
    return point["step"]


def _refuse_blocked(job: Job) -> None:
    for path in job.blocked_by:
        if path.is_file() or image_files(path):
            raise InputError(
                f"{path} would not belong to the networks that {job.name} trains: move or delete it first."
            )


def _refuse_bad(number: int, num_tiles: int, job: Job) -> None:
    """FloatingPointError if `number` is a step, not -1: its loss or gradient was not finite."""
    if number < 0:
        return
    epoch, place = divmod(number, steps_per_epoch(num_tiles, job.batch_size))
    tiles = _batches(job, num_tiles, epoch)[place]
    advice = '; with the setting precision = "fp32" it goes on from there in full precision' if job.speed.bf16 else ""
    raise FloatingPointError(
        f"Loss or gradient of {job.name} became NaN or infinite in step {number + 1} (epoch {epoch + 1}, training "
        f"tiles {tiles.tolist()}); the last good state is {last_resume_point(job.folder) or 'the start'}{advice}."
    )


def _machine_row(
    optimizer: torch.optim.Optimizer, num_tiles: int, seconds: float, device: torch.device
) -> dict[str, float]:
    """What a row of the history says besides the losses."""
    return {
        "learning_rate": optimizer.param_groups[0]["lr"],
        "images_per_second": num_tiles / seconds,
        "memory_gb": peak_memory_gb(device),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
    }
