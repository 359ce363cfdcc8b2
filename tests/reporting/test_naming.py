"""The form in which clusters are named: what is filled in is saved at once, for one reader."""

from datetime import UTC, datetime

import pytest

from pfiles.names import ReaderNames
from pfiles.reporting import naming
from tests.reporting.conftest import make_atlas


@pytest.fixture
def named(tmp_path, without_overlays):
    *_, rows = make_atlas()
    reading = ReaderNames.load(tmp_path / "names_anna.json", "one", 3)
    box = naming.form(rows, reading)
    head, *parts = box.children
    fields = {number: parts[2 * number - 2].children for number in (1, 2, 3)}
    return rows, reading, head, fields


def names_of(reading):
    return ReaderNames.load(reading.path, "one", 3)


def test_what_is_filled_in_is_saved_at_once(named):
    _, reading, head, fields = named
    _, name, mark, _, note, message = fields[2]
    for text in ("k", "ke", "keratin"):
        name.value = text
        assert names_of(reading).names == {2: text}
    mark.value, note.value = "unsure", "a <b>note</b>"
    fields[3][3].value = 2  # the same as cluster 2
    assert message.value == "saved"
    assert names_of(reading).entries[2].mark == "unsure"
    assert names_of(reading).entries[2].note == "a <b>note</b>"
    assert names_of(reading).names == {2: "keratin", 3: "keratin"}
    fields[3][3].value = 0  # alone again
    assert names_of(reading).names == {2: "keratin"}
    assert [field[3].label for field in fields.values()] == ["stands alone"] * 3
    fields[3][3].value = 2
    assert "2 of 3" in head.children[1].children[0].value
    name.value = "7"
    assert message.value.startswith("Not saved.")
    assert names_of(reading).names[2] == "keratin"


def test_the_form_shows_what_was_saved_before_and_nobody_elses(named):
    rows, reading, *_ = named
    reading.save({1: {"name": "dermis", "mark": "sure"}})
    other = ReaderNames.load(reading.path.with_name("names_ben.json"), "one", 3)
    fields = [part.children for part in naming.form(rows, names_of(reading)).children[1::2]]
    assert [field[1].value for field in fields] == ["dermis", "", ""]
    assert [field[2].value for field in fields] == ["sure", "", ""]
    assert [part.children[1].value for part in naming.form(rows, other).children[1::2]] == ["", "", ""]


def uploaded(name, content):
    when = datetime.now(UTC)
    return {"name": name, "type": "text/csv", "size": len(content), "last_modified": when, "content": content}


def test_tables_go_out_and_come_in(named):
    _, reading, head, fields = named
    write, upload = head.children[1].children[2:]
    fields[1][1].value = "=keratin"
    write.click()
    table = reading.path.with_suffix(".csv").read_bytes()
    assert b"1,'=keratin," in table
    upload.value = [uploaded("t.csv", table.replace(b"'=", b""))]
    assert "Read t.csv" in head.children[2].value
    assert names_of(reading).names == {1: "keratin"}
    assert fields[1][1].value == "keratin"
    upload.value = [uploaded("u.csv", b"no table")]
    assert "lacks" in head.children[2].value
    assert names_of(reading).names == {1: "keratin"}
