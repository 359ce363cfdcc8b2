"""Tiles in several files, against one tensor of the same."""

import numpy as np
import pytest
import torch

from pfiles.tiles.mapped import MappedParts, Rows


@pytest.mark.parametrize(
    "index",
    [
        0, 4, -1, slice(1, 3), slice(2, 8), slice(None), slice(0, 9, 2), slice(5, 5), slice(6, 40),
        torch.tensor([8, 0, 3, 3]), np.array([4, 5]), np.arange(9) % 2 == 0, torch.zeros(0, dtype=torch.long),
        (slice(3, 4), slice(None), [1, 2]), (slice(2, 6), slice(None), [0]), (5, slice(None), slice(1)),
    ],
    ids=str,
)  # fmt: skip
def test_an_index_gives_what_it_gives_of_one_tensor(index):
    whole = torch.randint(0, 256, (9, 3, 4, 4), dtype=torch.uint8)
    parts = MappedParts(whole.split([4, 1, 4]))
    assert (parts.shape, len(parts), parts.dtype, parts.ndim) == (whole.shape, 9, whole.dtype, 4)
    assert torch.equal(parts[index], whole[index])


def test_it_is_split_as_one_tensor_is():
    whole = torch.randint(0, 256, (9, 3, 4, 4), dtype=torch.uint8)
    splits = [*MappedParts(whole.split([4, 1, 4])).split(4)]
    assert all(torch.equal(*pair) for pair in zip(splits, whole.split(4), strict=True))


def test_rows_are_read_when_they_are_asked_for():
    """What is done with all tiles can be done with some of them, whatever holds them all."""
    tiles = torch.arange(10 * 3 * 2 * 2, dtype=torch.uint8).view(10, 3, 2, 2)
    places = np.array([7, 0, 3, 3, 9])
    for images in (tiles, MappedParts([tiles[:4], tiles[4:]])):
        rows, expected = Rows(images, places), tiles[places]
        assert rows.shape == expected.shape
        assert len(rows) == 5
        for index in (2, -1, slice(1, 4), np.array([4, 0]), torch.tensor([1, 1]), (slice(0, 2), slice(None), 0)):
            assert torch.equal(rows[index], expected[index])
        assert [len(part) for part in rows.split(2)] == [2, 2, 1]
        assert torch.equal(torch.cat([*rows.split(2)]), expected)
