"""The user's table of slides: rows that say the same, and rows that do not."""

import pytest

from pfiles.errors import InputError
from pfiles.tiles.slide_table import read_slide_table


def test_two_rows_that_say_the_same_of_a_slide_are_one(tmp_path):
    (tmp_path / "t.csv").write_text("slide,mpp\na.svs,0.250\na.svs,0.250\nfolder/a.SVS,0.25\n")
    assert read_slide_table(tmp_path / "t.csv") == {"a.svs": {"slide": "a.svs", "mpp": "0.25"}}
    (tmp_path / "t.csv").write_text("slide,mpp\na.svs,0.25\na.svs,0.5\n")
    with pytest.raises(InputError, match=r"two different rows for the slide a\.svs: keep one"):
        read_slide_table(tmp_path / "t.csv")
