"""A refusal in a notebook."""

import importlib.util

import IPython
import pytest
from IPython.core.interactiveshell import InteractiveShell

from pfiles.machine.kernel import show_refusals_as_sentences

REFUSED = (
    "from pfiles.errors import InputError\ndef read():\n    raise InputError('There is no k = 1: choose 2 or more.')"
)


@pytest.fixture
def shell(monkeypatch):
    shell = InteractiveShell(colors="nocolor")
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    show_refusals_as_sentences()
    shell.run_cell(REFUSED)
    return shell


def test_a_refusal_is_a_sentence_and_its_traceback_comes_on_request(shell, capsys):
    assert not shell.run_cell("read()").success
    first, second = capsys.readouterr().out.splitlines()
    assert first == "There is no k = 1: choose 2 or more."
    assert second.startswith("(%tb ")
    shell.run_line_magic("tb", "")
    traceback = capsys.readouterr().out
    assert "Traceback" in traceback
    assert "raise InputError" in traceback


def test_a_kernel_without_the_packages_is_named_in_one_sentence(shell, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shell, "custom_exceptions", ())  # as in a kernel that has not imported anything
    assert not shell.run_cell("import importlib, pfiles\nimportlib.reload(pfiles)").success
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("The Python in ")
    assert " lacks joblib, numpy, pandas, torch. In a notebook choose the kernel kpc-ldm, at the upper right;" in first
    assert second.startswith("(%tb ")


def test_a_stopped_training_says_so_and_other_errors_are_shown_whole(shell, capsys):
    shell.run_cell("raise KeyboardInterrupt('training stopped after step 3 of 9.')")
    assert capsys.readouterr().out.startswith("training stopped after step 3 of 9.\n(%tb")
    for error in ("KeyboardInterrupt()", "ValueError('wrong')"):
        shell.run_cell(f"raise {error}")
        assert "Traceback" in capsys.readouterr().out


def test_a_disk_that_takes_no_file_is_a_sentence_and_a_missing_file_is_not(shell, capsys):
    shell.run_cell("import errno\nraise OSError(errno.EDQUOT, 'Disk quota exceeded', '/out/resume.pt')")
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("Disk quota exceeded: '/out/resume.pt': mend that and run this cell again to go on.")
    assert second.startswith("(%tb ")
    shell.run_cell("open('/none/at/all')")
    assert "Traceback" in capsys.readouterr().out


def test_outside_of_a_notebook_nothing_happens(monkeypatch):
    monkeypatch.setattr(IPython, "get_ipython", lambda: None)
    show_refusals_as_sentences()
