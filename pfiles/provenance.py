"""Provenance: what a file was made from, kept as JSON beside it and compared before it is read or replaced."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfiles.errors import InputError
from pfiles.paths import read_json
from pfiles.settings import Settings

if TYPE_CHECKING:
    from pfiles.tiles.dataset import Tiles

SAME_CONTENT = {  # what may differ beside content that is the same
    "data.fingerprint": ("data.source", "data.profiles"), "start_weights": ("settings.start_from",),
}  # fmt: skip
IGNORED = ("seed", "settings.precision")  # may differ between the run that made a file and the run that reads it
GENERATED_WITH, MADE_FROM = "generated_with.json", "made_from.json"  # in folders of generated and of training images
FIELDS = {"settings": "settings", "data": "data", "seed": "seed", "starts_from": "parents"}  # by their names in JSON


@dataclass(frozen=True)
class Provenance:
    """What a file was made from, in plain values; what is not known is None.

    settings: the groups of settings that count, by name. data: "source", "fingerprint", number of "training tiles",
    and "profiles", the names of files' colour profiles with the number of tiles of each, where there are any.
    parents: the fingerprint of each network that it was made with, by name ("starts_from" in JSON).
    inputs: whatever else counts, such as n_clusters, clustering, sampler.
    """

    settings: Mapping[str, Any] | None = None
    data: Mapping[str, Any] | None = None
    seed: int | None = None
    parents: Mapping[str, str] | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        settings: Settings,
        groups: tuple[str, ...],
        tiles: "Tiles",
        seed: int,
        parents: Mapping[str, str] | None = None,
        **inputs: Any,
    ) -> "Provenance":
        """The provenance of what is made with these settings, tiles and networks.

        groups: the fields of `settings` that count. parents: fingerprints of networks by name.

        The number of epochs does not count, so that a longer training can go on from where a shorter one ended, unless
        the learning rate falls towards the last of them.
        """
        counting = {}
        for group in ("image_size_px", "precision", *groups):
            value = getattr(settings, group)
            is_group = is_dataclass(value) and not isinstance(value, type)
            counting[group] = asdict(value) if is_group else value
            if group == "autoencoder":
                counting[group].pop("polish")  # a training of its own, which may come later
            if is_dataclass(value) and getattr(value, "decay", "constant") == "constant":
                counting[group].pop("epochs", None)
        if settings.start_from is not None:
            counting["start_from"] = settings.start_from
        data = {"source": tiles.source, "fingerprint": tiles.fingerprint(), "training tiles": len(tiles.train)}
        if tiles.profiles.keys() - {"none"}:
            data["profiles"] = sorted(tiles.profiles.items())
        note = {"settings": counting, "data": data, "seed": seed, "starts_from": dict(parents or {}), **inputs}
        return cls.from_note(json.loads(json.dumps(note)))  # as a file gives it back: lists, not tuples

    @classmethod
    def from_note(cls, note: Mapping[str, Any]) -> "Provenance":
        """The provenance in the JSON beside a file; entries of other names become `inputs`."""
        inputs = {name: value for name, value in note.items() if name not in FIELDS}
        return cls(**{attribute: note.get(name) for name, attribute in FIELDS.items()}, inputs=inputs)

    def as_note(self) -> dict[str, Any]:
        """The provenance as the JSON that `from_note` reads."""
        fields = {name: getattr(self, attribute) for name, attribute in FIELDS.items()}
        return {name: value for name, value in fields.items() if value is not None} | dict(self.inputs)

    def without(self, *names: str) -> "Provenance":
        """The provenance without the entries of these names in JSON, dotted where they lie deeper."""
        return Provenance.from_note(without(self.as_note(), *names))

    def differences(self, expected: "Provenance", shared: bool = False) -> dict[str, tuple[Any, Any]]:
        """The values that differ, recorded and expected, by dotted name; data and weights of one fingerprint may
        have been renamed.

        shared: whether only values count that both have. Otherwise a setting that the version which made the file did
            not have yet had its published value then.
        """
        then, now = flatten(self.as_note()), flatten(expected.as_note())
        if not shared:
            then |= {name: value for name, value in _published().items() if name in now and _is_newer(name, then)}
        names = then.keys() & now.keys() if shared else then.keys() | now.keys()
        different = {name: (then.get(name), now.get(name)) for name in sorted(names) if then.get(name) != now.get(name)}
        for content, others in SAME_CONTENT.items():
            if content in names and content not in different:
                different = {name: values for name, values in different.items() if name not in others}
        return different


@cache
def _published() -> dict[str, Any]:
    """The published value of each setting, by its dotted name in JSON."""
    return flatten(json.loads(json.dumps({"settings": asdict(Settings())})))


def _is_newer(setting: str, recorded: Mapping[str, Any]) -> bool:
    """Whether a note has no such setting, but others of its group."""
    group = setting.rpartition(".")[0]
    return setting not in recorded and any(name.rpartition(".")[0] == group for name in recorded)


def require_same_run(recorded: Provenance | None, expected: Provenance, subject: Path | str) -> None:
    """InputError if `subject` belongs to another run: the sentence names each value that both have and that differs.

    recorded: None for a file without provenance, such as a published one; it is accepted, and a line says so.
    expected: of the run that reads it, as much of it as must agree.
    """
    if recorded is None:
        print(f"{subject} has no provenance, as is normal for published files: it is used as it is.")
        return
    if different := recorded.differences(expected, shared=True):
        raise InputError(
            f"{subject} belongs to another run ({in_words(different)}): name the data and settings it was made with, "
            "or another folder as out."
        )


def in_words(different: Mapping[str, tuple[Any, Any]]) -> str:
    """The result of `Provenance.differences` as part of a sentence."""
    return "; ".join(f"{name} was {then!r} and is {now!r}" for name, (then, now) in different.items())


def of_json(path: Path) -> Provenance | None:
    """The provenance in a JSON file; None if there is none."""
    note = read_json(path)
    return None if note is None else Provenance.from_note(note)


def of_images(folder: Path) -> Provenance | None:
    """The provenance of a folder of generated or of training images; None if it has none, as a published one."""
    return of_json(folder / GENERATED_WITH) or of_json(folder / MADE_FROM)


def of_csv(path: Path) -> Provenance | None:
    """The provenance of a CSV, from the JSON beside it; None if there is none, or it belongs to another file."""
    if not path.exists():
        raise InputError(f"There is no {path}: run part_5_latent_space_extraction first.")
    note = read_json(path.with_suffix(".json")) or {}
    return Provenance.from_note(note) if note.get("sha256") == sha256(path.read_bytes()).hexdigest() else None


def without(note: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Nested values without the entries of these names, dotted where they lie deeper."""
    remaining: dict[str, Any] = {}
    for name, value in note.items():
        if name not in names:
            inner = [n.removeprefix(f"{name}.") for n in names if n.startswith(f"{name}.")]
            remaining[name] = without(value, *inner) if isinstance(value, Mapping) and inner else value
    return remaining


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return flat
