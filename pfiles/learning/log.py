"""What a training tells while it runs: a `log.csv`, TensorBoard event files, and a table in the notebook."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pfiles.machine.processes import is_first
from pfiles.paths import atomic_write

SHOWN = 5  # epochs in the notebook's table

History = list[dict[str, float]]  # one row per epoch: the mean of each loss term, and how the epoch went


class TrainingLog:
    """The log of one training in `folder`; `done` epochs are in it already."""

    def __init__(self, folder: Path, done: int):
        self.csv = folder / "log.csv"
        self._table = None
        if is_first():
            from torch.utils.tensorboard import SummaryWriter  # seconds to import

            folder.mkdir(parents=True, exist_ok=True)
            self._events = SummaryWriter(str(folder), purge_step=done + 1)

    def write(self, history: Sequence[dict[str, float]]) -> None:
        """Add the last row of `history`, whose rows before it are written already."""
        if not is_first():
            return
        table = pd.DataFrame(history)
        with atomic_write(self.csv) as file:
            file.write(table.to_csv(index=False).encode())
        for name, value in history[-1].items():
            self._events.add_scalar(name, value, history[-1]["epoch"])
        self._events.flush()
        self._show(table.tail(SHOWN).round(4))

    def _show(self, recent: pd.DataFrame) -> None:
        """In a notebook, one table that follows the training; elsewhere nothing, also where there is no IPython."""
        ipython = sys.modules.get("IPython")
        if ipython is None or ipython.get_ipython() is None:
            return
        if self._table is None:
            self._table = ipython.display.display(recent, display_id=True)
        else:
            self._table.update(recent)

    def close(self) -> None:
        if is_first():
            self._events.close()
