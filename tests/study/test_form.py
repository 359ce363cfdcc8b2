"""The page of a reader: nothing in it but pixels tells what a tile is, and text stays text."""

import base64
import io
import json
import re
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_predict

from pfiles.study import form, trials
from tests.conftest import make_tiles
from tests.study.conftest import HOSTILE, SIDE, K, made_trials, write_study


def content_of(page):
    return json.loads(re.search(r'id="study">(.*?)</script>', page, re.DOTALL)[1])


def test_the_tiles_of_a_page_are_those_of_the_readers_order(tmp_path):
    key = write_study(tmp_path / "study")
    _, every, _ = made_trials()
    for reader in (1, 2):
        content = content_of((tmp_path / "study" / f"reader_{reader}.html").read_text())
        assert content["study"] == key["study"]
        assert len(content["tiles"]) == len(every)
        for tile, trial in zip(content["tiles"], key["orders"][str(reader)], strict=True):
            pixels = np.array(Image.open(io.BytesIO(base64.b64decode(tile))))
            assert np.array_equal(pixels, every[trial].image.permute(1, 2, 0).numpy())


def test_the_page_loads_nothing_and_names_no_kind_or_source(tmp_path):
    write_study(tmp_path / "study")
    page = (tmp_path / "study" / "reader_1.html").read_text()
    assert "default-src 'none'" in page
    assert re.findall(r"(?:https?:)?//[\w.]+", page.split('id="study"')[0]) == []
    content = content_of(page)
    assert content.keys() == {"version", "study", "reader", "prefix", "tiles"}
    for word in ("blurred", "shuffled", "held-out", "seed", "made tiles"):
        assert word not in page
    assert len({path.stat().st_size for path in (tmp_path / "study").glob("*.html")}) == 1


@pytest.mark.slow
def test_what_surrounds_the_pixels_gives_no_tile_away():
    """A forest that sees place, length, header and compressed length of the header of 800 tiles is at 50 %."""
    real = torch.tensor(make_tiles(400)).permute(0, 3, 1, 2)  # smooth, which a PNG would tell by its length
    noise = torch.randint(256, real.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    every = [
        trials.Trial(image, kind, 1, "") for kind, images in (("real", real), ("generated", noise)) for image in images
    ]
    order = trials.order_of(every, 1, 5)
    rows, is_generated = [], []
    for place, i in enumerate(order):
        file = base64.b64decode(form.bitmap(every[i].image))
        header = file[:54]
        rows.append([place, place % 2, place % 8, len(file), len(zlib.compress(header)), *header])
        is_generated.append(every[i].kind == "generated")
    assert {len(file) for file in rows} == {len(rows[0])}
    assert len({tuple(row[3:]) for row in rows}) == 1  # to the byte
    guess = cross_val_predict(RandomForestClassifier(30, random_state=0), rows, is_generated, cv=10)
    assert (guess == is_generated).mean() == pytest.approx(0.5, abs=0.053)  # three standard errors


@pytest.mark.parametrize(("mpp", "bar"), [(0.5, ("83.33", "20 µm")), (1.0, ("41.67", "20 µm")), (None, None)])
def test_the_scale_bar_has_its_true_share_of_the_tile(tmp_path, mpp, bar):
    """48 px are 24 or 48 microns: 20 of them are 20/24 or 20/48 of the width."""
    write_study(tmp_path / "study", mpp=mpp, readers=1)
    page = (tmp_path / "study" / "reader_1.html").read_text()
    match = re.search(r'class="bar" style="width: ([\d.]+)%">([^<]+)<', page)
    assert (match and match.groups()) == bar
    assert f"width: {4 * SIDE}px" in page


def test_names_of_clusters_are_text(tmp_path):
    write_study(tmp_path / "study", "cluster", readers=1)
    page = (tmp_path / "study" / "reader_1.html").read_text()
    assert HOSTILE not in page
    assert "&lt;/script&gt;&lt;b&gt;" in page
    assert page.count('name="answer"') == K
