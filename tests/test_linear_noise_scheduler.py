"""The noise schedule and single steps of it, against recorded numbers and diffusers."""

import numpy as np
import pytest
import torch

from pfiles.drawing.samplers import timesteps
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from tests.conftest import relative_error, shared

LATENT = (4, 8, 8)


def their_scheduler(steps=None):
    from diffusers import DDPMScheduler  # a second, of the process that runs these tests alone

    scheduler = DDPMScheduler(1000, 1e-4, 0.02, "linear", variance_type="fixed_small", clip_sample=False)
    scheduler.set_timesteps(timesteps=steps or list(range(999, -1, -1)))
    return scheduler


def test_schedule_endpoints():
    scheduler = LinearNoiseScheduler()
    assert scheduler.alpha_cumprod[0].item() == pytest.approx(0.9999)
    assert scheduler.alpha_cumprod[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)


def test_golden_scheduler():
    with np.load(shared("golden/scheduler.npz")) as arrays:
        a = {key: torch.as_tensor(array) for key, array in arrays.items()}
    scheduler = LinearNoiseScheduler(1000, 1e-4, 0.02)
    assert relative_error(scheduler.alpha_cumprod, a["alpha_cumprod"]) < 1e-5
    assert relative_error(scheduler.add_noise(a["x0"], a["noise"], a["t"]), a["noisy"]) < 1e-5
    previous, x0 = scheduler.sample_prev_timestep(a["x0"], a["noise"], 0)
    assert relative_error(previous, a["prev_at_0"]) < 1e-5
    assert relative_error(x0, a["x0_pred_at_0"]) < 1e-5
    zero, one = torch.zeros_like(a["x0"]), torch.ones_like(a["x0"])
    for i, t in enumerate(a["steps"]):
        mean, x0 = scheduler.sample_prev_timestep(a["x0"], a["noise"], t, noise=zero)
        shifted, _ = scheduler.sample_prev_timestep(a["x0"], a["noise"], t, noise=one)
        assert relative_error(mean, a["mean"][i]) < 1e-5
        assert (shifted - mean).mean().item() == pytest.approx(a["sigma"][i].item(), rel=1e-4)
        assert relative_error(x0, a["x0_pred"][i]) < 1e-5


def test_add_noise_agrees_with_diffusers():
    x, noise = torch.randn(2, 6, *LATENT, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 1, 10, 500, 998, 999])
    expected = their_scheduler().add_noise(x, noise, t)
    torch.testing.assert_close(LinearNoiseScheduler().add_noise(x, noise, t), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [None, timesteps(1000, 50), timesteps(1000, 7)], ids=["all", "50", "7"])
def test_reverse_step_agrees_with_diffusers(steps):
    theirs, ours = their_scheduler(steps), LinearNoiseScheduler()
    x, predicted = torch.randn(2, 3, *LATENT, generator=torch.Generator().manual_seed(1))
    order = theirs.timesteps.tolist()
    for t, t_prev in zip(order, [*order[1:], -1], strict=True):
        if steps is None and t not in (999, 500, 1, 0):
            continue
        expected = theirs.step(predicted, t, x, generator=torch.Generator().manual_seed(t)).prev_sample
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(t))
        mean, _ = ours.sample_prev_timestep(x, predicted, t, t_prev, noise)
        torch.testing.assert_close(mean, expected, rtol=2e-4, atol=2e-4)  # theirs is float32 throughout


@pytest.mark.parametrize(("t", "t_prev"), [(999, 979), (499, 479), (19, -1)])
def test_ddim_step_agrees_with_diffusers(t, t_prev):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=False, timestep_spacing="trailing")
    theirs.set_timesteps(50)
    x, predicted = torch.randn(2, 3, *LATENT, generator=torch.Generator().manual_seed(1))
    expected = theirs.step(predicted, t, x).prev_sample
    torch.testing.assert_close(
        LinearNoiseScheduler().ddim_step(x, predicted, t, t_prev), expected, rtol=2e-4, atol=2e-4
    )
