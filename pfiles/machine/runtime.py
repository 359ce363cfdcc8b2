"""The machine a run happens on: device, random numbers, modes of a network."""

import hashlib
import platform
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn

from pfiles.errors import TerminatedError
from pfiles.machine import processes


def pick_device() -> torch.device:
    """The GPU where there is one, otherwise the CPU; of several processes on a machine each gets a GPU of its own.

    Processes that were started together find each other here (see `processes.join`).
    """
    processes.join()
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed for one purpose, such as `derive_seed(765, "training", epoch)`.

    Different parts give unrelated seeds, so streams of neighbouring seeds never overlap. Nothing here
    touches a global random state: every random number of the project comes from a generator made for it.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_rng(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh random number generator on `device`, seeded by `derive_seed(*parts)`."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Seed torch's global CPU generator, which a network's initial weights use, from `parts`.

    At the end the generator has its earlier state again.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(*parts))
        yield


@contextmanager
def stop_signals() -> Iterator[Callable[[], int | None]]:
    """While active, note an interrupt (Ctrl-C, a notebook's stop button) or SIGTERM (a scheduler, a server that is shut
    down) instead of stopping at once. The yielded function says which came; the block ends its work and calls `stop`.
    """
    received: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no signals
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, lambda n, frame: received.append(n))
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def stop(received: int, message: str) -> NoReturn:
    """End the program as the noted signal would have, with a message: exit status 130 or 143."""
    print(message, flush=True)
    raise KeyboardInterrupt(message) if received == signal.SIGINT else TerminatedError(message)


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


def peak_memory_gb(device: torch.device) -> float:
    """The most memory this process has held, in GiB: on the GPU where `device` is one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def versions() -> dict[str, str]:
    """What a result depends on besides settings and data: Python, the main packages and the git revision."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        revision = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = "unknown"
    packages = {}
    for name in ("torch", "numpy", "scikit-learn", "scikit-image"):
        with suppress(PackageNotFoundError):  # scikit-image is optional
            packages[name] = version(name)
    return {"python": platform.python_version(), **packages, "git": revision}
