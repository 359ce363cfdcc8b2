"""What comes from others is checked whole before any network is built: a generator's folder, and tensors to work on."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfiles.clusterers import CLUSTERINGS, make_clusterer
from pfiles.errors import InputError
from pfiles.paths import read_json
from pfiles.settings import get_settings
from pfiles.unet_cond_base import make_unet
from pfiles.vqvae import make_vqvae

MOST_BYTES = 2**20  # of config.json, and of the head of model.safetensors
LARGEST_SIDE, MOST_TIMESTEPS = 4096, 100_000
KINDS = {"F8_E4M3": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I64": 8}  # bytes of a number in model.safetensors
TENSORS_OF_LAYER = 10  # that a layer of the UNet has at least
MOST_WIDTHS, MOST_LAYERS = 16, 64  # in a list of widths, and of the UNet: more would take seconds to build and refuse
PART = 2**20  # numbers that are looked at at once

Shapes = Mapping[str, tuple[int, ...]]


def require_sound_folder(folder: Path) -> None:
    """InputError unless config.json and the head of model.safetensors in `folder` describe one generator.

    Whatever they say, little is read and no network takes memory: widths are held against the shapes of the tensors in
    the file first, and then networks without values against the name and shape of each.
    """
    path = folder / "config.json"
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{path} is larger than {MOST_BYTES // 2**20} MB, as no generator's is: get it anew.")
    config = read_json(path, {})
    shapes = read_shapes(folder / "model.safetensors")
    try:
        for name, shape in shapes.items():
            if 0 in shape:
                raise ValueError(f"{name} has the shape {shape}")
        _require_config(config, shapes)
        _require_networks(config, shapes)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{folder} does not hold a generator that fits together ({reason}): get it anew.") from error


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a safetensors file, of which the head alone is read; InputError for a broken one."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MOST_BYTES, size - 8):
                raise ValueError(f"its head has {length} bytes")
            head = json.loads(file.read(length))
        head.pop("__metadata__", None)
        shapes, parts = {}, []
        for name, tensor in head.items():
            shape, (begin, end) = tuple(tensor["shape"]), tensor["data_offsets"]
            if any(type(side) is not int or side < 0 for side in shape):
                raise ValueError(f"{name} has the shape {shape}")
            if end - begin != math.prod(shape) * KINDS[tensor["dtype"]]:
                raise ValueError(f"{name} has {end - begin} bytes for the shape {shape} of {tensor['dtype']}")
            shapes[name] = shape
            parts.append((begin, end))
        ends = [0, *(end for _, end in sorted(parts))]
        if [begin for begin, _ in sorted(parts)] != ends[:-1] or ends[-1] != size - 8 - length:
            raise ValueError("its tensors do not fill it")
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): get it anew.") from error
    return shapes


def require_sound_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    """InputError if a number among the tensors of a generator's folder is infinite or none."""
    for name, tensor in weights.items():
        if not all(torch.isfinite(part.float()).all() for part in tensor.flatten().split(PART)):
            raise InputError(f"{folder} holds infinite or undefined numbers in {name}: get it anew.")


def _require_config(config: Mapping[str, Any], shapes: Shapes) -> None:
    settings, k = config["settings"], config["n_clusters"]
    widest = max((side for shape in shapes.values() for side in shape), default=0)
    most = max(widest, len(shapes))
    widths = {name: settings[name] for name in ("autoencoder.vqvae", "diffusion.unet")}
    for name, value in (
        ("n_clusters", k),
        *((f"{group}.{n}", v) for group in widths for n, v in widths[group].items()),
    ):
        values = value if isinstance(value, list) else [value]
        if len(values) > MOST_WIDTHS or any(isinstance(v, int | float) and not abs(v) <= most for v in values):
            raise ValueError(f"{name} is larger than any tensor")
    unet = settings["diffusion.unet"]
    if unet.get("num_layers", 1) * len(unet.get("down_channels", [])) > min(
        MOST_LAYERS, len(shapes) / TENSORS_OF_LAYER
    ):
        raise ValueError(f"diffusion.unet has more layers than there are tensors, or than {MOST_LAYERS}")
    if type(k) is not int or k < 1:
        raise ValueError(f"n_clusters is {k!r}")
    for name, limit in (("image_size_px", LARGEST_SIDE), ("diffusion.num_timesteps", MOST_TIMESTEPS)):
        if not 1 <= settings.get(name, 1) <= limit:
            raise ValueError(f"{name} is {settings[name]!r}, but at most {limit} are drawn")
    shares = config["cluster_shares"]
    if not isinstance(shares, list) or len(shares) != k or not _are_numbers(shares):
        raise ValueError(f"cluster_shares must be {k} numbers")
    if min(shares) < 0 or abs(sum(shares) - 1) > 0.001:
        raise ValueError("cluster_shares must be at least 0 and add up to 1")
    for name, text in (config.get("cluster_names") or {}).items():
        if name not in map(str, range(1, k + 1)) or not isinstance(text, str):
            raise ValueError(f"cluster_names has {name[:20]!r}, which is no cluster's number with its name")
    mpp = config.get("mpp")
    if mpp is not None and not (_are_numbers([mpp]) and 0 < mpp <= 50):
        raise ValueError(f"mpp is {mpp!r}")
    if not isinstance(config["about"], dict):
        raise ValueError("about must be names and values")


def _require_networks(config: Mapping[str, Any], shapes: Shapes) -> None:
    settings, k = get_settings("paper", config["settings"]), config["n_clusters"]
    kind = CLUSTERINGS[CLUSTERINGS.index(config["clustering"])]
    with torch.device("meta"):
        vqvae = make_vqvae(settings.autoencoder)
        unet = make_unet(settings.diffusion, vqvae.z_channels, k)
        networks = {"vqvae": vqvae, "unet": unet, "clusterer": make_clusterer(kind, vqvae.z_channels, k)}
        if settings.sampling.guide != "itself":
            networks["guide"] = unet
    others = set(shapes)
    for name, network in networks.items():
        for key, tensor in network.state_dict().items():
            shape = shapes.get(f"{name}.{key}")
            if shape != tuple(tensor.shape):
                raise ValueError(f"{name}.{key} has the shape {shape}, where {tuple(tensor.shape)} is needed")
            others.remove(f"{name}.{key}")
    if others:
        raise ValueError(f"it has the tensor {min(others)[:80]!r}, which belongs to no network")
    scaling = config["latent_scaling"]
    if scaling is not None:
        mean, std = scaling["mean"], scaling["std"]
        if not (len(mean) == len(std) == vqvae.z_channels and _are_numbers([*mean, *std]) and min(std) > 0):
            raise ValueError(f"latent_scaling must be {vqvae.z_channels} numbers each, and deviations above 0")


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)


def require_images(images: Any, side: int) -> None:
    """InputError unless `images` are uint8 tiles (N, 3, side, side), at least one."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"Tiles must be a tensor of uint8, 0 to 255, but are {kind}: convert them.")
    if images.dim() != 4 or tuple(images.shape[1:]) != (3, side, side) or not len(images):
        raise InputError(
            f"Tiles must have the shape (N, 3, {side}, {side}), as the generator's own, but have "
            f"{tuple(images.shape)}: cut or average them to that size."
        )


def require_cluster_ids(cluster_ids: Tensor, n_clusters: int) -> None:
    """InputError unless `cluster_ids` (N,) are whole numbers of clusters from 0, at least one."""
    if not cluster_ids.numel():
        raise InputError("There is no tile to draw: ask for at least 1.")
    whole = cluster_ids.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if not whole or cluster_ids.dim() != 1 or not ((cluster_ids >= 0) & (cluster_ids < n_clusters)).all():
        raise InputError(
            f"Clusters are numbered from 1 to {n_clusters}, as text or by name, and their ids from 0 to "
            f"{n_clusters - 1}, as whole numbers: choose among these."
        )


def require_seeds(seeds: Sequence[int], number: int) -> None:
    """InputError unless there is a seed for each tile, a whole number from 0 to 2**63 - 1."""
    if len(seeds) != number or any(type(seed) is not int or not 0 <= seed < 2**63 for seed in seeds):
        raise InputError(f"There must be {number} seeds, one for each tile, whole numbers from 0 to 2**63 - 1.")


def require_variations(strength: float, number: int) -> None:
    """InputError unless `strength` is a share above 0 and `number`, of variations of each tile, at least 1."""
    if not 0 < strength <= 1:
        raise InputError(f"The strength of a variation must be above 0 and at most 1, but is {strength:g}.")
    if not isinstance(number, int) or number < 1:
        raise InputError(f"The number of variations must be a whole number of at least 1, but is {number!r}.")
