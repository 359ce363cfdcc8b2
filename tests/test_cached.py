"""What is computed once: codes of tiles stay in their file."""

import sys

import numpy as np
import psutil
import torch

from pfiles import cached
from pfiles.cached import cached_codes, cached_tensor


def test_codes_are_made_range_by_range_and_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(cached, "AT_ONCE", 4)
    path, ranges = tmp_path / "new" / "codes.pt", []
    codes = np.random.default_rng(0).integers(200, size=(2, 10, 3, 3), dtype=np.uint8)

    def make(begin, end):
        ranges.append((begin, end))
        return torch.from_numpy(codes[:, begin:end])

    for _ in range(2):
        codes_read = cached_codes(path, {"a": 1}, 10, make, torch.device("cpu"))
        np.testing.assert_array_equal(codes_read, codes)
        if sys.platform == "linux":  # elsewhere psutil does not know what is mapped
            assert str(path) in [mapped.path for mapped in psutil.Process().memory_maps()]
        assert [each.name for each in path.parent.iterdir()] == ["codes.pt"]
    assert ranges == [(0, 4), (4, 8), (8, 10)]  # once
    cached_codes(path, {"a": 2}, 10, make, torch.device("cpu"))
    assert len(ranges) == 6


def test_a_tensor_is_computed_once_for_a_key(tmp_path):
    tensors = [cached_tensor(tmp_path / "x.pt", {"of": key}, lambda: torch.rand(3)) for key in "aab"]
    assert torch.equal(tensors[0], tensors[1])
    assert not torch.equal(tensors[0], tensors[2])
