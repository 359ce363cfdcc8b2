"""What a run's notebooks recorded, as text."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pfiles.paths import Paths, numbers_of_clusters
from pfiles.reporting.tables import provenances

COMMAND_SECTIONS = {"run", "clusters"}  # of summary.json, each written by the command of that name


def print_summary(summary: Mapping[str, Any], paths: Paths, command: str = "run") -> None:
    """Print the numbers that the notebooks recorded in the run of `command`, and where its pictures are."""
    paths_per_k = [replace(paths, n_clusters=k) for k in numbers_of_clusters(paths.n_clusters)]
    prefixes = tuple(f"{each.cluster_folder.name}{paths.suffix}/" for each in (paths, *paths_per_k))
    data = {name: provenance.data for name, provenance in provenances(paths.summary).items()}
    fingerprints = {name: of.get("fingerprint") if isinstance(of, Mapping) else None for name, of in data.items()}
    of_this_run = None, summary[command]["data_fingerprint"]
    of_other_data = [name for name, fingerprint in fingerprints.items() if fingerprint not in of_this_run]
    print("\nnotebook                                             metric                             value")
    for section, values in summary.items():
        if section in COMMAND_SECTIONS - {command}:
            continue
        if section == command:
            values = {name: values[name] for name in ("data_fingerprint", "seconds", "peak_memory_gb")}
        if "/" in section and not section.startswith(prefixes):
            continue  # another number of clusters in the same folder
        if section in of_other_data:
            continue
        title = section if len(paths_per_k) > 1 else section.removeprefix(prefixes[0])
        for name, value in _rows(values):
            print(f"{title:<52} {name:<34} {f'{value:.5g}' if isinstance(value, float) else value}")
    if of_other_data:
        print(f"\nleft out, as these numbers are of other data: {', '.join(of_other_data)}")
    _print_pictures(paths, paths_per_k)
    print(f"summary\n  {paths.summary}")


def _print_pictures(paths: Paths, paths_per_k: list[Paths]) -> None:
    print("\nfigures")
    for folder in sorted((paths.root / "Figures").glob("Figure *")):
        print(f"  {folder}: {', '.join(path.name for path in sorted(folder.glob('*.jpg'), key=_natural))}")
    if sheets := [each.cluster_sheet for each in paths_per_k if each.cluster_sheet.exists()]:
        print("cluster sheet", *sheets, sep="\n  ")
    if atlases := [each.atlas for each in paths_per_k if each.atlas.exists()]:
        print("atlas of the clusters", *atlases, sep="\n  ")


def _rows(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Names and values of nested mappings; "details" stay in the file."""
    rows = []
    for name, value in values.items():
        if name == "details":
            continue
        if isinstance(value, Mapping):
            rows += _rows(value, f"{prefix}{name}: ")
        elif value is not None:  # not known
            rows.append((f"{prefix}{name}", value))
    return rows


def _natural(path: Path) -> tuple[int, str]:
    return len(path.name), path.name
