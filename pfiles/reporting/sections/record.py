"""A section of the report as one record, from which the report, its summary, the time estimate and the docs are made.

A measure is added in a module of its own, with its function, its figure and its record, and one entry in
`evaluation.SECTIONS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pfiles.reporting.page import Section
from pfiles.reporting.sections.data import EvaluationData, Options

BY_FEATURES = "told from real by "  # in scores, before the name of the features


class SummaryLine(NamedTuple):
    """A line for a reader who wants no statistics.

    place: its number among the lines. sentence: from the scores of a report; None if they lack it, and then the line
    says `unknown`. says, best: its row in docs/numbers.md.
    """

    place: int
    name: str
    sentence: Callable[[Mapping[str, Any]], str | None]
    unknown: str
    says: str
    best: str


class Work(NamedTuple):
    """How many images a report compares, and the seconds of each unit of work on this machine.

    training: tiles that copies are looked for among. blurs: scales of the two-sample test. network_step: a step of a
    small network that measures. search_setup: a tile that copies are looked for among. search_image: an image that is
    looked up among tiles that are searched at once. structure_tile: a tile whose structure is measured.
    """

    generated: int
    training: int
    blurs: int
    network_step: float
    search_setup: float
    search_image: float
    structure_tile: float


@dataclass(frozen=True)
class SectionRecord:
    """One measure: what makes its sections, whether it applies to the data, its lines in the summary, and its seconds.

    title, question: its row in the table of measures in docs/numbers.md. seconds: next to nothing unless said.
    """

    title: str
    question: str
    make: Callable[[EvaluationData, Options], Sequence[Section]]
    applies: Callable[[EvaluationData], bool] = lambda data: True
    lines: tuple[SummaryLine, ...] = ()
    seconds: Callable[[Work], float] = lambda work: 0.0
