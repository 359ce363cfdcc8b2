"""Clusters on slides as AnnData: what is read back is what was written, at places worked out by hand."""

import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from pfiles.errors import InputError
from pfiles.reporting import maps, spatial


def two_slides():
    """Three tiles of a slide with 0.25 um/px and one of a slide with 0.5, cut at 1 um/px and 64 px."""
    fields = [np.array(["a", "a", "a", "b"]), np.array([300, 556, 300, 0]), np.array([200, 200, 456, 128]),
              np.array([256, 256, 256, 128]), np.ones(4)]  # fmt: skip
    positions = np.rec.fromarrays(fields, names="slide,x,y,side,mpp")
    return maps.ClusteredTiles(positions, np.array([2, 0, 2, 1]), np.array([0.9, 0.5, 0.25, 1.0]))


@pytest.mark.slow
def test_maps_are_read_back_as_they_were_written(tmp_path):
    images = torch.full((4, 3, 64, 64), 200, dtype=torch.uint8)
    patients = np.array(["p1", "p1", "p1", ""])
    maps.write_maps(tmp_path, two_slides(), images, 4, names={3: "stroma"}, patients=patients)
    data = anndata.read_h5ad(tmp_path / "maps.h5ad")
    assert data.shape == (4, 0)
    clusters = data.obs["cluster"].cat
    assert clusters.ordered
    assert [*clusters.categories] == ["1", "2", "3 stroma", "4"]
    assert [*clusters.codes] == [2, 0, 2, 1]
    assert [*data.uns["cluster_colors"]] == [*maps.COLOURS[:4]]
    assert [*data.obs["confidence"]] == [0.9, 0.5, 0.25, 1.0]
    assert [*data.obs["slide"]] == ["a", "a", "a", "b"]
    assert [*data.obs["patient"][:3]] == ["p1"] * 3
    assert pd.isna(data.obs["patient"].iloc[3])
    np.testing.assert_array_equal(data.obsm["spatial"], [[428, 328], [684, 328], [428, 584], [64, 192]])
    assert data.uns["spatial"] == {
        "a": {"scalefactors": {"spot_diameter_fullres": 256}, "metadata": {"mpp": 0.25}},
        "b": {"scalefactors": {"spot_diameter_fullres": 128}, "metadata": {"mpp": 0.5}},
    }


@pytest.mark.slow
def test_an_earlier_file_goes_where_anndata_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "anndata", None)
    monkeypatch.setattr(spatial, "is_installed", lambda: False)
    (tmp_path / "maps.h5ad").write_bytes(b"of other clusters")
    maps.write_maps(tmp_path, two_slides(), torch.full((4, 3, 64, 64), 200, dtype=torch.uint8), 4)
    assert not (tmp_path / "maps.h5ad").exists()
    tiles = two_slides()
    with pytest.raises(InputError, match=r"pip install 'kpc-ldm\[spatial\]'"):
        spatial.as_anndata(*tiles, ["1"], ["#000000"], 64)
