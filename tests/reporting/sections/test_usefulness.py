"""Of what use generated tiles are: the sections on clusters and on labels."""

from dataclasses import replace

import numpy as np
import torch

from pfiles.measuring import usefulness
from pfiles.reporting.sections import usefulness as usefulness_section
from pfiles.reporting.sections.data import EvaluationData


def test_labels_that_tiles_may_have(monkeypatch):
    """Tiles without a label, and labels that no training tile has, are left out; no labels are one sentence."""
    monkeypatch.setattr(usefulness, "EPOCHS", 12)
    monkeypatch.setattr(usefulness, "TRIALS", 2)
    tiles = torch.randint(0, 60, (120, 3, 16, 16), dtype=torch.uint8)
    clusters = torch.arange(120) % 2
    tiles[clusters == 1] += 150
    label = np.where(clusters.numpy() == 1, "bright", "dark")
    label[::10] = ""  # unknown
    tested = np.where(label == "", "stroma", label)  # which no training tile is
    sets = EvaluationData(tiles, tiles, tiles, None, *[clusters.numpy()] * 3, label, tested)
    section = usefulness_section.make_labels_section(sets, 0, "cpu")
    assert section.scores["label_accuracy"] == dict.fromkeys(
        [usefulness.REAL, usefulness.GENERATED, usefulness.BOTH], 1.0
    )
    assert section.notes[0].startswith(
        "Of 108 held-out real tiles, a small network that learnt the labels bright, dark"
    )
    for real, held_out, why in (
        (None, None, "Left out: the tiles have no labels."),
        (np.full(120, "dark"), label, "Left out: all labelled tiles are dark."),
        (
            np.where(np.arange(120) < 7, "dark", ""),
            label,
            "Left out: it needs at least 20 tiles of each set, but one has 7.",
        ),
    ):
        result = usefulness_section.make_labels_section(
            replace(sets, real_labels=real, held_out_labels=held_out), 0, "cpu"
        )
        assert result.notes == [why]
        assert result.scores == {}
