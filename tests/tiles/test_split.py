"""Training and test tiles: whole slides, about an eleventh, and what is said where that cannot be."""

import shutil
from pathlib import PurePosixPath

import numpy as np
import pytest
from PIL import Image

from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.split import split_by_folder, split_by_slide
from tests.conftest import make_tiles
from tests.tiles.conftest import lay_out, pack, sides


@pytest.mark.parametrize(("n", "n_test"), [(22, 2), (30, 2), (110, 10), (115, 10)])
def test_the_last_eleventh_is_the_test_set(tmp_path, n, n_test):
    np.save(tmp_path / "tiles.npy", make_tiles(n))
    tiles = load_tiles(tmp_path / "tiles.npy", 48)
    assert tiles.test.tolist() == list(range(n - n_test, n))
    assert tiles.train.tolist() == list(range(n - n_test))


def test_split_is_complete(npy):
    tiles = load_tiles(npy, 48)
    np.testing.assert_array_equal(np.sort(np.concatenate([tiles.train, tiles.test])), np.arange(30))


@pytest.mark.parametrize(("packed", "sizes", "n_test"), [
    (False, [4] * 12, 4),  # 48 tiles: the last eleventh would be 4, which is one folder
    (True, [5] * 11 + [2], 7),  # 57 tiles: the last eleventh, 5, would cut through the last folder but one
    (False, [3] * 10 + [6], 6),
    (False, [6] * 8, 4),  # too few folders to be slides
])  # fmt: skip
def test_tiles_of_a_slide_stay_on_one_side(tmp_path, packed, sizes, n_test):
    tiles = iter(make_tiles(sum(sizes)))
    names = [f"slide_{folder:02}/{i}.png" for folder, size in enumerate(sizes) for i in range(size)]
    for name in names:
        (tmp_path / "tiles" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(next(tiles)).save(tmp_path / "tiles" / name)
    data = tmp_path / "tiles"
    if packed:
        data = shutil.make_archive(str(tmp_path / "packed"), "zip", data)
    loaded = load_tiles(data, 48)
    assert len(loaded.test) == n_test
    slides = [name.split("/")[0] for name in names]
    if len(sizes) >= 11:
        assert not {slides[i] for i in loaded.train} & {slides[i] for i in loaded.test}


@pytest.mark.parametrize("packed", [False, True])
def test_slides_are_top_level_folders_however_deep_their_tiles_lie(tmp_path, packed):
    """At every place where the cut may fall: slides have tiles of their own, regions, and regions of regions."""
    for last in range(1, 8):
        below = ["", "a/", "b/", "b/deep/", "c/"]
        names = [f"s{s:02}/{below[i % 5]}{i}.png" for s in range(11) for i in range(last if s == 10 else 5)]
        names.sort(key=lambda name: name.split("/"))
        data = tmp_path / f"{last}.zip"
        images = make_tiles(len(names))
        data = pack(data, names, images) if packed else lay_out(tmp_path / f"{last}", names, images)
        train, test = sides(names, load_tiles(data, 48))
        assert not train & test
        assert len(train | test) == 11


def test_a_folder_around_all_slides_does_not_hide_them():
    names = sorted(f"wrapped/s{s:02}/{region}/{i}.png" for s in range(12) for region in "ab" for i in range(3))
    test, said = split_by_folder([PurePosixPath(name) for name in names])
    assert {name.split("/")[1] for name, is_test in zip(names, test, strict=True) if is_test} == {"s11"}
    assert said == "The test set is the last 1 of 12 folders."


def test_regions_of_few_folders_are_split_with_a_warning():
    names = sorted(f"s{s}/{region}/{i}.png" for s in range(4) for region in "abc" for i in range(3))
    test, said = split_by_folder([PurePosixPath(name) for name in names])
    assert test.tolist() == [False] * 33 + [True] * 3
    assert "They lie in 4 folders" in said
    assert "on both sides" in split_by_folder([PurePosixPath(f"s{i % 4}/{i}.png") for i in range(40)])[1]


def test_a_lopsided_split_is_told_and_mended(tmp_path, capsys):
    """11 slides, of which the last holds 180 of 200 tiles: 9 slides of 2 tiles are the nearest to an eleventh, 18.2."""
    names = [f"s{s:02}/{i:03}.png" for s in range(11) for i in range(180 if s == 10 else 2)]
    tiles = load_tiles(lay_out(tmp_path, names), 48)
    train, test = sides(names, tiles)
    assert (len(tiles.test), train & test) == (18, set())
    assert test == {f"s{s:02}" for s in range(1, 10)}
    assert "hold 180 of 200 tiles" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(20))
def test_the_nearest_whole_slides_agree_with_trying_all(seed):
    rng = np.random.default_rng(seed)
    sizes = np.append(rng.integers(1, 30, 10), 500)
    slides = [f"s{i:02}" for i, size in enumerate(sizes) for _ in range(size)]
    test, _ = split_by_slide(slides, "slides")
    subsets = (np.arange(1, 2**11 - 1)[:, None] >> np.arange(11) & 1) @ sizes
    assert abs(test.sum() - len(slides) / 11) == pytest.approx(np.abs(subsets - len(slides) / 11).min())


def test_a_split_that_cannot_be_mended_is_told():
    test, said = split_by_slide(["a"] * 10 + ["b"] * 90, "slides")
    assert test.sum() == 10
    test, said = split_by_slide(["a"] * 60 + ["b"] * 40, "slides")
    assert test.sum() == 40
    assert "hold 40 of 100 tiles" in said
    assert "no other choice of whole ones comes nearer" in said
