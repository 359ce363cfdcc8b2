"""Memorisation: planted copies are caught, honest images pass, and the shortlist finds what a full search finds."""

import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.stats import norm

from pfiles.__main__ import main
from pfiles.checkpoints import identity
from pfiles.errors import InputError
from pfiles.measuring import memorisation
from pfiles.paths import write_json
from pfiles.reporting import export, figures
from pfiles.settings import get_settings
from pfiles.tiles.dataset import Tiles, load_tiles
from pfiles.tiles.files import write_tiles
from pfiles.tiles.pixels import as_array, as_tensor


def tissue(n, side=64, seed=0):
    """Random tiles with structure of the size of nuclei, in the colours of H&E: uint8 (n, 3, side, side)."""
    noise = np.random.default_rng(seed).standard_normal((n, side, side, 3))  # axes as ever: the tiles stay the same
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 0)) + 0.5 * ndimage.gaussian_filter(noise, (0, 6, 6, 0))
    smooth += smooth.mean(axis=3, keepdims=True)
    return as_tensor((np.array([170, 120, 180]) + 35 * smooth / smooth.std()).clip(0, 255).astype(np.uint8))


def picture(image):
    return Image.fromarray(as_array(image[None])[0])


def as_jpeg(image):
    buffer = io.BytesIO()
    picture(image).save(buffer, "JPEG", quality=75)
    return as_tensor(np.asarray(Image.open(buffer))[None])[0]


def moved(image, down, right):
    return image.roll((down, right), (1, 2))


COPIES = {
    "exact": lambda x: x,
    "mirrored": lambda x: x.flip(2),
    "turned": lambda x: x.rot90(3, (1, 2)),
    "mirrored and turned": lambda x: x.flip(2).rot90(1, (1, 2)),
    "moved": lambda x: moved(x, 2, -2),
    "jpeg": as_jpeg,
    "5 % brighter": lambda x: (x * 1.05).clamp(0, 255).byte(),
    "5 % darker": lambda x: (x * 0.95).byte(),
    "all of these": lambda x: as_jpeg((moved(x.flip(1), -1, 2) * 0.95).byte()),
}


@pytest.fixture(scope="module")
def real():
    return Tiles(tissue(180), np.arange(120), np.arange(120, 180), "random tissue")


@pytest.fixture(scope="module")
def planted(real):
    """Honest images 0 ... 29, and behind them a copy of another training tile for each kind of copy."""
    copies = [copy(real.images[10 * i]) for i, copy in enumerate(COPIES.values())]
    return torch.cat([tissue(30, seed=1), torch.stack(copies)])


def full_search(image, tile):
    """The highest correlation over all views and shifts, one at a time, as the docstring defines it. -> (c, view)"""
    grey = [x.numpy().mean(axis=0) for x in (image, tile)]
    grey = [x - ndimage.uniform_filter(x, 21) for x in grey]  # 21 of 64 px: 5 / 16
    best = []
    for view in range(8):
        a = np.rot90(grey[0], view % 4)
        a = (a[:, ::-1] if view >= 4 else a)[2:-2, 2:-2]
        for y in range(5):
            for x in range(5):
                b = grey[1][y : y + 60, x : x + 60]
                best.append(((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()), view, y - 2, x - 2))
    return max(best)


def test_every_planted_copy_is_caught_and_honest_images_pass(real, planted):
    held_out = memorisation.nearest_tiles(real.images[120:], real.images[:120])
    nearest = memorisation.nearest_tiles(planted, real.images[:120])
    limit = memorisation.against_held_out(nearest.distance, held_out.distance)["threshold"]
    assert nearest.tile[30:].tolist() == [10 * i for i in range(len(COPIES))]
    assert (nearest.distance[30:] < memorisation.COPY).all()
    assert limit > memorisation.COPY
    assert (nearest.distance[:30] >= limit).mean() > 0.9


def test_the_shortlist_against_a_full_search(real, planted):
    images, train = planted[20:36], real.images[:40]
    nearest = memorisation.nearest_tiles(images, train)
    full = np.array([[full_search(image, tile) for tile in train] for image in images])  # (16, 40, 4)
    expected = 1 - full[:, :, 0].max(axis=1)
    copies = full[:, :, 0].max(axis=1) > 0.9
    assert copies.sum() == 4  # the copies of tiles 0, 10, 20 and 30
    np.testing.assert_allclose(nearest.distance[copies], expected[copies], atol=1e-4)
    assert (nearest.distance >= expected - 1e-4).all()
    assert np.isclose(nearest.distance, expected, atol=1e-4).mean() > 0.8
    # what is reported of each pair is what the full search finds for it
    for row, found in zip(nearest.itertuples(), full, strict=True):
        c, view, shift_y, shift_x = found[row.tile]
        assert row.distance == pytest.approx(1 - c, abs=1e-4)
        assert (row.view, row.shift_y, row.shift_x) == (view, shift_y, shift_x)


def test_rows_do_not_depend_on_the_batch(real, planted, monkeypatch):
    at_once = memorisation.nearest_tiles(planted, real.images[:120])
    monkeypatch.setattr(memorisation, "BATCH_SIZE", 7)
    again = memorisation.nearest_tiles(planted, real.images[:120])
    assert again.drop(columns="distance").equals(at_once.drop(columns="distance"))
    np.testing.assert_allclose(again.distance, at_once.distance, atol=1e-5)


def test_a_training_tile_is_laid_over_its_copy(real):
    for quarters in range(4):
        for mirrored in (False, True):
            copy = moved(real.images[3], -2, 1).rot90(quarters, (1, 2))
            copy = copy.flip(2) if mirrored else copy
            row = next(memorisation.nearest_tiles(copy[None], real.images[:5]).itertuples())
            over, inside = memorisation.aligned(real.images[3], row.view, row.shift_y, row.shift_x)
            assert row.tile == 3
            assert torch.equal(over[:, 2:-2, 2:-2], copy[:, 2:-2, 2:-2])
            assert inside.sum() == 62 * 63


FAR = [(6, -6), (-10, 3), (0, 16), (16, 16), (-16, 16), (-12, -16), (3, -3), (14, -9)]  # pixels, of 64


def cut_from_larger(shifts, seed=5):
    """A tile of 64 px from each larger piece of tissue, and the same piece cut `shifts` further down and right."""
    pieces = tissue(len(shifts), side=96, seed=seed)
    moved = [piece[:, 16 + y : 80 + y, 16 + x : 80 + x] for piece, (y, x) in zip(pieces, shifts, strict=True)]
    return pieces[:, :, 16:80, 16:80], torch.stack(moved)


def viewed(image, view):
    turned = image.rot90(view % 4, (1, 2))
    return turned.flip(2) if view >= 4 else turned


def test_copies_shifted_by_up_to_a_quarter_are_caught(real):
    """Each in another view; tile, view and shift are told, and the tile laid over the copy equals it."""
    tiles, copies = cut_from_larger(FAR)
    copies = torch.stack([viewed(copy, view) for view, copy in enumerate(copies)])
    train = torch.cat([real.images[:120], tiles])
    held_out = memorisation.nearest_tiles(real.images[120:], train)
    nearest = memorisation.nearest_tiles(copies, train)
    assert nearest.tile.tolist() == [*range(120, 128)]
    assert nearest.distance.max() < 0.5 * held_out.distance.min()
    for row, tile, copy, (y, x) in zip(nearest.itertuples(), tiles, copies, FAR, strict=True):
        assert (row.shift_y, row.shift_x) == (y, x)
        over, inside = memorisation.aligned(tile, row.view, row.shift_y, row.shift_x)
        assert inside.sum() == (64 - abs(y)) * (64 - abs(x))
        assert torch.equal(over[:, inside], copy[:, inside])


@pytest.mark.parametrize("change", [as_jpeg, lambda x: (x * 0.9).byte()])
def test_shifted_copies_that_were_changed_besides_are_caught(real, change):
    tiles, copies = cut_from_larger(FAR, seed=6)
    train = torch.cat([real.images[:120], tiles])
    nearest = memorisation.nearest_tiles(torch.stack([change(copy) for copy in copies]), train)
    assert nearest.tile.tolist() == [*range(120, 128)]
    assert (nearest.distance < 0.35).all()


def overlap_correlation(image, tile, y, x):
    """Of grey values less their local mean, where the image and the tile that lies y, x further on overlap."""
    a, b = (x.numpy().mean(axis=0) for x in (image, tile))
    a, b = (grey - ndimage.uniform_filter(grey, 21) for grey in (a, b))
    rows, columns = (slice(max(0, -d), 64 - max(0, d)) for d in (y, x))
    there, across = (slice(max(0, d), 64 - max(0, -d)) for d in (y, x))
    a, b = a[rows, columns], b[there, across]
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def test_far_shifts_against_a_full_search(real):
    tiles, copies = cut_from_larger(FAR[:4])
    nearest = memorisation.nearest_tiles(copies, torch.cat([real.images[:30], tiles]))
    shifts = [(y, x) for y in range(-16, 17) for x in range(-16, 17)]
    for row, copy, tile in zip(nearest.itertuples(), copies, tiles, strict=True):
        found = {shift: overlap_correlation(copy, tile, *shift) for shift in shifts}
        best = max(found, key=found.get)
        assert (row.shift_y, row.shift_x) == best
        assert row.distance == pytest.approx(1 - found[best], abs=1e-4)


def test_empty_background_that_overlaps_is_no_copy():
    """Tissue at the upper and at the lower end, fading into white: tiles shifted such that the white overlaps."""
    fading = torch.sigmoid((8 - torch.arange(64.0)) / 2)[:, None]
    fading[fading < 0.02] = 0
    a, b = (tissue(1, seed=seed) for seed in (7, 8))
    sides = ((fading, a.double()), (fading.flip(0), b.double()))
    a, b = (200 + f * (x - x.mean((2, 3), keepdim=True)) for f, x in sides)
    assert memorisation.nearest_tiles(a.byte(), b.byte()).distance[0] > 0.6


def test_coarse_layout_is_no_copy():
    """Tiles that share an empty corner share nothing that could be remembered."""
    a, b = tissue(1, seed=2), tissue(1, seed=3)
    corner = torch.arange(64)[:, None] + torch.arange(64) < 50
    for image in (a, b):
        image[:, :, corner] = 235
    plain = np.corrcoef(a.flatten(), b.flatten())[0, 1]
    assert plain > 0.5
    assert memorisation.nearest_tiles(a, b).distance[0] > 0.6


def test_a_flat_tile_is_near_to_nothing():
    flat = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    assert memorisation.nearest_tiles(flat, torch.cat([tissue(3), flat])).distance[0] == 1


def test_sizes_that_differ_are_refused():
    with pytest.raises(InputError, match="of one size"):
        memorisation.nearest_tiles(tissue(1), tissue(1, side=48))


def test_nearest_in_a_feature_space_by_hand():
    train = np.array([[0.0, 0], [3, 4], [10, 10]])
    nearest = memorisation.nearest_features(np.array([[3.0, 3], [0, 1], [6, 8]]), train)
    assert nearest.tile.tolist() == [1, 0, 2]
    assert nearest.distance.tolist() == pytest.approx([1, 1, 20**0.5])


def test_against_held_out_by_hand():
    found = memorisation.against_held_out(np.arange(50), np.arange(2, 201))
    assert found["threshold"] == 3  # the second smallest of 199: two in 200 spaces lie before it
    z, n, p = norm.ppf(0.975), 50, 3 / 50
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert found["closer"] == p
    assert found["low"] == pytest.approx((centre - half) / (1 + z**2 / n))
    assert found["high"] == pytest.approx((centre + half) / (1 + z**2 / n))
    assert found["expected"] == 0.01
    assert memorisation.against_held_out(np.ones(5), np.ones(5))["closer"] == 0  # not closer, so not too close


def test_few_held_out_tiles_expect_more_than_one_percent():
    found = memorisation.against_held_out(np.array([0.5]), np.arange(1.0, 10))
    assert found["threshold"] == 1
    assert found["expected"] == pytest.approx(0.1)
    assert found["chance"] == pytest.approx(0.1)  # one image of ten is the closest


def test_a_split_that_leaks_is_judged_by_plain_copies():
    """Where held-out tiles are copies, a total memoriser is told from an honest generator all the same."""
    leaking = np.concatenate([np.zeros(3), np.full(96, 0.7)])  # of 99, the closest one is the threshold
    copier, sentence = memorisation.judge(np.zeros(40), leaking, "tiles.npy")
    assert copier["threshold"] == memorisation.COPY
    assert copier["closer"] == copier["high"] == 1
    assert copier["low"] == pytest.approx(40 / (40 + norm.ppf(0.975) ** 2))
    assert copier["expected"] is copier["chance"] is None
    assert "held-out tiles of tiles.npy are themselves copies" in sentence
    assert sentence.endswith(".")
    assert memorisation.judge(np.full(40, 0.6), leaking, "x")[0]["closer"] == 0
    sound = np.linspace(0.5, 1, 99)
    assert memorisation.judge(np.full(4, 0.6), sound, "x") == (memorisation.against_held_out([0.6] * 4, sound), "")


def test_chance_agrees_with_a_simulation():
    rng = np.random.default_rng(0)
    draws = [memorisation.against_held_out(rng.random(40), rng.random(199)) for _ in range(1000)]
    assert np.mean([draw["closer"] for draw in draws]) == pytest.approx(0.01, abs=0.002)
    one_or_more = next(draw["chance"] for draw in draws if draw["closer"] == 1 / 40)
    assert np.mean([draw["closer"] > 0 for draw in draws]) == pytest.approx(one_or_more, abs=0.04)


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


def generated_with(folder, data, max_train_tiles=None):
    """Leaves beside the images what part 6 leaves there."""
    tiles = load_tiles(data, 64, max_train_tiles)
    about = identity(get_settings("demo"), ["diffusion"], tiles, 765, {}, steps=50)
    write_json(folder / "gen" / "generated_with.json", about)


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
    assert {path.name for path in out.iterdir()} == {"images", "report.json", "closest_pairs.png"}
    assert np.asarray(Image.open(out / "closest_pairs.png")).ndim == 3
    for name in exported:
        assert (out / "images" / name).read_bytes() == (tmp_path / "gen" / name).read_bytes()
    exact = records["31.png"]
    assert exact == {
        "file": "31.png", "decision": "withheld", "nearest_training_tile": 1, "nearest_tile_in_data": 0,
        "distance": pytest.approx(0, abs=1e-5), "rms_difference": 0, "threshold": report["threshold"],
    }  # fmt: skip
    assert report["exported"] == len(exported)
    assert report["withheld"] == len(withheld)
    assert report["closer"] == len(withheld) / len(records)
    assert f"{len(exported)} of {len(records)} images passed" in capsys.readouterr().out


def test_export_again_replaces_its_own_folder_whole(arguments, tmp_path):
    out = tmp_path / "out"
    keep_images(tmp_path, 5)
    assert main(arguments) == 0
    first = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    passed = next((out / "images").iterdir())
    passed.unlink()
    (tmp_path / ".out.part").mkdir()  # of an export that was killed
    (tmp_path / ".out.part" / "half").write_text("x")
    assert main(arguments) == 0
    assert {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()} == first
    (tmp_path / "gen" / passed.name).unlink()
    assert main(arguments) == 0
    assert not passed.exists()
    assert not (tmp_path / ".out.part").exists()


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


def test_pairs_are_shown_side_by_side(planted):
    tiles = planted[:7]
    figure = figures.show_pairs(tiles, tiles.flip(0), [str(i) for i in range(7)], "title")
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in shown] == [str(i) for i in range(7)]
    grid = shown[0].images[0].get_array()
    both = as_array(planted[[0, 6]])
    np.testing.assert_array_equal(grid[2:66, 2:66], both[0])
    np.testing.assert_array_equal(grid[2:66, 68:132], both[1])


def test_histograms_of_nearest_distances_are_shares():
    figure = figures.plot_nearest({"held-out tiles": np.linspace(0, 1, 9), "generated images": np.ones(4)}, 0.1, "x")
    heights = [sum(bar.get_height() for bar in group) for group in figure.axes[0].containers]
    assert heights == pytest.approx([1, 1])
    assert figure.axes[0].lines[0].get_xdata()[0] == 0.1
