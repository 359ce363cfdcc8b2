"""Tiles that show a part of another one are found, and others are not."""

import numpy as np
import pytest

from pfiles.__main__ import main
from pfiles.tiles import copies
from pfiles.tiles.pixels import as_tensor
from pfiles.tiles.shifted import shifted_copies
from tests.tiles.conftest import as_jpeg, tissue, write_slide


def tissue_of_many_nuclei(side, seed):
    """Tissue without an end, of which no two parts are alike."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), (225, 150, 190), float)
    rows, columns = np.mgrid[:side, :side]
    for row, column in rng.uniform(0, side, (side**2 // 150, 2)):
        box = tuple(slice(max(0, int(middle) - 6), int(middle) + 7) for middle in (row, column))
        inside = np.hypot(rows[box] - row, columns[box] - column) < rng.uniform(2, 5)
        image[box][inside] = rng.uniform((80, 40, 110), (140, 90, 170))
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


SHIFTS = [(0, 7), (11, -16), (-12, 16), (30, 3)]
CHANGES = [
    lambda tile: tile, lambda tile: np.rot90(tile), lambda tile: np.rot90(tile, 2)[:, ::-1],
    lambda tile: as_jpeg(np.ascontiguousarray(tile), 80),
]  # fmt: skip


@pytest.mark.parametrize("side", [64, 128])
def test_parts_are_found_shifted_turned_and_mirrored(side):
    scale = side // 64
    slides = [tissue_of_many_nuclei(3 * side, seed) for seed in range(8)]
    train = [slide[side : 2 * side, side : 2 * side] for slide in slides]
    test = []
    for slide, (down, right), change in zip(slides, SHIFTS, CHANGES, strict=False):
        top, left = side + scale * down, side + scale * right
        test.append(change(slide[top : top + side, left : left + side]))
    test += [slide[:side, :side] for slide in slides[4:]]  # other parts of the same slides
    images = as_tensor(np.stack(train + test))
    pairs = shifted_copies(images, np.arange(8, 16), np.arange(8))
    assert pairs.tolist() == [[8, 0], [9, 1], [10, 2], [11, 3]]


def test_glass_and_small_tiles_say_nothing():
    glass = np.full((20, 64, 64, 3), 240, np.uint8)
    glass += np.random.default_rng(0).integers(0, 3, glass.shape, dtype=np.uint8)
    assert not len(shifted_copies(as_tensor(glass), np.arange(10), np.arange(10, 20)))
    tiles = np.stack([tissue(24, 24)] * 4)
    assert not len(shifted_copies(as_tensor(tiles), np.arange(2), np.arange(2, 4)))


def test_a_warning_says_how_many_tiles_were_searched(tmp_path, capsys, monkeypatch):
    slides = [tissue_of_many_nuclei(80, seed) for seed in range(8)]
    train = [slide[:64, :64] for slide in slides[:4]]
    tiles = np.stack([*train, as_jpeg(train[0]), *(slide[:64, 16:] for slide in (slides[4], slides[5], slides[3]))])
    arguments = as_tensor(tiles), np.arange(4, 8), np.arange(4), str, tmp_path

    def warnings():
        copies.warn_of_near_copies(*arguments)
        return [line.split(": see ")[0] for line in capsys.readouterr().out.splitlines()]

    near = "Warning: 1 of {} test tiles look nearly like training tiles, such as 4 and 0{}"
    part = "Warning: 1 of {} test tiles show a part of training tiles, such as 7 and 3{}"
    assert warnings() == [near.format(4, ""), part.format(4, "")]
    monkeypatch.setattr(copies, "MOST", (3, 4))
    monkeypatch.setattr(copies.shifted, "MOST", (2, 4))
    assert warnings() == [
        near.format(3, " (3 of 4 test tiles and 4 of 4 training tiles searched)"),
        part.format(2, " (2 of 3 test tiles and 4 of 4 training tiles searched)"),
    ]


def test_a_slide_that_was_scanned_twice_is_told_with_a_picture(tmp_path, capsys):
    slide = tissue_of_many_nuclei(512, 0)
    for name, corner in (("a", (64, 64)), ("b", (83, 38))):
        image = np.full((640, 640, 3), 243, np.uint8)
        image[corner[0] : corner[0] + 512, corner[1] : corner[1] + 512] = slide
        write_slide(tmp_path / "slides" / f"{name}.tiff", image, levels=(1,))
    out = tmp_path / "out"
    assert main(["tile", str(tmp_path / "slides"), "--out", str(out), "--size", "64", "--mpp", "0.5"]) == 0
    [warning] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning")]
    assert "test tiles show a part of training tiles, such as b at " in warning
    assert len([*out.glob("near_copies_*.png")]) == 1
