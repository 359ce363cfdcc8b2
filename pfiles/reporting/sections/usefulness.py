"""Of what use generated tiles are to a classifier: of the clusters, and of labels that tiles may have."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pfiles.measuring import tile_network, usefulness
from pfiles.reporting.page import Section
from pfiles.reporting.sections.data import EvaluationData, too_few
from pfiles.reporting.sections.record import SectionRecord, SummaryLine, Work
from pfiles.reporting.tables import plain


def make_section(data: EvaluationData, seed: int, device: torch.device | str) -> Section:
    """`usefulness.cas`: a classifier that learns from generated tiles, tested on held-out real ones.

    Without held-out tiles of known clusters every other real one is held out.
    """
    real_ids, generated_ids = data.ids
    if data.held_out is None or data.held_out_ids is None:
        real, held_out = ((data.real[half], real_ids[half]) for half in (slice(0, None, 2), slice(1, None, 2)))
    else:
        real, held_out = (data.real, real_ids), (data.held_out, data.held_out_ids)
    sides = [(images, torch.as_tensor(ids)) for images, ids in ((data.generated, generated_ids), real, held_out)]
    if (fewest := min(len(images) for images, _ in sides)) < usefulness.MIN_TILES:
        return Section("Use to a classifier", [too_few(usefulness.MIN_TILES, fewest)])
    result = usefulness.cas(*sides[0], *sides[1], *sides[2], data.k, seed, device)
    scores = result.table.accuracy
    notes = [
        f"A small network that learnt the clusters from generated tiles sorts {scores[usefulness.GENERATED]:.1%} of "
        f"{result.test_tiles} held-out real tiles rightly; from as many real tiles {scores[usefulness.REAL]:.1%}: "
        f"generated tiles are worth {result.of_real:.0%} of real ones (CAS, Ravuri and Vinyals 2019). Intervals are "
        f"over {usefulness.TRIALS} trainings."
    ]
    recorded = {
        "cas": scores[usefulness.GENERATED],
        "cas_of_real_tiles": scores[usefulness.REAL],
        "of_use_as_real": result.of_real,
        "details": {"usefulness": plain(result.table), "usefulness by cluster": plain(result.by_class)},
    }
    return Section("Use to a classifier", notes, [result.table, result.by_class], scores=recorded)


def make_labels_section(data: EvaluationData, seed: int, device: torch.device | str) -> Section:
    """`usefulness.with_labels`: a classifier of the tissue, tested on held-out real tiles."""
    title = "Use to a classifier of the labels"
    if data.real_labels is None or data.held_out is None or data.held_out_labels is None:
        return Section(title, ["Left out: the tiles have no labels."])
    real_ids, generated_ids = data.ids
    labelled = data.real_labels != ""
    names = np.unique(data.real_labels[labelled])
    tested = np.isin(data.held_out_labels, names)
    if (fewest := min(len(data.generated), labelled.sum(), tested.sum())) < usefulness.MIN_TILES:
        return Section(title, [too_few(usefulness.MIN_TILES, fewest)])
    if len(names) < 2:
        return Section(title, [f"Left out: all labelled tiles are {names[0]}."])
    result = usefulness.with_labels(
        data.generated, torch.as_tensor(generated_ids), data.real[labelled],
        torch.as_tensor(real_ids[labelled]), data.real_labels[labelled], data.held_out[tested],
        data.held_out_labels[tested], seed, device,
    )  # fmt: skip
    scores = result.table.accuracy
    notes = [
        f"Of {result.test_tiles} held-out real tiles, a small network that learnt the labels {', '.join(names)} sorts "
        f"{scores[usefulness.REAL]:.1%} rightly from real tiles, {scores[usefulness.GENERATED]:.1%} from generated "
        f"ones, each with the label that most real tiles of its cluster have, and {scores[usefulness.BOTH]:.1%} from "
        f"both. Intervals are over {usefulness.TRIALS} trainings."
    ]
    recorded = {
        "label_accuracy": scores.to_dict(),
        "details": {"labels": plain(result.table), "labels by class": plain(result.by_class)},
    }
    return Section(title, notes, [result.table, result.by_class], scores=recorded)


def _of_use(scores: Mapping[str, Any]) -> str | None:
    return "as {of_use_as_real:.0%} of real tiles".format_map(scores) if "of_use_as_real" in scores else None


def _seconds(work: Work) -> float:
    """Seconds of the networks that learn the clusters, from generated tiles and from as many real ones."""
    batches = -(-min(usefulness.TILES, work.generated) // tile_network.BATCH_SIZE)
    return 2 * usefulness.TRIALS * usefulness.EPOCHS * batches * work.network_step


RECORD = SectionRecord(
    title="Use to a classifier (CAS)",
    question="could one learn from them?",
    applies=lambda data: data.real_ids is not None,
    make=lambda data, options: [make_section(data, options.seed, options.device)]
    + [make_labels_section(data, options.seed, options.device)] * (data.real_labels is not None),
    seconds=_seconds,
    lines=(
        SummaryLine(
            4, "Of use to a classifier", _of_use, "not known without clusters or with so few tiles",
            says="what is learnt from generated tiles, as a share of what is learnt from as many real ones",
            best="near 100 %",
        ),
    ),
)  # fmt: skip
