"""Cells of like vectors: each vector is found in its cell, and all cells together are all vectors."""

import torch
import torch.nn.functional as F

from pfiles.measuring.cells import learn_cells

VECTORS = F.normalize(torch.randn(400, 6, generator=torch.Generator().manual_seed(0)), dim=1)


def test_a_vector_lies_in_the_nearest_cell_of_the_nearest_group():
    cells = learn_cells(VECTORS, 25)
    assert cells.number == 25
    for vector, cell in zip(VECTORS, cells.of(VECTORS).tolist(), strict=True):
        group = int((cells.group @ vector).argmax())
        assert cell == 5 * group + int((cells.cell[group] @ vector).argmax())


def test_the_nearest_cells_begin_with_a_vector_s_own_and_end_with_all():
    cells = learn_cells(VECTORS, 25)
    all_means = cells.cell.flatten(0, 1)
    assert torch.equal(cells.nearest(VECTORS, 1)[:, 0], cells.of(VECTORS))
    nearest = cells.nearest(VECTORS, 100)
    assert torch.equal(nearest.sort(1).values, torch.arange(25).expand(400, 25))
    likeness = VECTORS @ all_means.T
    assert (likeness.gather(1, nearest).diff(dim=1) <= 1e-6).all()


def test_fewer_vectors_than_cells():
    cells = learn_cells(VECTORS[:3], 16)
    assert len(cells.of(VECTORS[:3]).unique()) == 3
    assert torch.isfinite(cells.cell).all()
