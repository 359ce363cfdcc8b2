"""A painted layout: what is clicked is in the file at once, and the file is a layout."""

import pytest

from pfiles.drawing.layout import Reader, read_layout
from pfiles.errors import InputError
from pfiles.reporting import painting

READER = Reader({2: "dermis"}, 3, [0.2, 0.3, 0.5], 48)


def cells(path):
    return (read_layout(str(path), READER).cells + 1).tolist()


def test_a_click_paints_a_cell_and_another_visit_finds_it(tmp_path):
    path = tmp_path / "fields" / "layout.csv"
    painting.start(path, 2, 4, 3)
    assert cells(path) == [[1, 1, 2, 2]] * 2
    brush, _, second, message = painting.form(path, ["1", "2 dermis", "3"]).children
    brush.value = "3"
    second.children[1].click()
    assert cells(path) == [[1, 1, 2, 2], [1, 3, 2, 2]]
    assert (second.children[1].description, message.value) == ("3", "saved")
    painting.start(path, 5, 5, 3)  # what was painted stays
    again = painting.form(path, ["1", "2 dermis", "3"]).children
    assert [button.description for button in again[2].children] == ["1", "3", "2", "2"]


def test_a_grid_of_text_takes_the_place_of_what_was_painted(tmp_path):
    path = tmp_path / "layout.csv"
    painting.start(path, 2, 2, 3)
    painting.start(path, 2, 2, 3, "1, dermis / 3,glass")
    assert cells(path) == [[1, 2], [3, 0]]
    painting.start(path, 2, 2, 3, "1,1,1\n2,2,2\n")
    assert cells(path) == [[1, 1, 1], [2, 2, 2]]


def test_grids_that_cannot_be_painted(tmp_path):
    with pytest.raises(InputError, match="has 1 to 16 rows and columns, but 0 x 3 were asked"):
        painting.start(tmp_path / "layout.csv", 0, 3, 3)
    with pytest.raises(InputError, match="as many cells in each row, but got '1,1 / 1'"):
        painting.start(tmp_path / "layout.csv", 1, 1, 3, "1,1 / 1")
    assert not (tmp_path / "layout.csv").exists()
