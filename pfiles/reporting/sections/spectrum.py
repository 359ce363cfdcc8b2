"""Coarse shapes and fine detail: the power of generated images in each band of frequencies, beside real ones."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pfiles.measuring import spectrum
from pfiles.reporting.page import Section
from pfiles.reporting.sections.data import EvaluationData
from pfiles.reporting.sections.record import SectionRecord
from pfiles.reporting.tables import plain


def make_section(data: EvaluationData) -> Section:
    """Power of the generated images over that of real ones in each band, and the lines of a grid."""
    sets = {"generated": data.generated, "other half of the real": data.real[1::2]}
    if data.reconstructed is not None:
        sets["reconstructed"] = data.reconstructed
    bands, lines = spectrum.compare(data.real[::2], sets)
    notes = [
        spectrum.verdict(bands["generated"], lines, "generated"),
        "Power is over that of one half of the real images; the other half is the floor.",
    ]
    recorded = {
        "power_over_real": bands["generated"].to_dict(),
        "grid_line": lines.loc["generated"].to_dict(),
        "details": {"spectrum": {"bands": plain(bands), "grid lines": plain(lines)}},
    }
    return Section("Power spectrum", notes, [bands, lines], [plot_spectrum(bands, lines)], recorded)


def plot_spectrum(bands: pd.DataFrame, lines: pd.DataFrame) -> Figure:
    """Tables of `spectrum.compare`: power over real tiles' power in each band, and the grid lines of all data.

    Both plots give a set the same colour, and share a legend.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), width_ratios=(2, 1), layout="constrained")
    colours = {"real": "grey"} | {name: f"C{i}" for i, name in enumerate(bands)}
    for name in bands:
        left.plot(bands.index, bands[name], marker=".", color=colours[name], label=name)
    left.axhline(1, color="grey", linestyle="--", label="real")
    left.set(title="power, times real tiles'", xlabel=bands.index.name, yscale="log")
    left.tick_params("x", rotation=45, labelsize="small")
    left.legend(fontsize="small")
    places, width = np.arange(len(lines.columns)), 0.8 / len(lines)
    for i, (name, row) in enumerate(lines.iterrows()):
        right.bar(places + (i - (len(lines) - 1) / 2) * width, row, width, color=colours[name])
    right.axhline(1, color="grey", linestyle="--")
    right.set(title="grid line, times its neighbours", xlabel="of the sampling frequency")
    right.set_xticks(places, lines.columns)
    return fig


RECORD = SectionRecord(
    title="Power spectrum",
    question="is the fine detail there?",
    make=lambda data, options: [make_section(data)],
)
