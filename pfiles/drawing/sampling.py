"""Images from noise: sampling of the conditional latent diffusion model."""

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pfiles.drawing.samplers import make_solver
from pfiles.errors import InputError
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.machine import processes
from pfiles.machine.locks import is_left
from pfiles.machine.rank import is_first
from pfiles.machine.runtime import derive_seed, eval_mode, stop
from pfiles.machine.speed import EAGER, Speed
from pfiles.paths import read_json, write_json
from pfiles.provenance import GENERATED_WITH, Provenance, in_words
from pfiles.spreadsheet import columns_of, write_csv
from pfiles.tiles.files import image_files, refuse_other_images, write_tiles
from pfiles.tiles.pixels import to_uint8
from pfiles.tiles.sources import DRAWN, TABLE
from pfiles.unet_cond_base import UNet

NOISE_STEPS = 16  # steps whose noise is drawn at once; part of what an image's seed means
STRENGTH = 0.7  # share of the steps by which tiles are varied, see docs/variations.md
STOPPED = "Drawing images was stopped: run it again to go on with those that are missing."
ACCEPTED = "accept"  # the column of the share that passed, where tiles were chosen
WRITERS = 8  # threads that compress and write images
SHOWN = {"desc": "sample", "unit": "step"}  # of a bar
OnStep = Callable[[int, int, Tensor], None]  # steps done, steps in all, latents (B, z, h, w) after them


def image_seeds(seed: int, indices: Iterable[int]) -> list[int]:
    """One seed for each image index; unrelated for different `seed` or index."""
    return [derive_seed(seed, "image", int(i)) for i in indices]


def sample(
    unet: UNet,
    scheduler: LinearNoiseScheduler,
    decode: Callable[[Tensor], Tensor],
    cluster_ids: Sequence[int] | Tensor,
    seeds: Sequence[int],
    *,
    latent_shape: tuple[int, int, int],
    num_steps: int | None = None,
    batch_size: int = 100,
    sampler: str = "ddpm",
    guidance: float = 1.0,
    speed: Speed = EAGER,
    progress: bool = True,
    prediction: str = "noise",
    on_step: OnStep | None = None,
    originals: Tensor | None = None,
    strength: float = 1.0,
    guide: UNet | None = None,
) -> Tensor:
    """Draw one image for each cluster id.

    decode: latents (B, z, h, w) -> images in [0, 1], such as `LatentSpace.decode`. The latent is not quantised again.
    cluster_ids: the condition of each image, 0-based. seeds: one per image, see `image_seeds`.
    latent_shape: (z, h, w). num_steps: denoising steps, default and most all of the scheduler's.
    batch_size: images at once. All noise of an image comes from its own seed, so that another number changes no more
        than single values by one level of 255, as sums are rounded differently.
    sampler: see `samplers.make_solver`.
    guidance: w of classifier-free guidance (Ho & Salimans 2022), noise = noise without cluster + w * (noise with -
        without); 1 is the plain condition. Other values need a UNet that was trained with condition dropout.
    guide: the UNet whose noise without cluster that is; None: `unet`. One that learnt less errs in the same places and
        more, so that leading away from it mends errors too (autoguidance, Karras et al. 2024).
    prediction: what the UNet was trained to predict, "noise" or "v"; solvers get the noise that it means.
    on_step: is called with the noise and after every step, see `OnStep`.
    originals: latents (N, z, h, w) that the noise is laid over; None: there is noise alone. strength: the share of the
        steps, above 0 to 1, that is then taken, the last ones (SDEdit, Meng et al. 2022).

    Returns uint8 images (N, 3, H, W) on the CPU.
    """
    cluster_ids = torch.as_tensor(cluster_ids)
    if len(cluster_ids) != len(seeds):
        raise ValueError(f"There must be a seed for each image, but there are {len(seeds)} for {len(cluster_ids)}.")
    device = next(unet.parameters()).device
    num_steps = num_steps or scheduler.num_timesteps
    batches = list(zip(cluster_ids.split(batch_size), _chunks(seeds, batch_size), strict=True))
    batches_of_originals = [None] * len(batches) if originals is None else originals.split(batch_size)
    images = []
    bar_options = {} if progress else {"disable": True}
    with (
        eval_mode(unet),
        processes.progress(total=len(batches) * steps_taken(strength, num_steps), **SHOWN, **bar_options) as bar,
    ):
        predict = speed.accelerate(unet)
        predict_without = speed.accelerate(guide) if guide else predict
        for (ids, batch_seeds), latents in zip(batches, batches_of_originals, strict=True):
            ids = ids.to(device)
            solver = make_solver(sampler, scheduler, num_steps)
            times = torch.tensor(solver.timesteps, device=device)
            noise = sample_noise(batch_seeds, latent_shape, device)
            x, begin = next(noise), len(times) - steps_taken(strength, len(times))
            if latents is not None:
                x = scheduler.add_noise(latents.to(x), x, times[begin].expand(len(x)))
            if on_step is not None:
                on_step(begin, len(solver.timesteps), x)
            for i in range(begin, len(solver.timesteps)):
                speed.begin_step()
                predicted = predict(x, times[i : i + 1], ids).to(x.dtype)
                if guidance != 1:  # classifier-free guidance
                    without = predict_without(x, times[i : i + 1], torch.full_like(ids, -1)).to(x.dtype)
                    predicted = without + guidance * (predicted - without)
                if prediction == "v":
                    predicted = scheduler.noise_from_velocity(x, predicted, solver.timesteps[i])
                x = solver.step(i, x, predicted, noise)
                if on_step is not None:
                    on_step(i + 1, len(solver.timesteps), x)
                bar.update()
            images.append(to_uint8(decode(x)).cpu())
    return torch.cat(images)


def steps_taken(strength: float, steps: int) -> int:
    """How many of the steps a share of them is, at least one."""
    return max(1, round(strength * steps))


def generate_to_folder(
    draw: Callable[..., Tensor],
    folder: Path,
    numbers: Sequence[int],
    cluster_ids: Tensor,
    *,
    seed: int,
    batch_size: int,
    note: Mapping[str, Any],
    only: tuple[int, int] | None = None,
) -> None:
    """Draw the images that `folder` does not hold yet and write them as NUMBER.png, batch by batch.

    The images of a batch are written while the next is drawn.

    draw: `sample` with all but cluster ids and seeds given.
    numbers: the images' names and the indices of their seeds. cluster_ids: their conditions.
    note: the provenance of the images, see `Provenance.as_note`. It is kept beside them, and InputError refuses a
        folder that was begun with another one.
    only: draw the numbers from the first to the last of these two alone, where several notebooks share the work.
        Processes that were started together share it by themselves. InputError refuses a range without any of
        `numbers`.

    An interrupt stops at once and keeps the images that are done.
    """
    indices = places_within(numbers, only)
    refuse_other_images(folder, numbers)
    note_file = folder / GENERATED_WITH
    begun_with = read_json(note_file, {} if image_files(folder) else dict(note))
    if different := Provenance.from_note(begun_with).differences(Provenance.from_note(note)):
        difference = in_words(different) if begun_with else "it does not say of which"
        raise InputError(
            f"{folder} holds images of other networks or settings ({difference}): move or delete that folder first."
        )
    processes.wait_for_all()  # before any of them writes what another would find there
    write_json(note_file, note)
    indices = processes.share(indices)
    _remove_parts(folder, [f"{numbers[i]}.png" for i in indices] + [GENERATED_WITH] * (only is None and is_first()))
    done = image_files(folder)
    missing = [i for i in indices if str(numbers[i]) not in done]
    if len(missing) < len(indices):
        print(f"{len(indices) - len(missing)} of {len(indices)} images are there already.")
    with interrupt_told(STOPPED), ThreadPoolExecutor(WRITERS) as pool:
        writing: list[Future] = []
        for batch in processes.progress(_chunks(missing, batch_size), desc="images", unit="batch", delay=1):
            batch_numbers = [int(numbers[i]) for i in batch]
            images = draw(cluster_ids=cluster_ids[batch], seeds=image_seeds(seed, batch_numbers))
            for future in writing:
                future.result()
            writing = [
                pool.submit(write_tiles, folder, [n], image[None])
                for n, image in zip(batch_numbers, images, strict=True)
            ]
        for future in writing:
            future.result()
    processes.wait_for_all()


def write_table(
    folder: Path, numbers: Iterable[int], cluster_ids: Tensor, names: Mapping[int, str], seed: int,
    qualities: pd.DataFrame | None = None, accept: float = 1,
) -> None:  # fmt: skip
    """Write `tiles.csv`: file, cluster from 1, the cluster's name if it has one, and seed of each NUMBER.png.

    qualities: columns to follow, a row for each, where they are known. accept: the share that passed, where tiles were
    chosen, so that a reader knows.
    """
    rows = [
        {"file": f"{number}.png", "cluster": cluster, "name": names.get(cluster, ""), "seed": seed}
        for number, cluster in zip(numbers, (cluster_ids + 1).tolist(), strict=True)
    ]
    table = pd.DataFrame(rows, columns=DRAWN, dtype=object)
    table = table if qualities is None else table.join(qualities)
    write_csv(folder / TABLE, table if accept == 1 else table.assign(**{ACCEPTED: accept}))


def were_chosen(folder: Path) -> bool:
    """Whether the table beside generated images, or in the folder above them, says that not all of them passed."""
    tables = (folder / TABLE, folder.parent / TABLE)
    return any(ACCEPTED in columns_of(table) for table in tables if table.exists())


def places_within(numbers: Sequence[int], only: Any) -> list[int]:
    """The places of those numbers that lie from the first to the last of `only`; of all where it is None.

    InputError for what is no such range, or holds none of them.
    """
    if only is None:
        return [*range(len(numbers))]
    if not (isinstance(only, list | tuple) and [type(end) for end in only] == [int, int] and only[0] <= only[1]):
        raise InputError(f"only must be the first and the last number of a range, such as (1, 5000), but is {only!r}.")
    places = [i for i, number in enumerate(numbers) if only[0] <= number <= only[1]]
    if not places:
        raise InputError(
            f"only = {only!r} holds none of the {len(numbers)} numbers from {min(numbers)} to {max(numbers)}: "
            "choose a range that does."
        )
    return places


def _remove_parts(folder: Path, names: Sequence[str]) -> None:
    """Delete the temporary files that a killed run left in `folder` for these names.

    Files that are being written stay, and so do those of other jobs.
    """
    part_names = {f".{name}" for name in names}
    for part in folder.glob(".*.part"):
        if part.name.rsplit(".", 2)[0] in part_names and is_left(part) is not False:  # as `atomic_write` names it
            part.unlink(missing_ok=True)


@contextmanager
def interrupt_told(sentence: str) -> Iterator[None]:
    """Turn an interrupt into a one-line message and a clean exit."""
    try:
        yield
    except KeyboardInterrupt:
        stop(signal.SIGINT, sentence)


def _chunks(items: Sequence, size: int) -> list[Sequence]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def sample_noise(seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> Iterator[Tensor]:
    """Endless standard normal noise (B, *shape), each image's from a generator of its own seed."""
    rngs = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    yield torch.stack([torch.randn(shape, generator=rng, device=device) for rng in rngs])
    while True:  # several steps at once: a call per image and step would take longer than the network on a GPU
        several = (NOISE_STEPS, *shape)
        yield from torch.stack([torch.randn(several, generator=rng, device=device) for rng in rngs], dim=1)
