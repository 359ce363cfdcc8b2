"""A study of made tiles, and the files that simulated readers give back."""

import json

import numpy as np
import pytest
import torch

from pfiles import reader_study
from pfiles.study import form, trials
from pfiles.study.answers import ANSWERS, checksum
from tests.conftest import make_tiles

K, SIDE = 3, 48
HOSTILE = "</script><b>$x$ & 'keratin'"


def made_trials(question="real", tiles=20, seed=1):
    """Smooth tiles in blocks of 12 px stand for real ones, noise for generated ones, flat ones for examples."""
    counts = trials.counts_of(question, tiles)
    real = torch.tensor(make_tiles(counts.held_out)).permute(0, 3, 1, 2)
    rng = np.random.default_rng(seed)
    generated = torch.tensor(rng.integers(0, 256, (counts.generated, 3, SIDE, SIDE), dtype=np.uint8))
    flat = torch.arange(40, 40 + 2 * K, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, SIDE, SIDE)
    sets = [
        [trials.Trial(image, kind, i % K + 1, f"{kind} {i}") for i, image in enumerate(images)]
        for kind, images in (("real", real), ("generated", generated), ("example", flat))
    ]
    return counts, trials.make_trials(counts, *sets, seed), sets[2]


def write_study(folder, question="real", readers=3, mpp=0.5, tiles=20):
    _, every, examples = made_trials(question, tiles)
    of_clusters = {
        number: torch.stack([e.image for e in examples if e.cluster == number]) for number in range(1, K + 1)
    }
    look = form.Look(question, 4, mpp, K, {2: HOSTILE}, of_clusters)
    reader_study.write(folder, look, every, readers, 1, {"data": {"source": "made tiles"}})
    return json.loads((folder / "key.json").read_text())


def answers_of(key, reader, judge):
    """The file of a reader who answers (answer, sure) = judge(truth)."""
    said = [judge(key["trials"][trial]) for trial in key["orders"][str(reader)]]
    answers = [
        {"tile": i, "answer": answer, "sure": sure, "comment": "", "milliseconds": 1500}
        for i, (answer, sure) in enumerate(said, 1)
    ]
    content = {
        "kind": ANSWERS, "version": form.VERSION, "study": key["study"], "reader": reader, "tiles": len(answers),
        "answers": answers,
    }  # fmt: skip
    return signed(content)


def signed(content):
    return content | {"checksum": checksum(content)}


def perfect(truth):
    return ("real" if truth["kind"] == "real" else "generated"), 3


@pytest.fixture
def study(tmp_path):
    """The folder of a study with the answers of three readers who are right everywhere, and its key."""
    folder = tmp_path / "study"
    key = write_study(folder)
    for reader in (1, 2, 3):
        (folder / f"answers_reader_{reader}.json").write_text(json.dumps(answers_of(key, reader, perfect)))
    return folder, key
