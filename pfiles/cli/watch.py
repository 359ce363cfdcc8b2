"""A training seen from outside: how far it is, its curve and what it draws by now, whoever runs it and wherever."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pfiles.choices import resolve_choices
from pfiles.errors import InputError
from pfiles.learning.log import PICTURES, PROGRESS, SHOWN
from pfiles.machine.processes import in_notebook
from pfiles.paths import ROOT, expand, read_json

TRAININGS = ("kpc_ldm/*_training", "clusters_*/models_*/*", "choose_k*/*")  # their folders below that of a run
AHEAD = 120  # seconds by which a training's clock may be ahead of this one
SILENT = 120  # seconds without a word after which a training may have stopped, or the last one of a run is done


class Progress(NamedTuple):
    """What a training's folder says of it. history: `log.csv`, a row per epoch. picture: the newest; None: none yet.
    stopped_by: what ended it before its last step, in words; "" if nothing did."""

    folder: Path
    step: int
    total_steps: int
    steps_per_second: float
    at: float
    history: pd.DataFrame
    picture: Path | None
    stopped_by: str = ""

    @property
    def is_done(self) -> bool:
        return self.step >= self.total_steps

    def line(self) -> str:
        """How far the training is, how fast it is, and how long it will take."""
        share = self.step / self.total_steps
        sentence = f"{self.folder.name}: step {self.step:,} of {self.total_steps:,} ({share:.0%})"
        if self.is_done:
            return f"{sentence}, done"
        if self.stopped_by:
            return f"{sentence}, stopped by {self.stopped_by}: run it again to go on"
        silent = time.time() - self.at
        if self.steps_per_second > 0:
            remaining = duration((self.total_steps - self.step) / self.steps_per_second)
            sentence += f", {self.steps_per_second:.3g} steps per second, {remaining} left"
        return f"{sentence}; no word for {duration(silent)}: it may have been stopped" if silent > SILENT else sentence


def duration(seconds: float) -> str:
    """In words, by its two largest units: 9 s, 1 min 3 s, 8 h 59 min, 2 d 1 h."""
    words, left = [], round(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        words.append(f"{count} {unit}" if count else "")
    first = next((place for place, word in enumerate(words) if word), None)
    return "0 s" if first is None else " ".join(filter(None, words[first : first + 2]))


def look(out: str | Path | None = None) -> Progress:
    """The training below the folder `out` (None: this repository) that was heard of last; InputError if none was."""
    return _look(_folder_of_run(out))


def _folder_of_run(out: str | Path | None) -> Path:
    return (ROOT / expand(resolve_choices({"out": out})["out"] or "")).resolve()


def _look(root: Path) -> Progress:
    folders = [path for where in TRAININGS for path in root.glob(where)]
    heard = {folder: _read_progress(folder)[0]["at"] for folder in folders if (folder / PROGRESS).exists()}
    if not heard:
        raise InputError(f"No training has begun in {root}: name the folder that was given to it as out.")
    # a time to come is of a clock that was set back since, and so before all that was heard by the present one
    folder = max(heard, key=lambda folder: (heard[folder] <= time.time() + AHEAD, heard[folder], folder))
    progress, stopped_by = _read_progress(folder)
    log = folder / "log.csv"
    pictures = sorted((folder / PICTURES).glob("*.jpg"))
    history = pd.read_csv(log) if log.exists() else pd.DataFrame()
    picture = pictures[-1] if pictures else None
    return Progress(folder, **progress, history=history, picture=picture, stopped_by=stopped_by)


def _read_progress(folder: Path) -> tuple[dict[str, Any], str]:
    """What a training wrote about itself, and what stopped it; InputError for a file that says something else."""
    file = folder / PROGRESS
    progress = read_json(file, {})
    numbers = {"step": 0, "total_steps": 1, "steps_per_second": 0, "at": 0}  # and the least of each
    for name, least in numbers.items():
        value = progress.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
            raise InputError(f"{file} does not say how far a training is ({name} is {value!r}): delete it.")
    return {name: progress[name] for name in numbers}, str(progress.get("stopped_by", ""))


def follow(out: str | Path | None, every: float) -> Iterator[Progress]:
    """What `look` sees whenever there is something new, from training to training, until none begins any more."""
    root, before = _folder_of_run(out), None  # found once, as that prints where it comes from
    while True:
        now = _look(root)
        if before is None or (now.folder, now.at) != (before.folder, before.at):
            yield now
        if (now.is_done or now.stopped_by) and time.time() - now.at > SILENT:
            return
        before = now
        time.sleep(every)


def watch(out: str | Path | None = None, every: float = 10.0, once: bool = False) -> None:
    """Show the training in `out` as it goes on, and those after it: in a notebook the curve, the last epochs and what
    is drawn, in place; in a terminal text. Stopping this stops nothing else.

    every: seconds between two looks. once: look once.
    """
    show = _Cell() if in_notebook() else _print
    for progress in follow(out, every):
        show(progress)
        if once:
            return
    print("The last training is over, and none has begun since: watch again once another one has.")


def _print(progress: Progress) -> None:
    print(progress.line())
    if len(progress.history):
        print(progress.history.tail(SHOWN).round(4).to_string(index=False))
    if progress.picture is not None:
        print(f"newest picture: {progress.picture}")
    print(flush=True)


class _Cell:
    """Outputs of one cell, renewed in place."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}

    def __call__(self, progress: Progress) -> None:
        import matplotlib.pyplot as plt
        from IPython.display import Image

        from pfiles.reporting import figures

        self._renew("line", {"text/plain": progress.line()}, raw=True)
        if len(progress.history):
            figure = figures.plot_history(progress.history.to_dict("records"), "Loss terms per epoch")
            self._renew("curve", figure)
            plt.close(figure)
            self._renew("epochs", progress.history.tail(SHOWN).round(4))
        if progress.picture is not None:
            self._renew("picture", Image(filename=progress.picture))

    def _renew(self, name: str, content: Any, **options: Any) -> None:
        from IPython.display import display

        if name in self._handles:
            self._handles[name].update(content, **options)
        else:
            self._handles[name] = display(content, display_id=True, **options)
