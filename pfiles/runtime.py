"""The machine a run happens on: device, random numbers, modes of a network."""

import hashlib
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn


def pick_device() -> torch.device:
    """The GPU where there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed for one purpose, such as `derive_seed(765, "training", epoch)`.

    Different parts give unrelated seeds, so streams of neighbouring seeds never overlap. Nothing here
    touches a global random state: every random number of the project comes from a generator made for it.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_generator(*parts: int | str) -> torch.Generator:
    """A fresh CPU generator, seeded by `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Inside the block torch's global CPU generator starts from `parts` (a network's initial weights use it).

    The state it had before comes back afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(*parts))
        yield


@contextmanager
def eval_mode(*networks: nn.Module) -> Iterator[None]:
    """Borrow networks in eval mode without gradients, and give each back in the mode it had."""
    modes = [network.training for network in networks]
    try:
        for network in networks:
            network.eval()
        with torch.no_grad():
            yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)


def versions() -> dict[str, str]:
    """What a result depends on besides settings and data: Python, the main packages and the git revision."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        revision = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = "unknown"
    packages = {name: version(name) for name in ("torch", "numpy", "scikit-learn", "scikit-image")}
    return {"python": platform.python_version(), **packages, "git": revision}
