"""The choices of a run in one place: a file run.toml, which every notebook reads.

    clustering = "kmeans"
    data = "runs/tiles"
    preset = "recommended"

    [overrides]
    training.epochs = 300

It lies in the repository, or beside the notebooks of one number of clusters, whose file counts more. KPC_RUN_TOML names
another file instead of both; where it is empty none is read.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from pfiles.errors import InputError
from pfiles.paths import ROOT, expand
from pfiles.settings import Settings

FILE = "run.toml"
OF_NO_CLUSTERS = ("train_autoencoder", "autoencoder_output", "save_training_images")  # notebooks alike for any of them
DEFAULTS = {  # of what such a file may say
    "n_clusters": 14, "clustering": "classifier", "data": None, "preset": "paper", "overrides": {}, "seed": 765,
    "out": None,
}  # fmt: skip


def choose(given: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each of DEFAULTS for a run; prints what a file says, and where that does not count.

    given: what a notebook or a command says itself, which counts more; None leaves the choice to the file. Overrides
    are added up, those given last.
    """
    given = {name: value for name, value in given.items() if value is not None}
    chosen = DEFAULTS
    for file in _files():
        told = read_choices(file)
        if told:
            print(f"From {file}: {', '.join(f'{name} = {value!r}' for name, value in told.items())}.")
        chosen = _over(chosen, told)
    for name in given.keys() & DEFAULTS.keys():
        if name != "overrides" and chosen[name] not in (given[name], DEFAULTS[name]):
            print(f"Here {name} = {given[name]!r} counts instead.")
    return _over(chosen, given)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    return {**below, **above, "overrides": {**below["overrides"], **above.get("overrides", {})}}


def _files() -> list[Path]:
    """Those that there are, the one that counts more last."""
    named = os.environ.get("KPC_RUN_TOML")
    if named is not None:
        return [ROOT / expand(named)] if named else []
    places = dict.fromkeys((ROOT / FILE, Path.cwd() / FILE))
    return [place for place in places if place.exists()]


def read_choices(file: Path) -> dict[str, Any]:
    """What a file says, its overrides by dotted name; InputError for what is no such file."""
    try:
        told = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f'{file} cannot be read as TOML ({error}): write lines such as preset = "demo".') from error
    if unknown := sorted(told.keys() - DEFAULTS.keys()):
        raise InputError(f"{file} says {', '.join(unknown)}: it may say {', '.join(DEFAULTS)}.")
    if "overrides" in told:
        if not isinstance(told["overrides"], dict):
            raise InputError(f"{file} must say [overrides] and then a line for each setting, not overrides = ...")
        told["overrides"] = _dotted(told["overrides"], Settings())
    return told


def _dotted(values: Mapping[str, Any], group: Any, prefix: str = "") -> dict[str, Any]:
    """{"training": {"epochs": 2}} -> {"training.epochs": 2}, as deep as there are groups of settings."""
    flat = {}
    for name, value in values.items():
        inner = getattr(group, name, None)
        deeper = isinstance(value, dict) and is_dataclass(inner)
        flat |= _dotted(value, inner, f"{prefix}{name}.") if deeper else {f"{prefix}{name}": value}
    return flat
