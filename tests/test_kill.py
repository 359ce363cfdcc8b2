"""Killed at any moment and started again, a long job ends with what an unbroken one makes, bit for bit."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import killed
import numpy as np
import pytest
import torch
from PIL import Image

KILLS = 5  # of each job

# children come from a fresh process that has imported everything once: quick to start, nothing shared with pytest
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["killed"])


def start(name: str, folder: Path) -> multiprocessing.Process:
    process = context.Process(target=killed.do, args=(name, folder))
    process.start()
    return process


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory):
    """The first child waits for the imports; the timing of the kills should not count them."""
    start("images", tmp_path_factory.mktemp("warm")).join()


def result(name: str, folder: Path) -> list[torch.Tensor]:
    if name == "images":
        numbers = range(killed.NUM_IMAGES)
        return [torch.tensor(np.asarray(Image.open(folder / f"{number}.png"))) for number in numbers]
    networks = torch.load(folder / "result.pt", weights_only=True)
    return [tensor for state in networks for tensor in state.values()]


@pytest.mark.parametrize("name", killed.JOBS)
def test_killed_and_started_again_ends_the_same(name, tmp_path):
    began = time.monotonic()
    start(name, tmp_path / "whole").join()
    lasts = time.monotonic() - began
    whole = result(name, tmp_path / "whole")

    rng = np.random.default_rng(len(name))
    kills = 0
    while kills < KILLS:
        process = start(name, tmp_path / "broken")
        process.join(timeout=rng.uniform(0.2, 0.5) * lasts)
        if process.is_alive():
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            kills += 1
        elif kills:  # done before the next kill: begin anew for the rest of them
            assert process.exitcode == 0
            assert all(torch.equal(a, b) for a, b in zip(whole, result(name, tmp_path / "broken"), strict=True))
            for path in (tmp_path / "broken").iterdir():
                path.unlink()
    process = start(name, tmp_path / "broken")
    process.join()
    assert process.exitcode == 0
    assert all(torch.equal(a, b) for a, b in zip(whole, result(name, tmp_path / "broken"), strict=True))
    assert len(whole) > 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_resume_point_and_a_message(number, tmp_path):
    process = start("training", tmp_path)
    while not (tmp_path / "resume.pt").exists():
        time.sleep(0.01)
    began = time.monotonic()
    os.kill(process.pid, number)
    process.join()
    assert time.monotonic() - began < 10
    assert process.exitcode == (143 if number == signal.SIGTERM else 1)
    assert "training stopped after step" in (tmp_path / "printed.txt").read_text()
    assert not (tmp_path / "result.pt").exists()
    start("training", tmp_path).join()
    assert (tmp_path / "result.pt").exists()


def test_the_last_two_resume_points_are_kept_and_no_part_of_a_file(tmp_path):
    process = start("training", tmp_path)
    process.join(timeout=1.0)
    process.kill()
    process.join()
    start("training", tmp_path).join()
    names = {path.name for path in tmp_path.iterdir() if "events" not in path.name}
    assert names == {"resume.pt", "resume_previous.pt", "log.csv", "result.pt", "printed.txt"}
