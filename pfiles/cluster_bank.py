"""The clusterers of one or several numbers of clusters k as one object: one k is a bank of one."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from pfiles.classifier import Classifier
from pfiles.clusterers import make_clusterer
from pfiles.unet_cond_base import UNet


class ClusterBank(nn.ModuleList):
    """Clusterers whose clusters are the rows of one UNet, those of one clusterer after those of another.

    Latents (B, z, h, w) -> logits (B, n_clusters, 1, 1), of each clusterer in its rows; of one k they are its logits.
    The state dict of one clusterer has the published names; of several, names begin with the place, such as "0.".
    """

    @classmethod
    def make(cls, kind: str, z_channels: int, ks: Sequence[int]) -> "ClusterBank":
        """A bank of untrained clusterers, one for each number of clusters k; kind: see `make_clusterer`."""
        return cls(make_clusterer(kind, z_channels, k) for k in ks)

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([clusterer(z) for clusterer in self], dim=1)

    @property
    def kind(self) -> str:
        """ "classifier", which can learn, or "kmeans", which is fitted."""
        return str(self[0].kind)

    @property
    def ks(self) -> list[int]:
        """The number of clusters of each clusterer."""
        clusterers: list[Any] = [*self]
        return [clusterer.n_clusters for clusterer in clusterers]

    @property
    def n_clusters(self) -> int:
        """The number of clusters of all clusterers together, which is the number of rows of their UNet."""
        return sum(self.ks)

    @property
    def first_rows(self) -> list[int]:
        """The UNet's row of each clusterer's first cluster."""
        return [0, *accumulate(self.ks)][:-1]

    def split(self, unet: UNet) -> list[tuple[UNet, "ClusterBank"]]:
        """For each k its clusterer, and a copy of the UNet that knows only the clusters of this k."""
        return [
            (unet.with_clusters(first, k), ClusterBank([clusterer]))
            for clusterer, first, k in zip(self, self.first_rows, self.ks, strict=True)
        ]

    def state_dict(self, *args: Any, **options: Any) -> Any:
        return self[0].state_dict(*args, **options) if len(self) == 1 else super().state_dict(*args, **options)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **options: Any) -> Any:
        if len(self) == 1:
            return self[0].load_state_dict(state_dict, *args, **options)
        return super().load_state_dict(state_dict, *args, **options)

    # Classifiers computed together, as one network

    def stacked(self) -> Classifier:
        """The classifiers as one network with a copy of their weights; a single one is returned as it is.

        They must be of one width. All get as many logits as the one with most clusters; those that another lacks are 0.
        """
        first: Any = self[0]
        if len(self) == 1:
            return first
        conv = first.classifier.conv1
        network = Classifier(conv.in_channels, max(self.ks), conv.out_channels, len(self)).to(conv.weight.device)
        states = [classifier.state_dict() for classifier in self]
        for name, value in network.state_dict().items():
            if not value.ndim:  # the number of batches, which all have seen
                value.copy_(states[0][name])
                continue
            for part, state in zip(value.zero_().chunk(len(states)), states, strict=True):
                part[: len(state[name])] = state[name]
        return network

    def take_back(self, network: Classifier) -> None:
        """Copy the present weights of `stacked`, the network made of the classifiers, into the classifiers."""
        if len(self) == 1:
            return
        for i, classifier in enumerate(self):
            lengths = {name: len(value) for name, value in classifier.state_dict().items() if value.ndim}
            classifier.load_state_dict({
                name: value.chunk(len(self))[i][: lengths[name]] if value.ndim else value
                for name, value in network.state_dict().items()
            })  # fmt: skip

    def probabilities(self, logits: Tensor) -> Tensor:
        """The logits of `stacked` (B, n * k, 1, 1), k the most clusters -> probabilities (B, n, k), 0 for those that a
        classifier lacks."""
        logits = logits.reshape(len(logits), len(self), -1)
        numbers = torch.arange(logits.shape[-1], device=logits.device)
        lacking = numbers >= torch.tensor(self.ks, device=logits.device)[:, None]
        return logits.masked_fill(lacking, -torch.inf).softmax(-1)
