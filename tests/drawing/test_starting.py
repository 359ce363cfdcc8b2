"""Weights that a training begins from go through the checks that opening them makes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pfiles import draw, learn
from pfiles.checkpoints import read_state
from pfiles.drawing.generator import Generator
from pfiles.drawing.layout import make_layout
from pfiles.drawing.starting import begin_from, newest_unet, starting_weights
from pfiles.errors import InputError
from pfiles.settings import get_settings
from pfiles.vqvae import VQVAE
from tests.conftest import SIZES, TINY, make_tiles, opened, train

DEMO = get_settings("demo", TINY).diffusion


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A trained tiny run, and its generator beside it."""
    folder = tmp_path_factory.mktemp("starting")
    np.save(folder / "tiles.npy", make_tiles(44))
    train(opened(folder))
    draw.generator(opened(folder)).save(folder / "generator")
    return folder


@pytest.fixture
def done(run_dir, tmp_path):
    return Path(shutil.copytree(run_dir, tmp_path / "run"))


def test_a_run_and_its_generator_give_the_same_weights(run_dir):
    of_run, of_generator = (starting_weights(str(run_dir / name), DEMO) for name in ("out", "generator"))
    assert all(torch.equal(tensor, of_generator[name]) for name, tensor in of_run.items())


@pytest.mark.parametrize("name", ["out", "generator"])
@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ({"diffusion.prediction": "noise"}, "diffusion.prediction = 'v', but the settings say 'noise'"),
        ({"diffusion.latent_scaling": False}, "diffusion.latent_scaling = True, but the settings say False"),
        ({"diffusion.num_timesteps": 30}, "diffusion.num_timesteps = 20, but the settings say 30"),
    ],
)
def test_a_unet_that_learnt_something_else_is_refused(name, override, sentence, run_dir, tmp_path):
    run = opened(run_dir, overrides={**TINY, **override, "start_from": str(run_dir / name)}, out=str(tmp_path / "out"))
    with pytest.raises(InputError, match=sentence):
        learn.new_autoencoder(run)


def test_an_autoencoder_that_was_trained_since_is_refused(done):
    path = done / "out/kpc_ldm/vqvae_autoencoder_ckpt.pth"
    state = read_state(path)
    polished = {name: tensor + name.startswith("decoder") for name, tensor in state.items()}
    torch.save(polished, path)
    assert starting_weights(str(done / "out"), DEMO)  # no code of any tile changed
    torch.save({**state, "embedding.weight": state["embedding.weight"] + 0.01}, path)
    with pytest.raises(InputError, match="was trained with another autoencoder than the one that is there now"):
        starting_weights(str(done / "out"), DEMO)


def test_weights_that_are_no_numbers_are_refused(done):
    path = newest_unet(done / "out")
    state = read_state(path)
    state["conv_in.bias"][0] = float("nan")
    torch.save(state, path)
    path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"infinite or undefined numbers in unet\.conv_in\.bias"):
        starting_weights(str(done / "out"), get_settings("paper").diffusion)  # as published


def test_no_weights_come_from_a_copy_of_a_clusters_folder(done):
    before = newest_unet(done / "out")
    shutil.copytree(done / "out/clusters_3", done / "out/clusters_5")
    for copy in (done / "out/clusters_5/models_3").glob("unet_*.pth"):
        copy.touch()
    assert newest_unet(done / "out") == before


def test_an_enlarging_decoder_begins_from_weights_that_lack_its_last_doubling():
    """A network of tiles twice as large takes all that smaller tiles taught; other networks must still fit whole."""
    torch.manual_seed(0)
    small, large = VQVAE(**SIZES), VQVAE(**SIZES, enlarge=2)
    before = {name: tensor.clone() for name, tensor in large.state_dict().items()}
    weights = {f"vqvae.{name}": tensor for name, tensor in small.state_dict().items()}
    begin_from(large, weights, "vqvae.", absent=large.enlarging)
    for name, tensor in large.state_dict().items():
        assert torch.equal(tensor, before[name] if name in large.enlarging else weights[f"vqvae.{name}"])
    with pytest.raises(InputError, match=r"decoder_layers\..* is not among them"):
        begin_from(large, weights, "vqvae.")
    with pytest.raises(InputError, match=r"embedding\.weight is not among them"):
        begin_from(large, weights | {"vqvae.embedding.weight": None}, "vqvae.", absent=large.enlarging)


def test_a_run_of_tiles_twice_as_large_begins_from_smaller_ones(run_dir, tmp_path):
    """Trained, saved, loaded and drawn; its generator's fields and variations are of the larger tiles too."""
    np.save(tmp_path / "tiles.npy", make_tiles(44, 96))
    larger = TINY | {"image_size_px": 96, "autoencoder.vqvae": SIZES | {"enlarge": 2}}
    run = opened(tmp_path, overrides=larger | {"start_from": str(run_dir / "out")})
    train(run)
    draw.generator(run).save(tmp_path / "generator")
    generator = Generator.load(tmp_path / "generator")
    tiles = generator.draw(0, number=2, progress=False)
    assert tiles.shape == (2, 3, 96, 96)
    assert generator.vary(tiles, progress=False).shape == (2, 1, 3, 96, 96)
    layout = make_layout(np.array([[0, 1]]), (192, 96), generator.n_clusters)
    assert generator.field(layout, progress=False).shape == (3, 96, 192)


def test_without_epochs_the_autoencoder_is_kept_and_its_decoder_polished(run_dir, tmp_path, capsys):
    """Every code stays, so that the clusters and the UNet of before go on; done again, nothing is trained twice."""
    np.save(tmp_path / "tiles.npy", make_tiles(44))
    kept = {"autoencoder.epochs": 0, "autoencoder.polish.epochs": 1, "start_from": str(run_dir / "out")}
    run = opened(tmp_path, overrides=TINY | kept)
    history = learn.autoencoder(run, *learn.new_autoencoder(run))
    assert len(history) == 1
    assert "discriminator" in history[0]  # of the polish
    states = [read_state(folder / "out/kpc_ldm/vqvae_autoencoder_ckpt.pth") for folder in (run_dir, tmp_path)]
    moved = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert moved
    assert all(name.startswith(("decoder", "post_quant_conv")) for name in moved)
    earlier = learn.before_polish(run, run.vqvae).state_dict()
    assert all(torch.equal(earlier[name], states[0][name]) for name in earlier)
    learn.autoencoder(run, *learn.new_autoencoder(run))
    assert "polish is done already: 1 epochs" in capsys.readouterr().out
