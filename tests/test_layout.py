"""The architecture: what imports what, and that importing starts nothing."""

import ast
import subprocess
import sys

import pytest

from pfiles.paths import ROOT

LAYERS = (
    {"errors"},
    {"processes"},
    {"paths", "settings", "runtime", "weights"},
    {"speed", "logs"},
    {"blocks", "discriminator", "classifier", "linear_noise_scheduler", "losses", "lpips", "data"},
    {"vqvae", "unet_cond_base", "lpips_metric", "clustering", "samplers"},
    {"checkpoints", "latents"},
    {"morphometry", "features", "distribution", "fidelity"},
    {"training", "sampling", "metrics", "figures"},
    {"memorisation", "report"},
    {"evaluation"},
    {"__main__"},
)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_module_has_its_layer():
    assert {path.stem for path in (ROOT / "pfiles").glob("*.py")} - {"__init__"} == set().union(*LAYERS)


@pytest.mark.parametrize("module", sorted(set().union(*LAYERS)))
def test_modules_import_only_from_the_layers_above(module):
    level = next(i for i, layer in enumerate(LAYERS) if module in layer)
    above = set().union(*LAYERS[:level])
    used = {name.split(".")[1] for name in imports(ROOT / "pfiles" / f"{module}.py") if name.startswith("pfiles.")}
    assert used <= above


def test_the_indices_stand_alone():
    allowed = {"MODULE", "numpy", "scipy", "sklearn", "torch"} | set(sys.stdlib_module_names)
    for path in (ROOT / "MODULE").glob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed


def test_importing_starts_nothing(tmp_path):
    """No file, no seed, no device, no download: a connection would raise here."""
    modules = sorted(f"pfiles.{module}" for module in set().union(*LAYERS))
    code = f"""
import socket, random, numpy, torch
def refuse(*args, **kwargs): raise AssertionError("a connection was opened")
socket.socket.connect = refuse
states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
import {", ".join(modules)}, MODULE
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
