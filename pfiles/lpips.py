"""LPIPS, the learned perceptual distance between images (Zhang et al. 2018), on VGG16."""

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfiles.errors import InputError
from pfiles.machine.pretrained import pretrained_file
from pfiles.paths import ROOT

# VGG16's features by slice: the channels of its convolutions; each slice after the first opens with a max pool
VGG16_SLICES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16Features(nn.Module):
    """torchvision's VGG16 up to relu5_3 in five slices, whose entries keep their index in torchvision's `features`."""

    def __init__(self):
        super().__init__()
        index, in_channels = 0, 3
        for number, widths in enumerate(VGG16_SLICES, start=1):
            layers = nn.Sequential()
            if number > 1:
                layers.add_module(str(index), nn.MaxPool2d(2, 2))
                index += 1
            for width in widths:
                layers.add_module(str(index), nn.utils.skip_init(nn.Conv2d, in_channels, width, 3, padding=1))
                layers.add_module(str(index + 1), nn.ReLU())
                index, in_channels = index + 2, width
            self.add_module(f"slice{number}", layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Scaled images (B, 3, H, W) -> the feature maps at the end of each slice."""
        features = []
        for layers in self.children():
            x = layers(x)
            features.append(x)
        return features


class LinearHead(nn.Module):
    """A weight per channel: (B, C, H, W) -> (B, 1, H, W). Index 1 of `model` holds it, behind a dropout."""

    def __init__(self, channels: int):
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.utils.skip_init(nn.Conv2d, channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class LPIPS(nn.Module):
    """LPIPS v0.1 with VGG16: images a, b (B, 3, H, W) -> distances (B, 1, 1, 1), 0 for equal images.

    The network is built without weights. They come from `load_state_dict`, or on first use from `load_pretrained`;
    without them no distance is ever computed. It stays in eval mode and needs no gradient of its own.

    Inputs are expected in [-1, 1]; `normalize=True` says that they are in [0, 1].
    """

    shift: Tensor
    scale: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.net = VGG16Features()
        for i, widths in enumerate(VGG16_SLICES):
            self.add_module(f"lin{i}", LinearHead(widths[-1]))
        self.has_weights = False
        self.register_load_state_dict_post_hook(_note_weights)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "LPIPS":
        """Stays in eval mode: as a fixed measure it has no other."""
        return super().train(False)

    def load_pretrained(self) -> "LPIPS":
        """Load torchvision's ImageNet weights of VGG16 (downloaded once) and the LPIPS v0.1 linear heads.

        Raises InputError if either can be neither found nor downloaded, or is not what it should be.
        """
        heads = self._read_heads(heads_path())
        vgg = torch.load(vgg16_file(), map_location="cpu", weights_only=True)
        slices = {
            f"net.slice{number}.{index}.{kind}": vgg[f"features.{index}.{kind}"]
            for number, layers in enumerate(self.net.children(), start=1)
            for index, layer in layers.named_children()
            if isinstance(layer, nn.Conv2d)
            for kind in ("weight", "bias")
        }
        self.load_state_dict(slices | heads)
        return self

    def _read_heads(self, path: Path) -> dict[str, Tensor]:
        shapes = {name: value.shape for name, value in self.state_dict().items() if name.startswith("lin")}
        try:
            heads = torch.load(path, map_location="cpu", weights_only=True)
            sound = {name: value.shape for name, value in heads.items()} == shapes
            sound = sound and all(value.isfinite().all() for value in heads.values())
        except Exception:  # a broken file raises errors of many kinds in torch
            sound = False
        if not sound:
            raise InputError(
                f"{path} does not hold LPIPS's five linear heads: put the file weights/v0.1/vgg.pth of the package "
                "lpips there, or delete it and run pip install -r requirements.txt."
            )
        return heads

    def forward(self, a: Tensor, b: Tensor, normalize: bool = False) -> Tensor:
        if not self.has_weights:
            self.load_pretrained()
        if normalize:
            a, b = 2 * a - 1, 2 * b - 1
        features = zip(*(self.net((x - self.shift) / self.scale) for x in (a, b)), strict=True)
        distance = torch.zeros(len(a), 1, 1, 1, device=a.device)
        for i, (f, g) in enumerate(features):
            difference = (F.normalize(f) - F.normalize(g)).square()  # unit length over the channels
            distance = distance + getattr(self, f"lin{i}")(difference).mean((2, 3), keepdim=True)
        return distance


def _note_weights(network: LPIPS, incompatible_keys) -> None:
    network.has_weights = not incompatible_keys.missing_keys


def heads_path() -> Path:
    """The five linear heads: `weights/vgg.pth` where a user put it, otherwise the equal file of the lpips package."""
    path = ROOT / "weights" / "vgg.pth"
    if path.exists():
        return path
    package = find_spec("lpips")
    if package is None:
        raise InputError(
            f"LPIPS needs its linear heads: expected {path} or the installed package lpips, found neither; "
            "run pip install -r requirements.txt."
        )
    return Path((package.submodule_search_locations or [""])[0]) / "weights" / "v0.1" / "vgg.pth"


def vgg16_file() -> Path:
    """torchvision's VGG16 ImageNet weights from torch's cache, downloaded on first use, with their hash checked.

    Raises InputError naming the file, its address and hash, and where to put it, when there is no way to get it.
    """
    from torchvision.models import VGG16_Weights

    return pretrained_file(
        VGG16_Weights.IMAGENET1K_V1.url,
        "LPIPS needs VGG16's ImageNet weights",
        'autoencoder.perceptual="ms-ssim" for a training, lpips_required=False for part 12 (preset "demo" has it)',
    )
