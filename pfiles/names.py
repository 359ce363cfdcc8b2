"""What people call the clusters: a file for each reader, how far readers agree, and clusters found by their name."""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from pfiles.errors import InputError
from pfiles.machine.locks import locked
from pfiles.paths import atomic_write, read_json, write_json
from pfiles.spreadsheet import as_csv, number_in, parse_table

MARKS = ("sure", "unsure", "artefact")
LONGEST = {"name": 60, "note": 2000}  # characters
COLUMNS = ("cluster", "name", "note", "mark", "same_as", "fingerprint")  # of a reader's table


@dataclass(frozen=True)
class Entry:
    """What a reader says of a cluster.

    mark: one of MARKS, or "". same_as: the number of the cluster that it is merged with, whose name it then has.
    """

    name: str = ""
    note: str = ""
    mark: str = ""
    same_as: int | None = None


@dataclass(frozen=True)
class ReaderNames:
    """What one reader says of the clusters of one fingerprint, by their numbers from 1; `save` changes and keeps it.

    path: the reader's file, which holds other clusters' names as well, each under their own fingerprint.
    """

    path: Path
    fingerprint: str
    entries: dict[int, Entry]

    @classmethod
    def load(cls, path: Path, fingerprint: str, n_clusters: int) -> "ReaderNames":
        """The entries of the file for these clusters; an entry is empty if the file has none."""
        reading = cls(path, fingerprint, {number: Entry() for number in range(1, n_clusters + 1)})
        stored = (read_json(path, {}).get("clusters") or {}).get(fingerprint, {})
        try:
            reading.entries.update(
                _checked({int(number): Entry(**entry) for number, entry in stored.items()}, n_clusters)
            )
        except (AttributeError, TypeError, ValueError, InputError) as error:
            raise InputError(f"{path} does not hold a reader's names ({error}): mend it or move it away.") from error
        return reading

    @property
    def reader(self) -> str:
        return self.path.stem.removeprefix("names_")

    @property
    def names(self) -> dict[int, str]:
        """The name of each cluster that has one; an artefact without a name is called so."""
        named = {}
        for number, entry in self.entries.items():
            while entry.same_as:
                entry = self.entries[entry.same_as]
            if name := entry.name or (entry.mark == "artefact") * "artefact":
                named[number] = name
        return named

    def save(self, changes: Mapping[int, Mapping[str, Any]]) -> None:
        """Change entries and write the file, whole or not at all.

        changes: fields of `Entry` by the cluster's number. InputError, and nothing is changed, where one is wrong.
        """
        with locked(self.path.parent):  # the same reader may be at work in another window
            self.entries.update(ReaderNames.load(self.path, self.fingerprint, len(self.entries)).entries)
            changed = {n: replace(self.entries.get(n, Entry()), **fields) for n, fields in changes.items()}
            entries = _checked(self.entries | changed, len(self.entries))
            document = read_json(self.path, {})
            stored = {number: asdict(entry) for number, entry in entries.items() if entry != Entry()}
            clusters = (document.get("clusters") or {}) | {self.fingerprint: stored}
            write_json(self.path, document | {"reader": self.reader, "clusters": clusters})
            self.entries.update(entries)

    def as_csv(self) -> bytes:
        """A table for a spreadsheet, a row for each cluster; `read_csv` takes it back."""
        rows = [
            {"cluster": number, "fingerprint": self.fingerprint, **asdict(entry), "same_as": entry.same_as or ""}
            for number, entry in self.entries.items()
        ]
        # the mark by which spreadsheets know UTF-8
        return b"\xef\xbb\xbf" + as_csv(pd.DataFrame(rows, columns=COLUMNS, dtype=object))

    def write_csv(self) -> Path:
        """Write `as_csv` beside the reader's file."""
        path = self.path.with_suffix(".csv")
        with atomic_write(path) as file:
            file.write(self.as_csv())
        return path

    def read_csv(self, content: bytes) -> None:
        """Take over the rows of a table such as `as_csv` gives, as any spreadsheet saves it, and save them.

        Clusters without a row stay as they are. InputError, and nothing is changed, where it is not such a table, or
        one of other clusters.
        """
        table = parse_table(content, "The table")
        if missing := set(COLUMNS) - set(table.columns):
            raise InputError(
                f"The table lacks {', '.join(sorted(missing))}: edit the one written here, and keep its columns."
            )
        changes = {}
        for line, row in zip(table.index, table.to_dict("records"), strict=True):
            cluster, same = (number_in(row[name]) for name in ("cluster", "same_as"))
            if cluster is None or (same is None and row["same_as"]) or {cluster % 1, (same or 0) % 1} != {0}:
                raise InputError(f"Line {line} of the table has no number of a cluster where one belongs: mend it.")
            if cluster in changes:
                raise InputError(f"The table has two rows for cluster {cluster:g}: keep one.")
            if row["fingerprint"] != self.fingerprint:
                raise InputError(
                    "The table is of other clusters, such as those before another training: names do not fit these."
                )
            same_as = None if same is None else int(same)
            changes[int(cluster)] = {
                "name": row["name"], "note": row["note"], "mark": row["mark"].lower(), "same_as": same_as,
            }  # fmt: skip
        self.save(changes)


def _checked(entries: Mapping[int, Entry], n_clusters: int) -> dict[int, Entry]:
    """The entries with their texts cleaned; InputError names the first that is wrong."""
    clean = {}
    for number, entry in entries.items():
        if number not in range(1, n_clusters + 1):
            raise InputError(f"Clusters are numbered from 1 to {n_clusters}, but there is a name for {number!r}.")
        name = "".join(c for c in " ".join(entry.name.split()) if c.isprintable())
        note = "".join(c for c in entry.note.strip() if c.isprintable() or c == "\n")
        for kind, text in (("name", name), ("note", note)):
            if len(text) > LONGEST[kind]:
                raise InputError(
                    f"A {kind} has at most {LONGEST[kind]} characters, but that of cluster {number} has {len(text)}."
                )
        if re.fullmatch("[+-]?[0-9]+", name):
            raise InputError(
                f"A name of digits alone would be taken for a cluster's number: give cluster {number} another."
            )
        if entry.mark not in ("", *MARKS):
            raise InputError(
                f"The mark of cluster {number} must be {', '.join(MARKS)} or empty, but is {entry.mark!r}."
            )
        if entry.same_as is not None and entry.same_as not in range(1, n_clusters + 1):
            raise InputError(f"Cluster {number} is merged with {entry.same_as!r}, which is no cluster.")
        clean[number] = Entry(name, note, entry.mark, entry.same_as)
    for number in clean:
        at: int | None = number
        visited: set[int] = set()
        while at in clean and clean[at].same_as:
            visited.add(at)
            at = clean[at].same_as
            if at in visited:
                raise InputError(f"Cluster {number} is merged in a circle: let one of them stand alone.")
    return clean


def require_reader_name(reader: str) -> str:
    """The name of a reader as part of a file's name. InputError if it cannot be."""
    if not isinstance(reader, str) or not re.fullmatch(r"\w(?:[\w .-]{0,38}[\w.-])?", reader):
        raise InputError(f"reader must be a short name of letters and digits, such as 'anna', but is {reader!r}.")
    return reader


def load_reader_names(folder: Path, fingerprint: str, n_clusters: int) -> list[ReaderNames]:
    """The names of all readers whose files in `folder` name the clusters of that fingerprint."""
    readings = (ReaderNames.load(path, fingerprint, n_clusters) for path in sorted(folder.glob("names_*.json")))
    return [reading for reading in readings if reading.names]


def majority_names(readings: Sequence[ReaderNames]) -> dict[int, str]:
    """The name of each cluster on which more than half of those who named it agree, in the first one's spelling."""
    names = {}
    for number in sorted({number for reading in readings for number in reading.names}):
        spellings = [reading.names[number] for reading in readings if number in reading.names]
        word, count = Counter(map(str.casefold, spellings)).most_common(1)[0]
        if 2 * count > len(spellings):
            names[number] = next(name for name in spellings if name.casefold() == word)
    return names


def agreement(readings: Sequence[ReaderNames]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How far readers agree, and where they do not.

    The first table has a row for each two readers: the number of clusters that both named, the share of these that they
    call the same (upper and lower case alike), and Cohen's kappa (Cohen 1960), which is 1 for full agreement and 0 for
    what chance would give; NaN where both have one and the same name for everything, or no cluster in common. The
    second has a row for each cluster that not all who named it call the same, and a column for each reader.
    """
    from sklearn.metrics import cohen_kappa_score

    pairs, differing = {}, {}
    for a, b in combinations(readings, 2):
        both = sorted(a.names.keys() & b.names.keys())
        first, second = ([reading.names[number].casefold() for number in both] for reading in (a, b))
        same = sum(x == y for x, y in zip(first, second, strict=True))
        pairs[f"{a.reader}, {b.reader}"] = {
            "clusters": len(both),
            "called the same": same / len(both) if both else float("nan"),
            "kappa": cohen_kappa_score(first, second) if len({*first, *second}) > 1 else float("nan"),
        }
    for number in sorted({number for reading in readings for number in reading.names}):
        name_by_reader = {reading.reader: reading.names[number] for reading in readings if number in reading.names}
        if len(set(map(str.casefold, name_by_reader.values()))) > 1:
            marks = {reading.reader: reading.entries[number].mark for reading in readings}
            differing[f"cluster {number}"] = {
                reader: f"{name} ({marks[reader]})" if marks[reader] not in ("", name) else name
                for reader, name in name_by_reader.items()
            }
    return pd.DataFrame.from_dict(pairs, orient="index"), pd.DataFrame.from_dict(differing, orient="index").fillna("")


def find_clusters(name_or_number: str | int, names: Mapping[int, str], n_clusters: int) -> list[int]:
    """The clusters, 0-based, of a name (upper and lower case alike), or the one of a number from 1.

    InputError for what is neither, with the nearest names.
    """
    text = str(name_or_number).strip()
    if re.fullmatch("[+-]?[0-9]+", text):
        if not 1 <= int(text) <= n_clusters:
            raise InputError(f"Clusters are numbered from 1 to {n_clusters}, but {text} was asked for.")
        return [int(text) - 1]
    if matches := [number - 1 for number, name in sorted(names.items()) if name.casefold() == text.casefold()]:
        return matches
    spellings = {name.casefold(): name for name in names.values()}
    nearest = [spellings[word] for word in difflib.get_close_matches(text.casefold(), spellings, n=3)]
    if not spellings:
        hint = "no cluster has a name yet"
    elif nearest:
        hint = f"the nearest names are {', '.join(nearest)}"
    else:
        all_names = list(spellings.values())
        hint = f"the names are {', '.join(all_names[:10])}" + f" and {len(all_names) - 10} more" * (len(all_names) > 10)
    raise InputError(f"No cluster is called {text!r}: {hint}; a number from 1 to {n_clusters} will do too.")
