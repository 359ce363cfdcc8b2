"""Slides of known content, for all tests that read slides, and folders of tiles."""

import numpy as np
import tifffile
from skimage.data import immunohistochemistry

GLASS = 243


def tissue(height, width, seed=0):
    """Tissue without an end, from scikit-image's picture, turned by quarters, and stained where it was pale."""
    image = (np.rot90(immunohistochemistry(), seed)[64:448, 64:448] * 0.5 + (95, 50, 75)).astype(np.uint8)
    return np.tile(image, (height // 384 + 1, width // 384 + 1, 1))[:height, :width]


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
