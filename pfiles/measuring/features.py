"""What images are compared by: extractors that turn each image into a row of features.

`inception` is the one that published FID and KID values are made with; its weights are downloaded on first use.
`autoencoder` and `random_convolutions` need nothing, and a distance in their features is never called FID.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from pfiles.errors import InputError
from pfiles.machine.pretrained import pretrained_file
from pfiles.machine.runtime import eval_mode, make_generator, pick_device
from pfiles.tiles.pixels import as_tensor, to_unit
from pfiles.vqvae import VQVAE

EXTRACTORS = ("random", "autoencoder", "inception")
BATCH_SIZE = 50  # images at once; changes memory and speed only
FILTERS, FILTER_PX, SCALES = 16, 7, 3  # of the random convolutions


@dataclass(frozen=True)
class Extractor:
    """Uint8 images (N, 3, H, W) or (N, H, W, 3) -> features (N, d) float32.

    name: what stands in tables; frechet, kernel: what the two distances in these features are called.
    batch: the same for some images (B, 3, H, W) on the device.
    """

    name: str
    batch: Callable[[Tensor], Tensor]
    frechet: str
    kernel: str

    def __call__(self, images: Tensor | np.ndarray) -> np.ndarray:
        if isinstance(images, np.ndarray):
            images = as_tensor(np.ascontiguousarray(images))
        device = pick_device()
        rows = []
        # the full digits of float32 on a GPU too
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for some in tqdm(images.split(BATCH_SIZE), desc=f"features: {self.name}", unit="batch", leave=False):
                rows.append(self.batch(some.to(device)).cpu())
        return torch.cat(rows).numpy()


def make_extractor(kind: str, vqvae: VQVAE | None = None) -> Extractor:
    """The extractor of that name; "autoencoder" takes the trained `vqvae`."""
    if kind == "autoencoder" and vqvae is None:
        raise InputError("The features of the autoencoder need one: name its checkpoint, or choose other features.")
    makers = {
        "random": random_convolutions,
        "autoencoder": lambda: autoencoder(vqvae),
        "inception": inception,
    }
    if kind not in makers:
        raise InputError(f"Unknown features {kind!r}: choose {', '.join(EXTRACTORS[:-1])} or {EXTRACTORS[-1]}.")
    return makers[kind]()


def random_convolutions() -> Extractor:
    """Colour, and a fixed bank of random filters at three scales: 16 of 7 x 7 px over the three colours at each.

    54 features: mean and standard deviation of each colour over the image; and for each filter at each scale the
    square root of its root mean square response, to which no flat colour contributes. All lie between 0 and about 1.
    They see texture up to 28 px, and nothing that was learnt. The filters are the same in every run. Sides must
    measure at least 28 px.
    """
    filters = torch.randn(FILTERS, 3, FILTER_PX, FILTER_PX, generator=make_generator("random convolutions"))
    filters -= filters.mean((2, 3), keepdim=True)
    filters /= filters.flatten(1).norm(dim=1)[:, None, None, None]

    def batch(images: Tensor) -> Tensor:
        x = to_unit(images)
        rows = [x.mean((2, 3)), x.std((2, 3), correction=0)]
        for scale in range(SCALES):
            response = F.conv2d(F.avg_pool2d(x, 2**scale), filters.to(x.device))
            rows.append(response.square().mean((2, 3)) ** 0.25)
        return torch.cat(rows, dim=1)

    return _without_download("random convolutions", batch)


def autoencoder(vqvae: VQVAE) -> Extractor:
    """The VQ-GAN's own view: mean and standard deviation over the positions of what its encoder gives to the codebook.

    Two numbers for each of the latent's channels, 32 for the published autoencoder.
    """

    def batch(images: Tensor) -> Tensor:
        with eval_mode(vqvae):
            z = vqvae.encode_continuous(to_unit(images))
        return torch.cat([z.mean((2, 3)), z.std((2, 3), correction=0)], dim=1)

    return _without_download("autoencoder features", batch)


def _without_download(name: str, batch: Callable[[Tensor], Tensor]) -> Extractor:
    return Extractor(name, batch, f"Frechet distance ({name})", f"kernel distance ({name})")


def inception() -> Extractor:
    """The 2048 features of the Inception-v3 that FID and KID are defined with, through torch-fidelity.

    Raises InputError where its weights can be neither found nor downloaded.
    """
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
    network = network.to(pick_device())
    return Extractor("Inception-v3", lambda images: network(images)[0], "FID", "KID")
