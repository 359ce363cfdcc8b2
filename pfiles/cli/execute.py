"""A notebook run without a browser: its kernel, its parameters, and how it ends."""

import ast
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Timer
from typing import Any

from pfiles.choices import DEFAULTS
from pfiles.errors import InputError, TerminatedError, extra
from pfiles.machine.kernel import OF_COMMAND
from pfiles.paths import ROOT, atomic_write

with extra("notebooks"):
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning.local_provisioner import LocalProvisioner
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

CHOICES = {*DEFAULTS, "restart", "run_toml"} - {"n_clusters"}  # of a notebook, beside the parameters of its own
SIGNALS: dict[int, type[BaseException]] = {  # and what they end as
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: TerminatedError,
}
STOPPED = {error.__name__: 128 + number for number, error in SIGNALS.items()}  # exit status by error
STOPPED_MESSAGE = "Stopped: run the same command again to go on."
BEGIN = "__import__('sys').modules['pfiles.machine.kernel'].begin_notebook({folder!r})"  # in a kernel
PATIENCE_S, LONGEST_WAIT_S = 60, 600  # for a kernel's first answer: without a word, and in all


def start_kernel() -> AsyncKernelManager:
    """A kernel that loads torch and pfiles at once: this Python's own, whatever "python3" a user has registered.

    Its sockets are files in a folder of its own: two kernels that start together may choose the same TCP port. The
    folder is in /tmp, as the path of a socket has at most 103 characters and that of TMPDIR may be longer.
    """
    os.environ["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))
    load = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pfiles.run; del sys.path[0], sys, pfiles"
    connection = Path(tempfile.mkdtemp(prefix="pfiles-", dir="/tmp"), "kernel.json")
    manager = AsyncKernelManager(kernel_name="python3", transport="ipc", connection_file=str(connection))
    try:
        asyncio.run(_result(manager.start_kernel(extra_arguments=[f"--IPKernelApp.exec_lines={load}"])))
    except BaseException:  # an interrupt as well
        end_kernel(manager)
        raise
    return manager


def end_kernel(manager: AsyncKernelManager) -> None:
    """End the kernel, if it still runs, and remove its sockets."""
    try:
        if manager.has_kernel:
            asyncio.run(_result(manager.shutdown_kernel()))
    finally:
        shutil.rmtree(Path(manager.connection_file).parent, ignore_errors=True)


async def _result(awaitable: Awaitable[Any]) -> Any:
    """What `asyncio.run` takes: Jupyter declares no coroutines."""
    return await awaitable


def execute(
    notebook: Path, target: Path, parameters: Mapping[str, Any], kernel: AsyncKernelManager | None = None
) -> tuple[str, str] | None:
    """Run a notebook in its own folder with some of its parameters changed, and write it with its outputs to `target`.

    kernel: one that earlier notebooks may have used and later ones may use, see `start_kernel`; the notebook begins
    without what they left, see `kernel.begin_notebook`. None: one of its own.

    Only what the cell tagged "parameters" assigns is changed, in a cell put behind it. An interrupt or SIGTERM
    goes on to the notebook, whose trainings then leave a resume point.
    Returns None, or the name and the message of the error that stopped it: that of the notebook, also where the disk
    that stopped it takes no `target` either.
    """
    book = with_parameters(notebook, parameters)
    ready = BEGIN.format(folder=str(notebook.parent))
    is_shared = kernel is not None
    kernel = kernel or start_kernel()
    if _exit_status(kernel) is not None:  # it was killed between two notebooks
        asyncio.run(_result(kernel.restart_kernel(now=True)))
    impatience = Timer(PATIENCE_S, _tell_waiting)
    received: list[int] = []

    def begin(notebook: nbformat.NotebookNode) -> None:
        impatience.cancel()
        assert client.kc is not None  # as nbclient connects before, which its types do not say
        client.kc.execute(ready, silent=True)

    def pass_on(number: int, frame: Any) -> None:
        received.append(number)
        if (process := _process(kernel)) is not None:
            os.kill(process.pid, number)

    client = NotebookClient(
        book, km=kernel, timeout=None, startup_timeout=LONGEST_WAIT_S, on_notebook_start=begin
    )  # fmt: skip
    handlers = {number: signal.signal(number, pass_on) for number in SIGNALS}
    failure = None
    try:
        impatience.start()
        with ThreadPoolExecutor(1) as pool:  # in the main thread nbclient would shut the notebook down on a signal
            pool.submit(client.execute).result()
    except CellExecutionError as error:
        failure = error.ename, error.evalue or (STOPPED_MESSAGE if error.ename in STOPPED else error.ename)
    except (RuntimeError, AssertionError) as error:  # nbclient's for a kernel that died or never answered
        failure = DeadKernelError.__name__, _cause(notebook, kernel, error)
        if received:
            failure = SIGNALS[received[0]].__name__, STOPPED_MESSAGE
    finally:
        impatience.cancel()
        client.km = kernel  # nbclient lets go of one that never answered, and at exit asserts that it has one
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if not is_shared or failure:
            end_kernel(kernel)
        with suppress(OSError) if failure else nullcontext(), atomic_write(target) as file:
            file.write(nbformat.writes(book).encode())
    if failure is None and received:
        failure = SIGNALS[received[0]].__name__, STOPPED_MESSAGE
    return failure


def run_code(code: str, kernel: AsyncKernelManager) -> tuple[str, str] | None:
    """Run code in a kernel as a notebook of its own, and print what it printed; returns as `execute`."""
    with tempfile.TemporaryDirectory() as folder:
        notebook, target = Path(folder, "checks.ipynb"), Path(folder, "executed.ipynb")
        no_parameters = nbformat.v4.new_code_cell("pass", metadata={"tags": ["parameters"]})
        cells = [no_parameters, nbformat.v4.new_code_cell(code)]
        with atomic_write(notebook) as file:
            file.write(nbformat.writes(nbformat.v4.new_notebook(cells=cells)).encode())
        failure = execute(notebook, target, {}, kernel)
        for output in nbformat.read(target, as_version=4).cells[-1].outputs:
            if output.output_type == "stream":
                print(output.text, end="", flush=True, file=getattr(sys, output.name))
            elif output.output_type == "error" and output.ename not in (InputError.__name__, *STOPPED):
                print(*output.traceback, sep="\n", file=sys.stderr)
    return failure


def _process(kernel: AsyncKernelManager) -> subprocess.Popen | None:
    """The process of a kernel on this machine; None once it has ended and its status was read."""
    return kernel.provisioner.process if isinstance(kernel.provisioner, LocalProvisioner) else None


def _exit_status(kernel: AsyncKernelManager) -> int | None:
    """How a kernel's process ended; None while it runs, or where that is not known any more."""
    process = _process(kernel)
    return None if process is None else process.poll()


def _tell_waiting() -> None:
    print(
        f"... its kernel has not answered for {PATIENCE_S} s, as on a busy machine; waiting up to "
        f"{LONGEST_WAIT_S // 60} minutes ... ",
        end="", flush=True,
    )  # fmt: skip


def _cause(notebook: Path, kernel: AsyncKernelManager, error: Exception) -> str:
    """Why a notebook's kernel gave no result, and what to do."""
    if "respond" in str(error):
        return (
            f"the kernel of {notebook.stem} did not answer within {LONGEST_WAIT_S // 60} minutes, most likely because "
            "other programs keep the machine busy: run the same command again when they have ended, and it goes on."
        )
    status = _exit_status(kernel)
    end = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}" if status else "itself"
    return (
        f"the process of {notebook.stem} was ended by {end}, most likely because memory ran out: close other programs "
        "and run the same command again, and it goes on; or lower diffusion.batch_size, autoencoder.batch_size or "
        "max_train_tiles, and that training begins anew."
    )


def run_cells(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Run a notebook's code in this process with some of its parameters changed, as a script; figures are not shown.

    For torchrun and accelerate's notebook_launcher, which start the same code in several processes.
    """
    os.environ["MPLBACKEND"] = "Agg"
    os.chdir(notebook.parent)
    names: dict[str, Any] = {}
    for number, cell in enumerate(with_parameters(notebook, parameters).cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{notebook.name}, cell {number}", "exec"), names)


def with_parameters(notebook: Path, parameters: Mapping[str, Any]) -> nbformat.NotebookNode:
    """The notebook with a cell behind its parameters that changes those it has, and adds the others to its choices."""
    book = nbformat.read(notebook, as_version=4)
    index, cell = next((i, c) for i, c in enumerate(book.cells) if "parameters" in c.metadata.get("tags", []))
    assigned = {name.id for node in ast.parse(cell.source).body for name in getattr(node, "targets", ())}
    lines = [OF_COMMAND, *(f"{name} = {value!r}" for name, value in parameters.items() if name in assigned)]
    if "choices" in assigned:
        choices = {name: value for name, value in parameters.items() if name in CHOICES - assigned}
        lines.append(f"choices |= {choices!r}")
    source = "\n".join(lines)
    book.cells.insert(index + 1, nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]}))
    return book
