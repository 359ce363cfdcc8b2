"""Which images are thumbnails of slides, by what they show: at any ratio, turned, stretched or with a margin.

Coarse pictures of all are compared first; a look at finer ones decides where these are alike.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import scipy
from PIL import Image

from pfiles.errors import InputError
from pfiles.machine.processes import progress
from pfiles.tiles.readers import open_slide, thumbnail

PARTS = 3  # of an image turned by quarters, see `_part`
MOST_OF_SLIDE = 0.9  # of a slide's pixels that its thumbnail has
COARSE = 16  # px of a side at which they are compared first
SIGHTS = 64, 32, 16  # and then; at the coarser ones noise of a few pixels, or of a strong JPEG, averages out
PERHAPS_ALIKE = 0.8  # correlation at the first
ALIKE, ALIKE_INSIDE = 0.97, 0.7  # correlation of both, and of what lies within the outlines of tissue
PLAIN, OFF_GLASS = 1.0, 8  # levels that say nothing, and from which it is no glass
FEW, FEW_COARSE = 64, 24  # px that say too little, at the first sight and at coarser ones
STEP = 0.04  # logarithms of shapes, width by height, are rounded to multiples of it at the first comparison


def thumbnails(images: Iterable[Path], sizes: Mapping[Path, tuple[int, int]]) -> dict[Path, Path]:
    """Those of the images that are smaller than a slide and show the same, each with the first such slide.

    sizes: width and height of all slides, in order, and of the images among them. What cannot be read is none.
    """
    pixels = {file: math.prod(size) for file, size in sizes.items()}
    images = [file for file in images if pixels[file] <= MOST_OF_SLIDE * max(pixels.values())]
    least = min((pixels[file] for file in images), default=math.inf)
    slides = [file for file in sizes if least <= MOST_OF_SLIDE * pixels[file]]
    pictures = {}
    for file in progress([*dict.fromkeys([*images, *slides])], desc="thumbnails", unit="file", leave=False, delay=2):
        with suppress(InputError):
            pictures[file] = _small_picture(file, sizes[file])
    coarse = _Coarse({slide: pictures[slide] for slide in slides if slide in pictures})
    pairs = {}
    readable = [file for file in images if file in pictures]
    for image in progress(readable, desc="compare thumbnails", unit="file", leave=False, delay=2):
        for slide, number in coarse.perhaps_in(pictures[image]):
            if pixels[image] <= MOST_OF_SLIDE * pixels[slide] and _is_view(pictures[image], pictures[slide], number):
                pairs[image] = slide
                break
    return pairs


class _Coarse:
    """Slides in COARSE x COARSE grey values, grouped by their shapes."""

    def __init__(self, pictures: Mapping[Path, Image.Image]) -> None:
        self.order = {slide: place for place, slide in enumerate(pictures)}
        self.groups: dict[int, list[Path]] = defaultdict(list)
        for slide, picture in pictures.items():
            self.groups[round(math.log(picture.width / picture.height) / STEP)].append(slide)
        self.vectors = {
            shape: _vectors([pictures[slide].resize((COARSE, COARSE), Image.Resampling.BOX) for slide in group])
            for shape, group in self.groups.items()
        }

    def perhaps_in(self, image: Image.Image) -> list[tuple[Path, int]]:
        """Slides, in order, that an image may show, each with the number of a view that is alike."""
        image = image.reduce(max(1, min(image.size) // (2 * COARSE)))
        turned, pairs = _turned(image), []
        for shape, group in self.groups.items():
            views = [_part(of, math.exp(shape * STEP), COARSE, number) for of in turned for number in range(PARTS)]
            likeness = _vectors(views) @ self.vectors[shape].T
            pairs += [(group[place], int(number)) for number, place in np.argwhere(likeness > PERHAPS_ALIKE)]
        return sorted(pairs, key=lambda pair: self.order[pair[0]])


def _vectors(pictures: Sequence[Image.Image]) -> np.ndarray:
    """The grey values of N pictures of one size, (N, H * W) float32, of mean 0 and length 1; 0 of a picture of one."""
    grey = np.stack([np.asarray(picture) for picture in pictures]).mean(axis=3, dtype=np.float32)
    grey = grey.reshape(len(pictures), -1)
    grey -= grey.mean(axis=1, keepdims=True)
    return grey / np.linalg.norm(grey, axis=1, keepdims=True).clip(min=1e-9)


def _small_picture(file: Path, size: tuple[int, int]) -> Image.Image:
    """A slide, its longer side about 4 * SIGHTS[0] px."""
    with open_slide(file) as slide:
        return Image.fromarray(thumbnail(slide, max(size) / (4 * SIGHTS[0]), (0, 0, *size)))


def _turned(image: Image.Image) -> list[Image.Image]:
    """An image turned by 0, 1, 2 and 3 quarters."""
    return [image.rotate(90 * quarters, expand=True) for quarters in range(4)]


def _part(image: Image.Image, shape: float, side: int, number: int) -> Image.Image:
    """What a slide of that shape, its width by its height, may be in an image, as `side` x `side` px.

    That is, by `number`, all of it, or the part of that shape in its middle or in its upper left corner.
    """
    width, height = min(image.width, image.height * shape), min(image.height, image.width / shape)
    x, y = (image.width - width) / 2, (image.height - height) / 2
    whole = (0.0, 0.0, float(image.width), float(image.height))
    box = (whole, (x, y, x + width, y + height), (0.0, 0.0, width, height))[number]
    return image.resize((side, side), Image.Resampling.BOX, box)


def _is_view(image: Image.Image, slide: Image.Image, number: int) -> bool:
    """Whether that view of an image, by its turn and part, shows a slide, and not only its outline."""
    quarters, part = divmod(number, PARTS)
    turned = _turned(image)[quarters]
    for sight in SIGHTS:
        side = min(sight, *image.size)
        whole = slide.resize((side, side), Image.Resampling.BOX)
        view = _part(turned, slide.width / slide.height, side, part)
        if _show_same(np.asarray(view, float), np.asarray(whole, float), is_coarse=sight < SIGHTS[0]):
            return True
    return False


def _show_same(first: np.ndarray, second: np.ndarray, is_coarse: bool) -> bool:
    """Whether two pictures (H, W, 3) float are alike, and not by the outline of what they show alone.

    is_coarse: whether what lies within the outline must be alike; if not, it may be too little or too plain to say.
    """

    def correlation(members: np.ndarray) -> float | None:
        """Of their grey values; None where one of them is plain."""
        one, other = first[members].mean(axis=1), second[members].mean(axis=1)
        return np.corrcoef(one, other)[0, 1] if min(one.std(), other.std()) > PLAIN else None

    border = np.concatenate([second[0], second[-1], second[:, 0], second[:, -1]])
    inside = np.abs(second - np.median(border, axis=0)).max(axis=2) > OFF_GLASS
    inside = scipy.ndimage.binary_erosion(inside, iterations=1 if is_coarse else 2)
    everywhere = correlation(np.ones_like(inside))
    within = correlation(inside) if inside.sum() >= (FEW_COARSE if is_coarse else FEW) else None
    is_same_within = not is_coarse if within is None else within > ALIKE_INSIDE
    return everywhere is not None and everywhere >= ALIKE and is_same_within
