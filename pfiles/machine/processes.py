"""Several processes that train or generate together, started by torchrun or by accelerate's notebook_launcher.

One process needs none of this: there every function does nothing, or gives back what it got.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from pfiles.errors import InputError
from pfiles.machine.rank import is_first, rank

STARTED_WITH = (  # how many processes were started beside this one, told to each by srun and by ways to start MPI
    "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE",
)  # fmt: skip
TIMEOUT = timedelta(minutes=10)  # how long a process waits for the others before it gives up

Items = TypeVar("Items", Tensor, list)


def join() -> None:
    """Join the other processes of this job, if it has any; only the first one prints.

    Raises InputError if processes were started in a way that would leave each of them working alone. What a batch
    system or a launcher sets for a single process, too, is no such way.
    """
    expected = _number_of_processes()
    if expected > 1 and not dist.is_initialized():
        needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        if missing := [name for name in needed if name not in os.environ]:
            raise InputError(
                f"WORLD_SIZE is {expected}, but {', '.join(missing)} of this process is not set, so that it cannot "
                "find the others: start it with torchrun, or unset WORLD_SIZE to work alone."
            )
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if not is_first():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    if world_size() != expected:
        raise InputError(f"WORLD_SIZE is {expected}, but {world_size()} processes found each other.")


def _number_of_processes() -> int:
    """How many processes work together, this one included, as torchrun and its like tell each of them."""
    number = os.environ.get("WORLD_SIZE")
    if number is not None:
        if not (number.isascii() and number.isdigit() and int(number)):
            raise InputError(
                f"WORLD_SIZE must be the number of processes that work together, but is {number!r}: start them with "
                "torchrun, or unset it to work alone."
            )
        return int(number)
    if alone := {name: value for name in STARTED_WITH if (value := os.environ.get(name, "1")) != "1"}:
        raise InputError(
            f"This process was started as one of several ({', '.join(f'{n}={v}' for n, v in alone.items())}) but "
            "cannot find the others, so that each would work alone: start it with torchrun."
        )
    return 1


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def share(items: Items, of: int | None = None) -> Items:
    """This process's part of `items`, contiguous; the parts of all processes differ by at most one in length.

    of: the rank of another process, whose part it is.
    """
    number = rank() if of is None else of
    begin, end = (len(items) * (number + i) // world_size() for i in (0, 1))
    return items[begin:end]


def gather(items: list) -> list:
    """The items of all processes, in the order of their ranks."""
    if world_size() == 1:
        return items
    lists: list[list] = [[] for _ in range(world_size())]
    dist.all_gather_object(lists, items)
    return [item for one in lists for item in one]


def distribute(network: nn.Module) -> nn.Module:
    """`network`, such that its gradients become the means over all processes."""
    return DistributedDataParallel(network, broadcast_buffers=False) if world_size() > 1 else network


def total(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, without gradient."""
    if world_size() > 1:
        x = x.detach().clone()
        dist.all_reduce(x)
    return x


def differentiable_total(x: Tensor) -> Tensor:
    """The sum of `x` over all processes; the gradient reaches every process's share."""
    return _Total.apply(x) if world_size() > 1 else x


def batch_mean(x: Tensor) -> Tensor:
    """The mean over the rows of all processes' `x` (B, ...); the gradient reaches every process's rows."""
    if world_size() == 1:
        return x.mean(0)
    return differentiable_total(x.sum(0)) / total(torch.tensor(float(len(x)), device=x.device))


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return total(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient.contiguous())


def agree(number: int | None, device: torch.device) -> int:
    """The largest of all processes' numbers (None: 0), for decisions they must take together."""
    if world_size() == 1:
        return number or 0
    numbers = torch.tensor(number or 0, device=device)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return int(numbers)


def wait_for_all() -> None:
    """Go on when every process is here."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def lost_processes_told() -> Iterator[None]:
    """End this process with one sentence if the connection to another process is lost."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or any(word in str(error).lower() for word in ("gloo", "nccl"))
        if world_size() == 1 or not lost:
            raise
        raise SystemExit(
            "Another process of this job has ended, so this one ends too: look above for its reason, then start the "
            "same job again; it goes on from the last resume point."
        ) from error


def progress(*args: Any, **options: Any) -> tqdm:
    """A tqdm progress bar, shown by the first process alone.

    delay: seconds before it is shown at all, for loops that may be short.
    """
    kind = _CellBar if in_notebook() else tqdm
    return kind(*args, **{"disable": not is_first(), **options})


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class _CellBar(tqdm):
    """A bar of text below a notebook's cell, renewed in place. tqdm's own needs a widget front end in the server that
    shows the notebook, and stands still where there is none."""

    def __init__(self, *args: Any, **options: Any):
        self._display = None
        super().__init__(*args, **{"file": io.StringIO(), "ncols": 100, "ascii": False, "mininterval": 0.5, **options})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        from IPython.display import display  # there, as this is a notebook

        text = {"text/plain": str(self) if msg is None else msg}
        if self._display is None:
            self._display = display(text, raw=True, display_id=True)
        else:
            self._display.update(text, raw=True)
        return True


class BatchNorm2d(nn.BatchNorm2d):
    """torch's batch norm, with the statistics of the whole batch where several processes share one.

    torch's own SyncBatchNorm runs on GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        wide = x.float()
        count = total(torch.tensor(float(x.numel() / x.shape[1]), device=x.device))
        mean = differentiable_total(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        variance = differentiable_total(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight / (variance + self.eps).sqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
