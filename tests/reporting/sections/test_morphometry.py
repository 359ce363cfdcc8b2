"""What a pathologist would measure, of all images and of each cluster, as a table and as boxes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from pfiles.measuring.morphometry import FEATURES, measure
from pfiles.reporting.sections import morphometry


def test_small_clusters_are_said_not_dropped(real):
    labels = np.repeat([0, 1], [25, 15])
    measured = measure(real)
    table, left_out = morphometry.morphometry_by_cluster(measured, measured, labels, labels, seed=0)
    assert {name.split(":")[0] for name in table.index} == {"all", "cluster 1"}
    assert "2 (15 real, 15 generated)" in left_out
    assert table.distance.abs().max() < 1e-9


@pytest.mark.slow
def test_of_many_clusters_the_largest_have_boxes():
    """The figure says so; each row keeps its own cluster's number."""
    labels = np.repeat(np.arange(40), np.where(np.arange(40) % 5 == 0, 2, 3))  # 0, 5, 10 ... are smaller
    table = pd.DataFrame({name: np.arange(len(labels), dtype=float) for name in FEATURES})
    figure = morphometry.plot_morphometry(table, table, labels, labels)
    assert figure.get_supxlabel() == "the 32 of 40 clusters with most real images"
    names = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert names == ["all", *(str(c + 1) for c in range(40) if c % 5)]
    assert len(figure.axes[0].patches) == 2 * 33  # real and generated, of all and of 32 clusters
    plt.close(figure)
    few = morphometry.plot_morphometry(table, table, labels % 3, labels % 3)
    assert few.get_supxlabel() == ""
    plt.close(few)
