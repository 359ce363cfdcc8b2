"""Images from noise: ancestral sampling of the conditional latent diffusion model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pfiles.data import image_files, refuse_other_images, to_uint8, write_tiles
from pfiles.errors import InputError
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.paths import read_json, write_json
from pfiles.runtime import derive_seed, eval_mode
from pfiles.unet_cond_base import UNet


def image_seeds(seed: int, indices: Iterable[int]) -> list[int]:
    """One seed for each image index; unrelated for different `seed` or index."""
    return [derive_seed(seed, "image", int(i)) for i in indices]


def timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    """`num_steps` time steps from num_timesteps - 1 down to 0, evenly spaced."""
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"num_steps must be between 1 and {num_timesteps}, but is {num_steps}.")
    return torch.linspace(num_timesteps - 1, 0, num_steps, dtype=torch.float64).round().int().tolist()


def sample(
    unet: UNet,
    scheduler: LinearNoiseScheduler,
    decode: Callable[[Tensor], Tensor],
    cluster_ids: Sequence[int] | Tensor,
    seeds: Sequence[int],
    latent_shape: tuple[int, int, int],
    num_steps: int | None = None,
    batch_size: int = 100,
    progress: bool = True,
) -> Tensor:
    """Draw one image for each cluster id (DDPM, Ho et al. 2020, algorithm 2).

    decode: latents (B, z, h, w) -> images in [0, 1], such as `VQVAE.decode`. The latent is not quantised again.
    cluster_ids: the condition of each image, 0-based. seeds: one per image, see `image_seeds`.
    latent_shape: (z, h, w). num_steps: denoising steps, default and most all of the scheduler's.
    batch_size: images at once. All noise of an image comes from its own seed, so it does not depend on this.

    Returns uint8 images (N, 3, H, W) on the CPU.
    """
    cluster_ids = torch.as_tensor(cluster_ids)
    if len(cluster_ids) != len(seeds):
        raise ValueError(f"There must be a seed for each image, but there are {len(seeds)} for {len(cluster_ids)}.")
    device = next(unet.parameters()).device
    steps = timesteps(scheduler.num_timesteps, num_steps or scheduler.num_timesteps)
    batches = list(zip(cluster_ids.split(batch_size), _chunks(seeds, batch_size), strict=True))
    images = []
    with (
        eval_mode(unet),
        tqdm(total=len(batches) * len(steps), desc="sample", unit="step", disable=not progress) as bar,
    ):
        for clusters, batch_seeds in batches:
            clusters = clusters.to(device)
            generators = [torch.Generator(device).manual_seed(seed) for seed in batch_seeds]
            x = _noise(generators, latent_shape, device)
            for t, t_prev in zip(steps, [*steps[1:], -1], strict=True):
                predicted = unet(x, t, clusters)
                noise = _noise(generators, latent_shape, device) if t_prev >= 0 else None
                x, _ = scheduler.sample_prev_timestep(x, predicted, t, t_prev, noise)
                bar.update()
            images.append(to_uint8(decode(x)).cpu())
    return torch.cat(images)


def generate_to_folder(
    draw: Callable[..., Tensor],
    folder: Path,
    numbers: Sequence[int],
    cluster_ids: Tensor,
    seed: int,
    batch_size: int,
    identity: Mapping[str, Any],
) -> None:
    """Draw the images that `folder` does not hold yet and write them as NUMBER.png, batch by batch.

    draw: `sample` with all but cluster ids and seeds given.
    numbers: the images' names and the indices of their seeds. cluster_ids: their conditions.
    identity: what the images depend on besides, in plain values. It is kept beside them, and InputError refuses a
        folder that was begun with another one.
    """
    refuse_other_images(folder, numbers)
    note = folder / "generated_with.json"
    begun_with = read_json(note, None if image_files(folder) else identity)
    if begun_with != identity:
        raise InputError(f"{folder} holds images of other networks or settings: move or delete that folder first.")
    write_json(note, identity)
    done = image_files(folder)
    missing = [i for i, number in enumerate(numbers) if str(number) not in done]
    if len(missing) < len(numbers):
        print(f"{len(numbers) - len(missing)} of {len(numbers)} images are there already.")
    for some in tqdm(_chunks(missing, batch_size), desc="images", unit="batch"):
        chosen = [int(numbers[i]) for i in some]
        write_tiles(folder, chosen, draw(cluster_ids=cluster_ids[some], seeds=image_seeds(seed, chosen)))


def _chunks(items: Sequence, size: int) -> list[Sequence]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _noise(generators: list[torch.Generator], shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Standard normal noise (B, *shape), each image's from its own generator."""
    return torch.stack([torch.randn(shape, generator=generator, device=device) for generator in generators])
