"""What can be given to a command: its help comes at once, under the name that was typed, and is true."""

import os
import re
import signal
import subprocess
import sys

import pytest

from pfiles import share
from pfiles.__main__ import _function_of, main
from pfiles.cli import parser
from pfiles.cli.commands import COMMANDS
from pfiles.cli.parser import FEATURE_NAMES, make_parser
from pfiles.cli.shared import CLUSTERING_NAMES
from pfiles.clusterers import CLUSTERINGS
from pfiles.drawing import sampling
from pfiles.measuring.features import EXTRACTORS
from pfiles.paths import ROOT

HEAVY = {"torch", "pandas", "sklearn", "matplotlib", "jupyter_client"}  # each takes longer to load than help may take


def help_of(program, *arguments):
    """What `program` prints as help in a process of its own; the last line names the heavy packages that it loaded."""
    code = f"""
import sys
sys.argv[0] = {program!r}
from pfiles.__main__ import _function_of, main
try:
    main({[*arguments, "--help"]!r})
finally:
    print(*({HEAVY!r} & sys.modules.keys()))
"""
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("draw",)])
def test_help_loads_nothing_heavy(arguments):
    assert help_of("kpc-ldm", *arguments).endswith("\n\n")


@pytest.mark.slow
def test_nobody_reads_on(tmp_path):
    """`| head` has read enough: the command ends without a word, and with the status of a closed pipe."""
    code = """
import sys
from pfiles import __main__ as door
from pfiles.cli import commands
def talk(args):
    for _ in range(100_000): print("a line")
    return 0
commands.COMMANDS["watch"] = talk
sys.exit(door.main(["watch"]))
"""
    talking = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert talking.stdout.readline() == "a line\n"
    talking.stdout.close()
    assert talking.stderr.read() == ""
    assert talking.wait(60) == 128 + signal.SIGPIPE


@pytest.mark.slow
def test_a_python_without_the_packages_is_told_which_kernel_to_choose(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pfiles import Generator"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("pfiles.errors.WrongPythonError: The Python in ")
    assert "lacks joblib, numpy, pandas, torch. In a notebook choose the kernel kpc-ldm" in last


def test_help_names_the_command_as_it_was_typed(monkeypatch):
    for started_as, program in {
        "/somewhere/bin/kpc-ldm": "kpc-ldm",
        r"kpc-ldm.exe": "kpc-ldm",
        "/somewhere/pfiles/__main__.py": "python -m pfiles",
    }.items():
        monkeypatch.setattr(sys, "argv", [started_as])
        assert make_parser().format_help().startswith(f"usage: {program} [-h] COMMAND ...")


def test_help_of_every_command_says_what_it_does():
    for name, command in make_parser()._subparsers._group_actions[0].choices.items():
        assert re.fullmatch(r"[A-Z].+\.", command.description or ""), name


def test_the_names_in_the_help_are_the_codes():
    assert " or ".join(CLUSTERINGS) == CLUSTERING_NAMES
    assert ", ".join(EXTRACTORS) == FEATURE_NAMES
    assert parser.JUDGED == share.JUDGED
    assert parser.STRENGTH == sampling.STRENGTH


def test_every_command_has_its_function():
    parsers = make_parser()._subparsers._group_actions[0].choices
    assert parsers.keys() == COMMANDS.keys() | {"demo", "run", "clusters"}
    assert all(callable(_function_of(command)) for command in parsers)


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["paint"], ["run", "--paint"], ["watch", "paint"], ["run", "--seed", "red"],
        ["tile", "a.svs", "--out", "tiles", "--page", "last"],
    ],
)  # fmt: skip
def test_unknown_things_end_with_exit_status_2_and_one_sentence(arguments, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert "_page" not in printed.err
