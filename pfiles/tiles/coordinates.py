"""Places of tiles that CLAM or TRIDENT chose, read from their HDF5 files.

Both keep the upper left corners of a slide's tiles, in pixels of its finest level, as the dataset `coords`, and what
else they know as its attributes. Of a tile's side CLAM says `patch_size` in pixels of `patch_level`; TRIDENT says
`patch_size_level0` in pixels of the finest level beside `patch_size`, its own side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pfiles.errors import InputError, extra

if TYPE_CHECKING:
    from pfiles.tiles.readers import SlideReader

SUFFIX, OF_TRIDENT = ".h5", "_patches"  # of the files' names; the latter stands after the slide's
SAME = 0.01  # by which two sides in microns, or two downsamplings, may differ
MAGNIFIED = 10.0  # um/px times magnification, of most microscopes
NEAR = 1.5  # the factor by which a magnification may differ from what the scale says


class Coordinates(NamedTuple):
    """Places of a slide's tiles.

    file: for messages. corners: x and y of each in pixels of the finest level, each place once. size: side of a tile in
    its own pixels. side: the same in pixels of the finest level; None where `level`, the number of the level of which
    `size` counts pixels, says it. downsample: of that level. whole: width and height of that level, or of the finest
    where there is no other. magnification: of the finest level. What a file does not say is None.
    """

    file: str
    corners: tuple[tuple[int, int], ...]
    size: int
    side: float | None
    level: int | None
    downsample: float | None
    whole: tuple[int, int] | None
    magnification: float | None


def read_coordinates(path: Path, slides: Sequence[str]) -> dict[str, Coordinates]:
    """The places of each slide that has some, from an HDF5 file, or a folder with one for each slide.

    A file is of the only slide, or of the one that it is named after: SLIDE.h5 or SLIDE_patches.h5. InputError for
    anything else.
    """
    if not path.exists():
        raise InputError(f"There are no coordinates at {path}: correct the path.")
    if path.is_file():
        name = slides[0] if len(slides) == 1 else _slide_of(path, slides)
        if name not in slides:
            raise InputError(f"{path} is of none of the {len(slides)} slides: name it as its slide, or give a folder.")
        return {name: _read(path)}
    files = {_slide_of(file, slides): file for file in sorted(path.glob(f"*{SUFFIX}"))}
    if foreign := sorted(files.keys() - set(slides)):
        raise InputError(f"{files[foreign[0]]} is of a slide that is not asked for, {foreign[0]}: remove or rename it.")
    if not files:
        raise InputError(f"{path} holds no SLIDE{SUFFIX}: name the folder in which CLAM or TRIDENT wrote its patches.")
    return {name: _read(file) for name, file in files.items()}


def _slide_of(path: Path, slides: Sequence[str]) -> str:
    from pfiles.spreadsheet import composed  # loads pandas, which the options of the command line do without

    name = composed(path.stem)
    return name if name in slides else name.removesuffix(OF_TRIDENT)


def _read(path: Path) -> Coordinates:
    with extra("coordinates"):
        import h5py
    import numpy as np

    try:
        with h5py.File(path, "r") as file:
            if "coords" not in file:
                raise InputError(
                    f"{path} lacks the dataset coords, in which CLAM and TRIDENT keep places: choose another."
                )
            corners, about = np.asarray(file["coords"]), dict(file["coords"].attrs)
        return _described(path, corners, about)
    except InputError:
        raise
    except Exception as error:  # a damaged file raises errors of many kinds in h5py
        raise InputError(f"{path} cannot be read as CLAM's or TRIDENT's coordinates ({error}): get it anew.") from error


def _described(path: Path, corners: Any, about: Mapping[str, Any]) -> Coordinates:
    import numpy as np

    if corners.size == 0:
        return no_places(path)
    if corners.ndim != 2 or corners.shape[1] != 2 or corners.dtype.kind not in "iuf":
        raise InputError(f"{path} must hold places of shape (N, 2), but holds {corners.dtype} of {corners.shape}.")
    if not np.isfinite(corners).all() or (corners != np.round(corners)).any() or np.abs(corners).max() >= 2**53:
        raise InputError(f"{path} holds a place that is no whole number of pixels: make it anew.")

    def number(name: str) -> float | None:
        """The first number of an attribute; None where it is missing, or -1 as of what is not known."""
        value = float(np.ravel(about[name])[0]) if name in about else -1.0
        return value if 0 <= value < np.inf else None

    size, side, level = number("patch_size"), number("patch_size_level0"), number("patch_level")
    if not size or (not side and level is None):
        raise InputError(
            f"{path} does not say how large its tiles are: coords needs the attributes patch_size and patch_level, as "
            "CLAM writes them, or patch_size and patch_size_level0, as TRIDENT does."
        )
    whole = (
        [*np.ravel(about["level_dim"])]
        if "level_dim" in about
        else [number(f"level0_{name}") for name in ("width", "height")]
    )
    return Coordinates(
        str(path),
        tuple(dict.fromkeys((int(x), int(y)) for x, y in corners)),
        round(size),
        side,
        None if side else round(level or 0),
        number("downsample"),
        None if whole[0] is None or whole[1] is None else (int(whole[0]), int(whole[1])),
        number("level0_magnification"),
    )


def no_places(path: Path) -> Coordinates:
    """Those of a slide on which `path` names none."""
    return Coordinates(str(path), (), 1, None, 0, None, None, None)


def side_on(slide: SlideReader, path: Path, places: Coordinates, mpp: float) -> float:
    """The side of a tile in pixels of the slide's finest level, whose scale is `mpp`.

    InputError where the places are another slide's, by its size, levels, magnification or edges.
    """
    if not places.corners:
        raise InputError(f"{places.file} names no place on {path}.")
    foreign = f"{places.file} is not of {path}"
    level, size = places.level or 0, slide.level_dimensions[0]
    if level >= len(slide.level_dimensions):
        raise InputError(
            f"{foreign}: it takes level {level}, but the slide's last is {len(slide.level_dimensions) - 1}."
        )
    downsample = slide.level_downsamples[level]
    if places.side is None and places.downsample and abs(places.downsample / downsample - 1) > SAME:
        raise InputError(f"{foreign}: level {level} is {places.downsample:g} times smaller there, here {downsample:g}.")
    if places.whole not in (None, tuple(slide.level_dimensions[level])):
        raise InputError(
            f"{foreign}: level {level} has {_by(places.whole)} px there, here {_by(slide.level_dimensions[level])}."
        )
    outside = [(x, y) for x, y in places.corners if not (0 <= x < size[0] and 0 <= y < size[1])]
    if outside:
        raise InputError(
            f"{foreign}: it has a tile at {outside[0][0]}, {outside[0][1]}, but the slide is {_by(size)} px."
        )
    if places.magnification and not 1 / NEAR <= places.magnification * mpp / MAGNIFIED <= NEAR:
        raise InputError(
            f"{places.file} was made of a slide scanned at a magnification of {places.magnification:g}, which is about "
            f"{MAGNIFIED / places.magnification:g} um/px, but {path} has {mpp:g} um/px: give the true scale as "
            "--mpp-of-slide, or make the coordinates anew."
        )
    return places.side if places.side is not None else places.size * downsample


def require_scale(places: Coordinates, side: float, mpp: float, target: float, size: int) -> None:
    """InputError where tiles of `size` px at `target` um/px are not as wide as tiles of `side` px at `mpp` um/px."""
    if abs(side * mpp / (size * target) - 1) > SAME:
        raise InputError(
            f"{places.file} holds tiles of {side:g} px of the slide at {mpp:g} um/px, which are {side * mpp:.6g} um "
            f"wide, but {size} px at {target:g} um/px are {size * target:.6g} um: give --size {places.size} and --mpp "
            f"{side * mpp / places.size:.4g}, or others that come to the same."
        )


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"
