"""What a training reports while it runs: a `log.csv`, TensorBoard event files, a table in the notebook, how far it is,
and pictures of what it makes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
from PIL import Image
from torch import Tensor

from pfiles.machine.processes import in_notebook
from pfiles.machine.rank import is_first
from pfiles.paths import atomic_write, write_json, write_text

SHOWN = 5  # epochs in the notebook's table
PROGRESS, PICTURES = "progress.json", "samples"  # in a training's folder
TELL_EVERY = 5  # seconds between two writings of PROGRESS, at least
PICTURED = 16  # tiles in a picture, four by four
SHARE = 0.03  # of a training's time that its pictures may take
FIRST_COSTS = 20  # steps: what the first picture is taken to cost before one was timed

ENDED = {  # in words, by the name of the error
    "KeyboardInterrupt": "an interrupt (Ctrl-C, or a notebook's stop button)",
    "TerminatedError": "SIGTERM (of a scheduler, or of a server that is shut down)",
}

History = list[dict[str, float]]  # one row per epoch: the mean of each loss term, and how the epoch went


class TrainingLog:
    """The log of one training in `folder`; `epochs` are in it already."""

    def __init__(self, folder: Path, epochs: int):
        self.csv = folder / "log.csv"
        self._table = None
        self._began, self._told_at, self._spent = time.monotonic(), 0.0, 0.0
        self._cost: float | None = None  # seconds, of the last picture
        self._last: dict[str, float] | None = None  # that was told
        self._events = None  # without TensorBoard, which is optional
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(ModuleNotFoundError):
                from torch.utils.tensorboard import SummaryWriter  # seconds to import

                self._events = SummaryWriter(str(folder), purge_step=epochs + 1)

    def write(self, history: Sequence[dict[str, float]]) -> None:
        """Add the last row of `history`, whose rows before it are written already."""
        if not is_first():
            return
        table = pd.DataFrame(history)
        write_text(self.csv, table.to_csv(index=False))
        if self._events is not None:
            for name, value in history[-1].items():
                self._events.add_scalar(name, value, history[-1]["epoch"])
            self._events.flush()
        self._show(table.tail(SHOWN).round(4))

    def tell(self, step: int, total_steps: int, steps_since: int) -> None:
        """Say in PROGRESS how far the training is, unless that was said just now.

        steps_since: taken since this log was opened.
        """
        now = time.monotonic()
        if is_first() and (now - self._told_at > TELL_EVERY or step == total_steps or self._last is None):
            self._told_at = now
            rate = steps_since / (now - self._began)
            about = {"step": step, "total_steps": total_steps, "steps_per_second": rate, "at": time.time()}
            write_json(self.csv.with_name(PROGRESS), about)
            self._last = about

    @contextmanager
    def end_told(self) -> Iterator[None]:
        """Close the log at the end of the block; if a signal or an error ends it, PROGRESS says which."""
        try:
            yield
        except BaseException as error:
            if is_first() and self._last is not None:
                reason = ENDED.get(type(error).__name__) or f"{type(error).__name__}: {error}".partition("\n")[0]
                with suppress(OSError):  # such as that of the full disk which ended it
                    write_json(self.csv.with_name(PROGRESS), {**self._last, "at": time.time(), "stopped_by": reason})
            raise
        finally:
            if self._events is not None:
                self._events.close()

    def picture(self, step: int, steps_since: int, make: Callable[[], Tensor]) -> None:
        """Keep what `make` gives, uint8 (16 n, 3, S, S), as a picture of this step, also for TensorBoard.

        Left out where the training would spend more than SHARE of its time on pictures.
        """
        began = time.monotonic()
        elapsed = began - self._began
        cost = FIRST_COSTS * elapsed / steps_since if self._cost is None else self._cost
        if not is_first() or self._spent + cost > SHARE * elapsed:
            return
        grid = make().unflatten(0, (-1, 4)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).cpu().numpy()
        with atomic_write(self.csv.with_name(PICTURES) / f"{step:08}.jpg") as file:
            Image.fromarray(grid).save(file, format="JPEG", quality=90)
        if self._events is not None:
            self._events.add_image(PICTURES, grid, step, dataformats="HWC")
            self._events.flush()
        cost = self._cost = time.monotonic() - began
        self._spent += cost

    def _show(self, recent: pd.DataFrame) -> None:
        """Show one table that follows the training in a notebook; do nothing elsewhere."""
        if not in_notebook():
            return
        from IPython.display import display

        if self._table is None:
            self._table = display(recent, display_id=True)
        else:
            self._table.update(recent)
