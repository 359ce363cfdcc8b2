"""A reader study as sections of a report: what was done, in words for a paper, and what came out, with a figure."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pfiles import __version__
from pfiles.reporting.lettering import literal
from pfiles.reporting.page import Section
from pfiles.reporting.tables import plain
from pfiles.study import results
from pfiles.study.answers import Key
from pfiles.study.form import SURE
from pfiles.study.intervals import Interval
from pfiles.study.results import Measure, Ratings
from pfiles.study.trials import BLUR

KINDS = {"generated": "generated tiles, put where asked", "real": "real tiles, put where assigned"}  # of clusters
INTERVALS = (
    "Intervals hold at 95 %. For one reader they are Wilson's for shares{area}. Those of all readers together take "
    "readers and tiles as samples: the method of Obuchowski and Rockette with the degrees of freedom of Hillis and the "
    "covariances of DeLong, on the logit scale; if readers differ less than their errors alone would explain, "
    "they count as equally skilled. By cluster they are Wilson's for as many answers as there are tiles. Agreement is "
    "Fleiss' kappa with a bootstrap over tiles (2,000 resamples). Learning is the gain from the first to the second "
    "half of a reader's order, with Student's t over readers."
)


def sections(key: Key, table: pd.DataFrame) -> list[Section]:
    """The report of a study. table: a row for each answer, see `answers.read_study`."""
    ratings = results.ratings_of(key, table)
    measured = results.measures(key.question, ratings)
    by_cluster = results.by_cluster(key, ratings)
    halves, gain = results.learning(ratings)
    kappa = results.agreement(ratings, key.seed)
    caught = results.catches(key, table)
    verdict = results.decision(key, ratings, measured)
    labels = [*halves.index, "together"]
    columns = {KINDS.get(name, name): [*map(_words, [*m.each, m.together])] for name, m in measured.items()}
    overview = pd.DataFrame(columns | {"median seconds": _seconds(table)}, labels)
    scores = {
        "readers": len(ratings.readers), "tiles": len(ratings.truth),
        **{name: measure.together._asdict() for name, measure in measured.items()},
        **({"kappa": kappa._asdict()} if kappa else {}), "verdict": verdict,
        "details": {
            "each reader": {
                name: {label: each._asdict() for label, each in zip(labels, measure.each, strict=False)}
                for name, measure in measured.items()
            },
            "by cluster": plain(by_cluster), "catch tiles": plain(caught), "halves": plain(halves),
        },
    }  # fmt: skip
    figure = plot(key, ratings, measured, by_cluster)
    comments = [
        f"Reader {row.reader} on tile {row.trial + 1} ({row.kind}, cluster {row.cluster}): {row.comment}"
        for row in table[table.comment.str.strip() != ""].itertuples()
    ]
    learnt = _learnt(gain)
    return [
        Section("What was done", _method(key, ratings, table)),
        Section("What came out", [verdict, _meaning(key)], [overview], [figure],
                scores),
        Section("By cluster", ["The share of right answers, over all readers."], [by_cluster]),
        Section("Agreement and learning", [_agreed(kappa), learnt], [halves]),
        Section("Catch tiles", [_caught(key)], [caught]),
        *([Section("Comments", comments)] if comments else []),
    ]  # fmt: skip


def _seconds(table: pd.DataFrame) -> list[float]:
    """The median time of an answer, of each reader and of all together."""
    return [*table.groupby("reader")["seconds"].median(), table["seconds"].median()]


def _words(interval: Interval) -> str:
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def _method(key: Key, ratings: Ratings, table: pd.DataFrame) -> list[str]:
    """Sentences that a paper's methods section can take over."""
    generated, real = int(ratings.truth.sum()), int((~ratings.truth).sum())
    kinds = pd.Series([truth.kind for truth in key.trials if truth.repeats is None]).value_counts()
    twice = sum(truth.repeats is not None for truth in key.trials)
    r, scale = len(ratings.readers), "" if key.mpp is None else f" ({key.side * key.mpp:.3g} um)"
    readers = "One reader" if r == 1 else f"{r} readers"
    bar = "" if key.mpp is None else " above a scale bar"
    setup = (
        f"{readers} judged {generated} generated and {real} real tiles of {key.side} px{scale}, without a time limit "
        f"(median {table.seconds.median():.1f} s per tile). Tiles were shown one at a time, {key.scale:g} times "
        f"enlarged{bar}, in an order of the reader's own. Real tiles were held out from all trainings. Both kinds were "
        f"taken evenly from {key.n_clusters} clusters."
    )
    sure = ", ".join(SURE)
    if key.question == "real":
        question = (
            f"For each tile a reader said whether it was real or made by a computer, and how sure this was ({sure}). "
            "Readers were not told how many tiles were generated, could not change an answer, and learnt nothing about "
            "their answers until the end."
        )
        catch = (
            f"Among them stood catch tiles: {twice} tiles, half of them real, a second time; {kinds.get('blurred', 0)} "
            f"real tiles blurred by a Gaussian of {BLUR * key.side:g} px; and {kinds.get('shuffled', 0)} made of small "
            "blocks of real tiles. Only first showings of tiles that were not altered count in what follows."
        )
        measured = (
            "Sensitivity is the share of generated tiles that were called made, specificity the share of real tiles "
            "that were called real; the area under the curve (AUC) takes answer and certainty as one scale of six."
        )
    else:
        question = (
            f"For each tile a reader chose one of {key.n_clusters} clusters, each shown with real tiles nearest to its "
            f"centre, and said how sure this was ({sure}). Readers could not change an answer and learnt nothing about "
            "their answers until the end."
        )
        catch = (
            f"Among them stood catch tiles: {twice} tiles, half of them real, a second time, and "
            f"{kinds.get('example', 0)} of the tiles that were shown as examples. Only first showings of other tiles "
            "count in what follows."
        )
        measured = (
            "A generated tile counts as right if the reader chose the cluster that was asked for, a real one if "
            f"the reader chose the cluster that it was assigned to. Chance is {1 / key.n_clusters:.2f}."
        )
    area = " and Newcombe's score intervals for the AUC" * (key.question == "real")
    software = f"Pages and numbers were made by pfiles {__version__}; pages on {key.made}."
    return [setup, question, catch, measured, INTERVALS.format(area=area), software]


def _meaning(key: Key) -> str:
    if key.question == "real":
        return "An AUC of 0.5 is a coin's: readers cannot tell generated tiles from real ones. 1 is telling them all."
    return f"Chance is {1 / key.n_clusters:.2f}. Real tiles show what readers can do."


def _learnt(gain: Interval | None) -> str:
    if gain is None:
        return "Learning needs two readers to be judged; the halves are shown."
    moved = "Readers learnt nothing that shows" if gain.low <= 0 <= gain.high else "Readers changed during the study"
    return f"{moved}: from the first half to the second {gain.value:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})."


def _agreed(kappa: Interval | None) -> str:
    if kappa is None:
        return "Agreement needs two readers who do not give one answer to all tiles."
    return f"Fleiss' kappa of the readers is {_words(kappa)}; 1 is full agreement, 0 what chance would give."


def _caught(key: Key) -> str:
    if key.question == "real":
        return (
            "A blurred or mixed tile that is called real is failed. Who fails most of them did not look, or takes blur "
            "for an ordinary fault of a scanner: ask before leaving a reader out."
        )
    return (
        "An example that is put elsewhere is failed: it stood beside the answers. Who fails most of them did not look."
    )


def plot(key: Key, ratings: Ratings, measured: Mapping[str, Measure], by_cluster: pd.DataFrame) -> Figure:
    """Measures of each reader and of all together, and right answers by cluster, all with intervals."""
    r, k = len(ratings.readers), len(by_cluster)
    height = 1.2 + 0.28 * max((r + 2) * 1.0, k)
    fig, axes = plt.subplots(
        1, len(measured) + 1, figsize=(2.5 * len(measured) + 3.6, height), layout="constrained",
        width_ratios=[*[1] * len(measured), 1.3],
    )  # fmt: skip
    chance = 0.5 if key.question == "real" else 1 / key.n_clusters
    for ax, (name, measure) in zip(axes, measured.items(), strict=False):
        _dots(ax, measure, chance)
        ax.set_yticks(range(r + 1), [*(f"reader {n}" for n in ratings.readers), "together"] if ax is axes[0] else [])
        ax.set_title(KINDS.get(name, name).replace(", ", ",\n"), size="medium")
    last = axes[-1]
    for kind, shift, colour in (("generated", -0.15, "#7a4f8c"), ("real", 0.15, "#3a7d5d")):
        if f"{kind}, right" not in by_cluster:
            continue
        value, low, high = (by_cluster[f"{kind}, {name}"].to_numpy(float) for name in ("right", "low", "high"))
        reach = np.stack([value - low, high - value])
        last.errorbar(value, np.arange(k) + shift, xerr=reach, fmt="o", ms=4, lw=1, color=colour, label=kind)
    last.axvline(chance, color="grey", linestyle=":")
    last.set_yticks(range(k), [literal(label) for label in by_cluster.index], size="small")
    last.set(xlim=(0, 1), xticks=(0, 0.5, 1), ylim=(k - 0.5, -0.5), xlabel="right answers")
    last.set_title("by cluster", size="medium")
    fig.legend(loc="outside lower right", fontsize="small", ncols=2, frameon=False)
    return fig


def _dots(ax: Axes, measure: Measure, chance: float) -> None:
    """A row for each reader and, below, one for all together, with intervals; a dotted line at chance."""
    rows = [*measure.each, measure.together]
    for i, (value, low, high) in enumerate(rows):
        last = i == len(rows) - 1
        colour = "black" if last else "grey"
        ax.plot([low, high], [i, i], color=colour, linewidth=2 if last else 1)
        ax.plot(value, i, "D" if last else "o", color=colour, markersize=6 if last else 5)
    ax.axvline(chance, color="grey", linestyle=":")
    ax.set(xlim=(0, 1), xticks=(0, 0.5, 1), ylim=(len(rows) - 0.5, -0.5))
