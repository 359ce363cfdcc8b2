"""The sections of paired scores."""

import pytest

from pfiles.errors import InputError
from pfiles.reporting import page
from pfiles.reporting.sections import paired
from tests.reporting.sections.conftest import N


def test_a_score_without_its_weights(real):
    only = paired.make_sections(["lpips"], real, real, cluster_ids=None, seed=0, device="cpu")
    assert [section.title for section in only] == ["Paired scores and their controls"]
    assert page.all_scores(*only) == {"lpips": "unavailable"}
    with pytest.raises(InputError, match="VGG16"):
        paired.make_sections(["lpips"], real, real, cluster_ids=None, seed=0, device="cpu", lpips_required=True)
    (first, second) = paired.make_sections(["ssim"], real, real, cluster_ids=None, seed=0, device="cpu")
    assert len(first.figures) == 1
    assert second.scores["ssim"]["generated"] == 1
    assert second.scores["details"]["ssim"]["generated"]["pairs"] == N
