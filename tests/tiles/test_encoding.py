"""What a file tells of how its image was kept."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from pfiles.errors import InputError
from pfiles.tiles.encoding import Encoding, as_jpeg, as_resized, read_encoding, told_by_files
from pfiles.tiles.pixels import as_tensor
from tests.conftest import make_tiles


@pytest.mark.parametrize("quality", [1, 30, 49, 50, 75, 90, 95, 100])
def test_the_quality_of_a_jpeg_is_the_one_it_was_saved_with(quality, tmp_path):
    Image.fromarray(make_tiles(1, 32)[0]).save(tmp_path / "a.jpg", quality=quality)
    assert read_encoding(tmp_path / "a.jpg") == Encoding("JPEG", quality, (32, 32), "none", 8)


def test_kind_profile_and_bits(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    tile = Image.fromarray(make_tiles(1, 32)[0])
    tile.save(tmp_path / "a.png", icc_profile=srgb.tobytes())
    assert read_encoding(tmp_path / "a.png") == Encoding("PNG", None, (32, 32), "sRGB built-in", 8)
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(tmp_path / "b.tif")
    assert read_encoding(tmp_path / "b.tif")[::4] == ("TIFF", 16)
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"c\.png cannot be read as an image"):
        read_encoding(tmp_path / "c.png")


def test_what_was_done_is_what_a_file_would_hold(tmp_path):
    tiles = as_tensor(make_tiles(2, 32))
    Image.fromarray(make_tiles(2, 32)[1]).save(tmp_path / "a.jpg", quality=60)
    assert np.array_equal(as_jpeg(tiles, 60)[1].permute(1, 2, 0), np.asarray(Image.open(tmp_path / "a.jpg")))
    flat = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    assert torch.equal(as_resized(flat, 20), flat)


def test_files_are_told_by_what_is_more_frequent_on_either_side():
    assert told_by_files("aab", "bba") == pytest.approx(2 / 3)
    assert told_by_files("ab", "abab") == 0.5
    assert told_by_files("a", "bbb") == 1
