"""Pictures with which the notebooks explain the method."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

CHANNELS = 4  # of a latent that are shown


def show_encoding(tile: Tensor, codes: Tensor, z: Tensor) -> Figure:
    """A tile, uint8 (3, S, S), beside its codes (h, w), a colour for each, and the first channels of its latent z
    (z, h, w)."""
    panels = {"tile": tile.permute(1, 2, 0), "codes": codes}
    panels |= {f"latent, channel {i + 1}": channel for i, channel in enumerate(z[:CHANNELS])}
    fig, axes = plt.subplots(1, len(panels), figsize=(2 * len(panels), 2.3), layout="constrained")
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        ax.imshow(panel.cpu().numpy(), cmap="tab20" if title == "codes" else "viridis", interpolation="nearest")
        ax.set_title(f"{title}\n{' x '.join(map(str, panel.shape[:2]))}", size="small")
        ax.set_axis_off()
    return fig
