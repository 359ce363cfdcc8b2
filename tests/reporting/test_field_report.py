"""A field's slide of known content, read as `field` reads it: what it says, and what it leaves out."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pfiles.measuring import two_sample
from pfiles.measuring.field_check import Joints
from pfiles.reporting import field_report
from pfiles.reporting.field_report import check_field
from pfiles.tiles.dataset import Tiles
from pfiles.tiles.pyramid import write_pyramid

SIDE = 48


def noise(height, width, seed=0):
    rough = gaussian_filter(np.random.default_rng(seed).normal(size=(height, width, 3)), (2, 2, 0))
    return (110 + 20 * rough / rough.std()).clip(0, 200).astype(np.uint8)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Joints themselves are found in the tests of `field_check`."""
    monkeypatch.setattr(two_sample, "STEPS", 40)


@pytest.fixture
def slide(tmp_path):
    """480 x 432 px, its right half 40 levels redder."""
    image = noise(432, 480)
    image[:, 240:, 0] += 40
    write_pyramid(tmp_path / "a.tiff", lambda first, last: image[first:last], (480, 432))
    return tmp_path / "a.tiff", image


def layout_table(wrong=0):
    """Cluster 1 on the left and 2 on the right, `wrong` of the tiles otherwise."""
    places = np.stack(np.meshgrid(np.arange(10), np.arange(9)), -1).reshape(-1, 2) * SIDE
    cluster = 1 + (places[:, 0] >= 240)
    cluster[:wrong] = 3 - cluster[:wrong]
    return pd.DataFrame(
        {"slide": "a", "x": places[:, 0], "y": places[:, 1], "side": SIDE, "cluster": cluster, "share": 1.0}
    )


def assign(tiles):
    red = tiles.float().mean((2, 3))
    return (red[:, 0] > red[:, 1] + 20).long(), torch.ones(len(tiles))


def draw(cluster_ids):
    """Separate tiles, all of cluster 1."""
    return torch.full((len(cluster_ids), 3, SIDE, SIDE), 100, dtype=torch.uint8)


def test_the_first_tile_of_each_crop_of_a_slide_counts_before_held_out_tiles():
    """Crops of two tiles a side that begin at every tile: their first tiles lie side by side."""
    image = torch.from_numpy(noise(96, 192, 7)).permute(2, 0, 1)
    crops = torch.stack([image[:, :, x : x + 96] for x in (0, 48, 96)])
    real = Tiles(crops[:1, :, :48, :48], np.arange(0), np.arange(1), "a tile")
    tiles = field_report._as_tiles(crops, real)
    assert torch.equal(torch.cat([*tiles], 2), image[:, :48, :144])
    assert torch.equal(field_report._as_tiles(None, real), real.images)
    assert field_report._as_tiles(None, None) is None


def test_a_field_is_read_back_and_held_against_real_tiles(slide):
    path, image = slide
    real = np.stack([noise(SIDE, SIDE, seed) for seed in range(1, 121)])
    real[7] = image[60 : 60 + SIDE, 30 : 30 + SIDE]  # a training tile that the field repeats
    tiles = Tiles(torch.from_numpy(real).permute(0, 3, 1, 2), np.arange(80), np.arange(80, 120), "noise")
    crops = torch.from_numpy(np.stack([noise(96, 96, seed) for seed in range(300, 330)])).permute(0, 3, 1, 2)
    section = check_field(path, layout_table(wrong=9), Joints(0, 0, SIDE), assign, 3, 5, "cpu", tiles, crops, draw)
    scores = section.scores
    assert scores["read back"]["all"]["all"]["accuracy"] == pytest.approx(0.9)
    assert set(scores["seams"]) == {"drawn", "side by side", "inside"}
    assert abs(scores["drift"]["levels"]) < 8
    assert scores["repetition"]["copies"] == 0
    assert (scores["copies"]["copies"] > 0) == (not scores["copies"]["hand_on"])
    text = " ".join(section.notes)
    assert "90% (82% to 95%) of 90 places are read back" in text
    assert "Of 90 separate tiles of the same clusters 49% (39% to 59%) are; the field reaches 184% of that." in text
    assert "The target of 80% of that is reached." in text
    assert ("Do not hand this field on" in text) == bool(scores["copies"]["copies"])


def test_what_cannot_be_measured_is_said(slide):
    """A field of a few tiles has no seams to find; without real tiles no copies are looked for."""
    path, _ = slide
    few = layout_table()[:6]
    section = check_field(path, few, Joints(0, 0, 200), assign, 3, 5, "cpu")
    text = " ".join(section.notes)
    assert "Not measured: Seams need" in text
    assert "Copies of training tiles were not looked for" in text
    assert "read back" in section.scores
