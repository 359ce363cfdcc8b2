"""Ways from noise to a latent: which time steps to visit, and what to do at each with the predicted noise.

All of them use the same trained UNet. A solver is made anew for every batch, as some remember earlier predictions. The
names in SOLVERS are the values of the setting `sampling.sampler`; as settings are read without torch, so is this file.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pfiles.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


class Scheduler(Protocol):
    """What a sampler asks of the diffusion process, see `LinearNoiseScheduler`."""

    num_timesteps: int
    alpha_cumprod: "Tensor"

    def sample_prev_timestep(
        self, xt: "Tensor", noise_pred: "Tensor", t: int, t_prev: int | None = None, noise: "Tensor | None" = None
    ) -> "tuple[Tensor, Tensor]": ...

    def ddim_step(self, xt: "Tensor", noise_pred: "Tensor", t: int, t_prev: int) -> "Tensor": ...


@dataclass(frozen=True)
class Solver:
    """timesteps: those to visit, falling. step(i, x, predicted, noise): x at timesteps[i] and the noise predicted for
    it -> x at the next one, behind the last the clean latent; `noise` yields standard normal tensors like x."""

    timesteps: list[int]
    step: "Callable[[int, Tensor, Tensor, Iterator[Tensor]], Tensor]"


def timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    """`num_steps` time steps from num_timesteps - 1 down to 0, evenly spaced."""
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"num_steps must be between 1 and {num_timesteps}, but is {num_steps}.")
    import torch

    return torch.linspace(num_timesteps - 1, 0, num_steps, dtype=torch.float64).round().int().tolist()


def make_solver(name: str, scheduler: Scheduler, num_steps: int) -> Solver:
    """A solver of `num_steps` steps for the diffusion process of `scheduler`.

    name: one of SOLVERS. Raises InputError for another name or too many steps.
    """
    if name not in SOLVERS:
        raise InputError(f"Unknown sampler {name!r}: choose {', '.join(SOLVERS)}.")
    if SOLVERS[name] is _dpm_solver and not num_steps < scheduler.num_timesteps:
        raise InputError(f'sampler "{name}" needs fewer than {scheduler.num_timesteps} steps, but got {num_steps}.')
    return SOLVERS[name](scheduler, num_steps)


def log_noise_timesteps(scheduler: Scheduler, num_steps: int) -> list[int]:
    """At most `num_steps` falling time steps from the last to 0, nearest to even steps of the log of noise over signal.

    They keep the variance of fine detail, which even steps of time do not.
    """
    import torch

    alpha_bar = scheduler.alpha_cumprod
    log_noise = ((1 - alpha_bar) / alpha_bar).log()
    targets = torch.linspace(log_noise[-1].item(), log_noise[0].item(), num_steps, dtype=torch.float64)
    nearest = (log_noise - targets[:, None]).abs().argmin(1)
    return sorted(set(nearest.tolist()), reverse=True)


def _ddpm(scheduler: Scheduler, num_steps: int) -> Solver:
    """Ancestral sampling as in the paper, Ho et al. 2020, algorithm 2."""
    steps = timesteps(scheduler.num_timesteps, num_steps)
    following = [*steps[1:], -1]

    def step(i: int, x: "Tensor", predicted: "Tensor", noise: "Iterator[Tensor]") -> "Tensor":
        fresh = next(noise) if following[i] >= 0 else None
        return scheduler.sample_prev_timestep(x, predicted, steps[i], following[i], fresh)[0]

    return Solver(steps, step)


def _ddim(scheduler: Scheduler, num_steps: int) -> Solver:
    """The same without noise, Song et al. 2021."""
    steps = timesteps(scheduler.num_timesteps, num_steps)
    following = [*steps[1:], -1]

    def step(i: int, x: "Tensor", predicted: "Tensor", noise: "Iterator[Tensor]") -> "Tensor":
        return scheduler.ddim_step(x, predicted, steps[i], following[i])

    return Solver(steps, step)


def _dpm_solver(scheduler: Scheduler, num_steps: int) -> Solver:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2, with lambda = log(alpha / sigma) and D of its line 8.

    It reaches in 10 to 50 steps what the others need hundreds for.
    """
    steps = log_noise_timesteps(scheduler, num_steps)
    alpha_bar = scheduler.alpha_cumprod[steps]
    alphas, sigmas = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    lambdas = (alphas / sigmas).log().tolist()
    alpha, sigma = alphas.tolist(), sigmas.tolist()
    earlier: list[Tensor] = []  # the x_0 predicted one step before

    def step(i: int, x: "Tensor", predicted: "Tensor", noise: "Iterator[Tensor]") -> "Tensor":
        x0 = (x - sigma[i] * predicted) / alpha[i]
        if i + 1 == len(steps):
            return x0
        h = lambdas[i + 1] - lambdas[i]
        combined = x0
        if earlier:
            r = (lambdas[i] - lambdas[i - 1]) / h
            combined = x0 + (x0 - earlier.pop()) / (2 * r)
        earlier.append(x0)
        return sigma[i + 1] / sigma[i] * x - alpha[i + 1] * math.expm1(-h) * combined

    return Solver(steps, step)


SOLVERS = {"ddpm": _ddpm, "ddim": _ddim, "dpm-solver++": _dpm_solver}
