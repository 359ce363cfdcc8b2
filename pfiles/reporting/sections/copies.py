"""Whether generated images repeat real ones, or lie closer to them than unseen ones do."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pfiles import latents
from pfiles.measuring import certificate, memorisation
from pfiles.measuring.memorisation import COPY, UNLIKELY, Closeness, Judgement
from pfiles.reporting import export
from pfiles.reporting.page import Section
from pfiles.reporting.sections.data import EvaluationData
from pfiles.reporting.sections.record import SectionRecord, SummaryLine, Work
from pfiles.tiles.pixels import evenly_spaced

SEARCHED = 200  # images of each side at most that are searched for copies among other measures


def make_sections(
    data: EvaluationData,
    names: Sequence[str] | None = None,
    source: str = "these data",
    at_most: int | None = None,
    exhaustive: bool = False,
) -> list[Section]:
    """Copies, see `copies_section`, and likeness in features where there are an autoencoder and held-out tiles.

    Held-out tiles that are copies themselves tell nothing of likeness.
    """
    copies = copies_section(data, names, source, at_most, exhaustive)
    if data.vqvae is None or data.held_out is None or copies.scores["pixel space"]["chance"] is None:
        return [copies]
    return [copies, likeness_section(data)]


def copies_section(
    data: EvaluationData, names: Sequence[str] | None = None, source: str = "these data", at_most: int | None = None,
    exhaustive: bool = False,
) -> Section:  # fmt: skip
    """How many generated images repeat a real one, see `memorisation.nearest_tiles`, and, where there are held-out
    tiles, whether generated ones lie closer to the real ones than these do, see `memorisation.judge`.

    names: of the generated images; None: their numbers from 1. source: of the real tiles, in a few words. at_most: of
    the generated and of the held-out images so many are searched, evenly spaced; None: all generated ones, at most
    10,000 held-out ones, and planted copies, which say what the search is worth, see `certificate.search`. exhaustive:
    see `memorisation.nearest_tiles`.
    """
    places = evenly_spaced(len(data.generated), at_most or len(data.generated))
    images, names = data.generated[places], [str(i + 1) if names is None else names[i] for i in places]
    outright, certified = COPY, None
    train = data.real if data.searched is None else data.searched
    if data.held_out is None:
        nearest = memorisation.nearest_tiles(images, train, exhaustive)
    else:
        held_out = data.held_out[evenly_spaced(len(data.held_out), at_most or export.HELD_OUT)]
        if at_most is None:
            nearest, nearest_held_out, verdict, leak, certified = certificate.search(
                images, train, held_out, source, exhaustive
            )
        else:
            nearest, nearest_held_out, verdict, leak = memorisation.search_and_judge(images, train, held_out, source)
        outright = verdict["outright"]
    copies, repeated = int((nearest.distance < outright).sum()), memorisation.repeated(images)
    notes = [
        f"{copies} of {len(images)} generated images are copies of a real one: their structure differs by less than "
        f"{outright:.2f} (0: the same, 1: nothing in common). The closest differs by {nearest.distance.min():.2f}.",
        f"{repeated:.0%} of the generated images repeat another generated one.",
    ]
    scores: dict[str, Any] = {
        "copies": copies,
        "images_searched_for_copies": len(images),
        "repeat_each_other": repeated,
    }
    limit, pictures, verdict_table = COPY, [], []
    if data.held_out is not None:
        limit, scores["pixel space"] = verdict["threshold"], verdict
        notes += [leak] if leak else [_closer(verdict, len(held_out))]
        if verdict["chance"] is not None and verdict["chance"] < UNLIKELY:
            notes.append("That is more than chance: the generator remembers training tiles.")
        if verdict["left_out"]:
            notes.append(left_out_in_words(verdict, len(held_out)))
        if certified is not None:
            notes.append(str(certified))
            scores["certificate"] = certified.as_note()
        verdict_table = [pd.DataFrame({"pixel space": verdict}).T]
        pictures = [_histograms(nearest, nearest_held_out, limit, "pixel space")]
    pictures.append(export.show_closest(names, images, train, nearest, limit, data.mpp))
    return Section("Copies", notes, verdict_table, pictures, scores)


def left_out_in_words(verdict: Judgement, held_out: int) -> str:
    """The held-out tiles that `memorisation.judge` left out, in a sentence."""
    return (
        f"{verdict['left_out']} of {held_out} held-out tiles show what a training tile shows, and do not count: look "
        "for slides or photographs on both sides of the split."
    )


def likeness_section(data: EvaluationData) -> Section:
    """Whether generated images lie closer to real ones than held-out ones do, in the published features of a tile."""
    real, generated, held_out = (
        latents.mean_channel_softmax(data.autoencoder, codes).numpy()
        for codes in (data.real_codes, data.generated_codes, data.held_out_codes)
    )
    nearest, nearest_held_out = (memorisation.nearest_features(features, real) for features in (generated, held_out))
    verdict = memorisation.against_held_out(nearest.distance, nearest_held_out.distance)
    pictures = [_histograms(nearest, nearest_held_out, verdict["threshold"], "feature space")]
    notes = [_closer(verdict, len(nearest_held_out))]
    table = pd.DataFrame({"feature space": verdict}).T
    return Section("Likeness", notes, [table], pictures, {"feature space": verdict})


def _closer(verdict: Closeness, held_out: int) -> str:
    """What `memorisation.against_held_out` found, in a sentence."""
    return (
        "{closer:.1%} of the generated images ({low:.1%} to {high:.1%}) are closer to a real one than the closest 1 % "
        "of {held_out} held-out tiles are; {expected:.1%} is expected of images as far from real ones as these, and "
        "the probability that such images show as many or more is {chance:.2g}."
    ).format_map({**verdict, "held_out": held_out})


def _histograms(nearest: pd.DataFrame, nearest_held_out: pd.DataFrame, threshold: float, space: str) -> Figure:
    both = {"held-out tiles": nearest_held_out.distance, "generated images": nearest.distance}
    return plot_nearest(both, threshold, f"distance to the nearest training tile, {space}")


def plot_nearest(distances: Mapping[str, np.ndarray], threshold: float, xlabel: str) -> Figure:
    """Histograms of nearest distances, such as those of held-out tiles and of generated images, over each other.

    threshold: a dashed line. Heights are shares, as the sets differ in size.
    """
    fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
    edges = np.histogram_bin_edges(np.concatenate([*distances.values(), [threshold]]), 40).tolist()
    for name, values in distances.items():
        ax.hist(
            values, edges, weights=np.full(len(values), 1 / len(values)), alpha=0.6, label=f"{name} ({len(values)})"
        )
    ax.axvline(threshold, color="black", linestyle="--", label="threshold")
    ax.set(xlabel=xlabel, ylabel="share")
    fig.legend(loc="outside upper center", ncols=3, fontsize="small")
    return fig


def _copies(scores: Mapping[str, Any]) -> str | None:
    if "copies" not in scores:
        return None
    return "{copies} of {images_searched_for_copies} images that were looked at".format_map(scores)


def _alike(scores: Mapping[str, Any]) -> str | None:
    share = scores.get("repeat_each_other")
    return None if share is None else f"{share:.0%} of the generated tiles repeat another one"


def seconds_of_search(work: Work, images: int, tiles: int) -> float:
    """Seconds of looking up so many images among so many tiles, see `memorisation.nearest_tiles`."""
    return tiles * work.search_setup + images * work.search_image


def seconds_of_section(work: Work, generated: int, others: int) -> float:
    """Seconds of `copies_section`, if so many held-out and planted images are looked up beside the generated ones."""
    every_second = generated // 2  # is looked up among the rest
    return seconds_of_search(work, generated + others, work.training) + seconds_of_search(
        work, every_second, generated - every_second
    )


RECORD = SectionRecord(
    title="Memorisation",
    question="are training tiles repeated?",
    make=lambda data, options: make_sections(data, at_most=SEARCHED),
    seconds=lambda work: seconds_of_section(work, *[min(SEARCHED, work.generated)] * 2),
    lines=(
        SummaryLine(
            5, "Copies", _copies, "not looked for",
            says=f"how many of at most {SEARCHED} generated tiles repeat a training tile",
            best="0",
        ),
        SummaryLine(
            7, "Alike", _alike, "not looked for",
            says="how many generated tiles repeat another generated one; 100 % if all are the same",
            best="near 0 %",
        ),
    ),
)  # fmt: skip
