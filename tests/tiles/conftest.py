"""Slides of known content, for all tests that read slides, and folders of tiles."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from skimage.data import immunohistochemistry

from tests.conftest import make_tiles, png

GLASS = 243


def tissue(height, width, seed=0):
    """Tissue without an end, from scikit-image's picture, turned by quarters, stained where it was pale, and moved."""
    image = (np.rot90(immunohistochemistry(), seed)[64:448, 64:448] * 0.5 + (95, 50, 75)).astype(np.uint8)
    image = np.roll(image, 37 * (seed // 4), axis=0)  # no two seeds show the same
    image = np.tile(image, (height // 384 + 1, width // 384 + 1, 1))[:height, :width]
    rows, columns = (np.arange(length, dtype=np.uint8) for length in (height // 384 + 1, width // 384 + 1))
    lighter = 2 * rows.repeat(384)[:height, None] + 7 * columns.repeat(384)[None, :width]
    return image + lighter[..., None]  # no two repetitions are the same


def write_slide(path, image, mpp=0.5, levels=(1, 4)):
    """A pyramidal TIFF as OpenSlide reads it; each level is the mean of blocks of the first."""
    resolution = {} if mpp is None else {"resolutionunit": "CENTIMETER"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        for downsample in levels:
            h, w = (length // downsample for length in image.shape[:2])
            blocks = image[: h * downsample, : w * downsample].reshape(h, downsample, w, downsample, 3)
            level = (blocks.mean(axis=(1, 3)) + 0.5).astype(np.uint8)
            if mpp is not None:
                resolution["resolution"] = (1e4 / (mpp * downsample),) * 2
            file.write(level, tile=(128, 128), photometric="rgb", compression="deflate", metadata=None,
                       subfiletype=int(downsample > 1), **resolution)  # fmt: skip
    return path


def island(height=1024, width=1536, top=256, left=512, tall=512, wide=768, seed=0):
    image = np.full((height, width, 3), GLASS, np.uint8)
    image[top : top + tall, left : left + wide] = tissue(tall, wide, seed)
    return image


def write_scn(path, areas, size=(1500, 1600), nm=500):
    """A Leica SCN as OpenSlide reads it: square `areas` by the x and y of their corners, scanned on an empty slide."""
    side = len(next(iter(areas.values())))

    def element(name, pixels, view, objective, dimensions):
        return (
            f'<image name="{name}" uuid="urn:{name}"><creationDate>2020-01-01T00:00:00Z</creationDate>'
            f'<device model="Leica SCN400;Leica SCN" version="1.0"/>'
            f'<pixels sizeX="{pixels[0]}" sizeY="{pixels[1]}">{dimensions}</pixels>'
            f'<view sizeX="{view[2] * nm}" sizeY="{view[3] * nm}" offsetX="{view[0] * nm}" offsetY="{view[1] * nm}" '
            f'spacingZ="0"/><scanSettings><objectiveSettings><objective>{objective}</objective></objectiveSettings>'
            "<illuminationSettings><numericalAperture>0.4</numericalAperture><illuminationSource>brightfield"
            "</illuminationSource></illuminationSettings></scanSettings></image>"
        )

    images = element("macro", (64, 64), (0, 0, *size), 0.6, '<dimension sizeX="64" sizeY="64" r="0" ifd="0"/>')
    for i, (x, y) in enumerate(areas):
        level = f'<dimension sizeX="{side}" sizeY="{side}" r="0" ifd="{1 + i}"/>'
        images += element(f"area{i}", (side, side), (x, y, side, side), 20, level)
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:x">'
        f'<collection name="made" uuid="urn:c" sizeX="{size[0] * nm}" sizeY="{size[1] * nm}" barcode="">{images}'
        "</collection></scn>"
    )
    options = {"photometric": "rgb", "compression": "deflate", "metadata": None, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(
            np.full((64, 64, 3), 240, np.uint8), tile=(64, 64), description=xml, resolution=(4e2, 4e2), **options
        )
        for image in areas.values():
            file.write(image, tile=(128, 128), resolution=(1e7 / nm,) * 2, **options)
    return path


def wide_profile():
    """A profile in which the same numbers are other colours than in sRGB: LCMS' own, with swapped primaries."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(profile[132 + 12 * i :][:4]): 132 + 12 * i for i in range(int.from_bytes(profile[128:132]))}
    red, green = (slice(tags[name] + 4, tags[name] + 12) for name in (b"rXYZ", b"gXYZ"))
    profile[red], profile[green] = profile[green], profile[red]
    return bytes(profile)


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def as_jpeg(tile, quality=60):
    """The tile as a JPEG shows it."""
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def write_folder(folder, tiles):
    """Tiles in two levels of folders, beside files that are not tiles."""
    for i, tile in enumerate(tiles):
        path = folder / f"slide_{i % 2}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(tile))
    (folder / "notes.txt").write_text("not a tile")
    (folder / ".hidden.png").write_bytes(b"not a tile")
    return np.concatenate([tiles[0::2], tiles[1::2]])  # sorted order


@pytest.fixture
def npy(tmp_path, tiles):
    path = tmp_path / "tiles.npy"
    np.save(path, tiles)
    return path


# 16 x 16 px of CMU-1 (CC0), as the tests of openslide-python 1.4.7 hold them: made by OpenSlide's authors, LGPL-2.1
DICOM = Path(__file__).with_name("skin_16px.dcm")


def lay_out(folder, names, tiles=None):
    tiles = make_tiles(len(names)) if tiles is None else tiles
    for name, tile in zip(names, tiles, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(tile))
    return folder


def pack(path, names, tiles, **more):
    with zipfile.ZipFile(path, "w") as archive:
        for name, tile in zip(names, tiles, strict=True):
            archive.writestr(name, png(tile))
        for name, text in more.items():
            archive.writestr(name, text)
    return path


def sides(names, tiles):
    slides = [name.split("/")[0] for name in names]
    return {slides[i] for i in tiles.train}, {slides[i] for i in tiles.test}
