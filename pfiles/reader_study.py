"""A reader study of a run: pages on which people judge its tiles, and what their answers say.

from pfiles import reader_study

reader_study.make(run, folder)
report = reader_study.score(folder)
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pfiles import artifacts, draw
from pfiles.drawing.sampling import image_seeds
from pfiles.errors import InputError
from pfiles.latents import centre_and_border
from pfiles.machine.runtime import derive_seed
from pfiles.paths import atomic_folder, read_json, refuse_foreign, write_json, write_text
from pfiles.provenance import Provenance, require_same_run
from pfiles.reporting import figures, page
from pfiles.reporting.page import Section
from pfiles.run import Run
from pfiles.study import form, sections, trials
from pfiles.study.answers import KEY, KEY_FILE, Key, Truth, read_study
from pfiles.study.trials import Question, Trial

MOST_READERS = 100
SCALES = (0.5, 20)  # the least and the largest enlargement
SCORE = "score"  # the folder of results, in that of the study


def make(
    run: Run, folder: Path, question: Question = "real", tiles: int = 60, readers: int = 4, scale: float = 4
) -> None:
    """Write the new `folder`, all at once: reader_1.html ... for the readers, and key.json, which stays here.

    question: "real" (is this tile real?) or "cluster" (of which cluster is it?). tiles: how many are judged, half of
    them real; catch tiles come on top. scale: how many times a page enlarges them. InputError, before any work, for
    what cannot be, and where the folder is there already.
    """
    if question not in trials.QUESTIONS:
        raise InputError(f"The question must be {' or '.join(trials.QUESTIONS)}, but is {question!r}.")
    counts = trials.counts_of(question, tiles)
    if not 1 <= readers <= MOST_READERS:
        raise InputError(f"--readers must be from 1 to {MOST_READERS}, but is {readers}.")
    if not SCALES[0] <= scale <= SCALES[1]:
        raise InputError(f"--scale must be from {SCALES[0]:g} to {SCALES[1]}, but is {scale:g}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already, perhaps with answers: name a new folder.")
    if len(run.tiles.test) < counts.held_out:
        raise InputError(
            f"The study needs {counts.held_out} held-out tiles, but the run has {len(run.tiles.test)}: ask for fewer "
            "--tiles."
        )
    examples = _examples(run) if question == "cluster" else []
    every = trials.make_trials(counts, _real(run, counts), _generated(run, counts), examples, run.seed)
    of_clusters = {
        number: torch.stack([example.image for example in examples if example.cluster == number])
        for number in sorted({example.cluster for example in examples})
    }
    look = form.Look(question, scale, run.tiles.mpp, run.k, run.names, of_clusters)
    write(folder, look, every, readers, run.seed, artifacts.generated_provenance(run).as_note())


def require_study(run: Run, folder: Path) -> None:
    """InputError where the study in `folder` is of other networks or settings than the run's."""
    key = read_json(folder / KEY_FILE, {})
    require_same_run(Provenance.from_note(key.get("made_from", {})), artifacts.generated_provenance(run), folder)


def write(
    folder: Path, look: form.Look, every: Sequence[Trial], readers: int, seed: int, made_from: Mapping[str, Any]
) -> None:
    """Write the pages and the key of a study of these tiles, all at once. made_from: provenance, in plain values."""
    orders = {reader: trials.order_of(every, reader, seed) for reader in range(1, readers + 1)}
    key = Key(
        KEY, form.VERSION, secrets.token_hex(8), look.question, look.n_clusters,
        {str(number): name for number, name in look.names.items()}, every[0].image.shape[-1], float(look.scale),
        look.mpp, seed, date.today().isoformat(), made_from,
        [Truth(trial.kind, trial.cluster, trial.source, trial.repeats) for trial in every],
        {str(reader): order for reader, order in orders.items()},
    )  # fmt: skip
    with atomic_folder(folder) as part:
        write_json(part / KEY_FILE, json.loads(json.dumps(asdict(key))))
        for reader, order in orders.items():
            text = form.page(look, key.study, reader, [every[i].image for i in order])
            write_text(part / f"reader_{reader}.html", text)


def _spread(number: int, k: int) -> np.ndarray:
    """Clusters (number,), 0-based, in ascending order, each as often as the others, give or take one."""
    return np.arange(number) * k // max(number, 1)


def _real(run: Run, counts: trials.Counts) -> list[Trial]:
    """Held-out tiles, those to be judged first, evenly from the clusters as far as these have any."""
    cluster_ids = run.assign(run.test_images).cluster_ids.numpy()
    counts_of = np.concatenate([_spread(counts.real, run.k), _spread(counts.held_out - counts.real, run.k)])
    places = trials.pick_real(cluster_ids, counts_of, run.seed)
    images = run.tiles.tensor(run.tiles.test[places])
    return [
        Trial(image, "real", int(cluster_ids[place]) + 1, f"held-out tile {place + 1}")
        for image, place in zip(images, places.tolist(), strict=True)
    ]


def _generated(run: Run, counts: trials.Counts) -> list[Trial]:
    """Tiles drawn for this study, evenly from the clusters."""
    cluster_ids = _spread(counts.generated, run.k)
    seeds = image_seeds(derive_seed(run.seed, "reader study"), range(len(cluster_ids)))
    images = draw.tiles(run, cluster_ids.tolist(), seeds)
    return [
        Trial(image, "generated", cluster + 1, f"seed {seed}")
        for image, cluster, seed in zip(images, cluster_ids.tolist(), seeds, strict=True)
    ]


def _examples(run: Run) -> list[Trial]:
    """Training tiles nearest to the centre of each cluster."""
    cluster_ids, distance, _ = centre_and_border(run.vqvae, run.bank, run.codes)
    nearest = []
    for cluster in range(run.k):
        members = (cluster_ids == cluster).nonzero().flatten()
        nearest += [(cluster, int(i)) for i in members[distance[members].argsort(stable=True)][: trials.SHOWN]]
    images = run.tiles.tensor(run.tiles.train[[place for _, place in nearest]])
    return [
        Trial(image, "example", cluster + 1, f"training tile {place + 1}")
        for image, (cluster, place) in zip(images, nearest, strict=True)
    ]


def score(files: Path | Sequence[Path], out: Path | None = None) -> list[Section]:
    """What the answers say, written into `out` as reader_study.html, .json and .png; None: the folder score of the
    study.

    files: the folder of a study, or files of answers and the key, see `answers.read_study`.
    """
    paths = sorted(files.glob("*.json")) if isinstance(files, Path) else list(files)
    if not paths:
        raise InputError(f"There is no file of answers in {files}: put what the readers saved there.")
    key, table = read_study(paths)
    out = paths[0].parent / SCORE if out is None else out
    page.refuse_other_report(out, "reader_study")
    refuse_foreign(out, ("reader_study.png",), (out / "reader_study.json").exists())
    report = sections.sections(key, table)
    figures.save_figure(report[1].figures[0], out / "reader_study.png", dpi=200)
    about = {"study": key.study, "question": key.question, "made": key.made, "answers": len(table)}
    page.write_report(report, out, about, "Reader study", "reader_study")
    return report
