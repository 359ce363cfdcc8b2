"""Clusters on their slides as AnnData, which the tools for spatial data read: a file for all slides of a map."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pfiles.errors import extra
from pfiles.paths import atomic_write

if TYPE_CHECKING:
    from anndata import AnnData

FILE = "maps.h5ad"


def is_installed() -> bool:
    """Whether the package is there that the extra [spatial] brings."""
    return find_spec("anndata") is not None


def as_anndata(
    positions: np.recarray,
    cluster_ids: np.ndarray,
    confidence: np.ndarray,
    titles: Sequence[str],
    colours: Sequence[str],
    tile_px: int,
    patients: np.ndarray | None = None,
) -> "AnnData":
    """Tiles of slides and their clusters, an observation for each tile, without variables.

    positions: of N tiles, as `Tiles.positions`. cluster_ids: (N,) int, 0-based. confidence: (N,) their probabilities.
    titles, colours: of each cluster, as "3 stroma" and "#8be8a2". tile_px: side of a tile's image in pixels.
    patients: (N,), "" if unknown.

    `obs`: cluster, an ordered categorical of all titles; confidence; slide; patient, if known, missing for "".
    `obsm["spatial"]`: (N, 2) float, x and y of each tile's centre in pixels of its slide's level 0.
    `uns`: cluster_colors, in the order of the categories; spatial, for each slide the side of a tile in pixels of level
    0 (scalefactors, spot_diameter_fullres) and microns per pixel of level 0 (metadata, mpp; NaN where unknown).
    InputError if anndata is not installed.
    """
    with extra("spatial"):
        from anndata import AnnData

    obs = pd.DataFrame(
        {
            "cluster": pd.Categorical.from_codes(cluster_ids, _words(titles), ordered=True),
            "confidence": np.asarray(confidence, float),
            "slide": _categories(positions.slide),
        },
        index=_words(map(str, range(len(cluster_ids)))),
    )
    if patients is not None:
        obs["patient"] = _categories(patients)
    corners = np.stack([positions.x, positions.y], axis=1)
    centres = corners + np.asarray(positions.side, float)[:, None] / 2
    _, firsts = np.unique(positions.slide, return_index=True)
    scale = {str(tile.slide): _scale(float(tile.side), float(tile.mpp), tile_px) for tile in positions[firsts]}
    return AnnData(
        obs=obs,
        var=pd.DataFrame(index=_words([])),
        obsm={"spatial": centres},
        uns={"cluster_colors": np.array([*colours], dtype=object), "spatial": scale},
    )


def _words(words: Iterable[str]) -> pd.Index:
    """An index that is written in the way which every version of anndata reads."""
    return pd.Index([*words], dtype=object)


def _categories(words: np.ndarray) -> pd.Categorical:
    """The words as a categorical; "" is missing."""
    categories, codes = np.unique(np.asarray(words, str), return_inverse=True)
    none = int("" in categories)  # "" comes first
    return pd.Categorical.from_codes(codes - none, _words(categories[none:].tolist()))


def _scale(side: float, mpp: float, tile_px: int) -> dict[str, dict[str, float]]:
    """The scale of one slide, whose tiles are `side` pixels of level 0 wide and have `mpp` microns per pixel."""
    return {"scalefactors": {"spot_diameter_fullres": side}, "metadata": {"mpp": mpp * tile_px / side}}


def write_spatial(
    folder: Path,
    positions: np.recarray,
    cluster_ids: np.ndarray,
    confidence: np.ndarray,
    legend: Sequence[tuple[str, str]],
    tile_px: int,
    patients: np.ndarray | None = None,
) -> None:
    """Write maps.h5ad into `folder`, whole or not at all; where anndata is not installed, an earlier one goes.

    legend: title and colour of each cluster. The others: see `as_anndata`.
    """
    if not is_installed():
        (folder / FILE).unlink(missing_ok=True)  # it may be of other clusters
        return
    import h5py
    from anndata.io import write_elem

    titles, colours = zip(*legend, strict=True)
    content = BytesIO()
    with h5py.File(content, "w") as file:
        write_elem(file, "/", as_anndata(positions, cluster_ids, confidence, titles, colours, tile_px, patients))
    with atomic_write(folder / FILE) as whole:
        whole.write(content.getbuffer())
