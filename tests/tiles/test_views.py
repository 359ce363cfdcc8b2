"""Turned, mirrored and moved tiles."""

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as tvf

from pfiles.tiles import views
from pfiles.tiles.views import affine, random_affine, random_dihedral
from tests.conftest import make_tiles


def test_random_affine_parameters_span_their_ranges(monkeypatch):
    transforms = {}

    def record(images, angle, shift_x, shift_y, zoom, fill):
        transforms.update(angle=angle, x=shift_x, y=shift_y, zoom=zoom)
        return images

    monkeypatch.setattr(views, "affine", record)
    random_affine(torch.zeros(4000, 3, 64, 128, dtype=torch.uint8), torch.Generator().manual_seed(0))
    for name, low, high in (("angle", -np.deg2rad(5), np.deg2rad(5)), ("zoom", 0.95, 1.05), ("x", -6, 6), ("y", -3, 3)):
        spread = 0.02 * (high - low)
        assert low <= transforms[name].min() < low + spread
        assert high - spread < transforms[name].max() <= high
    assert torch.equal(transforms["x"], transforms["x"].round())  # whole pixels


def test_affine_equals_torchvision_on_pil_images():
    tiles = make_tiles(6, 64)
    rng = np.random.default_rng(1)
    angle, zoom = rng.uniform(-5, 5, 6), rng.uniform(0.95, 1.05, 6)
    shift_x, shift_y = rng.integers(-3, 4, (2, 6))
    fill = (130, 97, 154)
    images = torch.tensor(tiles).permute(0, 3, 1, 2)
    ours = affine(
        images, *(torch.tensor(v, dtype=torch.float64) for v in (np.deg2rad(angle), shift_x, shift_y, zoom)), fill
    )
    for i in range(6):
        shift = [int(shift_x[i]), int(shift_y[i])]
        theirs = tvf.affine(Image.fromarray(tiles[i]), angle[i], shift, zoom[i], shear=[0.0, 0.0], fill=list(fill))
        differs = (ours[i].permute(1, 2, 0).numpy() != np.asarray(theirs)).any(axis=2).mean()
        assert differs < 0.002  # a pixel centre on the border between two source pixels may fall to either side


def test_random_affine_draws_for_each_tile_within_its_limits():
    images = torch.tensor(make_tiles(1, 64)).permute(0, 3, 1, 2).expand(200, -1, -1, -1)
    views = random_affine(images, torch.Generator().manual_seed(0), fill=(1, 2, 3))
    assert len({view.numpy().tobytes() for view in views}) > 150
    again = random_affine(images, torch.Generator().manual_seed(0), fill=(1, 2, 3))
    assert torch.equal(views, again)
    same = random_affine(images, torch.Generator(), degrees=0, translate=0, scale=(1, 1))
    assert torch.equal(same, images)


def test_dihedral_views_are_the_eight_ones():
    image = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    views = random_dihedral(image.expand(800, -1, -1, -1), torch.Generator().manual_seed(0))
    different, counts = views.flatten(1).unique(dim=0, return_counts=True)
    expected = {
        tuple(torch.rot90(v, k, (1, 2)).flatten().tolist()) for v in (image[0], image[0].flip(2)) for k in range(4)
    }
    assert {tuple(row) for row in different.tolist()} == expected
    assert counts.min() > 60
