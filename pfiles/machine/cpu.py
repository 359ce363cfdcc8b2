"""How a process computes on the CPU: its cores and those that others leave, threads that wait, memory that stays."""

import ctypes
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from joblib import cpu_count

SPINS = "10000"  # rounds that a thread looks for new work before it sleeps, some hundred microseconds
LOOK_EVERY = 20.0  # seconds between looks at what other programs leave; a kernel that starts up is not worth a change
BUSY = ("user", "nice", "system", "irq", "softirq", "steal")  # what a core may be busy with, as psutil counts it
KEPT_BYTES = 2**30  # of freed memory that the process keeps
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity mask, or fewer where a cgroup's quota says so.

    In a container or a hub's pod that is what was asked for, not what the host has.
    """
    return cpu_count()


def prepare_threads() -> None:
    """Tell the OpenMP library of torch how to use the cores. It listens while it is loaded, so not after torch.

    Threads sleep soon when there is nothing to do. By themselves they spin on for milliseconds, which on shared cores
    takes time from whoever has work, the thread that they wait for included (`benchmarks/load.py`). They are no more
    than `usable_cores`. What the environment says of either already is left as it is.
    """
    if "torch" in sys.modules:
        return
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
    if "OMP_NUM_THREADS" not in os.environ and (cores := usable_cores()) < (os.cpu_count() or 1):
        os.environ["OMP_NUM_THREADS"] = str(cores)


@contextmanager
def follow_idle_cores(on: bool) -> Iterator[Callable[[], None]]:
    """While active, and if `on`, keep torch's threads within the cores that other programs leave idle.

    All threads of a step wait for the slowest, so that one thread too many, which shares its core with another program,
    makes a step several times as long (`benchmarks/load.py`). Call the yielded function often: every `LOOK_EVERY`
    seconds it looks, and sets the number of threads, from one up to the number before, which is restored at the end.
    Another number of threads rounds sums differently: results change in their last digits.
    """
    import torch

    most = torch.get_num_threads()
    if not on or most == 1:
        yield lambda: None
        return
    cores = _cores()
    last = time.monotonic(), _seconds_of_others(cores)

    def follow() -> None:
        nonlocal last
        if time.monotonic() - last[0] < LOOK_EVERY:
            return
        began, last = last, (time.monotonic(), _seconds_of_others(cores))
        others = (last[1] - began[1]) / (last[0] - began[0])  # cores that they took
        torch.set_num_threads(min(most, max(1, round(len(cores) - others))))

    try:
        yield follow
    finally:
        torch.set_num_threads(most)


def _cores() -> set[int]:
    """The numbers of the cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _seconds_of_others(cores: set[int]) -> float:
    """Core seconds that other programs have taken of these cores; only differences mean something.

    Always 0 if the system reports no CPU times, as in some containers.
    """
    import psutil

    try:
        times = psutil.cpu_times(percpu=True)
    except (OSError, RuntimeError):
        return 0.0
    busy = sum(getattr(times[core], name, 0.0) for core in cores if core < len(times) for name in BUSY)
    return busy - time.process_time()


def keep_freed_memory() -> bool:
    """Let this process keep up to 1 GiB of the memory that it frees, for what it needs next; True where that is done.

    The C library gives a feature map of more than 32 MB back to the system each time one is freed, and the system
    fills the next one with zeros, page by page: half of the time of encoding tiles of 64 px in batches of 64. The
    settings are glibc's; elsewhere, and where the environment has its own, nothing is changed.
    """
    set_by_user = os.environ.keys() & {"GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not set_by_user else None
    # the second alone would do harm: it ends the growth of the first, which then stays at 128 kB
    return bool(mallopt and mallopt(M_MMAP_THRESHOLD, KEPT_BYTES) and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))


def processor() -> str:
    """The name of this machine's processor."""
    with suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
