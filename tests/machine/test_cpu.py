"""What a process asks for before torch computes."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from pfiles.machine import cpu
from pfiles.paths import ROOT

TELL = """
import {first}, json, os, torch
names = ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")
print(json.dumps([os.environ.get(name) for name in names] + [torch.get_num_threads()]))
"""


def variables_after(first="pfiles", affinity=None, **environment):
    """GOMP_SPINCOUNT, OMP_NUM_THREADS and torch's threads in a new process that imports `first` and then torch."""
    environment = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run(
        [sys.executable, "-c", TELL.format(first=first)], env=environment, cwd=ROOT, capture_output=True, text=True,
        check=True, preexec_fn=affinity and (lambda: os.sched_setaffinity(0, affinity)),
    )  # fmt: skip
    return json.loads(done.stdout)


def test_threads_sleep_soon_and_are_as_many_as_the_cores():
    number = cpu.usable_cores()
    expected = None if number == os.cpu_count() else str(number)
    assert variables_after() == ["10000", expected, number]


@pytest.mark.parametrize("package", ["benchmarks", "experiments"])
def test_benchmarks_and_experiments_run_as_a_run_does(package):
    assert variables_after(package)[0] == "10000"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity mask on this system")
def test_a_process_tied_to_a_core_uses_one_thread():
    assert variables_after(affinity={min(os.sched_getaffinity(0))})[2] == 1


def test_a_container_with_a_quota_uses_no_more_threads():
    quota = variables_after(LOKY_MAX_CPU_COUNT="1")  # joblib reads the quota; this is its own way to lower it
    assert quota[1:] == ["1", 1]


@pytest.mark.parametrize("variable", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_the_environment_says_stays(variable):
    value = {"GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": "passive"}[variable]
    assert variables_after(**{variable: value})[0] == (value if variable == "GOMP_SPINCOUNT" else None)
    assert variables_after(OMP_NUM_THREADS="3", LOKY_MAX_CPU_COUNT="1")[1] == "3"


def test_after_torch_it_is_too_late_and_nothing_is_said():
    assert variables_after("torch, pfiles")[0] is None


FAULTS = """
import resource, sys
import {first}
import torch
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for number in range(30):
    if number == 20:
        before = faults()
    torch.empty(2**26, dtype=torch.uint8).fill_(1)
print(faults() - before)
"""


@pytest.mark.skipif(not cpu.keep_freed_memory(), reason="the C library is not glibc, or the environment has its say")
def test_memory_that_was_freed_is_used_again():
    def pages_filled(first):
        """By the last ten of thirty tensors of 64 MB, one after the other, each freed before the next."""
        code = FAULTS.format(first=first)
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert pages_filled("pfiles") < 100 < 1000 < pages_filled("sys")


def test_what_the_environment_says_of_memory_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not cpu.keep_freed_memory()


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_threads_are_as_many_as_other_programs_leave_cores_for(four_threads, monkeypatch):
    """By hand: seconds that pass, and core seconds of four cores that others take in them."""
    now, busy = [100.0], [40.0]
    monkeypatch.setattr(cpu.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cpu, "_cores", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(cpu, "_seconds_of_others", lambda cores: busy[0])
    numbers = []
    with cpu.follow_idle_cores(True) as follow:
        for seconds, of_others in ((19, 57), (1, 3), (20, 34), (20, 76), (30, 0), (20, -20)):
            now[0] += seconds
            busy[0] += of_others
            follow()
            numbers.append(torch.get_num_threads())
        follow()  # no time has passed
    # too early; three cores taken; 1.7; 3.8; none; and where nobody counts, only this process's own time is subtracted
    assert numbers == [4, 1, 2, 1, 4, 4]
    with cpu.follow_idle_cores(True) as follow:
        now[0] += 20
        busy[0] += 60
        follow()
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4  # as before
    with cpu.follow_idle_cores(False) as follow:
        now[0] += 20
        busy[0] += 60
        follow()
        assert torch.get_num_threads() == 4


@pytest.fixture
def own_seconds(monkeypatch):
    """A clock of this process's own work, which stands at 3 s."""
    seconds = [3.0]
    monkeypatch.setattr(cpu.time, "process_time", lambda: seconds[0])
    return seconds


def test_what_others_take_is_what_cores_are_busy_with_less_ones_own_work(own_seconds, monkeypatch):
    """By hand: of three cores this process may use the first two, and worked for 5 s; idle seconds do not count."""
    core = SimpleNamespace(user=1.0, nice=2.0, system=3.0, irq=4.0, softirq=5.0, steal=6.0, idle=100.0, iowait=50.0)
    times = [core, SimpleNamespace(user=7.0, system=0.5, idle=9.0), SimpleNamespace(user=1000.0)]
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: times if percpu else None)
    assert cpu._seconds_of_others({0, 1}) == 21 + 7.5 - 3
    own_seconds[0] += 5
    times[1] = SimpleNamespace(user=11.0, system=1.5, idle=9.0)
    assert cpu._seconds_of_others({0, 1}) == 21 + 12.5 - 8


@pytest.mark.parametrize("times", [[], [SimpleNamespace(user=7.0)]])
def test_a_system_that_does_not_count_takes_nothing(times, own_seconds, monkeypatch):
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: times)
    before = cpu._seconds_of_others({0, 1})
    own_seconds[0] += 0.1
    assert cpu._seconds_of_others({0, 1}) - before == pytest.approx(-0.1)


def test_a_system_that_refuses_to_tell_takes_nothing(monkeypatch):
    def refuse(percpu):
        raise PermissionError("/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", refuse)
    assert cpu._seconds_of_others({0, 1}) == 0
