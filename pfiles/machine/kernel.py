"""The kernel of a notebook: how it shows a refusal."""

import sys
from types import TracebackType
from typing import Any

from pfiles.errors import InputError


def show_refusals_as_sentences() -> None:
    """Let IPython show an `InputError`, and a training that was stopped, as one sentence; `%tb` shows the traceback.

    Does nothing outside of IPython.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        shell.set_custom_exc((InputError, KeyboardInterrupt), _show)


def _show(
    shell: Any, kind: type[BaseException], error: BaseException, traceback: TracebackType, tb_offset: int | None = None
) -> None:
    """Show one error; an interrupt without a sentence of its own is shown as IPython shows all others."""
    if not str(error):
        shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)
        return
    sys.last_type, sys.last_value, sys.last_traceback = kind, error, traceback  # what %tb shows
    shell._showtraceback(kind, error, [f"{error}\n(%tb in a new cell shows where in the code this happened.)"])
