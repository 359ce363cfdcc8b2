"""The atlas: which tiles stand where, what is said of a cluster, and that a name stays text."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from pfiles.reporting import atlas
from pfiles.tiles.dataset import Tiles
from tests.reporting.conftest import HOSTILE, make_atlas

pytestmark = pytest.mark.usefixtures("without_overlays")


def numbers_in(tiles, row, title):
    """The numbers of the tiles in a square."""
    everything = tiles.tensor(tiles.train)
    return [int((everything == image).flatten(1).all(1).nonzero()[0]) for image in row.tiles[title]]


def test_the_nearest_tiles_and_those_at_the_border():
    tiles, (clusters, distance, margin), generated, rows = make_atlas(90)
    for row in rows:
        members = [i for i in range(90) if clusters[i] == row.number - 1]
        central = sorted(members, key=lambda i: distance[i])[:16]
        border = sorted((i for i in members if i not in central), key=lambda i: margin[i])[:16]
        assert numbers_in(tiles, row, "Nearest to its centre") == central
        assert numbers_in(tiles, row, "At its border") == border
        assert torch.equal(row.tiles["Generated"], generated.images[generated.requested_ids == row.number - 1])
        assert (row.size, row.share) == (30, pytest.approx(1 / 3))


def test_one_slide_that_dominates_is_marked():
    """The last third of all tiles are of slide B; cluster 3 is made of them alone, cluster 4 of three of slide A."""
    tiles, _, generated, _ = make_atlas(60, slides=("A", "A", "B"), patients=np.array(["P1"] * 40 + ["P2"] * 24))
    clusters = torch.tensor([i % 2 if i < 40 or i % 4 == 0 else 2 for i in range(60)])
    clusters[1:6:2] = 3
    generated = generated._replace(requested_ids=torch.arange(48) // 12, assigned_ids=torch.arange(48) // 12)
    first, second, third, fourth = atlas.make_rows(tiles, (clusters, torch.zeros(60), torch.zeros(60)), generated)
    assert "From 2 of 2 slides: A 80%, B 20%." in first.facts
    assert "From 1 of 2 slides: B 100%." in third.facts
    assert "From 1 of 2 patients: P2 100%." in third.facts
    marked = [any("dominates" in warning for warning in row.warnings) for row in (first, second, third, fourth)]
    assert marked == [False, True, True, False]
    assert "B has 100% of these tiles, but 33% of all" in " ".join(third.warnings)


def test_a_slide_that_is_the_only_one_dominates_nothing():
    *_, rows = make_atlas(slides=("A",))
    assert not any("dominates" in warning for row in rows for warning in row.warnings)


def test_copies_and_tiles_that_do_not_return_are_marked():
    tiles, standing, generated, rows = make_atlas()
    assert [row.warnings for row in rows] == [["Most generated tiles are sorted into other clusters."], [], []]
    assert "Of 16 generated tiles 6 are sorted into it again." in rows[0].facts
    copied = generated.images.clone()
    copied[20] = tiles.tensor(tiles.train[[5]])[0].flip(-1)
    rows = atlas.make_rows(tiles, standing, generated._replace(images=copied))
    assert rows[1].warnings == ["Generated tiles that repeat a training tile: 1 of 16."]
    scores = atlas.scores(rows, generated)
    assert scores["share_assigned_to_requested_cluster"] == pytest.approx(38 / 48)
    assert scores["clusters_with_warnings"] == 2
    assert scores["details"]["warnings"] == {"cluster 1": rows[0].warnings, "cluster 2": rows[1].warnings}


def test_an_empty_cluster_has_a_row():
    tiles, standing, generated, _ = make_atlas()
    rows = atlas.make_rows(tiles, (torch.ones(60, dtype=torch.int64), *standing[1:]), generated)
    assert rows[0].warnings[0] == "No training tile is in this cluster."
    assert (rows[0].size, rows[0].map, len(rows[0].tiles["At its border"])) == (0, None, 0)


def test_the_map_lights_the_cluster_where_it_lies():
    *_, rows = make_atlas()
    picture, caption = rows[0].map
    assert caption.startswith("A:")
    assert picture.shape[1] == 240
    side = 24  # pixels of a tile: ten of them in a row
    colour = np.ptp(picture.astype(int), axis=2)
    for i in range(30):
        y, x = (i // 10 * side, i % 10 * side)
        lit = colour[y + 2 : y + side - 2, x + 2 : x + side - 2].max() > 20
        assert lit == (i % 3 == 0), i


def test_no_positions_no_map_and_no_slides():
    tiles, standing, generated, _ = make_atlas()
    rows = atlas.make_rows(Tiles(tiles.images, tiles.train, tiles.test, "x"), standing, generated)
    assert [row.map for row in rows] == [None] * 3
    assert not any("slide" in fact for row in rows for fact in row.facts)
    assert 'class="scale"' not in atlas.row_html(rows[0], atlas.pictures(rows)[1])


def test_each_square_has_a_scale_bar_of_its_true_length():
    """48 px of 1 micron each: 20 microns are 20/48 of a tile."""
    *_, rows = make_atlas()
    page = atlas.row_html(rows[0], atlas.pictures(rows)[1])
    assert page.count('<div class="scale" style="--length:0.4167">20 µm</div>') == 3


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes


def test_a_name_is_text_and_the_page_asks_for_nothing(tmp_path):
    *_, rows = make_atlas()
    pages = []
    for names in ({}, {1: HOSTILE}):
        atlas.write_page(rows, names, "tiles <b>of mine</b>", tmp_path / "atlas.html")
        pages.append((tmp_path / "atlas.html").read_text())
    plain, named = map(Elements, pages)
    assert named.tags.count("script") == plain.tags.count("script") == 1
    assert named.tags.count("img") == plain.tags.count("img")
    assert not [name for name, _ in named.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(2)" in pages[1]
    assert {value.partition(",")[0] for name, value in named.attributes if name == "src"} == {"data:image/jpeg;base64"}
    assert all(value.startswith("#") for name, value in named.attributes if name == "href")
    assert not re.search(r"https?:|@import|url\(", re.sub(r"base64,[^\"]*", "", pages[1]))


def test_tiles_of_a_square_stand_row_by_row():
    tiles = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 8, 8) * 40
    square = atlas._square(tiles, 8)
    assert square.shape == (2 * 8 + 2, 4 * 8 + 3 * 2, 3)
    assert square[4::10, 4::10, 0].tolist() == [[0, 40, 80, 120], [160, 200, 255, 255]]
    assert (square[8:10] == 255).all()
    assert atlas._square(tiles[:3], 4).shape == (4, 3 * 4 + 2 * 2, 3)


def test_many_pictures_stay_small(monkeypatch):
    *_, rows = make_atlas()
    whole = atlas.pictures(rows)
    size = sum(len(picture) for pictures in whole.values() for picture in pictures.values())
    assert whole.keys() == {1, 2, 3}
    assert whole[1].keys() == {*rows[0].tiles, "map"}
    monkeypatch.setattr(atlas, "MOST_BYTES", size * 3 // 4)
    smaller = sum(len(picture) for pictures in atlas.pictures(rows).values() for picture in pictures.values())
    assert smaller <= size * 3 // 4
    monkeypatch.setattr(atlas, "MOST_PIXELS", 3 * 48 * 24 * 24)
    assert sum(len(p) for pictures in atlas.pictures(rows).values() for p in pictures.values()) < smaller
