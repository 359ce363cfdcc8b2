"""The key of a reader study and the files that come back: read, checked, and put side by side."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pfiles.errors import InputError
from pfiles.paths import read_json
from pfiles.study.form import VERSION
from pfiles.study.trials import Kind, Question

KEY, ANSWERS = "key of a reader study", "answers of a reader study"  # under "kind" in each file
KEY_FILE = "key.json"
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, config=STRICT)
class Truth:
    """What a tile is, see `trials.Trial`."""

    kind: Kind
    cluster: int
    source: str
    repeats: int | None = None


@dataclass(frozen=True, config=STRICT)
class Key:
    """All that is known of a study and stands on no reader's page.

    study: its name, drawn by chance. orders: the places of the tiles in each reader's order, by the reader's number.
    side: of the tiles, pixels. scale: pixels of the page for each of them. made_from: the provenance of the generated
    tiles, in plain values. made: the day.
    """

    kind: str
    version: int
    study: str
    question: Question
    n_clusters: int
    names: Mapping[str, str]
    side: int
    scale: float
    mpp: float | None
    seed: int
    made: str
    made_from: Mapping[str, Any]
    trials: list[Truth]
    orders: Mapping[str, list[int]]


@dataclass(frozen=True, config=STRICT)
class Answer:
    """What a reader said of the tile at a place of their order, from 1. sure: 1 to 3. milliseconds: it took."""

    tile: int
    answer: str
    sure: int
    comment: str
    milliseconds: int


def read_study(paths: Sequence[Path]) -> tuple[Key, pd.DataFrame]:
    """The key, and a row for each answer: reader, place (from 1, in the reader's order), trial, kind, cluster, repeats
    (-1 for none), answer, sure, comment, seconds.

    paths: files of answers, and the key, which is also found beside them. InputError for a file that is neither, is of
    another study or version, was changed, is not finished, or is of a reader who has another file.
    """
    contents = {path: _content(path) for path in paths}
    keys = [path for path, content in contents.items() if content.get("kind") == KEY]
    answered = [path for path, content in contents.items() if content.get("kind") == ANSWERS]
    if len(keys) > 1:
        raise InputError(f"{keys[0]} and {keys[1]} are both the key of a study: name the files of one study.")
    if not answered:
        raise InputError("None of these files holds answers: put what the readers saved beside the key, and name it.")
    path = keys[0] if keys else answered[0].parent / KEY_FILE
    if not path.exists():
        raise InputError(f"The key of the study is not there: name {KEY_FILE} too, or put it beside {answered[0]}.")
    key = _key(path)
    files: dict[int, Path] = {}
    rows = []
    for file in answered:
        reader, answers = _answers(file, contents[file], key)
        if reader in files:
            raise InputError(f"{files[reader]} and {file} are both of reader {reader}: name the one that counts.")
        files[reader] = file
        rows += _rows(key, reader, answers)
    return key, pd.DataFrame(rows).sort_values(["reader", "place"], ignore_index=True)


def _content(path: Path) -> dict[str, Any]:
    """The content of a file that is the key or holds answers; InputError for others."""
    if not path.is_file():
        raise InputError(f"There is no file {path}: name the files of answers, such as study/*.json.")
    content = read_json(path, {})
    if content.get("kind") not in (KEY, ANSWERS):
        raise InputError(f"{path} is neither the key nor the answers of a reader study: leave it out.")
    if content.get("version") != VERSION:
        raise InputError(
            f"{path} is of version {content.get('version')!r} of the reader study, and this is version {VERSION}: "
            "score it with the version of the project that made its pages."
        )
    return content


def _key(path: Path) -> Key:
    content = _content(path)
    if content["kind"] != KEY:
        raise InputError(f"{path} is not the key of a study: put the one that was written with the pages there.")
    try:
        key = TypeAdapter(Key).validate_json(json.dumps(content))
        fits = all(sorted(order) == list(range(len(key.trials))) for order in key.orders.values())
    except ValidationError:
        fits = False
    if not fits:
        raise InputError(f"{path} was changed and is no key of a study any more: put the one of the start there.")
    return key


def checksum(content: Mapping[str, Any]) -> int:
    """The CRC-32 of a file of answers without its checksum, as the page computes it: against accidents."""
    text = json.dumps({k: v for k, v in content.items() if k != "checksum"}, separators=(",", ":"), ensure_ascii=False)
    return zlib.crc32(text.encode(errors="replace"))


def _answers(path: Path, content: Mapping[str, Any], key: Key) -> tuple[int, list[Answer]]:
    """The reader and the answers in a file; InputError where they are not what the reader's page saved at the end."""
    if content.get("checksum") != checksum(content):
        raise InputError(f"{path} was changed after it was saved: ask the reader for the file as it was.")
    reader, number = content.get("reader"), len(key.trials)
    if content.get("study") != key.study or str(reader) not in key.orders:
        raise InputError(f"{path} holds answers to another study than that of the key: name the files of one study.")
    entries = content.get("answers")
    if isinstance(entries, list) and len(entries) < number:
        raise InputError(
            f"{path} is not finished, as {len(entries)} of {number} tiles have an answer: ask reader {reader} to go "
            "on, or leave the file out."
        )
    options = {"real", "generated"} if key.question == "real" else {str(c + 1) for c in range(key.n_clusters)}
    try:
        answers = TypeAdapter(list[Answer]).validate_json(json.dumps(entries))
    except ValidationError:
        answers = []
    tiles = [answer.tile for answer in answers]
    if tiles != list(range(1, number + 1)) or any(a.answer not in options or a.sure not in (1, 2, 3) for a in answers):
        raise InputError(f"{path} does not hold one answer to each tile: ask the reader for the file as it was saved.")
    return int(str(reader)), answers


def _rows(key: Key, reader: int, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    rows = []
    for answer, trial in zip(answers, key.orders[str(reader)], strict=True):
        truth = key.trials[trial]
        rows.append({
            "reader": reader, "place": answer.tile, "trial": trial, "kind": truth.kind, "cluster": truth.cluster,
            "repeats": -1 if truth.repeats is None else truth.repeats, "answer": answer.answer, "sure": answer.sure,
            "comment": answer.comment, "seconds": answer.milliseconds / 1000,
        })  # fmt: skip
    return rows
