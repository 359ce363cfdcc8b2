"""Whether a small network can tell generated from real images, and which part gives them away."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pfiles.measuring import two_sample
from pfiles.reporting import figures
from pfiles.reporting.page import Section
from pfiles.reporting.sections.data import MIN_IMAGES, EvaluationData, too_few
from pfiles.reporting.sections.record import BY_FEATURES, SectionRecord, SummaryLine, Work
from pfiles.reporting.tables import plain

SHOWN = 20  # of the most and least convincing images
GENERATED_FROM_REAL, FLOOR = "generated from real", "real from real: the floor"  # pairs of `stage_comparisons`
MOST_PAIRS = 9  # that are told apart, those of the guards among them


def make_section(
    data: EvaluationData, seed: int, device: torch.device | str, blurs_px: Sequence[float] = two_sample.BLURS_PX
) -> Section:
    """Whether a small network can tell generated from real images, which part gives them away, and at which scale."""
    generated, real = data.generated, data.real
    if (fewest := min(len(generated), len(real))) < two_sample.MIN_TILES:
        return Section("Two-sample test", [too_few(two_sample.MIN_TILES, fewest)])
    held_out = None if data.held_out is None or len(data.held_out) < MIN_IMAGES else data.held_out
    floor = len(real) >= 2 * two_sample.MIN_TILES
    steps = two_sample.stage_comparisons(generated, real, data.reconstructed, held_out)
    tests_by_pair = two_sample.compare(
        {name: p for name, p in steps.items() if floor or name != FLOOR}, seed, device, blurs_px
    )
    table = two_sample.table(tests_by_pair)
    notes = [
        f"Share of {table['test tiles'].iloc[0]} or fewer test images that the network sorts rightly: 50 % is chance. "
        "Its floor is one half of the real images told from the other, of the same mix of slides. A row that says the "
        "network did not learn has no share, as the network could not see a blur of 1 px either.",
        *(f"{name}{f', both blurred by {px:g} px' if px else ''}: {test}." for name, tests in tests_by_pair.items()
          for px, test in tests.items()),
    ]  # fmt: skip
    at_full = next(iter(tests_by_pair[GENERATED_FROM_REAL].values()))
    pictures = [
        figures.show_tiles(
            generated[order], title=f"Generated images that look {degree} convincing to the network", mpp=data.mpp
        )
        for degree, order in (("most", at_full.order[::-1][:SHOWN].copy()), ("least", at_full.order[:SHOWN]))
        if at_full.learned
    ]
    shares = {name: next(iter(tests.values())).accuracy for name, tests in tests_by_pair.items()}
    scores = {
        "told_from_real": {name: accuracy for name, accuracy in shares.items() if accuracy is not None},
        "details": {"two-sample test": plain(table)},
    }
    return Section("Two-sample test", notes, [table], pictures, scores)


def _told_from_real(scores: Mapping[str, Any]) -> str | None:
    shares = scores.get("told_from_real", {})
    if GENERATED_FROM_REAL not in shares:
        return None
    real = f"; real from real tiles in {shares[FLOOR]:.0%}" if FLOOR in shares else ""
    linear = max(((share, name) for name, share in scores.items() if name.startswith(BY_FEATURES)), default=None)
    by = f"; by a linear classifier of {linear[1].removeprefix(BY_FEATURES)} in {linear[0]:.0%}" if linear else ""
    return f"in {shares[GENERATED_FROM_REAL]:.0%}{real} (50% is chance){by}"


def _seconds(work: Work) -> float:
    return work.blurs * MOST_PAIRS * two_sample.TRIALS * two_sample.STEPS * work.network_step


RECORD = SectionRecord(
    title="Two-sample test",
    question="can generated tiles be told from real ones?",
    make=lambda data, options: [make_section(data, options.seed, options.device, options.blurs_px)],
    seconds=_seconds,
    lines=(
        SummaryLine(
            1, "Told from real tiles", _told_from_real, "not known, with so few tiles or as the network did not learn",
            says="how many of 100 tiles a small network sorts rightly into generated and real, or a linear classifier "
            "of the features below; the better of the two counts",
            best="near 50 %, and near the same for real against real",
        ),
    ),
)  # fmt: skip
