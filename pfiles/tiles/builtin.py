"""Real tissue that ships with the project or its packages, cut into overlapping tiles and split by region."""

from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from pfiles.errors import extra
from pfiles.tiles.pixels import as_tensor
from pfiles.tiles.readers import open_slide, read_rgb
from pfiles.tiles.scale import scale_of
from pfiles.tiles.sources import make_positions

SLIDE = Path(__file__).parent / "embedded" / "CMU-1-Small-Region.svs"
SIDE = 128  # px of level 0
TEST_BANDS = ((992, 1376), (2176, 2560))  # rows; of all pairs of bands these hold tissues most like the others' mix
GAP = 32  # rows between a band and the nearest training tile


def he_tiles(stride: int = 32) -> tuple[Tensor, np.ndarray, np.ndarray, np.recarray]:
    """Tiles of an H&E slide of skin: epidermis, dermis, keratin and the edge to bare glass.

    Tiles of 128 px are cut every `stride` px where at least half of the pixels are coloured (the largest and smallest
    of red, green and blue differ by more than 20 levels). Tiles wholly inside one of two bands of rows are test tiles,
    tiles at least 32 px away from both are training tiles, the others are left out: no test pixel is trained on.
    Returns images (N, 3, 128, 128), training indices, test indices and positions, as `Tiles` holds them.
    """
    with open_slide(SLIDE) as slide:
        image = np.asarray(read_rgb(slide, 0, 0, 0, *slide.level_dimensions[0]))
        mpp = scale_of(slide.properties, SLIDE).mpp
    pixels = as_tensor(image[None])
    coloured = pixels.amax(1) - pixels.amin(1) > 20
    y, x = stride * np.argwhere(F.avg_pool2d(coloured.float(), SIDE, stride)[0].numpy() >= 0.5).T
    in_test = np.any([(y >= top) & (y + SIDE <= bottom) for top, bottom in TEST_BANDS], axis=0)
    in_train = np.all([(y + SIDE <= top - GAP) | (y >= bottom + GAP) for top, bottom in TEST_BANDS], axis=0)
    places = np.concatenate([np.flatnonzero(in_train), np.flatnonzero(in_test)])
    positions = make_positions(
        np.full(len(places), SLIDE.stem), x[places], y[places], np.full(len(places), SIDE), np.full(len(places), mpp)
    )
    images = np.stack([image[y : y + SIDE, x : x + SIDE] for x, y in zip(positions.x, positions.y, strict=True)])
    train, test = np.split(np.arange(len(places)), [in_train.sum()])
    return as_tensor(images), train, test, positions


def ihc_tiles() -> tuple[Tensor, np.ndarray, np.ndarray, None]:
    """128 px crops, every 16 px, of the immunohistochemistry image of scikit-image, which has no scale.

    Test crops come from the 160 columns on the right, training crops from the rest. Returns what `he_tiles` does.
    """
    with extra("slides"):
        from skimage.data import immunohistochemistry

    image, stride, border = immunohistochemistry(), 16, 352
    height, width = image.shape[:2]
    regions = (range(0, border - SIDE + 1, stride), range(border, width - SIDE + 1, stride))
    train, test = (
        [image[top : top + SIDE, left : left + SIDE] for top in range(0, height - SIDE + 1, stride) for left in columns]
        for columns in regions
    )
    places = np.arange(len(train) + len(test))
    return as_tensor(np.stack(train + test)), places[: len(train)], places[len(train) :], None
