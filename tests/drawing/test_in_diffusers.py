"""A generator as diffusers loads it."""

from dataclasses import replace

import pytest
import torch

from pfiles.drawing.sampling import image_seeds
from pfiles.settings import get_settings
from tests.conftest import PLAIN_LEARNING, TINY


@pytest.mark.parametrize(
    ("sampler", "prediction", "guidance"),
    [("ddpm", "noise", 1.0), ("ddim", "v", 1.0), ("dpm-solver++", "v", 1.5)],
)
def test_the_loop_of_diffusers_draws_the_same_images(sampler, prediction, guidance, generator, tmp_path):
    """Its own scheduler, loaded from the folder and stepped as its documentation does; and its pipeline."""
    from pfiles.drawing.in_diffusers import TilePipeline

    settings = {
        **TINY, **PLAIN_LEARNING, "sampling.sampler": sampler, "diffusion.prediction": prediction, "sampling.steps": 7,
        "sampling.guidance": guidance, "diffusion.condition_dropout": 0.1,
    }  # fmt: skip
    generator = replace(generator, settings=get_settings("demo", settings))
    generator.to_diffusers(tmp_path)
    ours = generator.draw([0, 1, 2], seed=4).permute(0, 2, 3, 1).int()
    pipeline = TilePipeline.from_pretrained(tmp_path)

    def noise():
        return [torch.Generator().manual_seed(seed) for seed in image_seeds(4, range(3))]

    def difference(images):
        return ((torch.as_tensor(images) * 255).round().int() - ours).abs().max()

    assert difference(pipeline([0, 1, 2], noise(), output_type="np").images) <= 1
    scheduler, seeds, labels = pipeline.scheduler, noise(), torch.tensor([0, 1, 2])
    assert type(scheduler).__module__.startswith("diffusers.schedulers")
    x = torch.stack([torch.randn(16, 12, 12, generator=seed) for seed in seeds])
    with torch.no_grad():
        scheduler.set_timesteps(timesteps=pipeline.unet.config.drawing["timesteps"])
        for t in scheduler.timesteps:
            predicted = pipeline.unet(x, t, labels).sample
            plain = pipeline.unet(x, t, torch.tensor([-1, -1, -1])).sample
            predicted = plain + guidance * (predicted - plain)
            more = {"generator": seeds} if sampler == "ddpm" else {}
            x = scheduler.step(predicted, t, x, **more).prev_sample
        images = pipeline.vqvae.decode(x).sample.clamp(0, 1).permute(0, 2, 3, 1)
    assert difference(images) <= 1
