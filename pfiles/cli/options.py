"""From the options of a command to the arguments of the code."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from pfiles import draw
from pfiles.choices import FILE, named_files, read_choices
from pfiles.drawing.generator import Generator
from pfiles.errors import InputError
from pfiles.machine.runtime import pick_device
from pfiles.paths import ROOT, expand, read_json
from pfiles.run import Run, choices_of, open_run
from pfiles.tiles.dataset import EMBEDDED, Tiles, data_or_default, load_tiles
from pfiles.tiles.slides import Tiling

READING = ("mpp_of_slide", "page", "icc", "min_tissue", "pens", "tissue_threshold")  # options for reading slides


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """["batch_size=8", ...] -> {"batch_size": 8, ...}: values are JSON, or text where they are not."""
    overrides = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--set takes NAME=VALUE, such as training.epochs=2, but got {pair!r}.")
        try:
            overrides[name] = json.loads(value)
        except ValueError:
            overrides[name] = value
    start_from = overrides.get("start_from")
    if isinstance(start_from, str) and start_from != "starter":
        overrides["start_from"] = str(expand(start_from).absolute())  # as other paths of a command
    return overrides


def resolve_data(option: str | None, otherwise: str | None = None) -> str:
    """The data of a command: an absolute path, as notebooks run in their own folders, or the name of embedded tiles.

    option: relative to the folder in which the command was started. otherwise: the value of run.toml, relative to the
    repository, as is the environment variable KPC_DATA, which counts if neither is given.
    """
    data = option or data_or_default(otherwise)
    return data if data in EMBEDDED else str(((Path.cwd() if option else ROOT) / expand(data)).resolve())


def output_folder(option: str) -> Path:
    """The folder that a command writes to; InputError before any work where a file is in its way, or it takes none."""
    folder = expand(option).absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        raise InputError(f"The output folder {folder} cannot be: {place} is a file. Name a folder, existing or new.")
    if not os.access(place, os.W_OK):
        raise InputError(
            f"The output folder {folder} cannot be written to, as {place} takes no file: name another one."
        )
    return folder


def run_folder(option: str) -> Path | None:
    """The folder of a run; None if `option` names a generator instead: "starter", or a folder."""
    folder = expand(option).absolute()
    return folder if option != "starter" and (folder / "summary.json").exists() else None


def generator_folder(option: str) -> Path | str:
    """A generator's folder; "starter" always means the built-in one, and ./starter a folder here."""
    return option if option == "starter" else expand(option).absolute()


def open_generator(args: argparse.Namespace, command: str) -> tuple[Generator, Run | None]:
    """The generator that `--from` or `--run` names, and the run that it is of, if it is."""
    folder = run_folder(args.folder)
    if folder is None:
        return Generator.load(generator_folder(args.folder), pick_device()), None
    run = open_run(command, **run_choices(args, folder), out=folder, run_toml=False, looks=True)
    return draw.generator(run), run


def real_tiles(args: argparse.Namespace, generator: Generator, run: Run | None) -> Tiles | None:
    """The tiles that a generator learnt from: those of its run, or those that `--real` names; None if neither does."""
    if run is not None or args.real is None:
        return None if run is None else run.tiles
    settings = generator.settings
    return load_tiles(resolve_data(args.real), settings.image_size_px, icc=settings.icc)


def run_choices(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The arguments of `open_run` for the run in `folder`.

    Options count most. A run that a command finished says the rest in its summary.json; for one that was made in
    notebooks it is as in run.toml.
    """
    data = None if args.data is None else resolve_data(args.data)
    overrides = None if args.overrides is None else parse_overrides(args.overrides)
    options = {"clustering": args.clustering, "data": data, "preset": args.preset, "overrides": overrides}
    summary = folder / "summary.json"
    if not isinstance(read_json(summary, {}).get("run", {}), dict):
        raise InputError(f'{summary} holds something else than a run under "run": put the right file there.')
    choices = choices_of(folder, n_clusters=args.clusters, **options)
    if "run" in read_json(summary, {}):
        return choices
    file_choices = _run_toml_of(folder)
    return file_choices | choices | {"overrides": file_choices.get("overrides", {}) | choices.get("overrides", {})}


def _run_toml_of(folder: Path) -> dict[str, Any]:
    """What run.toml chooses for the run in `folder`: that folder's file, or the repository's if it names the folder.

    KPC_RUN_TOML names another file instead of both. Relative data start at the repository.
    """
    named = named_files()
    for file in [folder / FILE, ROOT / FILE] if named is None else named:
        choices = read_choices(file) if file.exists() else {}
        base = folder if file.parent == folder else ROOT
        if choices and folder.resolve() == (base / expand(choices.pop("out", ""))).resolve():
            print(f"From {file}: {', '.join(f'{name} = {value!r}' for name, value in choices.items())}.")
            if choices.get("data") not in (None, *EMBEDDED):
                choices["data"] = str((ROOT / expand(choices["data"])).resolve())
            return choices
    return {}


def tiling_of(args: argparse.Namespace, mpp: float, size: int, stride: int | None = None) -> Tiling:
    """How a command reads its slides; it leaves at their defaults what it has no option for."""
    return Tiling(mpp, size, stride, **{name: getattr(args, name) for name in READING if hasattr(args, name)})
