"""A generator saved, loaded and drawn from; trainings that begin from one."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import TINY, K, assert_refused, stage_networks
from PIL import Image

from pfiles.__main__ import main
from pfiles.drawing.generator import Generator, begin_from, starting_weights
from pfiles.errors import InputError
from pfiles.latents import LatentSpace
from pfiles.session import open_run
from pfiles.settings import get_settings


@pytest.fixture
def generator(tiny):
    vqvae, unet, clusterer = stage_networks(tiny)
    space = LatentSpace.of_training(vqvae, torch.arange(32).view(2, 4, 4))
    return Generator(unet, clusterer, space, tiny, torch.tensor([0.5, 0.0, 0.5]), {"mpp": 1.0})


def test_loaded_it_draws_the_same_to_the_bit(generator, tmp_path):
    generator.save(tmp_path)
    loaded = Generator.load(tmp_path)
    assert torch.equal(loaded.draw([0, 1, 2, 1], seed=3), generator.draw([0, 1, 2, 1], seed=3))
    images = torch.randint(256, (5, 3, 48, 48), dtype=torch.uint8)
    for a, b in zip(loaded.assign(images), generator.assign(images), strict=True):
        assert torch.equal(a, b)
    assert loaded.about == {"mpp": 1.0}
    generator.save(tmp_path / "half", half=True)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    difference = Generator.load(tmp_path / "half").draw([0, 1], seed=3).int() - generator.draw([0, 1], seed=3).int()
    assert difference.abs().float().mean() < 3


def test_clusters_are_drawn_as_often_as_they_are(generator):
    ids = generator.cluster_ids(4000, seed=0)
    shares = ids.bincount(minlength=K) / 4000
    assert shares[1] == 0
    assert shares[0].item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(generator.draw(number=3, seed=5), generator.draw(generator.cluster_ids(3, 5), seed=5))
    with pytest.raises(InputError, match="numbered from 1 to 3"):
        generator.draw([3])


def test_draw_command(generator, tmp_path, capsys):
    generator.save(tmp_path / "g")
    arguments = ["draw", "--from", str(tmp_path / "g"), "--cluster", "2", "--number", "5", "--out", str(tmp_path / "o")]
    assert main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "o" / "tiles").iterdir()) == [f"{i}.png" for i in range(1, 6)]
    assert (tmp_path / "o" / "tiles.csv").read_text().splitlines()[1] == "1.png,2,765"
    assert Image.open(tmp_path / "o" / "sheet.jpg").size[0] > 100
    capsys.readouterr()
    assert_refused(["draw", "--from", str(tmp_path / "none"), "--out", str(tmp_path / "p")], capsys, tmp_path / "p")
    (tmp_path / "g" / "model.safetensors").write_bytes(b"not tensors")
    assert_refused(["draw", "--from", str(tmp_path / "g"), "--out", str(tmp_path / "p")], capsys, tmp_path / "p")
    config = json.loads((tmp_path / "g" / "config.json").read_text()) | {"n_clusters": 4}
    generator.save(tmp_path / "g")
    (tmp_path / "g" / "config.json").write_text(json.dumps(config))
    assert_refused(["draw", "--from", str(tmp_path / "g"), "--out", str(tmp_path / "p")], capsys, tmp_path / "p")


def test_a_training_begins_from_a_generator(generator, tmp_path):
    """All weights but the embedding of another number of clusters, which begins anew."""
    generator.save(tmp_path)
    overrides = {**TINY, "start_from": str(tmp_path)}
    vqvae, _ = open_run("test", 5, "kmeans", None, "demo", overrides, 1, tmp_path / "out").new_autoencoder()
    for a, b in zip(vqvae.state_dict().values(), generator.space.vqvae.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    unet = type(generator.unet)(16, 5, **get_settings("demo", TINY).diffusion.unet)
    own = unet.class_emb.weight.clone()
    begin_from(unet, starting_weights(str(tmp_path)), "unet.", anew=["class_emb.weight"])
    assert torch.equal(unet.class_emb.weight, own)
    assert torch.equal(unet.conv_in.weight, generator.unet.conv_in.weight)


def test_weights_of_other_widths_are_refused_by_name(generator, tmp_path):
    generator.save(tmp_path)
    wider = {**TINY, "autoencoder.vqvae": {**TINY["autoencoder.vqvae"], "down_channels": [8, 8, 32]}}
    run = open_run("test", 3, "kmeans", None, "demo", {**wider, "start_from": str(tmp_path)}, 1, tmp_path / "out")
    with pytest.raises(InputError, match=r"start_from .* VQVAE .*: encoder_layers.* has the shape .* but needs"):
        run.new_autoencoder()
    run = open_run("test", 3, "kmeans", None, "demo", {**TINY, "start_from": str(tmp_path / "no")}, 1, tmp_path / "out")
    with pytest.raises(InputError, match="holds neither a generator"):
        run.new_autoencoder()


def test_shares_are_kept(generator, tmp_path):
    replace(generator, shares=torch.tensor([0.1, 0.2, 0.7])).save(tmp_path)
    assert Generator.load(tmp_path).shares.tolist() == pytest.approx([0.1, 0.2, 0.7])
