"""EfficientNet-Lite as an extractor of features, with the names that its published PyTorch weights have.

Tan and Le 2019; the Lite variant has no squeeze-and-excitation, ReLU6 for swish, and a stem and head of fixed width.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 1280
MEAN, SCALE = 127 / 255, 128 / 255  # of the colours in [0, 1], which it takes in about [-1, 1]
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
        x = F.relu6(self._bn0(self._conv_stem((x - MEAN) / SCALE)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    def classify(self, x: Tensor) -> Tensor:
        return self._fc(self(x))
