"""Tiles in several mapped files, one after the other, as if they were one tensor."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class MappedParts:
    """uint8 tiles (N, 3, S, S) of which no more is read than is asked for.

    It knows what is done with a tensor of tiles: its length and shape, indices of the first axis (a number, a slice, or
    numbers or truths in an array), which may be followed by those of other axes, and `split`. Each gives a tensor.
    """

    dtype, ndim = torch.uint8, 4

    def __init__(self, parts: Sequence[Tensor]):
        """parts: of (n, 3, S, S) each, alike but in their number of tiles."""
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])
        self.shape: torch.Size = torch.Size([int(self.ends[-1]), *parts[0].shape[1:]])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Tensor:
        first, *others = index if isinstance(index, tuple) else (index,)
        if isinstance(first, slice):
            rows = np.arange(*first.indices(len(self)))
        else:
            rows = np.asarray(first)
            rows = np.flatnonzero(rows) if rows.dtype == bool else np.where(rows < 0, rows + len(self), rows)
        if rows.ndim == 0:
            part = int(np.searchsorted(self.ends, rows, side="right"))
            return self.parts[part][(int(rows) - self._begin(part), *others)]
        numbers = np.searchsorted(self.ends, rows, side="right")
        if not len(rows):
            return self.parts[0][(slice(0, 0), *others)]
        if isinstance(first, slice) and first.step in (None, 1) and numbers[0] == numbers[-1]:
            low = int(rows[0]) - self._begin(numbers[0])
            return self.parts[numbers[0]][(slice(low, low + len(rows)), *others)]
        tiles = torch.empty(len(rows), *self.shape[1:], dtype=self.dtype)
        for part in np.unique(numbers):
            members = np.flatnonzero(numbers == part)
            tiles[members] = self.parts[part][torch.from_numpy(rows[members] - self._begin(part))]
        return tiles[(slice(None), *others)]

    def split(self, size: int) -> Iterator[Tensor]:
        """Tiles in turn, `size` at a time."""
        return (self[begin : begin + size] for begin in range(0, len(self), size))

    def _begin(self, part: int) -> int:
        """The place of its first tile among all."""
        return int(self.ends[part]) - len(self.parts[part])


class Rows:
    """Some of the tiles, in an order of their own; what is done with `MappedParts` can be done with them."""

    dtype, ndim = torch.uint8, 4

    def __init__(self, images: "Images", places: np.ndarray):
        """places: of the tiles among all, numbers from 0."""
        self.images, self.places = images, places
        self.shape: torch.Size = torch.Size([len(places), *images.shape[1:]])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Tensor:
        first, *others = index if isinstance(index, tuple) else (index,)
        places = self.places[first if isinstance(first, slice) else np.asarray(first)]
        return self.images[(places, *others)]

    def split(self, size: int) -> Iterator[Tensor]:
        """Tiles in turn, `size` at a time."""
        return (self[begin : begin + size] for begin in range(0, len(self), size))


Images = Tensor | MappedParts | Rows  # uint8 tiles (N, 3, S, S), in memory or not
