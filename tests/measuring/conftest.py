"""Shared by the tests of measures."""

import numpy as np
import pytest

from pfiles.tiles import pixels
from tests.conftest import make_tiles


@pytest.fixture
def two_sets():
    rng = np.random.default_rng(0)
    a = make_tiles(6, 64)
    b = np.clip(a + rng.normal(0, 30, a.shape), 0, 255).astype(np.uint8)
    return pixels.as_tensor(a), pixels.as_tensor(b)
