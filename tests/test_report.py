"""What a run's reports are made of."""

import numpy as np
import torch

from pfiles import artifacts, report
from pfiles.reporting.sections import copies
from tests.conftest import opened


def test_of_many_tiles_some_are_in_memory_and_copies_are_looked_for_among_all(run_dir, monkeypatch):
    """A copy of a training tile that is not among those measured is found."""
    run, sizes = opened(run_dir), []
    in_memory = type(run.tiles).tensor

    def tensor(tiles, places, device="cpu"):
        sizes.append(len(places))
        return in_memory(tiles, places, device)

    _, generated = artifacts.generated_images(run)
    codes = run.codes
    monkeypatch.setattr(report, "MEASURED", 3)
    monkeypatch.setattr(type(run.tiles), "tensor", tensor)
    left_out = np.setdiff1d(np.arange(len(run.tiles.train)), report.evenly_spaced(len(run.tiles.train), 3))
    copied = in_memory(run.tiles, run.tiles.train[left_out[:2]])
    data = report.evaluation_data(run, torch.cat([generated[:4], copied]), np.zeros(6, int))
    assert max(sizes) == 3
    assert [len(each) for each in (data.real, data.held_out, data.real_ids, data.held_out_ids)] == [3, 3, 3, 3]
    assert torch.equal(data.codes, codes[[0, 12, 23]])
    assert copies.copies_section(data, at_most=6).scores["copies"] >= 2
