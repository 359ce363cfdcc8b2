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
from collections.abc import Collection, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from pfiles.errors import InputError
from pfiles.machine.kernel import Parameters, notebook_parameters
from pfiles.paths import ROOT, expand
from pfiles.settings import Settings, clustering_of

FILE = "run.toml"
K_INDEPENDENT_NOTEBOOKS = ("train_autoencoder", "autoencoder_output", "save_training_images")
DEFAULTS: dict[str, Any] = {  # of what such a file may say; the preset names the clustering if nothing else does
    "n_clusters": 14, "clustering": None, "data": None, "preset": "recommended", "overrides": {}, "seed": 765,
    "out": None,
}  # fmt: skip
OWN = "parameters cell"  # where values come from that a notebook itself says
KINDS = {  # of parameters; True is an int too
    bool: "True or False", int: "a whole number", float: "a number", str: "text", list: "a list",
    dict: "values by name",
}  # fmt: skip


def resolve_choices(arguments: Mapping[str, Any], run_toml: bool = True) -> dict[str, Any]:
    """The value of each of DEFAULTS for a run.

    In a notebook each value is printed, and where it comes from; elsewhere what a file says, and where that does not
    count.
    arguments: what a notebook or a command says itself, which counts more; None leaves the choice to the file.
    Overrides are added up, the arguments' last. run_toml: whether to read such files.
    """
    parameters = notebook_parameters()
    if parameters is not None:
        refuse_wrong_parameters(parameters)
    arguments = {name: value for name, value in arguments.items() if value is not None}
    _refuse_wrong_kinds(arguments)
    choices, sources = DEFAULTS, dict.fromkeys(DEFAULTS, "default")
    for file in _files() if run_toml else ():
        file_choices = read_choices(file)
        if file_choices and parameters is None:
            print(f"From {file}: {', '.join(f'{name} = {value!r}' for name, value in file_choices.items())}.")
        choices, sources = _over(choices, file_choices), sources | _sources(file_choices, str(file))
    for name in (name for name in DEFAULTS if name in arguments) if parameters is None else ():
        if name == "overrides":
            _print_changed(choices[name], arguments[name])
        elif choices[name] not in (arguments[name], DEFAULTS[name]):
            print(f"Here {name} = {arguments[name]!r} counts instead.")
    of_files, file_of = choices, {name: source for name, source in sources.items() if source != "default"}
    choices = _over(choices, arguments)
    if choices["clustering"] is None:
        choices["clustering"], sources["clustering"] = clustering_of(choices["preset"]), "preset"
    if parameters is not None:
        injected = parameters.injected | parameters.injected.get("choices", {})
        by_program = {name: value for name, value in arguments.items() if name in injected}
        sources |= _sources(arguments, OWN) | _sources(by_program, parameters.program)
        here, there = _flat(choices), _flat(of_files)
        sources |= {
            name: f"{sources[name]}, not {there[name]!r} of {file}"
            for name, file in file_of.items()
            if name in here and here[name] != there[name]
        }
        _tell_choices(choices, sources)
        tell_parameters(parameters, {*DEFAULTS, "choices"})
    return choices


def _tell_choices(choices: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """Print each choice of a run, and where it comes from."""
    for name, value in _flat(choices).items():
        source = sources[name]
        if name == "data" and value is None:
            value = os.environ.get("KPC_DATA") or "embedded"
            source = "environment variable KPC_DATA" if os.environ.get("KPC_DATA") else source
        _tell(name, value, source)
    print(f"All other settings are those of the preset {choices['preset']!r}.")


def tell_parameters(parameters: Parameters, without: Collection[str] = ()) -> None:
    """Print each parameter of a notebook, and where it comes from. without: names that are left out."""
    for name, value in {**parameters.of_notebook, **parameters.injected}.items():
        if name not in without:
            _tell(name, value, parameters.program if name in parameters.injected else OWN)


def _tell(name: str, value: Any, source: str) -> None:
    print(f"{f'{name} = {value!r}':<48}  {source}")


def require_parameters() -> None:
    """Print each parameter of a notebook that opens no run, and refuse a wrong one, as `resolve_choices` does for runs.

    It stands in the first cell behind the parameters; elsewhere, and where that cell runs again, it does nothing.
    """
    parameters = notebook_parameters()
    if parameters is not None:
        refuse_wrong_parameters(parameters)
        tell_parameters(parameters)


def refuse_wrong_parameters(parameters: Parameters) -> None:
    """InputError for a parameter that the notebook does not have, or of another kind than it has."""
    for name, value in parameters.injected.items():
        if name not in parameters.of_notebook:
            remedy = f"it has {', '.join(parameters.of_notebook)}"
            if name in DEFAULTS and "choices" in parameters.of_notebook:
                remedy = f"write choices = {{{name!r}: {value!r}}}"
            raise InputError(f"This notebook has no parameter {name}: {remedy}.")
        if name != "n_clusters":  # which may also be several numbers
            _refuse_another_kind(name, parameters.of_notebook[name], value)


def _refuse_another_kind(name: str, default: Any, value: Any) -> None:
    """InputError for a value of another kind than the default, or a list that holds values of another kind."""
    kind = _kind_of(default)
    if kind is not None and not _is_a(value, kind):
        raise InputError(f"{name} must be {KINDS[kind]}, such as {default!r}, but is {value!r}.")
    inner = _kind_of(default[0]) if kind is list and default else None
    if inner is not None and (misfits := [item for item in value if not _is_a(item, inner)]):
        raise InputError(f"Each of {name} must be {KINDS[inner]}, such as {default[0]!r}, but one is {misfits[0]!r}.")


def _kind_of(value: Any) -> type | None:
    return next((kind for kind in KINDS if _is_a(value, kind)), None)


def _is_a(value: Any, kind: type) -> bool:
    kinds = {float: (int, float), list: (list, tuple)}.get(kind, (kind,))
    return isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))


def _refuse_wrong_kinds(choices: Mapping[str, Any]) -> None:
    """InputError for an overrides or a seed that is none; the others are refused where they are used."""
    overrides, seed = choices.get("overrides", {}), choices.get("seed", 0)
    if not isinstance(overrides, Mapping):
        raise InputError(f'overrides must be values by name, such as {{"training.epochs": 2}}, but is {overrides!r}.')
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError(f"seed must be a whole number, such as 765, but is {seed!r}.")


def _sources(choices: Mapping[str, Any], source: str) -> dict[str, str]:
    """The source of each choice and of each overridden setting, by its name."""
    return dict.fromkeys([*choices, *choices.get("overrides", ())], source)


def _print_changed(of_files: Mapping[str, Any], here: Any) -> None:
    """Print which settings of the files are overridden, and which stand here alone."""
    if not of_files or not isinstance(here, Mapping):
        return
    for names, what in (
        ([name for name in here if name in of_files and here[name] != of_files[name]], "counts instead"),
        ([name for name in here if name not in of_files], "is set besides"),
    ):
        if names:
            print(f"Here {', '.join(f'{name} = {here[name]!r}' for name in names)} {what}.")


def _flat(choices: Mapping[str, Any]) -> dict[str, Any]:
    """Each choice by its name, and each overridden setting by its dotted name."""
    return {name: value for name, value in choices.items() if name != "overrides"} | choices["overrides"]


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    return {**below, **above, "overrides": {**below["overrides"], **above.get("overrides", {})}}


def _files() -> list[Path]:
    """The run.toml files that exist; a later one overrides an earlier one."""
    places = dict.fromkeys((ROOT / FILE, Path.cwd() / FILE))
    named = named_files()
    return [place for place in places if place.exists()] if named is None else named


def named_files() -> list[Path] | None:
    """The file that KPC_RUN_TOML names, or none if it is empty; None if it is not set."""
    name = os.environ.get("KPC_RUN_TOML")
    return None if name is None else [ROOT / expand(name)] if name else []


def read_choices(file: Path) -> dict[str, Any]:
    """The choices in a file, its overrides by dotted name; InputError if it is no run.toml."""
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
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = getattr(group, name, None)
        deeper = isinstance(value, dict) and is_dataclass(inner)
        flat |= _dotted(value, inner, f"{prefix}{name}.") if deeper else {f"{prefix}{name}": value}
    return flat
