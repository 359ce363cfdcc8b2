"""The information-maximisation classifier: the head that finds clusters in the latents without labels."""

from torch import Tensor, nn

from pfiles.machine.processes import BatchNorm2d


class Classifier(nn.Module):
    """Latents (B, z_channels, h, w) -> cluster logits (B, n_clusters, 1, 1).

    The published head, with its leaky ReLU on the logits: 586,638 parameters for 16 channels and 14 clusters.
    It was made for 32 x 32 latents, whose last feature map is 4 x 4; other sizes are pooled to 4 x 4.

    together: so many classifiers as one network, each layer holding theirs side by side in groups; the logits are
        (B, together * n_clusters, 1, 1). See `ClusterBank.stacked`.
    """

    kind = "classifier"

    def __init__(self, z_channels: int = 16, n_clusters: int = 14, channels: int = 128, together: int = 1):
        super().__init__()
        self.n_clusters = n_clusters
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
            "pool": nn.AdaptiveAvgPool2d(4),  # changes nothing if the map is 4 x 4 already
            "conv4": nn.Conv2d(wide, n * n_clusters, 4, 1, 0, groups=n),
            "lrel4": nn.LeakyReLU(0.1),
        }.items():
            self.classifier.add_module(name, layer)

    def forward(self, z: Tensor) -> Tensor:
        return self.classifier(z)
