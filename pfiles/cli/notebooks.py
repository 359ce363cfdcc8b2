"""The commands that run notebooks, one after the other: `run` and `demo`, `clusters`, and `cells` for one of them.

The notebooks are the only place where the order of work within a step is written. `run`, `demo` and `clusters` load no
torch, which their kernel does; the other two work in this process.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfiles.choices import K_INDEPENDENT_NOTEBOOKS
from pfiles.cli.execute import STOPPED, end_kernel, execute, run_cells, run_code, start_kernel
from pfiles.cli.summary import print_summary
from pfiles.errors import InputError
from pfiles.machine.locks import locked
from pfiles.paths import ROOT, Paths, read_json, write_json

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager

    from pfiles.cli.opening import Plan

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
    "clusters_14/part_15_cluster_maps",
    "clusters_14/part_16_cluster_atlas",
    "internal_cluster_validation_metrics",
)
ON_REQUEST = {  # by the option that asks for it
    "fields": "clusters_14/part_17_fields",  # takes minutes
    "reader_study": "clusters_14/part_18_reader_study",  # people have to answer
}
FOR_ALL_K = NOTEBOOKS[: NOTEBOOKS.index("clusters_14/part_3_finetuning2") + 1]  # once for several k, as the last one
CHOOSE_K = ("choose_k", "internal_cluster_validation_metrics")
NO_TOML = {"run_toml": False}  # for notebooks: run.toml has been read, they get its choices as parameters
NO_NOTEBOOKS = "The notebooks do not come with the installed package: run this in a checkout of the code."
Step = tuple[str, dict[str, Any]]  # a notebook and its parameters


def run(args: argparse.Namespace) -> int:
    """All notebooks in order: `run` and `demo`."""
    requested = [name for option, name in ON_REQUEST.items() if getattr(args, option)]
    names = (*NOTEBOOKS[:-1], *requested, NOTEBOOKS[-1])

    def steps_of(plan: "Plan") -> list[Step]:
        parameters = plan["parameters"]
        steps: list[Step] = [(name, parameters) for name in names]
        if len(plan["ks"]) == 1:
            return steps
        per_k = [(name, {**parameters, "n_clusters": k}) for k in plan["ks"] for name in names[len(FOR_ALL_K) : -1]]
        return [*steps[: len(FOR_ALL_K)], *per_k, steps[-1]]

    return _execute_steps(args, "run", steps_of)


def choose_k(args: argparse.Namespace) -> int:
    """The clusters of every k, and what the numbers support: `clusters`."""

    def steps_of(plan: "Plan") -> list[Step]:
        names = CHOOSE_K if Paths(*plan["paths"]).autoencoder.exists() else ("train_autoencoder", *CHOOSE_K)
        return [(name, plan["parameters"]) for name in names]

    return _execute_steps(args, "clusters", steps_of)


def cells(args: argparse.Namespace) -> int:
    """One notebook's code in this process."""
    notebooks = {name.rpartition("/")[2]: name for name in (*NOTEBOOKS, *ON_REQUEST.values(), CHOOSE_K[0])}
    name = notebooks.get(args.notebook.removesuffix(".ipynb").rpartition("/")[2])
    if name is None:
        raise InputError(f"There is no notebook {args.notebook!r}: choose one of {', '.join(notebooks)}.")
    if not (ROOT / "clusters_14").is_dir():
        raise InputError(NO_NOTEBOOKS)
    from pfiles.cli.opening import open_and_check  # here, as it loads torch

    _, parameters = open_and_check(args)
    run_cells(ROOT / f"{name}.ipynb", {**parameters, "seeds": args.seeds} | NO_TOML)
    return 0


def make_again(notebooks: Sequence[str], choices: Mapping[str, Any], out: Path) -> None:
    """The code of some notebooks, one after the other in this process; what they say goes to a file in `out`."""
    if unknown := sorted({*notebooks} - {*NOTEBOOKS}):
        raise InputError(f"There is no notebook {unknown[0]!r} in this version: use the version that packed the run.")
    log = out / "reproduce.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(notebooks, start=1):
        print(f"[{number:2}/{len(notebooks)}] {name}", flush=True)
        with open(log, "a") as log_file, redirect_stdout(log_file):
            run_cells(ROOT / f"{name}.ipynb", {**choices, "restart": False} | NO_TOML)
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")


def _execute_steps(args: argparse.Namespace, section: str, steps_of: Callable[["Plan"], list[Step]]) -> int:
    """Run the notebooks of a plan, each with its parameters, and print what they recorded; the exit status.

    section: of summary.json, which keeps the parameters of the command.
    """
    if not (ROOT / "clusters_14").is_dir():
        raise InputError(NO_NOTEBOOKS)
    began = time.monotonic()
    plan = _plan_here(section, vars(args)) if "torch" in sys.modules else None
    with ExitStack() as stack:
        kernel = start_kernel()
        stack.callback(end_kernel, kernel)
        if plan is None:
            plan, failure = _plan_in(kernel, section, vars(args))
            if plan is None:
                assert failure is not None
                return _tell_failure(*failure)
        paths, parameters, steps = Paths(*plan["paths"]), plan["parameters"], steps_of(plan)
        busy = f"Another run with these clusters is at work in {paths.root}: wait for it, or name another folder with "
        stack.enter_context(locked(Path(plan["executed"]), f"{busy}--out."))
        anew = {} if plan["restart"] is None else {"restart": plan["restart"]}
        for number, (name, step_parameters) in enumerate(steps, start=1):
            folder = f"clusters_{step_parameters['n_clusters']}{paths.suffix}"
            title = name if step_parameters is parameters else name.replace("clusters_14", folder)
            print(f"[{number:2}/{len(steps)}] {title} ", end="", flush=True)
            started = time.monotonic()
            target = _executed_path(paths, name, folder)
            failure = execute(ROOT / f"{name}.ipynb", target, step_parameters | anew | NO_TOML, kernel)
            if failure is not None:
                print("stopped" if failure[0] in STOPPED else "failed", flush=True)
                return _tell_failure(*failure, target)
            print(f"{time.monotonic() - started:.0f} s", flush=True)

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    measured = {"seconds": round(time.monotonic() - began), "peak_memory_gb": round(peak, 2)}
    with locked(paths.root):
        summary = read_json(paths.summary, {}) | {section: plan["record"] | measured}
        write_json(paths.summary, summary)
    Path(plan["restart_note"]).unlink(missing_ok=True)
    print_summary(summary, paths, section)
    return 0


def _plan_here(section: str, options: Mapping[str, Any]) -> "Plan":
    from pfiles.cli import opening  # here, as it loads torch

    return opening.plan(section, options)


def _plan_in(
    kernel: "AsyncKernelManager", section: str, options: Mapping[str, Any]
) -> tuple["Plan | None", tuple[str, str] | None]:
    """What `opening.plan` says in a kernel, or None; and None, or the name and message of the error that stopped it."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "plan.json")
        code = (
            "import json, os, pathlib\n"
            f"os.chdir({str(Path.cwd())!r})\n"
            "from pfiles.cli.opening import plan\n"
            f"answer = json.dumps(plan({section!r}, {dict(options)!r}))\n"
            f"pathlib.Path({str(answer)!r}).write_text(answer)"
        )
        failure = run_code(code, kernel)
        return (None if failure else json.loads(answer.read_text())), failure


def _executed_path(paths: Paths, name: str, folder: str) -> Path:
    """Where a notebook goes with its outputs; folder: that of its clusters."""
    suffix = paths.suffix if name not in K_INDEPENDENT_NOTEBOOKS and "/" not in name else ""
    return paths.root / "executed" / f"{name.replace('clusters_14', folder)}{suffix}.ipynb"


def _tell_failure(kind: str, message: str, target: Path | None = None) -> int:
    """Print why a notebook stopped; the exit status. target: the notebook with its outputs."""
    print(f"{'' if kind in STOPPED else 'error: '}{message}", file=sys.stderr)
    if target is not None and target.exists():
        print(f"The notebook up to there: {target}", file=sys.stderr)
    return {InputError.__name__: 2, **STOPPED}.get(kind, 1)
