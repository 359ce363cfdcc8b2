"""Copies and likeness: the figure, and the word for a generator that remembers."""

import numpy as np
import pytest

from pfiles.reporting.sections import copies
from pfiles.reporting.sections.data import EvaluationData
from tests.reporting.sections.conftest import N, noisy_images


def test_histograms_of_nearest_distances_are_shares():
    figure = copies.plot_nearest({"held-out tiles": np.linspace(0, 1, 9), "generated images": np.ones(4)}, 0.1, "x")
    heights = [sum(bar.get_height() for bar in group) for group in figure.axes[0].containers]
    assert heights == pytest.approx([1, 1])
    assert figure.axes[0].lines[0].get_xdata()[0] == 0.1


@pytest.mark.parametrize("is_copied", [True, False])
def test_a_generator_that_remembers_is_called_so(real, is_copied):
    """Half of each training tile is near it, though no copy; tiles of others are not."""
    held_out, others = noisy_images(120, 32, 9), noisy_images(N, 32, 11)
    generated = real // 2 + others // 2 if is_copied else others
    data = EvaluationData(real, generated, held_out=held_out)
    notes = " ".join(copies.copies_section(data, at_most=120).notes)
    assert ("the generator remembers training tiles" in notes) == is_copied
