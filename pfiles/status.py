"""The state of every file that a run makes, by the table in `artifacts`."""

from pathlib import Path
from typing import NamedTuple

from pfiles.artifacts import ARTIFACTS, Artifact, expected, is_there, lack_of, recorded
from pfiles.errors import InputError
from pfiles.provenance import in_words
from pfiles.run import Run


class Status(NamedTuple):
    """An artefact of a run: "made", "stale" and why, "missing" in whole or in part, or "foreign", without provenance as
    published ones."""

    artifact: Artifact
    path: Path | None
    state: str
    reason: str = ""


def states_of(run: Run) -> list[Status]:
    """The state of each artefact of a run of one k, in the order in which they are made."""
    return [_status(run, artifact) for artifact in ARTIFACTS]


def _status(run: Run, artifact: Artifact) -> Status:
    path = artifact.path(run)
    if not is_there(path):
        return Status(artifact, path, "missing", f"run {artifact.made_by}")
    provenance = recorded(run, artifact.name)
    if provenance is None:
        return Status(artifact, path, "foreign", "it has no provenance, as published files")
    try:
        different = provenance.differences(expected(run, artifact.name), shared=True)
        lack = lack_of(run, artifact.name)
    except InputError as error:  # of what it is made from, or of the images in it
        return Status(artifact, path, "stale", str(error))
    if different:
        return Status(artifact, path, "stale", in_words(different))
    return Status(artifact, path, "missing" if lack else "made", lack)
