"""Tiles: where they come from, how they are split, and what happens to them before a network sees them.

On disk and on the device tiles are uint8. Networks see float32 in [0, 1], made by `to_unit` and nowhere else.
"""

import hashlib
import io
import os
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pfiles.errors import InputError
from pfiles.paths import ROOT, atomic_write, expand

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
TEST_PARTS = 11  # published: the last of 11 equal parts is the test set
MIN_TILES = 2 * TEST_PARTS
HE_SLOT = 0  # the stain of the published array's second axis that is used here


@dataclass(frozen=True)
class Tiles:
    """Square RGB tiles with their split.

    images: (N, S, S, 3) uint8, possibly memory-mapped.
    train, test: disjoint indices into `images`.
    source: what the tiles are, in a few words.
    """

    images: np.ndarray
    train: np.ndarray
    test: np.ndarray
    source: str

    def tensor(self, indices: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """The tiles `indices` as uint8 (B, 3, S, S) on `device`."""
        return as_tensor(np.ascontiguousarray(self.images[indices])).contiguous().to(device)

    def fingerprint(self) -> str:
        """A short hash of the split, the size and 64 evenly spaced tiles, to tell one data set from another."""
        digest = hashlib.sha256(repr((self.images.shape, self.train.tolist(), self.test.tolist())).encode())
        for i in evenly_spaced(len(self.images), 64):
            digest.update(np.ascontiguousarray(self.images[i]))
        return digest.hexdigest()[:16]


def load_tiles(
    data: str | Path | None, image_size_px: int, max_train_tiles: int | None = None, n_clusters: int = 2
) -> Tiles:
    """Read tiles and split them into training and test tiles.

    data: a `.npy` of uint8, either the published (N, S, H, W, 3), whose slot 0 is used, or (N, H, W, 3), both
        memory-mapped; a folder of PNG, JPEG or TIFF, read recursively in sorted order; a `.zip` of such a folder;
        "embedded" for 128 px crops of a real immunohistochemistry image that comes with scikit-image; None for the
        environment variable KPC_DATA and, where that is not set, "embedded". Relative paths start at the repository,
        so that they mean the same in every notebook.
    image_size_px: side of the tiles returned; larger tiles of a whole multiple are averaged down to it.
    max_train_tiles: use no more than so many training tiles, evenly spaced (None: all).
    n_clusters: refuse fewer training tiles than clusters.

    The last eleventh is the test set, as published, except that the embedded image is split by region, and that tiles
    which lie in at least eleven folders, one for each slide, are split between two folders.
    Raises InputError for anything that is not as described.
    """
    data = str(data if data is not None else os.environ.get("KPC_DATA") or "embedded")
    if data == "embedded":
        images, n_test, source = *_embedded_tiles(), "embedded immunohistochemistry crops (scikit-image)"
    else:
        path = ROOT / expand(data)
        (images, folders), source = _read(path), path.name
        n_test = _test_size(len(images), folders)
    if len(images) < MIN_TILES:
        raise InputError(f"{data} holds {len(images)} tiles: at least {MIN_TILES} are needed to train and to test.")
    images = _resize(images, image_size_px, data)

    indices = np.arange(len(images))
    train, test = indices[:-n_test], indices[-n_test:]
    if max_train_tiles is not None and len(train) > max_train_tiles:
        print(f"Using {max_train_tiles} of {len(train)} training tiles, evenly spaced (setting max_train_tiles).")
        train = train[evenly_spaced(len(train), max_train_tiles)]
    if n_clusters > len(train):
        raise InputError(
            f"n_clusters is {n_clusters}, but there are only {len(train)} training tiles: choose fewer clusters."
        )
    return Tiles(images, train, test, source)


def evenly_spaced(n: int, count: int) -> np.ndarray:
    """`count` indices out of n, evenly spaced from the first to the last; all of them where there are no more."""
    return np.linspace(0, n - 1, min(n, count)).round().astype(int)


def _test_size(n: int, folders: Sequence[Path]) -> int:
    """How many of n tiles, the last ones, are for testing; `folders` says where each lies, where that is known."""
    cut = n - n // TEST_PARTS
    if len(set(folders)) < TEST_PARTS:
        return n - cut
    begins = [i for i in range(1, n) if folders[i] != folders[i - 1]]  # of all folders but the first
    cut = max((i for i in begins if i <= cut), default=begins[0])
    print(f"The last {len(set(folders[cut:]))} of {len(set(folders))} folders are the test set.")
    return n - cut


def _embedded_tiles() -> tuple[np.ndarray, int]:
    """128 px crops every 16 px; test crops come from the 160 columns on the right, training crops from the rest."""
    from skimage.data import immunohistochemistry

    image, size, stride, border = immunohistochemistry(), 128, 16, 352
    height, width = image.shape[:2]
    regions = (range(0, border - size + 1, stride), range(border, width - size + 1, stride))
    train, test = (
        [image[top : top + size, left : left + size] for top in range(0, height - size + 1, stride) for left in columns]
        for columns in regions
    )
    return np.stack(train + test), len(test)


def _read(path: Path) -> tuple[np.ndarray, list[Path]]:
    """The images in `path`, and the folder each lies in; none for a `.npy`."""
    if not os.path.exists(path):  # Path.exists raises for a name that is too long
        raise InputError(f"There is no data at {path}: give a .npy file, a folder of images or a .zip of one.")
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".npy":
        return _read_npy(path), []
    if path.suffix == ".zip":
        return _read_zip(path)
    raise InputError(f"{path} is neither a .npy file, nor a folder of images, nor a .zip of one.")


@contextmanager
def _quietly() -> Iterator[None]:
    """Inside the block libraries do not warn, and an image that claims far more pixels than a tile has is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@_quietly()
def _read_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy lets out whatever a broken header trips
        raise InputError(f"{path} cannot be read as a .npy array ({error}): write it anew with numpy.save.") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is an archive of arrays, not a .npy array: write the tiles with numpy.save.")
    expected = f"{path} must hold uint8 tiles of shape (N, H, H, 3), or (N, stains, H, H, 3) as published, but holds"
    if array.dtype != np.uint8:
        raise InputError(f"{expected} {array.dtype} of shape {array.shape}: convert it to 0 ... 255 as uint8.")
    if array.ndim == 5 and array.shape[1]:
        array = array[:, HE_SLOT]
    if array.ndim != 4 or array.shape[3] != 3 or array.shape[1] != array.shape[2] or not array.size:
        raise InputError(f"{expected} shape {array.shape}: bring the axes into that order and cut square tiles.")
    return array


def _read_folder(folder: Path) -> tuple[np.ndarray, list[Path]]:
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    files = sorted((name for name in names if _is_image_name(str(name))), key=lambda name: name.parts)
    return _read_files([folder / name for name in files], folder), [name.parent for name in files]


def _read_files(files: Sequence[Path], where: Path) -> np.ndarray:
    """Image files decoded by as many threads as there are cores; of a few hundred at a time, to hold memory down."""
    with ThreadPool() as pool:
        parts = (files[i : i + 256] for i in range(0, len(files), 256))
        tiles = (
            tile for part in parts for tile in pool.map(lambda path: decode_image(str(path), path.read_bytes()), part)
        )
        return _stack(zip(map(str, files), tiles, strict=True), len(files), where)


def _read_zip(path: Path) -> tuple[np.ndarray, list[Path]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(filter(_is_image_name, archive.namelist()), key=lambda name: Path(name).parts)
            named = [(f"{path}:{name}", name) for name in names]
            tiles = ((shown, decode_image(shown, archive.read(name))) for shown, name in named)
            return _stack(tiles, len(names), path), [Path(name).parent for name in names]
    except InputError:
        raise
    except Exception as error:  # so does zipfile, and each way of compressing has errors of its own
        raise InputError(f"{path} is not a sound .zip file ({error}): pack or download it again.") from error


def _is_image_name(name: str) -> bool:
    parts = Path(name).parts
    return name.lower().endswith(IMAGE_SUFFIXES) and not any(part.startswith((".", "__MACOSX")) for part in parts)


@_quietly()
def _stack(tiles: Iterator[tuple[str, np.ndarray]], count: int, where: Path) -> np.ndarray:
    images = None
    for i, (name, tile) in enumerate(tiles):
        if images is None:
            if tile.shape[0] != tile.shape[1]:
                raise InputError(f"{name} is {tile.shape[1]} x {tile.shape[0]} pixels, but tiles must be square.")
            first, images = name, np.empty((count, *tile.shape), np.uint8)
        if tile.shape != images.shape[1:]:
            raise InputError(
                f"All tiles must have one size, but {name} is {tile.shape[1]} x {tile.shape[0]} pixels and {first} "
                f"is {images.shape[2]} x {images.shape[1]}."
            )
        images[i] = tile
    if images is None:
        raise InputError(f"{where} holds no image: expected files ending in {', '.join(IMAGE_SUFFIXES)}.")
    return images


def decode_image(name: str, content: bytes) -> np.ndarray:
    """The bytes of an image file as uint8 RGB (H, W, 3); an alpha channel is dropped. InputError names the file."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "TIFF")) as image:
            image.verify()  # the checksums of a PNG, at which decoding does not look
        with Image.open(io.BytesIO(content)) as image:
            if image.mode not in ("RGB", "RGBA", "P"):
                raise InputError(f"{name} has the colour mode {image.mode}, but tiles must be 8-bit RGB.")
            return np.asarray(image.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # so does Pillow
        raise InputError(f"{name} cannot be read as an image ({error}): replace or remove it.") from error


def image_files(folder: Path) -> dict[str, Path]:
    """The images directly in `folder` by name without suffix, in numerical order of the names.

    Raises InputError where two files have one name and differ in their suffix.
    """
    files = sorted(
        (path for path in folder.glob("*") if _is_image_name(path.name)), key=lambda path: (len(path.stem), path.stem)
    )
    for one, other in pairwise(files):
        if one.stem == other.stem:
            raise InputError(f"{folder} holds both {one.name} and {other.name}: keep one image of a name.")
    return {path.stem: path for path in files}


def write_tiles(folder: Path, numbers: Sequence[int], images: Tensor) -> None:
    """Write uint8 images (N, 3, H, W) as lossless `folder`/NUMBER.png, each whole or not at all."""
    for number, image in zip(numbers, images, strict=True):
        with atomic_write(folder / f"{number}.png", by_every_process=True) as file:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="PNG")


def refuse_other_images(folder: Path, numbers: Iterable[int]) -> None:
    """InputError where `folder` holds an image that is not one of `numbers`.png: pairs of folders must match."""
    expected = {f"{number}.png" for number in numbers}
    others = [path.name for path in image_files(folder).values() if path.name not in expected]
    if others:
        raise InputError(
            f"{folder} holds {len(others)} images of another run, such as {others[0]}: "
            "move or delete that folder first."
        )


def read_images(files: Iterable[Path]) -> np.ndarray:
    """Image files of one size as uint8 (N, H, W, 3)."""
    files = list(files)
    return _read_files(files, files[0].parent)


def _resize(images: np.ndarray, size: int, data: str) -> np.ndarray:
    """Average blocks of pixels where the tiles are larger than `size`."""
    factor, rest = divmod(images.shape[1], size)
    if factor < 1 or rest:
        raise InputError(
            f"The tiles of {data} are {images.shape[1]} px, but image_size_px is {size}: it must be their size or "
            "divide it."
        )
    if factor == 1:
        return images
    out = np.empty((len(images), size, size, 3), np.uint8)
    for i, tile in enumerate(images):
        blocks = tile.reshape(size, factor, size, factor, 3)
        out[i] = (blocks.mean(axis=(1, 3)) + 0.5).astype(np.uint8)
    return out


def as_tensor(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> (N, 3, H, W)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def to_unit(images: Tensor) -> Tensor:
    """uint8 0 ... 255 -> float32 0 ... 1, any shape."""
    return images.float() / 255


def to_uint8(images: Tensor) -> Tensor:
    """float images, clamped to [0, 1] -> uint8, rounded to the nearest level, any shape."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def mean_colour(images: Tensor) -> tuple[int, int, int]:
    """The rounded mean RGB of uint8 images (N, 3, H, W)."""
    means = torch.cat([batch.double().mean((2, 3)) for batch in images.split(64)])  # (N, 3); float64 takes 8 x memory
    return tuple(round(c) for c in means.mean(0).tolist())


def epoch_batches(n: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """A shuffled epoch of n tiles in n // batch_size batches of nearly equal size, as published.

    No tile is dropped: a remainder enlarges batches by one (10,000 tiles at 16 are 625 batches). CPU index tensors.
    """
    return list(torch.randperm(n, generator=generator).tensor_split(max(1, n // batch_size)))


def random_dihedral(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each of the square images (B, C, S, S) in one of its eight views: quarter turns, mirrored or not.

    `generator` lives on the images' device.
    """
    flip_x, flip_y, transpose = torch.randint(2, (3, len(images), 1, 1, 1), generator=generator, device=images.device)
    images = torch.where(flip_x.bool(), images.flip(3), images)
    images = torch.where(flip_y.bool(), images.flip(2), images)
    return torch.where(transpose.bool(), images.transpose(2, 3), images)


def random_affine(
    images: Tensor,
    generator: torch.Generator,
    degrees: float = 5.0,
    translate: float = 0.05,
    scale: tuple[float, float] = (0.95, 1.05),
    fill: tuple[int, int, int] = (130, 97, 154),
) -> Tensor:
    """A random rotation, shift and zoom of each tile, with the distribution of the published augmentation.

    images: uint8 (B, C, H, W) on any device; each draws its own angle in +-degrees, its own shift of up to
    `translate` of the side in whole pixels, and its own scale. Nearest neighbour, `fill` outside; equals
    torchvision's RandomAffine on PIL images for the same parameters. `generator` lives on the images' device.
    """
    b, _, h, w = images.shape
    u = torch.rand(4, b, generator=generator, dtype=torch.float64, device=images.device) * 2 - 1
    angle = torch.deg2rad(degrees * u[0])
    shift_x, shift_y = (translate * w * u[1]).round(), (translate * h * u[2]).round()
    zoom = (scale[0] + scale[1]) / 2 + (scale[1] - scale[0]) / 2 * u[3]
    return affine(images, angle, shift_x, shift_y, zoom, fill)


def affine(
    images: Tensor, angle: Tensor, shift_x: Tensor, shift_y: Tensor, zoom: Tensor, fill: tuple[int, int, int]
) -> Tensor:
    """Rotate each of the images (B, C, H, W) by its angle (radians), zoom about the centre and shift (pixels).

    angle, shift_x, shift_y, zoom: (B,) float64, on the images' device.
    """
    b, c, h, w = images.shape
    device = images.device
    x = torch.arange(w, device=device, dtype=torch.float64) + 0.5 - w / 2  # pixel centres, from the image's centre
    y = torch.arange(h, device=device, dtype=torch.float64) + 0.5 - h / 2
    x, y = x[None, None, :], y[None, :, None]
    cos, sin, shift_x, shift_y = (v[:, None, None] for v in (angle.cos() / zoom, angle.sin() / zoom, shift_x, shift_y))
    # the inverse map: where in the source each pixel of the result comes from
    source_x = (cos * (x - shift_x) + sin * (y - shift_y) + w / 2).floor().long()  # (B, H, W)
    source_y = (-sin * (x - shift_x) + cos * (y - shift_y) + h / 2).floor().long()
    inside = (source_x >= 0) & (source_x < w) & (source_y >= 0) & (source_y < h)
    index = (source_y.clamp(0, h - 1) * w + source_x.clamp(0, w - 1)).view(b, 1, h * w).expand(b, c, h * w)
    moved = images.flatten(2).gather(2, index).view(b, c, h, w)
    outside = ~inside
    for channel, value in enumerate(fill):
        moved[:, channel].masked_fill_(outside, value)
    return moved
