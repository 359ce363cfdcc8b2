"""Image files: decoded or refused by name, and folders of them that pair."""

import io
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from pytorch_msssim import ms_ssim

from pfiles.errors import InputError
from pfiles.measuring import pairs
from pfiles.provenance import Provenance
from pfiles.settings import Settings
from pfiles.tiles import files, pixels, sources
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.files import decode
from pfiles.tiles.pixels import as_array
from pfiles.tiles.sources import read_source
from tests.conftest import make_tiles, write
from tests.tiles.conftest import wide_profile


def test_folders_pair_by_number(tmp_path):
    tiles = make_tiles(12, 16)
    numbers = [1, 2, 3, 10, 11, 100, 20, 30, 4, 5, 6, 7]
    write(tmp_path / "org", numbers, tiles)
    write(tmp_path / "gen", numbers, tiles, "jpg")  # published files are JPEG
    names, real, generated = files.load_pairs(tmp_path / "org", tmp_path / "gen")
    assert [int(name) for name in names] == sorted(numbers)
    np.testing.assert_array_equal(pixels.as_array(real), tiles[np.argsort(numbers)])
    assert (real.int() - generated).abs().float().mean() < 30


def test_generated_images_of_another_size_are_resized(tmp_path, capsys):
    write(tmp_path / "org", range(3), make_tiles(3, 16))
    write(tmp_path / "gen", range(3), make_tiles(3, 32))
    _, real, generated = files.load_pairs(tmp_path / "org", tmp_path / "gen")
    assert generated.shape == real.shape
    assert "32 px are resized to the originals' 16 px" in capsys.readouterr().out


def test_the_published_folders_work_as_they_are(tmp_path):
    """231 px JPEG in `org` and `gen_14`: paired by name, scored at their own size, nothing resized."""
    for seed, folder in enumerate(("org", "gen_14")):
        images = pixels.resize(pixels.as_tensor(make_tiles(6, 128, seed)), 231)
        write(tmp_path / folder, [1, 2, 10, 3, 11, 4], pixels.as_array(images), "jpg")
    names, real, generated = files.load_pairs(tmp_path / "org", tmp_path / "gen_14")
    assert names == ["1", "2", "3", "4", "10", "11"]
    assert real.shape == generated.shape == (6, 3, 231, 231)
    assert "their own 231 px" in pairs.ms_ssim_rule(231)
    expected = ms_ssim(real.float(), generated.float(), data_range=255, size_average=False)
    np.testing.assert_allclose(pairs.ms_ssim(real, generated), expected, atol=1e-4)


def test_an_unreadable_image_is_named(tmp_path):
    for folder in ("org", "gen"):
        write(tmp_path / folder, range(3), make_tiles(3, 16))
    (tmp_path / "gen" / "1.png").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"1\.png cannot be read as an image"):
        files.load_pairs(tmp_path / "org", tmp_path / "gen")
    Image.fromarray(make_tiles(1, 16)[0][..., 0]).save(tmp_path / "gen" / "1.png")
    with pytest.raises(InputError, match=r"1\.png has the colour mode L"):
        files.load_pairs(tmp_path / "org", tmp_path / "gen")


def test_folders_that_do_not_pair(tmp_path):
    write(tmp_path / "org", [1, 2, 3, 4, 5], make_tiles(5, 16))
    write(tmp_path / "gen", [1, 7], make_tiles(2, 16))
    with pytest.raises(InputError, match=r"of 5 in .* 2, 3, 4 \(and 1 more\) are there alone, and of 2 .* 7 is there"):
        files.load_pairs(tmp_path / "org", tmp_path / "gen")
    with pytest.raises(InputError, match=r"7 is there alone, and of 5 .* 2, 3, 4 \(and 1 more\) are"):
        files.load_pairs(tmp_path / "gen", tmp_path / "org")
    Image.fromarray(make_tiles(1, 16)[0]).save(tmp_path / "gen" / "1.jpg")
    with pytest.raises(InputError, match=r"holds both 1\.(jpg|png) and 1\.(jpg|png)"):
        files.load_pairs(tmp_path / "org", tmp_path / "gen")
    with pytest.raises(InputError, match="no images in"):
        files.load_pairs(tmp_path / "org", tmp_path / "nothing")


def png_16_bit(image):
    """RGB (H, W, 3) uint16 as PNG, which Pillow cannot write."""
    height, width = image.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*chunks, (b"IEND", b"")]
    )


def test_16_bit_images_are_refused():
    twelve_bit = make_tiles(1)[0].astype(np.uint16) * 16
    tiffs = {"a.tif": (twelve_bit, 1), "planes.tif": (np.moveaxis(twelve_bit, -1, 0), 2)}
    images = {"a.png": png_16_bit(twelve_bit)}
    for name, (image, planes) in tiffs.items():
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, image, photometric="rgb", planarconfig=planes)
        images[name] = buffer.getvalue()
    for name, content in images.items():
        with pytest.raises(InputError, match=f"{name}.*(16 bits per channel|cannot be read)"):
            decode(name, content)
    with pytest.raises(InputError, match="12 bits"):
        decode("a.png", png_16_bit(twelve_bit))


def test_16_bits_are_scaled_where_a_tiff_says_their_range():
    tile = make_tiles(1)[0]
    twelve_bit = tile.astype(np.uint16) * 16
    for planes, image in ((1, twelve_bit), (2, np.moveaxis(twelve_bit, -1, 0))):
        buffer = io.BytesIO()
        tag = [(281, "H", 3, (4095, 4095, 4095), True)]
        tifffile.imwrite(buffer, image, photometric="rgb", planarconfig=planes, extratags=tag)
        levels = decode("a.tif", buffer.getvalue()).image.permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(levels, np.rint(twelve_bit * (255 / 4095)).astype(np.uint8))


def test_pages_and_profile_of_16_bits_are_known():
    buffer, tile = io.BytesIO(), make_tiles(1)[0].astype(np.uint16) * 16
    options = {"photometric": "rgb", "metadata": None, "extratags": [(281, "H", 3, (4095,) * 3, True)]}
    tifffile.imwrite(buffer, np.stack([tile, tile]), iccprofile=wide_profile(), **options)
    decoded = decode("a.tif", buffer.getvalue())
    assert (decoded.pages, decoded.profile) == (2, wide_profile())


def test_16_bits_with_a_range_by_ome_and_with_an_alpha_channel():
    tile = make_tiles(1)[0]
    twelve_bit = tile.astype(np.uint16) * 16
    expected = np.rint(twelve_bit * (255 / 4095)).astype(np.uint8)
    buffer = io.BytesIO()
    about = {"axes": "YXS", "SignificantBits": 12}
    tifffile.imwrite(buffer, twelve_bit, ome=True, photometric="rgb", metadata=about)
    np.testing.assert_array_equal(decode("a.tif", buffer.getvalue()).image.permute(1, 2, 0), expected)
    alpha = np.zeros((48, 48, 1), np.uint16)
    alpha[:16] = 4095
    buffer = io.BytesIO()
    options = {"extrasamples": ["unassalpha"], "extratags": [(281, "H", 4, (4095,) * 4, True)], "metadata": None}
    tifffile.imwrite(buffer, np.dstack([twelve_bit, alpha]), photometric="rgb", **options)
    levels = decode("a.tif", buffer.getvalue()).image.permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(levels[:16], expected[:16])
    assert (levels[16:] == 255).all()
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, (tile / 255).astype(np.float32), photometric="rgb")
    with pytest.raises(InputError, match="it holds float32, where 8 or 16 bits per channel are read"):
        decode("a.tif", buffer.getvalue())
    with pytest.raises(InputError, match=r"a\.png cannot be read as an image .it is no PNG, JPEG or TIFF, or damaged"):
        decode("a.png", b"RIFF")
    with pytest.raises(InputError, match=r"a\.tif cannot be read as an image .it holds no image"):
        decode("a.tif", b"II*\0" + bytes(4))


def test_mixed_colour_profiles_of_tiles_are_told(tmp_path, capsys):
    profiles = [bytearray(wide_profile()), bytearray(wide_profile())]
    profiles[1][35] ^= 1  # the second of its date, in the profile's head
    for i, tile in enumerate(make_tiles(30)):
        options = {"icc_profile": bytes(profiles[i % 2])} if i % 3 else {}
        Image.fromarray(tile).save(tmp_path / f"{i:02}.png", **options)
    tiles = load_tiles(tmp_path, 48)
    assert tiles.profiles == {"none": 10, "sRGB built-in": 20}
    noted = Provenance.of(Settings(), (), tiles, 1)
    assert noted.data["profiles"] == [["none", 10], ["sRGB built-in", 20]]
    printed = capsys.readouterr().out
    assert "differ in their colour profiles, and their colours with them: none (10), sRGB built-in (20)." in printed
    assert "the setting icc changes that" in printed


@pytest.mark.parametrize("kind", ["png", "transparent", "16 bits", "zip"])
def test_tiles_are_brought_to_srgb_when_asked(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(sources, "SETTLED_SECONDS", -1)
    profile, tiles = wide_profile(), make_tiles(30)
    alpha = np.full((48, 48), 255, np.uint8)
    alpha[:9] = 0
    (tmp_path / "tiles").mkdir()
    for i, tile in enumerate(tiles):
        path = tmp_path / "tiles" / f"{i:02}.{'tif' if kind == '16 bits' else 'png'}"
        if kind == "16 bits":
            tag = [(281, "H", 3, (65535,) * 3, True)]
            tifffile.imwrite(path, tile * np.uint16(257), photometric="rgb", iccprofile=profile, extratags=tag)
        else:
            image = Image.fromarray(np.dstack([tile, alpha]) if kind == "transparent" else tile)
            image.save(path, icc_profile=profile)
    data = tmp_path / "tiles"
    if kind == "zip":
        data = Path(shutil.make_archive(str(tmp_path / "tiles"), "zip", data))
    to_srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    expected = np.stack([np.asarray(ImageCms.profileToProfile(Image.fromarray(tile), *to_srgb)) for tile in tiles])
    as_they_are, brought = (as_array(load_tiles(data, 48, icc=icc).images).astype(int) for icc in (False, True))
    if kind == "transparent":
        assert (as_they_are[:, :9] == 255).all()
        assert (brought[:, :9] == 255).all()
    assert np.abs(as_they_are - tiles)[:, 9:].max() == 0
    assert np.abs(brought - expected)[:, 9:].max() <= 1
    assert np.abs(brought - tiles)[:, 9:].max() > 20
    assert read_source(data).state != read_source(data, icc=True).state


def test_a_damaged_profile_is_refused_where_it_is_applied(tmp_path):
    Image.fromarray(make_tiles(1)[0]).save(tmp_path / "a.png", icc_profile=b"no profile")
    content = (tmp_path / "a.png").read_bytes()
    assert decode("a.png", content).profile == b"no profile"
    with pytest.raises(InputError, match=r"a\.png cannot be read as an image"):
        decode("a.png", content, icc=True)


def test_transparent_pixels_are_glass():
    """An alpha channel, a transparent colour, and a palette with one; half transparent is half white."""
    tile = make_tiles(1)[0]
    alpha = np.zeros((48, 48), np.uint8)
    alpha[:16], alpha[16:24] = 255, 128
    expected = np.rint(tile * (alpha[..., None] / 255) + 255 - alpha[..., None]).astype(int)
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([tile, alpha])).save(buffer, "PNG")
    levels = decode("a.png", buffer.getvalue()).image.permute(1, 2, 0).numpy()
    assert np.abs(levels - expected).max() <= 1
    keyed = tile.copy()
    keyed[:9] = 1, 2, 3
    colours = Image.fromarray(keyed)
    palette = colours.quantize(256)
    for image, key in ((colours, (1, 2, 3)), (palette, palette.getpixel((0, 0)))):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", transparency=key)
        levels = decode("a.png", buffer.getvalue()).image.permute(1, 2, 0).numpy()
        assert (levels[:9] == 255).all()
        assert (levels[9:] != 255).any()


def test_pages_and_types_that_are_not_read_are_counted_and_named(tmp_path, capsys):
    for i, tile in enumerate(make_tiles(30)):
        tifffile.imwrite(tmp_path / f"{i:02}.tif", np.stack([tile, 255 - tile]), photometric="rgb")
    for name in ("a.bmp", "b.webp", "c.WEBP", "notes.txt", ".d.bmp"):
        (tmp_path / name).write_bytes(b"x")
    np.testing.assert_array_equal(pixels.as_array(load_tiles(tmp_path, 48).images), make_tiles(30))
    printed = capsys.readouterr().out
    assert "1 of .bmp and 2 of .webp are not read: convert them." in printed
    assert f"30 of 30 files hold several pages, of which the first is read, such as {tmp_path / '00.tif'}" in printed


def test_alpha_and_palette_stay_allowed():
    tile = make_tiles(1)[0]
    buffer = io.BytesIO()
    Image.fromarray(tile).convert("P", palette=Image.Palette.ADAPTIVE).save(buffer, "PNG")
    assert decode("a.png", buffer.getvalue()).image.shape == (3, 48, 48)
