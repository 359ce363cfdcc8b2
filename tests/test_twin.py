"""A slide's twin: laid out as the slide, of none of its pixels and words, and without copies."""

from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch

from pfiles import twin
from pfiles.__main__ import main
from pfiles.drawing.field import make_field
from pfiles.errors import InputError
from pfiles.measuring.memorisation import COPY, nearest_tiles
from pfiles.paths import read_json
from pfiles.spreadsheet import read_table
from pfiles.tiles.dataset import Tiles
from pfiles.tiles.slides import Tiling
from tests.conftest import assert_refused
from tests.tiles.conftest import island, tissue

SIDE = 48
SECRETS = ("Nakamura", "S04-1234", "1999:12:31", "2031-07")


@pytest.fixture
def slide(tmp_path):
    """Tissue of 8 x 5 tiles on glass, whose file says whose it is."""
    image = island(height=480, width=640, top=96, left=144, tall=240, wide=384)
    path = tmp_path / "Nakamura" / "S04-1234.tiff"
    path.parent.mkdir()
    tifffile.imwrite(
        path, image, tile=(128, 128), photometric="rgb", compression="deflate", description="Nakamura 2031-07",
        datetime="1999:12:31 10:00:00", resolution=(1e4, 1e4), resolutionunit="CENTIMETER", metadata=None,
    )  # fmt: skip
    return path


def write_checked(generator, slide, out, train):
    """The twin, where the generator learnt from the tiles `train` (N, 48, 48, 3)."""
    held_out = np.stack([tissue(SIDE, SIDE, seed) for seed in range(30)])
    images = torch.from_numpy(np.concatenate([train, held_out])).permute(0, 3, 1, 2).contiguous()
    real = Tiles(images, np.arange(len(train)), np.arange(len(train), len(images)), "made tiles")

    def field_of(layout):
        return make_field(generator.unet, generator.space, generator.settings, layout, 5)

    tiling = Tiling(1.0, SIDE, min_tissue=0.9)
    return twin.write_twin(replace(generator, mpp=1.0), field_of, slide, out, real, tiling)


def test_a_twin_is_laid_out_as_its_slide_and_says_nothing_of_it(generator, slide, tmp_path, capsys):
    train = np.stack([tissue(SIDE, SIDE, seed) for seed in range(100, 120)])
    out = tmp_path / "out" / "twin.tiff"
    section = write_checked(generator, slide, out, train)
    names = ["twin.json", "twin.layout.geojson", "twin.report.json", "twin.tiff", "twin.tiles.csv"]
    assert sorted(path.name for path in out.parent.iterdir()) == names
    table = read_table(out.parent / "twin.tiles.csv")
    assert 24 <= len(table) <= 40
    assert set(table.slide) == {"twin"}
    image = tifffile.imread(out)
    places = table[["x", "y"]].astype(int).to_numpy()
    assert image.shape == (places[:, 1].max() + SIDE, places[:, 0].max() + SIDE, 3)
    for path in out.parent.iterdir():
        for secret in SECRETS:
            assert secret.encode() not in path.read_bytes(), (path, secret)
    tiles = torch.from_numpy(np.stack([image[y : y + SIDE, x : x + SIDE] for x, y in places])).permute(0, 3, 1, 2)
    real = tifffile.imread(slide)
    squares = torch.from_numpy(
        np.stack([real[y : y + SIDE, x : x + SIDE] for x in range(144, 500, 48) for y in (96, 192)])
    )
    assert nearest_tiles(tiles.contiguous(), squares.permute(0, 3, 1, 2).contiguous()).distance.min() > COPY
    report = read_json(out.parent / "twin.report.json")
    assert report["drawn anew"] == 0
    assert 0 <= report["low"] <= report["agreement"] <= report["high"] <= 1
    assert "no promise of anonymity" in section.notes[-1]


def test_what_repeats_a_training_tile_is_drawn_anew(generator, slide, tmp_path, monkeypatch):
    """A tile of the twin as it is drawn at first is made a training tile: another one takes its place."""
    train = np.stack([tissue(SIDE, SIDE, seed) for seed in range(100, 120)])
    write_checked(generator, slide, tmp_path / "first.tiff", train)
    first = tifffile.imread(tmp_path / "first.tiff")
    place = read_table(tmp_path / "first.tiles.csv")[["x", "y"]].astype(int).to_numpy()[5]
    x, y = place + SIDE // 2 if (place + SIDE // 2 + SIDE <= first.shape[1::-1]).all() else place
    train[3] = first[y : y + SIDE, x : x + SIDE]
    write_checked(generator, slide, tmp_path / "second.tiff", train)
    second = tifffile.imread(tmp_path / "second.tiff")
    assert read_json(tmp_path / "second.report.json")["drawn anew"] > 0
    now = torch.from_numpy(second[None, y : y + SIDE, x : x + SIDE]).permute(0, 3, 1, 2).contiguous()
    copied = torch.from_numpy(train[3:4]).permute(0, 3, 1, 2).contiguous()
    assert nearest_tiles(now, copied).distance[0] > COPY
    monkeypatch.setattr(twin, "ROUNDS", 1)
    with pytest.raises(InputError, match="after they were drawn anew 1 times"):
        write_checked(generator, slide, tmp_path / "third.tiff", train)


def test_twin_command(generator, slide, tmp_path, monkeypatch, capsys):
    generator.save(tmp_path / "g")
    np.save(tmp_path / "real.npy", np.stack([tissue(SIDE, SIDE, seed) for seed in range(100, 144)]))
    out = tmp_path / "out" / "twin.tiff"
    command = ["twin", "--slide", str(slide), "--run", str(tmp_path / "g"), "--out", str(out)]
    assert_refused([*command], capsys, out.parent)
    assert_refused([*command, "--mpp", "1"], capsys, out.parent)
    real = ["--mpp", "1", "--real", str(tmp_path / "real.npy")]
    for wrong in (["--mpp", "0"], ["--stride", "1"], ["--blend", "-1"], ["--out", str(out.with_suffix(".png"))]):
        assert_refused([*command, *real, *wrong], capsys, out.parent)
    out.parent.mkdir()
    for name in ("twin.json", "twin.report.json"):
        (out.parent / name).write_text("mine")
        assert main([*command, *real]) == 2
        assert "was not made by this command" in capsys.readouterr().err
        assert [path.read_text() for path in out.parent.iterdir()] == ["mine"]
        (out.parent / name).unlink()
    copy = twin.shutil.copyfile

    def stop(source, target):
        copy(source, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(twin.shutil, "copyfile", stop)
        assert main([*command, *real]) == 130
    assert not out.exists()
    assert main([*command, *real]) == 0
    assert "places the twin's map shows the slide's cluster" in capsys.readouterr().out
    assert out.exists()
    assert main([*command, *real]) == 2
    assert "is there already" in capsys.readouterr().err
