"""The architecture: what imports what, how long files, functions and classes are, that importing starts nothing, and
that tests stand where their modules do."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

import pfiles
from pfiles.paths import ROOT

MODULES = sorted(
    ".".join(path.relative_to(ROOT / "pfiles").with_suffix("").parts)
    for path in (ROOT / "pfiles").rglob("*.py")
    if path.name != "__init__.py"
)
# Files of tests whose subject is more than a module: `benchmarks.benchmarks` is tests/benchmarks/test_benchmarks.py.
SUBJECTS = {
    "benchmarks.benchmarks", "command_line", "disk", "docs", "earlier_runs", "experiments.experiments", "fuzz", "kill",
    "layout", "machine.gpu", "networks", "notebook_safety", "notebooks", "packaging", "reporting.atlas_in_browser",
    "reporting.qupath_script", "study.form_in_browser", "papermill", "slurm",
}  # fmt: skip
# jobs of processes; a reference; runs of an earlier version
BESIDE_TESTS = {
    "killed", "machine.together", "reference_models", "fixtures.earlier_runs", "fixtures.make_earlier_runs",
}  # fmt: skip


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


USES = {
    module: {name.removeprefix("pfiles.") for name in imports(ROOT / "pfiles" / f"{module.replace('.', '/')}.py")}
    & set(MODULES) - {module}
    for module in MODULES
}
MAP = re.sub(r"\n +", " ", pfiles.__doc__.split("\n\n")[1]).splitlines()  # a line for a wing, or for some modules


def line_of(module):
    """The number of the line of the map that names the module."""
    wing, _, name = module.rpartition(".")
    folder = f"{wing.replace('.', '/')}/ " if wing else ""
    named = [i for i, line in enumerate(MAP) if name in re.findall(r"\w+", line) and line.startswith(folder)]
    return min(named, key=lambda i: (not MAP[i].startswith(name), i))


@pytest.mark.parametrize("module", MODULES)
def test_imports_lead_only_to_the_same_line_of_the_map_and_those_above(module):
    assert line_of(module) >= max(map(line_of, USES[module]), default=0)


def test_there_are_no_circles():
    TopologicalSorter(USES).prepare()


def test_the_indices_stand_alone():
    allowed = {"MODULE", "joblib", "numpy", "scipy", "sklearn", "torch"} | set(sys.stdlib_module_names)
    for path in (ROOT / "MODULE").glob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed


@pytest.mark.slow
def test_importing_starts_nothing(tmp_path):
    """No file, no seed, no device, no download: a connection would raise here."""
    code = f"""
import socket, random, numpy, torch
def refuse(*args, **kwargs): raise AssertionError("a connection was opened")
socket.socket.connect = refuse
states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
import {", ".join(f"pfiles.{module}" for module in MODULES)}, MODULE
assert states == (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
assert not torch.cuda.is_initialized()
"""
    environment = {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(tmp_path),
        "MPLCONFIGDIR": "/dev/null",
    }
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


FILE_LINES, FUNCTION_LINES, CLASS_MEMBERS = 400, 80, 25  # at most
SOURCES = [
    path
    for folder in ("MODULE", "benchmarks", "docs", "experiments", "pfiles")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
EXPLAINED = r"(?:This file|`(\w+)`)\s(?:is\slonger|has\smore\smembers)\sthan\sother\w*[^.]*,\sas\s[^.]+\."


def members(class_definition):
    """The public methods, properties and fields of a class."""
    for node in class_definition.body:
        name = getattr(node, "name", None) or getattr(getattr(node, "target", None), "id", "_")
        if not name.startswith("_"):
            yield name


def too_large(source, tree):
    """The names of the functions and classes above their limits; "" is the file."""
    if source.count("\n") > FILE_LINES:
        yield ""
    for node in ast.walk(tree):
        is_function = isinstance(node, ast.FunctionDef)
        if is_function and node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
            yield node.name
        if isinstance(node, ast.ClassDef) and len({*members(node)}) > CLASS_MEMBERS:
            yield node.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_large_says_why(path):
    """In a sentence of its docstring, such as "`f` is longer than other functions here, as ..."; no other file does."""
    source = path.read_text()
    tree = ast.parse(source)
    explained = re.findall(EXPLAINED, ast.get_docstring(tree) or "")
    assert explained == sorted(too_large(source, tree)), path


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("x = 1\n" * 400, []),
        ("x = 1\n" * 401, [""]),
        ("def f():\n" + "    pass\n" * 79, []),
        ("def f():\n" + "    pass\n" * 80, ["f"]),
        ("class A:\n" + "".join(f"    a{i}: int\n" for i in range(25)) + "    _b: int\n", []),
        ("class A:\n" + "".join(f"    def a{i}(self): pass\n" for i in range(26)), ["A"]),
    ],
)
def test_large_files_functions_and_classes_are_found(source, names):
    assert [*too_large(source, ast.parse(source))] == names


def test_no_measure_picks_a_device_by_itself():
    for path in (ROOT / "pfiles" / "measuring").glob("*.py"):
        assert "pick_device" not in path.read_text(), path.name


def test_tests_mirror_the_tree():
    """A file of tests bears the name of a module and stands where it does, or is of a subject; none imports another."""
    others = (
        f"{folder}.{path.stem}"
        for folder in ("MODULE", "benchmarks", "experiments")
        for path in (ROOT / folder).glob("*.py")
    )
    modules = {*MODULES, *others}
    tested, beside = set(), set()
    for path in (ROOT / "tests").rglob("*.py"):
        folder = path.parent.relative_to(ROOT / "tests").parts
        if path.stem.startswith("test_"):
            tested.add(".".join([*folder, path.stem.removeprefix("test_")]))
        elif path.stem not in ("__init__", "conftest"):
            beside.add(".".join([*folder, path.stem]))
        for name in imports(path):
            assert not re.search(r"\btest_", name), f"{path} imports {name}"
    assert tested - modules == SUBJECTS
    assert beside == BESIDE_TESTS
