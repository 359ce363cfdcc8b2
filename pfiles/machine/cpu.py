"""What a process asks for before torch computes on the CPU: cores, threads that wait, memory that stays."""

import ctypes
import os
import sys

from joblib import cpu_count

SPINS = "1000"  # rounds that a thread looks for new work before it sleeps, some ten microseconds
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


def keep_freed_memory() -> bool:
    """Let this process keep up to 1 GiB of the memory that it frees, for what it needs next; True where that is done.

    The C library gives a feature map of more than 32 MB back to the system each time one is freed, and the system
    fills the next one with zeros, page by page: half of the time of encoding tiles of 64 px in batches of 64. The
    settings are glibc's; elsewhere, and where the environment has its own, nothing is changed.
    """
    given = os.environ.keys() & {"GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not given else None
    # the second alone would do harm: it ends the growth of the first, which then stays at 128 kB
    return bool(mallopt and mallopt(M_MMAP_THRESHOLD, KEPT_BYTES) and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
