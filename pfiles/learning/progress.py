"""How far a training is."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pfiles.learning.log import History
from pfiles.machine import processes


class Progress:
    """How far a training is: what a resume point holds besides the networks.

    step: the steps done. history: a row for each epoch done. first_bad: the number of the first step whose loss or
    gradient was not finite, on the device; -1: none.
    """

    def __init__(self, device: torch.device, state: Mapping[str, Any] | None = None):
        state = {"step": 0, "history": [], "sums": {}, "counts": {}, "seconds": 0.0} if state is None else state
        self.step: int = state["step"]
        self.history: History = state["history"]
        self._sums: dict[str, Tensor] = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts: dict[str, int] = state["counts"]  # of the terms in the steps since the last row
        self._began = time.monotonic() - state["seconds"]
        self.first_bad = torch.full((), -1, device=device)

    def state(self) -> dict[str, Any]:
        """What `Progress(device, state)` goes on from."""
        return {
            "step": self.step, "history": self.history, "sums": self._sums, "counts": self._counts,
            "seconds": self.seconds(),
        }  # fmt: skip

    def seconds(self) -> float:
        """Since the last row of the history, while the training ran."""
        return time.monotonic() - self._began

    def add(self, terms: Mapping[str, Tensor], finite: Tensor) -> None:
        """Count one more step; nothing is read from the device."""
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        self.first_bad = torch.where(~finite & (self.first_bad < 0), self.step, self.first_bad)
        self.step += 1

    def means(self) -> dict[str, float]:
        """The means of the terms over the steps since the last row and over all processes."""
        stacked = torch.stack([self._sums[name] / self._counts[name] for name in self._sums])
        return dict(zip(self._sums, (processes.total(stacked) / processes.world_size()).tolist(), strict=True))

    def end_epoch(self, row: Mapping[str, float]) -> None:
        """Add a row to the history."""
        self.history.append({"epoch": len(self.history) + 1, **row})
        self._sums, self._counts, self._began = {}, {}, time.monotonic()
