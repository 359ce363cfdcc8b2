"""Names of clusters: kept at once and never lost, never stuck to other clusters; readers compared by hand."""

import csv
import io
import json

import numpy as np
import pytest

from pfiles.errors import InputError
from pfiles.names import Entry, ReaderNames, agreement, find_clusters, majority_names, require_reader_name

K = 4


def reading(folder, reader, names=None, fingerprint="one"):
    loaded = ReaderNames.load(folder / f"names_{reader}.json", fingerprint, K)
    loaded.save({number: {"name": name} for number, name in (names or {}).items()})
    return loaded


def test_what_is_saved_is_there_at_once_and_sticks_to_its_clusters(tmp_path):
    anna = reading(tmp_path, "anna", {1: "  keratin \n pearls", 2: "dermis"})
    anna.save({2: {"mark": "sure", "note": "two\nlines"}, 3: {"mark": "artefact"}, 4: {"same_as": 1}})
    again = ReaderNames.load(anna.path, "one", K)
    assert again.names == {1: "keratin pearls", 2: "dermis", 3: "artefact", 4: "keratin pearls"}
    assert again.entries[2] == Entry("dermis", "two\nlines", "sure")
    assert again.reader == "anna"
    other = reading(tmp_path, "anna", {1: "lung"}, "two")
    assert other.names == {1: "lung"}
    assert ReaderNames.load(anna.path, "one", K).names == anna.names
    assert ReaderNames.load(anna.path, "three", K).names == {}
    assert list(tmp_path.iterdir()) == [anna.path]


def test_a_reader_with_two_windows_loses_nothing(tmp_path):
    first, second = (reading(tmp_path, "anna") for _ in range(2))
    first.save({1: {"name": "keratin"}})
    second.save({2: {"name": "dermis"}})
    first.save({1: {"mark": "sure"}})
    assert ReaderNames.load(first.path, "one", K).names == {1: "keratin", 2: "dermis"} == first.names


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({1: {"name": " 12 "}}, "taken for a cluster's number"),
        ({1: {"name": "x" * 61}}, "at most 60 characters"),
        ({1: {"note": "x" * 2001}}, "at most 2000 characters"),
        ({1: {"mark": "maybe"}}, "sure, unsure, artefact or empty"),
        ({1: {"same_as": 5}}, "no cluster"),
        ({1: {"same_as": 2}, 2: {"same_as": 3}, 3: {"same_as": 1}}, "in a circle"),
        ({5: {"name": "x"}}, "from 1 to 4"),
    ],
)
def test_what_is_wrong_changes_nothing(tmp_path, changes, sentence):
    anna = reading(tmp_path, "anna", {2: "dermis"})
    before = anna.path.read_bytes()
    with pytest.raises(InputError, match=sentence):
        anna.save({4: {"name": "good"}} | changes)
    assert anna.path.read_bytes() == before
    assert anna.names == {2: "dermis"}


def test_a_file_that_holds_something_else_is_refused_and_stays(tmp_path):
    path = tmp_path / "names_anna.json"
    for content in ({"clusters": {"one": {"1": {"colour": "red"}}}}, {"clusters": {"one": {"9": {"name": "x"}}}}):
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match="does not hold a reader's names"):
            ReaderNames.load(path, "one", K)
        assert json.loads(path.read_text()) == content


def test_a_reader_is_part_of_a_file_name():
    assert [require_reader_name(name) for name in ("anna", "Dr. Müller", "R2")] == ["anna", "Dr. Müller", "R2"]
    for wrong in ("", "../anna", "a/b", ".anna", " anna", "anna ", "a" * 41, "a\nb", 3):
        with pytest.raises(InputError, match="short name of letters"):
            require_reader_name(wrong)


def test_kappa_by_hand(tmp_path):
    """x x y y against x y y y: 3 of 4 agree, by chance 1/2 * 1/4 + 1/2 * 3/4 = 1/2, so kappa is 1/2."""
    anna = reading(tmp_path, "anna", {1: "X", 2: "x", 3: "y", 4: "y"})
    ben = reading(tmp_path, "ben", {1: "x", 2: "y", 3: "y", 4: "Y"})
    ben.save({2: {"mark": "unsure"}})
    pairs, differing = agreement([anna, ben])
    assert pairs.loc["anna, ben"].tolist() == pytest.approx([4, 0.75, 0.5])
    assert differing.to_dict("index") == {"cluster 2": {"anna": "x", "ben": "y (unsure)"}}


def test_clusters_that_one_reader_left_out_do_not_count(tmp_path):
    anna, ben = reading(tmp_path, "anna", {1: "x", 2: "y", 3: "z"}), reading(tmp_path, "ben", {1: "x", 2: "y"})
    pairs, differing = agreement([anna, ben])
    assert pairs.loc["anna, ben"].tolist() == pytest.approx([2, 1, 1])
    assert differing.empty
    pairs, _ = agreement([anna, reading(tmp_path, "cleo", {4: "x"})])
    assert pairs.clusters.tolist() == [0]
    assert pairs[["called the same", "kappa"]].isna().all(axis=None)
    same = [reading(tmp_path, name, dict.fromkeys(range(1, 5), "x")) for name in ("d", "e")]
    assert np.isnan(agreement(same)[0].kappa.iloc[0])


def test_a_name_counts_where_more_than_half_agree(tmp_path):
    anna = reading(tmp_path, "anna", {1: "Keratin", 2: "dermis", 3: "fat"})
    ben = reading(tmp_path, "ben", {1: "keratin", 2: "stroma", 3: "nerve"})
    assert majority_names([anna]) == {1: "Keratin", 2: "dermis", 3: "fat"}
    assert majority_names([anna, ben]) == {1: "Keratin"}
    assert majority_names([anna, ben, reading(tmp_path, "cleo", {2: "stroma", 4: "vessel"})]) == {
        1: "Keratin", 2: "stroma", 4: "vessel",
    }  # fmt: skip


def test_a_table_for_a_spreadsheet_and_back(tmp_path):
    names = {1: '=HYPERLINK("http://x")', 2: "+1, a; b", 3: "'=quoted", 4: "Überhornung"}
    anna = reading(tmp_path, "anna", names)
    anna.save({1: {"note": "-2", "mark": "sure"}, 2: {"same_as": 4}})
    rows = list(csv.reader(io.StringIO(anna.write_csv().read_bytes().decode("utf-8-sig"))))
    assert not [cell for row in rows for cell in row if cell.startswith(tuple("=+-@\t\r"))]
    assert [row[1] for row in rows[1:]] == ["'" + names[1], "'" + names[2], "'" + names[3], names[4]]
    as_saved_elsewhere = io.StringIO()
    csv.writer(as_saved_elsewhere, delimiter=";").writerows(rows)
    by_excel = as_saved_elsewhere.getvalue().replace("sure", "Sure").encode("cp1252") + b";;;;;;\r\n"
    for reader, table in (("ben", anna.as_csv()), ("cleo", as_saved_elsewhere.getvalue().encode()), ("dora", by_excel)):
        copy = reading(tmp_path, reader)
        copy.read_csv(table)
        assert copy.entries == anna.entries


def test_a_table_may_hold_some_clusters_only(tmp_path):
    anna = reading(tmp_path, "anna", {1: "keratin", 2: "dermis"})
    lines = anna.as_csv().decode("utf-8-sig").splitlines()
    anna.read_csv("\r\n".join([lines[0], lines[2].replace("dermis", "stroma")]).encode())
    assert anna.names == {1: "keratin", 2: "stroma"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text.replace(",one", ",two"), "of other clusters"),
        (lambda text: text.replace("same_as", "like"), "lacks same_as"),
        (lambda text: text.replace("\n2,", "\n1,"), "two rows for cluster 1"),
        (lambda text: text.replace("\n2,", "\ntwo,"), "Line 3 .* no number"),
        (lambda text: text.replace("sure", "certain"), "mark of cluster 1"),
        (lambda text: "", "lacks"),
        (lambda text: text.encode("utf-16").decode("latin-1"), "lacks|cannot be read"),
    ],
)
def test_a_wrong_table_changes_nothing(tmp_path, change, sentence):
    anna = reading(tmp_path, "anna", {1: "keratin", 2: "dermis"})
    anna.save({1: {"mark": "sure"}})
    before = anna.path.read_bytes()
    with pytest.raises(InputError, match=sentence):
        anna.read_csv(change(anna.as_csv().decode("utf-8-sig")).encode())
    assert anna.path.read_bytes() == before


def test_clusters_are_found_by_name_or_number():
    names = {1: "Keratin", 2: "dermis", 4: "keratin"}
    assert find_clusters(" keratin ", names, K) == [0, 3]
    assert find_clusters("2", names, K) == find_clusters(2, names, K) == find_clusters("DERMIS", names, K) == [1]
    for wrong, sentence in (
        ("keratine", r"'keratine': the nearest names are keratin; a number from 1 to 4"),
        ("zebra", "the names are keratin, dermis"),
        ("0", "numbered from 1 to 4"),
        ("-1", "numbered from 1 to 4"),
        ("5", "numbered from 1 to 4"),
    ):
        with pytest.raises(InputError, match=sentence):
            find_clusters(wrong, names, K)
    with pytest.raises(InputError, match="no cluster has a name yet"):
        find_clusters("keratin", {}, K)
