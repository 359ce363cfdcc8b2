"""The command line: run the notebooks in order, without a browser.

    python -m pfiles demo [--out DIR]
    python -m pfiles run --data PATH --preset NAME --clusters 14 --clustering classifier --out DIR
    python -m pfiles evaluate --real DIR --generated DIR
    python -m pfiles export --generated DIR --data PATH --out DIR

The notebooks are the only place where the order of work within a step is written; `demo` and `run` only run them one
after the other with the given parameters, and print what they recorded. `evaluate` compares two folders of images;
`export` copies the generated images that repeat no training tile.
"""

import argparse
import ast
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from pfiles.clustering import CLUSTERINGS, check_clustering
from pfiles.data import load_tiles, read_images
from pfiles.errors import InputError
from pfiles.features import EXTRACTORS
from pfiles.paths import ROOT, Paths, atomic_write, read_json, write_json
from pfiles.runtime import versions
from pfiles.settings import PRESETS, get_settings

NOTEBOOKS = (
    "train_autoencoder",
    "autoencoder_output",
    "save_training_images",
    "clusters_14/part_1_training",
    "clusters_14/part_2_finetuning1",
    "clusters_14/part_3_finetuning2",
    "clusters_14/part_4_sampling_clustering",
    "clusters_14/part_5_latent_space_extraction",
    "clusters_14/part_6_conditional_generation",
    "clusters_14/part_7_sampling_after_first_training",
    "clusters_14/part_8_sampling_after_finetuning1",
    "clusters_14/part_9_conditional_generation_using_cluster_IDs",
    "clusters_14/part_10_SSIM",
    "clusters_14/part_11_MSSSIM",
    "clusters_14/part_12_LPIPS",
    "clusters_14/part_13_distribution_metrics",
    "clusters_14/part_14_memorisation",
    "internal_cluster_validation_metrics",
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 a notebook failed, 2 something given is wrong."""
    args = _parser().parse_args(arguments)
    try:
        return args.command(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pfiles", description="Run the notebooks in order, headless.")
    commands = parser.add_subparsers(required=True)
    demo = commands.add_parser("demo", help="everything at small size on embedded tissue: minutes on two CPU cores")
    run = commands.add_parser("run", help="everything on your tiles")
    evaluate = commands.add_parser("evaluate", help="every measure of a folder of generated images against real ones")
    demo.set_defaults(data="embedded", preset="demo", clusters=14, clustering="classifier")
    run.add_argument("--data", help=".npy, folder or .zip of tiles, or 'embedded'; default $KPC_DATA, then 'embedded'")
    run.add_argument("--preset", default="paper", help=f"{' or '.join(PRESETS)}; default paper")
    run.add_argument("--clusters", type=int, default=14, metavar="K", help="number of clusters; default 14")
    run.add_argument("--clustering", default="classifier", help=f"{' or '.join(CLUSTERINGS)}; default classifier")
    export = commands.add_parser("export", help="copy the generated images that repeat no training tile, with a report")
    export.add_argument("--generated", required=True, metavar="DIR", help="folder of generated images, such as gen_14")
    export.add_argument("--data", help="the tiles that the generator was trained on, as for run")
    export.add_argument(
        "--out", required=True, metavar="DIR", help="new folder: images/, report.json, closest_pairs.png"
    )
    export.add_argument("--preset", default="paper", help="that of the training; default paper")
    for command in (demo, run):
        command.add_argument("--out", help="folder for all results; default: this repository's own folders")
        command.add_argument("--seed", type=int, help="the notebooks' own seeds where this is not given")
    for command in (demo, run, export):
        command.add_argument(
            "--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides",
            help="change a setting, such as training.epochs=2; may be repeated",
        )  # fmt: skip
    for command in (demo, run):
        command.add_argument("--restart", action="store_true", help="train anew where a run was begun before")
        command.set_defaults(command=_run)
    evaluate.add_argument("--real", required=True, metavar="DIR", help="real images, such as org")
    evaluate.add_argument("--generated", required=True, metavar="DIR", help="generated images, such as gen_14")
    evaluate.add_argument("--clusters-csv", metavar="FILE", help="clusters of the images, such as HHH14_C14_D14.csv")
    evaluate.add_argument("--autoencoder", metavar="FILE", help="checkpoint of the VQ-GAN, to compare in its features")
    evaluate.add_argument(
        "--features", metavar="NAME", help=f"{', '.join(EXTRACTORS)}; default random, and autoencoder if given"
    )
    evaluate.add_argument("--unpaired", action="store_true", help="images do not pair by name: no paired scores")
    evaluate.add_argument("--seed", type=int, default=765, help="of controls, subsets and bootstraps; default 765")
    evaluate.add_argument(
        "--out", default=".", metavar="DIR", help="for evaluation.json and evaluation.html; default here"
    )
    evaluate.set_defaults(command=_evaluate)
    export.set_defaults(command=_export)
    return parser


def _run(args: argparse.Namespace) -> int:
    overrides = _overrides(args.overrides)
    settings = get_settings(args.preset, overrides)
    check_clustering(args.clustering)
    out = None if args.out is None else str(Path(args.out).expanduser().absolute())
    paths = Paths(args.clusters, out)
    data = _data(args.data)
    load_tiles(data, settings.image_size_px, settings.max_train_tiles, args.clusters)

    parameters = {
        "n_clusters": args.clusters,
        "clustering": args.clustering,
        "data": data,
        "preset": args.preset,
        "overrides": overrides,
        "out": out,
        "restart": args.restart,
    }
    if args.seed is not None:
        parameters["seed"] = args.seed

    began = time.monotonic()
    for number, name in enumerate(NOTEBOOKS, start=1):
        print(f"[{number:2}/{len(NOTEBOOKS)}] {name} ", end="", flush=True)
        started = time.monotonic()
        target = paths.root / "executed" / f"{name.replace('clusters_14', paths.cluster_folder.name)}.ipynb"
        failure = execute(ROOT / f"{name}.ipynb", target, parameters)
        if failure is not None:
            print("failed", flush=True)
            print(f"error: {failure[1]}\nThe notebook up to there: {target}", file=sys.stderr)
            return 2 if failure[0] == InputError.__name__ else 1
        print(f"{time.monotonic() - started:.0f} s", flush=True)

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    summary = read_json(paths.summary, {})
    summary["run"] = {**parameters, "seconds": round(time.monotonic() - began), "peak_memory_gb": round(peak, 2)}
    write_json(paths.summary, summary)
    _print_summary(summary, paths)
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from pfiles import evaluation, report  # seconds to import, and `run` needs neither

    given = {
        name: None if value is None else Path(value).expanduser().absolute()
        for name, value in (("clusters_csv", args.clusters_csv), ("autoencoder", args.autoencoder))
    }
    real, generated, out = (Path(folder).expanduser().absolute() for folder in (args.real, args.generated, args.out))
    if out.exists() and not out.is_dir():
        raise InputError(f"The output folder {out} is a file: name a folder, existing or new.")
    sections = evaluation.evaluate(
        real, generated, **given, features=args.features, paired=not args.unpaired, seed=args.seed
    )
    print(report.as_text(sections))
    about = {"real": str(real), "generated": str(generated), "seed": args.seed, **versions()}
    print("\nwritten", *report.write_report(sections, out, about), sep="\n  ")
    return 0


def _export(args: argparse.Namespace) -> int:
    from pfiles import memorisation  # likewise
    from pfiles.metrics import PUBLISHED_SIDE

    settings = get_settings(args.preset, _overrides(args.overrides))
    generated, out = (Path(folder).expanduser().absolute() for folder in (args.generated, args.out))
    side = read_images(memorisation.generated_files(generated)[:1]).shape[1]
    if side == PUBLISHED_SIDE:  # tiles enlarged by the authors' way of saving them
        side = settings.image_size_px
    report = memorisation.export(generated, load_tiles(_data(args.data), side, settings.max_train_tiles), out)
    share, low, high, expected = (f"{report[name]:.1%}" for name in ("closer", "low", "high", "expected"))
    print(
        f"{report['exported']} of {len(report['images'])} images passed: {out / 'images'}\n"
        f"{report['withheld']} were withheld: they are closer to a training tile than {report['threshold']:.3f}, as "
        f"the closest 1 % of {report['held_out_tiles']} held-out tiles are.\n"
        f"That is {share}, 95 % interval {low} to {high}. Of images like the held-out tiles {expected} would be "
        f"expected, and this share or a larger one has a chance of {report['chance']:.2g}."
    )
    return 0


def _data(given: str | None) -> str:
    data = given or os.environ.get("KPC_DATA") or "embedded"
    return data if data == "embedded" else str(Path(data).expanduser().resolve())  # notebooks run in their own folders


def _overrides(pairs: list[str]) -> dict[str, Any]:
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


def execute(notebook: Path, target: Path, parameters: Mapping[str, Any]) -> tuple[str, str] | None:
    """Run a notebook in its own folder with some of its parameters changed, and write it with its outputs to `target`.

    Only names that the cell tagged "parameters" assigns are changed, in a cell put behind it.
    Returns None, or the name and the message of the error that stopped it.
    """
    book = nbformat.read(notebook, as_version=4)
    index, cell = next((i, c) for i, c in enumerate(book.cells) if "parameters" in c.metadata.get("tags", []))
    known = {name.id for node in ast.parse(cell.source).body for name in getattr(node, "targets", ())}
    source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items() if name in known)
    injected = nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]})
    book.cells.insert(index + 1, injected)
    # this Python's own kernel, whatever "python3" a user has registered
    os.environ["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))
    client = NotebookClient(
        book,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": notebook.parent}},
        extra_arguments=["--log-level=ERROR"],  # a kernel warns about its local ports each time it starts
    )
    try:
        client.execute()
    except CellExecutionError as error:
        return error.ename, error.evalue
    except (DeadKernelError, AssertionError):  # the latter from nbclient, which asserts that it still has a kernel
        return "DeadKernelError", "the notebook's process ended, most likely because memory ran out."
    finally:
        with atomic_write(target) as file:
            file.write(nbformat.writes(book).encode())
    return None


def _print_summary(summary: Mapping[str, Any], paths: Paths) -> None:
    """The numbers the notebooks of this run recorded, and where the pictures are."""
    own_folder = f"{paths.cluster_folder.name}/"
    print("\nnotebook                                             metric                             value")
    for section, values in summary.items():
        if "/" in section and not section.startswith(own_folder):
            continue  # another number of clusters in the same folder
        for name, value in _rows(values):
            shown = f"{value:.5g}" if isinstance(value, float) else value
            print(f"{section.removeprefix(own_folder):<52} {name:<34} {shown}")
    print("\nfigures")
    for folder in sorted((paths.root / "Figures").glob("Figure *")):
        print(f"  {folder}: {', '.join(path.name for path in sorted(folder.glob('*.jpg'), key=_natural))}")
    print(f"cluster sheet\n  {paths.cluster_sheet}\nsummary\n  {paths.summary}")


def _rows(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Names and values of nested mappings; what is called "details" stays in the file."""
    rows = []
    for name, value in values.items():
        if name == "details":
            continue
        rows += _rows(value, f"{prefix}{name}: ") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return rows


def _natural(path: Path) -> tuple[int, str]:
    return len(path.name), path.name


if __name__ == "__main__":
    sys.exit(main())
