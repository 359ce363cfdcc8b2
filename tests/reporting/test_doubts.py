"""Results that are of no use are said to be, and no others."""

import pytest

from pfiles.reporting import page
from pfiles.reporting.doubts import doubts

GOOD = {
    "psnr_db": 18.8, "psnr_flat_colour_db": 13.8, "codes_used": 90, "codes_used_on_test_tiles": 70, "last_mse": 0.6,
    "clusters_used": 9, "mean_confidence": 0.6, "by_chance": 0.1, "second_judge": {"share_assigned": 0.5},
}  # fmt: skip


def test_good_results_raise_no_doubt():
    assert doubts(GOOD, 10) == []
    assert doubts({}, 10) == []
    assert doubts({"mean_probability": 0.889}, 14) == []  # as published


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"psnr_db": 16.1, "psnr_flat_colour_db": 18.3}, "Reconstructions (16.1 dB) are no better than one flat"),
        ({"psnr_db": 14.1}, "Reconstructions (14.1 dB) are hardly better than one flat colour"),
        ({"codes_used": 1}, "Every place of every tile has one and the same code"),
        ({"codes_used_on_test_tiles": 1}, "Every place of every tile has one and the same code"),
        ({"clusters_used": 1}, "All tiles are in one of 10 clusters"),
        ({"mean_confidence": 0.102}, "No tile is clearly in one cluster: the mean probability of"),
        ({"last_mse": 1.0}, "The UNet's error (1.000) is that of one that always answers 0"),
        ({"second_judge": {"share_assigned": 0.1}}, "Generated tiles are sorted as asked no more often (10%) than by"),
    ],
)  # fmt: skip
def test_a_useless_result_is_one_sentence_or_two_with_what_to_do(bad, sentence):
    (doubt,) = doubts(GOOD | bad, 10)
    assert doubt.startswith(sentence)
    assert doubt.count(". ") in (1, 2)
    assert doubt.endswith(".")


def test_without_k_nothing_is_said_of_clusters():
    assert doubts(GOOD | {"mean_confidence": 0.0, "clusters_used": 1}) == []


def test_of_one_cluster_chance_is_all_there_is():
    assert doubts({"by_chance": 1.0, "second_judge": {"share_assigned": 1.0}}) == []


def test_a_report_says_it_where_the_result_stands(tmp_path, capsys):
    """In a notebook, in a terminal, on the page and in the JSON."""
    section = page.Section("Condition", ["A note."], scores={"by_chance": 0.1, "second_judge": {"share_assigned": 0.1}})
    page.show(section)
    page.write_report([section], tmp_path, {})
    for text in (capsys.readouterr().out, page.as_text([section]), *(path.read_text() for path in tmp_path.iterdir())):
        assert text.count("Of no use yet: Generated tiles are sorted as asked no more often (10%)") == 1
