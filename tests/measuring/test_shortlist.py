"""Candidates: against a search through all tiles, and whether the original of a copy is among them."""

import pytest
import torch

from pfiles.measuring import overlays, shortlist
from pfiles.measuring.planted import KINDS
from pfiles.measuring.shortlist import make_index, propose, small_version, structure, views_of
from tests.measuring.conftest import tissue

TILES = tissue(40)


@pytest.mark.parametrize("at_once", [7, 1000])
def test_small_versions_propose_what_a_full_search_does(monkeypatch, at_once):
    """The 5 most like an image in its best view, and the 3 least like it, whatever is compared at once."""
    monkeypatch.setattr(shortlist, "SMALL_ONES", at_once)
    monkeypatch.setattr(shortlist, "LIKE", 5)
    monkeypatch.setattr(shortlist, "UNLIKE", 3)
    views = views_of(structure(tissue(6, seed=4)))
    candidates = propose(make_index(TILES), views)
    assert candidates.unlike == 3
    small = small_version(structure(TILES)).half().float()
    for image, tile, view in zip(views, candidates.tile, candidates.view, strict=True):
        likeness = small_version(image) @ small.T  # (8, 40)
        assert tile[:5].tolist() == likeness.amax(0).argsort(descending=True)[:5].tolist()
        assert tile[5:].tolist() == likeness.amin(0).argsort()[:3].tolist()
        assert view[:5].tolist() == likeness.argmax(0)[tile[:5]].tolist()
        assert view[5:].tolist() == likeness.argmin(0)[tile[5:]].tolist()


@pytest.mark.slow
def test_the_original_of_a_copy_is_a_candidate():
    """Of every kind of the certificate: among 400 tiles it is one of the first ten that one of the ways proposes."""
    train = tissue(400)
    index, random = make_index(train), torch.Generator().manual_seed(0)
    for kind, change in KINDS.items():
        places = torch.randint(len(train), (12,), generator=random)
        copies = change(train[places], tissue(12, seed=9), random)
        small, _, unlike = propose(index, views_of(structure(copies)))
        voted = overlays.best_overlays(index.library, copies).voted
        candidates = torch.cat([small[:, :10], small[:, -unlike:], voted[:, :10]], dim=1)
        assert (candidates == places[:, None]).any(1).all(), kind
