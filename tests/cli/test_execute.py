"""A notebook run without a browser: how it ends, and what becomes of its kernel."""

import os
import signal
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from jupyter_client.manager import AsyncKernelManager

from pfiles.__main__ import main
from pfiles.cli import execute as executing
from pfiles.cli import notebooks
from pfiles.cli.execute import end_kernel, execute, start_kernel
from pfiles.cli.notebooks import NOTEBOOKS
from pfiles.paths import ROOT


def test_a_notebook_that_lacks_its_input_says_which_to_run(tmp_path):
    name = "clusters_14/part_2_finetuning1"
    assert name in NOTEBOOKS
    parameters = {"data": "embedded", "preset": "demo", "out": str(tmp_path / "out")}
    error, message = execute(ROOT / f"{name}.ipynb", tmp_path / "executed.ipynb", parameters)
    assert error == "InputError"
    assert "run train_autoencoder first" in message
    assert (tmp_path / "executed.ipynb").exists()
    assert not (tmp_path / "out").exists()


def notebook(path, *cells):
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell("seed = 1", metadata={"tags": ["parameters"]})]
    book.cells += map(nbformat.v4.new_code_cell, cells)
    nbformat.write(book, path)
    return path


def test_a_kernel_that_dies_is_one_sentence(tmp_path):
    dies = notebook(tmp_path / "dies.ipynb", "import os; os.kill(os.getpid(), 9)")
    error, message = execute(dies, tmp_path / "executed.ipynb", {})
    assert error == "DeadKernelError"
    assert message.startswith("the process of dies was ended by signal 9, most likely because memory ran out: close")
    assert "run the same command again" in message


def test_a_kernel_that_never_answers_is_waited_for_with_a_word_and_then_given_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(executing, "PATIENCE_S", 0)
    monkeypatch.setattr(executing, "LONGEST_WAIT_S", 1)
    waits = notebook(tmp_path / "waits.ipynb", "1")
    kernel = start_kernel()
    process = psutil.Process(kernel.provisioner.pid)
    process.suspend()
    error, message = execute(waits, tmp_path / "executed.ipynb", {}, kernel)
    assert error == "DeadKernelError"
    assert message.startswith("the kernel of waits did not answer within ")
    assert "has not answered for 0 s" in capsys.readouterr().out
    assert not process.is_running()


def test_a_kernel_killed_before_its_turn_is_replaced(tmp_path):
    (tmp_path / "here").mkdir()
    says = notebook(tmp_path / "here" / "says.ipynb", "import os; print(os.getcwd())")
    kernel = start_kernel()
    os.kill(kernel.provisioner.pid, signal.SIGKILL)
    kernel.provisioner.process.wait()
    assert execute(says, tmp_path / "executed.ipynb", {}, kernel) is None
    end_kernel(kernel)
    assert str(tmp_path / "here") in (tmp_path / "executed.ipynb").read_text()


def test_notebooks_share_a_kernel_and_nothing_else(tmp_path):
    source = (
        "import os, sys\nimport matplotlib.pyplot as plt\nassert 'earlier' not in globals()\n"
        "assert not plt.get_fignums()\nassert '..' not in sys.path\nassert [len(In), In[1]] == [4, 'seed = 1']\n"
        "earlier = plt.figure()\nsys.path.insert(0, '..')\nprint(os.getpid(), os.getcwd())"
    )
    kernel, outputs = start_kernel(), []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        assert execute(notebook(folder / "part.ipynb", source), folder / "executed.ipynb", {}, kernel) is None
        cells = nbformat.read(folder / "executed.ipynb", as_version=4).cells
        assert [cell.execution_count for cell in cells] == [1, 2, 3]  # parameters, those of the command, source
        outputs.append(cells[-1].outputs[0].text.split(maxsplit=1))
    end_kernel(kernel)
    assert outputs == [[str(outputs[0][0]), f"{tmp_path / folder}\n"] for folder in ("one", "two")]
    assert not psutil.pid_exists(int(outputs[0][0]))


def test_a_kernel_has_loaded_pfiles_and_shows_nothing_of_it(tmp_path):
    source = (
        "assert not {'sys', 'pfiles'} & globals().keys()\nimport sys\nassert 'pfiles.run' in sys.modules\n"
        f"assert {str(ROOT)!r} not in sys.path"
    )
    fresh = notebook(tmp_path / "fresh.ipynb", source)
    kernel = start_kernel()
    process = psutil.Process(kernel.provisioner.pid)
    assert execute(fresh, tmp_path / "executed.ipynb", {}, kernel) is None
    end_kernel(kernel)
    assert not process.is_running()


def test_each_kernel_has_sockets_that_no_other_finds_and_leaves_none():
    kernels = [start_kernel(), start_kernel()]
    folders = [Path(kernel.connection_file).parent for kernel in kernels]
    assert folders[0] != folders[1]
    for kernel, folder in zip(kernels, folders, strict=True):
        assert folder.stat().st_mode & 0o777 == 0o700
        urls = [kernel._make_url(channel) for channel in ("shell", "iopub", "stdin", "control", "hb")]
        assert all(url.startswith(f"ipc://{folder}/") and len(url) < 103 for url in urls)
        end_kernel(kernel)
        assert not folder.exists()


@pytest.fixture
def sockets(monkeypatch):
    """The folders of the sockets of all kernels that the test starts."""
    folders, make = [], executing.tempfile.mkdtemp

    def mkdtemp(*args, **options):
        folders.append(Path(make(*args, **options)))
        return str(folders[-1])

    monkeypatch.setattr(executing.tempfile, "mkdtemp", mkdtemp)
    return folders


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_between_two_notebooks_leaves_neither_kernel_nor_sockets(number, tmp_path, monkeypatch, sockets):
    processes = []

    def interrupted(kernel, *args):
        processes.append(psutil.Process(kernel.provisioner.pid))
        os.kill(os.getpid(), number)

    monkeypatch.delitem(sys.modules, "torch")  # as in a process of its own, whose kernel makes the plan
    monkeypatch.setattr(notebooks, "_plan_in", interrupted)
    ours = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    theirs = signal.signal(number, ours)  # a shell that starts pytest in the background has it ignore SIGINT
    try:
        status = main(["run", "--data", "embedded", "--preset", "demo", "--out", str(tmp_path / "out")])
    except SystemExit as error:
        status = error.code
    finally:
        left = signal.signal(number, theirs)
    assert (status, left) == (128 + number, ours)
    assert not processes[0].is_running()
    assert sockets
    assert not any(folder.exists() for folder in sockets)


def test_a_kernel_that_is_interrupted_as_it_starts_leaves_no_sockets(monkeypatch, sockets):
    async def interrupted(self, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(AsyncKernelManager, "start_kernel", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_kernel()
    assert sockets
    assert not any(folder.exists() for folder in sockets)
