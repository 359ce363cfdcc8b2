"""A step of the first training of the demo's UNet, for processes of torchrun to do together.

    torchrun --nproc-per-node N -m benchmarks.step

Batches of 16, which the processes share, on clusters that learn no more. The first one prints the seconds of a step.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.inputs import open_untrained
from pfiles import learn
from pfiles.learning import diffusion, loop
from pfiles.machine.processes import is_first
from pfiles.machine.runtime import make_rng, pick_device

STEPS = 20  # that count, after as many


def main() -> None:
    run = open_untrained("demo", {"diffusion.latent_views": False}, pick_device().type, 6)
    networks, batch_size = learn.new_networks(run), run.settings.diffusion.batch_size
    side = run.vqvae.latent_shape(run.settings.image_size_px)[1]
    shape = STEPS * batch_size, side, side
    codes = torch.randint(run.vqvae.embedding.num_embeddings, shape, generator=make_rng("benchmark step"))
    stage = replace(learn.stage_settings(run, "training"), epochs=2)
    with tempfile.TemporaryDirectory() as folder:
        job = loop.Job("step", 0, batch_size, Path(folder), {}, run.settings.saving, run.speed, restart=True)
        history = diffusion.train_stage(
            unet=networks.unet, bank=networks.bank, space=networks.space, images=codes, codes=codes.to(run.device),
            settings=run.settings.diffusion, stage=stage, job=job,
        )  # fmt: skip
    if is_first():
        print(history[-1]["seconds"] / STEPS)


if __name__ == "__main__":
    main()
