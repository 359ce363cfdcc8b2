"""Killed at any moment and started again, a long job ends with what an unbroken one makes, bit for bit."""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from tests import killed

KILLS = 4  # of each job

# children come from a fresh process that has imported everything once: quick to start, nothing shared with pytest
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["tests.killed", "torch.utils.tensorboard", "torch._dynamo"]
)  # both imported on first use


@pytest.fixture(scope="module", autouse=True)
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # where the server finds what it imports
        multiprocessing.forkserver.ensure_running()
        yield


def start(name: str, folder: Path) -> multiprocessing.Process:
    process = context.Process(target=killed.do, args=(name, folder))
    process.start()
    return process


def wait_for_progress(folder: Path, process: multiprocessing.Process) -> None:
    """Until the process has written a resume point, an image or a block, or has ended."""
    since = time.time_ns()
    while process.is_alive():
        for path in folder.rglob("*.*p*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime_ns > since:
                    return
        time.sleep(0.005)


def result(name: str, folder: Path) -> list[torch.Tensor]:
    if name == "images":
        numbers = range(killed.NUM_IMAGES)
        return [torch.tensor(np.asarray(Image.open(folder / f"{number}.png"))) for number in numbers]
    if name == "field":
        return [*torch.from_numpy(tifffile.imread(folder / "field.tiff"))]
    networks = torch.load(folder / "result.pt", weights_only=True)
    return [tensor for state in networks for tensor in state.values()]


@pytest.mark.parametrize("name", killed.JOBS)
def test_killed_and_started_again_ends_the_same(name, tmp_path):
    process = start(name, tmp_path / "whole")
    wait_for_progress(tmp_path / "whole", process)
    began = time.monotonic()
    process.join()
    lasts = time.monotonic() - began
    whole = result(name, tmp_path / "whole")
    assert len(whole) > 10

    rng = np.random.default_rng(len(name))
    kills = 0
    while kills < KILLS:
        process = start(name, tmp_path / "broken")
        wait_for_progress(tmp_path / "broken", process)
        process.join(timeout=rng.uniform(0, lasts / KILLS))
        process.kill()  # nothing, where it has ended
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
        else:  # done before it could be killed so often: begin anew for the rest
            assert all(torch.equal(a, b) for a, b in zip(whole, result(name, tmp_path / "broken"), strict=True))
            shutil.rmtree(tmp_path / "broken")
    process = start(name, tmp_path / "broken")
    process.join()
    assert process.exitcode == 0
    assert all(torch.equal(a, b) for a, b in zip(whole, result(name, tmp_path / "broken"), strict=True))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_resume_point_and_a_message(number, tmp_path):
    process = start("training", tmp_path)
    wait_for_progress(tmp_path, process)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == (143 if number == signal.SIGTERM else 1)
    stopped = re.search(r"training stopped after step (\d+) of (\d+)", (tmp_path / "printed.txt").read_text())
    assert int(stopped[1]) < int(stopped[2])  # at once, and not when the training would have ended
    assert not (tmp_path / "result.pt").exists()
    start("training", tmp_path).join()
    assert (tmp_path / "result.pt").exists()


def test_the_last_two_resume_points_are_kept_and_no_part_of_a_file(tmp_path):
    process = start("training", tmp_path)
    wait_for_progress(tmp_path, process)
    process.kill()
    process.join()
    start("training", tmp_path).join()
    names = {path.name for path in tmp_path.iterdir() if "events" not in path.name}
    assert names == {"resume.pt", "resume_previous.pt", "log.csv", "progress.json", "result.pt", "printed.txt"}
