"""From the options of a command to the arguments of the code."""

import argparse
import json
from pathlib import Path
from typing import Any

from pfiles.errors import InputError
from pfiles.paths import expand
from pfiles.session import choices_of
from pfiles.tiles.dataset import EMBEDDED, data_or_default


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
    return overrides


def resolve_data(option: str | None) -> str:
    """The data of a command: an absolute path, as notebooks run in their own folders, or the name of embedded tiles."""
    data = data_or_default(option or None)
    return data if data in EMBEDDED else str(expand(data).resolve())


def run_choices(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The choices of the run in `folder`, from its summary.json and from the options that say what it was started with.

    These are the arguments of `open_run`.
    """
    data = None if args.data is None else resolve_data(args.data)
    overrides = None if args.overrides is None else parse_overrides(args.overrides)
    options = {"clustering": args.clustering, "data": data, "preset": args.preset, "overrides": overrides}
    return choices_of(folder, n_clusters=args.clusters, **options)
