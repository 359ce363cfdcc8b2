"""Which run a file belongs to: data, settings, seed and networks, kept as plain values beside everything it makes."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from pfiles.errors import InputError
from pfiles.paths import read_json

Identity = Mapping[str, Any]  # see `checkpoints.identity`
FINGERPRINT, SOURCE = "data.fingerprint", "data.source"
NOT_COMPARED = ("seed", "settings.precision")  # may change between a training and who reads what it made
GENERATED_WITH, MADE_FROM = "generated_with.json", "made_from.json"  # in folders of generated and of training images


def of_images(folder: Path) -> Identity | None:
    """What a folder of images tells of its run; None for one that tells nothing, such as a published one."""
    return read_json(folder / GENERATED_WITH) or read_json(folder / MADE_FROM)


def of_csv(path: Path) -> Identity | None:
    """What the JSON beside a CSV tells of it; None where there is none, or it tells of another file."""
    if not path.exists():
        raise InputError(f"There is no {path}: run part_5_latent_space_extraction first.")
    about = read_json(path.with_suffix(".json"), {})
    return about if about.get("sha256") == sha256(path.read_bytes()).hexdigest() else None


def same_identity(found: Identity | None, expected: Identity, what: Path | str) -> None:
    """InputError where `what` belongs to another run: the sentence names each value that both tell and that differs.

    found: what the file says of itself. None is a file that says nothing, such as a published one; it is accepted, and
    said to be so. expected: of the run that reads it, as much of it as must agree.
    """
    if found is None:
        print(f"{what} does not say which run it is of, as published files do not: taken as it is.")
        return
    if different := differences(found, expected, shared=True):
        raise InputError(
            f"{what} is of another run ({in_words(different)}): name the data and settings it was made with, or "
            "another folder as out."
        )


def differences(found: Identity, expected: Identity, shared: bool = False) -> dict[str, tuple[Any, Any]]:
    """The values that differ, then and now, by dotted name; data of one fingerprint may have been renamed.

    shared: whether only values count that both have.
    """
    then, now = flatten(found), flatten(expected)
    names = then.keys() & now.keys() if shared else then.keys() | now.keys()
    different = {name: (then.get(name), now.get(name)) for name in sorted(names) if then.get(name) != now.get(name)}
    if FINGERPRINT in names and FINGERPRINT not in different:
        different.pop(SOURCE, None)
    return different


def in_words(different: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{name} was {then!r} and is {now!r}" for name, (then, now) in different.items())


def without(identity: Identity, *names: str) -> dict[str, Any]:
    """An identity without the entries of these names, dotted where they lie deeper."""
    kept: dict[str, Any] = {}
    for name, value in identity.items():
        if name not in names:
            inner = [n.removeprefix(f"{name}.") for n in names if n.startswith(f"{name}.")]
            kept[name] = without(value, *inner) if isinstance(value, Mapping) and inner else value
    return kept


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return flat
