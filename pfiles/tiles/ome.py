"""The images of OME-TIFF and OME-Zarr, with all their levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from pfiles.errors import InputError, extra
from pfiles.tiles.arrays import ArraySlide, Plane, numbered, plane_of, profile_of
from pfiles.tiles.companions import is_companion
from pfiles.tiles.files import ALPHA, fourth_sample, most_of_samples
from pfiles.tiles.scale import both, microns, mpp_of_tiff


@dataclass(frozen=True)
class _Image:
    """An image of an OME file: its levels as arrays, their axes, the index of other axes than colours, its scale.

    most: what stands for full brightness, where it says so. profile: of its colours. fourth: see `Plane`.
    """

    levels: Callable[[int | None], Sequence[Any]]
    axes: str
    index: Mapping[str, int]
    most: int | None
    mpp: tuple[float, float] | None
    profile: bytes | None = None
    fourth: int = ALPHA

    def planes(self, path: Path) -> list[Plane]:
        """Its levels; InputError where they are no image in colour, see `plane_of`."""
        levels = self.levels(self.most)
        return [plane_of(level, self.axes, self.index, self.most, path, self.fourth) for level in levels]


def _planes_of_axes(axes: str, shape: Sequence[int]) -> list[dict[str, int]]:
    """The indices along axes that are neither places nor colours, such as focal planes, and those of length 1."""
    colour = "S" if "S" in axes else "C"
    others = {axis: n for axis, n in zip(axes, shape, strict=True) if axis not in ("Y", "X", colour)}
    return [dict(zip(others, index, strict=True)) for index in np.ndindex(*others.values())]


def tiff_images(file: tifffile.TiffFile) -> list[_Image]:
    """The images of an OME-TIFF but for companions; of each focal plane one."""
    elements = [
        element for element in ElementTree.fromstring(file.ome_metadata or "") if element.tag.endswith("}Image")
    ]
    images = []
    for number, series in enumerate(file.series):
        if is_companion(series.name):
            continue
        element = elements[number] if len(elements) == len(file.series) else None
        pixels = {} if element is None else next(child for child in element if child.tag.endswith("}Pixels")).attrib
        sizes = [
            microns(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "um")) for axis in "XY"
        ]
        bits = int(pixels.get("SignificantBits", 0))
        most = 2**bits - 1 if bits > 8 else most_of_samples(series.keyframe)
        profile = series.keyframe.tags.valueof("InterColorProfile")
        mpp = both(*sizes) or mpp_of_tiff(series.keyframe)
        fourth = fourth_sample(series.keyframe)

        def levels(most: int | None, series: tifffile.TiffPageSeries = series) -> list[Any]:
            white = most or 255
            stores = [series.aszarr(level=level, fillvalue=white) for level in range(len(series.levels))]
            return [_zarr().open_array(store, mode="r") for store in stores]

        for index in _planes_of_axes(series.axes, series.shape):
            images.append(_Image(levels, series.axes, index, most, mpp, profile, fourth))
    return images


def open_ome(path: Path, page: int = 1) -> ArraySlide:
    """An image of an OME-TIFF with all its levels; page: from 1, among all but companions."""
    file = tifffile.TiffFile(path)
    image = numbered(tiff_images(file), page, path)
    return ArraySlide(image.planes(path), image.mpp, profile_of(image.profile), file.close)


def _zarr() -> Any:
    with extra("ome"):
        import zarr
    return zarr


def zarr_images(path: Path) -> list[_Image]:
    """The images of an OME-Zarr of version 0.4 or 0.5; of several series, as bioformats2raw writes them, all."""
    root = _zarr().open_group(path, mode="r")
    groups = [root] if _multiscales(root) else [root[name] for name in sorted(filter(str.isdigit, root), key=int)]
    images = []
    for group in groups:
        for multiscale in _multiscales(group):
            if is_companion(multiscale.get("name") or ""):
                continue
            axes = "".join(axis["name"].upper() for axis in multiscale["axes"])
            units = {axis["name"].upper(): axis.get("unit") for axis in multiscale["axes"]}
            datasets = multiscale["datasets"]
            scales = [scale for part in (datasets[0], multiscale) if (scale := _scale(part)) is not None]
            steps = np.prod(scales, axis=0).tolist() if scales else [None] * len(axes)
            mpp = both(*(microns(steps[axes.index(axis)], units[axis]) for axis in "XY"))
            arrays = [group[dataset["path"]] for dataset in datasets]
            channels = _ome(group).get("omero", {}).get("channels", [])
            tops = {channel.get("window", {}).get("max") for channel in channels} - {None}
            most = int(tops.pop()) if len(tops) == 1 else None

            def levels(most: int | None, arrays: Sequence[Any] = arrays) -> Sequence[Any]:
                return arrays

            for index in _planes_of_axes(axes, arrays[0].shape):
                images.append(_Image(levels, axes, index, most, mpp))
    return images


def _scale(described: Mapping[str, Any]) -> np.ndarray | None:
    """What a dataset, or a multiscale for all of its datasets, says of its pixels along each axis; None: nothing."""
    transformations = described.get("coordinateTransformations", [])
    return next((np.array(t["scale"]) for t in transformations if t["type"] == "scale"), None)


def _ome(group: Any) -> Mapping[str, Any]:
    attributes = dict(group.attrs)
    return attributes.get("ome", attributes)


def _multiscales(group: Any) -> Sequence[Mapping[str, Any]]:
    return _ome(group).get("multiscales", [])


def open_zarr(path: Path, page: int = 1) -> ArraySlide:
    """An image of an OME-Zarr with all its levels; page: from 1, among all but companions."""
    try:
        image = numbered(zarr_images(path), page, path)
        planes = image.planes(path)
    except InputError:
        raise
    except Exception as error:  # broken metadata raise errors of many kinds
        raise InputError(f"{path} cannot be read as an OME-Zarr ({error!r}): replace it or leave it out.") from error
    return ArraySlide(planes, image.mpp)
