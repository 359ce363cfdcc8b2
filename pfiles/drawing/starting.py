"""The weights that a training begins from, where the setting `start_from` names some."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pfiles.checkpoints import age_of, fingerprint_of_encoder, fingerprint_of_state, read_state, require_learnt_with
from pfiles.drawing import soundness
from pfiles.drawing.generator import STARTER, read_weights
from pfiles.errors import InputError
from pfiles.paths import ROOT, expand, read_json
from pfiles.settings import DiffusionSettings


def starting_weights(source: str, settings: DiffusionSettings) -> dict[str, Tensor]:
    """The tensors vqvae.* and unet.* of a generator's folder, of "starter", or of a run's folder (its newest UNet).

    settings: of the training that begins. InputError if there is neither, if the UNet learnt to predict something
    else than the settings say or learnt on the latents of another autoencoder, or if a number is not finite.
    """
    path = STARTER if source == "starter" else ROOT / expand(source)
    weights = _of_generator(path, settings) if (path / "config.json").exists() else _of_run(path, settings)
    soundness.require_sound_weights(weights, path)
    return weights


def _of_generator(path: Path, settings: DiffusionSettings) -> dict[str, Tensor]:
    soundness.require_sound_folder(path)
    config = read_json(path / "config.json", {})["settings"].items()
    recorded = {name.removeprefix("diffusion."): value for name, value in config if name.startswith("diffusion.")}
    require_learnt_with(path, recorded, settings)
    return {name: tensor for name, tensor in read_weights(path).items() if name.startswith(("vqvae.", "unet."))}


def _of_run(path: Path, settings: DiffusionSettings) -> dict[str, Tensor]:
    autoencoder, unet = path / "kpc_ldm" / "vqvae_autoencoder_ckpt.pth", newest_unet(path)
    if not autoencoder.exists() or unet is None:
        raise InputError(
            f"start_from names {path}, which holds neither a generator (config.json) nor a finished run "
            "(kpc_ldm/vqvae_autoencoder_ckpt.pth and a UNet of finetuning-2): name another folder, or null."
        )
    parts = {"vqvae": read_state(autoencoder), "unet": read_state(unet)}
    about = _note_of(unet, parts["unet"])
    trained_with = about.get("trained_with", {}).get("autoencoder")
    if trained_with not in (None, fingerprint_of_encoder(parts["vqvae"])):
        raise InputError(
            f"start_from names {path}, where {unet.name} was trained with another autoencoder than the one that is "
            "there now: finish that run, or name another folder."
        )
    require_learnt_with(unet, about.get("settings", {}).get("diffusion", {}), settings)
    return {f"{name}.{key}": tensor for name, state in parts.items() for key, tensor in state.items()}


def newest_unet(root: Path) -> Path | None:
    """The UNet of a run's folder after finetuning-2: of each number of clusters and clustering the newest as
    `find_checkpoint` has it, and of these the one that was written last; None if there is none."""
    name = re.compile(r"clusters_([\d,-]+)/models_\1/unet(_kmeans)?_finetuning2_ckpt_(\d{8})_\d+_\1\.pth")
    by_kind: dict[tuple[Path, str | None], list[tuple[int, str, int, Path]]] = {}
    for path in root.glob("clusters_*/models_*/unet_*.pth"):
        if match := name.fullmatch(path.relative_to(root).as_posix()):  # not in a copy of its folder
            by_kind.setdefault((path.parent, match[2]), []).append(age_of(path, match[3]))
    return max((max(of)[2:] for of in by_kind.values()), default=(0, None))[1]


def _note_of(path: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The JSON beside weights; empty if there is none, or it is of other weights."""
    note = read_json(path.with_suffix(".json"), {})
    return note if note.get("weights") in (None, fingerprint_of_state(state)) else {}


def begin_from(
    network: nn.Module, weights: Mapping[str, Tensor], prefix: str, anew: Sequence[str] = (), absent: Sequence[str] = ()
) -> None:
    """Give `network` the tensors of `weights` whose names begin with `prefix`; InputError names what does not fit.

    anew: names whose first axis may differ, such as the embedding of another number of clusters: they stay as they are.
    absent: names that `weights` may lack: they stay as they are too.
    """
    state = network.state_dict()
    for name, tensor in state.items():
        source = weights.get(prefix + name)
        if source is not None and source.shape == tensor.shape:
            state[name] = source.to(tensor.dtype)
        elif source is None and name in absent:
            continue
        elif name not in anew or source is None or source.shape[1:] != tensor.shape[1:]:
            difference = "is not among them" if source is None else f"has the shape {tuple(source.shape)} there"
            raise InputError(
                f"The weights that start_from names do not fit {type(network).__name__} with these settings: {name} "
                f"{difference}, but needs {tuple(tensor.shape)}; take the widths that they were trained with, or other "
                "weights."
            )
    network.load_state_dict(state)
