"""Image metrics against independent implementations, and what is said about bad folders."""

import hashlib
import http.server
import threading
import urllib.error
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision.models
from conftest import make_tiles
from PIL import Image
from pytorch_msssim import ms_ssim, ssim
from scipy.ndimage import uniform_filter

from pfiles import figures, metrics
from pfiles.errors import InputError
from pfiles.lpips import LPIPS, heads_path
from pfiles.lpips_metric import LPIPS as METRIC_LPIPS


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    a = make_tiles(6, 64)
    return a, np.clip(a + rng.normal(0, 30, a.shape), 0, 255).astype(np.uint8)


def test_psnr_by_hand():
    a, b = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.1)
    assert metrics.psnr(a, b).tolist() == pytest.approx([20.0, 20.0], abs=1e-5)  # 10 log10(1 / 0.01)
    assert metrics.psnr(a, a).tolist() == [100, 100]


def test_ssim_equals_another_implementation(pairs):
    a, b = (torch.tensor(images).permute(0, 3, 1, 2).double() for images in pairs)
    expected = ssim(a, b, data_range=255, size_average=False)
    np.testing.assert_allclose(metrics.ssim(*pairs), expected, atol=1e-4)


def test_published_ssim_takes_colour_for_space(pairs):
    for a, b, found in zip(*pairs, metrics.ssim_published(*pairs), strict=True):
        x, y = a.astype(float), b.astype(float)
        mean_x, mean_y = uniform_filter(x, 3), uniform_filter(y, 3)  # 3 x 3 x 3: rows, columns, colours
        unbiased = 27 / 26
        var_x = unbiased * (uniform_filter(x * x, 3) - mean_x**2)
        var_y = unbiased * (uniform_filter(y * y, 3) - mean_y**2)
        cov = unbiased * (uniform_filter(x * y, 3) - mean_x * mean_y)
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        ratio = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
        assert found == pytest.approx(ratio[1:-1, 1:-1, 1:-1].mean(), abs=1e-9)


@pytest.mark.parametrize("side", [64, 160, 164])
def test_ms_ssim_enlarges_what_is_too_small(side):
    a, b = make_tiles(2, side, seed=1), make_tiles(2, side, seed=2) // 2 + 60
    x, y = a, b
    if side <= 160:
        x, y = (np.stack([np.asarray(Image.fromarray(i).resize((231, 231), Image.BICUBIC)) for i in v]) for v in (a, b))
        assert "enlarged to 231 px" in metrics.ms_ssim_rule(side)
    else:
        assert "their own 164 px" in metrics.ms_ssim_rule(side)
    x, y = (torch.tensor(v).permute(0, 3, 1, 2).float() for v in (x, y))
    expected = ms_ssim(x, y, data_range=255, size_average=False)
    np.testing.assert_allclose(metrics.ms_ssim(a, b), expected, atol=1e-5)


@pytest.mark.parametrize("score", [metrics.ssim, metrics.ssim_published, metrics.ms_ssim])
def test_equal_images_score_one(score, pairs):
    np.testing.assert_allclose(score(pairs[0], pairs[0]), 1, atol=1e-5)


def test_controls_pair_as_they_say():
    """The score is one where the partner's cluster is that of the real tile: a tile's grey level is its cluster."""
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    real = (labels * 60 + np.arange(9))[:, None, None, None] * np.ones((9, 8, 8, 3))
    real = real.astype(np.uint8)

    def same_cluster(a, b):
        return (a[:, 0, 0, 0] // 60 == b[:, 0, 0, 0] // 60).astype(float)

    def same_tile(a, b):
        return (a == b).all(axis=(1, 2, 3)).astype(float)

    scores = metrics.paired_controls(same_cluster, real, real, labels, seed=1)
    assert scores["generated"] == 1
    assert scores["another real tile of the cluster"] == 1
    assert scores["a real tile of another cluster"] == 0
    scores = metrics.paired_controls(same_tile, real, real, labels, seed=1)
    assert scores["generated"] == 1
    assert scores["another real tile of the cluster"] == 0
    assert scores["flat mean colour"] == 0


def test_controls_without_a_partner_are_left_out():
    real = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((3, 4, 4, 3), np.uint8)

    def equal(a, b):
        return (a == b).all(axis=(1, 2, 3)).astype(float)

    scores = metrics.paired_controls(equal, real, real, np.array([0, 0, 1]), seed=0)
    assert scores["another real tile of the cluster"] == 0  # of the two tiles that have another
    scores = metrics.paired_controls(equal, real, real, np.zeros(3, int), seed=0)
    assert scores["a real tile of another cluster"] is None


def write(folder, names, tiles, suffix="png"):
    folder.mkdir(exist_ok=True)
    for name, tile in zip(names, tiles, strict=True):
        Image.fromarray(tile).save(folder / f"{name}.{suffix}", quality=95)


def test_folders_pair_by_number(tmp_path):
    tiles = make_tiles(12, 16)
    numbers = [1, 2, 3, 10, 11, 100, 20, 30, 4, 5, 6, 7]
    write(tmp_path / "org", numbers, tiles)
    write(tmp_path / "gen", numbers, tiles, "jpg")  # published files are JPEG
    names, real, generated = metrics.load_pairs(tmp_path / "org", tmp_path / "gen")
    assert [int(name) for name in names] == sorted(numbers)
    np.testing.assert_array_equal(real, tiles[np.argsort(numbers)])
    assert np.abs(real.astype(int) - generated).mean() < 30


def test_generated_images_of_another_size_are_resized(tmp_path, capsys):
    write(tmp_path / "org", range(3), make_tiles(3, 16))
    write(tmp_path / "gen", range(3), make_tiles(3, 32))
    _, real, generated = metrics.load_pairs(tmp_path / "org", tmp_path / "gen")
    assert generated.shape == real.shape
    assert "32 px are resized to the originals' 16 px" in capsys.readouterr().out


def test_folders_that_do_not_pair(tmp_path):
    write(tmp_path / "org", [1, 2, 3, 4, 5], make_tiles(5, 16))
    write(tmp_path / "gen", [1, 7], make_tiles(2, 16))
    with pytest.raises(InputError, match=r"alone has 2, 3, 4 and .* alone has 7"):
        metrics.load_pairs(tmp_path / "org", tmp_path / "gen")
    with pytest.raises(InputError, match="no images in"):
        metrics.load_pairs(tmp_path / "org", tmp_path / "nothing")


def test_labels_come_from_the_csv(tmp_path):
    path = tmp_path / "c.csv"
    with pytest.raises(InputError, match="run part_5"):
        metrics.pair_labels(path, ["1"])
    path.write_text("0.5,0.5,2,0.9\n0.4,0.6,0,0.8\n0.4,0.6,1,0.8\n")
    assert metrics.pair_labels(path, ["3", "1"]).tolist() == [1, 2]
    with pytest.raises(InputError, match="has 3 rows, but image 4"):
        metrics.pair_labels(path, ["4"])
    for name in ("0", "img1", "-1"):
        with pytest.raises(InputError, match="named by their number from 1"):
            metrics.pair_labels(path, ["1", name])


def test_the_best_of_each_column_is_marked():
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [0.5, 0.25]}, index=[10, 14])
    marked = metrics.mark_best(table, {"a": "higher", "b": "lower"})
    assert marked.to_numpy().tolist() == [["1.00000", "0.50000"], ["2.00000 *", "0.25000 *"]]
    assert metrics.mark_best(table[:0], {"a": "higher"}).empty


def test_summary_keeps_other_sections(tmp_path):
    metrics.record(tmp_path / "s.json", "a", {"x": 1})
    metrics.record(tmp_path / "s.json", "b", {"x": 2})
    metrics.record(tmp_path / "s.json", "a", {"x": 3})
    assert metrics.read_json(tmp_path / "s.json") == {"a": {"x": 3}, "b": {"x": 2}}


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
    with pytest.raises(InputError, match="is not VGG16's ImageNet weights"):
        LPIPS().load_pretrained()


def test_lpips_never_computes_without_weights(torch_home, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("offline")))
    lpips = LPIPS()
    lpips.load_state_dict(
        torch.load(heads_path(), map_location="cpu", weights_only=True), strict=False
    )  # only a part of them
    with pytest.raises(InputError, match="needs VGG16"):
        lpips(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))


def test_lpips_score_takes_uint8(pairs):
    network = LPIPS()
    state = {name: torch.rand(tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict(state)
    a, b = pairs
    x, y = (torch.tensor(v).permute(0, 3, 1, 2).float() / 127.5 - 1 for v in pairs)
    np.testing.assert_allclose(metrics.lpips_score(network)(a, b), network(x, y).flatten(), rtol=1e-4)
