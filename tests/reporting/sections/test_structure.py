"""The section on structure: the reach of shuffled tiles beside real ones, and what cannot be measured."""

from functools import cached_property

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
    generated = structure.shuffled(real[~structure.shows_glass(real)], 8, seed=2)
    ids = [np.zeros(len(tiles), int) for tiles in (real, generated, held_out)]
    section = structure_section.make_section(EvaluationData(real, generated, held_out, None, *ids, mpp=0.5), seed=0)
    overall, by_cluster = section.tables
    assert list(overall.index) == ["generated", "training tiles", HELD_OUT]
    assert 6 < overall.reach["generated"] < 11
    assert overall.reach[HELD_OUT] == overall.reach["training tiles"] == 32
    assert list(by_cluster.index) == ["cluster 1"]
    reach = overall.reach["generated"]
    line = evaluation.summary_section(section).notes[1]
    assert line == f"Built like tissue: up to {reach:.0f} px ({reach / 2:.2g} um); real tissue beyond 32 px (16 um)."
    assert section.scores["reach_of_structure_px"] == overall.reach.to_dict()
    assert len(section.figures) == 2
    for figure in section.figures:
        figure.savefig(tmp_path / "figure.png")
    without_ids = structure_section.make_section(EvaluationData(real, generated), seed=0)
    assert len(without_ids.tables) == 1
    assert 6 < without_ids.tables[0].reach["generated"] < 11


def test_structure_that_cannot_be_measured_is_left_out_in_a_sentence():
    real = as_tensor(make_tiles(40, 32))
    section = structure_section.make_section(EvaluationData(real, real[:5]), seed=0)
    (note,) = section.notes
    assert note.startswith("Left out: ")
    assert note.count("\n") == 0
    assert section.scores == {}


def test_the_decoded_ladder_is_kept_for_the_same_tiles_autoencoder_and_seed(tmp_path):
    images, train, *_ = he_tiles(stride=96)
    real = torch.nn.functional.avg_pool2d(images[train].float(), 2).round().to(torch.uint8)
    decoded = []

    class Decoded(EvaluationData):
        @cached_property
        def reconstructed(self):
            return None

        def reconstruct(self, images):
            decoded.append(len(images))
            return images

    def reach(seed, **made_from):
        data = Decoded(
            real, real[~structure.shows_glass(real)][:60], vqvae=object(), ladder=(tmp_path / "ladder.pt", made_from)
        )
        return structure_section.make_section(data, seed).scores["reach_of_structure_px"]["generated"]

    first = reach(0, autoencoder="a")
    times = len(decoded)
    assert times > 0
    assert reach(0, autoencoder="a") == first
    assert len(decoded) == times
    reach(0, autoencoder="b")
    reach(1, autoencoder="b")
    assert len(decoded) == 3 * times


def test_a_column_shows_real_tiles_of_the_cluster_of_the_generated_one():
    """Also where the column is further to the right than the cluster has tiles; of a cluster without any, another."""
    real = as_tensor(make_tiles(40, 32))
    real_ids = np.array([0] * 37 + [1, 1, 2])
    generated_ids = np.array([1, 0, 1, 2, 1, 1, 0, 3, 1, 2])
    data = EvaluationData(real, real[:10], real_ids=real_ids, generated_ids=generated_ids)
    above, _, below = structure_section.examples(data, 8, seed=0).split(structure_section.SHOWN)
    clusters_above = [real_ids[(real == tile).all((1, 2, 3))].item() for tile in above]
    assert clusters_above == [1, 0, 1, 2, 1, 1, 0, 0, 1, 2]
    assert torch.equal(below, real[:10])
    first, second = np.flatnonzero(real_ids == 1)
    assert torch.equal(above[[0, 2, 4, 5, 8]], real[[first, first, first, second, first]])


class Redrawn(EvaluationData):
    """An autoencoder that gives each tile back as it is."""

    def reconstruct(self, images):
        return images

    @cached_property
    def reconstructed(self):
        return self.real


def test_the_time_counts_all_sets_that_are_measured(monkeypatch):
    """Of the published side, with an autoencoder and held-out tiles: no report measures more."""
    images, train, test, _ = he_tiles(stride=96)
    measured = []
    coherence_of = structure.coherence_of
    monkeypatch.setattr(structure, "coherence_of", lambda *sets: measured.append(len(sets[0])) or coherence_of(*sets))
    data = Redrawn(images[train], images[train], images[test], vqvae=torch.nn.Identity())
    tables, _ = structure_section._measure(data, 0)
    assert len(tables) == 4
    assert len(measured) == structure_section.MOST_SETS


def test_a_reach_at_an_end_of_the_blocks_says_so_itself():
    for reach, words in ((4, "at most 4 px"), (20, "up to 20 px"), (32, "beyond 32 px")):
        assert structure_section._up_to(structure.in_words(reach, 64)) == words
