"""What answers say: readers who are right, wrong, alike or guess; known skills within their intervals."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.reader_study import coverage
from pfiles import reader_study
from pfiles.errors import InputError
from pfiles.study import results, sections
from pfiles.study.answers import read_study
from tests.study.conftest import K, answers_of, perfect, write_study


def scored(folder, *judges, question="real", tiles=20):
    key = write_study(folder, question, readers=len(judges), tiles=tiles)
    for reader, judge in enumerate(judges, 1):
        (folder / f"a{reader}.json").write_text(json.dumps(answers_of(key, reader, judge)))
    key, table = read_study(sorted(folder.glob("*.json")))
    return key, table, results.ratings_of(key, table)


def guessing(seed, chance=0.5):
    rng = np.random.default_rng(seed)

    def judge(truth):
        wrong = rng.random() < chance
        right = perfect(truth)[0]
        return ({"real": "generated", "generated": "real"}[right] if wrong else right), int(rng.integers(1, 4))

    return judge


def test_readers_who_are_right_everywhere(tmp_path):
    key, table, ratings = scored(tmp_path / "s", perfect, perfect, perfect)
    for measure in results.measures("real", ratings).values():
        assert [each.value for each in (*measure.each, measure.together)] == [1] * 4
        assert 0.5 < measure.together.low < 0.9  # ten tiles of a kind
    assert results.agreement(ratings, 1) == (1, 1, 1)
    assert results.catches(key, table).filter(like="failed").to_numpy().sum() == 0
    assert results.decision(key, ratings, results.measures("real", ratings)).startswith("Decided: readers tell")
    table = results.by_cluster(key, ratings)
    assert table["generated, right"].tolist() == [1] * K
    assert table["generated tiles"].sum() == 10


def test_answers_count_by_hand(tmp_path):
    """One reader calls all but every third tile real, and is surer of them; the other is right."""
    numbers = iter(range(1000))
    judge = lambda truth: ("generated", 1) if next(numbers) % 3 == 0 else ("real", 3)  # noqa: E731
    key, _, ratings = scored(tmp_path / "s", judge, perfect)
    first = results.measures("real", ratings)
    generated = [i for i, trial in enumerate(key.trials[:20]) if trial.kind == "generated"]
    said = {trial: place % 3 == 0 for place, trial in enumerate(key.orders["1"])}
    sensitivity = np.mean([said[i] for i in generated])
    specificity = np.mean([not said[i] for i in range(20) if i not in generated])
    assert first["sensitivity"].each[0].value == pytest.approx(sensitivity)
    assert first["specificity"].each[0].value == pytest.approx(specificity)
    assert first["AUC"].each[0].value == pytest.approx((sensitivity + specificity) / 2)  # of two steps alone
    assert first["AUC"].together.value == pytest.approx((1 + (sensitivity + specificity) / 2) / 2)


def test_guessing_readers_agree_on_nothing_and_decide_nothing(tmp_path):
    key, _, ratings = scored(tmp_path / "s", *(guessing(seed) for seed in range(4)), tiles=60)
    kappa = results.agreement(ratings, 1)
    assert kappa.low < 0 < kappa.high
    assert abs(kappa.value) < 0.15
    measured = results.measures("real", ratings)
    assert measured["AUC"].together.low < 0.5 < measured["AUC"].together.high
    verdict = results.decision(key, ratings, measured)
    assert verdict.startswith(("Not decided", "Decided: no difference"))


def test_catch_tiles_are_failed_by_who_does_not_look(tmp_path):
    key, table, _ = scored(tmp_path / "s", lambda truth: ("real", 1), perfect, tiles=60)
    caught = results.catches(key, table)
    assert caught.loc["reader 1"].to_dict() == {
        "blurred, failed": 3, "blurred, of": 3, "shuffled, failed": 3, "shuffled, of": 3,
        "shown twice, answered otherwise": 0, "shown twice, of": 6,
    }  # fmt: skip
    assert caught.loc["reader 2"].filter(like="failed").tolist() == [0, 0]


def test_a_reader_who_learns_gains(tmp_path):
    def learner():
        judged = iter(range(1000))
        return lambda truth: (perfect(truth)[0] if next(judged) >= 36 else "real", 2)

    _, _, ratings = scored(tmp_path / "s", *(learner() for _ in range(3)), tiles=60)
    table, gain = results.learning(ratings)
    assert (table["second half"] == 1).all()
    assert gain.value == pytest.approx(table["gain"].mean())
    assert gain.low > 0


def test_which_cluster(tmp_path):
    """Three readers know all real tiles, and put every generated one into cluster 1, of which a third are."""
    judge = lambda truth: (str(truth["cluster"]) if truth["kind"] != "generated" else "1", 2)  # noqa: E731
    key, table, ratings = scored(tmp_path / "s", *[judge] * 3, question="cluster", tiles=60)
    measured = results.measures("cluster", ratings)
    assert measured["real"].together.value == 1
    assert measured["generated"].together.value == pytest.approx(1 / 3)
    assert results.difference(ratings)[0] == pytest.approx(2 / 3)
    assert results.decision(key, ratings, measured).startswith("Decided: real tiles are put into their cluster more")
    by_cluster = results.by_cluster(key, ratings)
    assert by_cluster["generated, right"].tolist() == [1, 0, 0]
    assert results.catches(key, table)["example, failed"].tolist() == [0, 0, 0]


def test_one_reader_has_results_but_decides_nothing(tmp_path):
    key, _, ratings = scored(tmp_path / "s", perfect)
    measured = results.measures("real", ratings)
    assert measured["AUC"].together == measured["AUC"].each[0]
    assert results.agreement(ratings, 1) is results.learning(ratings)[1] is None
    assert results.decision(key, ratings, measured).startswith("One reader decides nothing")


def test_intervals_hold_the_truth_of_simulated_readers():
    """At 95 % of 400 intervals of one reader within 3.3 %, of 100 together within 6.5 %: three standard errors."""
    for name, share in coverage(1.0, 0.3, studies=100, readers=4, tiles=60, seed=1).items():
        assert share == pytest.approx(0.95, abs=0.065 if "together" in name else 0.033), name


@pytest.mark.filterwarnings("error")  # matplotlib warns of letters that its fonts lack
def test_the_figure_shows_names_of_any_script(tmp_path):
    key, _, ratings = scored(tmp_path / "s", perfect, perfect)
    table = results.by_cluster(key, ratings).set_axis([f"{number} 腺管 $x" for number in range(1, K + 1)])
    figure = sections.plot(key, ratings, results.measures("real", ratings), table)
    figure.canvas.draw()
    plt.close(figure)


@pytest.mark.parametrize("name", ["reader_study.json", "reader_study.html", "reader_study.png"])
def test_a_score_replaces_only_a_score(name, study, tmp_path):
    folder, _ = study
    for _ in range(2):
        reader_study.score(folder, tmp_path / "score")
    file = tmp_path / "mine" / name
    file.parent.mkdir()
    file.write_text('{"grade": 3}')
    with pytest.raises(InputError, match="was not made by this command"):
        reader_study.score(folder, tmp_path / "mine")
    assert [path.name for path in file.parent.iterdir()] == [name]
    assert file.read_text() == '{"grade": 3}'
