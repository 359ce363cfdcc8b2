"""How well tissue is found: made slides of many kinds, each with its true mask, and the embedded one.

    python -m benchmarks.tissue [--pictures FOLDER]

A made slide has 0.5 um/px and is averaged to a thumbnail of 4 um/px, as `python -m pfiles tile` does for tiles of 64 px
at 1 um/px. Its tissue has texture (nuclei at random places) in the colours of the kind. The embedded slide's mask was
drawn by hand, as a polygon. Prints the intersection over union of each kind, and the time of all. FOLDER gets a picture
of each slide with the outlines of the true mask (black) and of the one that was found (green).
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from pfiles.tiles.builtin import SLIDE
from pfiles.tiles.readers import open_slide, read_rgb
from pfiles.tiles.tissue import ENCLOSED, tissue_mask

SIDE, FACTOR, MPP = 1408, 8, 4.0  # px of a made slide, px of it that make one of the thumbnail, um of that one
SPECK, HOLE = 64, (ENCLOSED / MPP) ** 2  # px of the thumbnail, as `plan_tiles` has them
GLASS, PINK, PURPLE = (243, 243, 243), (226, 150, 190), (110, 70, 150)
DRAWN = [  # the embedded slide's tissue by eye, in px of an eighth of its finest level
    (129, 8), (160, 12), (183, 40), (196, 68), (200, 105), (215, 118), (240, 150), (242, 165), (222, 178), (200, 200),
    (188, 222), (205, 232), (228, 235), (230, 290), (218, 371), (178, 371), (64, 371), (68, 330), (82, 270), (95, 200),
    (104, 135), (60, 138), (10, 142), (60, 130), (108, 122), (112, 78), (104, 66), (118, 45), (112, 22),
]  # fmt: skip


def texture(seed: int, ground=PINK, nuclei=PURPLE, noise: float = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    dots = (rng.random((SIDE, SIDE)) < 0.004).astype(np.float32)
    share = np.clip(ndimage.gaussian_filter(dots, 2.2) / 0.02, 0, 1)[..., None]
    return np.array(ground) * (1 - share) + np.array(nuclei) * share + rng.normal(size=(SIDE, SIDE, 3)) * noise


def ellipse(reach: float = 0.35) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    return (y / reach) ** 2 + (x / reach) ** 2 < 1


def plain(glass=GLASS, reach: float = 0.35, shade=None, **colours) -> tuple[np.ndarray, np.ndarray]:
    """A round piece of tissue on glass, and where it lies. shade: by what light is multiplied, by place."""
    tissue, rng = ellipse(reach), np.random.default_rng(0)
    image = np.array(glass) + rng.normal(size=(SIDE, SIDE, 1))
    image[tissue] = texture(3, **colours)[tissue]
    if shade is not None:
        image *= shade(*(np.mgrid[:SIDE, :SIDE] / SIDE))[..., None]
    return image, tissue


def fat(cell: int, wall: int, round_cells: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Empty cells of `cell` px with walls of `wall` px; each cell that is closed is tissue."""
    image, tissue = plain()
    y, x = np.mgrid[:SIDE, :SIDE]
    pitch = cell + wall
    if round_cells:
        x = x + pitch // 2 * (y // pitch % 2)
        empty = (y % pitch - pitch / 2) ** 2 + (x % pitch - pitch / 2) ** 2 < (cell / 2) ** 2
    else:
        empty = (y % pitch >= wall) & (x % pitch >= wall)
    image[empty] = GLASS[0]
    return image, ndimage.binary_fill_holes(tissue & ~empty)


def pen(colour, width: int = 42, opaque: float = 1.0, noise: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """A stroke across glass and the edge of the tissue, and one that is all on glass."""
    image, tissue = plain(reach=0.3)
    y, x = np.mgrid[:SIDE, :SIDE]
    ink = (np.abs(x - y - 0.36 * SIDE) < width * 0.7) | ((np.abs(y - 0.06 * SIDE) < width / 2) & (x < SIDE // 2))
    stroke = np.array(colour) + np.random.default_rng(1).normal(size=image.shape) * noise
    image[ink] = (opaque * stroke + (1 - opaque) * image)[ink]
    return image, tissue & ~ink


def lines() -> tuple[np.ndarray, np.ndarray]:
    """A grey line around the tissue, as the edge of a cover glass, a black border, and dust."""
    image, tissue = plain(reach=0.3)
    image[40:64] = image[:, 40:64] = 175
    image[-60:] = 4
    image[100:112, 700:712] = 90
    return image, tissue


def everything(**colours) -> tuple[np.ndarray, np.ndarray]:
    return texture(3, **colours), np.ones((SIDE, SIDE), bool)


def two_levels() -> tuple[np.ndarray, np.ndarray]:
    """A strongly stained piece beside a pale one."""
    image, tissue = plain(reach=0.2)
    pale = np.roll(tissue, -SIDE // 3, axis=1)
    image[pale] = texture(5, (240, 230, 238), (225, 218, 232))[pale]
    return image, tissue | pale


KINDS: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "neutral glass": plain,
    "glass cream": lambda: plain((243, 234, 210)),
    "glass yellow": lambda: plain((240, 230, 195)),
    "glass bluish": lambda: plain((215, 230, 243)),
    "glass greenish": lambda: plain((222, 240, 226)),
    "glass dim": lambda: plain((205, 203, 198)),
    "glass very dim": lambda: plain((185, 180, 166)),
    "glass with a shadow": lambda: plain(shade=lambda y, x: 1 - 0.25 * x),
    "glass cream, darker at its rim": lambda: plain(
        (243, 234, 210), shade=lambda y, x: 1 - 0.5 * ((y - 0.5) ** 2 + (x - 0.5) ** 2)
    ),
    "pale, 14 levels": lambda: plain(ground=(238, 224, 234), nuclei=(215, 200, 225)),
    "pale, 10 levels": lambda: plain(ground=(240, 230, 238), nuclei=(225, 218, 232)),
    "pale, 8 levels": lambda: plain(ground=(241, 233, 239), nuclei=(230, 222, 234), noise=2),
    "pale beside strong": two_levels,
    "fat, cells of 53 um": lambda: fat(106, 14),
    "fat, cells of 90 um, thin walls": lambda: fat(180, 6),
    "fat, round cells of 70 um": lambda: fat(140, 8, True),
    "over-stained": lambda: plain(ground=(150, 30, 110), nuclei=(60, 20, 80)),
    "strong haematoxylin": lambda: plain(ground=(75, 60, 130), nuclei=(45, 38, 75)),
    "very dark": lambda: plain(ground=(58, 42, 70), nuclei=(40, 30, 52)),
    "all tissue": everything,
    "all tissue, pale": lambda: everything(ground=(236, 214, 228), nuclei=(190, 170, 210)),
    "Masson": lambda: plain(ground=(80, 120, 190), nuclei=(90, 40, 90)),
    "Alcian blue": lambda: plain(ground=(120, 190, 215), nuclei=(80, 110, 170)),
    "DAB and haematoxylin": lambda: plain(ground=(190, 150, 110), nuclei=(90, 100, 150)),
    "blood": lambda: plain(ground=(225, 70, 85), nuclei=(90, 40, 90)),
    "blood, dark": lambda: plain(ground=(165, 40, 50), nuclei=(110, 30, 45)),
    "pen violet": lambda: pen((50, 45, 150)),
    "pen purple": lambda: pen((110, 40, 150)),
    "pen dark red": lambda: pen((140, 25, 35)),
    "pen red": lambda: pen((215, 25, 35), noise=4),
    "pen orange": lambda: pen((240, 130, 30)),
    "pen yellow": lambda: pen((245, 225, 60)),
    "pen pink": lambda: pen((240, 80, 160)),
    "pen navy": lambda: pen((25, 25, 112)),
    "pen blue": lambda: pen((40, 70, 190), noise=4),
    "pen green": lambda: pen((20, 110, 70), noise=4),
    "pen black": lambda: pen((30, 30, 32)),
    "pen purple, broad and thin ink": lambda: pen((110, 40, 150), 90, 0.8, 4),
    "cover glass, border, dust": lines,
}


def embedded() -> tuple[np.ndarray, np.ndarray]:
    with open_slide(SLIDE) as slide:
        image = np.asarray(read_rgb(slide, 0, 0, 0, *slide.dimensions, 8))
    mask = Image.new("1", image.shape[1::-1])
    ImageDraw.Draw(mask).polygon(DRAWN, fill=1)
    return image, np.asarray(mask)


def thumbnail(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A made slide averaged down, (H, W, 3) uint8, and its true mask (H, W) bool."""
    image, tissue = KINDS[kind]()
    image = np.clip(image, 0, 255).astype(np.uint8)
    side = SIDE // FACTOR
    small = image.reshape(side, FACTOR, side, FACTOR, 3).mean(axis=(1, 3))
    return (small + 0.5).astype(np.uint8), tissue.reshape(side, FACTOR, side, FACTOR).mean(axis=(1, 3)) > 0.5


def overlap(mask: np.ndarray, true: np.ndarray) -> float:
    """Intersection over union."""
    return (mask & true).sum() / max(1, (mask | true).sum())


def outlined(image: np.ndarray, mask: np.ndarray, true: np.ndarray) -> Image.Image:
    picture = image.copy()
    for area, colour in ((true, (0, 0, 0)), (mask, (0, 200, 0))):
        picture[area & ~ndimage.binary_erosion(area)] = colour
    return Image.fromarray(np.concatenate([image, picture], axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each slide")
    folder = parser.parse_args().pictures
    scores = {}
    for kind in [*KINDS, "the embedded slide"]:
        image, true = thumbnail(kind) if kind in KINDS else embedded()
        mask = tissue_mask(image, SPECK, HOLE)
        scores[kind] = overlap(mask, true)
        print(f"| {kind} | {scores[kind]:.2f} |")
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            outlined(image, mask, true).save(folder / f"{kind}.png")
    print(f"| mean, least | {np.mean(list(scores.values())):.2f}, {min(scores.values()):.2f} |")
    large = np.tile(embedded()[0], (6, 8, 1))[:2048, :2048]
    tissue_mask(large, SPECK, HOLE)
    begin = time.process_time()
    for _ in range(3):
        tissue_mask(large, SPECK, HOLE)
    print(f"{(time.process_time() - begin) / 3:.2f} s for a thumbnail of 2048 x 2048 px")


if __name__ == "__main__":
    main()
