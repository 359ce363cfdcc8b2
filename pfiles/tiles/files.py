"""Image files: checked when they are read, written whole or not at all."""

import io
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageFile
from torch import Tensor

from pfiles.errors import InputError, extra
from pfiles.machine.processes import progress
from pfiles.paths import atomic_write
from pfiles.tiles.colours import in_srgb, srgb_transform
from pfiles.tiles.pixels import as_array, as_tensor, match_size, to_8_bits

if TYPE_CHECKING:
    import tifffile

BITS_PER_SAMPLE = 258  # tag of a TIFF
EXTRA_SAMPLES = 338  # likewise
NOTHING, MULTIPLIED, ALPHA = 0, 1, 2  # what it says of a fourth sample
TURNED_BACK = {  # by a TIFF's Orientation, what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
UNREAD_SUFFIXES = (  # images of other types, which are named where they lie among those that are read
    ".bmp", ".gif", ".webp", ".jp2", ".j2k", ".jpx", ".jxl", ".jfif", ".heic", ".heif", ".avif", ".tga", ".ppm", ".pgm",
    ".pnm", ".psd", ".dds", ".exr", ".vsi", ".nd2", ".lif", ".isyntax", ".i2syntax", ".qptiff", ".lsm", ".oir", ".oib",
    ".oif", ".sdpc", ".kfb", ".tmap", ".mds", ".zvi", ".ims", ".stk", ".btf", ".tf8", ".jxr", ".wdp", ".hdp", ".j2c",
    ".jpc", ".jpf", ".jpm", ".pbm", ".ico", ".svg", ".xcf", ".dicom", ".afi", ".ets", ".vmic", ".mcd", ".dv", ".r3d",
)  # fmt: skip


class Decoded(NamedTuple):
    """An image, uint8 RGB (3, H, W); how many pages its file has, and the file's colour profile, None without one."""

    image: Tensor
    pages: int = 1
    profile: bytes | None = None


class Stack(NamedTuple):
    """Images as uint8 (N, 3, S, S), and how many of their files have which colour profile, by its name or "none"."""

    images: Tensor
    profiles: Mapping[str, int]


@contextmanager
def quietly() -> Iterator[None]:
    """Inside the block libraries do not warn, and an image that claims far more pixels than a tile has is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def read_files(files: Sequence[Path], where: Path, icc: bool = False) -> Stack:
    """Image files of one size, see `stack_tiles`; icc: see `decode`.

    They are decoded by as many threads as there are cores, a few hundred at a time, to hold memory down.
    """
    with ThreadPool() as pool:
        parts = (files[i : i + 256] for i in range(0, len(files), 256))
        tiles = (
            tile for part in parts for tile in pool.map(lambda path: decode(str(path), path.read_bytes(), icc), part)
        )
        return stack_tiles(zip(map(str, files), tiles, strict=True), len(files), where, icc)


def is_image_name(name: PurePath) -> bool:
    """Whether a file's name, or its path in a folder of tiles, is an image's that is not hidden."""
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
    return name.suffix.lower() in IMAGE_SUFFIXES and not hidden


@quietly()
def stack_tiles(tiles: Iterator[tuple[str, Decoded]], count: int, where: Path, icc: bool = False) -> Stack:
    """`count` named images (3, S, S) as one.

    It says how many files hold several pages, and which colour profiles they have. icc: whether they were brought to
    sRGB. InputError where there is none, or they are not square and of one size.
    """
    images, of_pages = None, []
    profiles: Counter[bytes | None] = Counter()
    bar = progress(tiles, total=count, desc="read tiles", unit="tile", leave=False, delay=2)
    for i, (name, (tile, pages, profile)) in enumerate(bar):
        of_pages += [name] * (pages > 1)
        profiles[profile] += 1
        if images is None:
            if tile.shape[1] != tile.shape[2]:
                raise InputError(f"{name} is {tile.shape[2]} x {tile.shape[1]} pixels, but tiles must be square.")
            first, images = name, torch.empty((count, *tile.shape), dtype=torch.uint8)
        if tile.shape != images.shape[1:]:
            raise InputError(
                f"All tiles must have one size, but {name} is {tile.shape[2]} x {tile.shape[1]} pixels and {first} "
                f"is {images.shape[3]} x {images.shape[2]}."
            )
        images[i] = tile
    if images is None:
        raise InputError(f"{where} holds no image: expected files ending in {', '.join(IMAGE_SUFFIXES)}.")
    if of_pages:
        print(
            f"{len(of_pages)} of {count} files hold several pages, of which the first is read, such as {of_pages[0]}: "
            "save each page as a file of its own."
        )
    names: Counter[str] = Counter()  # two profiles of one name may differ in their dates alone
    for profile, number in profiles.items():
        names[profile_name(profile)] += number
    if not all(name == "none" or name.startswith("sRGB") for name in names) or len(names) > 1:
        kinds = ", ".join(f"{name} ({number})" for name, number in names.items())
        differ = "differ in their colour profiles, and their colours with them" if len(names) > 1 else "have a profile"
        done = (
            "Their colours were brought to sRGB" if icc else "They are read as they are: the setting icc changes that"
        )
        print(f"The tiles in {where} {differ}: {kinds}. {done}.")
    return Stack(images, names)


@lru_cache(16)
def _transform_of(profile: bytes) -> ImageCms.ImageCmsTransform:
    return srgb_transform(ImageCms.ImageCmsProfile(io.BytesIO(profile)))


def profile_name(content: bytes | None) -> str:
    if content is None:
        return "none"
    try:
        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(content))).strip() or "without a name"
    except (ImageCms.PyCMSError, OSError):
        return "a damaged one"


def bits_per_channel(image: ImageFile.ImageFile) -> int:
    """What the file holds; Pillow reads no more than the upper 8 of them."""
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))  # of a TIFF
    return 16 if any(";16" in repr(part.args) for part in image.tile) else max(bits)


def orientation(image: Image.Image) -> int:
    """By which number a TIFF asks to be turned, 1 where it does not; Pillow obeys, no other reader of slides does."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) if image.format == "TIFF" else 1


def as_stored(image: Image.Image) -> Image.Image:
    """The image, decoded, its rows those of the file whatever its `orientation`.

    A fourth sample that a TIFF does not call alpha is left out.
    """
    turn = TURNED_BACK.get(orientation(image))
    image.load()
    if image.mode == "RGBA" and EXTRA_SAMPLES not in getattr(image, "tag_v2", {EXTRA_SAMPLES}):
        image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of `as_stored`, which needs no decoding."""
    return image.size[::-1] if orientation(image) > 4 else image.size


def has_colours(image: Image.Image) -> bool:
    """Whether it is in RGB, with or without a palette or a fourth channel, be that alpha or of no stated meaning."""
    return image.mode in ("RGB", "RGBA", "RGBX", "P")


def fourth_sample(page: "tifffile.TiffPage") -> int:
    """What a TIFF's page says of its fourth sample: NOTHING, that colours are MULTIPLIED by it, or that it is ALPHA."""
    return int(next(iter(page.extrasamples), NOTHING))


def with_alpha(pixels: np.ndarray, fourth: int) -> np.ndarray:
    """uint8 pixels (H, W, 3 or 4) of a TIFF as RGB or RGBA, see `fourth_sample`."""
    if fourth == MULTIPLIED and pixels.shape[2] == 4:
        size = pixels.shape[1], pixels.shape[0]
        return np.asarray(Image.frombytes("RGBa", size, pixels.tobytes()).convert("RGBA"))
    return pixels[..., :3] if fourth == NOTHING else pixels


def require_codec(error: Exception) -> None:
    """MissingPackageError where tifffile failed because the package that knows a compression is not installed."""
    if "imagecodecs" in str(error):
        with extra("ome"):
            import imagecodecs  # noqa: F401


def most_of_samples(page: "tifffile.TiffPage") -> int | None:
    """What stands for full brightness in a TIFF's page of more than 8 bits per channel; None where it does not say."""
    if 8 < page.bitspersample < 16:
        return 2**page.bitspersample - 1
    bits = {int(text) for text in re.findall(r'SignificantBits="(\d+)"', page.description)}  # of OME
    if len(bits) == 1 and 8 < min(bits) <= 16:
        return 2 ** min(bits) - 1
    most = page.tags.valueof("MaxSampleValue") or page.tags.valueof("SMaxSampleValue")
    most = max(most) if isinstance(most, tuple) else most
    return int(most) if most and most > 255 else None


def types_in_words(names: Iterable[PurePath]) -> str:
    """How many files of which image types are not read, as a sentence; "" where there is none."""
    counts = Counter(name.suffix.lower() for name in names if name.suffix.lower() in UNREAD_SUFFIXES)
    kinds = " and ".join(f"{count} of {suffix}" for suffix, count in sorted(counts.items()))
    return f"{kinds} are not read: convert them." if counts else ""


def decode(name: str, content: bytes, icc: bool = False) -> Decoded:
    """The first page of the bytes of an image file, transparent pixels white.

    icc: bring it to sRGB from its colour profile, where it has one. InputError names the file. 16 bits per channel are
    scaled where a TIFF's tags say which range they use.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "TIFF")) as image:
            image.verify()  # the checksums of a PNG, at which decoding does not look
        with Image.open(io.BytesIO(content)) as image:
            bits = bits_per_channel(image)
            if bits == 8 and not has_colours(image):
                raise InputError(f"{name} has the colour mode {image.mode}, but tiles must be RGB.")
            if bits == 8:
                pages = getattr(image, "n_frames", 1)
                profile = image.info.get("icc_profile") or None
                stored = as_stored(image)
                colours = in_srgb(stored, _transform_of(profile)) if icc and profile else stored
                return Decoded(as_tensor(np.asarray(on_white(colours))[None])[0], pages, profile)
    except InputError:
        raise
    except Image.UnidentifiedImageError as error:
        if not content.startswith((b"II", b"MM")):
            reason = "it is no PNG, JPEG or TIFF, or damaged"
            raise InputError(f"{name} cannot be read as an image ({reason}): replace or remove it.") from error
    except Exception as error:  # a broken image raises errors of many kinds in Pillow
        raise InputError(f"{name} cannot be read as an image ({error}): replace or remove it.") from error
    return _decode_many_bits(name, content, icc)


def on_white(image: Image.Image) -> Image.Image:
    """An image in RGB; transparent pixels show white, as glass is."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _decode_many_bits(name: str, content: bytes, icc: bool) -> Decoded:
    """`decode` of a TIFF of more than 8 bits per channel."""
    pixels = most = profile = None
    pages, fourth = 1, NOTHING
    if content.startswith((b"II", b"MM")):
        with extra("slides"):
            import tifffile
        try:
            with tifffile.TiffFile(io.BytesIO(content)) as file:
                if not len(file.pages):
                    raise ValueError("it holds no image")
                page = file.pages.first
                if page.bitspersample == 8:
                    raise ValueError("Pillow does not know its kind")
                if page.dtype != np.uint16:
                    raise ValueError(f"it holds {page.dtype}, where 8 or 16 bits per channel are read")
                most, samples, fourth = most_of_samples(page), page.asarray(), fourth_sample(page)
                pages, profile = len(file.pages), page.tags.valueof("InterColorProfile")
                pixels = samples if page.axes.endswith("S") else np.moveaxis(samples, 0, -1)
        except Exception as error:  # a broken image raises errors of many kinds in tifffile
            require_codec(error)
            raise InputError(f"{name} cannot be read as an image ({error}): replace or remove it.") from error
    if pixels is None or most is None:
        raise InputError(
            f"{name} has 16 bits per channel and does not say which range they use: scale it from that range, such as "
            "0 ... 4095 for 12 bits, to 0 ... 255, or write it as a TIFF with the tag MaxSampleValue."
        )
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise InputError(f"{name} is of shape {pixels.shape}, but tiles must be RGB.")
    image = Image.fromarray(with_alpha(to_8_bits(pixels, most), fourth))
    if icc and profile:
        try:
            image = in_srgb(image, _transform_of(profile))
        except (ImageCms.PyCMSError, OSError) as error:
            raise InputError(f"{name} has a damaged colour profile ({error}): replace or remove it.") from error
    tile = np.asarray(on_white(image))
    return Decoded(as_tensor(tile[None])[0], pages, profile)


def image_files(folder: Path) -> dict[str, Path]:
    """The images directly in `folder` by name without suffix, in numerical order of the names.

    Raises InputError where two files have one name and differ in their suffix.
    """
    files = sorted(
        (path for path in folder.glob("*") if is_image_name(Path(path.name))),
        key=lambda path: (len(path.stem), path.stem),
    )
    for one, other in pairwise(files):
        if one.stem == other.stem:
            raise InputError(f"{folder} holds both {one.name} and {other.name}: keep one image of a name.")
    return {path.stem: path for path in files}


def write_tiles(folder: Path, numbers: Sequence[int], images: Tensor) -> None:
    """Write uint8 images (N, 3, H, W) as lossless `folder`/NUMBER.png, each whole or not at all."""
    bar = progress(as_array(images), desc="write tiles", unit="tile", leave=False, delay=2)
    for number, image in zip(numbers, bar, strict=True):
        with atomic_write(folder / f"{number}.png", by_every_process=True) as file:
            Image.fromarray(image).save(file, format="PNG")


def refuse_other_images(folder: Path, numbers: Iterable[int]) -> None:
    """InputError where `folder` holds an image that is not one of `numbers`.png: pairs of folders must match."""
    expected = {f"{number}.png" for number in numbers}
    others = [path.name for path in image_files(folder).values() if path.name not in expected]
    if others:
        raise InputError(
            f"{folder} holds {len(others)} images of another run, such as {others[0]}: "
            "move or delete that folder first."
        )


def read_images(files: Iterable[Path]) -> Tensor:
    """Image files of one size as uint8 (N, 3, H, W)."""
    files = list(files)
    return read_files(files, files[0].parent).images


def load_pairs(originals: Path, generated: Path) -> tuple[list[str], Tensor, Tensor]:
    """Read two folders of images that pair by name, whatever their file type.

    Returns the names in numerical order, and both folders' images as uint8 (N, 3, H, W); generated ones of another
    size are brought to the originals' (bicubic), and it says so. Raises InputError where the names differ.
    """
    folders = [list_images(folder) for folder in (originals, generated)]
    missing = [list(a.keys() - b.keys()) for a, b in (folders, folders[::-1])]
    if any(missing):
        only_first, only_second = (_first_names(names) for names in missing)
        raise InputError(
            f"Images pair by name, but of {len(folders[0])} in {originals} {only_first} there alone, and of "
            f"{len(folders[1])} in {generated} {only_second} there alone: write both folders in one run."
        )
    names = list(folders[0])
    real, fake = (read_images(files[name] for name in names) for files in folders)
    return names, real, match_size(fake, real.shape[2])


def list_images(folder: Path) -> dict[str, Path]:
    """`image_files` of a folder that must hold some."""
    files = image_files(folder)
    if not files:
        raise InputError(
            f"There are no images in {folder}: name a folder that holds some, or run the notebook that writes them."
        )
    return files


def _first_names(names: Sequence[str]) -> str:
    """["3", "1", "2", "11"] -> "1, 2, 3 (and 1 more) are"."""
    if not names:
        return "none is"
    examples = ", ".join(sorted(names, key=lambda name: (len(name), name))[:3])
    more = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
    return f"{examples}{more} {'is' if len(names) == 1 else 'are'}"
