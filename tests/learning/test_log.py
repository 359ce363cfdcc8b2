"""What a training writes down of itself."""

from dataclasses import replace

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import stage_networks, train_stage


def test_the_log_is_a_table_and_event_files(tiny, images, job):
    history = train_stage(tiny, replace(tiny.training, epochs=2), stage_networks(tiny), images, job)
    table = pd.read_csv(job.folder / "log.csv")
    for found, row in zip(table.to_dict("records"), history, strict=True):
        assert found == pytest.approx(row)
    events = EventAccumulator(str(job.folder)).Reload()
    assert [scalar.step for scalar in events.Scalars("mse")] == [1, 2]
    assert [scalar.value for scalar in events.Scalars("marginal_entropy")] == pytest.approx(
        [row["marginal_entropy"] for row in history]
    )
    assert {"loss", "mse", "affine_kl", "gradient_norm", "learning_rate", "images_per_second"} <= set(table)
