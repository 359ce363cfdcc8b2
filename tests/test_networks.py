"""The networks: published sizes, names and outputs."""

import copy
import importlib.util
import sys

import numpy as np
import pytest
import torch

from pfiles.blocks import ResizeConv, SelfAttention, get_time_embedding
from pfiles.checkpoints import load_weights
from pfiles.classifier import Classifier
from pfiles.discriminator import Discriminator
from pfiles.lpips import LPIPS
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE
from tests import reference_models
from tests.conftest import relative_error, shared

NETWORKS = {
    "vqvae": (VQVAE, 2_516_019),
    "unet": (UNet, 23_288_336),
    "classifier": (Classifier, 586_638),
    "discriminator": (Discriminator, 663_360),
}
TOLERANCE = 1e-4


def golden():
    """The module that fills a state dict from its layout."""
    path = shared("golden/golden.py")
    spec = importlib.util.spec_from_file_location("golden", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["golden"] = module
    spec.loader.exec_module(module)
    return module


def golden_case(name, network):
    network.load_state_dict(golden().state_dict(name, "public"), strict=True)
    with np.load(shared(f"golden/{name}.npz")) as arrays:
        return network.eval(), {key: torch.as_tensor(array) for key, array in arrays.items()}


def random_state(network, seed):
    """Random values for all parameters and buffers, from numpy: none of torch's initialisation is used."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, tensor in network.state_dict().items():
        shape = tuple(tensor.shape)
        if name.endswith("num_batches_tracked"):
            value = np.array(3)
        elif name.endswith("running_var"):
            value = rng.uniform(0.5, 2, shape)
        elif len(shape) > 1:
            value = rng.standard_normal(shape) * np.prod(shape[1:]) ** -0.5
        else:
            value = rng.uniform(-0.3, 0.3, shape) + (name.endswith("weight"))
        state[name] = torch.as_tensor(value, dtype=tensor.dtype)
    network.load_state_dict(state)
    return state


@pytest.mark.parametrize("name", NETWORKS)
def test_published_size(name):
    network, parameters = NETWORKS[name]
    assert sum(p.numel() for p in network().parameters()) == parameters


@pytest.mark.parametrize("name", [*NETWORKS, "lpips"])
def test_names_and_shapes_are_the_published_ones_in_their_order(name):
    network = LPIPS() if name == "lpips" else NETWORKS[name][0]()
    layout = golden().layout(name)
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == layout
    if name != "lpips":  # a seed gives the published initial weights only in the published order
        assert list(network.state_dict()) == list(layout)


@torch.no_grad()
@pytest.mark.slow
def test_golden_unet():
    unet, a = golden_case("unet", UNet())
    assert relative_error(unet(a["x"], a["t"], a["cluster"]), a["out"]) < TOLERANCE
    assert relative_error(unet(a["x"], a["t"]), a["out_unconditional"]) < TOLERANCE


@torch.no_grad()
def test_golden_vqvae():
    vqvae, a = golden_case("vqvae", VQVAE())
    z, losses = vqvae.encode(a["image"])
    assert relative_error(z, a["z"]) < TOLERANCE
    assert torch.equal(vqvae.encode_codes(a["image"]), a["codes"].long())
    assert relative_error(vqvae.embed(a["codes"]), a["z"]) < TOLERANCE
    for name, loss in losses.items():
        assert relative_error(loss, a[name]) < TOLERANCE
    assert relative_error(vqvae.decode(a["z"]), a["reconstruction"]) < TOLERANCE


@torch.no_grad()
def test_golden_classifier():
    classifier, a = golden_case("classifier", Classifier())
    logits = classifier(a["latent"])
    assert logits.shape == (4, 14, 1, 1)
    assert relative_error(logits.flatten(1), a["logits"]) < TOLERANCE


@torch.no_grad()
def test_golden_discriminator():
    discriminator, a = golden_case("discriminator", Discriminator())
    assert relative_error(discriminator(a["image"]), a["out"]) < TOLERANCE


@torch.no_grad()
def test_golden_lpips():
    lpips, a = golden_case("lpips", LPIPS())
    assert relative_error(lpips(a["a"], a["b"]).flatten(), a["distance"]) < TOLERANCE
    assert relative_error(lpips(a["a"], a["b"], normalize=True).flatten(), a["distance_normalised"]) < TOLERANCE


@torch.no_grad()
@pytest.mark.slow
def test_independent_unet():
    unet = UNet().eval()
    state = random_state(unet, seed=11)
    x = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    t, cluster = torch.tensor([3, 871]), torch.tensor([0, 13])
    assert relative_error(unet(x, t, cluster), reference_models.unet(state, x, t, cluster)) < TOLERANCE
    assert relative_error(unet(x, 40), reference_models.unet(state, x, torch.tensor([40, 40]), None)) < TOLERANCE


@torch.no_grad()
def test_a_folded_unet_is_the_published_one_on_stacked_blocks():
    """2 x 2 blocks of 4 channels, stacked here by hand, are what a published UNet of 16 channels would see."""
    folded, published = UNet(4, fold=2).eval(), UNet(16).eval()
    published.load_state_dict(random_state(folded, seed=13))  # the layout is that of the published one
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    blocks = torch.stack([x[:, c, i::2, j::2] for c in range(4) for i in (0, 1) for j in (0, 1)], dim=1)
    t, cluster = torch.tensor([3, 871]), torch.tensor([0, 13])
    expected = published(blocks, t, cluster)
    answer = folded(x, t, cluster)
    places = [(c, i, j) for c in range(4) for i in (0, 1) for j in (0, 1)]
    assert all(torch.equal(answer[:, c, i::2, j::2], expected[:, n]) for n, (c, i, j) in enumerate(places))


@torch.no_grad()
@pytest.mark.slow
def test_the_rows_of_one_k_are_a_published_unet():
    """As the authors' code would compute it: 10 of the 91 clusters of k = 10 ... 16, those of k = 10."""
    whole = UNet(cls=91).eval()
    state = random_state(whole, seed=12)
    part = whole.with_clusters(0, 10)
    published = UNet(cls=10).state_dict()
    assert {name: value.shape for name, value in part.state_dict().items()} == {
        n: v.shape for n, v in published.items()
    }
    x = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    t, cluster = torch.tensor([3, 871]), torch.tensor([0, 9])
    assert torch.equal(part(x, t, cluster), whole(x, t, cluster))
    expected = reference_models.unet({name: value.detach() for name, value in part.state_dict().items()}, x, t, cluster)
    assert relative_error(whole(x, t, cluster), expected) < TOLERANCE
    assert state["class_emb.weight"].shape == (91, 256)


@torch.no_grad()
def test_independent_vqvae():
    vqvae = VQVAE().eval()
    state = random_state(vqvae, seed=12)
    state["embedding.weight"] *= 4  # as far from zero as the encodings are: many entries get used
    vqvae.load_state_dict(state)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    z, before = reference_models.vqvae_encode(state, x)
    assert len(vqvae.encode_codes(x).unique()) > 5
    latent, losses = vqvae.encode(x)
    assert relative_error(latent, z) < TOLERANCE
    for loss in losses.values():
        assert relative_error(loss, (z - before).square().mean()) < TOLERANCE
    reconstruction, _, _ = vqvae(x)
    assert relative_error(reconstruction, reference_models.vqvae_decode(state, z)) < TOLERANCE


@torch.no_grad()
def test_an_enlarging_autoencoder_sees_averages_and_paints_twice_as_large():
    """Encoder and codebook are the published ones on tiles averaged 2 x 2; the decoder has one doubling more."""
    torch.manual_seed(0)
    sizes = {"down_channels": (8, 16, 16), "z_channels": 4, "codebook_size": 32, "num_heads": 2, "norm_channels": 4}
    small, large = VQVAE(**sizes).eval(), VQVAE(**sizes, enlarge=2).eval()
    lacking = large.load_state_dict(small.state_dict(), strict=False)
    assert lacking.missing_keys == large.enlarging != []
    assert small.enlarging == lacking.unexpected_keys == []
    x = torch.rand(2, 3, 64, 64)
    averaged = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    assert relative_error(large.encode_continuous(x), small.encode_continuous(averaged)) < 1e-5
    assert large.downscale == 2 * small.downscale == 8
    assert large.latent_shape(64) == small.latent_shape(32) == (4, 8, 8)
    assert large(x)[0].shape == x.shape


def test_independent_classifier():
    classifier = Classifier(n_clusters=5).eval()
    state = random_state(classifier, seed=13)
    z = torch.randn(3, 16, 32, 32, generator=torch.Generator().manual_seed(3))
    assert relative_error(classifier(z), reference_models.classifier(state, z)) < TOLERANCE


@pytest.mark.parametrize(
    ("file", "batches"),
    [
        ("classifier_training_ckpt_20250127_600_14.pth", 750_000),
        ("classifier_finetuning2_ckpt_20250128_70_14.pth", 837_501),
    ],
)
def test_published_classifiers_load(file, batches):
    classifier = Classifier()
    load_weights(classifier, shared(f"published/{file}"))
    assert classifier.classifier.bnor1.num_batches_tracked == batches


def test_attention_has_torchs_parameters_and_outputs():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        ours = SelfAttention(24, num_heads=4)
        torch.manual_seed(5)
        torchs = torch.nn.MultiheadAttention(24, 4, batch_first=True)
    for (name, a), (_, b) in zip(ours.state_dict().items(), torchs.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    x = torch.randn(2, 24, 5, 7, generator=torch.Generator().manual_seed(4))
    tokens = x.flatten(2).transpose(1, 2)
    expected, _ = torchs(tokens, tokens, tokens)
    torch.testing.assert_close(ours(x), expected.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("head_dim", [3, 8, 16, 20])  # those of fewer than 16 are filled up with zeros
def test_attention_has_torchs_gradients_whatever_the_width_of_its_heads(head_dim):
    ours = SelfAttention(4 * head_dim, num_heads=4).double()
    torchs = torch.nn.MultiheadAttention(4 * head_dim, 4, batch_first=True).double()
    torchs.load_state_dict(ours.state_dict())
    x, g = torch.randn(2, 2, 4 * head_dim, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    ours(x).backward(g)
    tokens = x.flatten(2).transpose(1, 2)
    torchs(tokens, tokens, tokens)[0].backward(g.flatten(2).transpose(1, 2))
    for (name, a), b in zip(ours.named_parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


@pytest.mark.parametrize("side", [8, 17])  # 64 places, and 289: more than are computed without the fused kernel
@pytest.mark.parametrize("head_dim", [8, 24])
def test_attention_in_bfloat16_is_float32_to_two_digits(side, head_dim):
    """Values and gradients, with weights that make the attention sharp, so that its scale counts."""
    exact = SelfAttention(4 * head_dim, num_heads=4)
    with torch.no_grad():
        exact.in_proj_weight *= 2
    close = copy.deepcopy(exact).bfloat16()
    x = torch.randn(2, 4 * head_dim, side, side, generator=torch.Generator().manual_seed(4)).bfloat16()
    outputs = [exact(x.float()), close(x)]
    for output in outputs:
        output.float().square().mean().backward()
    gradients = [attention.in_proj_weight.grad for attention in (exact, close)]
    for expected, value in (outputs, gradients):
        assert (value.float() - expected).norm() < 0.02 * expected.norm()
    assert outputs[1].dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (8, 8)])
def test_resize_convolution_is_enlargement_and_convolution(shape):
    layer = ResizeConv(6).double()
    x = torch.randn(2, 6, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    enlarged = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    plain = torch.nn.functional.conv2d(enlarged, layer.weight, layer.bias, padding=1)
    result = layer(x)
    torch.testing.assert_close(result, plain)
    inputs = [x, *layer.parameters()]
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (result, plain)), strict=True):
        torch.testing.assert_close(a, b)


def test_time_embedding_by_hand():
    embedding = get_time_embedding(torch.tensor([0, 3]), 4)
    expected = [[0, 0, 1, 1], [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)]]
    np.testing.assert_allclose(embedding, expected, atol=1e-6)
    with pytest.raises(ValueError, match="even"):
        get_time_embedding(torch.tensor([0]), 5)


def test_straight_through_gradient_reaches_the_encoder():
    vqvae = VQVAE(down_channels=(8, 8), norm_channels=4, num_heads=2)
    x = torch.rand(1, 3, 16, 16)
    vqvae(x)[0].sum().backward()
    assert vqvae.encoder_conv_in.weight.grad.abs().sum() > 0
    assert vqvae.embedding.weight.grad is None  # only the codebook loss moves the entries


@pytest.mark.parametrize("side", [48, 64, 128, 192])
@torch.no_grad()
def test_other_image_sizes(side):
    vqvae = VQVAE(down_channels=(8, 8, 8), norm_channels=4, num_heads=2)
    z, _ = vqvae.encode(torch.rand(2, 3, side, side))
    assert z.shape[1:] == vqvae.latent_shape(side) == (16, side // 4, side // 4)
    unet = UNet(16, 3, down_channels=(8, 8, 8), t_emb_dim=8, norm_channels=4, num_heads=2, conv_out_channels=8)
    assert unet(z, torch.tensor([1, 2]), torch.tensor([0, 2])).shape == z.shape
    assert Classifier(16, 3).eval()(z).shape == (2, 3, 1, 1)
    assert vqvae.decode(z).shape == (2, 3, side, side)
