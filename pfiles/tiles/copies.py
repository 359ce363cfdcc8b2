"""Tiles that are on both sides of the split: the same pixels under two names, nearly the same, one patient's."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pfiles.errors import InputError
from pfiles.paths import atomic_write, read_json, write_json
from pfiles.tiles import shifted
from pfiles.tiles.mapped import Images
from pfiles.tiles.pixels import as_array, evenly_spaced

MOST = 4096, 65536  # test and training tiles among which near-copies are looked for, evenly spaced
CELLS = 8  # along a side, whose mean colours are compared
ALIKE = 0.97  # correlation of these from which two tiles are near-copies
PLAIN = 3.0  # levels by which the cells of a tile must differ, else it shows nothing that could be told again
SHOWN, SIDE = 6, 128  # pairs in a picture, and px of a tile in it
PATIENTS = re.compile(r"(TCGA-\w{2}-\w{4}|C3[LN]-\d{5}|GTEX-\w+?)(?=-|_|\.|$)", re.IGNORECASE)  # of public archives
PAGES = re.compile(r"(.+)_page\d+$")  # as `gather` calls slides that lie in one file


def copies(images: Images, test: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Pairs (M, 2) of a test tile and a training tile with the same pixels, one pair for each such test tile.

    images: (N, 3, S, S) uint8; test, train: indices into them. Tiles of a single colour do not count.
    """
    by_rows = defaultdict(list)
    for i, rows in zip(train, _two_rows(images, train), strict=True):
        by_rows[rows].append(i)
    pairs = []
    for i, rows in zip(test, _two_rows(images, test), strict=True):
        match = next((j for j in by_rows.get(rows, ()) if torch.equal(images[i], images[j])), None)
        if match is not None and (images[i] != images[i][:, :1, :1]).any():
            pairs.append((i, match))
    return np.array(pairs, int).reshape(-1, 2)


def _two_rows(images: Images, indices: np.ndarray) -> Iterable[bytes]:
    """The pixels of two rows of each tile: of most files no more than that is read."""
    side = images.shape[2]
    for i in indices:
        yield as_array(images[i : i + 1, :, [side // 3, 2 * side // 3]]).tobytes()


def near_copies(images: Images, test: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Pairs (M, 2) of a test tile and the training tile that shows nearly the same, such as saved again as JPEG.

    The mean colours of 8 x 8 cells correlate by more than 0.97, also where one is turned by quarters or mirrored. Of
    very many tiles some are searched, see `MOST`.
    """
    test, train = (part[evenly_spaced(len(part), most)] for part, most in zip((test, train), MOST, strict=True))
    if not len(test) or not len(train):
        return np.empty((0, 2), int)
    likeness, match, _ = shifted.most_alike(_cells(images, test), _cells(images, train).flatten(1).T)
    alike = likeness > ALIKE
    return np.stack([test[alike.numpy()], train[match[alike].numpy()]], axis=1)


def _cells(images: Images, indices: np.ndarray) -> Tensor:
    """What a tile shows, as (N, 3, 8, 8) of length 1, and 0 of tiles that show nothing."""
    parts = []
    for part in torch.as_tensor(indices).split(1024):
        cells = F.adaptive_avg_pool2d(images[part].float(), CELLS)
        cells = cells - cells.mean((2, 3), keepdim=True)
        length = cells.flatten(1).norm(dim=1)[:, None, None, None]
        parts.append(torch.where(length > PLAIN * cells[0].numel() ** 0.5, cells / length.clamp(min=1e-9), 0))
    return torch.cat(parts) if parts else torch.empty(0, 3, CELLS, CELLS)


def picture_of_pairs(images: Images, pairs: np.ndarray) -> Image.Image:
    """The first pairs, each test tile above its training tile."""
    tiles = [Image.fromarray(as_array(images[i : i + 1])[0]).resize((SIDE, SIDE)) for i in pairs[:SHOWN].T.ravel()]
    columns = len(tiles) // 2
    sheet = Image.new("RGB", (columns * (SIDE + 4), 2 * (SIDE + 4)), "white")
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (place % columns * (SIDE + 4), place // columns * (SIDE + 4)))
    return sheet


def in_words(pairs: np.ndarray, of: int, name: Callable[[int], str], verb: str = "have the same pixels as") -> str:
    """What copies there are, by the names of a pair; of: how many test tiles there are."""
    first, second = (name(int(i)) for i in pairs[0])
    return f"{len(pairs)} of {of} test tiles {verb} training tiles, such as {first} and {second}"


def warn_of_near_copies(
    images: Images,
    test: np.ndarray,
    train: np.ndarray,
    name: Callable[[int], str],
    folder: Path,
    state: str | None = None,
) -> None:
    """Print which test tiles are near-copies of training tiles or show a part of one, see `shifted.shifted_copies`; and
    write pictures of such pairs into `folder`.

    state: of the tiles' files, see `Source`. What was found in them before is kept in `folder`, and no search repeated.
    """
    searched = hashlib.sha256(repr((state, tuple(images.shape), len(test))).encode() + test.tobytes() + train.tobytes())
    cache = folder / f"near_copies_{searched.hexdigest()[:16]}.json"
    warnings = None
    if state is not None:
        with suppress(InputError, OSError):  # of a damaged file
            warnings = read_json(cache)
    if warnings is None or not all(Path(str(picture)).is_file() for picture in warnings.values()):
        warnings = _near_copy_warnings(images, test, train, name, folder)
        if state is not None and "" not in warnings.values():
            with suppress(OSError):  # it only saves time
                write_json(cache, warnings)
    for sentence in warnings:
        print(sentence)


def _near_copy_warnings(
    images: Images, test: np.ndarray, train: np.ndarray, name: Callable[[int], str], folder: Path
) -> dict[str, str]:
    """The sentences of `warn_of_near_copies`, each with the path of its picture, "" where that cannot be written."""
    warnings = {}
    pairs = near_copies(images, test, train)
    others = np.setdiff1d(test, pairs[:, 0])
    parts = shifted.shifted_copies(images, others, train)
    for verb, of_kind, tests, most in (
        ("look nearly like", pairs, test, MOST),
        ("show a part of", parts, others, shifted.MOST),
    ):
        if len(of_kind):
            sheet = picture_of_pairs(images, of_kind)
            path = folder / f"near_copies_{hashlib.sha256(sheet.tobytes()).hexdigest()[:8]}.png"
            picture, where = str(path), f"see {path}"
            try:
                with atomic_write(path) as file:
                    sheet.save(file, format="PNG")
            except OSError as error:
                picture, where = "", f"no picture shows them ({error})"
            of = most[0] if len(tests) > most[0] else len(test)  # those that are near-copies need no other search
            words = in_words(of_kind, of, name, verb) + _limits_in_words(len(tests), len(train), most)
            warnings[f"Warning: {words}: {where}."] = picture
    return warnings


def _limits_in_words(test: int, train: int, most: tuple[int, int]) -> str:
    """How many of so many tiles on both sides are searched, "" where all are."""
    if test <= most[0] and train <= most[1]:
        return ""
    return f" ({min(test, most[0])} of {test} test tiles and {min(train, most[1])} of {train} training tiles searched)"


def patients_on_both_sides(train: Iterable[str], test: Iterable[str]) -> list[str]:
    """Whom names of slides on both sides speak of: patients of public archives, such as TCGA-D8-A73X, and files of
    which several pages are slides."""
    first, second = (
        {match[1].upper() for name in names if (match := PATIENTS.search(name) or PAGES.match(name))}
        for names in (train, test)
    )
    return sorted(first & second)


def warn_of_patients(train: Iterable[str], test: Iterable[str]) -> None:
    """Print which patients seem to be on both sides."""
    if patients := patients_on_both_sides(train, test):
        more = f" and {len(patients) - 1} more" if len(patients) > 1 else ""
        print(
            f"Warning: names that look like one patient, {patients[0]}{more}, are among training and test tiles: "
            "give the patients in --slides-csv."
        )
