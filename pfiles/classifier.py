"""The information-maximisation classifier: the head that finds clusters in the latents without labels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pfiles.machine.processes import BatchNorm2d


class Classifier(nn.Module):
    """Latents (B, z_channels, h, w) -> cluster logits (B, n_clusters, 1, 1).

    The published head, with its leaky ReLU on the logits: 586,638 parameters for 16 channels and 14 clusters.
    It was made for 32 x 32 latents, whose last feature map is 4 x 4; other sizes are pooled to 4 x 4.

    together: so many classifiers as one network, each layer holding theirs side by side in groups; the logits are
        (B, together * n_clusters, 1, 1). `stack` makes it of classifiers, `unstack` gives them back.
    """

    def __init__(self, z_channels: int = 16, n_clusters: int = 14, channels: int = 128, together: int = 1):
        super().__init__()
        n, wide = together, together * channels
        self.classifier = nn.Sequential()
        for name, layer in {
            "conv1": nn.Conv2d(z_channels, wide, 4, 2, 1),
            "bnor1": BatchNorm2d(wide),
            "lrel1": nn.LeakyReLU(0.1),
            "conv2": nn.Conv2d(wide, wide, 4, 2, 1, groups=n),
            "bnor2": BatchNorm2d(wide),
            "lrel2": nn.LeakyReLU(0.1),
            "conv3": nn.Conv2d(wide, wide, 4, 2, 1, groups=n),
            "lrel3": nn.LeakyReLU(0.1),
            "pool": nn.AdaptiveAvgPool2d(4),  # changes nothing where the map is 4 x 4 already
            "conv4": nn.Conv2d(wide, n * n_clusters, 4, 1, 0, groups=n),
            "lrel4": nn.LeakyReLU(0.1),
        }.items():
            self.classifier.add_module(name, layer)

    def forward(self, z: Tensor) -> Tensor:
        return self.classifier(z)

    @property
    def n_clusters(self) -> int:
        return self.classifier.conv4.out_channels // self.classifier.conv4.groups


def stack(classifiers: Sequence[Classifier]) -> Classifier:
    """Classifiers of one width as one network, a copy of their weights; one alone is given back as it is.

    All have as many logits as the one with most clusters; the logits that another lacks are 0.
    """
    first, *others = classifiers
    if not others:
        return first
    conv, most = first.classifier.conv1, max(one.n_clusters for one in classifiers)
    whole = Classifier(conv.in_channels, most, conv.out_channels, len(classifiers)).to(conv.weight.device)
    states = [one.state_dict() for one in classifiers]
    for name, value in whole.state_dict().items():
        if not value.ndim:  # the number of batches, which all have seen
            value.copy_(states[0][name])
            continue
        for part, state in zip(value.zero_().chunk(len(states)), states, strict=True):
            part[: len(state[name])] = state[name]
    return whole


def unstack(whole: Classifier, classifiers: Sequence[Classifier]) -> None:
    """Give each of the classifiers its weights of `whole`, which `stack` made of them."""
    for i, one in enumerate(classifiers):
        own, values = one.state_dict(), whole.state_dict()
        one.load_state_dict({
            name: value.chunk(len(classifiers))[i][: len(own[name])] if value.ndim else value
            for name, value in values.items()
        })  # fmt: skip


def stacked_probabilities(logits: Tensor, sizes: Sequence[int]) -> Tensor:
    """The logits of a stack of classifiers of `sizes` clusters -> probabilities (B, n, k), 0 for clusters beyond."""
    logits = logits.reshape(len(logits), len(sizes), -1)
    numbers = torch.arange(logits.shape[-1], device=logits.device)
    beyond = numbers >= torch.tensor(sizes, device=logits.device)[:, None]
    return logits.masked_fill(beyond, -torch.inf).softmax(-1)
