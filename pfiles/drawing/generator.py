"""All that draws tiles, in one object and in one folder: autoencoder, UNet, clusters, and how images are drawn."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pfiles.checkpoints import read_state
from pfiles.clustering import CLUSTERINGS, make_clusterer
from pfiles.drawing.sampling import image_seeds, sample
from pfiles.errors import InputError
from pfiles.latents import LatentSpace, encode_tiles, predict_clusters
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.machine.runtime import make_generator
from pfiles.machine.speed import PLAIN, Speed
from pfiles.paths import ROOT, atomic_write, expand, read_json, write_json
from pfiles.settings import Settings, get_settings
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import make_vqvae

STARTER = ROOT / "weights" / "starter"  # small networks that come with the project
NEEDED = (  # the settings that drawing depends on
    "image_size_px", "autoencoder.vqvae", "autoencoder.upsampling", "diffusion.unet", "diffusion.num_timesteps",
    "diffusion.beta_start", "diffusion.beta_end", "diffusion.prediction", "diffusion.latent_scaling",
    "diffusion.condition_dropout", "sampling.steps", "sampling.sampler", "sampling.guidance",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Generator:
    """Trained networks that draw tiles of any of their clusters.

    clusterer: a network from latents to cluster logits, see `clustering`. space: the latents that the UNet learnt.
    shares: of the training tiles in each cluster (k,), by which clusters are drawn when none are asked for.
    about: whatever else is known, in plain values; it stays with the folder.
    """

    unet: UNet
    clusterer: nn.Module
    space: LatentSpace
    settings: Settings
    shares: Tensor
    about: Mapping[str, Any] = field(default_factory=dict)
    speed: Speed = PLAIN

    @property
    def n_clusters(self) -> int:
        return self.unet.class_emb.num_embeddings

    def draw(
        self,
        cluster_ids: Sequence[int] | Tensor | None = None,
        *,
        number: int | None = None,
        seed: int = 765,
        seeds: Sequence[int] | None = None,
        progress: bool = True,
    ) -> Tensor:
        """A tile for each cluster id, 0-based, uint8 (N, 3, S, S) on the CPU.

        cluster_ids: None: `number` of them, as frequent as among the training tiles.
        seeds: one for each tile; None: derived from `seed` and the tile's place.
        """
        cluster_ids = self.cluster_ids(number, seed) if cluster_ids is None else torch.as_tensor(cluster_ids)
        if not ((cluster_ids >= 0) & (cluster_ids < self.n_clusters)).all():
            raise InputError(f"Clusters are numbered from 1 to {self.n_clusters}: choose among these.")
        diffusion, how = self.settings.diffusion, self.settings.sampling
        return sample(
            self.unet,
            LinearNoiseScheduler(diffusion.num_timesteps, diffusion.beta_start, diffusion.beta_end),
            self.space.decode,
            cluster_ids,
            image_seeds(seed, range(len(cluster_ids))) if seeds is None else seeds,
            self.space.vqvae.latent_shape(self.settings.image_size_px),
            num_steps=how.steps,
            batch_size=how.batch_size,
            sampler=how.sampler,
            guidance=how.guidance,
            prediction=diffusion.prediction,
            speed=self.speed,
            progress=progress,
        )

    def cluster_ids(self, number: int, seed: int) -> Tensor:
        """`number` cluster ids, drawn as frequent as among the training tiles."""
        generator = make_generator(seed, "clusters")
        return torch.multinomial(self.shares.double(), number, replacement=True, generator=generator)

    def assign(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The cluster (N,), 0-based, of uint8 images (N, 3, S, S) and its probability (N,), both on the CPU."""
        device = next(self.unet.parameters()).device
        return predict_clusters(self.space.vqvae, self.clusterer, encode_tiles(self.space.vqvae, images.to(device)))

    def save(self, folder: Path, *, half: bool = False) -> None:
        """Write `config.json` and `model.safetensors`; half: in half precision, half the size."""
        state = {
            f"{name}.{key}": tensor.detach().cpu().contiguous()
            for name, network in self._networks().items()
            for key, tensor in network.state_dict().items()
        }
        if half:
            state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        config = {
            "n_clusters": self.n_clusters,
            "clustering": "kmeans" if type(self.clusterer).__name__ == "KMeansClusters" else "classifier",
            "settings": {name: _value(self.settings, name) for name in NEEDED},
            "latent_scaling": self.space.as_json(),
            "cluster_shares": [round(share, 6) for share in self.shares.tolist()],
            "about": dict(self.about),
        }
        write_json(folder / "config.json", json.loads(json.dumps(config)))
        with atomic_write(folder / "model.safetensors") as file:
            file.write(save(state))

    def _networks(self) -> dict[str, nn.Module]:
        return {"vqvae": self.space.vqvae, "unet": self.unet, "clusterer": self.clusterer}

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> "Generator":
        """The generator in a folder that `save` wrote, or "starter", the small one that comes with the project."""
        folder = find_generator(folder)
        config, state = read_json(folder / "config.json"), read_weights(folder)
        try:
            settings = get_settings("paper", config["settings"])
            k, kind = config["n_clusters"], CLUSTERINGS[CLUSTERINGS.index(config["clustering"])]
            vqvae = make_vqvae(settings.autoencoder)
            unet = UNet(vqvae.z_channels, k, **settings.diffusion.unet)
            networks = {"vqvae": vqvae, "unet": unet, "clusterer": make_clusterer(kind, vqvae.z_channels, k)}
            for name, network in networks.items():
                network.load_state_dict({key: state[f"{name}.{key}"].float() for key in network.state_dict()})
                network.to(device).eval().requires_grad_(False)
            space = LatentSpace.from_json(vqvae, config["latent_scaling"])
            shares = torch.tensor(config["cluster_shares"])
            return cls(unet, networks["clusterer"], space, settings, shares, config["about"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            why = str(error).partition("\n")[0]
            raise InputError(f"{folder} does not hold a generator that fits together ({why}): get it anew.") from error


def find_generator(folder: str | Path) -> Path:
    """The folder of a generator; "starter" is the one that comes with the project."""
    path = STARTER if str(folder) == "starter" else ROOT / expand(folder)
    if not (path / "config.json").exists():
        raise InputError(f"There is no generator in {path}: name a folder with config.json and model.safetensors.")
    return path


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors in a generator's folder, named vqvae.*, unet.* and clusterer.*."""
    path = folder / "model.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}): get it anew.") from error


def starting_weights(where: str) -> dict[str, Tensor]:
    """The tensors vqvae.* and unet.* of a generator's folder, of "starter", or of a run's folder (its newest UNet).

    InputError where there is neither.
    """
    path = STARTER if where == "starter" else ROOT / expand(where)
    autoencoder = path / "kpc_ldm" / "vqvae_autoencoder_ckpt.pth"
    unets = sorted(path.glob("clusters_*/models_*/unet*finetuning2_ckpt_*.pth"), key=lambda file: file.stat().st_mtime)
    if (path / "config.json").exists():
        return read_weights(path)
    if not autoencoder.exists() or not unets:
        raise InputError(
            f"start_from names {path}, which holds neither a generator (config.json) nor a finished run "
            "(kpc_ldm/vqvae_autoencoder_ckpt.pth and a UNet of finetuning-2): name another folder, or null."
        )
    parts = {"vqvae": read_state(autoencoder), "unet": read_state(unets[-1])}
    return {f"{name}.{key}": tensor for name, state in parts.items() for key, tensor in state.items()}


def begin_from(network: nn.Module, weights: Mapping[str, Tensor], prefix: str, anew: Sequence[str] = ()) -> None:
    """Give `network` the tensors of `weights` whose names begin with `prefix`; InputError names what does not fit.

    anew: names whose first axis may differ, such as the embedding of another number of clusters: they stay as they are.
    """
    state = network.state_dict()
    for name, own in state.items():
        given = weights.get(prefix + name)
        if given is not None and given.shape == own.shape:
            state[name] = given.to(own.dtype)
        elif name not in anew or given is None or given.shape[1:] != own.shape[1:]:
            found = "is not among them" if given is None else f"has the shape {tuple(given.shape)} there"
            raise InputError(
                f"The weights that start_from names do not fit {type(network).__name__} with these settings: {name} "
                f"{found}, but needs {tuple(own.shape)}; take the widths that they were trained with, or other weights."
            )
    network.load_state_dict(state)


def _value(settings: Settings, name: str) -> Any:
    group, _, rest = name.partition(".")
    return getattr(getattr(settings, group), rest) if rest else getattr(settings, group)
