"""Network weights on disk: plain state dicts under the published names, each with a JSON that says what it is."""

import hashlib
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfiles.cluster_bank import ClusterBank
from pfiles.errors import InputError
from pfiles.latents import LatentSpace
from pfiles.machine.rank import is_first
from pfiles.machine.runtime import versions
from pfiles.paths import Paths, atomic_write, numbers_of_clusters, read_json, write_json
from pfiles.provenance import Provenance, require_same_run, without
from pfiles.settings import DiffusionSettings, Settings
from pfiles.unet_cond_base import UNet, make_unet
from pfiles.vqvae import VQVAE, make_vqvae

# what a UNet is bound to
BOUND_SETTINGS = ("prediction", "latent_scaling", "shared_scale", "num_timesteps", "beta_start", "beta_end")
NOTE_FIELDS = ("versions", "number", "replaces")  # in a checkpoint's JSON beside the provenance
START = {"training": None, "finetuning1": "training", "finetuning2": "finetuning1"}  # the stage that each goes on from
MADE_BY = {"training": "part_1_training", "finetuning1": "part_2_finetuning1", "finetuning2": "part_3_finetuning2"}


def checkpoint_name(
    network: str, stage: str, epochs: int | str, n_clusters: int | str, day: str, clustering: str = "classifier"
) -> str:
    """The published file name; `day` is YYYYMMDD. A UNet that learnt with k-means is called so."""
    mark = "_kmeans" if clustering == "kmeans" != network else ""
    return f"{network}{mark}_{stage}_ckpt_{day}_{epochs}_{n_clusters}.pth"


def save_weights(module: nn.Module, path: Path, about: Mapping[str, Any]) -> None:
    """Write the plain state dict of `module` to `path`, and `about` and the software versions to the JSON beside it.

    The JSON also keeps the fingerprint of the weights that it tells of, and, for as long as `path` may still hold them,
    of those that they replace.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    note = {**about, "weights": fingerprint(module), "versions": versions()}
    if path.exists():
        note["replaces"] = (read_json(path.with_suffix(".json")) or {}).get("weights")
    # the JSON first, as weights without one are taken for published ones
    write_json(path.with_suffix(".json"), note)
    with atomic_write(path) as file:
        torch.save(state, file)


def is_saved(module: nn.Module, path: Path, about: Mapping[str, Any]) -> bool:
    """Whether `path` holds these weights already, and its JSON has the same provenance."""
    note = read_json(path.with_suffix(".json")) if path.exists() else None
    expected = {**about, "weights": fingerprint(module)}
    is_same = note is not None and same_note(without(note, *NOTE_FIELDS), expected)
    return is_same and _weights_in(path) == expected["weights"]


def same_note(recorded: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Whether two notes name the same provenance."""
    return not Provenance.from_note(recorded).differences(Provenance.from_note(expected))


def note_of(path: Path, module: nn.Module) -> dict[str, Any] | None:
    """The JSON beside the weights that `module` got from `path`; None if there is none, or it is of other weights."""
    note = read_json(path.with_suffix(".json"))
    weights = None if note is None else note.get("weights")
    return note if weights in (None, fingerprint(module)) else None


def provenance_of(path: Path, module: nn.Module) -> Provenance | None:
    """The provenance in `note_of`."""
    note = note_of(path, module)
    return None if note is None else Provenance.from_note(note)


def refuse_to_replace_foreign(path: Path) -> None:
    """InputError if `path` holds weights that were not made here: they have no JSON, or one of other weights."""
    if path.exists() and not is_made_here(path):
        raise InputError(
            f"{path} was not made here and would be replaced: go on with the next notebook to use it, "
            "name another folder as out, or set restart = True to replace it."
        )


def is_made_here(path: Path) -> bool:
    """Whether the JSON beside the weights in `path` is of them, or of the weights that they were about to replace."""
    about = read_json(path.with_suffix(".json"))
    if about is None or about.get("weights") is None:
        return about is not None
    return _weights_in(path) in (about["weights"], about.get("replaces"), None)


def _weights_in(path: Path) -> str | None:
    """The fingerprint of the weights in a file; None if it cannot be read."""
    with suppress(InputError, AttributeError):
        return fingerprint_of_state(read_state(path))
    return None


def save_stage(
    paths: Paths,
    stage: str,
    unet: UNet,
    bank: ClusterBank,
    space: LatentSpace,
    epochs: int,
    about: Mapping[str, Any],
    clusters_first: Mapping[str, Any] | None = None,
) -> None:
    """Write the networks that `stage` changed under today's date into the models folder.

    Clusters change in "training", where k-means is fitted, and a classifier in "finetuning2" as well. The UNet's JSON
    keeps the fingerprint of the clusters that were its condition, for `load_stage` to compare.
    space: its scaling is kept with the UNet. about: the note of the stage's provenance, with the kind of `clustering`.
    clusters_first: the settings of the training in which a classifier learnt before the first stage, and which its note
        keeps; None: there was no such training.
    """
    networks: dict[str, nn.Module] = {"unet": unet}
    if stage_of_clusters(stage, about["clustering"], clusters_first is not None) == stage:
        networks[about["clustering"]] = bank
    trained_with = {"autoencoder": about["starts_from"]["autoencoder"], "clusters": fingerprint(bank)}
    about = {**about, "stage": stage, "epochs": epochs, "trained_with": trained_with}
    about["latent_scaling"] = space.as_json()
    for network, module in networks.items():
        settings = about.get("settings", {})
        if network == "classifier" and clusters_first is not None:
            settings = {**settings, "clusters": clusters_first}
        _save_once(paths, network, stage, epochs, module, {**about, "settings": settings, "network": network})


def _save_once(
    paths: Paths, network: str, stage: str, epochs: int, module: nn.Module, about: Mapping[str, Any]
) -> None:
    """Write a checkpoint, numbered one higher than its forerunners, unless the newest is the same already.

    Of several processes the first does it alone, as it may move files aside.
    """
    if not is_first():
        return
    clustering = about["clustering"]
    earlier = _checkpoints(paths, network, stage, clustering)
    if earlier and is_saved(module, earlier[-1], about):
        print(f"Saved before, in {earlier[-1]}")
        return
    day = date.today().strftime("%Y%m%d")
    path = paths.models / checkpoint_name(network, stage, epochs, paths.n_clusters, day, clustering)
    number = 1 + max((_number(path) for path in earlier), default=0)
    if path.exists():
        _keep_aside(path, about)
    save_weights(module, path, {**about, "number": number})
    print(f"Saved {path}")


def _keep_aside(path: Path, about: Mapping[str, Any]) -> None:
    """Rename the weights in `path` where they were not made here, or by another training than that of `about`."""
    made_here = is_made_here(path)
    note = read_json(path.with_suffix(".json"), {})
    if made_here and same_note(without(note, "weights", *NOTE_FIELDS), about):
        return
    numbered = (path.with_name(f"{path.stem}.kept_{n}{path.suffix}") for n in count(1))
    free = next(name for name in numbered if not name.exists())
    path.replace(free)
    if made_here:
        path.with_suffix(".json").replace(free.with_suffix(".json"))
    print(f"{path} held weights of another training: they are kept as {free.name}.")


def stage_of_clusters(stage: str, clustering: str, clusters_first: bool) -> str:
    """The stage that made the clusters in use after `stage`."""
    changed = stage == "finetuning2" and clustering == "classifier" and not clusters_first
    return "finetuning2" if changed else "training"


def read_state(path: Path, mapped: bool = False) -> Any:
    """What torch saved in `path`, on the CPU; nothing is ever unpickled but tensors and plain values.

    mapped: its tensors stay in the file, and only what is used of them is read.
    """
    try:
        if zipfile.is_zipfile(path):  # as all but very old files are; torch itself does not look at the checksums
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a broken file raises errors of many kinds in torch
        raise InputError(
            f"{path} is not a sound checkpoint of tensors and plain values ({type(error).__name__}): "
            "delete it and train or download it again."
        ) from error


def load_weights(module: nn.Module, path: Path) -> None:
    """Load the plain state dict in `path` into `module`; InputError names what does not fit."""
    state = read_state(path)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} should hold a state dict of tensors, but holds {type(state).__name__}.")
    expected = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
    for name in dict.fromkeys([*expected, *state]):
        want, have = (tuple(s[name].shape) if name in s else "no such entry" for s in (expected, state))
        if want == have:
            want, have = (s[name].type() for s in (expected, state))  # such as torch.FloatTensor
        if want != have:
            raise InputError(
                f"{path} does not fit {type(module).__name__} with these settings: expected {name} to be {want}, "
                f"found {have}; check n_clusters, preset and overrides, or train again."
            )
        if not state[name].isfinite().all():
            raise InputError(f"{path} holds NaN or infinite numbers in {name}: train again or put a sound file there.")
    module.load_state_dict(state)


def fingerprint(module: nn.Module, *apart_from: str) -> str:
    """A short hash of a network's weights, but those whose names begin with one of `apart_from`."""
    return fingerprint_of_state(module.state_dict(), *apart_from)


def fingerprint_of_state(state: Mapping[str, Tensor], *apart_from: str) -> str:
    digest = hashlib.sha256()
    for name, tensor in state.items():
        if name.startswith(apart_from):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def inference_fingerprint(network: nn.Module) -> str:
    """A short hash of the weights that later stages depend on: of an autoencoder only those that decide the codes of a
    tile, as its decoder may be polished at any time."""
    return fingerprint_of_encoder(network.state_dict()) if isinstance(network, VQVAE) else fingerprint(network)


def fingerprint_of_encoder(state: Mapping[str, Tensor]) -> str:  # the same of an autoencoder's state dict
    return fingerprint_of_state(state, "decoder", "post_quant")


def fingerprints(networks: Mapping[str, nn.Module]) -> dict[str, str]:
    """`inference_fingerprint` of each network, by name: the parents of what is made with them."""
    return {name: inference_fingerprint(network) for name, network in networks.items()}


def fingerprint_of_clusters(vqvae: VQVAE, clusterer: nn.Module) -> str:
    """A hash of the networks that sort tiles into clusters: the names that readers give belong to it."""
    return f"{inference_fingerprint(vqvae)}-{fingerprint(clusterer)}"


def find_checkpoint(paths: Paths, network: str, stage: str, clustering: str) -> Path:
    """The newest checkpoint of `network` after `stage`, made with `clustering`.

    Newest by the number in its JSON, which counts trainings whatever the clock says, then by the day in its name and
    its time of writing. Files without a JSON, as published ones, are the classifier's. InputError if there is none.
    """
    path = newest(paths, network, stage, clustering)
    if path is None:
        expected = checkpoint_name(network, stage, "EPOCHS", paths.n_clusters, "YYYYMMDD", clustering)
        alternative = "kmeans" if clustering == "classifier" else "classifier"
        trained = newest(paths, "unet", stage, alternative) is not None
        advice = f"set clustering = {alternative!r}, which was trained" if trained else "put the published file there"
        if ks := ", ".join(
            n for n in paths.numbers if newest(replace(paths, n_clusters=n), network, stage, clustering)
        ):
            advice = f"set n_clusters to one that was trained ({ks})"
        raise InputError(f"There is no {expected} in {paths.models}: run {MADE_BY[stage]} first, or {advice}.")
    return path


def _checkpoints(paths: Paths, network: str, stage: str, clustering: str) -> list[Path]:
    """All checkpoints that `find_checkpoint` chooses from, the newest last."""
    pattern = re.compile(rf"{network}(_kmeans)?_{stage}_ckpt_(\d{{8}})_\d+_{paths.n_clusters}\.pth")
    by_age = []
    for path in paths.models.glob(f"{network}_*.pth"):
        match = pattern.fullmatch(path.name)
        about = read_json(path.with_suffix(".json"), {"clustering": "classifier"})
        if match and about.get("clustering") == clustering:
            by_age.append(age_of(path, match[2]))
    return [path for *_, path in sorted(by_age)]


def age_of(path: Path, day: str) -> tuple[int, str, int, Path]:
    """The key by which the checkpoints of a stage are sorted by age, see `find_checkpoint`."""
    return _number(path), day, path.stat().st_mtime_ns, path


def _number(path: Path) -> int:
    """The place of a checkpoint among those of its stage; 0 for files from elsewhere."""
    number = read_json(path.with_suffix(".json"), {}).get("number", 0)
    return number if isinstance(number, int) else 0


def newest(paths: Paths, network: str, stage: str, clustering: str) -> Path | None:
    """What `find_checkpoint` finds; None if there is no checkpoint."""
    return next(reversed(_checkpoints(paths, network, stage, clustering)), None)


def load_autoencoder(paths: Paths, settings: Settings, device: torch.device | str) -> VQVAE:
    """The trained autoencoder in eval mode, frozen."""
    if not paths.autoencoder.exists():
        raise InputError(
            f"There is no autoencoder at {paths.autoencoder}: run train_autoencoder first, "
            "or put the published file there."
        )
    vqvae = make_vqvae(settings.autoencoder)
    load_weights(vqvae, paths.autoencoder)
    return vqvae.to(device).eval().requires_grad_(False)


def load_clusterer(
    paths: Paths,
    stage: str,
    clustering: str,
    vqvae: VQVAE,
    device: torch.device | str,
    clusters_first: bool = False,
    expected: Provenance | None = None,
) -> ClusterBank:
    """The classifiers or the k-means in use after `stage`, fitted to the latents of `vqvae`.

    expected: provenance to require, see `require_same_run`; None skips the check.
    """
    bank = ClusterBank.make(clustering, vqvae.z_channels, numbers_of_clusters(paths.n_clusters))
    path = find_checkpoint(paths, clustering, stage_of_clusters(stage, clustering, clusters_first), clustering)
    load_weights(bank, path)
    if expected is not None:
        require_same_run(provenance_of(path, bank), expected, path)
    _require_trained_with(path, bank, "autoencoder", vqvae)
    return bank.to(device)


def load_stage(
    paths: Paths,
    settings: Settings,
    stage: str,
    clustering: str,
    vqvae: VQVAE,
    device: torch.device | str,
    expected: Provenance | None = None,
) -> tuple[UNet, ClusterBank, LatentSpace, UNet | None]:
    """The UNet after `stage`, the clusters that are its condition, the latents of `vqvae` as it learnt them, and its
    guide: the UNet after its first training, if the settings let that guide what is drawn after a later stage.

    expected: provenance to require, see `require_same_run`; None skips the check.
    InputError if it was trained to predict something else than the settings say.
    """
    bank = load_clusterer(paths, stage, clustering, vqvae, device, settings.clusters_first, expected)
    unet = make_unet(settings.diffusion, vqvae.z_channels, bank.n_clusters)
    path = find_checkpoint(paths, "unet", stage, clustering)
    load_weights(unet, path)
    if expected is not None:
        require_same_run(provenance_of(path, unet), expected, path)
    _require_trained_with(path, unet, "autoencoder", vqvae)
    _require_trained_with(path, unet, "clusters", bank)
    about = note_of(path, unet) or {}
    earlier = newest(paths, "unet", origin, clustering) if (origin := START[stage]) else None
    before = earlier and read_json(earlier.with_suffix(".json"), {}).get("weights")
    starts_from = about.get("starts_from")
    if before and isinstance(starts_from, dict) and starts_from.get("unet", before) != before:
        raise InputError(
            f"{path} goes on from another UNet than that of the last {origin}: run {MADE_BY[stage]} again."
        )
    require_learnt_with(path, about.get("settings", {}).get("diffusion", {}), settings.diffusion)
    guide = None
    if settings.sampling.guide != "itself" and stage != "training":
        guide, *_ = load_stage(paths, settings, "training", clustering, vqvae, device, expected)
        guide.eval().requires_grad_(False)
    return unet.to(device), bank, LatentSpace.from_json(vqvae, about.get("latent_scaling")), guide


def require_learnt_with(path: Path, recorded: Mapping[str, Any], settings: DiffusionSettings) -> None:
    """InputError if the UNet in `path` learnt with other BOUND_SETTINGS than the settings say.

    recorded: the diffusion settings in its note; empty for published ones.
    """
    for name in BOUND_SETTINGS:
        now = getattr(settings, name)
        then = recorded.get(name, now if recorded else getattr(DiffusionSettings(), name))
        if then != now:
            raise InputError(
                f"{path} was trained with diffusion.{name} = {then!r}, but the settings say {now!r}: set it so, or "
                "name the preset it was trained with."
            )


def _require_trained_with(path: Path, trained: nn.Module, name: str, module: nn.Module) -> None:
    """InputError if the JSON of `trained`, which came from `path`, names another autoencoder or other clusterer;
    published files have none."""
    trained_with = (note_of(path, trained) or {}).get("trained_with")
    if isinstance(trained_with, dict) and trained_with.get(name) not in (None, inference_fingerprint(module)):
        raise InputError(
            f"{path} was trained with another {name} than the one in use: "
            "run its training again, or put that file back."
        )
