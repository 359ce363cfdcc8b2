"""OME-TIFF and OME-Zarr: every level as the package that wrote it reads it, several series, focal planes, 16 bits."""

import numpy as np
import pytest
import tifffile
import zarr

from pfiles.errors import InputError
from pfiles.tiles.readers import open_slide, pages_of
from pfiles.tiles.scale import scale_of
from pfiles.tiles.slides import Tiling
from pfiles.tiles.tiler import tile_slides
from tests.tiles.conftest import island, tissue, wide_profile

MICRONS = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}


def write_ome(path, images, compression="deflate", **about):
    """A series for each name of `images`, each with levels of a half and a quarter, as Bio-Formats and QuPath write."""
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as file:
        for name, image in images.items():
            options = {"tile": (128, 128), "photometric": "rgb", "compression": compression}
            file.write(image, subifds=2, metadata={"axes": "YXS", "Name": name, **MICRONS, **about}, **options)
            for step in (2, 4):
                file.write(image[::step, ::step], subfiletype=1, **options)
    return path


def write_zarr(path, series, axes="cyx", version=2, unit="micrometer", **about):
    root = zarr.open_group(path, mode="w", zarr_format=version)
    for name, image in series.items():
        group = root.create_group(name) if name else root
        sizes = {"c": 3, "y": image.shape[0], "x": image.shape[1]}
        image = np.moveaxis(image, -1, 0).reshape([sizes.get(axis, 1) for axis in axes])
        steps = {"0": 1, "1": 2}
        for dataset, step in steps.items():
            level = np.ascontiguousarray(image[..., ::step, ::step])
            group.create_array(dataset, data=level, chunks=(1,) * (len(axes) - 2) + (100, 100))
        kinds = {"c": "channel", "t": "time"}
        described = [
            {"name": axis, "type": kinds.get(axis, "space")} | ({"unit": unit} if axis in "yx" else {}) for axis in axes
        ]
        scale = lambda step: [*[1.0] * (len(axes) - 2), 0.5 * step, 0.5 * step]  # noqa: E731
        datasets = [
            {"path": dataset, "coordinateTransformations": [{"type": "scale", "scale": scale(step)}]}
            for dataset, step in steps.items()
        ]
        ome = {"multiscales": [{"name": name, "axes": described, "datasets": datasets}], **about}
        group.attrs.update({"ome": ome} if version == 3 else ome)
    return path


@pytest.mark.parametrize("compression", ["deflate", "jpeg", "lzw"])
def test_every_level_of_an_ome_tiff(tmp_path, compression):
    path = write_ome(tmp_path / "a.ome.tiff", {"main": tissue(600, 700)}, compression)
    with open_slide(path) as slide, tifffile.TiffFile(path) as file:
        assert slide.level_dimensions == ((700, 600), (350, 300), (175, 150))
        assert slide.level_downsamples == (1, 2, 4)
        assert scale_of(slide.properties, path).mpp == 0.5
        for level in range(3):
            expected = file.series[0].levels[level].asarray()
            region = slide.read_region((120 * 2**level, 80 * 2**level), level, (50, 60))
            np.testing.assert_array_equal(region, expected[80:140, 120:170])
        beyond = np.asarray(slide.read_region((680, -10), 0, (40, 30)))
    assert (beyond[:10] == 255).all()
    assert (beyond[:, 20:] == 255).all()
    assert (beyond[10:, :20] != 255).any()


def test_series_are_pages_and_companions_are_none(tmp_path):
    images = {"label image": tissue(99, 99), "first": tissue(300, 400), "macro image": tissue(80, 99)}
    path = write_ome(tmp_path / "a.ome.tif", {**images, "second": tissue(200, 260, 1)})
    assert pages_of(path) == 2
    for page, size in ((1, (400, 300)), (2, (260, 200))):
        with open_slide(path, page) as slide:
            assert slide.level_dimensions[0] == size
    with pytest.raises(InputError, match="has 2 pages, but page 3 is asked for"), open_slide(path, 3):
        pass


def test_focal_planes_and_planes_of_colours(tmp_path):
    planes = np.stack([np.moveaxis(tissue(150, 200, seed), -1, 0) for seed in range(2)])
    tifffile.imwrite(tmp_path / "a.ome.tif", planes, ome=True, photometric="minisblack", metadata={"axes": "ZCYX"})
    assert pages_of(tmp_path / "a.ome.tif") == 2
    with open_slide(tmp_path / "a.ome.tif", 2) as slide:
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (200, 150)), tissue(150, 200, 1))


def test_sixteen_bits_are_scaled_by_what_the_file_says(tmp_path):
    image = tissue(300, 200)
    path = write_ome(tmp_path / "a.ome.tif", {"main": image.astype(np.uint16) * 16}, SignificantBits=12)
    with open_slide(path) as slide:
        levels = np.asarray(slide.read_region((0, 0), 0, (200, 300))).astype(int)
    assert np.abs(levels - image.astype(int) * 16 * 255 / 4095).max() <= 0.5
    path = write_ome(tmp_path / "b.ome.tif", {"main": image.astype(np.uint16) * 16})
    with pytest.raises(InputError, match=r"b\.ome\.tif has 16 bits per channel and does not say"), open_slide(path):
        pass


def test_a_tile_that_is_missing_is_glass(tmp_path):
    path = write_ome(tmp_path / "a.ome.tif", {"main": tissue(300, 300)})
    with tifffile.TiffFile(path, mode="r+b") as file:
        counts = list(file.pages[0].databytecounts)
        file.pages[0].tags["TileByteCounts"].overwrite([0, *counts[1:]])
    with open_slide(path) as slide:
        region = np.asarray(slide.read_region((0, 0), 0, (300, 300)))
    assert (region[:128, :128] == 255).all()
    np.testing.assert_array_equal(region[128:], tissue(300, 300)[128:])


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("axes", ["cyx", "tczyx"])
def test_every_level_of_an_ome_zarr(tmp_path, axes, version):
    image = tissue(300, 400)
    path = write_zarr(tmp_path / "a.zarr", {"": image}, axes, version)
    with open_slide(path) as slide:
        assert slide.level_dimensions == ((400, 300), (200, 150))
        assert scale_of(slide.properties, path).mpp == 0.5
        np.testing.assert_array_equal(slide.read_region((50, 20), 0, (130, 110)), image[20:130, 50:180])
        np.testing.assert_array_equal(slide.read_region((50, 20), 1, (60, 70)), image[::2, ::2][10:80, 25:85])


def test_the_scale_of_a_multiscale_is_that_of_all_its_datasets(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", {"": tissue(300, 400)})
    root = zarr.open_group(path, mode="r+")
    [multiscale] = root.attrs["multiscales"]
    multiscale["coordinateTransformations"] = [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]
    root.attrs["multiscales"] = [multiscale]
    with open_slide(path) as slide:
        assert scale_of(slide.properties, path).mpp == 0.25


@pytest.mark.parametrize("name", ["macrophage_CD68.svs", "Unlabelled H&E"])
def test_a_word_within_another_makes_no_companion(tmp_path, name):
    path = write_ome(tmp_path / "a.ome.tif", {"Labels 2": tissue(99, 99), name: tissue(300, 400)})
    assert pages_of(path) == 1
    with open_slide(path) as slide:
        assert slide.level_dimensions[0] == (400, 300)


def test_series_of_a_zarr_are_pages_and_damage_is_one_sentence(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", {"0": tissue(300, 400), "1": tissue(200, 100)})
    assert pages_of(path) == 2
    with open_slide(path, 2) as slide:
        assert slide.level_dimensions[0] == (100, 200)
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(InputError, match=r"b\.zarr cannot be read as an OME-Zarr"), open_slide(tmp_path / "b.zarr"):
        pass


@pytest.mark.parametrize("kind", ["tiff", "zarr"])
def test_tiles_come_from_their_place_at_their_scale(tmp_path, kind):
    image = island(600, 700, 100, 100, 400, 500)
    path = tmp_path / f"a.ome.{kind}"
    write_ome(path, {"main": image}) if kind == "tiff" else write_zarr(path, {"": image})
    assert tile_slides([tmp_path], tmp_path / "out", Tiling(0.5, 64)) == {}
    tiles = np.load(tmp_path / "out" / "tiles.npy")
    rows = [line.split(",") for line in (tmp_path / "out" / "tiles.csv").read_text().splitlines()[1:]]
    assert len(rows) == len(tiles) > 20
    for tile, (name, x, y, side, *_) in zip(tiles, rows, strict=True):
        assert (name, side) == ("a", "64")
        np.testing.assert_array_equal(tile, image[int(y) : int(y) + 64, int(x) : int(x) + 64])


def test_each_series_has_its_own_range_and_profile(tmp_path):
    """The second series alone says its 12 bits and its colour profile."""
    image, profile = tissue(100, 90).astype(np.uint16) * 16, wide_profile()
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        options = {"photometric": "rgb", "tile": (64, 64)}
        file.write(image, metadata={"axes": "YXS", "Name": "one", "SignificantBits": 16}, **options)
        about = {"axes": "YXS", "Name": "two", "SignificantBits": 12}
        file.write(image, metadata=about, iccprofile=profile, **options)
    with open_slide(tmp_path / "a.ome.tif", 1) as first, open_slide(tmp_path / "a.ome.tif", 2) as second:
        assert (first.color_profile is None, second.color_profile is None) == (True, False)
        of_16, of_12 = (
            np.asarray(slide.read_region((0, 0), 0, (90, 100))).astype(int).mean() for slide in (first, second)
        )
    assert of_12 / of_16 == pytest.approx(16, rel=0.05)


def test_a_zarr_without_a_scale_needs_the_users(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", {"": tissue(300, 400)})
    root = zarr.open_group(path, mode="r+")
    [multiscale] = root.attrs["multiscales"]
    for dataset in multiscale["datasets"]:
        del dataset["coordinateTransformations"]
    root.attrs["multiscales"] = [multiscale]
    with open_slide(path) as slide:
        assert slide.level_dimensions == ((400, 300), (200, 150))
        with pytest.raises(InputError, match="does not tell its microns per pixel"):
            scale_of(slide.properties, path)
