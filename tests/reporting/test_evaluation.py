"""A whole evaluation of two folders: known generators, the report's files, and what is said about bad folders."""

import json
import re
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image

from pfiles.__main__ import main
from pfiles.checkpoints import fingerprints, save_weights
from pfiles.clusterers import make_clusterer
from pfiles.errors import InputError
from pfiles.latents import encode_tiles, predict_clusters
from pfiles.machine.runtime import seeded
from pfiles.measuring import features
from pfiles.paths import ROOT, read_json, write_json
from pfiles.provenance import Provenance, without
from pfiles.reporting import evaluation, page
from pfiles.reporting.evaluation import SECTIONS
from pfiles.reporting.sections import distribution
from pfiles.reporting.sections import two_sample as two_sample_section
from pfiles.reporting.sections.data import EvaluationData, Options
from pfiles.settings import get_settings
from pfiles.tiles import pixels
from pfiles.tiles.dataset import Tiles
from pfiles.tiles.files import write_tiles
from pfiles.vqvae import VQVAE
from tests.conftest import SIZES, assert_refused, make_tiles, write
from tests.reporting.sections.conftest import N, noisy, noisy_images, offline, quick  # noqa: F401 - fixtures here as well


@pytest.fixture
def real():
    return pixels.as_tensor(noisy(make_tiles(N, 32, seed=3)))


def folders(tmp_path, real, generated):
    for name, images in (("org", real), ("gen", generated)):
        write_tiles(tmp_path / name, range(1, len(images) + 1), images)
    return ["--real", str(tmp_path / "org"), "--generated", str(tmp_path / "gen"), "--out", str(tmp_path / "out")]


def test_evaluate_writes_the_whole_table(tmp_path, real, capsys):
    labels = np.arange(N) // 25
    (tmp_path / "c.csv").write_text("".join(f"0.5,0.5,{label},0.9\n" for label in labels))
    vqvae = VQVAE(**SIZES)
    save_weights(vqvae, tmp_path / "vqvae.pth", {"settings": {"autoencoder": {"vqvae": SIZES}}})
    arguments = folders(tmp_path, real, pixels.as_tensor(noisy(pixels.as_array(real), 1, 30)))
    more = ["--clusters-csv", str(tmp_path / "c.csv"), "--autoencoder", str(tmp_path / "vqvae.pth")]
    assert main(["evaluate", *arguments, *more]) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"evaluation.json", "evaluation.html"}
    evaluation_json = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    titles = [
        "In short", "Images", "Paired scores and their controls", "SSIM (published reading)", "SSIM (per channel)",
        "MS-SSIM", "Two-sample test", "Power spectrum", "Reach of structure", "Condition",
            "Use to a classifier",
        "Distribution in random convolutions", "Distribution in autoencoder features", "Morphometry", "Copies",
    ]  # fmt: skip
    assert list(evaluation_json) == ["about", *titles]
    ssim = evaluation_json["SSIM (per channel)"]["tables"][0]
    assert ssim.keys() == {
        "generated", "another real tile of the cluster", "a real tile of another cluster", "flat mean colour",
        "the real tile itself",
    }  # fmt: skip
    assert ssim["generated"]["low"] < ssim["generated"]["mean"] < ssim["generated"]["high"]
    overall, by_cluster = evaluation_json["Distribution in random convolutions"]["tables"]
    assert overall["all generated against all real"]["images"] == N
    assert overall["held-out real tiles"]["images"] == N // 2
    assert by_cluster.keys() == {"cluster 1: generated"}
    assert any("clusters 2 (15 real, 15 generated)" in note for note in evaluation_json["Morphometry"]["notes"])
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:image/png;base64,)', page)
    assert page.count("<img") == 9
    short = evaluation_json["In short"]["notes"]
    names = [
        "Told from real tiles",
        "Built like tissue",
        "Sorted as asked",
        "Of use to a classifier",
        "Copies",
        "Worst tissue",
        "Alike",
    ]
    assert [line.partition(":")[0] for line in short] == names
    assert [name for name, line in zip(names, short, strict=True) if "not known" in line] == ["Built like tissue"]
    (note,) = evaluation_json["Reach of structure"]["notes"]
    assert note.startswith("Left out: ")  # random tiles have no structure
    assert evaluation_json["Two-sample test"]["tables"][0].keys() >= {
        "generated from real", "generated from real, both blurred by 2 px", "real from real: the floor",
        "generated from reconstructed: the UNet's part", "reconstructed from real: the autoencoder's part",
    }  # fmt: skip
    assert page.index("<img") < page.index("<thead")  # pictures before tables
    for title in titles:
        assert title in printed
        assert f"<h2>{title}</h2>" in page
    assert "LPIPS is unavailable" in printed
    assert "can be told from" in printed
    assert "FID" not in printed


def test_evaluate_without_pairs(tmp_path, real, capsys):
    arguments = folders(tmp_path, real, real[:30])
    assert_refused(["evaluate", *arguments], capsys, tmp_path / "out")
    assert main(["evaluate", *arguments, "--unpaired", "--features", "random"]) == 0
    assert "SSIM" not in capsys.readouterr().out
    evaluation_json = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(evaluation_json) == [
        "about", "In short", "Images", "Two-sample test", "Power spectrum", "Reach of structure",
        "Distribution in random convolutions",
        "Morphometry", "Copies",
    ]  # fmt: skip
    assert "Sorted as asked: not known" in evaluation_json["In short"]["notes"][2]
    assert evaluation_json["In short"]["notes"][4] == "Copies: 30 of 30 images that were looked at."


def test_evaluate_beside_held_out_tiles_and_their_labels(tmp_path, real):
    """What parts 9 and 14 say with held-out tiles, `evaluate` says too."""
    clusters = np.arange(N) % 2
    (tmp_path / "c.csv").write_text("".join(f"0.5,0.5,{cluster},0.9\n" for cluster in clusters))
    save_weights(VQVAE(**SIZES), tmp_path / "vqvae.pth", {"settings": {"autoencoder": {"vqvae": SIZES}}})
    arguments = folders(tmp_path, real, pixels.as_tensor(noisy(pixels.as_array(real), 1, 30)))
    write(tmp_path / "other", range(30), noisy(make_tiles(30, 48, 9), 1, 5))  # brought to 32 px
    for folder, numbers in (("org", range(1, N + 1)), ("other", range(30))):
        rows = "".join(f"{i}.png,{'tumour' if i % 2 else 'stroma'}\n" for i in numbers)
        (tmp_path / folder / "labels.csv").write_text(f"file,label\n{rows}")
    more = ["--clusters-csv", str(tmp_path / "c.csv"), "--autoencoder", str(tmp_path / "vqvae.pth")]
    assert main(["evaluate", *arguments, *more, "--unpaired", "--held-out", str(tmp_path / "other")]) == 0
    evaluation_json = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(evaluation_json)[-2:] == ["Copies", "Likeness"]
    assert "learnt the labels stroma, tumour" in evaluation_json["Use to a classifier of the labels"]["notes"][0]
    assert "of 30 held-out tiles" in evaluation_json["Likeness"]["notes"][0]
    overall, by_cluster = evaluation_json["Distribution in random convolutions"]["tables"]
    assert overall["held-out real tiles"]["images"] == 30
    assert list(by_cluster) == ["cluster 1: generated", "cluster 2: generated"]  # whose clusters are not known
    assert main(["evaluate", *arguments, "--unpaired", "--held-out", str(tmp_path / "nowhere")]) == 2


def test_disjoint_folders_are_far_apart(tmp_path, real):
    folders(tmp_path, real, 255 - real // 4)
    sections = evaluation.evaluate(tmp_path / "org", tmp_path / "gen", paired=False)
    section = next(s for s in sections if s.title == "Distribution in random convolutions")
    measured = section.scores["details"]["random convolutions"]["overall"]["all generated against all real"]
    assert [measured[name] for name in ("precision", "recall", "density", "coverage")] == [0, 0, 0, 0]
    visible = section.tables[0]  # what cannot rank tiles of known quality is kept, and not shown
    assert visible.columns.intersection(["precision", "recall", "density", "coverage"]).tolist() == ["recall"]
    assert "Recall, with 5 neighbours" in section.notes[1]
    assert "Precision" not in section.notes[1]


def grey(folder, name):
    Image.fromarray(make_tiles(1, 32)[0][..., 0]).save(folder / name)


BAD = {
    "no such folder": (lambda p: ["--generated", str(p / "nowhere")], "There are no images in"),
    "empty folder": (lambda p: (p / "none").mkdir() or ["--generated", str(p / "none")], "There are no images in"),
    "one image": (
        lambda p: write(p / "one", [1], make_tiles(1, 32)) or ["--generated", str(p / "one")],
        "at least 20 images in each folder, but .* holds 1",
    ),
    "different counts": (
        lambda p: [(p / "gen" / f"{i}.png").unlink() for i in (3, 5, 11, 2)] and [],
        r"of 40 in .* 2, 3, 5 \(and 1 more\) are there alone, and of 36",
    ),
    "unreadable": (lambda p: (p / "gen" / "7.png").write_bytes(b"x") and [], r"7\.png cannot be read as an image"),
    "grayscale": (lambda p: grey(p / "gen", "7.png") or [], r"7\.png has the colour mode L"),
    "mixed sizes": (lambda p: write(p / "gen", [7], make_tiles(1, 16)) or [], "must have one size"),
    "no such csv": (lambda p: ["--clusters-csv", str(p / "no.csv")], "run part_5"),
    "no such autoencoder": (lambda p: ["--autoencoder", str(p / "no.pth")], "no autoencoder at"),
    "unknown features": (lambda p: ["--features", "resnet"], "choose random, autoencoder or inception"),
    "features without their network": (lambda p: ["--features", "autoencoder"], "name its checkpoint"),
    "inception offline": (lambda p: ["--features", "inception"], "FID and KID need .* fetch https"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, tmp_path, capsys):
    images = pixels.as_tensor(make_tiles(N, 32))
    arguments = folders(tmp_path, images, images)
    make, sentence = BAD[case]
    assert main(["evaluate", *arguments, *make(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert re.search(sentence, printed.err)
    assert printed.err.startswith("error: ")
    assert printed.err.endswith(".\n")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not (tmp_path / "out").exists()


def test_images_too_small_for_the_measures(tmp_path, capsys):
    images = pixels.as_tensor(make_tiles(N, 16))
    assert_refused(["evaluate", *folders(tmp_path, images, images)], capsys, tmp_path / "out")


def test_summary_lines_of_what_is_known():
    assert evaluation.summary_section().notes == [
        "Told from real tiles: not known, with so few tiles or as the network did not learn.",
        "Built like tissue: not known, with so few tiles or as the real ones have no structure to measure.",
        "Sorted as asked: not known without the clusters and the autoencoder.",
        "Of use to a classifier: not known without clusters or with so few tiles.",
        "Copies: not looked for.",
        "Worst tissue: not known without the clusters and the autoencoder.",
        "Alike: not looked for.",
    ]
    scores = {
        "told_from_real": {two_sample_section.GENERATED_FROM_REAL: 0.857, two_sample_section.FLOOR: 0.51},
        "second_judge": {"share_assigned": 0.66, "agreement_on_real_tiles": 0.9},
        "by_chance": 0.1,
        "of_use_as_real": 0.844,
        "copies": 2,
        "images_searched_for_copies": 200,
        "repeat_each_other": 1.0,
        "built_like_tissue": "up to 9 px; real tissue beyond 32 px",
        "worst_cluster": "cluster 3, of which 20% are sorted as asked",
        "told from real by random convolutions": 0.7,
        "told from real by autoencoder features": 0.91,
    }
    assert evaluation.summary_section(page.Section("all", [], scores=scores)).notes == [
        "Told from real tiles: in 86%; real from real tiles in 51% (50% is chance); by a linear classifier of "
        "autoencoder features in 91%.",
        "Built like tissue: up to 9 px; real tissue beyond 32 px.",
        "Sorted as asked: in 66%; real tiles in 90% (10% is chance).",
        "Of use to a classifier: as 84% of real tiles.",
        "Copies: 2 of 200 images that were looked at.",
        "Worst tissue: cluster 3, of which 20% are sorted as asked.",
        "Alike: 100% of the generated tiles repeat another one.",
    ]


def test_all_sections_with_everything_known(real):
    """A generator that draws real tiles: what it must be said of it, with held-out tiles and both judges."""
    with seeded("sections"):
        vqvae = VQVAE(**SIZES).eval()
        clusterer = make_clusterer("kmeans", 16, 3)
        torch.nn.init.normal_(clusterer.centroids)
    rng = np.random.default_rng(0)
    sides = [noisy_images(n, 32, seed) for n, seed in ((60, 3), (44, 4), (30, 5))]
    labels = [rng.integers(0, 3, len(side)) for side in sides]
    sets = EvaluationData(*sides, None, *labels, vqvae=vqvae, clusterer=clusterer, n_clusters=3)
    assert sets.k == 3
    extractor = features.random_convolutions()
    sections = evaluation.all_sections(sets, Options([extractor], 0, "cpu", (0.0,)))
    by_title = {section.title: section for section in sections}
    assert list(by_title) == [
        "In short", "Images", "Two-sample test", "Power spectrum", "Reach of structure", "Condition",
            "Use to a classifier",
        "Distribution in random convolutions", "Morphometry", "Copies", "Likeness",
    ]  # fmt: skip
    table = by_title["Distribution in random convolutions"].tables[0]
    assert list(table.index) == [
        "generated", "generated, 30 of them", "held-out real tiles", "blurred real tiles", "flat mean colour",
        distribution.OTHER_HALF,
    ]  # fmt: skip
    assert table.images[distribution.OTHER_HALF] == 30
    assert list(by_title["Two-sample test"].tables[0].index) == [
        "generated from real", "generated from reconstructed: the UNet's part",
        "reconstructed from real: the autoencoder's part", "real from real: the floor",
        "training from held-out real tiles",
    ]  # fmt: skip
    condition = by_title["Condition"].scores
    assert set(condition["details"]) == {"the clusters", "second judge"}
    codes = encode_tiles(vqvae, sides[1])
    agree = (predict_clusters(vqvae, clusterer, codes).cluster_ids.numpy() == labels[1]).mean()
    assert condition["share_assigned_to_requested_cluster"] == pytest.approx(agree)
    assert len(condition["by_cluster"]) == 3
    json.dumps(page.all_scores(*sections), allow_nan=False)  # goes into summary.json


STRANGE = {
    "settings that are a list": {"settings": [1]},
    "no group of settings": {"settings": {"autoencoder": 3}},
    "sizes that are no sizes": {"settings": {"autoencoder": {"vqvae": {"down_channels": "many"}}}},
    "an unknown size": {"settings": {"autoencoder": {"vqvae": {"depth": 3}}}},
    "nothing": {"settings": None},
}


@pytest.mark.parametrize("about", STRANGE.values(), ids=STRANGE)
def test_a_strange_file_beside_the_autoencoder_is_one_sentence(about, tmp_path, real):
    save_weights(VQVAE(**SIZES), tmp_path / "vqvae.pth", {})
    (tmp_path / "vqvae.json").write_text(json.dumps(about))
    folders(tmp_path, real, real)
    with pytest.raises(InputError, match=r"^[^\n]*vqvae\.json does not describe an autoencoder [^\n]*\.$"):
        evaluation.evaluate(tmp_path / "org", tmp_path / "gen", autoencoder=tmp_path / "vqvae.pth")


# of which run


def tiles_of(seed):
    return Tiles(pixels.as_tensor(make_tiles(N, 32, seed)), np.arange(N - 4), np.arange(N - 4, N), f"tiles {seed}")


def judged(seed, networks=None, **more):
    parents = fingerprints(networks or {})
    return Provenance.of(get_settings("demo"), ("diffusion",), tiles_of(seed), 765 + seed, parents, **more).as_note()


def write_run(tmp_path, real):
    """Two folders, a CSV and an autoencoder of one run; returns the arguments of `evaluate`."""
    vqvae, clusterer = VQVAE(**SIZES), make_clusterer("kmeans", 16, 2)
    folders(tmp_path, real, real)
    content = "".join(f"0.5,0.5,{i % 2},0.9\n" for i in range(N))
    (tmp_path / "c.csv").write_text(content)
    networks = {"autoencoder": vqvae, "clusters": clusterer}
    save_weights(vqvae, tmp_path / "vqvae.pth", {**judged(1), "settings": {"autoencoder": {"vqvae": SIZES}}})
    write_json(tmp_path / "gen" / "generated_with.json", judged(1, networks, steps=20))
    write_json(tmp_path / "org" / "made_from.json", without(judged(1), "seed", "settings.diffusion"))
    write_json(tmp_path / "c.json", {**judged(1, networks), "sha256": sha256(content.encode()).hexdigest()})
    return tmp_path / "org", tmp_path / "gen", tmp_path / "c.csv", tmp_path / "vqvae.pth"


def other_autoencoder(folder):
    save_weights(VQVAE(**SIZES), folder / "vqvae.pth", {**judged(1), "settings": {"autoencoder": {"vqvae": SIZES}}})


OTHER_RUNS = {
    "generated from other tiles": (
        lambda p: write_json(p / "gen" / "generated_with.json", judged(2)),
        r"org beside .*gen belongs to another run .*data\.fingerprint was",
    ),
    "real tiles of other data": (
        lambda p: write_json(p / "org" / "made_from.json", judged(2)),
        r"org beside .*gen belongs to another run .*data\.source was 'tiles 2'",
    ),
    "a table of other data": (
        lambda p: write_json(p / "c.json", {**read_json(p / "c.json"), "data": judged(2)["data"]}),
        r"c\.csv beside .*gen",
    ),
    "a table of other clusters": (
        lambda p: write_json(p / "c.json", {**read_json(p / "c.json"), "starts_from": {"clusters": "x"}}),
        r"c\.csv beside .*gen belongs to another run .*starts_from\.clusters was 'x'",
    ),
    "another autoencoder": (
        other_autoencoder,
        r"gen beside the autoencoder belongs to another run .*starts_from\.autoencoder was",
    ),
    "the autoencoder of other tiles": (
        lambda p: write_json(p / "vqvae.json", {**read_json(p / "vqvae.json"), "data": judged(2)["data"]}),
        r"vqvae\.pth beside .*gen belongs to another run .*data\.fingerprint was",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_RUNS)
def test_files_of_another_run_are_refused_before_any_work(case, tmp_path, real, monkeypatch):
    paths_of_run, (spoil, sentence) = write_run(tmp_path, real), OTHER_RUNS[case]
    spoil(tmp_path)
    monkeypatch.setattr(evaluation, "read_images", None)
    monkeypatch.setattr(evaluation.files, "load_pairs", None)
    with pytest.raises(InputError, match=rf"^[^\n]*{sentence}[^\n]*\.$"):
        evaluation.evaluate(*paths_of_run)


def test_files_of_one_run_are_accepted_and_those_that_tell_nothing_are_named(tmp_path, real, monkeypatch, capsys):
    paths_of_run = write_run(tmp_path, real)
    plain = [evaluation.summary_section(), page.Section("Images", ["40 and 40."])]
    monkeypatch.setattr(evaluation, "all_sections", lambda *_: list(plain))
    one_run = "All files belong to one run."
    assert evaluation.evaluate(*paths_of_run, paired=False)[1].notes == ["40 and 40.", one_run]
    (tmp_path / "gen" / "generated_with.json").unlink()
    (tmp_path / "c.csv").write_text((tmp_path / "c.csv").read_text() + "0.5,0.5,1,0.9\n")  # the JSON tells of another
    note = evaluation.evaluate(*paths_of_run, paired=False)[1].notes[1]
    assert note.startswith("Without provenance, and used as they are: ")
    assert note.endswith(f": {tmp_path / 'gen'}, {tmp_path / 'c.csv'}.")
    assert capsys.readouterr().out == ""


def test_the_tables_of_the_docs_are_those_of_the_records():
    """A measure is explained below its row, in a section of its title."""
    text = (ROOT / "docs" / "numbers.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    anchors = {record.title: re.sub("[^a-z -]", "", record.title.lower()).replace(" ", "-") for record in SECTIONS}
    measures = {f"[{record.title}](#{anchors[record.title]})": record.question for record in SECTIONS}
    start = rows.index(["measure", "what it asks"]) + 2
    assert dict(rows[start : start + len(SECTIONS)]) == measures
    assert all(f"\n## {record.title}\n" in text for record in SECTIONS)
    lines = sorted(line for record in SECTIONS for line in record.lines)
    start = rows.index(["line", "what it says", "best"]) + 2
    assert rows[start : start + len(lines)] == [[line.name, line.says, line.best] for line in lines]
    assert [line.place for line in lines] == [1, 2, 3, 4, 5, 6, 7]
