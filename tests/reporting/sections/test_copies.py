"""Copies and likeness: the figure."""

import numpy as np
import pytest

from pfiles.reporting.sections import copies


def test_histograms_of_nearest_distances_are_shares():
    figure = copies.plot_nearest({"held-out tiles": np.linspace(0, 1, 9), "generated images": np.ones(4)}, 0.1, "x")
    heights = [sum(bar.get_height() for bar in group) for group in figure.axes[0].containers]
    assert heights == pytest.approx([1, 1])
    assert figure.axes[0].lines[0].get_xdata()[0] == 0.1
