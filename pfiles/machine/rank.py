"""Which of the processes that work together this one is; without torch, as a process that has none works alone."""

import sys


def rank() -> int:
    """The number of this process among those that `processes.join` brought together, from 0."""
    dist = sys.modules.get("torch.distributed")
    return dist.get_rank() if dist is not None and dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0
