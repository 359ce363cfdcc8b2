"""Smoothness of latents, on latents whose variance is known."""

import numpy as np
import pytest
import torch

from pfiles.errors import InputError
from pfiles.measuring.smoothness import in_words, smoothness


def test_white_noise_keeps_one_over_the_number_of_places():
    z = torch.randn(200, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    scores = smoothness(z)
    assert scores == pytest.approx(
        {"kept_2x2": 1 / 4, "kept_4x4": 1 / 16, "kept_8x8": 1 / 64, "effective_rank": 4}, rel=0.05
    )


def test_blocks_keep_everything_up_to_their_size():
    """Blocks of 4 x 4 places: averages over 2 x 2 and 4 x 4 change nothing, over 8 x 8 a quarter is left."""
    blocks = torch.randn(300, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    scores = smoothness(blocks.repeat_interleave(4, 2).repeat_interleave(4, 3) + 5)
    assert scores["kept_2x2"] == pytest.approx(1)
    assert scores["kept_4x4"] == pytest.approx(1)
    assert scores["kept_8x8"] == pytest.approx(1 / 4, rel=0.1)


def test_effective_rank_of_known_eigenvalues():
    """Variances 8, 1 and 1 in a rotated basis: entropy of shares 0.8, 0.1, 0.1; a fourth channel repeats the first."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, 3, generator=rng) * torch.tensor([8.0, 1.0, 1.0]).sqrt()
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=rng))
    z = (rows @ rotation)[:, :, None, None]
    share = np.array([0.8, 0.1, 0.1])
    assert smoothness(z)["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=0.03)
    assert smoothness(z).keys() == {"effective_rank"}  # a single place has no neighbours


def test_one_code_for_all_is_refused():
    with pytest.raises(InputError, match="uses one code"):
        smoothness(torch.full((4, 3, 8, 8), 0.3))


def test_in_words():
    words = in_words({"kept_2x2": 0.614, "kept_4x4": 0.45, "effective_rank": 2.31})
    assert words.startswith("Averages of the latents keep 61% over 2 x 2, 45% over 4 x 4 places")
    assert words.endswith("effective rank 2.3")
