"""LPIPS: where its weights come from, and that it never computes without them."""

import hashlib
import http.server
import io
import threading
import urllib.error
from types import SimpleNamespace

import pytest
import torch
import torchvision.models

from pfiles import lpips as lpips_module
from pfiles.errors import InputError
from pfiles.lpips import LPIPS, heads_path
from pfiles.lpips_metric import LPIPS as METRIC_LPIPS


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


@pytest.mark.slow
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
