"""The templates of slurm/, their bodies run with the variables that Slurm sets, and with stand-ins for its commands."""

import os
import shlex
import subprocess
import sys

import nbformat
import pytest

from pfiles.cli.execute import with_parameters
from pfiles.cli.parser import parse
from pfiles.paths import ROOT
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.join import join_parts
from pfiles.tiles.slides import Tiling
from pfiles.tiles.tiler import tile_slides
from tests.tiles.conftest import island, write_slide

TRAININGS = ["train_autoencoder", "part_1_training", "part_2_finetuning1", "part_3_finetuning2"]


@pytest.fixture
def job(tmp_path):
    """Runs a template as a job; returns what it called, and its exit status."""
    stand_ins = {
        "srun": 'exec "$@"',
        "scontrol": f'echo "scontrol $*" >> {tmp_path}/called; [ "$1" = show ] && printf "first\\nsecond\\n"; true',
        "python": f'printf "%q " "$@" >> {tmp_path}/called; echo >> {tmp_path}/called; '
        '[[ "$*" != *"$FAILS"* ]] || exit 7; '
        '[[ "$*" != *"$ENDS"* ]] || { kill -TERM $PPID; exec sleep 600; }',
    }  # fmt: skip
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def run(template, **variables):
        (tmp_path / "called").write_text("")
        environment = {
            **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python"),
            "FAILS": "nothing", "ENDS": "nothing", "SLURM_SUBMIT_DIR": str(ROOT), **variables,
        }  # fmt: skip
        done = subprocess.run(["bash", ROOT / "slurm" / f"{template}.sh"], env=environment, timeout=300, check=False)
        return [shlex.split(line) for line in (tmp_path / "called").read_text().splitlines()], done.returncode

    return run


def of_pfiles(call):
    """What a call gave to `python -m pfiles`, as that takes it."""
    return parse(call[call.index("pfiles") + 1 :])


@pytest.mark.parametrize("name", ["tile", "train", "draw", "map"])
def test_a_template_is_a_batch_script(name):
    path = ROOT / "slurm" / f"{name}.sh"
    assert path.read_text().startswith("#!/bin/bash\n")
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.slow
def test_the_tiles_of_an_array_are_joined(tmp_path, job):
    for seed in range(3):
        write_slide(tmp_path / "slides" / f"{seed}.tiff", island(448, 448, 64, 64, 320, 320, seed), levels=(1,))
    variables = {"SLIDES": str(tmp_path / "slides"), "OUT": str(tmp_path / "tiles"), "PYTHON": sys.executable}
    for number in ("1", "2"):
        array = {"SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_TASK_MAX": "2"}
        assert job("tile", OPTIONS="--mpp 0.5 --size 64", **variables, **array)[1] == 0
    join_parts(sorted((tmp_path / "tiles.parts").iterdir()), tmp_path / "tiles")
    tile_slides([tmp_path / "slides"], tmp_path / "whole", Tiling(0.5, 64))
    assert load_tiles(tmp_path / "tiles", 64).fingerprint() == load_tiles(tmp_path / "whole", 64).fingerprint()


def test_a_part_that_is_submitted_again_is_the_same_part(job):
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "3", "PARTS": "10", "SLIDES": "a b", "OUT": "tiles"}
    [call], status = job("tile", **array)
    args = of_pfiles(call)
    assert (status, args.slides, args.part, args.out) == (0, ["a", "b"], (3, 10), "tiles.parts/3")


SLURM_JOB = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2"}


def test_trainings_follow_each_other(job):
    (hosts, *calls), status = job("train", CLUSTERS="10-16", **SLURM_JOB)
    assert status == 0
    assert hosts == ["scontrol", "show", "hostnames", "node[1-2]"]
    assert [of_pfiles(call).notebook for call in calls] == TRAININGS
    for call in calls:
        assert call[:2] == ["-m", "torch.distributed.run"]
        assert call[call.index("--rdzv-endpoint") + 1] == "first:29500"
        assert of_pfiles(call).clusters == "10-16"


def test_after_a_training_that_failed_no_other_begins(job):
    (_, *calls), status = job("train", FAILS="part_1_training", **SLURM_JOB)
    assert status == 7
    assert [of_pfiles(call).notebook for call in calls] == TRAININGS[:2]


def test_a_job_whose_time_is_over_stops_its_training_and_is_queued_again(job):
    (_, *calls, requeued), status = job("train", ENDS="part_1_training", **SLURM_JOB)
    assert status == 0
    assert [of_pfiles(call).notebook for call in calls] == TRAININGS[:2]
    assert requeued == ["scontrol", "requeue", "17"]


def test_drawing_shares_all_numbers(job):
    numbers = []
    for number in ("1", "2", "3"):
        [call], status = job("draw", IMAGES="10", SLURM_ARRAY_TASK_ID=number, SLURM_ARRAY_TASK_MAX="3")
        assert status == 0
        assert call[:3] == ["-m", "papermill", "clusters_14/part_6_conditional_generation.ipynb"]
        parameters = call[call.index("-y") + 1]
        first, last = parameters[parameters.index("[") + 1 : parameters.index("]")].split(",")
        assert parameters == f"{{n_clusters: 14, only: [{first},{last}]}}"
        numbers += range(int(first), int(last) + 1)
    assert numbers == [*range(1, 11)]
    notebook = ROOT / call[2]  # which has these parameters
    source = with_parameters(notebook, {"n_clusters": 14, "only": (1, 2)}).cells
    injected = next(cell.source for cell in source if "injected-parameters" in cell.metadata.get("tags", []))
    assert "n_clusters = 14\nonly = (1, 2)" in injected
    assert nbformat.read(notebook, as_version=4).metadata.kernelspec.name == "python3"


def test_each_slide_of_a_list_is_mapped(tmp_path, job):
    (tmp_path / "slides.txt").write_text("/data/a b.svs\n/data/c.svs\n")
    variables = {"LIST": str(tmp_path / "slides.txt"), "RUN": "runs/mine", "OUT": "maps", "OPTIONS": "--mpp 1"}
    [call], status = job("map", SLURM_ARRAY_TASK_ID="1", **variables)
    args = of_pfiles(call)
    assert (status, args.slide, args.out, args.mpp) == (0, ["/data/a b.svs"], "maps/a b.svs", 1)
    assert job("map", SLURM_ARRAY_TASK_ID="3", **variables) == ([], 2)
