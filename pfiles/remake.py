"""What the paper shows, made again from the published files: its numbers beside the published ones, and its figures.

from pfiles import remake

rows = [*remake.numbers(paper)]
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from MODULE import INDICES, all_indices
from pfiles import checkpoints, draw, report
from pfiles.cached import cached_tensor
from pfiles.checkpoints import START
from pfiles.drawing.generator import Generator
from pfiles.errors import InputError
from pfiles.latents import mean_channel_softmax, read_latent_csv, reconstruct
from pfiles.lpips import LPIPS
from pfiles.machine.processes import progress
from pfiles.machine.runtime import derive_seed
from pfiles.measuring import pairs
from pfiles.paper import OTHER_K, PARTS, TRAINING, K
from pfiles.paths import refuse_foreign, write_text
from pfiles.reporting import figures
from pfiles.run import Run
from pfiles.tiles.files import list_images, read_images
from pfiles.tiles.pixels import match_size, to_uint8

NUMBERS = {  # as the authors' notebook prints the five indices, by k
    10: (2142.54026, 0.12234, 0.00441, 0.65763, 0.54631),
    11: (2866.86433, 0.10477, 0.00477, 1.05432, 0.49791),
    12: (1865.81774, 0.12042, 0.00463, 0.72021, 0.55443),
    13: (2836.22720, 0.09131, 0.00424, 1.22610, 0.46335),
    14: (3367.74211, 0.07645, 0.00548, 1.47801, 0.41643),
    15: (2027.82944, 0.10489, 0.00424, 1.04494, 0.51414),
    16: (2603.28507, 0.08615, 0.00490, 1.36384, 0.45223),
}
SSIM, MS_SSIM, LPIPS_VGG = 0.7988, 0.2196, 0.4923  # as the authors' parts 10 to 12 print them
OF_CLUSTER_1 = 0.73  # of 100 tiles drawn from cluster 1, as the authors' part 9 prints it
CLUSTER_1 = "tiles drawn from cluster 1 that are sorted into it, as a share"
SEED_OF_FIGURE_3 = 42  # published
AT_ONCE = 64  # pairs; changes memory and speed only
SHOWN = 10  # tiles of each cluster in Figures 2 and 3
TABLE = Path("paper", "table.md")  # in the folder of a run
COLUMNS = ("what", "published", "re-made", "why they differ")
NEEDED = {  # for each figure, of what was published
    1: {"tiles", "autoencoder"},
    2: {"training images", "latent CSV"},  # or the tiles
    3: {"autoencoder", "classifier after finetuning2", "UNet after finetuning2"},
    4: {"tiles", "autoencoder", "classifier after training", "classifier after finetuning2"}
    | {f"UNet after {stage}" for stage in START},
}


@dataclass(frozen=True)
class Paper:
    """A folder with published files. run: the published one, opened there. files: those that are there, by the names
    in `pfiles.paper.PARTS`."""

    run: Run
    files: Mapping[str, list[Path]]

    def lack(self, *names: str) -> str:
        """Which of these parts are missing, as text; "" if none is."""
        return ", ".join(part for part in PARTS if part in names and part not in self.files)

    @cached_property
    def generator(self) -> Generator:
        """The networks after the last stage; loading them needs no tiles."""
        run, stage = self.run, "finetuning2"
        vqvae = checkpoints.load_autoencoder(run.paths, run.settings, run.device)
        unet, bank, space, guide = checkpoints.load_stage(
            run.paths, run.settings, stage, run.clustering, vqvae, run.device
        )
        return Generator(unet, bank, space, run.settings, speed=run.speed, guide=guide)


class Row(NamedTuple):
    """A line of the table, as text. published, remade: "" if there is no such number. why: they differ, or not."""

    what: str
    published: str
    remade: str
    why: str


# Numbers


def numbers(paper: Paper) -> Iterator[Row]:
    """Each number of the paper that the files allow to compute, beside the published one."""
    for path in (*paper.files.get("latent CSV", []), *paper.files.get(OTHER_K, [])):
        yield from _of_csv(path)
    if not paper.lack("tiles", "autoencoder", "classifier after finetuning2", "latent CSV"):
        yield from _of_networks(paper.run)
    if lack := paper.lack("training images", "generated images"):
        for title, printed in (("SSIM", SSIM), ("MS-SSIM", MS_SSIM), ("LPIPS", LPIPS_VGG)):
            yield Row(title, f"{printed}", "", f"not measured; missing: {lack}")
    else:
        yield from _of_pairs(paper.run)
    lack = paper.lack(*NEEDED[3])
    yield Row(CLUSTER_1, f"{OF_CLUSTER_1}", "", f"not measured; missing: {lack}") if lack else _of_cluster_1(paper)


def _of_csv(path: Path) -> Iterator[Row]:
    """The five indices, entropy and mean probability of a published CSV."""
    k = int(path.stem.split("_")[0].removeprefix("HHH"))
    features, cluster_ids, probabilities = read_latent_csv(path, k)
    for (name, value), printed in zip(
        all_indices(features, cluster_ids).items(), NUMBERS.get(k, [None] * 5), strict=True
    ):
        yield _row(f"{INDICES[name].name}, k = {k}", printed, value, 5, "this is another table than the published one")
    shares = np.bincount(cluster_ids, minlength=k) / len(cluster_ids)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    not_printed = "the authors print no such number; it follows from their table"
    yield Row(f"entropy of the clusters, k = {k}", "", f"{entropy:.4f} of at most {np.log(k):.4f}", not_printed)
    yield _row(f"mean probability, k = {k}", None, probabilities.mean(), 4, not_printed)


def _of_networks(run: Run) -> Iterator[Row]:
    """Features and clusters of the training tiles, from the published networks, held against the published CSV."""
    features, cluster_ids, _ = read_latent_csv(run.paths.latent_csv, K)
    error = np.abs(mean_channel_softmax(run.vqvae, run.codes).numpy() - features).max()
    why = "sums in another order change the last digits" if error < 1e-4 else "other networks or tiles made the table"
    yield Row("largest difference of a feature in the table", "0", f"{error:.1e}", why)
    same = (run.assignment.cluster_ids.numpy() == cluster_ids).mean()
    why = "tiles between two clusters" if error < 1e-4 else "other networks or tiles made the table"
    yield Row("training tiles in their published cluster", "100.00 %", f"{same:.2%}".replace("%", " %"),
              "equal" if same == 1 else why)  # fmt: skip


def _of_pairs(run: Run) -> Iterator[Row]:
    """SSIM in both readings, MS-SSIM and LPIPS of the published pairs."""
    original, generated = list_images(run.paths.training_images), list_images(run.paths.generated)
    why = f"of {len(original):,} pairs, where {TRAINING:,} were published" if len(original) != TRAINING else (
        "other images than the published ones, or another decoder of JPEG"
    )  # fmt: skip
    usual = "not published: windows within one colour, as SSIM is meant"
    for title, name, score, printed in (
        ("SSIM as published, colour as a third axis", "ssim_published", pairs.ssim_published, SSIM),
        ("SSIM within each colour", "ssim", pairs.ssim, None),
        ("MS-SSIM", "ms_ssim", pairs.ms_ssim, MS_SSIM),
    ):
        mean = _mean_score(run, name, partial(score, device=run.device), original, generated)
        yield _row(title, printed, mean, 4, usual if printed is None else why)
    try:
        network = LPIPS().load_pretrained().to(run.device)
    except InputError as error:
        yield Row("LPIPS", f"{LPIPS_VGG}", "", f"not measured: {error}")
        return
    mean = _mean_score(run, "lpips", pairs.lpips_score(network, run.device), original, generated)
    yield _row("LPIPS", LPIPS_VGG, mean, 4, why)


def _mean_score(
    run: Run, name: str, score: pairs.PairScore, original: Mapping[str, Path], generated: Mapping[str, Path]
) -> float:
    """The mean of a score over all pairs; it is cached, so that a later call goes on with the next score."""
    names = [*original]

    def make() -> Tensor:
        scores = []
        parts = range(0, len(names), AT_ONCE)
        for start in progress(parts, desc=f"measure {name}", unit="batch", leave=False, delay=2):
            part = names[start : start + AT_ONCE]
            real, fake = (read_images(files[number] for number in part) for files in (original, generated))
            scores.append(torch.from_numpy(score(real, match_size(fake, real.shape[2]))))
        return torch.cat(scores)

    key = {"score": name, "images": _digest([*original.values(), *(generated[number] for number in names)])}
    return cached_tensor(run.paths.root / "paper" / f"{name}.pt", key, make).double().mean().item()


def _digest(files: list[Path]) -> str:
    digest = sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _of_cluster_1(paper: Paper) -> Row:
    """How many tiles drawn from cluster 1 are sorted into it again."""
    images = _cached_tiles(paper, 0, paper.run.settings.sampling.per_cluster)
    share = (paper.generator.assign(images).cluster_ids == 0).double().mean().item()
    by_chance = 2 * (OF_CLUSTER_1 * (1 - OF_CLUSTER_1) / len(images)) ** 0.5
    why = f"{NOISE}; of {len(images)} tiles such a share moves by {by_chance:.2f} by chance"
    return _row(CLUSTER_1, OF_CLUSTER_1, share, 2, why)


def _row(what: str, printed: float | None, value: float, digits: int, why: str) -> Row:
    """A number beside the printed one, at the printed digits. why: they differ, if they do."""
    published, remade = "" if printed is None else f"{printed:.{digits}f}", f"{value:.{digits}f}"
    return Row(what, published, remade, "equal to every published digit" if published == remade else why)


# Figures


def save_figures(paper: Paper) -> Iterator[Row]:
    """Write every figure that the files allow into Figures/, and say how it differs from the published one."""
    for number, (save, why) in FIGURES.items():
        needed = NEEDED[number] - {"training images"} if "tiles" in paper.files else NEEDED[number]
        if lack := paper.lack(*needed):
            yield Row(f"Figure {number}", "shown", "", f"not made; missing: {lack}")
        else:
            save(paper)
            plt.close("all")
            yield Row(f"Figure {number}", "shown", f"Figures/Figure {number}", why)


def _figure_1(paper: Paper) -> None:
    run = paper.run
    original = run.test_images[:50]
    for name, images, title in (
        ("a", original, "Original"), ("b", to_uint8(reconstruct(run.vqvae, original)), "Reconstructed")
    ):  # fmt: skip
        figures.save_figure(figures.show_tiles(images.cpu(), title=title, mpp=run.tiles.mpp), run.paths.figure(1, name))


def _figure_2(paper: Paper) -> None:
    run = paper.run
    cluster_ids = read_latent_csv(run.paths.latent_csv, K).cluster_ids
    rng, strips = np.random.default_rng(derive_seed(run.seed, "figure 2")), []
    mpp = run.tiles.mpp if "tiles" in paper.files else None
    for cluster in range(K):
        members = rng.permutation(np.flatnonzero(cluster_ids == cluster))[:SHOWN]
        if not len(members):
            continue
        if "tiles" in paper.files:
            tiles = run.tiles.tensor(run.tiles.train[members])
        else:
            files = list_images(run.paths.training_images)
            tiles = read_images(files[str(member + 1)] for member in members)
        strips.append(run.paths.figure(2, f"C_{K}_{cluster + 1}"))
        figures.save_figure(figures.show_tiles(tiles, rows=[f"Cluster {cluster + 1}"], mpp=mpp), strips[-1])
    figures.save_sheet(strips, run.paths.figure(2, f"sheet_k{K}"))


def _figure_3(paper: Paper) -> None:
    run = paper.run
    for cluster in range(K):
        number = run.settings.sampling.per_cluster if cluster == 0 else SHOWN
        images = _cached_tiles(paper, cluster, number)[:SHOWN]
        figure = figures.show_tiles(images, rows=[f"Cluster {cluster + 1}"], mpp=paper.generator.mpp)
        report.save_panel(run, figure, 3, f"G{cluster + 1}")
    strips = [run.paths.figure(3, f"G{cluster + 1}_k{K}") for cluster in range(K)]
    figures.save_sheet(strips, run.paths.figure(3, f"sheet_k{K}"))


def _cached_tiles(paper: Paper, cluster: int, number: int) -> Tensor:
    """Tiles drawn from a cluster; they are cached, so that a later call goes on with the next cluster."""
    networks = {"unet": paper.generator.unet, "autoencoder": paper.generator.space.vqvae}
    key: dict[str, Any] = {name: checkpoints.fingerprint(network) for name, network in networks.items()}
    key |= {"sampling": asdict(paper.run.settings.sampling), "number": number, "cluster": cluster}
    path = paper.run.paths.root / "paper" / f"cluster_{cluster + 1}.pt"
    seed = derive_seed(SEED_OF_FIGURE_3, cluster)
    return cached_tensor(path, key, lambda: paper.generator.draw(cluster, number, seed))


def _figure_4(paper: Paper) -> None:
    run, mpp = paper.run, paper.run.tiles.mpp
    for panel, stage in zip("bcd", START, strict=True):
        test_tiles, cluster_ids, generated = draw.test_samples(run, stage)
        tops = [f"{cluster + 1}" for cluster in cluster_ids.tolist()]
        title = f"Generated samples after {stage}"
        report.save_panel(run, figures.show_tiles(generated, 5, title, tops=tops, mpp=mpp), 4, panel)
    report.save_panel(
        run, figures.show_tiles(test_tiles, 5, "Test samples and their clusters", tops=tops, mpp=mpp), 4, "a"
    )
    figures.save_figure_4(run.paths)


NOISE = "each tile has a seed of its own, so that its noise is not the published one"
FIGURES: dict[int, tuple[Callable[[Paper], None], str]] = {
    1: (_figure_1, "the same tiles and networks: the same pictures"),
    2: (_figure_2, "drawn at random from the published clusters; the authors' choice is not known"),
    3: (_figure_3, f"{NOISE}; the first {SHOWN} of each cluster, where the authors picked theirs from 100 by hand"),
    4: (_figure_4, f"the same test tiles; {NOISE}"),
}


# The table


def write_table(rows: Sequence[Row], path: Path) -> None:
    """The rows as a table in Markdown."""
    write_text(path, "".join(map(_line, (COLUMNS, ("---",) * len(COLUMNS), *rows))))


def is_table(path: Path) -> bool:
    """Whether `write_table` wrote that file."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.readline() == _line(COLUMNS).encode()


def refuse_other_table(folder: Path) -> None:
    """InputError where the table of a run in `folder` would replace another file or link."""
    there = [TABLE.parts[0]] if os.path.lexists(folder / TABLE) else []
    refuse_foreign(folder, there, is_table(folder / TABLE))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
