"""Generators from others: each fault is told in a sentence before a network is built."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pfiles.drawing.generator import STARTER, Generator
from pfiles.errors import InputError


def broken(folder, change=None, weights=None):
    """A copy of the starter generator with its config, or its tensors, changed."""
    config, tensors = json.loads((STARTER / "config.json").read_text()), load_file(STARTER / "model.safetensors")
    (change or (lambda _: None))(config)
    (weights or (lambda _: None))(tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def settings(**changed):
    """A change of a setting that holds several values, such as diffusion_unet={"num_layers": 2}."""
    return lambda config: [
        config["settings"][name.replace("_", ".", 1)].update(values) for name, values in changed.items()
    ]


CONFIGS = {
    "huge width": (settings(diffusion_unet={"t_emb_dim": 10**12}), "t_emb_dim is larger"),
    "huge widths": (settings(autoencoder_vqvae={"down_channels": [10**9] * 3}), "down_channels is larger"),
    "infinite": (settings(diffusion_unet={"t_emb_dim": float("inf")}), "t_emb_dim is larger"),
    "many widths": (settings(diffusion_unet={"down_channels": [64] * 10**4}), "down_channels is larger"),
    "long list": (settings(diffusion_unet={"down_channels": [64] * 17}), "down_channels is larger"),
    "many layers": (settings(diffusion_unet={"num_layers": 100}), "more layers"),
    "other width": (settings(autoencoder_vqvae={"down_channels": [24, 48, 64]}), "has the shape"),
    "huge k": (lambda c: c.update(n_clusters=10**9), "n_clusters is larger"),
    "no k": (lambda c: c.update(n_clusters=0), "n_clusters is 0"),
    "huge tiles": (lambda c: c["settings"].update(image_size_px=2**20), "image_size_px is"),
    "huge time": (lambda c: c["settings"].update({"diffusion.num_timesteps": 10**12}), "num_timesteps is"),
    "few shares": (lambda c: c["cluster_shares"].pop(), "cluster_shares must be 10 numbers"),
    "no share": (lambda c: c["cluster_shares"].__setitem__(0, float("nan")), "cluster_shares must be 10 numbers"),
    "negative share": (lambda c: c["cluster_shares"].__setitem__(0, -0.5), "at least 0"),
    "sum": (lambda c: c.update(cluster_shares=[0.5] * 10), "add up to 1"),
    "name": (lambda c: c.update(cluster_names={"11": "x"}), "'11', which is no cluster"),
    "kind of name": (lambda c: c.update(cluster_names={"1": 5}), "'1', which is no cluster"),
    "scale": (lambda c: c.update(mpp=-1), "mpp is -1"),
    "scaling": (lambda c: c["latent_scaling"]["std"].__setitem__(0, float("inf")), "latent_scaling must be"),
    "no scaling": (lambda c: c["latent_scaling"]["std"].__setitem__(0, 0), "deviations above 0"),
    "nothing": (lambda c: c.clear(), "does not hold a generator"),
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_a_config_that_does_not_fit_is_refused(tmp_path, fault):
    change, sentence = CONFIGS[fault]
    with pytest.raises(InputError, match=sentence):
        Generator.load(broken(tmp_path, change))


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (lambda t: t.pop("unet.conv_in.weight", t.popitem()), "has the shape None"),
        (lambda t: t.update({next(iter(t)): torch.zeros(3)}), "has the shape"),
        (lambda t: t.update(more=torch.zeros(3)), "the tensor 'more', which belongs to no network"),
        (lambda t: next(v for v in t.values() if v.is_floating_point()).view(-1)[:1].fill_(float("nan")), "undefined"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, weights, sentence):
    with pytest.raises(InputError, match=sentence):
        Generator.load(broken(tmp_path, weights=weights))


def head(entry, size=0, length=None):
    text = json.dumps(entry).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(size)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        head({}, length=2**60),
        head({}, length=99 * 2**20),
        head({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
        head({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, 4),
        head({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 8),
        head({"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}, 4),
        head([1, 2]),
    ],
)
def test_a_broken_file_of_tensors_is_refused(tmp_path, content):
    broken(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        Generator.load(tmp_path)


def test_what_others_give_to_work_on_is_checked():
    generator = Generator.load("starter")
    tiles = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    for wrong in (tiles.float(), tiles.numpy(), tiles[0], tiles[..., :32], tiles[:0], tiles[:, :1], tiles.bool()):
        with pytest.raises(InputError, match="Tiles must"):
            generator.assign(wrong)
    for wrong in (2.0, True, [0.0], [[0, 1]], -1, 10, [3, 10]):
        with pytest.raises(InputError, match="numbered from 1 to 10"):
            generator.draw(wrong)
    with pytest.raises(InputError, match="at least 1"):
        generator.draw([])
    for wrong in ([1], [1, -1], [1, 2**63], [1, 0.5]):
        with pytest.raises(InputError, match="must be 2 seeds"):
            generator.draw([0, 1], seeds=wrong)
