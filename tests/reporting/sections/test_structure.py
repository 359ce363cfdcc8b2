"""The section on structure: the reach of shuffled tiles beside real ones, and what cannot be measured."""

import numpy as np
import torch

from pfiles.measuring import structure
from pfiles.reporting import evaluation
from pfiles.reporting.sections import structure as structure_section
from pfiles.reporting.sections.data import HELD_OUT, EvaluationData
from pfiles.tiles.builtin import he_tiles
from pfiles.tiles.pixels import as_tensor
from tests.conftest import make_tiles


def test_structure_of_real_and_of_shuffled_tiles(tmp_path):
    """A generator that draws shuffled tiles reaches their block; held-out tiles stand beside it as real tissue."""
    images, train, test, _ = he_tiles(stride=96)
    halved = torch.nn.functional.avg_pool2d(images.float(), 2).round().to(torch.uint8)
    real, held_out = halved[train], halved[test]
    drawn = structure.shuffled(real[~structure.shows_glass(real)], 8, seed=2)
    ids = [np.zeros(len(tiles), int) for tiles in (real, drawn, held_out)]
    section = structure_section.make_section(EvaluationData(real, drawn, held_out, *ids, mpp=0.5), seed=0)
    overall, by_cluster = section.tables
    assert list(overall.index) == ["generated", "training tiles", HELD_OUT]
    assert 6 < overall.reach["generated"] < 11
    assert overall.reach[HELD_OUT] == overall.reach["training tiles"] == 32
    assert list(by_cluster.index) == ["cluster 1"]
    reach = overall.reach["generated"]
    line = evaluation.in_short(section).notes[1]
    assert line == f"Built like tissue: up to {reach:.0f} px ({reach / 2:.2g} um); real tissue beyond 32 px (16 um)."
    assert section.scores["reach_of_structure_px"] == overall.reach.to_dict()
    assert len(section.figures) == 2
    for figure in section.figures:
        figure.savefig(tmp_path / "figure.png")
    without_ids = structure_section.make_section(EvaluationData(real, drawn), seed=0)
    assert len(without_ids.tables) == 1
    assert 6 < without_ids.tables[0].reach["generated"] < 11


def test_structure_that_cannot_be_measured_is_left_out_in_a_sentence():
    real = as_tensor(make_tiles(40, 32))
    section = structure_section.make_section(EvaluationData(real, real[:5]), seed=0)
    (note,) = section.notes
    assert note.startswith("Left out: ")
    assert note.count("\n") == 0
    assert section.scores == {}
