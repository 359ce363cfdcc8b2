"""EfficientNet-Lite0 as an extractor of features, with the names that its published PyTorch weights have.

Tan and Le 2019; the Lite variant has no squeeze-and-excitation, ReLU6 for swish, and a stem and head of fixed width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 224  # pixels it was trained with
FEATURES = 1280
MEAN, SCALE = 127 / 255, 128 / 255  # of the colours in [0, 1], which it takes in about [-1, 1]
# kernel, stride of the first block, expansion, channels, blocks
STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
          (3, 1, 6, 320, 1))  # fmt: skip


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow pads even sides: with stride 2 one pixel more to the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        excess = self.kernel_size[0] - self.stride[0]
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


class EfficientNetLite0(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> features (B, 1280); `classify` goes on to the logits of ImageNet's classes."""

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = SameConv2d(3, 32, 3, 2, bias=False), _norm(32)
        blocks, before = [], 32
        for kernel, first_stride, expansion, after, repeats in STAGES:
            for i in range(repeats):
                blocks.append(Block(before, after, kernel, first_stride if i == 0 else 1, expansion))
                before = after
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = nn.Conv2d(before, FEATURES, 1, bias=False), _norm(FEATURES)
        self._fc = nn.Linear(FEATURES, 1000)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        x = F.relu6(self._bn0(self._conv_stem((x - MEAN) / SCALE)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    def classify(self, x: Tensor) -> Tensor:
        return self._fc(self(x))
