"""Ways from noise to a latent: which time steps to visit, and what to do at each with the predicted noise.

All of them use the same trained UNet. A solver is made anew for every batch, as some remember earlier predictions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pfiles.errors import InputError
from pfiles.linear_noise_scheduler import LinearNoiseScheduler


@dataclass(frozen=True)
class Solver:
    """timesteps: those to visit, falling. step(i, x, predicted, noise): x at timesteps[i] and the noise predicted for
    it -> x at the next one, behind the last the clean latent; `noise` yields standard normal tensors like x."""

    timesteps: list[int]
    step: Callable[[int, Tensor, Tensor, Iterator[Tensor]], Tensor]


def timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    """`num_steps` time steps from num_timesteps - 1 down to 0, evenly spaced."""
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"num_steps must be between 1 and {num_timesteps}, but is {num_steps}.")
    return torch.linspace(num_timesteps - 1, 0, num_steps, dtype=torch.float64).round().int().tolist()


def make_solver(name: str, scheduler: LinearNoiseScheduler, num_steps: int) -> Solver:
    """A solver of `num_steps` steps for the diffusion process of `scheduler`.

    name: "ddpm", ancestral sampling as in the paper (Ho et al. 2020, algorithm 2); "ddim", the same without noise
        (Song et al. 2021); "dpm-solver++" of second order (Lu et al. 2022) or "unipc" (Zhao et al. 2023), which
        reach in 10 to 50 steps what the others need hundreds for, and come from the package diffusers.
    Raises InputError for another name, for too many steps, or where diffusers is missing.
    """
    if name in ("ddpm", "ddim"):
        steps = timesteps(scheduler.num_timesteps, num_steps)
        following = [*steps[1:], -1]

        def ddpm(i: int, x: Tensor, predicted: Tensor, noise: Iterator[Tensor]) -> Tensor:
            fresh = next(noise) if following[i] >= 0 else None
            return scheduler.sample_prev_timestep(x, predicted, steps[i], following[i], fresh)[0]

        def ddim(i: int, x: Tensor, predicted: Tensor, noise: Iterator[Tensor]) -> Tensor:
            return scheduler.ddim_step(x, predicted, steps[i], following[i])

        return Solver(steps, {"ddpm": ddpm, "ddim": ddim}[name])
    if name not in ("dpm-solver++", "unipc"):
        raise InputError(f"Unknown sampler {name!r}: choose ddpm, ddim, dpm-solver++ or unipc.")
    return _from_diffusers(name, scheduler, num_steps)


def _from_diffusers(name: str, scheduler: LinearNoiseScheduler, num_steps: int) -> Solver:
    try:
        from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
    except ImportError as error:
        raise InputError(
            f'sampler "{name}" needs the package diffusers: pip install -c constraints.txt diffusers, '
            'or choose "ddpm" or "ddim".'
        ) from error
    kinds = {"dpm-solver++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}
    if not num_steps < scheduler.num_timesteps:
        raise InputError(f'sampler "{name}" needs fewer than {scheduler.num_timesteps} steps, but got {num_steps}.')
    theirs = kinds[name](
        scheduler.num_timesteps,
        trained_betas=scheduler.betas.tolist(),
        solver_order=2,
        use_exponential_sigmas=True,  # even steps of log noise keep the variance of fine detail, of time do not
        final_sigmas_type="zero",
    )  # latents are not bounded: neither of the two clips unless told to
    theirs.set_timesteps(num_steps)
    theirs.set_begin_index(0)

    def step(i: int, x: Tensor, predicted: Tensor, noise: Iterator[Tensor]) -> Tensor:
        return theirs.step(predicted, theirs.timesteps[i], x).prev_sample

    return Solver(theirs.timesteps.tolist(), step)
