"""Tiles that a run's networks draw, and the files of them.

from pfiles import draw

images = draw.tiles(run, [0, 0, 1])
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pfiles import artifacts
from pfiles.acceptance import Acceptance, qualities, standard_of, until_accepted
from pfiles.cached import cached_tensor
from pfiles.drawing.generator import Generator
from pfiles.drawing.sampling import generate_to_folder, places_within, write_table
from pfiles.errors import InputError
from pfiles.machine.processes import wait_for_all
from pfiles.machine.rank import is_first
from pfiles.measuring.quality import Standard
from pfiles.paths import read_json
from pfiles.provenance import GENERATED_WITH
from pfiles.reporting import figures
from pfiles.run import Run
from pfiles.spreadsheet import read_table
from pfiles.tiles.files import image_files, read_images
from pfiles.tiles.pixels import evenly_spaced, to_uint8
from pfiles.tiles.sources import DRAWN, TABLE


def tiles(
    run: Run,
    cluster_ids: Tensor | Sequence[int] | str,
    number: int | Sequence[int] = 1,
    stage: str = "finetuning2",
    progress: bool = True,
    *,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """A generated tile for each cluster id, uint8 (N, 3, S, S) on the CPU, as the settings' `sampling` says.

    cluster_ids: or the name of a cluster, of which `number` are drawn. seeds: one for each tile, which may also be
    given as the second argument; None: those of its place in `cluster_ids`.
    """
    if not isinstance(number, int | np.integer):
        seeds, number = number, 1
    drawing = generator(run, stage) if isinstance(cluster_ids, str) else run.networks(stage)
    return drawing.draw(cluster_ids, number=number, seed=run.seed, seeds=seeds, progress=progress)


def generator(run: Run, stage: str = "finetuning2") -> Generator:
    """The networks after a stage with shares and names of their clusters, ready to be saved and handed on."""
    sizes = run.assignment.cluster_ids.bincount(minlength=run.k)
    return replace(run.networks(stage), shares=sizes / sizes.sum(), names=run.names, mpp=run.tiles.mpp)


def sampling_text(run: Run) -> str:
    """How images are drawn, in words and numbers."""
    sampling = run.settings.sampling
    by = "" if sampling.guide == "itself" else " by the UNet after its first training"
    guidance = f"guidance {sampling.guidance}{by}"
    return f"{sampling.sampler}, {sampling.steps} steps, {guidance}; each image has a seed of its own"


def frames(run: Run, cluster_ids: Tensor | Sequence[int], number: int = 5, *, guidance: float | None = None) -> Tensor:
    """How a tile of each cluster id comes out of noise: uint8 (N, number, 3, S, S) on the CPU.

    Frames are latents after evenly spaced numbers of steps, decoded: the first is the noise, the last the tile that
    `tiles` draws. guidance: None takes the settings' own. There must be no more ids than `sampling.batch_size`.
    """
    networks = run.networks()
    if guidance is not None:
        sampling = replace(networks.settings.sampling, guidance=guidance)
        networks = replace(networks, settings=replace(networks.settings, sampling=sampling))
    decoded: list[Tensor] = []

    def keep(done: int, steps: int, x: Tensor) -> None:
        if done in evenly_spaced(steps + 1, number):
            decoded.append(to_uint8(networks.space.decode(x)).cpu())

    networks.draw(torch.as_tensor(cluster_ids), seed=run.seed, progress=False, on_step=keep)
    return torch.stack(decoded, dim=1)


def test_samples(run: Run, stage: str) -> tuple[Tensor, Tensor, Tensor]:
    """The test tiles that Figure 4 shows, their clusters, and a tile drawn from each cluster after that stage.

    The noise is the same for every stage, so that what is drawn differs by the training alone.
    """
    images = run.tiles.tensor(run.tiles.test[figures.figure_4_tiles(len(run.tiles.test))])
    cluster_ids, _ = run.assign(images, stage)
    print("clusters:", [cluster + 1 for cluster in cluster_ids.tolist()])
    return images, cluster_ids, tiles(run, cluster_ids, stage=stage)


def samples(run: Run, number: int) -> tuple[Tensor, Tensor]:
    """`number` generated tiles of each cluster, uint8 (k * number, 3, S, S), and the clusters (k * number,) asked for.

    They are cached beside the networks, so that an atlas opens at once.
    """
    cluster_ids = torch.arange(run.k).repeat_interleave(number)
    path = run.paths.models / f"atlas_tiles{run.paths.suffix}.pt"
    key = {**artifacts.generated_provenance(run).as_note(), "number": number}
    return cached_tensor(path, key, lambda: tiles(run, cluster_ids)), cluster_ids


def require_range(run: Run, only: tuple[int, int] | None) -> None:
    """InputError, before any work, for a range of which `to_folder` draws nothing."""
    places_within((run.selected_tiles + 1).tolist(), only)


def require_picks(run: Run, picks: Mapping[int | str, Sequence[int]]) -> dict[int, Sequence[int]]:
    """What Figure 3 shows of a cluster, by its number: the places of tiles among those that are drawn of it.

    picks: by that number, which papermill turns into text. InputError for a cluster or a tile that is not drawn.
    """
    per_cluster = run.settings.sampling.per_cluster
    by_number: dict[Any, Any] = {int(name) if str(name).isdecimal() else name: of for name, of in picks.items()}
    for cluster, places in by_number.items():
        if cluster not in range(1, run.k + 1):
            raise InputError(f"picks must be by the numbers of clusters, from 1 to {run.k}, but one is by {cluster!r}.")
        if (
            not isinstance(places, list | tuple)
            or not places
            or any(place not in range(per_cluster) for place in places)
        ):
            raise InputError(
                f"picks of cluster {cluster} must be a list of places from 0 to {per_cluster - 1}: {places!r}."
            )
    return by_number


def to_folder(run: Run, cluster_ids: Tensor, only: tuple[int, int] | None = None) -> None:
    """Draw a tile for each of the `selected_tiles` into `gen_k`, those that are not there yet.

    Below 1, the setting `sampling.accept` has tiles drawn anew until they pass, and it says how many were thrown away.
    `tiles.csv` gets the quality of each.
    """

    def draw(cluster_ids: Tensor, seeds: Sequence[int]) -> Tensor:
        return tiles(run, cluster_ids, seeds=seeds, progress=False)

    acceptance, numbers = Acceptance(run.settings.sampling.accept), (run.selected_tiles + 1).tolist()
    if is_first():
        standard_of(run)
    wait_for_all()  # and then read what the first one made
    standard = standard_of(run)
    generate_to_folder(
        until_accepted(draw, standard, run.vqvae, acceptance),
        run.paths.generated,
        numbers,
        cluster_ids,
        seed=run.seed,
        batch_size=run.settings.sampling.batch_size,
        note=artifacts.generated_provenance(run).as_note(),
        only=only,
    )
    if acceptance.accept < 1:
        print(acceptance)
    if is_first():
        table = _qualities_of_files(run, standard, cluster_ids)
        write_table(run.paths.generated, numbers, cluster_ids, run.names, run.seed, table, acceptance.accept)


def _qualities_of_files(run: Run, standard: Standard | None, cluster_ids: Tensor) -> pd.DataFrame:
    """The quality of each image of `gen_k`, NaN for those that are still to be drawn."""
    files = image_files(run.paths.generated)
    there = [place for place, number in enumerate(run.selected_tiles + 1) if str(number) in files]
    images = read_images(files[str(run.selected_tiles[place] + 1)] for place in there)
    measured = qualities(run.networks(), standard, images, cluster_ids[there], run)
    return measured.set_axis(there).reindex(range(len(cluster_ids)))


def write_generated_table(run: Run) -> None:
    """Write `tiles.csv` of `gen_k` anew, with the clusters' present names, where it is of these networks."""
    with suppress(InputError):
        artifacts.generated_files(run)
        seed = read_json(run.paths.generated / GENERATED_WITH, {}).get("seed", run.seed)
        ids, table = run.assignment.cluster_ids[run.selected_tiles], run.paths.generated / TABLE
        measured = None
        if table.exists():
            measured = read_table(table).drop(columns=list(DRAWN), errors="ignore").reset_index(drop=True)
            measured = measured.apply(pd.to_numeric)
        write_table(run.paths.generated, run.selected_tiles + 1, ids, run.names, seed, measured)
