"""A training step beside other programs: how much of its idle speed is left on shared cores.

    python -m benchmarks.load [--competitors 0 1 2] [--steps 40] [--repetitions 3] [--out FILE]

A step of the demo's UNet (batch of 16, forward, backward, AdamW), in processes of their own, in turn: as in a training
of `pfiles`, whose threads are as many as cores are left; the same with all threads throughout; threads that wait as the
OpenMP library has them wait by itself, or asleep at once (OMP_WAIT_POLICY=passive); and one thread alone. Each beside
0, 1 and 2 programs that keep one core busy. "share of idle" is what is left of the same way's idle speed. Run it on a
machine that does nothing else.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from benchmarks.measure import device_name
from pfiles.machine.runtime import versions
from pfiles.paths import ROOT, write_json

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
WAYS = {  # what is imported first (after torch, pfiles can say nothing any more); what the environment says; sharing
    "pfiles": ("pfiles", {}, True),
    "all threads": ("pfiles", {}, False),
    "by itself": ("torch", {}, False),
    "passive": ("torch", {"OMP_WAIT_POLICY": "passive"}, False),
    "one thread": ("torch", {"OMP_NUM_THREADS": "1"}, False),
}
LOOK_EVERY, WARM_UP = 1.0, 2.5  # seconds; a training looks for cores that are left less often


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    times: dict[tuple[str, int], list[float]] = {(way, n): [] for way in WAYS for n in args.competitors}
    for _ in range(args.repetitions):
        for (way, n), medians in times.items():
            with competitors(n):
                medians.append(step_in_a_process(*WAYS[way], args.steps))
    print(f"{device_name('cpu')}: milliseconds of a step, and the share of idle speed that is left")
    rows = []
    for (way, n), medians in times.items():
        median, idle = statistics.median(medians), statistics.median(times[way, args.competitors[0]])
        rows.append(
            {"way": way, "competitors": n, "ms": median, "share of idle": idle / median, "repetitions": medians}
        )
        print(
            f"{way:12} {n} beside it: {median:6.0f} ms ({min(medians):.0f} to {max(medians):.0f})  {idle / median:.2f}"
        )
    about = {"date": date.today().isoformat(), "device": device_name("cpu"), "versions": versions()}
    write_json(args.out, {**about, "steps": args.steps, "rows": rows})
    print(args.out)


@contextmanager
def competitors(number: int) -> Iterator[None]:
    """Inside the block so many programs keep a core busy each."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def step_in_a_process(first: str, variables: dict[str, str], sharing: bool, steps: int) -> float:
    """The median milliseconds of a step in a process that starts in such an environment and imports `first` first."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    command = [sys.executable, "-c", f"import {first}; from benchmarks import load; load.measure({steps}, {sharing})"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # opening a run prints what it computes on


def measure(steps: int, sharing: bool) -> None:
    """Print the median milliseconds of a step, after `WARM_UP`. sharing: threads as cores are left."""
    import torch

    from benchmarks.inputs import open_untrained
    from pfiles import learn
    from pfiles.machine import cpu
    from pfiles.machine.runtime import make_rng

    run = open_untrained("demo", {}, "cpu", 6)
    networks = learn.new_networks(run)
    unet = networks.unet.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), fused=True)
    rng = make_rng("benchmark load")
    shape = networks.space.vqvae.latent_shape(run.settings.image_size_px)
    x = torch.randn(16, *shape, generator=rng).to(memory_format=torch.channels_last)
    t, cluster_ids = torch.randint(1000, (16,), generator=rng), torch.arange(16) % 6
    cpu.LOOK_EVERY = LOOK_EVERY
    times = []
    started = time.monotonic()
    with cpu.follow_idle_cores(sharing) as follow_load:
        while len(times) < steps:
            began = time.perf_counter()
            follow_load()
            optimizer.zero_grad()
            unet(x, t, cluster_ids).square().mean().backward()
            optimizer.step()
            if time.monotonic() - started > WARM_UP:
                times.append(1000 * (time.perf_counter() - began))
    print(statistics.median(times))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__.splitlines()[0])
    parser.add_argument("--competitors", type=int, nargs="+", default=[0, 1, 2], help="numbers of them, 0 first")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / f"load-{date.today()}.json")
    return parser


if __name__ == "__main__":
    main()
