"""Which training tiles may an image be a copy of? Those that `memorisation` then compares at full resolution.

Small versions that are alike propose some of them, and spots that are alike the others, see `overlays`. Of each
training tile 2.4 kB are kept for this. The tile itself stays where it is, and is read where it is compared.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import scipy
import torch
import torch.nn.functional as F
from torch import Tensor

from pfiles.machine.processes import progress
from pfiles.measuring.overlays import LAYOUT, Library, make_library
from pfiles.tiles.mapped import Images

COARSE_SIDE = 12  # pixels of the small versions
SMALL_ONES = 8192  # of training tiles that are compared at once; changes memory and speed only
LIKE, UNLIKE = 64, 8  # training tiles proposed by small versions: those most like an image, and those least like it
READ_AT_ONCE = 32  # training tiles; changes memory and speed only


class Index(NamedTuple):
    """What is kept of M training tiles: the tiles themselves, where they are; their small versions (M, 144), of length
    1; and what is laid over images, None for tiles too small for that."""

    tiles: Images
    small: Tensor
    library: Library | None


class Candidates(NamedTuple):
    """Of B images, training tiles and the view of the image that each is compared with: (B, C) each.

    unlike: how many of them, the last ones, were proposed because the small versions are most unlike.
    """

    tile: Tensor
    view: Tensor
    unlike: int


def make_index(tiles: Images) -> Index:
    """The index of uint8 training tiles (M, 3, S, S)."""
    places = [slice(begin, begin + READ_AT_ONCE) for begin in range(0, len(tiles), READ_AT_ONCE)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:

        def spread(function, parts, desc):
            return progress(pool.map(function, parts), desc=desc, total=len(parts), unit="batch", leave=False, delay=2)

        bar = spread(lambda place: small_version(structure(tiles[place])).half(), places, "training tiles")
        small = torch.cat([*bar])
        library = make_library(
            tiles, places, lambda function, parts: spread(function, parts, "spots of training tiles")
        )
    return Index(tiles, small, library)


def propose(index: Index, views: Tensor, others: Tensor | None = None) -> Candidates:
    """Training tiles whose small versions are most like, and most unlike, those of images, given in 8 views each (B, 8,
    S, S), see `views_of`.

    others: (B, V), more training tiles, which only get a view.
    """
    small = small_version(views.flatten(0, 1))
    none = torch.empty(len(views), 0), torch.empty(len(views), 0, dtype=torch.long)
    best = [none, none]  # likeness and tile of those most like, and of those most unlike
    for begin in range(0, len(index.small), SMALL_ONES):
        likeness = (small @ index.small[begin : begin + SMALL_ONES].float().T).unflatten(0, views.shape[:2])
        for i, (of_views, number) in enumerate(((likeness.amax(1), LIKE), (-likeness.amin(1), UNLIKE))):
            value, tile = of_views.topk(min(number, of_views.shape[1]))
            value, tile = (torch.cat(pair, dim=1) for pair in zip(best[i], (value, tile + begin), strict=True))
            value, place = value.topk(min(number, value.shape[1]))
            best[i] = value, tile.gather(1, place)
    (_, like), (_, unlike_ones) = best
    tile = torch.cat([like, unlike_ones] if others is None else [like, others, unlike_ones], dim=1)
    likeness = small.unflatten(0, views.shape[:2]) @ index.small[tile].float().transpose(1, 2)  # (B, 8, C)
    unlike = unlike_ones.shape[1]
    likeness[:, :, tile.shape[1] - unlike :] *= -1
    return Candidates(tile, likeness.argmax(1), unlike)


def structure(images: Tensor) -> Tensor:
    """uint8 (N, 3, S, S) -> float32 (N, S, S): grey less its local mean."""
    red, green, blue = images.unbind(1)
    grey = ((red.float() + green + blue) / 3).cpu().numpy()
    side = round(images.shape[2] * LAYOUT) | 1  # odd, so that turned images give turned results
    return torch.from_numpy(grey - scipy.ndimage.uniform_filter(grey, (0, side, side)))


def small_version(structures: Tensor) -> Tensor:
    """(N, S, S) -> (N, 144): 12 x 12 px, scaled to length 1."""
    return F.normalize(F.adaptive_avg_pool2d(structures[:, None], COARSE_SIDE).flatten(1))


def views_of(structures: Tensor) -> Tensor:
    """(N, S, S) -> (N, 8, S, S): turned by 0, 1, 2, 3 quarters, then the same mirrored left to right."""
    turned = torch.stack([structures.rot90(quarters, (1, 2)) for quarters in range(4)], dim=1)
    return torch.cat([turned, turned.flip(3)], dim=1)
