"""How things are measured: each side in a process of its own, the sides in turn, time and peak memory; ceilings.

A side's process prepares its inputs, says so, and then runs its work each time it is told to; the other side's process
waits meanwhile. Both are forks of one server that has imported everything and done nothing else, so they start from
the same memory, and the peak of each is its own.
"""

import contextlib
import io
import multiprocessing
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch

from pfiles.machine.cpu import processor

MB = 2**20
Run = Callable[[], dict[str, Any]]  # does the work once; returns "seconds" and whatever else is worth knowing
Job = Callable[..., Run]  # prepares inputs from (size, device) and returns the run


class MeasurementError(RuntimeError):
    """A side's process failed; the message is its traceback."""


def seconds(device: torch.device | str, work: Callable[[], Any]) -> float:
    """Wall-clock time of `work`, the device's own work included."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device | str) -> None:
    """Wait until `device` has done all it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(sides: Mapping[str, Job], size: Any, device: str, repetitions: int) -> dict[str, dict[str, Any]]:
    """Run the sides in turn, `repetitions` times after one that does not count, each in a process of its own.

    Returns for each side "runs", what every counted run returned, and "peak_mb": on a GPU the most memory that torch
    had in use there, on a CPU the most resident memory of the whole process ("before_mb" of it before the work).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.items"])
    workers = {}
    try:
        for name, job in sides.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_side, args=(theirs, job, size, device))
            process.start()
            theirs.close()  # so that the end of the process ends the pipe
            workers[name] = (process, ours)
            _receive(ours)  # prepared; the next one prepares alone
        results: dict[str, dict[str, Any]] = {name: {"runs": []} for name in sides}
        for repetition in range(repetitions + 1):
            for name, (_, pipe) in workers.items():
                pipe.send("run")
                outcome = _receive(pipe)
                if repetition > 0:
                    results[name]["runs"].append(outcome)
        for name, (process, pipe) in workers.items():
            pipe.send("end")
            results[name] |= _receive(pipe)
            process.join()
    finally:
        for process, _ in workers.values():
            process.kill()
    return results


def _receive(pipe: Connection) -> Any:
    try:
        answer = pipe.recv()
    except EOFError:
        raise MeasurementError("The process of one side ended, most likely because memory ran out.") from None
    if isinstance(answer, str):
        raise MeasurementError(answer)
    return answer


def _side(pipe: Connection, job: Job, size: Any, device: str) -> None:
    """A side's process: prepare, run when told to, report the peak at the end; a traceback goes through as text."""
    silence = io.StringIO()  # for progress bars and messages
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            before = peak_mb("cpu")
            run = job(size, device)
            pipe.send({})
            while pipe.recv() == "run":
                pipe.send(run())
            pipe.send({"peak_mb": peak_mb(device), "before_mb": before, "host_peak_mb": peak_mb("cpu")})
    except Exception:
        pipe.send(traceback.format_exc())


def peak_mb(device: torch.device | str) -> float:
    """The most memory so far: of this process on a CPU, of torch's allocations on a GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MB
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


def ceilings(size: Any, device: str) -> Run:
    """What the machine can do at most, as a job: matrix products in TFLOP/s, a memory copy in GB/s (read + written).

    size.ceiling: side of the square matrices of random numbers; the copy is of 16 such float32 matrices. Products are
    in float32 and in the precision of size.settings: bfloat16 takes minutes on a CPU without instructions for it.
    """
    n = size.ceiling
    rng = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, generator=rng, device=device) for _ in range(2))
    source = torch.randn(16, n, n, generator=rng, device=device)
    target = torch.empty_like(source)

    def rate(amount: float, work: Callable[[], Any]) -> float:
        """Amount per second, the median of five measurements after one that does not count."""
        calls = 10 if torch.device(device).type == "cuda" else 1
        times = [seconds(device, lambda: [work() for _ in range(calls)]) for _ in range(6)]
        return amount * calls / statistics.median(times[1:])

    def run() -> dict[str, float]:
        limits = {"fp32_tflops": rate(2 * n**3, lambda: a @ b) / 1e12}
        if size.settings.precision == "bf16":
            half_a, half_b = a.bfloat16(), b.bfloat16()
            limits["bf16_tflops"] = rate(2 * n**3, lambda: half_a @ half_b) / 1e12
        return limits | {"copy_gb_per_s": rate(2 * source.nbytes, lambda: target.copy_(source)) / 1e9}

    return run


def device_name(device: str) -> str:
    """The name of the GPU, or of the processor with the number of threads that torch uses."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads != 1)}"
