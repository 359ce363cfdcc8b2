"""What the sections of a report compare, and how.

`EvaluationData` has more members than other classes, as each is something that some measure needs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pfiles.latents import decode_codes, encode_tiles
from pfiles.measuring.features import Extractor, ReadFeatures
from pfiles.measuring.two_sample import BLURS_PX
from pfiles.tiles.mapped import Images
from pfiles.tiles.pixels import to_uint8
from pfiles.vqvae import VQVAE

MIN_IMAGES = 20  # of each side, fewer say nothing about a distribution
HELD_OUT = "held-out real tiles"


@dataclass(frozen=True)
class EvaluationData:
    """What is compared: images as uint8 (N, 3, H, W) of one size, and what is known of them.

    real: of the mix of slides that was trained on; held_out: real ones of other slides or regions, where there are
    some. searched: the tiles among which copies are looked for; None: `real`. The ids are the clusters (N,), 0-based,
    those of `generated` the ones asked for; None if they are not known. The labels (N,) are of tissue, "" if unknown,
    which no training saw; None if there are none. vqvae: the trained autoencoder. codes: of `real`, codes_of_held_out:
    of `held_out`, where they were encoded before. clusterer: the network that the clusters come from; None if only its
    verdicts are known. n_clusters: None for as many as are seen. names: of clusters, by their numbers from 1.
    is_paired: whether image i of `generated` belongs to image i of `real`, so that pairs have scores. mpp: microns per
    pixel of all images; None if not known. ladder: the file that keeps the ladder of structure, and what `real` and its
    autoencoder are; None: it is computed anew.
    """

    real: Tensor
    generated: Tensor
    held_out: Tensor | None = None
    searched: Images | None = None
    real_ids: np.ndarray | None = None
    generated_ids: np.ndarray | None = None
    held_out_ids: np.ndarray | None = None
    real_labels: np.ndarray | None = None
    held_out_labels: np.ndarray | None = None
    vqvae: VQVAE | None = None
    codes: Tensor | None = None
    codes_of_held_out: Tensor | None = None
    clusterer: nn.Module | None = None
    n_clusters: int | None = None
    names: Mapping[int, str] | None = None
    is_paired: bool = False
    mpp: float | None = None
    ladder: tuple[Path, Mapping[str, Any]] | None = None

    @property
    def k(self) -> int:
        return self.n_clusters or 1 + int(max(ids.max() for ids in self.ids))

    @property
    def ids(self) -> tuple[np.ndarray, np.ndarray]:
        """The clusters of `real` and those of `generated`, of data that have them."""
        if self.real_ids is None or self.generated_ids is None:
            raise ValueError("These data have no clusters.")
        return self.real_ids, self.generated_ids

    @property
    def autoencoder(self) -> VQVAE:
        """`vqvae`; only for data that have one."""
        if self.vqvae is None:
            raise ValueError("These data have no autoencoder.")
        return self.vqvae

    @cached_property
    def real_codes(self) -> Tensor:
        """The codes (N, h, w) of `real`, encoded where that has not been done, on the autoencoder's device."""
        return self.encoded(self.real) if self.codes is None else self.codes

    @cached_property
    def held_out_codes(self) -> Tensor:
        """The codes of `held_out`, likewise; only for data that have held-out tiles."""
        if self.codes_of_held_out is not None:
            return self.codes_of_held_out
        if self.held_out is None:
            raise ValueError("These data have no held-out tiles.")
        return self.encoded(self.held_out)

    @cached_property
    def generated_codes(self) -> Tensor:
        """The codes of `generated`."""
        return self.encoded(self.generated)

    @cached_property
    def reconstructed(self) -> Tensor | None:
        """What the autoencoder makes of `real`, uint8 (N, 3, H, W) on the CPU; None without one."""
        return None if self.vqvae is None else to_uint8(decode_codes(self.vqvae, self.real_codes)).cpu()

    def reconstruct(self, images: Tensor) -> Tensor:
        """What the autoencoder makes of some images, both uint8 (N, 3, H, W), on the CPU."""
        return to_uint8(decode_codes(self.autoencoder, self.encoded(images))).cpu()

    def encoded(self, images: Tensor) -> Tensor:
        """The codes of some images, uint8 (N, 3, H, W)."""
        return encode_tiles(self.autoencoder, images.to(next(self.autoencoder.parameters()).device))


@dataclass(frozen=True)
class Options:
    """How to measure: extractors of features, the seed of all that is random, where networks compute, and the scales in
    pixels at which two sets are told apart."""

    extractors: Sequence[Extractor | ReadFeatures] = ()
    seed: int = 765
    device: torch.device | str = "cpu"
    blurs_px: Sequence[float] = BLURS_PX


def clusters_left_out(clusters: Sequence[str]) -> str:
    """The sentence on clusters that have too few images, empty if there are none."""
    if not clusters:
        return ""
    return f"Left out, with fewer than {MIN_IMAGES} images on one side: clusters {', '.join(clusters)}."


def too_few(needed: int, fewest: int) -> str:
    """The sentence that stands in place of a measure that needs more tiles."""
    return f"Left out: it needs at least {needed} tiles of each set, but one has {fewest}."
