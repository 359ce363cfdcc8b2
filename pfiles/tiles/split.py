"""Training and test tiles: whole slides on one side or the other wherever slides are known."""

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

TEST_PARTS = 11  # published: the last of 11 equal parts is the test set
LOPSIDED = 2  # more than twice the share meant, or less than half of it


def last_part(n: int) -> np.ndarray:
    """Which of n tiles are for testing, as (n,) bool: the last eleventh, as published."""
    return np.arange(n) >= n - n // TEST_PARTS


def split_by_folder(names: Sequence[PurePosixPath]) -> tuple[np.ndarray, str]:
    """Which tiles are for testing, as (n,) bool, and what to say of it.

    Slides are the folders at the top level or, where there are fewer than eleven, at the first level that has so many,
    however deep their tiles lie. With fewer folders at every level the last eleventh of all tiles is for testing.
    """
    folders, level, above = [name.parts[:-1] for name in names], *level_of_slides(names)
    if level is not None:
        test, sentence = split_by_slide(["/".join(folder[:level]) for folder in folders], "folders")
        if above > 1:
            sentence += f" They lie in {above} folders: if those are the slides, a slide may be on both sides."
        return test, sentence
    too_few = (
        f"The tiles lie in {above} folders, but slides are told apart from {TEST_PARTS} folders on: the last eleventh "
    )
    return last_part(len(names)), f"{too_few}of the tiles is the test set, and a slide may be on both sides." * (
        above > 1
    )


def level_of_slides(names: Sequence[PurePosixPath]) -> tuple[int | None, int]:
    """The level at which each folder is taken for a slide, from 1, and the most folders at a level above it.

    None where no level has so many folders.
    """
    folders, above = [name.parts[:-1] for name in names], 1
    for level in range(1, max(map(len, folders), default=0) + 1):
        count = len({folder[:level] for folder in folders})
        if count >= TEST_PARTS:
            return level, above
        above = max(above, count)
    return None, above


def split_by_patient(positions: np.recarray, patients: Sequence[str]) -> tuple[np.ndarray, np.ndarray, str]:
    """Which tiles cut from slides are for training and which for testing, both (n,) bool, and what to say of it.

    patients: of each tile, "" where unknown; its slide then stands for it. Of a single slide the lowest tiles that make
    up an eleventh are for testing, and those that reach into them from above are left out.
    """
    slides = [patient or slide for patient, slide in zip(patients, positions.slide, strict=True)]
    if len(set(slides)) > 1:
        test, sentence = split_by_slide(slides, "patients" if all(patients) else "slides")
        return ~test, test, sentence
    border = np.sort(positions.y)[-max(1, len(slides) // TEST_PARTS)]
    train, test = positions.y + positions.side <= border, positions.y >= border
    return train, test, f"All tiles are from one slide: those from row {border} on are the test set."


def split_by_slide(slides: Sequence[str], noun: str) -> tuple[np.ndarray, str]:
    """Which tiles are for testing, as (n,) bool, and what to say of it; no slide is on both sides.

    slides: of each tile, at least two different ones. noun: what they are called.
    The last slides that hold an eleventh of the tiles are for testing or, where they hold more than twice that share,
    those slides whose share is nearest to it (of several such choices the one with the last slides).
    """
    names = list(dict.fromkeys(slides))
    number = {name: i for i, name in enumerate(names)}
    of_tile = np.array([number[slide] for slide in slides])
    sizes = np.bincount(of_tile)
    n, total = len(names), len(slides)
    last = next((k for k in range(1, n) if sizes[-k:].sum() >= total // TEST_PARTS), n - 1)
    test_slides, held = np.arange(n - last, n), int(sizes[-last:].sum())
    message = f"The test set is the last {last} of {n} {noun}."
    if _is_lopsided(held, total):
        test_slides = _nearest(sizes.tolist(), total)
        better = int(sizes[test_slides].sum())
        many = f"The last {last} of {n} {noun} would hold {held} of {total} tiles, far more than an eleventh"
        if abs(better * TEST_PARTS - total) < abs(held * TEST_PARTS - total):
            listing = ", ".join(names[i] for i in test_slides[:5]) + (
                f" and {len(test_slides) - 5} more" if len(test_slides) > 5 else ""
            )
            message = f"{many}, so the test set is {listing}, with {better} tiles."
        else:
            message = f"{many}, but no other choice of whole ones comes nearer: the test set is the last {last}."
    return np.isin(of_tile, test_slides), message


def _is_lopsided(held: int, total: int) -> bool:
    return not total / LOPSIDED <= held * TEST_PARTS <= total * LOPSIDED


def _nearest(sizes: Sequence[int], total: int) -> np.ndarray:
    """The indices whose sizes add up to what is nearest to total / 11; reachable sums are the bits of an integer."""
    reachable = [1]
    for size in sizes:
        reachable.append(reachable[-1] | reachable[-1] << size)
    sums = [s for s, bit in enumerate(bin(reachable[-1])[:1:-1]) if bit == "1" and 0 < s < total]
    remainder = min(sums, key=lambda s: (abs(s * TEST_PARTS - total), s))
    selection = []
    for i in reversed(range(len(sizes))):
        if remainder >= sizes[i] and reachable[i] >> (remainder - sizes[i]) & 1:
            selection.append(i)
            remainder -= sizes[i]
    return np.array(selection[::-1])
