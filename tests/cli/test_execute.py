"""A notebook run without a browser: how it ends, and what becomes of its kernel."""

import nbformat
import psutil

from pfiles.cli.execute import execute, prestarted_kernels, start_kernel
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


def test_a_kernel_that_dies_is_one_sentence(tmp_path):
    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_code_cell("seed = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("import os; os.kill(os.getpid(), 9)"),
    ]
    nbformat.write(book, tmp_path / "dies.ipynb")
    error, message = execute(tmp_path / "dies.ipynb", tmp_path / "executed.ipynb", {})
    assert error == "DeadKernelError"
    assert "the notebook's process ended" in message


def test_the_next_kernel_starts_ahead_and_none_stays(tmp_path):
    before = psutil.Process().children()
    kernels = prestarted_kernels([tmp_path / name for name in "abc"])
    first = psutil.Process(next(kernels).provisioner.pid)
    started = [child for child in psutil.Process().children() if child not in before]
    assert first in started
    assert [process.cwd() for process in started] == [str(tmp_path)] * 2
    kernels.close()
    assert not any(process.is_running() for process in started)


def test_a_kernel_has_loaded_pfiles_and_shows_nothing_of_it(tmp_path):
    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_code_cell("seed = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "assert not {'sys', 'pfiles'} & globals().keys()\nimport sys\nassert 'pfiles.run' in sys.modules\n"
            f"assert {str(ROOT)!r} not in sys.path"
        ),
    ]
    nbformat.write(book, tmp_path / "fresh.ipynb")
    kernel = start_kernel(tmp_path / "fresh.ipynb")
    process = psutil.Process(kernel.provisioner.pid)
    assert execute(tmp_path / "fresh.ipynb", tmp_path / "executed.ipynb", {}, kernel) is None
    assert not process.is_running()  # it ends with its notebook
