"""The quality of single tiles, against sets whose order is known."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from pfiles.clusterers import make_clusterer
from pfiles.errors import InputError
from pfiles.latents import encode_tiles
from pfiles.machine.runtime import seeded
from pfiles.measuring import quality
from pfiles.measuring.two_sample import blur
from pfiles.tiles.pixels import as_tensor
from pfiles.vqvae import VQVAE
from tests.conftest import SIZES, make_tiles

K, SIDE = 3, 48


@pytest.fixture(scope="module")
def vqvae():
    with seeded("quality"):
        return VQVAE(**SIZES).eval()


@pytest.fixture(scope="module")
def tissue():
    return as_tensor(make_tiles(120, SIDE, seed=1)).contiguous()


@pytest.fixture(scope="module")
def standard(vqvae, tissue):
    """A generator whose tiles are blurred tissue: the more, the less real."""
    generated = blur(tissue[80:], 1.5)
    return quality.make_standard(vqvae, tissue[:40], tissue[40:80], generated, np.arange(40) % K, K, 1)


@pytest.mark.slow
def test_the_more_blurred_the_less_real(standard, vqvae, tissue):
    means = [standard.odds(quality.own_features(vqvae, blur(tissue[40:80], px))).mean() for px in (0, 0.7, 1.5)]
    assert means[0] > means[1] > means[2]
    with seeded("clusters"):
        clusterer = make_clusterer("classifier", vqvae.z_channels, K).eval()
    ids = torch.arange(40) % K
    table = quality.measure(standard, vqvae, clusterer, tissue[40:80], ids, tissue[:40])
    # of held-out tiles themselves, each percentile is its rank
    assert table.realism.mean() == pytest.approx(50, abs=1)
    assert table.nearest.mean() == pytest.approx(50, abs=1)
    with torch.no_grad():
        shares = clusterer(vqvae.embed(encode_tiles(vqvae, tissue[40:80]))).flatten(1).softmax(1)
    assert table.probability.to_numpy() == pytest.approx(shares[torch.arange(40), ids].numpy(), abs=1e-5)
    odds = standard.odds(quality.own_features(vqvae, tissue[40:80]))
    again = quality.measure(standard, vqvae, clusterer, tissue[40:80], ids, tissue[:40], odds - 1e9)
    assert (again.realism == 0).all()  # by the odds it was told
    assert again.drop(columns="realism").equals(table.drop(columns="realism"))
    copied = quality.measure(standard, vqvae, clusterer, tissue[:2], ids[:2], tissue[:40])
    assert copied.nearest.tolist() == [0, 0]
    without = quality.measure(None, vqvae, clusterer, tissue[:2], ids[:2])
    assert without.notna().any().to_dict() == {name: name == "probability" for name in quality.COLUMNS}


def test_so_many_of_each_cluster_pass(standard):
    odds = np.concatenate([np.percentile(row, np.linspace(0, 100, 50)) for row in standard.drawn.numpy()])
    ids = np.arange(K).repeat(50)
    for accept in (0.8, 0.5):
        passing = standard.passes(odds, ids, accept)
        assert np.bincount(ids[passing]) == pytest.approx([50 * accept] * K, abs=1)
    assert standard.passes(odds - 1e9, ids, 1).all()


def test_a_standard_comes_back_from_its_file(standard, tmp_path):
    path = tmp_path / quality.FILE
    path.write_bytes(quality.as_bytes(standard))
    again = quality.read_standard(path, K, SIDE)
    assert all(torch.equal(getattr(again, each.name), getattr(standard, each.name)) for each in fields(standard))
    for wrong in (standard, replace(standard, weights=standard.weights[:3])):
        path.write_bytes(quality.as_bytes(wrong))
        with pytest.raises(InputError, match=r"quality\.safetensors does not fit"):
            quality.read_standard(path, K + (wrong is standard), SIDE)
    path.write_bytes(quality.as_bytes(standard))
    with pytest.raises(InputError, match=r"quality\.safetensors does not fit"):
        quality.read_standard(path, K, 2 * SIDE)
    none = torch.zeros(0, 0)
    path.write_bytes(quality.as_bytes(replace(standard, spectrum=none, power=none, scales=torch.zeros(0))))
    assert quality.read_standard(path, K, 2 * SIDE).spectrum.shape == (0, 0)  # where tiles have no structure
    path.write_bytes(b"nothing")
    with pytest.raises(InputError):
        quality.read_standard(path, K, SIDE)
