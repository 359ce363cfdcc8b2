"""What a field costs, measured at tiny size."""

import pytest

from benchmarks import fields
from pfiles.paths import read_json


def test_fields_are_measured_beside_separate_tiles(tmp_path, capsys):
    fields.tiny_generator("cpu").save(tmp_path / "g")
    out = tmp_path / "fields.json"
    command = ["--from", str(tmp_path / "g"), "--sides", "64", "128", "--strides", "32", "--device", "cpu"]
    assert fields.main([*command, "--out", str(out)]) == 0
    report = read_json(out, {})
    assert [(row["side"], row["stride"]) for row in report["rows"]] == [(64, 64), (128, 64), (128, 32)]
    for row in report["rows"]:
        assert row["ratio"] == row["field"]["seconds"] / row["tiles"]["seconds"] > 0
        assert row["field"]["peak_mb"] > 50
    small, large, overlapping = (row["field"]["seconds"] for row in report["rows"])
    assert report["rows"][1]["tiles"] == report["rows"][2]["tiles"]
    assert overlapping > 0
    assert report["exponent"] == pytest.approx(fields.fit({1: {"seconds": small}, 4: {"seconds": large}})["exponent"])
    assert f"exponent of time over area {report['exponent']:.2f}" in capsys.readouterr().out


def test_a_whole_field_is_written_and_thrown_away(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert fields.main(["--large", "512", "--device", "cpu", "--out", str(tmp_path / "large.json")]) == 0
    report = read_json(tmp_path / "large.json", {})
    assert (report["side"], [path.name for path in tmp_path.iterdir()]) == (512, ["large.json"])
    assert report["bytes"] > 128 * 128  # the tissue in the middle does not compress
    assert "512 px: " in capsys.readouterr().out
