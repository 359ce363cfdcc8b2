"""A finished run as one zip to be handed over, archived and made again: an RO-Crate of the Workflow Run Crate profile.

`pfiles.reproduce` reads it. Tiles lie in it only where that is asked for, and no path of the machine it was made on.
"""

import json
import os
import platform
import shlex
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from hashlib import file_digest, sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import torch

import MODULE
import pfiles
from pfiles import artifacts, checkpoints
from pfiles.choices import K_INDEPENDENT_NOTEBOOKS
from pfiles.errors import InputError, extra
from pfiles.machine.cpu import processor
from pfiles.paths import ROOT, atomic_write, expand, read_json
from pfiles.reporting.tables import beside
from pfiles.run import Run
from pfiles.settings import get_settings
from pfiles.status import states_of
from pfiles.tiles.dataset import EMBEDDED, data_or_default
from pfiles.tiles.files import image_files, read_images
from pfiles.tiles.pixels import as_array
from pfiles.tiles.sources import walk

FORMAT = 1  # of run.json; another number is another layout
RECORD, SUMMARY, IDENTITIES, METADATA = "run.json", "summary.json", "summary_identities.json", "ro-crate-metadata.json"
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn", "scikit-image", "pillow")
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
CONTEXT = "https://w3id.org/ro/terms/workflow-run/context"
MIT = "https://spdx.org/licenses/MIT"
NO_LICENCE = "not stated: ask the authors of this crate before you use it"
TEXTS = (".json", ".ipynb", ".csv", ".sh")
OF_THE_MACHINE = ("seconds", "peak_memory_gb", "versions")  # not numbers of a result


def pack(
    run: Run, out: Path, notebooks: Sequence[str], choices: Mapping[str, Any], *,
    with_checkpoints: bool = False, with_tiles: bool = False, licence: str = NO_LICENCE,
) -> dict[str, Any]:  # fmt: skip
    """Write the zip `out`, whole or not at all, and return what its run.json holds.

    notebooks: all there are, in their order. choices: how the run was started, see `pfiles.run.choices_of`.
    licence: of all that is in the crate but the code. InputError where the run has made nothing.
    """
    record = describe(run, notebooks, choices)
    with tempfile.TemporaryDirectory() as folder, extra("notebooks"):
        files = dict(_files(run, record, Path(folder), with_checkpoints, with_tiles))
        crate = _crate(run, record, files, licence)
        with atomic_write(out) as file:
            for chunk in crate.stream_zip():
                file.write(chunk)
    return record


def is_crate(path: Path) -> bool:
    """Whether a file is a crate, of any format."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return RECORD in archive.namelist()


# What is to be made again


def describe(run: Run, notebooks: Sequence[str], choices: Mapping[str, Any]) -> dict[str, Any]:
    """All that a run is made from, and hashes of what it made, in plain values."""
    statuses = {status.artifact.name: status for status in states_of(run) if status.path and status.state != "missing"}
    sections = numbers_of(run)
    makers = {status.artifact.made_by for status in statuses.values()}
    steps = [name for name in notebooks if makers & {_base(name)} or _section(run, name) in sections]
    if not statuses:
        raise InputError(f"The run in {run.paths.root} has made nothing yet: name the folder of a finished one.")
    overrides = dict(choices.get("overrides", {}))
    if get_settings(run.preset, overrides).precision == "auto":  # which another machine might decide otherwise
        overrides["precision"] = run.settings.precision
    started = {"n_clusters": run.n_clusters, "clustering": run.clustering, "preset": run.preset,
               "overrides": overrides}  # fmt: skip
    if "seed" in choices:  # otherwise each notebook has its own
        started["seed"] = choices["seed"]
    data = data_or_default(run.data)
    return {
        "format": FORMAT,
        "version": pfiles.__version__,
        "choices": started,
        "settings": json.loads(json.dumps(asdict(run.settings))),
        "data": {
            "source": run.tiles.source, "fingerprint": run.tiles.fingerprint(),
            "training tiles": len(run.tiles.train), "embedded": data if data in EMBEDDED else None,
        },
        "environment": environment() | _environment_of(run),
        "notebooks": steps,
        "artefacts": {
            name: {
                "state": status.state, "why": status.reason, "content": content(artifacts.require_there(run, name)),
                "provenance": None if (note := artifacts.recorded(run, name)) is None else note.as_note(),
            }
            for name, status in statuses.items()
        },
        "numbers": sections,
    }  # fmt: skip


def _base(notebook: str) -> str:
    return notebook.rpartition("/")[2]


def _section(run: Run, notebook: str) -> str:
    """Where summary.json keeps the numbers of a notebook."""
    base, suffix = _base(notebook), run.paths.suffix
    if notebook in K_INDEPENDENT_NOTEBOOKS:
        return notebook
    return f"{run.paths.cluster_folder.name}{suffix}/{base}" if base.startswith("part_") else f"{base}{suffix}"


def numbers_of(run: Run) -> dict[str, Any]:
    """The numbers that the run's notebooks recorded, by section, without those of the machine."""
    ours = f"{run.paths.cluster_folder.name}{run.paths.suffix}/"
    summary = read_json(run.paths.summary, {})
    return {
        section: {name: value for name, value in values.items() if name not in OF_THE_MACHINE}
        for section, values in summary.items()
        if section not in ("run", "clusters") and ("/" not in section or section.startswith(ours))
    }


def environment() -> dict[str, Any]:
    """What a result depends on here, besides settings, data and weights: packages, threads, processor."""
    packages = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # some are optional
            packages[name] = version(name)
    packages["pfiles"] = f"{pfiles.__version__}, code {_code()}"
    return {"python": platform.python_version(), "packages": packages, "processor": processor(),
            "threads": torch.get_num_threads()}  # fmt: skip


@cache
def _code() -> str:
    """A hash of the code itself, which may change without a new version."""
    digest = sha256()
    for package in (pfiles, MODULE):
        folder = Path(package.__file__ or "").parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _environment_of(run: Run) -> dict[str, Any]:
    """As far as the run's own files tell it: packages from the autoencoder's note, threads from its log."""
    environment_of_run: dict[str, Any] = {}
    versions = read_json(run.paths.autoencoder.with_suffix(".json"), {}).get("versions", {})
    if versions:
        environment_of_run = {"python": versions.get("python"), "packages": environment()["packages"] | {
            name: number for name, number in versions.items() if name in PACKAGES}}  # fmt: skip
    log = run.paths.training_folder("autoencoder") / "log.csv"
    if log.exists() and "threads" in (rows := pd.read_csv(log)):
        environment_of_run["threads"] = int(rows["threads"].max())
    return environment_of_run


def content(path: Path) -> str:
    """A hash of what an artefact says: its weights, the pixels of its tiles, the tables of a folder without tiles, or
    its bytes."""
    if path.suffix == ".pth":
        return checkpoints.fingerprint_of_state(checkpoints.read_state(path))
    digest = sha256()
    tiles = {name: file for name, file in image_files(path).items() if name.isdecimal()} if path.is_dir() else {}
    for name, file in tiles.items():
        digest.update(name.encode() + as_array(read_images([file])).tobytes())
    if not tiles:
        for file in [path] if path.is_file() else sorted(path.glob("*.csv")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


# What lies in the zip


def _files(
    run: Run, record: Mapping[str, Any], folder: Path, with_checkpoints: bool, with_tiles: bool
) -> Iterator[tuple[str, Path]]:
    """The files of the crate by their names in it; those that hold text come from `folder`, without paths in them."""
    root, data = run.paths.root, data_or_default(run.data)
    yield RECORD, _written(folder / RECORD, json.dumps(record, indent=1))
    yield "workflow.sh", _written(folder / "workflow.sh", _workflow(record))
    patterns = ["summary.json", beside(run.paths.summary).name, "Figures/**/*.jpg",
                "executed/**/*.ipynb", "**/*_training*/log.csv", f"clusters_{run.n_clusters}/*.csv",
                f"clusters_{run.n_clusters}/names_*.json"]  # fmt: skip
    patterns += ["kpc_ldm/*.pth", f"clusters_{run.n_clusters}/models_*/*.pth"] * with_checkpoints
    patterns += ["kpc_ldm/*.json", f"clusters_{run.n_clusters}/models_*/*.json"]
    patterns += ["org/*", f"clusters_{run.n_clusters}/gen_*/*"] * with_tiles
    words = _words(root, data)
    for path in sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_file()}):
        name = path.relative_to(root).as_posix()
        if path.suffix in TEXTS:
            text = path.read_text()
            for word, instead in words.items():
                text = text.replace(word, instead)
            path = _written(folder / name, text)
        yield name, path
    if with_tiles and data not in EMBEDDED:
        source = (ROOT / expand(data)).resolve()
        for path in walk(source) if source.is_dir() else [source]:
            inner = path.relative_to(source).as_posix() if source.is_dir() else ""
            name = f"data/{source.name}" + (f"/{inner}" if inner else "")
            if leads_out(name):
                raise InputError(
                    f"{path} cannot lie in a crate, where no name may hold a colon or backslash: give it another one."
                )
            yield name, path


def leads_out(name: str) -> bool:
    """Whether a file of that name in a zip could be written outside of its folder, on whatever system."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name


def _words(root: Path, data: str) -> dict[str, str]:
    """What stands in a crate for the paths of this machine, by path.

    A name without a folder is none and stays, and so does /, which is the home folder in some containers.
    """
    of_data = [] if data in EMBEDDED else [str((ROOT / expand(data)).resolve()), data]
    words = dict.fromkeys(of_data, "DATA")
    words |= {str(root): "OUT", sys.prefix: "PYTHON", str(ROOT): "CODE", os.path.expanduser("~"): "HOME"}
    return {path: word for path, word in words.items() if "/" in path.rstrip("/")}


def _written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _workflow(record: Mapping[str, Any]) -> str:
    """The command that makes the run, for people; `reproduce` reads run.json."""
    choices, data = record["choices"], record["data"]
    options = {"--data": data["embedded"] or "DATA", "--preset": choices["preset"], "--clusters": choices["n_clusters"],
               "--clustering": choices["clustering"], "--seed": choices.get("seed")}  # fmt: skip
    words = ["python", "-m", "pfiles", "run", "--out", "OUT"]
    words += [part for name, value in options.items() if value is not None for part in (name, str(value))]
    for name, value in choices["overrides"].items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    about = f"# pfiles {record['version']}; DATA are the tiles of fingerprint {data['fingerprint']}"
    return f"{about}\n{shlex.join(words)}\n"


def _crate(run: Run, record: Mapping[str, Any], files: Mapping[str, Path], licence: str) -> Any:
    """The crate of these files, with what the profile asks for."""
    from rocrate.model.computerlanguage import ComputerLanguage
    from rocrate.model.contextentity import ContextEntity
    from rocrate.rocrate import ROCrate

    crate = ROCrate(version="1.1")
    crate.metadata.extra_contexts.append(CONTEXT)
    crate.metadata.extra_terms["sha256"] = "https://schema.org/sha256"
    crate.name = f"A run of pfiles: {record['data']['source']}, {run.n_clusters} clusters"
    crate.description = (
        "Settings, versions, provenance, numbers, figures and notebooks of a conditional latent diffusion run. "
        "`python -m pfiles reproduce` makes it again. Figures and notebooks show single tiles."
    )
    crate.license = licence

    def entity(at: str, kind: str, **properties: Any) -> Any:
        return crate.add(ContextEntity(crate, at, {"@type": kind, **properties}))

    profiles = [
        entity(url, "CreativeWork", name=name, version=url.rpartition("/")[2]) for url, name in PROFILES.items()
    ]
    crate.root_dataset["conformsTo"] = profiles
    code = entity(MIT, "CreativeWork", name="MIT License")
    shell = crate.add(ComputerLanguage(crate, "#bash", {"name": "Bash", "url": "https://www.gnu.org/software/bash/"}))
    numbers = record["environment"]["packages"].items()
    packages = [f"{name} {number}" for name, number in numbers if name != "pfiles"]
    program = entity("#pfiles", "SoftwareApplication", name="pfiles", softwareVersion=record["version"], license=code,
                     softwareRequirements=[f"Python {record['environment']['python']}", *packages])  # fmt: skip
    tiles = entity("#tiles", "Dataset", name=record["data"]["source"], identifier=record["data"]["fingerprint"])
    parameter = crate.add_formal_parameter("tiles", "Dataset", "#input-tiles", "Square tiles of stained tissue")
    tiles["exampleOfWork"] = parameter
    entities = {}
    for name, path in files.items():
        with open(path, "rb") as file:
            properties = {"sha256": file_digest(file, "sha256").hexdigest(), "license": licence}
        if name == "workflow.sh":
            entities[name] = crate.add_workflow(
                path, name, properties=properties | {"license": code}, main=True, lang=shell
            )
        else:
            entities[name] = crate.add_file(path, name, properties=properties, record_size=True)
    workflow = entities["workflow.sh"]
    workflow["input"], workflow["softwareRequirements"] = parameter, program
    results = [each for name, each in entities.items() if name not in (RECORD, "workflow.sh")]
    written = datetime.fromtimestamp(max(status.path.stat().st_mtime for status in states_of(run)
                                         if status.path and status.path.exists()), UTC)  # fmt: skip
    crate.add_action(workflow, "#run", object=[tiles, entities[RECORD]], result=results, properties={
        "name": "The run", "endTime": written.isoformat(timespec="seconds"),
        "actionStatus": "http://schema.org/CompletedActionStatus"})  # fmt: skip
    return crate
