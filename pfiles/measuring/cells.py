"""Cells of like vectors, in which a vector is looked up without a look at all others (an inverted file, Sivic and
Zisserman 2003).

A vector is compared with the means of groups, and then with the means of the cells of the best groups, so that finding
its cell takes time with the fourth root of the number of vectors, where there are as many cells as its square root.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 6  # of k-means


@dataclass(frozen=True)
class Cells:
    """group: (G, D), means of groups. cell: (G, C, D), means of the cells of each; all of length 1.

    A cell has the number of its group times C, and its place there.
    """

    group: Tensor
    cell: Tensor

    @property
    def number(self) -> int:
        return self.cell.shape[0] * self.cell.shape[1]

    def of(self, vectors: Tensor) -> Tensor:
        """The cell (Q,) that each of Q vectors (Q, D) lies in."""
        group = (vectors @ self.group.T).argmax(1)
        cells = torch.empty_like(group)
        for g in group.unique().tolist():
            members = (group == g).nonzero()[:, 0]
            cells[members] = (vectors[members] @ self.cell[g].T).argmax(1) + g * self.cell.shape[1]
        return cells

    def nearest(self, vectors: Tensor, number: int) -> Tensor:
        """The nearest cells of as many groups, `number` of them, or all: (Q, L) of Q vectors (Q, D)."""
        per_group = self.cell.shape[1]
        groups = (vectors @ self.group.T).topk(min(number, len(self.group))).indices
        likeness = vectors.new_empty(*groups.shape, per_group)
        for g in groups.unique().tolist():
            vector, slot = (groups == g).nonzero(as_tuple=True)
            likeness[vector, slot] = vectors[vector] @ self.cell[g].T
        best = likeness.flatten(1).topk(min(number, likeness[0].numel())).indices
        return groups.gather(1, best // per_group) * per_group + best % per_group


def learn_cells(vectors: Tensor, number: int) -> Cells:
    """About `number` cells of vectors (N, D) of length 1, in random order."""
    per_group = max(1, round(number**0.5))
    group = _means(vectors, per_group)
    of = (vectors @ group.T).argmax(1)
    members = [vectors[of == g] for g in range(len(group))]
    means = [_means(rows if len(rows) else vectors[:1], per_group) for rows in members]
    return Cells(group, torch.stack(means))


def _means(vectors: Tensor, number: int) -> Tensor:
    """k-means of directions; where there are fewer vectors than means, some means are alike, and the first counts."""
    means = vectors[torch.arange(number) % len(vectors)]
    for _ in range(ROUNDS):
        sums = torch.zeros_like(means).index_add_(0, (vectors @ means.T).argmax(1), vectors)
        means = torch.where(sums.any(1, keepdim=True), F.normalize(sums, dim=1), means)
    return means
