"""How many cores this process may use, and how its threads wait for one another."""

import os
import sys

from joblib import cpu_count

SPINS = "1000"  # rounds that a thread looks for new work before it sleeps, some ten microseconds


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
