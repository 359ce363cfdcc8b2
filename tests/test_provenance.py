"""What a file was made from, and the sentence where that is another run."""

import pytest

from pfiles.errors import InputError
from pfiles.provenance import Provenance, require_same_run, without


def test_one_sentence_names_what_differs(capsys):
    note = {"data": {"source": "a", "fingerprint": "x"}, "seed": 1, "settings": {"a": {"b": [1, 2]}, "old": 1}}
    recorded = Provenance.from_note(note)
    assert recorded.as_note() == note
    require_same_run(recorded, Provenance(data={"source": "renamed", "fingerprint": "x"}), "the file")
    with_profiles = Provenance(data=note["data"] | {"profiles": [["none", 3], ["sRGB", 4]]})
    assert recorded.without("seed", "settings").differences(with_profiles) == {}
    other = Provenance(data={"source": "b", "fingerprint": "y"}, settings={"a": {"b": [1, 3]}})
    with pytest.raises(InputError) as refused:
        require_same_run(recorded, other, "It")
    assert str(refused.value) == (
        "It belongs to another run (data.fingerprint was 'x' and is 'y'; data.source was 'a' and is 'b'; settings.a.b "
        "was [1, 2] and is [1, 3]): name the data and settings it was made with, or another folder as out."
    )
    assert capsys.readouterr().out == ""
    require_same_run(None, Provenance(seed=1), "gen_3")
    assert capsys.readouterr().out.startswith("gen_3 has no provenance")
    newer = Provenance(seed=1, inputs={"new": 2})
    assert recorded.differences(Provenance(seed=1)) != {} == recorded.differences(newer, shared=True)
    assert without(note, "seed", "settings.a.b") == {"data": note["data"], "settings": {"a": {}, "old": 1}}
    assert recorded.without("seed").as_note() == {name: note[name] for name in ("data", "settings")}


def test_a_setting_that_an_older_version_did_not_have_had_its_published_value():
    """clip_norm is published as None; a group that is not recorded at all is another matter."""
    recorded = Provenance(settings={"training": {"epochs": 3, "optimizer": "adam"}})
    now = {"epochs": 3, "optimizer": "adam", "clip_norm": None}
    assert recorded.differences(Provenance(settings={"training": now})) == {}
    different = recorded.differences(Provenance(settings={"training": now | {"clip_norm": 1.0}}))
    assert different == {"settings.training.clip_norm": (None, 1.0)}
    whole = recorded.differences(Provenance(settings={"training": now, "finetuning1": {"clip_norm": None}}))
    assert whole == {}  # nothing and None are one in a note
    assert recorded.differences(Provenance(settings={"training": now, "finetuning1": {"decay": "constant"}}))


@pytest.mark.parametrize(("gamma", "different"), [(None, {}), (5.0, {"settings.diffusion.min_snr_gamma": (5.0, None)})])
def test_a_setting_that_is_no_more_counts_where_it_was_in_use(gamma, different):
    recorded = Provenance(settings={"diffusion": {"batch_size": 8, "min_snr_gamma": gamma}})
    assert recorded.differences(Provenance(settings={"diffusion": {"batch_size": 8}})) == different
