"""An atlas of made tiles, and a name that tries to be code; tiles and copies as the tests of measures have."""

import numpy as np
import pytest
import torch

from pfiles.measuring import shortlist
from pfiles.reporting import atlas
from pfiles.tiles.dataset import Tiles
from tests.conftest import make_tiles
from tests.measuring.conftest import planted, real  # noqa: F401 - fixtures here as well

SIDE = 48
HOSTILE = '<img src=x onerror=alert(1)><script>alert(2)</script>"&'


@pytest.fixture
def without_overlays(monkeypatch):
    """Copies are found by their pixels alone; overlays have tests of their own, and cost a second for each atlas."""
    monkeypatch.setattr(shortlist, "make_library", lambda *_: None)


def make_atlas(n=60, k=3, slides=("A", "B"), patients=None, generated=None):
    """Tiles of which number i is of cluster i % k, lies i % 7 from its centre and i % 5 from its border."""
    images = torch.from_numpy(make_tiles(n + 4, SIDE)).permute(0, 3, 1, 2).contiguous()
    number = np.arange(n + 4)
    slide = np.array(slides)[np.minimum(number * len(slides) // n, len(slides) - 1)]
    positions = np.rec.fromarrays(
        [slide, number % 10 * SIDE, number // 10 * SIDE, np.full(n + 4, SIDE), np.ones(n + 4)],
        names="slide,x,y,side,mpp",
    )
    tiles = Tiles(images, np.arange(n), np.arange(n, n + 4), "test tiles", positions, patients=patients)
    index = torch.arange(n)
    standing = index % k, index.double() % 7, index.double() % 5
    requested = torch.arange(k).repeat_interleave(atlas.SHOWN)
    if generated is None:
        generated = torch.randint(256, (len(requested), 3, SIDE, SIDE), dtype=torch.uint8)
    assigned = requested.clone()
    assigned[:10] = 1  # of the first cluster's sixteen
    generated_tiles = atlas.GeneratedTiles(generated, requested, assigned)
    return tiles, standing, generated_tiles, atlas.make_rows(tiles, standing, generated_tiles)
