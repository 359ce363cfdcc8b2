"""The picture of a twin, of tiny networks."""

from dataclasses import replace

import numpy as np
import tifffile
from PIL import Image

from experiments import twin
from pfiles.reporting import maps
from tests.tiles.conftest import island, tissue

SIDE = 48


def test_a_region_is_drawn_and_shown_in_four_panels(generator, tmp_path, capsys):
    replace(generator, mpp=1.0).save(tmp_path / "g")
    np.save(tmp_path / "real.npy", np.stack([tissue(SIDE, SIDE, seed) for seed in range(44)]))
    image = island(height=480, width=640, top=96, left=144, tall=240, wide=384)
    tifffile.imwrite(
        tmp_path / "slide.tiff", image, tile=(128, 128), photometric="rgb", resolution=(1e4, 1e4),
        resolutionunit="CENTIMETER", metadata=None,
    )  # fmt: skip
    command = ["--run", str(tmp_path / "g"), "--slide", str(tmp_path / "slide.tiff"), "--out", str(tmp_path / "out")]
    command += ["--real", str(tmp_path / "real.npy"), "--region", "96", "48", "240", "192"]
    assert twin.main(command) == 0
    assert "places the twin's map shows the slide's cluster" in capsys.readouterr().out
    width, height = Image.open(tmp_path / "out" / "twin.jpg").size
    assert width > 3 * height
    written_at = (tmp_path / "out" / "twin.tiff").stat().st_mtime_ns
    assert twin.main(command) == 0  # the picture alone
    assert (tmp_path / "out" / "twin.tiff").stat().st_mtime_ns == written_at
    assert twin.main(["--run", str(tmp_path / "none"), "--out", str(tmp_path / "new")]) == 2


def test_a_map_has_a_pixel_for_each_tile():
    image = twin.coloured(np.array([[0, 0], [96, 48]]), SIDE, np.array([1, 0]))
    assert image.shape == (2, 3, 3)
    assert (image[0, 0] * 255).round().astype(int).tolist() == [int(maps.colour(1)[i : i + 2], 16) for i in (1, 3, 5)]
    assert (image[0, 1:] == 1).all()
    assert (image[1, 2] != 1).any()
