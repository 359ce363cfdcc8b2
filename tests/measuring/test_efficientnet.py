"""EfficientNet-Lite: its padding, and that the pretrained networks know a cat."""

import pytest
import torch
from torch import nn

from pfiles.measuring import features
from pfiles.measuring.efficientnet import EfficientNetLite, SameConv2d

PRETRAINED = (
    (features.IMAGENET_PACKAGE, features.IMAGENET_FILE, {}),
    (features.DEEPER_PACKAGE, features.DEEPER_FILE, features.DEEPER),
)


@pytest.mark.parametrize(("package", "file", "sizes"), PRETRAINED)
def test_the_real_imagenet_network_knows_a_cat(package, file, sizes):
    """Skipped where the optional package is not installed."""
    data = pytest.importorskip("skimage.data")
    if features.find_spec(package.replace("-", "_")) is None:
        pytest.skip(f"needs the optional package {package}")
    network = features._pretrained(EfficientNetLite(**sizes), package, file, "cpu")
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
