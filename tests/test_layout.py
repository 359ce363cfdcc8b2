"""The architecture: what imports what, that importing starts nothing, and that tests stand where their modules do."""

import ast
import re
import subprocess
import sys

import pytest

from pfiles.paths import ROOT

# Wings and modules from the ground up: each imports only from those before it, or from its own wing.
FLOORS = [
    "errors", "settings", "machine", "paths", "choices", "identity", "names", "tiles",
    "blocks", "discriminator", "classifier", "linear_noise_scheduler", "lpips", "lpips_metric", "vqvae",
    "unet_cond_base", "clustering", "latents", "checkpoints", "learning", "drawing", "measuring", "reporting",
    "session", "choosing", "check", "share", "watch", "__main__",
]  # fmt: skip
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "pfiles").with_suffix("").parts)
    for path in (ROOT / "pfiles").rglob("*.py")
    if path.name != "__init__.py"
)
# Files of tests whose subject is more than a module: `benchmarks.benchmarks` is tests/benchmarks/test_benchmarks.py.
SUBJECTS = {
    "benchmarks.benchmarks", "command_line", "disk", "docs", "experiments.experiments", "fuzz", "kill", "layout",
    "machine.gpu", "networks", "notebook_safety", "notebooks", "packaging", "reporting.atlas_in_browser",
}  # fmt: skip
BESIDE_TESTS = {
    "killed",
    "machine.together",
    "reference_models",
}  # jobs of processes; a reference


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def floor(module):
    """The last entry of FLOORS that is the module or its wing."""
    exact = [i for i, name in enumerate(FLOORS) if name == module]
    return exact[0] if exact else FLOORS.index(module.partition(".")[0])


@pytest.mark.parametrize("module", MODULES)
def test_imports_lead_only_downwards(module):
    path = ROOT / "pfiles" / f"{module.replace('.', '/')}.py"
    for name in imports(path):
        used = name.removeprefix("pfiles.")
        if name.startswith("pfiles.") and used in MODULES:
            assert floor(used) < floor(module) or used.partition(".")[0] == module.partition(".")[0], used


def test_there_are_no_circles():
    waiting = {
        module: {name.removeprefix("pfiles.") for name in imports(ROOT / "pfiles" / f"{module.replace('.', '/')}.py")}
        & set(MODULES) - {module}
        for module in MODULES
    }
    while free := [module for module, needs in waiting.items() if not needs & waiting.keys()]:
        for module in free:
            del waiting[module]
    assert not waiting


def the_map():
    """The words of each line of the map in `pfiles/__init__.py`, indented lines joined to the one before."""
    import pfiles

    lines = re.sub(r"\n +", " ", pfiles.__doc__.split("\n\n")[1]).splitlines()
    return [re.findall(r"\w+", line) for line in lines]


def place(module):
    """The number of the line that names the module: its wing's, or the one that begins with it, or the first."""
    wing, _, name = module.rpartition(".")
    heads = {number: words[0] for number, words in enumerate(the_map()) if name in words}
    found = [number for number, head in heads.items() if head == (wing or name)] or ([] if wing else [*heads])
    return found[0] if found else None


def test_the_map_names_every_module():
    assert [module for module in MODULES if place(module) is None] == []


def test_the_map_stands_in_the_order_of_imports():
    """A module imports only from its own line of the map and those above."""
    for module in MODULES:
        for name in imports(ROOT / "pfiles" / f"{module.replace('.', '/')}.py"):
            used = name.removeprefix("pfiles.")
            if name.startswith("pfiles.") and used in MODULES:
                assert place(used) <= place(module), f"{module} imports {used}"


def test_the_indices_stand_alone():
    allowed = {"MODULE", "joblib", "numpy", "scipy", "sklearn", "torch"} | set(sys.stdlib_module_names)
    for path in (ROOT / "MODULE").glob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed


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


def test_no_measure_picks_a_device_by_itself():
    for path in (ROOT / "pfiles" / "measuring").glob("*.py"):
        assert "pick_device" not in path.read_text(), path.name


def test_tests_mirror_the_tree():
    """A file of tests bears the name of a module and stands where it does, or is of a subject; none imports another."""
    modules = {*MODULES, *(f"MODULE.{path.stem}" for path in (ROOT / "MODULE").glob("*.py"))}
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
