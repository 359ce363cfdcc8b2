"""The kernel of a notebook: how it shows a refusal, and what the notebook is given."""

import ast
import errno
import gc
import os
import sys
from types import TracebackType
from typing import Any, NamedTuple

from pfiles.errors import InputError

OF_COMMAND = "# Parameters of python -m pfiles"  # how a cell begins that a program put behind the parameters
OF_DISK = (errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EROFS)  # where it takes no file
INJECTED = {OF_COMMAND: "the command", "# Parameters": "papermill"}  # and which program


def show_refusals_as_sentences() -> None:
    """Let IPython show an `InputError`, a training that was stopped, and a disk that takes no file, as one sentence;
    `%tb` shows the traceback.

    Does nothing outside of IPython.
    """
    shell = _shell()
    if shell is not None:
        shell.set_custom_exc((InputError, KeyboardInterrupt, OSError), _show)


def begin_notebook(folder: str) -> None:
    """Ready this kernel for a notebook in `folder`, after another one: names, figures, compiled networks and unused
    memory of that one are given up.

    The peak of memory that a training logs is on a CPU that of the process, earlier notebooks included.
    """
    plt = sys.modules.get("matplotlib.pyplot")
    if plt is not None:
        plt.close("all")
    os.chdir(folder)
    sys.path[:] = [path for path in sys.path if path != ".."]
    _shell().reset()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch._dynamo.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _shell() -> Any:
    """The IPython that this process is the kernel of; None elsewhere."""
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def _show(
    shell: Any, kind: type[BaseException], error: BaseException, traceback: TracebackType, tb_offset: int | None = None
) -> None:
    """Show one error; an interrupt without a sentence of its own, and an error that is not the disk's, are shown as
    IPython shows all others."""
    is_of_disk = isinstance(error, OSError) and error.errno in OF_DISK
    if not str(error) or (isinstance(error, OSError) and not is_of_disk):
        shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)
        return
    sys.last_type, sys.last_value, sys.last_traceback = kind, error, traceback  # what %tb shows
    sentence = f"{error}: mend that and run this cell again to go on." if is_of_disk else error
    shell._showtraceback(kind, error, [f"{sentence}\n(%tb in a new cell shows where in the code this happened.)"])


class Parameters(NamedTuple):
    """What the notebook that runs here is given.

    of_notebook: what the cell tagged "parameters" assigns. injected: what the cell behind it does, which a program put
    there. program: that one.
    """

    of_notebook: dict[str, Any]
    injected: dict[str, Any]
    program: str


def notebook_parameters() -> Parameters | None:
    """The parameters of the notebook whose first cell behind them runs; None elsewhere, or where it runs again.

    The kernel knows no tags: the parameters are the cell before, where that assigns nothing but values.
    """
    shell = _shell()
    cells = [] if shell is None else [*shell.user_ns.get("In", [])][:-1]  # the last one runs
    begin = next((begin for begin in INJECTED if cells and cells[-1].startswith(begin)), None)
    injected = None if begin is None else _values(cells.pop())
    of_notebook = _values(cells[-1]) if cells else None
    if not of_notebook or (begin is not None and injected is None):
        return None
    return Parameters(of_notebook, injected or {}, INJECTED[begin] if begin else "")


def _values(source: str) -> dict[str, Any] | None:
    """What a cell assigns, by name; None where it does anything else. Of `choices |= {...}` it is what is added."""
    values = {}
    try:
        for node in ast.parse(source).body:
            if not isinstance(node, ast.Assign | ast.AugAssign):
                return None
            value = ast.literal_eval(node.value)
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if not isinstance(target, ast.Name):
                    return None
                values[target.id] = value
    except (SyntaxError, ValueError):
        return None
    return values
