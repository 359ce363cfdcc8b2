"""Samplers: the time steps they take, and that they recover a distribution that is known."""

import pytest
import torch

from pfiles.drawing.samplers import make_solver, timesteps
from pfiles.drawing.sampling import image_seeds, sample
from pfiles.errors import InputError
from pfiles.linear_noise_scheduler import LinearNoiseScheduler


@pytest.mark.parametrize(("name", "steps"), [("unknown", 10), ("dpm-solver++", 20)])
def test_impossible_samplers(name, steps):
    with pytest.raises(InputError, match=r"Unknown sampler|needs fewer than 20 steps"):
        make_solver(name, LinearNoiseScheduler(20), steps)


@pytest.mark.parametrize("num_steps", [1, 2, 50, 1000])
def test_timesteps_go_from_the_last_to_the_first(num_steps):
    steps = timesteps(1000, num_steps)
    assert len(set(steps)) == num_steps
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == 999
    assert num_steps == 1 or steps[-1] == 0


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_impossible_number_of_steps(num_steps):
    with pytest.raises(ValueError, match="between 1 and 1000"):
        timesteps(1000, num_steps)


class ExactNoise(torch.nn.Module):
    """The best noise prediction for latents that are normal with mean m_c and standard deviation s."""

    def __init__(self, scheduler, means, std):
        super().__init__()
        self.scheduler, self.std = scheduler, std
        self.means = torch.nn.Parameter(torch.tensor(means))

    def forward(self, x, t, cluster):
        alpha_bar = self.scheduler.alpha_cumprod[t].float()
        mean = self.means[cluster].view(-1, 1, 1, 1)
        variance = alpha_bar * self.std**2 + 1 - alpha_bar
        return (1 - alpha_bar).sqrt() * (x - alpha_bar.sqrt() * mean) / variance


@pytest.mark.parametrize(
    ("sampler", "steps", "tolerance"),
    [("ddpm", 1000, 0.02), ("ddim", 100, 0.03), ("dpm-solver++", 20, 0.03)],
)
def test_sampling_recovers_a_known_distribution(sampler, steps, tolerance):
    """Also latents far beyond [-1, 1], which a sampler that clips would never reach."""
    scheduler = LinearNoiseScheduler()
    network = ExactNoise(scheduler, means=[2.0, -3.0], std=0.4)
    latents = []
    clusters = [0, 1] * 20
    sample(
        network, scheduler, lambda z: latents.append(z) or z[:, :3], clusters, image_seeds(0, range(40)),
        latent_shape=(3, 16, 16), num_steps=steps, sampler=sampler, progress=False,
    )  # fmt: skip
    z = torch.cat(latents)
    for cluster, mean in ((0, 2.0), (1, -3.0)):
        values = z[cluster::2]
        assert values.mean().item() == pytest.approx(mean, abs=0.02)
        assert values.std().item() == pytest.approx(0.4, abs=tolerance)
