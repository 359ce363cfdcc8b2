"""Power spectra: a cosine and white noise by hand, and a grid that must be found."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgba

from pfiles.errors import InputError
from pfiles.measuring import spectrum
from pfiles.reporting.sections.spectrum import plot_spectrum


def cosine(cycles, side=64, axis=1, amplitude=50):
    wave = 128 + amplitude * np.cos(2 * np.pi * cycles * np.arange(side) / side)
    tile = np.broadcast_to(wave[:, None] if axis == 0 else wave, (side, side))
    return torch.tensor(tile).round().byte().expand(1, 3, side, side)


def noise(n=60, side=64, seed=0, level=20):
    values = np.random.default_rng(seed).normal(128, level, (n, 1, side, side))
    return torch.tensor(np.clip(values, 0, 255).astype(np.uint8)).repeat(1, 3, 1, 1)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_pure_cosine_by_hand(axis):
    """Amplitude a, 16 cycles over 64 px, which is 1/4 cycle per pixel. A periodic Hann window of squared mean 9/64 over
    the plane, scaled to 1, has spectral weights of 1, 1/2, 1/2 along each axis (times S/2 each) around the frequency.
    """
    side, a = 64, 50
    power = spectrum.power_spectrum(cosine(16, side, axis, a))
    peak = (a / 2 * (side / 2) ** 2 / (3 / 8)) ** 2  # sqrt of the window's mean square, 9/64, is 3/8
    line = power if axis == 0 else power.T
    assert line[16, 0] == pytest.approx(peak, rel=0.01)
    assert line[-16, 0] == pytest.approx(peak, rel=0.01)
    for y, x, share in ((15, 0, 1 / 4), (17, 0, 1 / 4), (16, 1, 1 / 4), (17, 1, 1 / 16)):
        assert line[y, x] == pytest.approx(share * peak, rel=0.02)
    assert power.sum() == pytest.approx(2 * peak * 1.5**2, rel=0.01)
    bands = spectrum.radial(power)
    assert bands.argmax() == 5  # 0.25 to 0.30
    far = [0, 1, 2, 3, 7, 8, 9]
    assert bands[far].max() < 1e-3 * bands[5]


def test_white_noise_has_equal_power_in_all_bands():
    """The variance of a pixel times the number of pixels, at every frequency."""
    power = spectrum.power_spectrum(noise(300))
    assert spectrum.radial(power) == pytest.approx(np.full(10, 20**2 * 64**2), rel=0.12)
    assert spectrum.radial(power)[1:] == pytest.approx(np.full(9, 20**2 * 64**2), rel=0.05)


def test_rings_by_the_plain_definition():
    power = np.random.default_rng(0).random((40, 40))
    sums, counts = np.zeros(10), np.zeros(10)
    for i in range(40):
        for j in range(40):
            twentieths = round(1e9 * np.hypot(min(i, 40 - i), min(j, 40 - j)) / 2) / 1e9  # of 0.05 cycles per pixel
            band = 9 if twentieths == 10 else int(twentieths)
            if (i or j) and band < 10:
                sums[band] += power[i, j]
                counts[band] += 1
    assert spectrum.radial(power) == pytest.approx(sums / counts)


@pytest.mark.parametrize(("every", "peaks"), [(4, ["a quarter", "a half"]), (2, ["a half"])])
@pytest.mark.parametrize("rows", [True, False])
def test_a_grid_is_found(every, peaks, rows):
    real, generated = noise(60), noise(60, seed=1)
    (generated if rows else generated.mT)[:, :, ::every] += 8
    bands, lines = spectrum.compare(real, {"generated": generated})
    for at in ("a quarter", "a half"):
        assert 0.5 < lines.loc["real", at] < 1.5
        assert (lines.loc["generated", at] > 2) == (at in peaks)
    sentence = spectrum.verdict(bands["generated"], lines, "generated")
    assert "A grid shows at" in sentence
    assert ("a quarter of" in sentence) == ("a quarter" in peaks)


def test_blur_lacks_fine_detail_and_no_band_of_real_tiles_does():
    from scipy.ndimage import gaussian_filter

    real = noise(100)
    sets = {
        "again": noise(100, seed=1),
        "blurred": torch.tensor(gaussian_filter(noise(100, seed=2).numpy(), (0, 0, 1, 1))),
    }
    bands, lines = spectrum.compare(real, sets)
    assert list(bands.index) == spectrum.band_names()
    assert bands.index[0] == "0.00 to 0.05"
    assert bands.index[-1] == "0.45 to 0.50"
    assert bands["again"].iloc[1:].between(0.8, 1.25).all()
    expected = np.exp(-((2 * np.pi * 0.225) ** 2))  # of a Gaussian of 1 px at the middle of the fifth band
    assert bands["blurred"].iloc[4] == pytest.approx(expected, rel=0.25)
    assert bands["blurred"].iloc[-1] < 0.01
    assert spectrum.verdict(bands["again"], lines, "again").endswith("in every band. No grid line shows.")
    assert "lack power at 0.10 to 0.15" in spectrum.verdict(bands["blurred"], lines, "blurred")
    figure = plot_spectrum(bands, lines)
    left, right = figure.axes
    of_lines = [to_rgba(line.get_color()) for line in (left.lines[-1], *left.lines[:-1])]  # real tiles first
    assert [group[0].get_facecolor() for group in right.containers] == of_lines


def test_what_has_no_spectrum():
    tiles = noise(3)
    for wrong, sentence in (
        (tiles.double(), "but got torch.float64"),
        (tiles[:, :, :32], r"but got torch.uint8 of shape \(3, 3, 32, 64\)"),
        (tiles[:, :, :16, :16], "at least 32 px, but got 3 of 16 px"),
        (tiles[:0], "but got 0 of 64 px"),
    ):
        with pytest.raises(InputError, match=sentence):
            spectrum.power_spectrum(wrong)
    with pytest.raises(InputError, match="one size, but got 64 px, 32 px"):
        spectrum.compare(tiles, {"generated": tiles[:, :, :32, :32]})
    with pytest.raises(InputError, match="no power"):
        spectrum.compare(torch.full_like(tiles, 100), {"generated": tiles})


def test_verdict_names_bands():
    bands = pd.Series([1.0, 0.5, 1.4], index=["low", "middle", "high"])
    lines = pd.DataFrame({"a quarter": [0.9, 2.0]}, index=["real", "generated"])
    assert spectrum.verdict(bands, lines, "generated") == (
        "Generated tiles lack power at middle and have too much power at high cycles per pixel. A grid shows at a "
        "quarter of the sampling frequency (2.0 times its neighbours; real tiles 0.9)."
    )
