"""The two-sample test's section."""

import numpy as np

from pfiles.reporting.sections import two_sample, usefulness
from pfiles.reporting.sections.data import EvaluationData
from tests.reporting.sections.conftest import N


def test_sets_too_small_for_a_network_say_so(real):
    sets = EvaluationData(real, real[:12], None, None, np.zeros(N, int), np.zeros(12, int))
    assert two_sample.make_section(sets, 0, "cpu").notes == [
        "Left out: it needs at least 20 tiles of each set, but one has 12."
    ]
    assert usefulness.make_section(sets, 0, "cpu").notes[0].endswith("but one has 12.")
