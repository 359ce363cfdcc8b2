"""Resume points: all that a training needs to go on, and the identity it belongs to."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pfiles.checkpoints import read_state
from pfiles.errors import InputError
from pfiles.machine.processes import is_first
from pfiles.paths import atomic_write

PRECISION = "settings.precision"  # as `identity` names it


def save_resume_point(folder: Path, belongs_to: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write all that a training needs to go on (`state`), with the `identity` it belongs to.

    The last two are kept, as `resume.pt` and `resume_previous.pt`.
    """
    if not is_first():
        return
    path, previous = _resume_points(folder)
    if path.exists():
        os.replace(path, previous)
    with atomic_write(path) as file:
        torch.save({"identity": json.dumps(belongs_to, sort_keys=True), "state": dict(state)}, file)


def _resume_points(folder: Path) -> tuple[Path, Path]:
    return folder / "resume.pt", folder / "resume_previous.pt"


def last_resume_point(folder: Path) -> Path | None:
    """The newest resume point in a training's folder; None where there is none."""
    return next((path for path in _resume_points(folder) if path.exists()), None)


def load_resume_point(folder: Path, belongs_to: Mapping[str, Any]) -> dict[str, Any] | None:
    """The newest state saved in `folder`, or None where there is none.

    Where a network that the training starts from changed ("starts_from" in `belongs_to`), what was done is obsolete: it
    says so and returns None. The precision may change on the way, and it says so. Raises InputError, naming each
    difference, for other settings or data.
    """
    path = last_resume_point(folder)
    if path is None:
        return None
    point = read_state(path)
    try:
        then, now = _flatten(json.loads(point["identity"])), _flatten(belongs_to)
        state = {**point["state"]}
    except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
        raise not_a_resume_point(path) from error
    changed = [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    if changed and all(name.startswith("starts_from.") for name in changed):
        names = ", ".join(name.removeprefix("starts_from.") for name in changed)
        print(f"Begins anew, as what it starts from was trained since ({names}).")
        return None
    if changed == [PRECISION]:
        print(f"Goes on in {now[PRECISION]}; until here it was {then.get(PRECISION)}.")
        return state
    if changed:
        differences = "; ".join(f"{name} was {then.get(name)!r} and is {now.get(name)!r}" for name in changed)
        raise InputError(
            f"The training in {path} was started differently ({differences}): "
            "set restart = True to begin anew, or restore what changed."
        )
    return state


def not_a_resume_point(path: Path | None) -> InputError:
    return InputError(f"{path} is not a resume point of this training: delete it, or set restart = True.")


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat
