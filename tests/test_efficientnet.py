"""EfficientNet-Lite: its padding, and that the pretrained networks know a cat."""

import pytest
import torch
from torch import nn

from pfiles import efficientnet
from pfiles.efficientnet import SameConv2d

PRETRAINED = ((efficientnet.LITE0_PACKAGE, efficientnet.lite0), (efficientnet.LITE1_PACKAGE, efficientnet.lite1))


def require(package):
    """Skips the test where the optional package is not installed."""
    if efficientnet.find_spec(package.replace("-", "_")) is None:
        pytest.skip(f"needs the optional package {package}")


@pytest.mark.parametrize(("package", "load"), PRETRAINED)
def test_the_real_imagenet_network_knows_a_cat(package, load):
    data = pytest.importorskip("skimage.data")
    require(package)
    network = load()
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


def test_padding_of_odd_sides_is_tensorflows():
    """With stride 2 the first output is centred on the first pixel: as many zeros on both sides."""
    conv = SameConv2d(1, 1, 3, 2, bias=False)
    nn.init.zeros_(conv.weight)
    with torch.no_grad():
        conv.weight[0, 0, 1, 1] = 1
    x = torch.rand(1, 1, 15, 15)
    assert torch.equal(conv(x)[0, 0], x[0, 0, ::2, ::2])


def test_feature_maps_are_those_that_the_network_itself_goes_through():
    require(efficientnet.LITE0_PACKAGE)
    network, x = efficientnet.lite0(), torch.rand(2, 3, 224, 224)
    inputs = []
    for place in (1, 3, 5, 8, 9):  # blocks that follow on a map
        network._blocks[place].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    network(x)
    forwarded, inputs[:] = list(inputs), []
    maps = network.maps(x)
    assert [tuple(each.shape[1:]) for each in maps] == [
        (32, 112, 112), (16, 112, 112), (24, 56, 56), (40, 28, 28), (80, 14, 14), (112, 14, 14),
    ]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(maps[1:], forwarded, strict=True))
