"""Resume points: all that a training needs to go on, and the provenance that it belongs to."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pfiles.checkpoints import read_state
from pfiles.errors import InputError
from pfiles.machine.rank import is_first
from pfiles.paths import atomic_write, read_json, write_json
from pfiles.provenance import Provenance, in_words

PRECISION = "settings.precision"  # as a note names it
RESTARTED = "restarted.json"


def save_resume_point(folder: Path, note: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write all that a training needs to go on (`state`), with the `note` of the provenance that it belongs to.

    The last two are kept, as `resume.pt` and `resume_previous.pt`.
    """
    if not is_first():
        return
    path, previous = _resume_points(folder)
    if path.exists():
        os.replace(path, previous)
    with atomic_write(path) as file:
        torch.save({"identity": json.dumps(note, sort_keys=True), "state": dict(state)}, file)


def _resume_points(folder: Path) -> tuple[Path, Path]:
    return folder / "resume.pt", folder / "resume_previous.pt"


def last_resume_point(folder: Path) -> Path | None:
    """The newest resume point in a training's folder; None if there is none."""
    return next((path for path in _resume_points(folder) if path.exists()), None)


def load_resume_point(folder: Path, note: Mapping[str, Any]) -> dict[str, Any] | None:
    """The newest state saved in `folder`, or None if there is none.

    Where a network that the training starts from changed ("starts_from" in `note`), what was done is obsolete: it
    says so and returns None. The precision may change on the way, and it says so. Raises InputError, naming each
    difference, for other settings or data.
    """
    path = last_resume_point(folder)
    if path is None:
        return None
    point = read_state(path)
    try:
        recorded = Provenance.from_note(json.loads(point["identity"]))
        changed = recorded.differences(Provenance.from_note(note))
        state = {**point["state"]}
    except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
        raise not_a_resume_point(path) from error
    if changed and all(name.startswith("starts_from.") for name in changed):
        names = ", ".join(name.removeprefix("starts_from.") for name in changed)
        print(f"Starts from the beginning, because what it builds on was trained again ({names}).")
        return None
    if [*changed] == [PRECISION]:
        then, now = changed[PRECISION]
        print(f"Goes on in {now}; until here it was {then}.")
        return state
    if changed:
        raise InputError(
            f"The training in {path} was started differently ({in_words(changed)}): "
            "set restart = True to begin anew, or restore what changed."
        )
    return state


def not_a_resume_point(path: Path | None) -> InputError:
    return InputError(f"{path} is not a resume point of this training: delete it, or set restart = True.")


def restarts(folder: Path, note: Mapping[str, Any], restart: bool | str) -> bool:
    """Whether to start from the beginning: once per restart, and not when that restart is being continued.

    A restart is done once. It goes on where it was stopped, and a finished one is not done again where Slurm has put
    its job back into the queue, or where it has a name (`restart` is text) and is asked for under the same one.
    """
    record = read_json(folder / RESTARTED, {})
    if not restart or record.get("identity") != note:
        return bool(restart)
    is_same_job = record.get("job") == os.environ.get("SLURM_JOB_ID")
    requeued = is_same_job and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    same = record.get("of") == _name(restart)
    return not requeued and not (same and (_name(restart) is not None or record.get("finished") is not True))


def name_of_restart(record_file: Path, trainings: Mapping[str, Any]) -> str:
    """A name for a restart of several trainings: the same one for the same ones until its `record_file` is removed."""
    trainings = json.loads(json.dumps(trainings))
    record = read_json(record_file, {})
    if record.get("of") != trainings:
        record = {"name": secrets.token_hex(4), "of": trainings}
        write_json(record_file, record)
    return record["name"]


def begin_restart(folder: Path, note: Mapping[str, Any], restart: bool | str) -> None:
    """Drop the resume points in `folder`, and note that the training there was begun anew."""
    if not is_first():
        return
    for path in (folder / RESTARTED, *_resume_points(folder)):
        path.unlink(missing_ok=True)
    job = os.environ.get("SLURM_JOB_ID")
    write_json(folder / RESTARTED, {"of": _name(restart), "job": job, "finished": False, "identity": note})


def end_restart(folder: Path) -> None:
    """Note that the training in `folder` is finished, where it was begun by a restart."""
    record = read_json(folder / RESTARTED)
    if is_first() and record is not None and record.get("finished") is False:
        write_json(folder / RESTARTED, {**record, "finished": True})


def _name(restart: bool | str) -> str | None:
    return restart if isinstance(restart, str) else None
