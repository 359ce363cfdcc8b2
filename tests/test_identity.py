"""Which run a file belongs to, and the sentence where it is another."""

import pytest

from pfiles.errors import InputError
from pfiles.identity import differences, same_identity, without


def test_one_sentence_names_what_differs(capsys):
    found = {"data": {"source": "a", "fingerprint": "x"}, "seed": 1, "settings": {"a": {"b": [1, 2]}, "old": 1}}
    same_identity(found, {"data": {"source": "renamed", "fingerprint": "x"}}, "the file")
    with pytest.raises(InputError) as refused:
        same_identity(found, {"data": {"source": "b", "fingerprint": "y"}, "settings": {"a": {"b": [1, 3]}}}, "It")
    assert str(refused.value) == (
        "It is of another run (data.fingerprint was 'x' and is 'y'; data.source was 'a' and is 'b'; settings.a.b was "
        "[1, 2] and is [1, 3]): name the data and settings it was made with, or another folder as out."
    )
    assert capsys.readouterr().out == ""
    same_identity(None, {"seed": 1}, "gen_3")
    assert capsys.readouterr().out.startswith("gen_3 does not say which run it is of")
    assert differences(found, {"seed": 1}) != {} == differences(found, {"seed": 1, "new": 2}, shared=True)
    assert without(found, "seed", "settings.a.b") == {"data": found["data"], "settings": {"a": {}, "old": 1}}
