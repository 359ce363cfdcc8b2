"""Two processes that work together do what one does."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image
from torch import nn

from pfiles.errors import InputError
from pfiles.learning.loop import Job, train
from pfiles.machine import processes
from pfiles.machine.speed import EAGER
from pfiles.paths import ROOT
from pfiles.settings import SavingSettings
from tests.conftest import TINY
from tests.machine import together

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def torchrun(job: str, folder: Path) -> subprocess.CompletedProcess:
    command = [*TORCHRUN, together.__file__, job, str(folder)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)


def test_two_processes_train_as_one(tmp_path):
    """Losses of the whole batch, batch norm over the whole batch, the same order of tiles: equal but for rounding."""
    together.train(tmp_path / "one")
    done = torchrun("train", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / name / "result.pt", weights_only=True) for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        x, y = (torch.cat([tensor.flatten().float() for tensor in state.values()]) for state in (a, b))
        assert ((x - y).norm() / x.norm()).item() < 1e-4
    logs = [np.genfromtxt(tmp_path / n / "training" / "log.csv", delimiter=",", names=True) for n in ("one", "two")]
    for name in ("loss", "mse", "marginal_entropy", "conditional_entropy", "affine_kl", "gradient_norm"):
        np.testing.assert_allclose(logs[1][name], logs[0][name], rtol=1e-3, atol=1e-5)
    assert done.stdout.count("autoencoder") == 0  # nothing was there already
    assert done.stderr.count("100%") <= 12  # bars of one process alone


def test_two_processes_learn_the_clusters_of_every_k_as_one(tmp_path):
    """Marginal entropy and batch norm over the whole batch, each classifier's own."""
    together.clusters(tmp_path / "one")
    done = torchrun("clusters", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / name / "result.pt", weights_only=True) for name in ("one", "two"))
    assert len(one) == 3
    for a, b in zip(one, two, strict=True):
        x, y = (torch.cat([tensor.flatten().float() for tensor in state.values()]) for state in (a, b))
        assert ((x - y).norm() / x.norm()).item() < 1e-4
    logs = [np.genfromtxt(tmp_path / n / "clusters" / "log.csv", delimiter=",", names=True) for n in ("one", "two")]
    for name in ("loss", "marginal_entropy", "conditional_entropy", "affine_kl", "gradient_norm"):
        np.testing.assert_allclose(logs[1][name], logs[0][name], rtol=1e-3, atol=1e-5)


def test_two_processes_hash_and_encode_what_one_does_and_share_it(tmp_path):
    together.codes(tmp_path / "one")
    done = torchrun("codes", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, first, second = (
        json.loads((tmp_path / name).read_text()) for name in ("one/0.json", "two/0.json", "two/1.json")
    )
    assert one["hash"] == first["hash"] == second["hash"]
    assert one["codes"] == first["codes"] == second["codes"]
    assert one["encoded"] == first["encoded"] + second["encoded"]
    assert len(first["encoded"]) == 4  # of nine ranges
    assert [path.name for path in (tmp_path / "two").glob("*codes*")] == ["codes.pt"]


def test_two_processes_draw_the_same_field_as_one(tmp_path):
    together.field(tmp_path / "one")
    done = torchrun("field", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / name / "field.tiff").read_bytes() for name in ("one", "two"))
    assert one == two


def test_two_processes_generate_what_one_does(tmp_path):
    together.generate(tmp_path / "one")
    done = torchrun("generate", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / "two").glob("*.png")]) == 11
    for number in range(1, 12):
        one, two = (np.asarray(Image.open(tmp_path / name / f"{number}.png")) for name in ("one", "two"))
        assert np.abs(one.astype(int) - two.astype(int)).max() <= 1


def test_a_killed_process_ends_the_job(tmp_path):
    command = [*TORCHRUN, together.__file__, "long", str(tmp_path)]
    job = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not [*(tmp_path / "autoencoder").glob("log.csv")]:
        time.sleep(0.1)
        assert job.poll() is None
    workers = [p for p in psutil.Process(job.pid).children() if "together.py" in " ".join(p.cmdline())]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    printed, _ = job.communicate(timeout=900)  # gloo by itself would wait for half an hour
    assert job.returncode != 0
    assert printed.count("Another process of this job has ended") == 1, printed


STARTERS = (
    "WORLD_SIZE", "RANK", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
)  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    """Sets variables as a launcher would, beside none of another launcher."""
    for name in STARTERS:
        monkeypatch.delenv(name, raising=False)
    return lambda variables: [monkeypatch.setenv(*item) for item in variables.items()]


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
        {"OMPI_COMM_WORLD_SIZE": "2", "ACCELERATE_MIXED_PRECISION": "no"},
        {"PMI_SIZE": "4"},
    ],
    ids=["srun", "accelerate with mpirun", "mpiexec"],
)
def test_processes_that_would_work_alone_are_refused(variables, environment):
    environment(variables)
    with pytest.raises(InputError, match="start it with torchrun"):
        processes.join()


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NPROCS": "4", "SLURM_PROCID": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "PMI_SIZE": "1"},
        {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"},
        {"WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2"},
    ],
    ids=["a batch script", "one task of its own, such as a JupyterHub server", "accelerate", "torchrun in srun"],
)
def test_a_single_process_works_inside_a_job(variables, environment):
    environment(variables)
    processes.join()
    assert processes.world_size() == 1


@pytest.mark.parametrize("number", ["", "nonsense", "0", "-2", "1.5", "²"])
def test_a_world_size_that_is_no_number_is_one_sentence(number, environment):
    environment({"WORLD_SIZE": number})
    with pytest.raises(InputError, match=r"^WORLD_SIZE must be the number of processes [^\n]*\.$"):
        processes.join()


def test_a_world_size_alone_is_one_sentence(environment, monkeypatch):
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    environment({"WORLD_SIZE": "2"})
    with pytest.raises(InputError, match=r"WORLD_SIZE is 2, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT of this"):
        processes.join()


def test_one_process_needs_nothing():
    processes.join()
    x = torch.arange(5)
    assert processes.world_size() == 1
    assert processes.is_first()
    assert processes.share(x) is not None
    assert torch.equal(processes.share(x), x)
    assert processes.total(x) is x
    network = nn.Linear(2, 2)
    assert processes.distribute(network) is network


def test_shares_are_contiguous_and_complete(monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        parts.append(processes.share(list(range(10))))
    assert [item for part in parts for item in part] == list(range(10))
    assert sorted(map(len, parts)) == [3, 3, 4]


def test_a_notebook_can_start_the_processes(tmp_path):
    """accelerate's notebook_launcher with the function that the README names; two processes, one set of files."""
    overrides = {**TINY, "image_size_px": 64}
    code = f"""
from accelerate import notebook_launcher
from pfiles.cli.execute import run_cells
from pfiles.paths import ROOT
parameters = {{"data": "embedded", "preset": "demo", "overrides": {overrides!r}, "out": {str(tmp_path)!r}}}
notebook_launcher(run_cells, (ROOT / "train_autoencoder.ipynb", parameters), num_processes=2)
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout
    assert done.stdout.count("Saved ") == 1
    assert (tmp_path / "kpc_ldm" / "vqvae_autoencoder_ckpt.pth").exists()


def test_more_processes_than_tiles_of_a_batch_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 9)
    network = nn.Linear(1, 1)
    run = Job("test", 0, 8, tmp_path, {}, SavingSettings(), EAGER)
    with pytest.raises(InputError, match="A batch of 8 tiles cannot be shared by 9 processes"):
        train(run, num_epochs=1, num_tiles=24, sample_random=None, objectives=None, state={"network": network})


def test_a_notebooks_bar_needs_no_widget_and_never_stands_still(tmp_path):
    """Its text is renewed in place, so that what the file holds at the end is what the last update said."""
    book = nbformat.v4.new_notebook()
    code = """
        import sys
        sys.path.insert(0, {root!r})
        from pfiles.machine.processes import progress
        for i in progress(range(3), desc="kept"): pass
        for i in progress(range(3), desc="gone", leave=False): pass
        for i in progress(range(3), desc="short", delay=60): pass
        for i in progress(range(3), desc="told", mininterval=0): print("in between")
    """
    book.cells = [nbformat.v4.new_code_cell(textwrap.dedent(code.format(root=str(ROOT))))]
    client = NotebookClient(book, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    displays = [output.data for output in book.cells[0].outputs if output.output_type == "display_data"]
    assert [data.keys() for data in displays] == [{"text/plain"}] * 3
    shown_bar, gone, explained = (data["text/plain"] for data in displays)
    assert shown_bar.startswith("kept: 100%")
    assert "3/3" in shown_bar
    assert gone == ""
    assert "3/3" in explained
