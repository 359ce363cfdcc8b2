"""What the names of images say: which are thumbnails, labels and the like, and no slides of their own."""

import re
from collections.abc import Mapping
from pathlib import Path

from pfiles.spreadsheet import composed

COMPANIONS = ("thumbnail", "thumb", "macro", "label", "overview", "preview", "mask", "overlay", "lowres", "heatmap")


def is_companion(name: str) -> bool:
    """Whether the name of an image inside a file holds a word for a companion, such as "macro image"."""
    return any(_companion_of(word) for word in _words(name))


def word_at_end(text: str) -> str | None:
    """The word for a companion that a name ends in, such as of case1_thumbnail, labels and case1Macro."""
    words = _words(text)
    return _companion_of(words[-1]) if words else None


def _words(text: str) -> list[str]:
    """The words of a name in lower case, without numbers; a capital after a small letter begins a word."""
    spaced = re.sub("([a-z0-9])([A-Z])", r"\1 \2", text).lower()
    return [word for part in re.findall("[a-z0-9]+", spaced) if (word := re.sub("[0-9]+$", "", part))]


def _companion_of(word: str) -> str | None:
    """The word for a companion that this is, or whose plural it is."""
    return next((companion for companion in COMPANIONS if word in (companion, f"{companion}s")), None)


def word_beside_name(text: str, stems: Mapping[str, Path]) -> str | None:
    """The word for a companion in a name that holds another slide's name besides, such as of thumbnail-case1."""
    lower = composed(text).lower()
    for word in COMPANIONS:
        before, is_there, after = lower.partition(word)
        if is_there and any(part.strip(" ._-()") in stems for part in (before, after)):
            return word
    return None
