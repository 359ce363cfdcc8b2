"""Whether files of real and generated images differ in what is not tissue, and how far that alone is told apart."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from torch import Tensor

from pfiles.measuring.features import random_convolutions
from pfiles.measuring.two_sample import TILES, linear_probe_accuracy
from pfiles.reporting.page import Section
from pfiles.tiles.encoding import Encoding, as_jpeg, as_resized, most_frequent, read_encoding, told_by_files
from pfiles.tiles.pixels import evenly_spaced

TITLE = "Files"
NAMES = {
    "kind": "file format", "quality": "JPEG quality", "size": "size in pixels", "profile": "colour profile",
    "bits": "bits per channel",
}  # fmt: skip
LOSSLESS = 101  # stands for the quality of a file that is no JPEG
APPARENT = 0.55  # share of the files that one value sorts rightly, from which on the sides differ in it


def make_section(
    real_files: Sequence[Path], generated_files: Sequence[Path], real: Tensor, generated: Tensor
) -> Section | None:
    """What the files of both sides differ in, and what it does to the tissue of one side; None if they do not.

    real, generated: the images as they are compared, uint8 (N, 3, S, S) of one size. At most 400 of each side count.
    """
    sides = [_encodings(files) for files in (real_files, generated_files)]
    shares = {field: told_by_files(*([getattr(each, field) for each in side] for side in sides)) for field in NAMES}
    different = [field for field, share in shares.items() if share >= APPARENT]
    if not different:
        return None
    rows = {NAMES[field]: {**_common(sides, field), "told apart by it": shares[field]} for field in different}
    by_files, traces = told_by_files(*sides), _traces(sides, real, generated)
    words = ", ".join(NAMES[field] for field in different)
    notes = [
        f"Warning: the two sides differ in what is not tissue: {words}. By this alone {by_files:.0%} of the files are "
        "sorted rightly, without a look at an image (50 % is chance). Save both sides in one way before you believe a "
        "measure of the tissue.",
        *(
            f"{what} alone: a linear classifier of random convolutions tells {share:.0%} of the {side} images from the "
            "same images after it (50 % is chance)."
            for what, side, share in traces
        ),
    ]
    scores = {
        "told_apart_by_files": by_files,
        "details": {"files": {"fields": [NAMES[field] for field in different], "traces": {w: s for w, _, s in traces}}},
    }
    return Section(TITLE, notes, [pd.DataFrame.from_dict(rows, orient="index")], scores=scores)


def _encodings(files: Sequence[Path]) -> list[Encoding]:
    files = list(files)
    return [read_encoding(files[place]) for place in evenly_spaced(len(files), TILES)]


def _common(sides: Sequence[Sequence[Encoding]], field: str) -> dict[str, str]:
    """What most files of each side have, in words."""
    values = [most_frequent(side, field) for side in sides]
    words = ["none" if value is None else _in_words(value) for value in values]
    return dict(zip(("most real files", "most generated files"), words, strict=True))


def _in_words(value: object) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _traces(sides: Sequence[Sequence[Encoding]], real: Tensor, generated: Tensor) -> list[tuple[str, str, float]]:
    """What the lower JPEG quality leaves in the tissue of the side that has it not, and what the size of the generated
    files leaves in real tissue: what was done, to which side, and the share that is told from itself before."""
    named = {"real": real, "generated": generated}
    quality = [most_frequent(side, "quality") or LOSSLESS for side in sides]
    widths = [min(most_frequent(side, "size")) for side in sides]
    changes = []
    if quality[0] != quality[1]:
        finer = "generated" if quality[0] < quality[1] else "real"
        changes.append((f"JPEG of quality {min(quality)}", finer, partial(as_jpeg, quality=min(quality))))
    if widths[0] != widths[1]:
        changes.append((f"Resizing to {widths[1]} px and back", "real", partial(as_resized, side=widths[1])))
    features, traces = random_convolutions(), []
    for change, side, changed in changes:
        tiles = named[side][evenly_spaced(len(named[side]), TILES)].cpu()
        traces.append((change, side, linear_probe_accuracy(features(tiles), features(changed(tiles)))))
    return traces
