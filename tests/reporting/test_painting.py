"""A painted layout: what is clicked is in the file at once, and the file is a layout."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from pfiles.drawing.layout import Reader, read_layout
from pfiles.errors import InputError
from pfiles.reporting import painting

READER = Reader({2: "dermis"}, 3, [0.2, 0.3, 0.5], 48)


def cells(path):
    return (read_layout(str(path), READER).cells + 1).tolist()


def luminance(colour):
    """Relative luminance as WCAG 2 has it."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(colour)]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


def test_a_number_can_be_read_on_each_colour(tmp_path):
    path = tmp_path / "layout.csv"
    painting.start(path, 1, 1, 16, ",".join(map(str, range(1, 17))))
    for button in painting.form(path, [str(number) for number in range(1, 17)]).children[1].children:
        dark, light = sorted(luminance(colour) for colour in (button.style.button_color, button.style.text_color))
        assert (light + 0.05) / (dark + 0.05) > 3, button.description


def test_a_field_is_shown_as_it_is():
    field = torch.randint(256, (3, 48, 96), dtype=torch.uint8)
    figure = painting.show(field, "The field", 0.5)
    [ax] = figure.axes
    assert (np.asarray(ax.images[0].get_array()) == field.permute(1, 2, 0).numpy()).all()
    assert (ax.get_title(), figure.get_size_inches().tolist()) == ("The field", [10, 5])
    [bar] = ax.artists
    assert bar.txt_label.get_text() == "10 µm"
    assert not painting.show(field, "The field").axes[0].artists


def test_a_click_paints_a_cell_and_another_visit_finds_it(tmp_path):
    path = tmp_path / "fields" / "layout.csv"
    painting.start(path, 2, 4, 3)
    assert cells(path) == [[1, 1, 2, 2]] * 2
    brush, _, second, message = painting.form(path, ["1", "2 dermis", "3"]).children
    brush.value = "3"
    second.children[1].click()
    assert cells(path) == [[1, 1, 2, 2], [1, 3, 2, 2]]
    assert (second.children[1].description, message.value) == ("3", "saved")
    brush.value = "glass"
    second.children[3].click()
    assert cells(path) == [[1, 1, 2, 2], [1, 3, 2, 0]]
    painting.start(path, 5, 5, 3)  # what was painted stays
    again = painting.form(path, ["1", "2 dermis", "3"]).children
    assert [button.description for button in again[2].children] == ["1", "3", "2", "glass"]


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
