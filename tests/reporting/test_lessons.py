"""Pictures that explain the method."""

import matplotlib.pyplot as plt
import torch

from pfiles.reporting import lessons


def test_an_encoding_is_shown_beside_its_tile():
    tile, codes, z = torch.zeros(3, 48, 48, dtype=torch.uint8), torch.arange(144).view(12, 12), torch.randn(16, 12, 12)
    figure = lessons.show_encoding(tile, codes, z)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:3] == ["tile\n48 x 48", "codes\n12 x 12", "latent, channel 1\n12 x 12"]
    assert len(titles) == 2 + lessons.CHANNELS
    assert (figure.axes[1].images[0].get_array() == codes.numpy()).all()
    plt.close(figure)
