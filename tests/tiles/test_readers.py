"""Slides of every kind behind one interface: colour profiles, 16 bits, transparency, damage and pages."""

import io
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image, ImageCms

from pfiles.__main__ import main
from pfiles.errors import InputError
from pfiles.paths import ROOT
from pfiles.tiles.files import decode
from pfiles.tiles.readers import open_slide, pages_of, profile_name, read_rgb, thumbnail
from pfiles.tiles.sources import read_source
from tests.tiles.conftest import island, tissue, wide_profile, write_slide


@pytest.mark.parametrize("kind", ["png", "tif", "tiled"])
def test_a_colour_profile_is_recorded_and_applied_when_asked(tmp_path, kind):
    image, profile = tissue(200, 300), wide_profile()
    path = tmp_path / f"a.{'png' if kind == 'png' else 'tif'}"
    if kind == "png":
        Image.fromarray(image).save(path, icc_profile=profile)
    else:
        options = {"tile": (128, 128)} if kind == "tiled" else {}
        tifffile.imwrite(path, image, photometric="rgb", iccprofile=profile, metadata=None, **options)
    expected = ImageCms.profileToProfile(
        Image.fromarray(image), ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    )
    with open_slide(path) as slide:
        assert profile_name(slide).startswith("sRGB")
        np.testing.assert_array_equal(read_rgb(slide, 0, 0, 0, 300, 200), image)
    with open_slide(path, to_srgb=True) as slide:
        assert profile_name(slide) is None
        pixels = np.asarray(read_rgb(slide, 0, 0, 0, 300, 200)).astype(int)
    assert np.abs(pixels - np.asarray(expected)).max() <= 1
    assert np.abs(pixels - image).max() > 20


def test_mixed_colour_profiles_are_told(tmp_path, capsys):
    for seed, name in enumerate("ab"):
        image = Image.fromarray(island(300, 300, 20, 20, 250, 250, seed))
        (tmp_path / "slides").mkdir(exist_ok=True)
        image.save(tmp_path / "slides" / f"{name}.png", **({"icc_profile": wide_profile()} if seed else {}))
    command = [
        "tile",
        str(tmp_path / "slides"),
        "--out",
        str(tmp_path / "out"),
        "--mpp-of-slide",
        "0.5",
        "--mpp",
        "0.5",
    ]
    assert main([*command, "--size", "64"]) == 0
    printed = capsys.readouterr().out
    assert "The slides differ in their colour profiles" in printed
    assert "none (1)" in printed
    profiles = read_source(tmp_path / "out").profiles
    assert profiles.keys() == {"none", "sRGB built-in"}
    assert sum(profiles.values()) == len(pd.read_csv(tmp_path / "out" / "tiles.csv"))
    assert main([*command, "--size", "64", "--icc"]) == 0
    assert "colour profiles" not in capsys.readouterr().out


@pytest.mark.parametrize("tiled", [True, False])
def test_sixteen_bits_are_scaled_by_the_tag_or_refused(tmp_path, tiled):
    image = tissue(200, 300)
    options = {"photometric": "rgb", "metadata": None, **({"tile": (128, 128)} if tiled else {})}
    tag = [(281, "H", 3, (4095, 4095, 4095), True)]
    tifffile.imwrite(tmp_path / "a.tif", image.astype(np.uint16) * 16, extratags=tag, **options)
    with open_slide(tmp_path / "a.tif") as slide:
        pixels = np.asarray(read_rgb(slide, 0, 0, 0, 300, 200)).astype(int)
    assert np.abs(pixels - image.astype(int) * 16 * 255 / 4095).max() <= 0.5
    tifffile.imwrite(tmp_path / "b.tif", image.astype(np.uint16) * 16, **options)
    with pytest.raises(InputError, match=r"b\.tif has 16 bits per channel and does not say"):
        open_slide(tmp_path / "b.tif").__enter__()


def test_transparent_pixels_of_a_slide_are_white_before_they_are_averaged(tmp_path):
    image = tissue(64, 64)
    alpha = np.zeros((64, 64, 1), np.uint8)
    alpha[:33] = 255
    Image.fromarray(np.dstack([image, alpha])).save(tmp_path / "a.png")
    whole = Image.fromarray(np.where(alpha == 255, image, 255).astype(np.uint8))
    with open_slide(tmp_path / "a.png") as slide:
        np.testing.assert_array_equal(read_rgb(slide, 0, 0, 0, 64, 64, 2), whole.reduce(2))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("tagged", [True, False])
def test_a_fourth_channel_that_is_no_alpha_changes_no_colour(tmp_path, bits, tiled, tagged):
    """Infrared, or a mask: where a TIFF does not call it alpha, or tells of it at all, it says nothing of glass."""
    image = tissue(200, 300)
    samples = np.dstack([image, np.full((200, 300), 7, np.uint8)])
    options = {"photometric": "rgb", "extrasamples": ["unspecified"], "metadata": None}
    if bits == 16:
        samples = samples * np.uint16(257)
        options["extratags"] = [(281, "H", 4, (65535,) * 4, True)]
    options |= {"tile": (128, 128)} if tiled else {}
    tifffile.imwrite(tmp_path / "a.tif", samples, **options)
    tifffile.imwrite(tmp_path / "a.ome.tif", samples, **options | {"metadata": {"axes": "YXS"}})
    for name in ("a.tif", "a.ome.tif"):
        if not tagged:
            _rename_tag(tmp_path / name, 338, 65000)
        with open_slide(tmp_path / name) as slide:
            np.testing.assert_array_equal(read_rgb(slide, 0, 0, 0, 300, 200), image)
    content = (tmp_path / "a.tif").read_bytes()
    np.testing.assert_array_equal(decode("a.tif", content).image.permute(1, 2, 0), image)


def _rename_tag(path, code, other):
    """A tag of the first page under another number, which hides it."""
    with tifffile.TiffFile(path) as file:
        offset, order = file.pages.first.tags[code].offset, file.byteorder
    content = bytearray(path.read_bytes())
    content[offset : offset + 2] = other.to_bytes(2, "little" if order == "<" else "big")
    path.write_bytes(content)


def _spoil_first_strip(path):
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages.first.dataoffsets[0], file.pages.first.databytecounts[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + count] = b"\xff" * count
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["a.ome.tif", "a.tif"])
def test_a_compression_whose_package_is_missing_is_no_damage(tmp_path, name, capsys):
    """The slide is not left out for it, by a verdict that would stay; a tile in a folder names the package too."""
    image = island(512, 512, 64, 64, 256, 320).astype(np.uint16) * 257
    tag = [(281, "H", 3, (65535,) * 3, True)]
    options = {"photometric": "rgb", "compression": "lzw", "extratags": tag}
    (tmp_path / "slides").mkdir()
    tifffile.imwrite(tmp_path / "slides" / name, image, **options, metadata={"axes": "YXS"} if "ome" in name else None)
    (tmp_path / "tiles").mkdir()
    tifffile.imwrite(tmp_path / "tiles" / "0.tif", image[:64, :64], **options, metadata=None)
    tile = ["tile", "slides", "--mpp", "0.5", "--mpp-of-slide", "0.5", "--size", "64", "--out", "out"]
    check = ["check", "--fast", "--preset", "demo", "--data", "tiles", "--clusters", "4", "--out", "out"]
    without = (
        "import sys; sys.modules['imagecodecs'] = None; from pfiles.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    for command, status in ((tile, 2), (check, 1)):
        ran = subprocess.run(
            [sys.executable, "-c", without, *command], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == status, ran.stdout + ran.stderr
        assert "The package imagecodecs is not installed here" in ran.stdout + ran.stderr
        assert "damaged" not in ran.stdout + ran.stderr
    command = [str(tmp_path / word) if word in ("slides", "out") else word for word in tile]
    assert main(command) == 0
    _spoil_first_strip(tmp_path / "slides" / name)
    assert main(command) == 2
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["ome 8", "ome 16", "tiff 16"])
def test_colours_that_are_multiplied_by_alpha_are_divided_by_it(tmp_path, kind):
    """A half transparent pixel of (100, 50, 150), stored as (50, 25, 75), is (178, 153, 203) on white glass."""
    path, options = tmp_path / ("a.ome.tif" if "ome" in kind else "a.tif"), {}
    samples = np.full((64, 64, 4), (50, 25, 75, 128), np.uint8)
    if "16" in kind:
        samples = samples * np.uint16(257)
        options["extratags"] = [(281, "H", 4, (65535,) * 4, True)]
    metadata = {"axes": "YXS"} if "ome" in kind else None
    tifffile.imwrite(path, samples, photometric="rgb", extrasamples=["assocalpha"], metadata=metadata, **options)
    with open_slide(path) as slide:
        pixels = np.asarray(read_rgb(slide, 0, 0, 0, 64, 64)).astype(int)
    assert np.abs(pixels - (178, 153, 203)).max() <= 1
    tile = decode(path.name, path.read_bytes()).image.permute(1, 2, 0).numpy().astype(int)
    assert np.abs(tile - (178, 153, 203)).max() <= 1


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("kind", ["tiles", "strips", "jpeg tiles", "16 bits"])
def test_rows_are_those_of_the_file_whatever_its_orientation(tmp_path, tag, kind):
    """Pillow turns such an image, and OpenSlide each of its tiles."""
    image, options = tissue(200, 300), {"tiles": {"tile": (128, 128)}, "jpeg tiles": {"tile": (128, 128)}}
    tags, wide = [(274, "H", 1, tag, True)], kind == "16 bits"
    tifffile.imwrite(
        tmp_path / "a.tif", image * np.uint16(257) if wide else image, photometric="rgb", metadata=None,
        compression="jpeg" if kind == "jpeg tiles" else None,
        extratags=[*tags, (281, "H", 3, (65535,) * 3, True)] if wide else tags, **options.get(kind, {}),
    )  # fmt: skip
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.level_dimensions[0] == (300, 200)
        pixels = np.asarray(read_rgb(slide, 0, 0, 0, 300, 200)).astype(int)
    assert np.abs(pixels - image).mean() < (4 if kind == "jpeg tiles" else 1e-9)
    if kind != "jpeg tiles":
        tile = decode("a.tif", (tmp_path / "a.tif").read_bytes()).image.permute(1, 2, 0)
        np.testing.assert_array_equal(tile, image)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_turn_by_exif_is_ignored_too(tmp_path, name):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(tissue(200, 300)).save(tmp_path / name, exif=exif, quality=95)
    image = np.asarray(Image.open(tmp_path / name).convert("RGB"))
    assert Image.open(tmp_path / name).getexif()[274] == 6
    with open_slide(tmp_path / name) as slide:
        np.testing.assert_array_equal(read_rgb(slide, 0, 0, 0, 300, 200), image)
    np.testing.assert_array_equal(decode(name, (tmp_path / name).read_bytes()).image.permute(1, 2, 0), image)


def test_four_channels_that_are_no_colours_are_refused(tmp_path):
    """As of fluorescence, which would be read as red, green, blue and alpha."""
    channels = np.moveaxis(np.dstack([tissue(200, 300), np.full((200, 300), 255, np.uint8)]), -1, 0)
    tifffile.imwrite(tmp_path / "a.ome.tif", channels, photometric="minisblack", metadata={"axes": "CYX"})
    wide, tag = channels * np.uint16(257), [(281, "H", 4, (65535,) * 4, True)]
    tifffile.imwrite(
        tmp_path / "b.tif", wide, photometric="minisblack", planarconfig="separate", metadata=None, extratags=tag
    )
    for name in ("a.ome.tif", "b.tif"):
        with pytest.raises(InputError, match="has 4 channels, but slides must be RGB"):
            open_slide(tmp_path / name).__enter__()


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "F"])
def test_other_colours_are_refused(tmp_path, mode):
    Image.fromarray(tissue(64, 64)).convert(mode).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=rf"a\.tif has the colour mode {mode}, but slides must be RGB|has one channel"):
        open_slide(tmp_path / "a.tif").__enter__()


def test_tiled_images_of_other_colours_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", tissue(64, 64), photometric="cielab", tile=(64, 64), metadata=None)
    with pytest.raises(InputError, match="has the colour mode LAB, but slides must be RGB"):
        open_slide(tmp_path / "a.tif").__enter__()


def test_a_page_is_the_image_of_its_number(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for seed in range(3):
            file.write(tissue(200, 300, seed), tile=(128, 128), photometric="rgb", metadata=None)
    for page in (1, 2, 3):
        with open_slide(tmp_path / "a.tif", page) as slide:
            np.testing.assert_array_equal(read_rgb(slide, 0, 0, 0, 300, 200), tissue(200, 300, page - 1))
    with pytest.raises(InputError, match="has 3 pages, but page 4 is asked for"):
        open_slide(tmp_path / "a.tif", 4).__enter__()


def test_the_levels_of_another_page_are_none_of_the_first(tmp_path):
    """Two pyramids in a file: at half the scale each page shows itself. Levels may say that they are some, or not."""
    for name, flag in (("a.tif", 1), ("b.tif", 0)):
        with tifffile.TiffWriter(tmp_path / name) as file:
            for seed in range(2):
                options = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
                file.write(tissue(300, 400, seed), **options)
                file.write(tissue(300, 400, seed)[::2, ::2], subfiletype=flag, **options)
        assert pages_of(tmp_path / name) == 2
        for page in (1, 2):
            with open_slide(tmp_path / name, page) as slide:
                pixels = thumbnail(slide, 2, (0, 0, 400, 300)).astype(int)
            expected = np.asarray(Image.fromarray(tissue(300, 400, page - 1)).reduce(2)).astype(int)
            assert np.abs(pixels - expected).mean() < 12
            assert np.abs(pixels - np.asarray(Image.fromarray(tissue(300, 400, 2 - page)).reduce(2))).mean() > 20


def test_a_grey_pyramid_is_refused_as_other_grey_images_are(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", tissue(200, 300)[..., 1], tile=(64, 64), metadata=None)
    with pytest.raises(InputError, match="has the colour mode L, but slides must be RGB"):
        open_slide(tmp_path / "a.tif").__enter__()


def test_a_tile_that_is_missing_is_glass_or_one_sentence(tmp_path, capsys):
    path = write_slide(tmp_path / "slides" / "a.tiff", island(512, 512, 64, 64, 300, 300), levels=(1,))
    write_slide(tmp_path / "slides" / "b.tiff", island(512, 512, 64, 64, 300, 300, 1), levels=(1,))
    with tifffile.TiffFile(path, mode="r+b") as file:
        counts = list(file.pages[0].databytecounts)
        file.pages[0].tags["TileByteCounts"].overwrite([*counts[:5], 0, *counts[6:]])
    command = ["tile", str(tmp_path / "slides"), "--out", str(tmp_path / "out"), "--size", "64", "--mpp", "0.5"]
    status = main(command)
    printed = capsys.readouterr().out
    with open_slide(path) as slide:
        if status == 0:
            assert (np.asarray(read_rgb(slide, 128, 128, 0, 128, 128)) == 255).all()
        else:
            assert status == 3
            assert "a.tiff cannot be read as a slide" in printed
    tiles = np.load(tmp_path / "out" / "tiles.npy")
    assert (tmp_path / "out" / "tiles.csv").read_text().count("\n") == len(tiles) + 1


def test_the_users_scales_come_from_a_table(tmp_path, capsys):
    """Three images of one piece of tissue at 0.25, 0.5 and 1 um/px, with a decimal comma."""
    image = Image.fromarray(island(1024, 1024, 64, 64, 900, 900))
    (tmp_path / "slides").mkdir()
    for name, factor in (("a", 1), ("b", 2), ("c", 4)):
        image.reduce(factor).save(tmp_path / "slides" / f"{name}.png")
    (tmp_path / "t.csv").write_text("slide;mpp\na;0,25\nb.png;0,5\nc;1\n")
    command = ["tile", str(tmp_path / "slides"), "--out", str(tmp_path / "out"), "--size", "64", "--mpp", "1"]
    assert main([*command, "--slides-csv", str(tmp_path / "t.csv"), "--mpp-of-slide", "3"]) == 0
    rows = [line.split(",") for line in (tmp_path / "out" / "tiles.csv").read_text().splitlines()[1:]]
    assert {(row[0], row[3]) for row in rows} == {("a", "256"), ("b", "128"), ("c", "64")}
    places = {name: [[int(row[i]) // int(row[3]) for i in (1, 2)] for row in rows if row[0] == name] for name in "abc"}
    assert places["a"] == places["b"] == places["c"]
    (tmp_path / "t.csv").write_text("slide,mpp\na,fine\n")
    assert main([*command, "--slides-csv", str(tmp_path / "t.csv")]) == 2
    assert "gives a the mpp 'fine'" in capsys.readouterr().err
