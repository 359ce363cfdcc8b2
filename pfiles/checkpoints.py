"""Network weights on disk: plain state dicts under the published names, each with a JSON that says what it is."""

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pfiles.clustering import make_clustering
from pfiles.data import Tiles
from pfiles.errors import InputError
from pfiles.paths import Paths, atomic_write, read_json, write_json
from pfiles.runtime import versions
from pfiles.settings import Settings
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE

STAGES = ("training", "finetuning1", "finetuning2")
MADE_BY = {"training": "part_1_training", "finetuning1": "part_2_finetuning1", "finetuning2": "part_3_finetuning2"}


def identity(settings: Settings, groups: Iterable[str], tiles: Tiles, seed: int, **inputs: Any) -> dict[str, Any]:
    """All that the result of a training depends on, as plain values.

    groups: the fields of `settings` that the training uses. inputs: whatever else it starts from, such as the
    `fingerprint` of a network. The number of epochs is not part of it, so that a longer training can go on from the
    resume point of a shorter one.
    """
    used = {}
    for group in ("image_size_px", "batch_size", *groups):
        value = getattr(settings, group)
        used[group] = asdict(value) if is_dataclass(value) else value
        if is_dataclass(value):
            used[group].pop("epochs", None)
    data = {"source": tiles.source, "fingerprint": tiles.fingerprint(), "training tiles": len(tiles.train)}
    return {"settings": used, "data": data, "seed": seed, **inputs}


def checkpoint_name(network: str, stage: str, epochs: int | str, n_clusters: int, day: str) -> str:
    """The published file name; `day` is YYYYMMDD."""
    return f"{network}_{stage}_ckpt_{day}_{epochs}_{n_clusters}.pth"


def save_weights(module: nn.Module, path: Path, about: Mapping[str, Any]) -> None:
    """Write the plain state dict of `module` to `path`, and `about` and the software versions to the JSON beside it."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    # the JSON first: weights without one would pass for published ones
    write_json(path.with_suffix(".json"), {**about, "versions": versions()})
    with atomic_write(path) as file:
        torch.save(state, file)


def save_stage(
    paths: Paths, stage: str, networks: Mapping[str, nn.Module], epochs: int, about: Mapping[str, Any]
) -> None:
    """Write networks ("unet", "classifier" or "kmeans") after a stage under today's date into the models folder."""
    day = date.today().strftime("%Y%m%d")
    for network, module in networks.items():
        path = paths.models / checkpoint_name(network, stage, epochs, paths.n_clusters, day)
        save_weights(module, path, {**about, "network": network, "stage": stage, "epochs": epochs})
        print(f"Saved {path}")


def read_state(path: Path) -> Any:
    """What torch saved in `path`, on the CPU; nothing is ever unpickled but tensors and plain values."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is not a sound checkpoint of tensors and plain values ({type(error).__name__}): "
            "delete it and train or download it again."
        ) from error


def load_weights(module: nn.Module, path: Path) -> None:
    """Load the plain state dict in `path` into `module`; InputError names what does not fit."""
    state = read_state(path)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} should hold a state dict of tensors, but holds {type(state).__name__}.")
    expected = module.state_dict()
    for name in dict.fromkeys([*expected, *state]):
        want = tuple(expected[name].shape) if name in expected else "no such entry"
        have = tuple(state[name].shape) if name in state else "no such entry"
        if want != have:
            raise InputError(
                f"{path} does not fit {type(module).__name__} with these settings: expected {name} to be {want}, "
                f"found {have}; check n_clusters, preset and overrides, or train again."
            )
    module.load_state_dict(state)


def fingerprint(module: nn.Module) -> str:
    """A short hash of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def find_checkpoint(paths: Paths, network: str, stage: str, clustering: str) -> Path:
    """The newest checkpoint of `network` after `stage`, made with `clustering`.

    Newest by the day in its name, then by its time of writing. Files without a JSON, such as the published ones,
    belong to the classifier. Raises InputError where there is none.
    """
    k = paths.n_clusters
    pattern = re.compile(rf"{network}_{stage}_ckpt_(\d{{8}})_\d+_{k}\.pth")
    found = []
    for path in paths.models.glob(f"{network}_{stage}_ckpt_*.pth"):
        match = pattern.fullmatch(path.name)
        about = read_json(path.with_suffix(".json"), {"clustering": "classifier"})
        if match and about.get("clustering") == clustering:
            found.append((match[1], path.stat().st_mtime_ns, path))
    if not found:
        expected = checkpoint_name(network, stage, "EPOCHS", k, "YYYYMMDD")
        raise InputError(
            f"There is no {expected} for clustering={clustering!r} in {paths.models}: run {MADE_BY[stage]} first, "
            "or put the published file there."
        )
    return max(found)[-1]


def load_autoencoder(paths: Paths, settings: Settings, device: torch.device | str) -> VQVAE:
    """The trained autoencoder in eval mode, frozen."""
    if not paths.autoencoder.exists():
        raise InputError(
            f"There is no autoencoder at {paths.autoencoder}: run train_autoencoder first, "
            "or put the published file there."
        )
    vqvae = VQVAE(**settings.autoencoder.vqvae)
    load_weights(vqvae, paths.autoencoder)
    return vqvae.to(device).eval().requires_grad_(False)


def load_unet(paths: Paths, settings: Settings, stage: str, clustering: str, vqvae: VQVAE, device) -> UNet:
    """The UNet after `stage`, trained on the latents of `vqvae`."""
    unet = UNet(vqvae.z_channels, paths.n_clusters, **settings.diffusion.unet)
    _load_stage(unet, find_checkpoint(paths, "unet", stage, clustering), vqvae)
    return unet.to(device)


def load_clustering(paths: Paths, stage: str, clustering: str, vqvae: VQVAE, device) -> nn.Module:
    """The classifier or the k-means after `stage`, fitted to the latents of `vqvae`.

    Only a classifier in "finetuning2" changes after "training".
    """
    if clustering == "kmeans" or stage == "finetuning1":
        stage = "training"
    clusters = make_clustering(clustering, vqvae.z_channels, paths.n_clusters)
    _load_stage(clusters, find_checkpoint(paths, clustering, stage, clustering), vqvae)
    return clusters.to(device)


def _load_stage(module: nn.Module, path: Path, vqvae: VQVAE) -> None:
    load_weights(module, path)
    about = read_json(path.with_suffix(".json"), {})
    if about.get("autoencoder", fingerprint(vqvae)) != fingerprint(vqvae):
        raise InputError(
            f"{path} was trained on the latents of another autoencoder than the one in use: "
            "train it again, or put that autoencoder back."
        )


def save_resume_point(path: Path, belongs_to: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write all that a training needs to go on (`state`), with the `identity` it belongs to."""
    with atomic_write(path) as file:
        torch.save({"identity": json.dumps(belongs_to, sort_keys=True), "state": dict(state)}, file)


def load_resume_point(path: Path, belongs_to: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state saved in `path`, or None where there is none.

    Raises InputError, naming each difference, where it belongs to other settings or data.
    """
    if not path.exists():
        return None
    point = read_state(path)
    then, now = _flatten(json.loads(point["identity"])), _flatten(json.loads(json.dumps(belongs_to)))
    differences = [
        f"{name} was {then.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if differences:
        raise InputError(
            f"The training in {path} was started differently ({'; '.join(differences)}): "
            "set restart = True to begin anew, or restore what changed."
        )
    return point["state"]


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat
