"""A generator for others: what its folder says, and what it must not say."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import pfiles
from pfiles import draw
from pfiles import share as share_module
from pfiles.__main__ import main
from pfiles.checkpoints import fingerprint_of_state
from pfiles.drawing.field import make_field
from pfiles.drawing.layout import make_layout
from pfiles.errors import InputError
from pfiles.fields import write_field
from pfiles.paths import read_json, write_json
from pfiles.provenance import Provenance
from pfiles.reporting import field_report
from pfiles.reporting.tables import record
from pfiles.run import open_run
from pfiles.share import share
from pfiles.spreadsheet import read_table
from pfiles.tiles.pyramid import write_pyramid
from pfiles.tiles.readers import open_slide
from tests.conftest import CARD, TINY, K, finish, make_tiles

TELLING = ("StMarysHospital", "S07-Mueller.svs", "PAT778812", "S08-Schulze.svs", "4711423", "run-of-Dr-Wu")
OVERRIDES = TINY | {"speed": "off"}  # to the bit
PART_13 = {
    "in_short": {"Told from real tiles": "in 60%; real from real tiles in 51% (50% is chance)"},
    "details": {"random": {"overall": {"generated": {"kid": 0.5}, "one half": {"kid": 0.125, "recall": 1}}}},
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A finished run on tiles cut from slides of patients, whose names stand in the table, the folder and the paths."""
    folder = tmp_path_factory.mktemp("share")
    data = folder / "StMarysHospital"
    data.mkdir()
    np.save(data / "tiles.npy", make_tiles(44))
    rows = [f"{'S07-Mueller.svs' if i < 40 else 'S08-Schulze.svs'},{48 * i},0,48,0.5,"
            f"{'PAT778812' if i < 40 else '4711423'}" for i in range(44)]  # fmt: skip
    (data / "tiles.csv").write_text("\n".join(["slide,x,y,side,mpp,patient", *rows]))
    run = opened(folder)
    finish(run)
    write_json(run.paths.summary, {"clusters_3/part_13_distribution_metrics": PART_13})
    return folder


def opened(folder, **changed):
    arguments = {"n_clusters": K, "clustering": "classifier", "data": str(folder / "StMarysHospital"), "preset": "demo"}
    return open_run("test", **(arguments | {"overrides": OVERRIDES, "out": str(folder / "run-of-Dr-Wu")} | changed))


@pytest.fixture
def named(monkeypatch):
    """A run whose clusters are called so."""

    def name_clusters(run, names):
        monkeypatch.setattr(type(run), "names", property(lambda run: names))
        return run

    return name_clusters


def test_the_folder_draws_and_says_all_that_is_known(run_dir, named, tmp_path):
    run = named(opened(run_dir), {1: "keratin", 2: "dermis"})
    gate = share(run, tmp_path / "shared", CARD, "demo", {**TINY, "start_from": "/home/StMarysHospital"})
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {
        "config.json", "model.safetensors", "quality.safetensors", "README.md", "sheet.jpg"
    }  # fmt: skip
    loaded = pfiles.Generator.from_pretrained(tmp_path / "shared")
    assert torch.equal(loaded.draw([0, 1, 2], seeds=[5, 6, 7]), draw.tiles(run, [0, 1, 2], [5, 6, 7]))
    assert loaded.names == {1: "keratin", 2: "dermis"}
    assert loaded.mpp == 0.5
    assert loaded.shares.tolist() == pytest.approx(
        (run.assignment.cluster_ids.bincount(minlength=K) / 24).tolist(), abs=1e-6
    )
    text = (tmp_path / "shared" / "README.md").read_text()
    for said in (
        "license: cc-by-nc-4.0", "lung \\| left", "vote 12/34", "24 for training, 4 held out",
        "2 slides, 2 patients", "by patient: none is on both sides", "0.5 um per pixel", "| 2 | dermis |",
        "preset `demo`, with image_size_px = 48",
        "Told from real tiles: in 60%; real from real", "| generated | 0.5 |  |", "| one half | 0.125 | 1 |",
        f"Of the drawn tiles {gate['closer']:.1%} are closer", "| Begun from | random weights |",
    ):  # fmt: skip
        assert said in text
    assert gate["images"] == 500
    assert f"**{gate['certificate']}**" in text
    assert gate["certificate"].startswith("Of planted copies of 17 kinds at most ")
    assert Image.open(tmp_path / "shared" / "sheet.jpg").size[0] > 100


def test_no_file_says_whose_tissue_it_is(run_dir, tmp_path):
    overrides = {**TINY, "start_from": str(run_dir / "StMarysHospital")}
    share(opened(run_dir), tmp_path / "shared", CARD, overrides=overrides, judged=40)
    for path in (tmp_path / "shared").iterdir():
        content = path.read_bytes().lower()
        for word in (*TELLING, str(run_dir)):
            assert word.lower().encode() not in content


@pytest.mark.parametrize("said", [TELLING[0], "see s07-mueller.svs", "of 4711423, left"])
def test_a_card_or_a_name_that_says_it_is_refused(said, run_dir, named, tmp_path):
    for card, names in (({**CARD, "consent": said}, {}), (CARD, {2: said})):
        with pytest.raises(InputError, match="which is a path, file, slide or patient of the data"):
            share(named(opened(run_dir), names), tmp_path / "shared", card)
        assert list(tmp_path.iterdir()) == []


def test_short_names_of_people_are_looked_for_too(run_dir, tmp_path):
    data = Path(shutil.copytree(run_dir, tmp_path / "made")) / "StMarysHospital" / "tiles.csv"
    data.write_text(data.read_text().replace("PAT778812", "P12").replace("4711423", "4823"))
    run = opened(tmp_path / "made", out=str(run_dir / "run-of-Dr-Wu"))
    for said in ("as seen in P12", "no. 4823", "p12_left", "of S07-Mueller", "S07-Mueller_2", "4823_x"):
        with pytest.raises(InputError, match="which is a path, file, slide or patient of the data"):
            share(run, tmp_path / "shared", {**CARD, "consent": said})


def test_the_gate_reads_training_tiles_as_it_compares_them(run_dir, tmp_path, monkeypatch):
    """More of them than fit in memory are judged; `--exhaustive` reaches the search."""
    searches, search = [], share_module.certificate.search

    def watched(images, train, held_out, source, exhaustive):
        searches.append((len(train), len(held_out), exhaustive))
        assert not isinstance(train, torch.Tensor)
        return search(images, train, held_out, source, exhaustive)

    monkeypatch.setattr(share_module.certificate, "search", watched)
    monkeypatch.setattr(share_module, "HELD_OUT", 3)
    share(opened(run_dir), tmp_path / "shared", CARD, judged=40, exhaustive=True)
    assert searches == [(24, 3, True)]


def test_markup_in_a_name_is_text(run_dir, named, tmp_path):
    run = named(opened(run_dir), {1: "<img src=x onerror=alert(1)> & so on", 2: "![](http://x) $a$"})
    share(run, tmp_path / "shared", {**CARD, "organ": "<b>lung</b>"}, judged=40)
    written = (tmp_path / "shared" / "README.md").read_text()
    assert "&lt;img src=x onerror=alert(1)&gt; &amp; so on" in written
    assert r"| !\[\](http://x) \$a\$ |" in written
    assert "<img" not in written.partition("---\n")[2].partition("---\n")[2]  # behind the data for the hub


def drawing(monkeypatch, change):
    """Networks that draw what `change` makes of what they would draw."""
    real = pfiles.Generator.draw
    monkeypatch.setattr(pfiles.Generator, "draw", lambda *args, **options: change(real(*args, **options)))


def test_a_memoriser_is_refused_whatever_lies_in_its_folder(run_dir, tmp_path, monkeypatch):
    """One drawn tile of 40 is a training tile, turned. The images of part 6 are honest, few, or gone."""
    shutil.copytree(run_dir, tmp_path / "made")
    run = opened(tmp_path / "made")
    tile = torch.from_numpy(np.load(tmp_path / "made" / "StMarysHospital" / "tiles.npy")[3]).movedim(2, 0)
    drawing(monkeypatch, lambda images: torch.cat([tile.rot90(1, (1, 2))[None], images[1:]]))
    for number in (12, 1, 0):
        for image in [*run.paths.generated.glob("*.png")][number:]:
            image.unlink()
        with pytest.raises(InputError, match="gate fails: 1 of 40 tiles that were drawn for it are outright copies"):
            share(run, tmp_path / "shared", CARD, judged=40)
        assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda images: images * 0 + 99, "100% of 40 tiles that were drawn for it show nothing but one colour"),
        (lambda images: images[:1].expand_as(images), "100% of the tiles that were drawn for it repeat another one"),
    ],
)
def test_tiles_that_can_show_no_copy_are_no_evidence(run_dir, tmp_path, monkeypatch, change, sentence):
    drawing(monkeypatch, change)
    with pytest.raises(InputError, match=sentence):
        share(opened(run_dir), tmp_path / "shared", CARD, judged=40)
    assert not (tmp_path / "shared").exists()


def test_fields_are_handed_on_unless_they_hold_a_copy_or_say_whose_they_are(run_dir, tmp_path):
    run = opened(run_dir)
    generator = draw.generator(run)
    layout = make_layout(np.array([[0, 1], [2, 0]]), (144, 144), K)
    field = make_field(generator.unet, generator.space, generator.settings, layout, 5)
    file = tmp_path / "drawn" / "one.tiff"
    write_field(generator, field, file)
    share(run, tmp_path / "shared", CARD, judged=40, field_files=[file])
    names = {"one.tiff", "one.json", "one.tiles.csv", "one.layout.geojson"}
    assert names < {path.name for path in (tmp_path / "shared").iterdir()}
    assert (tmp_path / "shared" / "one.tiff").read_bytes() == file.read_bytes()

    places = read_table(tmp_path / "drawn" / "one.tiles.csv")[["x", "y"]].to_numpy(int)
    with open_slide(file) as slide:
        searched = field_report.gate(slide, places, 48, 5, run.tiles)[0][0]
    image = tifffile.imread(file)
    windows = np.lib.stride_tricks.sliding_window_view(image, (48, 48), (0, 1))  # (97, 97, 3, 48, 48)
    [[y, x]] = np.argwhere((windows == searched.numpy()).all((2, 3, 4)))
    image[y : y + 48, x : x + 48] = run.tiles.tensor(run.tiles.train[:1])[0].permute(1, 2, 0)
    write_pyramid(file, lambda first, last: image[first:last], (144, 144))
    with pytest.raises(InputError, match=r"one\.tiff is not handed on: 1 of 9 crops .* copies of a training tile"):
        share(run, tmp_path / "refused", CARD, judged=40, field_files=[file])

    write_field(generator, replace(field, seed=6), tmp_path / "drawn" / "S07-Mueller.tiff")
    with pytest.raises(InputError, match=r"S07-Mueller.* would say 'S07-Mueller'"):
        share(run, tmp_path / "refused", CARD, judged=40, field_files=[tmp_path / "drawn" / "S07-Mueller.tiff"])
    made_from = read_json(tmp_path / "drawn" / "one.json", {})
    write_json(tmp_path / "drawn" / "one.json", {"made_from": made_from["made_from"] | {"unet": "another"}})
    for no_field in (file, tmp_path / "none.tiff"):
        with pytest.raises(InputError, match="is no field that this generator drew"):
            share(run, tmp_path / "refused", CARD, judged=40, field_files=[no_field])
    assert not (tmp_path / "refused").exists()


def test_the_card_says_how_many_tiles_were_judged(run_dir, tmp_path):
    for judged, few in ((40, "; fewer than the usual 500"), (share_module.JUDGED, "")):
        folder = tmp_path / str(judged)
        assert share(opened(run_dir), folder, CARD, judged=judged)["images"] == judged
        text = " ".join((folder / "README.md").read_text().split())
        assert f"{judged} tiles were drawn for it from the weights in this folder (seed 765" in text
        assert f"among the training tiles{few}" in text
    with pytest.raises(InputError, match="at least 2 tiles"):
        share(opened(run_dir), tmp_path / "shared", CARD, judged=1)


def test_the_card_says_what_the_training_began_from(run_dir, named, tmp_path):
    """As of a run whose weights came from elsewhere, whatever patients those had learnt from."""
    run = opened(run_dir)
    run.__dict__["start_weights"] = {"vqvae.weight": torch.ones(2)}
    share(run, tmp_path / "shared", CARD, judged=40)
    fingerprint = fingerprint_of_state(run.start_weights)
    assert f"Begun from | other weights (fingerprint {fingerprint})" in (tmp_path / "shared" / "README.md").read_text()
    assert pfiles.Generator.load(tmp_path / "shared").about == {"begun_from": fingerprint}


def test_a_link_to_an_empty_folder_is_filled(run_dir, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    share(opened(run_dir), tmp_path / "link", CARD, judged=40)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "README.md").exists()


def test_numbers_of_other_data_are_refused(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "made")
    run = opened(tmp_path / "made")
    other = Provenance(data={**run.provenance.data, "fingerprint": "0" * 16})
    record(run.paths.summary, "clusters_3/part_13_distribution_metrics", PART_13, other)
    with pytest.raises(InputError, match=r"part_13_distribution_metrics in .* belongs to another run"):
        share(run, tmp_path / "shared", CARD)
    assert not (tmp_path / "shared").exists()


def test_leaking_splits_are_refused(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "made")
    run = opened(tmp_path / "made")
    assert run.provenance
    leaking = run.tiles.images.clone()
    leaking[run.tiles.test] = leaking[run.tiles.train[:4]]
    run.__dict__["tiles"] = replace(run.tiles, images=leaking)
    with pytest.raises(InputError, match="The gate cannot judge this generator"):
        share(run, tmp_path / "shared", CARD)


def test_share_command(run_dir, tmp_path, capsys):
    arguments = ["share", "--run", str(run_dir / "run-of-Dr-Wu"), "--out", str(tmp_path / "shared")]
    assert main(arguments) == 2
    assert "licence (of the weights" in capsys.readouterr().err
    arguments += [part for name, text in CARD.items() for part in (f"--{name.replace('_', '-')}", text)]
    run = {"n_clusters": K, "clustering": "classifier", "data": str(run_dir / "StMarysHospital"), "preset": "demo"}
    shutil.copytree(run_dir / "run-of-Dr-Wu", tmp_path / "run")
    summary = read_json(tmp_path / "run" / "summary.json")
    write_json(tmp_path / "run" / "summary.json", {**summary, "run": {**run, "overrides": OVERRIDES}})
    arguments[2] = str(tmp_path / "run")
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "The gate passed" in printed
    assert f"hf upload YOUR-NAME/NAME-OF-THE-GENERATOR {tmp_path / 'shared'}" in printed
    assert pfiles.Generator.from_pretrained(tmp_path / "shared").n_clusters == K
    assert main(arguments) == 2
    assert f"{Path(arguments[4])} is there already" in capsys.readouterr().err
