"""The choices of a run in one place: a file run.toml, which every notebook reads.

    data = "runs/tiles"
    preset = "paper"

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
from pfiles.settings import Settings, clustering_of

FILE = "run.toml"
OF_NO_CLUSTERS = ("train_autoencoder", "autoencoder_output", "save_training_images")  # notebooks alike for any of them
DEFAULTS = {  # of what such a file may say; the preset names the clustering if nothing else does
    "n_clusters": 14, "clustering": None, "data": None, "preset": "recommended", "overrides": {}, "seed": 765,
    "out": None,
}  # fmt: skip


def choose(arguments: Mapping[str, Any], run_toml: bool = True) -> dict[str, Any]:
    """The value of each of DEFAULTS for a run; prints what a file says, and where that does not count.

    arguments: what a notebook or a command says itself, which counts more; None leaves the choice to the file.
    Overrides are added up, the arguments' last. run_toml: whether to read such files.
    """
    arguments = {name: value for name, value in arguments.items() if value is not None}
    choices = DEFAULTS
    for file in _files() if run_toml else ():
        file_choices = read_choices(file)
        if file_choices:
            print(f"From {file}: {', '.join(f'{name} = {value!r}' for name, value in file_choices.items())}.")
        choices = _over(choices, file_choices)
    for name in arguments.keys() & DEFAULTS.keys():
        if name != "overrides" and choices[name] not in (arguments[name], DEFAULTS[name]):
            print(f"Here {name} = {arguments[name]!r} counts instead.")
    choices = _over(choices, arguments)
    clustering = clustering_of(choices["preset"]) if choices["clustering"] is None else choices["clustering"]
    return choices | {"clustering": clustering}


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
        choices = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f'{file} cannot be read as TOML ({error}): write lines such as preset = "demo".') from error
    if unknown := sorted(choices.keys() - DEFAULTS.keys()):
        raise InputError(f"{file} says {', '.join(unknown)}: it may say {', '.join(DEFAULTS)}.")
    if "overrides" in choices:
        if not isinstance(choices["overrides"], dict):
            raise InputError(f"{file} must say [overrides] and then a line for each setting, not overrides = ...")
        choices["overrides"] = _dotted(choices["overrides"], Settings())
    return choices


def _dotted(values: Mapping[str, Any], group: Any, prefix: str = "") -> dict[str, Any]:
    """{"training": {"epochs": 2}} -> {"training.epochs": 2}, as deep as there are groups of settings."""
    flat = {}
    for name, value in values.items():
        inner = getattr(group, name, None)
        deeper = isinstance(value, dict) and is_dataclass(inner)
        flat |= _dotted(value, inner, f"{prefix}{name}.") if deeper else {f"{prefix}{name}": value}
    return flat
