"""Export: copies are kept back, other people's files stay, and the tiles are those the images were made from."""

import json
import re
import shutil
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image

from pfiles.__main__ import main
from pfiles.paths import write_json
from pfiles.provenance import Provenance
from pfiles.reporting import export, figures
from pfiles.settings import get_settings
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.files import write_tiles
from pfiles.tiles.pixels import as_array
from tests.measuring.conftest import COPIES, FAR, cut_from_larger, picture, tissue


def save(path, images):
    np.save(path, as_array(images))


def write_images(folder, images):
    write_tiles(folder, range(1, len(images) + 1), images)
    return folder


@pytest.fixture
def arguments(real, planted, tmp_path):
    """Of a command line that exports `planted`, trained on `real`."""
    save(tmp_path / "tiles.npy", real.images)
    generated = write_images(tmp_path / "gen", planted)
    return [
        "export",
        "--generated",
        str(generated),
        "--data",
        str(tmp_path / "tiles.npy"),
        "--out",
        str(tmp_path / "out"),
    ]


def generated_with(folder, data, max_train_tiles=None, note="gen/generated_with.json"):
    """Leaves beside the images what part 6 leaves there."""
    tiles = load_tiles(data, 64, max_train_tiles)
    about = Provenance.of(get_settings("demo"), ("diffusion",), tiles, 765, {}, steps=50).as_note()
    write_json(folder / note, about)


def refused(arguments, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr().err.rpartition("\r")[2].lstrip()  # behind a bar that is gone
    assert re.fullmatch(r"error: [^\n]{30,}\.\n", printed)
    return printed


def test_export_compares_with_the_tiles_the_images_were_made_from(arguments, real, tmp_path, monkeypatch, capsys):
    keep_images(tmp_path, 8)
    generated_with(tmp_path, tmp_path / "tiles.npy")
    save(tmp_path / "others.npy", tissue(180, seed=9))
    others = [*arguments[:4], str(tmp_path / "others.npy"), *arguments[5:]]
    assert "were made from other tiles (tiles.npy, fingerprint" in refused(others, capsys)
    assert not (tmp_path / "out").exists()
    assert main(arguments) == 0
    without = [*arguments[:3], *arguments[5:]]
    assert "were made from other tiles" in refused(without, capsys)  # than the embedded ones
    monkeypatch.setenv("KPC_DATA", str(tmp_path / "tiles.npy"))
    assert main(without) == 0


def test_export_compares_training_images_too_with_the_tiles_they_are_of(arguments, tmp_path, capsys):
    (tmp_path / "gen").rename(tmp_path / "org")
    generated_with(tmp_path, tmp_path / "tiles.npy", note="org/made_from.json")
    save(tmp_path / "others.npy", tissue(180, seed=9))
    others = ["export", "--generated", str(tmp_path / "org"), "--data", str(tmp_path / "others.npy"), *arguments[5:]]
    assert "were made from other tiles (tiles.npy, fingerprint" in refused(others, capsys)


def test_export_without_a_note_needs_the_data_named(arguments, tmp_path, monkeypatch, capsys):
    keep_images(tmp_path, 8)
    without = [*arguments[:3], *arguments[5:]]
    monkeypatch.setenv("KPC_DATA", str(tmp_path / "tiles.npy"))
    for note in ({}, {"data": 3}, {"data": {"source": "x", "fingerprint": "y", "training tiles": 0}}):
        write_json(tmp_path / "gen" / "generated_with.json", note)
        assert "name them with --data" in refused(without, capsys)
    assert not (tmp_path / "out").exists()
    assert main(arguments) == 0
    assert "Nothing beside the images says what they were made from: taken to be tiles.npy." in capsys.readouterr().out


def test_copies_of_training_tiles_that_were_not_used_are_kept_back(arguments, real, tmp_path):
    """Whatever max_train_tiles the training had, and whatever is given here."""
    shutil.rmtree(tmp_path / "gen")
    write_images(tmp_path / "gen", real.images[:24])
    for noted in (None, 20):
        if noted:
            generated_with(tmp_path, tmp_path / "tiles.npy", noted)
        assert main([*arguments, "--set", "max_train_tiles=20"]) == 0
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["exported"] == 0
        assert report["training_tiles"] == 164
        assert [record["nearest_tile_in_data"] for record in report["images"]] == [*range(24)]


def test_a_shifted_copy_differs_from_its_tile_only_where_they_do_not_overlap(arguments, tmp_path):
    tiles, copies = cut_from_larger(FAR[:3])
    save(tmp_path / "tiles.npy", torch.cat([tiles, tissue(60, seed=11)]))
    shutil.rmtree(tmp_path / "gen")
    write_images(tmp_path / "gen", copies)
    assert main(arguments) == 0
    records = json.loads((tmp_path / "out" / "report.json").read_text())["images"]
    assert [(r["decision"], r["nearest_tile_in_data"], r["rms_difference"]) for r in records] == [
        ("withheld", 0, 0), ("withheld", 1, 0), ("withheld", 2, 0),
    ]  # fmt: skip


def test_export_never_deletes_what_it_did_not_make(arguments, planted, tmp_path, capsys):
    """Images in an earlier export's folder: all of it, or those that were withheld, put back by hand."""
    out = tmp_path / "out"
    keep_images(tmp_path, 31)
    assert main(arguments) == 0
    capsys.readouterr()
    within = [*arguments[:2], str(out / "images"), *arguments[3:]]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert "which is replaced as a whole" in refused(within, capsys)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    picture(planted[30]).save(out / "images" / "31.png")  # the copy, which was withheld
    assert "such as images/31.png" in refused(arguments, capsys)
    assert (out / "images" / "31.png").exists()
    (out / "images" / "31.png").unlink()
    edited = picture(planted[30])
    edited.save(out / "images" / "1.png")
    assert "such as images/1.png" in refused(arguments, capsys)
    shutil.copyfile(tmp_path / "gen" / "1.png", out / "images" / "1.png")
    assert main(arguments) == 0
    (out / "mine").mkdir()
    assert "such as mine" in refused(arguments, capsys)


def keep_images(folder, count):
    for number in range(count + 1, 31 + len(COPIES)):
        (folder / "gen" / f"{number}.png").unlink()


def test_export_keeps_copies_back(arguments, tmp_path, capsys):
    copies = {f"{number}.png" for number in range(31, 31 + len(COPIES))}
    assert main(arguments) == 0
    out = tmp_path / "out"
    report = json.loads((out / "report.json").read_text())
    records = {record["file"]: record for record in report["images"]}
    assert len(records) == 30 + len(COPIES)
    withheld = {name for name, record in records.items() if record["decision"] == "withheld"}
    assert copies <= withheld
    assert len(withheld - copies) < 6
    assert all((r["distance"] < report["threshold"]) == (name in withheld) for name, r in records.items())
    exported = {path.name for path in (out / "images").iterdir()}
    assert exported == records.keys() - withheld
    assert {path.name for path in out.iterdir()} == {"images", "report.json", "closest_pairs.png", "croissant.json"}
    assert np.asarray(Image.open(out / "closest_pairs.png")).ndim == 3
    for name in exported:
        assert (out / "images" / name).read_bytes() == (tmp_path / "gen" / name).read_bytes()
    exact = records["31.png"]
    assert exact == {
        "file": "31.png", "sha256": sha256((tmp_path / "gen" / "31.png").read_bytes()).hexdigest(),
        "decision": "withheld", "nearest_training_tile": 1, "nearest_tile_in_data": 0,
        "distance": pytest.approx(0, abs=1e-5), "rms_difference": 0, "threshold": report["threshold"],
    }  # fmt: skip
    assert report["exported"] == len(exported)
    assert report["withheld"] == len(withheld)
    assert report["closer"] == len(withheld) / len(records)
    printed = capsys.readouterr().out
    assert f"{len(exported)} of {len(records)} images passed" in printed
    assert printed.endswith("report.json and closest_pairs.png reveal real tiles.\n")


def test_export_again_replaces_its_own_folder_whole(arguments, tmp_path):
    out = tmp_path / "out"
    keep_images(tmp_path, 5)
    assert main(arguments) == 0
    first = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    passed = next((out / "images").iterdir())
    passed.unlink()
    killed, of_user = tmp_path / ".out.0a1b2c3d.part", tmp_path / ".out.part"  # of an export, and a user's
    for folder in (killed, of_user):
        folder.mkdir()
        (folder / "half").write_text("x")
    assert main(arguments) == 0
    assert {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()} == first
    (tmp_path / "gen" / passed.name).unlink()
    assert main(arguments) == 0
    assert not passed.exists()
    assert not killed.exists()
    assert of_user.exists()


def test_an_export_that_fails_leaves_the_old_one(arguments, tmp_path, monkeypatch):
    keep_images(tmp_path, 5)
    assert main(arguments) == 0
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(figures, "save_figure", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_published_images_of_231_px_are_brought_back(arguments, real, planted, tmp_path, capsys):
    shutil.rmtree(tmp_path / "gen")
    (tmp_path / "gen").mkdir()
    for number, image in enumerate(planted[28:], start=1):
        picture(image).resize((231, 231), Image.BICUBIC).save(tmp_path / "gen" / f"{number}.jpg", quality=75)
    assert main([*arguments, "--set", "image_size_px=64"]) == 0
    assert "231 px are resized to the originals' 64 px" in capsys.readouterr().out
    records = json.loads((tmp_path / "out" / "report.json").read_text())["images"]
    assert {record["decision"] for record in records[2:]} == {"withheld"}


def foreign(out):
    out.mkdir()
    (out / "thesis.txt").write_text("keep me")


def own_and_foreign(out):
    foreign(out)
    write_json(out / "report.json", {"made_by": export.MADE_BY, "images": []})


BAD = {
    "no generated folder": (lambda p: shutil.rmtree(p / "gen"), "There are no images in"),
    "empty generated folder": (lambda p: [f.unlink() for f in (p / "gen").iterdir()], "There are no images in"),
    "unreadable image": (lambda p: (p / "gen" / "5.png").write_bytes(b"hello"), "5.png cannot be read as an image"),
    "grey among RGB": (lambda p: Image.new("L", (64, 64)).save(p / "gen" / "5.png"), "5.png has the colour mode L"),
    "another size": (lambda p: Image.new("RGB", (32, 32)).save(p / "gen" / "5.png"), "must have one size"),
    "no data": (lambda p: (p / "tiles.npy").unlink(), "There is no data at"),
    "foreign folder": (lambda p: foreign(p / "out"), "holds files that no export wrote, such as thesis.txt"),
    "own folder with a foreign file": (lambda p: own_and_foreign(p / "out"), "such as thesis.txt"),
    "a report of something else": (
        lambda p: write_json(p / "out" / "report.json", {"images": [{"file": "1.png"}]}), "such as report.json",
    ),
    "a report without images": (
        lambda p: write_json(p / "out" / "report.json", {"made_by": export.MADE_BY}), "such as report.json",
    ),
    "out is a file": (lambda p: (p / "out").write_text("keep me"), "is a file"),
    "held-out tiles that were trained on": (
        lambda p: save(p / "tiles.npy", torch.cat([tissue(60), tissue(6)])), "are themselves copies",
    ),
    "tiles of another size": (lambda p: save(p / "tiles.npy", tissue(30, side=48)), "The tiles of"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_of_export(case, arguments, tmp_path, capsys):
    spoil, message = BAD[case]
    spoil(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(arguments) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len([line for line in printed if line.startswith("error: ")]) == 1
    assert message in printed[-1]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_export_of_one_image(arguments, tmp_path):
    keep_images(tmp_path, 1)
    assert main(arguments) == 0
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["images"]) == 1
