"""Is the fine detail there? Power spectra of tiles, and the lines that a grid leaves in them.

Blur takes power from the high frequencies. Transposed convolutions of stride 2 tend to add a grid: lines at a half and
a quarter of the sampling frequency (Odena, Dumoulin and Olah 2016; Durall, Keuper and Keuper 2020).
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pfiles.errors import InputError
from pfiles.machine.processes import progress
from pfiles.tiles.pixels import evenly_spaced, require_tiles

BAND = 0.05  # cycles per pixel, the width of a band
BANDS = 10  # up to 0.5, the highest frequency that pixels can show
MIN_SIDE = 32  # pixels: each band needs frequencies of its own
TILES = 2000  # of a set at most, thinned evenly
BLOCK = 200  # tiles at once; changes memory and speed only
GRID = {"a quarter": 0.25, "a half": 0.5}  # of the sampling frequency, in cycles per pixel
NEAR, FAR = 2, 5  # a line's neighbours lie so many steps of frequency away, as a Hann window smears a line by one
SOUND = (0.8, 1.25)  # ratio of power within which a band counts as that of real tiles
GRID_LINE = 1.5  # times the real tiles' own line, from which on a grid shows


def power_spectrum(images: Tensor) -> np.ndarray:
    """The mean power spectrum (S, S) of uint8 tiles (N, 3, S, S), frequency 0 in the corner, as numpy.fft orders it.

    Grey (mean of the colours, 0 ... 255), less its mean, under a periodic Hann window whose mean square is scaled to 1:
    the mean over all frequencies is then about the variance of a tile, times S^2 pixels.
    """
    require_tiles(images)
    side = images.shape[2]
    if not len(images) or side < MIN_SIDE:
        raise InputError(f"A spectrum needs tiles of at least {MIN_SIDE} px, but got {len(images)} of {side} px.")
    window = np.outer(*[torch.hann_window(side, dtype=torch.float64).numpy()] * 2)
    window /= np.sqrt(np.square(window).mean())
    selection = evenly_spaced(len(images), TILES)
    power = np.zeros((side, side))
    for start in progress(range(0, len(selection), BLOCK), desc="spectrum", leave=False, delay=2):
        grey = (images[selection[start : start + BLOCK]].sum(1, dtype=torch.float64) / 3).cpu().numpy()
        grey -= grey.mean((1, 2), keepdims=True)
        power += np.square(np.abs(np.fft.fft2(grey * window))).sum(0)
    return power / len(selection)


def radial(power: np.ndarray) -> np.ndarray:
    """The mean of a spectrum (S, S) in rings of 0.05 cycles per pixel up to 0.5. -> (10,)

    Frequency 0 and the corners beyond 0.5 do not count; a frequency on the edge of two rings belongs to the higher.
    """
    frequency = np.fft.fftfreq(len(power))
    radius = np.hypot(frequency[:, None], frequency)
    ring = np.minimum((radius / BAND + 1e-9).astype(int), BANDS)
    ring[np.isclose(radius, BAND * BANDS)] = BANDS - 1  # the highest frequency along an axis
    ring[0, 0] = BANDS
    sums, counts = (np.bincount(ring.ravel(), weights, BANDS + 1)[:BANDS] for weights in (power.ravel(), None))
    return sums / counts


def grid_line(power: np.ndarray, frequency: float) -> float:
    """How far a line along rows or columns at `frequency` (cycles per pixel) stands out of a spectrum (S, S).

    The power of the frequencies (f, 0) and (0, f), over the geometric mean of the power two to five steps below
    and, where there are some, above. About 1 where there is no line.
    """
    side = len(power)
    place = round(frequency * side)
    along = (power[0] + power[:, 0])[: side // 2 + 1] / 2
    neighbours = [n for step in range(NEAR, FAR + 1) for n in (place - step, place + step) if 0 < n < len(along)]
    return float(along[place] / np.exp(np.log(along[neighbours].clip(1e-12)).mean()))


def band_names() -> list[str]:
    return [f"{i * BAND:.2f} to {(i + 1) * BAND:.2f}" for i in range(BANDS)]


def compare(real: Tensor, sets: Mapping[str, Tensor]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Spectra of sets of tiles beside the real ones', all uint8 (N, 3, S, S).

    Returns a table of power over real power, a row for each band and a column for each set; and one of the
    `grid_line` at a quarter and a half of the sampling frequency, a row for each set, the real tiles first.
    """
    powers = {name: power_spectrum(images) for name, images in {"real": real, **sets}.items()}
    if len({power.shape for power in powers.values()}) > 1:
        raise InputError(
            f"Spectra compare tiles of one size, but got {', '.join(f'{len(p)} px' for p in powers.values())}."
        )
    reference = radial(powers["real"])
    if not reference.all():
        raise InputError("The real tiles have no power in some band, so that nothing can be compared: give real tiles.")
    ratios = {name: radial(power) / reference for name, power in powers.items() if name != "real"}
    lines = {name: {at: grid_line(power, f) for at, f in GRID.items()} for name, power in powers.items()}
    bands = pd.DataFrame(ratios, index=pd.Index(band_names(), name="cycles per pixel"))
    return bands, pd.DataFrame.from_dict(lines, orient="index")


def verdict(bands: pd.Series, lines: pd.DataFrame, name: str) -> str:
    """One sentence on the set `name`: which bands lack or have too much power, and whether a grid line shows."""
    low, high = (list(bands.index[mask]) for mask in (bands < SOUND[0], bands > SOUND[1]))
    parts = [f"lack power at {', '.join(low)}"] * bool(low) + [f"have too much power at {', '.join(high)}"] * bool(high)
    text = " and ".join(parts) or f"have between {SOUND[0]} and {SOUND[1]} times the power of real tiles in every band"
    grids = [
        f"{at} of the sampling frequency ({lines.loc[name, at]:.1f} times its neighbours; real tiles "
        f"{lines.loc['real', at]:.1f})"
        for at in lines.columns
        if lines.loc[name, at] > GRID_LINE * max(1.0, lines.loc["real", at])
    ]
    grid = f" A grid shows at {' and at '.join(grids)}." if grids else " No grid line shows."
    unit = " cycles per pixel" if parts else ""
    return f"{name[:1].upper()}{name[1:]} tiles {text}{unit}.{grid}"
