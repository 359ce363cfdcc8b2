"""What a training writes down of itself."""

import sys
import time
from dataclasses import replace

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pfiles.learning.log import TrainingLog
from tests.conftest import stage_networks, train_stage


def test_the_log_is_a_table_and_event_files(tiny, images, job):
    history = train_stage(tiny, replace(tiny.training, epochs=2), stage_networks(tiny), images, job)
    table = pd.read_csv(job.folder / "log.csv")
    for record, row in zip(table.to_dict("records"), history, strict=True):
        assert record == pytest.approx(row)
    events = EventAccumulator(str(job.folder)).Reload()
    assert [scalar.step for scalar in events.Scalars("mse")] == [1, 2]
    assert [scalar.value for scalar in events.Scalars("marginal_entropy")] == pytest.approx(
        [row["marginal_entropy"] for row in history]
    )
    assert {"loss", "mse", "affine_kl", "gradient_norm", "learning_rate", "images_per_second"} <= set(table)


def test_a_training_without_tensorboard_writes_its_table(images, job, monkeypatch):
    """TensorBoard comes with the extra for notebooks, which a training does not need."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = TrainingLog(job.folder, 0)
    log.write([{"epoch": 1, "mse": 0.5}])
    clock = iter([100.0, 101.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    log._began = 0.0
    log.picture(step=1000, steps_since=1000, make=lambda: images[:16])
    assert pd.read_csv(job.folder / "log.csv").to_dict("records") == [{"epoch": 1, "mse": 0.5}]
    assert sorted(path.name for path in job.folder.iterdir()) == ["log.csv", "samples"]
