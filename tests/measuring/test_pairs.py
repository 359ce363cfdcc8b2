"""Image metrics against independent implementations, and what is said about bad folders."""

import hashlib
import http.server
import io
import json
import threading
import urllib.error
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision.models
from PIL import Image
from pytorch_msssim import ms_ssim, ssim
from skimage.metrics import structural_similarity

from pfiles import latents
from pfiles import lpips as lpips_module
from pfiles.errors import InputError
from pfiles.lpips import LPIPS, heads_path
from pfiles.lpips_metric import LPIPS as METRIC_LPIPS
from pfiles.measuring import controls, pairs
from pfiles.reporting import figures, tables
from pfiles.tiles import files, pixels
from tests.conftest import make_tiles, write


@pytest.fixture
def two_sets():
    rng = np.random.default_rng(0)
    a = make_tiles(6, 64)
    b = np.clip(a + rng.normal(0, 30, a.shape), 0, 255).astype(np.uint8)
    return pixels.as_tensor(a), pixels.as_tensor(b)


def test_psnr_by_hand():
    a, b = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.1)
    assert pairs.psnr(a, b).tolist() == pytest.approx([20.0, 20.0], abs=1e-5)  # 10 log10(1 / 0.01)
    assert pairs.psnr(a, a).tolist() == [100, 100]


def test_ssim_equals_another_implementation(two_sets):
    a, b = (images.double() for images in two_sets)
    expected = ssim(a, b, data_range=255, size_average=False)
    np.testing.assert_allclose(pairs.ssim(*two_sets), expected, atol=1e-5)


def hard_pairs():
    """Pairs on which single precision goes wrong: bright and flat, noise, black against white, sides that are odd."""
    rng = np.random.default_rng(1)
    flat = np.full((1, 64, 64, 3), (243, 240, 244), np.uint8)
    dots = flat.copy()
    dots[:, ::7, ::5] -= 1
    yield flat, dots
    yield flat, np.full_like(flat, (240, 235, 244))
    yield rng.integers(0, 256, (2, 3, 61, 61, 3), dtype=np.uint8)
    yield np.zeros_like(flat), np.full_like(flat, 255)
    yield make_tiles(3, 128, seed=3), make_tiles(3, 128, seed=4)


@pytest.mark.parametrize(("a", "b"), list(hard_pairs()))
def test_both_readings_of_ssim_equal_scikit_image(a, b):
    gaussian = {"channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for score, reading in ((pairs.ssim, gaussian), (pairs.ssim_published, {"win_size": 3})):
        expected = [structural_similarity(x, y, data_range=255, **reading) for x, y in zip(a, b, strict=True)]
        np.testing.assert_allclose(score(pixels.as_tensor(a), pixels.as_tensor(b)), expected, atol=2e-5)


@pytest.mark.parametrize("side", [64, 128, 160, 164, 232])
def test_ms_ssim_enlarges_what_is_too_small(side):
    a = make_tiles(3, side, seed=1)
    b = np.clip(a + np.random.default_rng(2).normal(0, (20, 60, 200), (side, side, 3, 3)).transpose(3, 0, 1, 2), 0, 255)
    x, y = a, b = a, b.astype(np.uint8)
    if side <= 160:
        x, y = (np.stack([np.asarray(Image.fromarray(i).resize((231, 231), Image.BICUBIC)) for i in v]) for v in (a, b))
        assert f"images of {side} px are enlarged to 231 px" in pairs.ms_ssim_rule(side)
    else:
        assert f"their own {side} px" in pairs.ms_ssim_rule(side)
    a, b, x, y = map(pixels.as_tensor, (a, b, x, y))
    expected = ms_ssim(x.float(), y.float(), data_range=255, size_average=False)
    assert expected.min() > 0.05
    np.testing.assert_allclose(pairs.ms_ssim(a, b), expected, atol=1e-4)


@pytest.mark.parametrize("score", [pairs.ssim, pairs.ssim_published, pairs.ms_ssim])
def test_equal_images_score_one(score, two_sets):
    np.testing.assert_allclose(score(two_sets[0], two_sets[0]), 1, atol=1e-5)


@pytest.mark.parametrize("score", [pairs.ssim, pairs.ssim_published, pairs.ms_ssim])
def test_scores_do_not_depend_on_the_batch(score, two_sets):
    together = score(*two_sets)
    alone = np.concatenate([score(a[None], b[None]) for a, b in zip(*two_sets, strict=True)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def same_tile(a, b):
    return (a == b).flatten(1).all(1).double().numpy()


def test_controls_pair_as_they_say():
    """The score is one where the partner's cluster is that of the real tile: a tile's grey level is its cluster."""
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    real = torch.tensor(labels * 60 + np.arange(9), dtype=torch.uint8)[:, None, None, None].expand(9, 3, 8, 8)

    def same_cluster(a, b):
        return (a[:, 0, 0, 0] // 60 == b[:, 0, 0, 0] // 60).double().numpy()

    flat = real.double().mean().round().item()
    expected = {
        "generated": 1,
        "another real tile of the cluster": 1,
        "a real tile of another cluster": 0,
        "flat mean colour": np.mean(labels == flat // 60),
        "the real tile itself": 1,
    }
    table = controls.paired_controls(same_cluster, real, real, labels, seed=1)
    assert table["mean"].to_dict() == pytest.approx(expected)
    table = controls.paired_controls(same_tile, real, real, labels, seed=1)
    assert table["mean"].tolist() == [1, 0, 0, 0, 1]
    assert table.pairs.tolist() == [9] * 5


def test_controls_without_a_partner_are_left_out():
    real = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 4, 4)
    table = controls.paired_controls(same_tile, real, real, np.array([0, 0, 1]), seed=0)
    assert table.loc["another real tile of the cluster", ["pairs", "mean"]].tolist() == [2, 0]  # the two that have one
    table = controls.paired_controls(same_tile, real, real, np.zeros(3, int), seed=0)
    assert "a real tile of another cluster" not in table.index
    table = controls.paired_controls(same_tile, real, real, None, seed=0)
    assert list(table.index) == ["generated", "another real tile", "flat mean colour", "the real tile itself"]


def red(values):
    """Images whose red is the score that `read_red` gives them."""
    images = torch.zeros(len(values), 3, 4, 4, dtype=torch.uint8)
    images[:, 0] = torch.tensor(values)[:, None, None]
    return images


def read_red(a, b):
    return b[:, 0, 0, 0].double().numpy()


def test_intervals_and_differences_are_right():
    rng = np.random.default_rng(0)
    real, generated = rng.integers(100, 110, 400), rng.integers(103, 113, 400)
    table = controls.paired_controls(read_red, red(real), red(generated), np.arange(400) % 2, seed=3)
    ours = table.loc["generated"]
    half = 1.96 * generated.std() / 20  # of the normal interval of a mean of 400
    assert (ours.low, ours.high) == pytest.approx((generated.mean() - half, generated.mean() + half), abs=0.06)
    itself = table.loc["the real tile itself"]
    assert itself.difference == pytest.approx((generated - real).mean())
    half = 1.96 * (generated - real).std() / 20
    assert itself.difference_high - itself.difference == pytest.approx(half, abs=0.06)
    assert table.distinguishable[1:].all()
    shuffled = controls.paired_controls(read_red, red(real), red(rng.permutation(real)), np.arange(400) % 2, seed=3)
    assert not shuffled.loc["another real tile of the cluster", "distinguishable"]
    again = controls.paired_controls(read_red, red(real), red(generated), np.arange(400) % 2, seed=3)
    pd.testing.assert_frame_equal(table, again)


def test_the_verdict_is_one_sentence_that_names_every_control_once():
    table = controls.paired_controls(read_red, red([100, 104] * 50), red([101, 105] * 50), np.arange(100) % 2, seed=0)
    sentence = controls.verdict("Red", table)
    assert sentence.startswith("Red of generated tiles is 103.000 (95 % interval 102.")
    assert "can be told from another real tile of the cluster (higher by 1.000)" in sentence
    assert "and the real tile itself (higher by 1.000), but" not in sentence
    assert sentence.endswith("excludes 0.")
    assert ". " not in sentence
    for control in table.index[1:]:
        assert sentence.count(control) == 1


def test_a_verdict_on_a_copier_and_on_a_flat_colour(two_sets):
    real, _ = two_sets
    labels = np.arange(len(real)) % 2
    table = controls.paired_controls(pairs.ssim, real, real, labels, seed=0)
    assert not table.loc["the real tile itself", "distinguishable"]
    assert table.loc["flat mean colour", "distinguishable"]
    assert "cannot be told from the real tile itself;" in controls.verdict("SSIM", table)
    flat = real.double().mean((0, 2, 3), keepdim=True).round().byte().expand(real.shape)
    table = controls.paired_controls(pairs.ssim, real, flat, labels, seed=0)
    assert not table.loc["flat mean colour", "distinguishable"]
    assert table.loc["the real tile itself", ["mean", "low", "high"]].tolist() == pytest.approx([1, 1, 1])


def test_tables_become_plain_values():
    table = pd.DataFrame({"a": [1, np.nan], "b": [True, np.nan]}, index=["x", 3])
    assert tables.plain(table) == {"x": {"a": 1.0, "b": True}, "3": {}}
    json.dumps(tables.plain(table))


def test_folders_pair_by_number(tmp_path):
    tiles = make_tiles(12, 16)
    numbers = [1, 2, 3, 10, 11, 100, 20, 30, 4, 5, 6, 7]
    write(tmp_path / "org", numbers, tiles)
    write(tmp_path / "gen", numbers, tiles, "jpg")  # published files are JPEG
    names, real, generated = files.load_pairs(tmp_path / "org", tmp_path / "gen")
    assert [int(name) for name in names] == sorted(numbers)
    np.testing.assert_array_equal(pixels.as_array(real), tiles[np.argsort(numbers)])
    assert (real.int() - generated).abs().float().mean() < 30


def test_generated_images_of_another_size_are_resized(tmp_path, capsys):
    write(tmp_path / "org", range(3), make_tiles(3, 16))
    write(tmp_path / "gen", range(3), make_tiles(3, 32))
    _, real, generated = files.load_pairs(tmp_path / "org", tmp_path / "gen")
    assert generated.shape == real.shape
    assert "32 px are resized to the originals' 16 px" in capsys.readouterr().out


def test_the_published_folders_work_as_they_are(tmp_path):
    """231 px JPEG in `org` and `gen_14`: paired by name, scored at their own size, nothing resized."""
    for seed, folder in enumerate(("org", "gen_14")):
        images = pixels.resize(pixels.as_tensor(make_tiles(6, 128, seed)), 231)
        write(tmp_path / folder, [1, 2, 10, 3, 11, 4], pixels.as_array(images), "jpg")
    names, real, generated = files.load_pairs(tmp_path / "org", tmp_path / "gen_14")
    assert names == ["1", "2", "3", "4", "10", "11"]
    assert real.shape == generated.shape == (6, 3, 231, 231)
    assert "their own 231 px" in pairs.ms_ssim_rule(231)
    expected = ms_ssim(real.float(), generated.float(), data_range=255, size_average=False)
    np.testing.assert_allclose(pairs.ms_ssim(real, generated), expected, atol=1e-4)


def test_an_unreadable_image_is_named(tmp_path):
    for folder in ("org", "gen"):
        write(tmp_path / folder, range(3), make_tiles(3, 16))
    (tmp_path / "gen" / "1.png").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"1\.png cannot be read as an image"):
        files.load_pairs(tmp_path / "org", tmp_path / "gen")
    Image.fromarray(make_tiles(1, 16)[0][..., 0]).save(tmp_path / "gen" / "1.png")
    with pytest.raises(InputError, match=r"1\.png has the colour mode L"):
        files.load_pairs(tmp_path / "org", tmp_path / "gen")


def test_folders_that_do_not_pair(tmp_path):
    write(tmp_path / "org", [1, 2, 3, 4, 5], make_tiles(5, 16))
    write(tmp_path / "gen", [1, 7], make_tiles(2, 16))
    with pytest.raises(InputError, match=r"of 5 in .* 2, 3, 4 \(and 1 more\) are there alone, and of 2 .* 7 is there"):
        files.load_pairs(tmp_path / "org", tmp_path / "gen")
    with pytest.raises(InputError, match=r"7 is there alone, and of 5 .* 2, 3, 4 \(and 1 more\) are"):
        files.load_pairs(tmp_path / "gen", tmp_path / "org")
    Image.fromarray(make_tiles(1, 16)[0]).save(tmp_path / "gen" / "1.jpg")
    with pytest.raises(InputError, match=r"holds both 1\.(jpg|png) and 1\.(jpg|png)"):
        files.load_pairs(tmp_path / "org", tmp_path / "gen")
    with pytest.raises(InputError, match="no images in"):
        files.load_pairs(tmp_path / "org", tmp_path / "nothing")


def test_labels_come_from_the_csv(tmp_path):
    path = tmp_path / "c.csv"
    with pytest.raises(InputError, match="run part_5"):
        latents.pair_cluster_ids(path, ["1"])
    path.write_text("0.5,0.5,2,0.9\n0.4,0.6,0,0.8\n0.4,0.6,1,0.8\n")
    assert latents.pair_cluster_ids(path, ["3", "1"]).tolist() == [1, 2]
    with pytest.raises(InputError, match="has 3 rows, but image 4"):
        latents.pair_cluster_ids(path, ["4"])
    for name in ("0", "img1", "-1"):
        with pytest.raises(InputError, match="named by their number from 1"):
            latents.pair_cluster_ids(path, ["1", name])


def test_the_best_of_each_column_is_marked():
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [0.5, 0.25]}, index=[10, 14])
    marked = tables.mark_best(table, {"a": "higher", "b": "lower"})
    assert marked.to_numpy().tolist() == [["1.00000", "0.50000"], ["2.00000 *", "0.25000 *"]]
    assert tables.mark_best(table[:0], {"a": "higher"}).empty


def test_summary_keeps_other_sections(tmp_path):
    tables.record(tmp_path / "s.json", "a", {"x": 1})
    tables.record(tmp_path / "s.json", "b", {"x": 2})
    tables.record(tmp_path / "s.json", "a", {"x": 3})
    assert tables.read_json(tmp_path / "s.json") == {"a": {"x": 3}, "b": {"x": 2}}


def test_figure_4_tiles():
    assert figures.figure_4_tiles(1000).tolist() == [691, 755, 467, 733, 979]
    assert figures.figure_4_tiles(9).tolist() == [0, 2, 4, 6, 8]


# LPIPS


def stand_in(tmp_path):
    """A file with VGG16's names and shapes under a name that carries its hash; the numbers are not pretrained ones."""
    generator = torch.Generator().manual_seed(0)
    state = {
        f"features.{name.split('.', 2)[2]}": torch.randn(tensor.shape, generator=generator) * tensor[0].numel() ** -0.5
        for name, tensor in LPIPS().net.state_dict(prefix="net.").items()
    }
    path = tmp_path / "vgg16.pth"
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(tmp_path / f"vgg16-{digest[:8]}.pth")


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty cache of torch's, as on a machine that never downloaded anything."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def weights_at(monkeypatch, url):
    monkeypatch.setattr(torchvision.models, "VGG16_Weights", SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=url)))


def test_lpips_downloads_checks_and_keeps_vgg16(tmp_path, torch_home, monkeypatch):
    folder = tmp_path / "server"
    folder.mkdir()
    file = stand_in(folder)
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    weights_at(monkeypatch, f"http://127.0.0.1:{server.server_port}/{file.name}")
    try:
        lpips = METRIC_LPIPS()
        a = torch.rand(2, 3, 32, 32)
        assert lpips(a, a).flatten().tolist() == [0, 0]  # the first use fetches the weights
    finally:
        server.shutdown()
        server.server_close()
    assert (torch_home / file.name).exists()
    assert torch.equal(lpips.net.slice1[0].weight, torch.load(torch_home / file.name)["features.0.weight"])
    heads = torch.load(heads_path(), map_location="cpu", weights_only=True)
    assert torch.equal(lpips.lin3.model[1].weight, heads["lin3.model.1.weight"])
    LPIPS().load_pretrained()  # from the cache: the server is gone


def test_lpips_says_what_to_do_offline(torch_home, monkeypatch):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(InputError) as info:
        LPIPS().load_pretrained()
    message = str(info.value)
    for part in ("vgg16-397923af.pth", str(torch_home), "https://download.pytorch.org", "397923af", "ms-ssim"):
        assert part in message


def test_lpips_refuses_weights_of_another_hash(tmp_path, torch_home, monkeypatch):
    file = stand_in(tmp_path)
    torch_home.mkdir(parents=True)
    file.rename(torch_home / "vgg16-00000000.pth")
    weights_at(monkeypatch, "http://localhost/vgg16-00000000.pth")
    with pytest.raises(InputError, match=r"LPIPS needs VGG16.* is another file"):
        LPIPS().load_pretrained()


def test_lpips_never_computes_without_weights(torch_home, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("offline")))
    lpips = LPIPS()
    lpips.load_state_dict(
        torch.load(heads_path(), map_location="cpu", weights_only=True), strict=False
    )  # only a part of them
    with pytest.raises(InputError, match="needs VGG16"):
        lpips(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))


def test_lpips_score_takes_uint8(two_sets):
    network = LPIPS()
    state = {name: torch.rand(tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict(state)
    a, b = two_sets
    x, y = (v.float() / 127.5 - 1 for v in two_sets)
    np.testing.assert_allclose(pairs.lpips_score(network)(a, b), network(x, y).flatten(), rtol=1e-4)


def broken_heads(case):
    """The bytes of a `weights/vgg.pth` that does not hold the heads."""
    heads = torch.load(heads_path(), map_location="cpu", weights_only=True)
    if case == "no file of torch":
        return b"not weights at all"
    if case == "half a file":
        return heads_path().read_bytes()[:2000]
    changed = {
        "a list": [1, 2],
        "a head is missing": dict(list(heads.items())[1:]),
        "another size": heads | {"lin0.model.1.weight": torch.zeros(1, 3, 1, 1)},
        "NaN": heads | {"lin0.model.1.weight": torch.full((1, 64, 1, 1), torch.nan)},
        "text": heads | {"lin0.model.1.weight": "text"},
    }[case]
    buffer = io.BytesIO()
    torch.save(changed, buffer)
    return buffer.getvalue()


BROKEN = ("no file of torch", "half a file", "a list", "a head is missing", "another size", "NaN", "text")


@pytest.mark.parametrize("case", BROKEN)
def test_broken_heads_are_one_sentence(case, tmp_path, monkeypatch):
    content = broken_heads(case)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "vgg.pth").write_bytes(content)
    monkeypatch.setattr(lpips_module, "ROOT", tmp_path)
    with pytest.raises(InputError, match=r"^[^\n]*weights/vgg\.pth does not hold LPIPS's five linear heads: [^\n]*\.$"):
        LPIPS().load_pretrained()
