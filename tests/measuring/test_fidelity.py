"""Condition fidelity: agreement by hand, and a judge that learns from some tiles and is tested on others."""

import numpy as np
import pytest
import torch

from pfiles.errors import InputError
from pfiles.machine.runtime import seeded
from pfiles.measuring import fidelity
from pfiles.reporting.sections.condition import plot_agreement
from pfiles.vqvae import VQVAE
from tests.conftest import SIZES


def test_agreement_by_hand():
    matrix = np.array([[73, 27, 0], [0, 10, 0], [0, 0, 0]])
    table = fidelity.agreement(matrix)
    assert list(table.index) == ["cluster 1", "cluster 2", "all"]  # the third was never requested
    assert table.accuracy.tolist() == pytest.approx([0.73, 1, 83 / 110])
    assert (table.low["cluster 1"], table.high["cluster 1"]) == pytest.approx((0.6357, 0.8073), abs=1e-4)
    p, n, z = 1.0, 10, 1.959964
    centre, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * (z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    assert table.low["cluster 2"] == pytest.approx(centre - half)
    assert table.high["cluster 2"] == pytest.approx(1)
    with pytest.raises(InputError, match="no tile"):
        fidelity.agreement(np.zeros((2, 2), int))
    figure = plot_agreement({"one": table, "other": table}, {"chance": 0.5})
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx(2 * table.accuracy.tolist())


def test_the_judge_learns_clusters_that_can_be_seen():
    with seeded("judged"):
        vqvae = VQVAE(**SIZES)
    labels = torch.arange(60) // 2 % 3
    codes = (torch.rand(60, 8, 8, generator=torch.Generator().manual_seed(0)) * 8).to(torch.uint8)
    codes += 10 * labels[:, None, None].to(torch.uint8)  # each cluster has codes of its own
    before = torch.get_rng_state()
    judge, ceiling = fidelity.train_judge(vqvae, codes, labels, 3, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert ceiling == 1
    assert not judge.training
    again, _ = fidelity.train_judge(vqvae, codes, labels, 3, seed=1)
    for a, b in zip(judge.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    shuffled = labels[torch.randperm(60, generator=torch.Generator().manual_seed(3))]
    _, chance = fidelity.train_judge(vqvae, codes, shuffled, 3, seed=1)  # nothing to be seen: as by chance
    assert chance < 0.6
    with pytest.raises(InputError, match="at least 2"):
        fidelity.train_judge(vqvae, codes[:1], labels[:1], 3, seed=1)


def test_the_judge_never_sees_the_tiles_it_is_tested_on():
    vqvae = VQVAE(**SIZES)
    codes = torch.randint(0, 32, (16, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.randint(0, 2, (16,), generator=torch.Generator().manual_seed(1))
    changed = codes.clone()
    changed[1::2] = 0
    judges = [fidelity.train_judge(vqvae, c, labels, 2, seed=1)[0] for c in (codes, changed)]
    for a, b in zip(*(judge.state_dict().values() for judge in judges), strict=True):
        assert torch.equal(a, b)
