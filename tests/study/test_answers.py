"""Files that come back: one sentence for each that does not count, and nothing is scored before."""

import json

import numpy as np
import pytest

from pfiles.errors import InputError
from pfiles.study.answers import read_study
from tests.study.conftest import answers_of, perfect, signed, write_study


def change(path, resign=True, **values):
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps(signed(content) if resign else content))


def files(folder):
    return sorted(folder.glob("*.json"))


def test_answers_stand_beside_the_truth(study):
    folder, key = study
    of_files, table = read_study(files(folder))
    assert of_files.study == key["study"]
    assert len(table) == 3 * len(key["trials"])
    for row in table.itertuples():
        assert row.trial == key["orders"][str(row.reader)][row.place - 1]
        assert (row.answer, row.seconds) == (perfect(key["trials"][row.trial])[0], 1.5)
    assert read_study([folder / "answers_reader_2.json"])[1].reader.unique().tolist() == [2]  # the key lies beside it


def test_the_checksum_is_that_of_the_page():
    """CRC-32 of JSON without spaces, as JavaScript writes it: the value of node's zlib.crc32 for this text."""
    text = '{"kind":"x","answers":[{"comment":"µ\\n\\"q\\""}]}'
    assert signed(json.loads(text))["checksum"] == __import__("zlib").crc32(text.encode())


def test_answers_of_another_study(study, tmp_path):
    other = write_study(tmp_path / "other")
    (study[0] / "answers_reader_2.json").write_text(json.dumps(answers_of(other, 2, perfect)))
    with pytest.raises(InputError, match=r"reader_2\.json holds answers to another study than that of the key"):
        read_study(files(study[0]))


def test_edited_answers(study):
    path = study[0] / "answers_reader_2.json"
    path.write_text(path.read_text().replace('"sure": 3', '"sure": 2', 1))
    with pytest.raises(InputError, match=r"reader_2\.json was changed after it was saved"):
        read_study(files(study[0]))


def test_two_files_of_one_reader(study):
    folder, _ = study
    (folder / "answers_reader_2 (1).json").write_text((folder / "answers_reader_2.json").read_text())
    with pytest.raises(InputError, match=r"are both of reader 2: name the one that counts"):
        read_study(files(folder))


def test_half_done_answers(study):
    path = study[0] / "answers_reader_3.json"
    change(path, answers=json.loads(path.read_text())["answers"][:7])
    with pytest.raises(InputError, match=r"not finished, as 7 of 24 tiles have an answer: ask reader 3 to go on"):
        read_study(files(study[0]))


def test_answers_of_another_version(study):
    change(study[0] / "answers_reader_1.json", version=2)
    with pytest.raises(InputError, match=r"reader_1\.json is of version 2 .* and this is version 1"):
        read_study(files(study[0]))


@pytest.mark.parametrize(
    "broken",
    [
        {"answer": "perhaps"}, {"sure": 4}, {"sure": True}, {"tile": 2}, {"comment": None}, {"more": 1},
        {"milliseconds": np.pi},
    ],
)  # fmt: skip
def test_answers_that_no_page_saves(study, broken):
    path = study[0] / "answers_reader_1.json"
    answers = json.loads(path.read_text())["answers"]
    change(path, answers=[answers[0] | broken, *answers[1:]])
    with pytest.raises(InputError, match="does not hold one answer to each tile"):
        read_study(files(study[0]))


def test_other_files_and_keys(study, tmp_path):
    folder, key = study
    with pytest.raises(InputError, match="None of these files holds answers"):
        read_study([folder / "key.json"])
    with pytest.raises(InputError, match="There is no file"):
        read_study([folder / "absent.json"])
    (folder / "z.json").write_text("{}")
    with pytest.raises(InputError, match=r"z\.json is neither the key nor the answers"):
        read_study(files(folder))
    (folder / "z.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"z\.json is not valid JSON"):
        read_study(files(folder))
    (folder / "z.json").unlink()
    for damaged in ({"orders": {"1": [0, 0]}}, {"trials": []}, {"question": "why"}):
        (folder / "key.json").write_text(json.dumps(key | damaged))
        with pytest.raises(InputError, match=r"key\.json was changed and is no key"):
            read_study(files(folder))
    (folder / "key.json").unlink()
    with pytest.raises(InputError, match="The key of the study is not there"):
        read_study(files(folder))
