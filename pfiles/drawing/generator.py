"""All that draws tiles, in one object and in one folder: autoencoder, UNet, clusters, and how images are drawn.

This file is longer than others, as a generator goes into a folder, the published files and the layout of diffusers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pfiles.checkpoints import (
    checkpoint_name,
    fingerprint,
    fingerprint_of_clusters,
    inference_fingerprint,
    load_autoencoder,
    load_stage,
    save_weights,
)
from pfiles.cluster_bank import ClusterBank
from pfiles.clusterers import CLUSTERINGS
from pfiles.drawing import soundness
from pfiles.drawing.field import Box, draw_field, make_field
from pfiles.drawing.layout import Layout, Reader
from pfiles.drawing.sampling import STRENGTH, OnStep, image_seeds, sample
from pfiles.errors import InputError
from pfiles.latents import Assignment, LatentSpace, encode_tiles, predict_clusters, read_latent_csv
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.machine.runtime import make_rng
from pfiles.machine.speed import EAGER, Speed
from pfiles.names import find_clusters, load_reader_names, majority_names
from pfiles.paths import CHECKOUT, ROOT, Paths, atomic_write, expand, read_json, write_json
from pfiles.settings import DRAWING, Settings, get_settings
from pfiles.unet_cond_base import UNet, make_unet
from pfiles.vqvae import make_vqvae

# small networks that come with the project: in a checkout, or in an installed package
STARTERS = (CHECKOUT / "weights" / "starter", Path(__file__).parents[1] / "starter")
STARTER = next((folder for folder in STARTERS if folder.exists()), STARTERS[0])
FILES = ("config.json", "model.safetensors")  # of a generator's folder
NEEDED = (  # the settings that drawing depends on
    "image_size_px", "autoencoder.vqvae", "autoencoder.upsampling", "diffusion.unet", "diffusion.num_timesteps",
    "diffusion.beta_start", "diffusion.beta_end", "diffusion.prediction", "diffusion.latent_scaling",
    "diffusion.condition_dropout", *(f"sampling.{name}" for name in DRAWING),
)  # fmt: skip
UNGUIDED = {"sampling.guide": "itself"}  # what a folder says whose UNet guides itself


CARD = """---
{{ card_data }}
---

# A generator of tissue tiles

    from pfiles import Generator

    tiles = Generator.from_pretrained("FOLDER OR HUB ID").draw(0, number=16, seed=1)

Autoencoder, UNet and clusters of a conditional latent diffusion model, with all that drawing depends on in
`config.json`. What they were trained on, and what they may be used for, is not said here: `python -m pfiles share`
writes a card that says it.
"""


@dataclass(eq=False)
class Generator(
    PyTorchModelHubMixin,
    library_name="pfiles",
    tags=["histopathology", "latent-diffusion", "vq-gan"],
    pipeline_tag="unconditional-image-generation",
    model_card_template=CARD,
):
    """Trained networks that draw tiles of any of their clusters.

    `save_pretrained` writes it to a folder, `from_pretrained` reads it from there or from the Hugging Face hub.

    bank: the clusters that are the UNet's condition, of one k or of several. space: the latents that the UNet learnt.
    shares: of the training tiles in each cluster (k,), by which clusters are drawn when none are asked for; None or an
        empty tensor: all alike.
    about: whatever else is known, in plain values; it stays with the folder.
    names: of clusters, by their numbers from 1. mpp: microns per pixel of the tiles; None: not known.
    guide: the UNet that guidance leads away from, see `sample`; None: the UNet itself.
    """

    unet: UNet
    bank: ClusterBank
    space: LatentSpace
    settings: Settings
    shares: Tensor = field(default_factory=Tensor)
    about: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    speed: Speed = EAGER
    mpp: float | None = None
    guide: UNet | None = None

    def __post_init__(self):
        if self.shares is None or not self.shares.numel():
            self.shares = torch.full((self.n_clusters,), 1 / self.n_clusters)

    @property
    def n_clusters(self) -> int:
        return self.unet.class_emb.num_embeddings

    @property
    def clustering(self) -> str:
        """ "classifier" or "kmeans"."""
        return self.bank.kind

    def split_by_k(self) -> list["Generator"]:
        """A generator for each k alone, whose UNet is a copy."""
        guides = [unet for unet, _ in self.bank.split(self.guide)] if self.guide else [None] * len(self.bank.ks)
        return [
            Generator(unet, bank, self.space, self.settings, speed=self.speed, guide=guide)
            for (unet, bank), guide in zip(self.bank.split(self.unet), guides, strict=True)
        ]

    def draw(
        self,
        cluster: int | str | Sequence[int] | Tensor | None = None,
        number: int = 1,
        seed: int = 765,
        *,
        seeds: Sequence[int] | None = None,
        progress: bool = True,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Tiles of a cluster, uint8 (N, 3, S, S) on the CPU; the same cluster and seed give the same tile.

        cluster: one id, 0-based; or a name, or a number from 1 as text; `number` tiles of it are drawn. Or the ids of
            all tiles (N,). None: `number` tiles of all clusters. Of several clusters, also those of one name, each is
            as frequent as among the training tiles.
        seeds: one for each tile; None: derived from `seed` and the tile's place. on_step: see `sample`.
        """
        if cluster is None or isinstance(cluster, str):
            cluster_ids = self.cluster_ids(number, seed, cluster)
        else:
            cluster_ids = torch.as_tensor(cluster)
            cluster_ids = cluster_ids if cluster_ids.dim() else cluster_ids.expand(number)
        soundness.require_cluster_ids(cluster_ids, self.n_clusters)
        if seeds is not None:
            soundness.require_seeds(seeds, len(cluster_ids))
        seeds = image_seeds(seed, range(len(cluster_ids))) if seeds is None else seeds
        return self._sample(cluster_ids, seeds, progress=progress, on_step=on_step)

    def _sample(self, cluster_ids: Tensor, seeds: Sequence[int], **options: Any) -> Tensor:
        """`sample` with these networks and settings."""
        diffusion, sampling = self.settings.diffusion, self.settings.sampling
        scheduler = LinearNoiseScheduler(diffusion.num_timesteps, diffusion.beta_start, diffusion.beta_end)
        return sample(
            self.unet, scheduler, self.space.decode, cluster_ids, seeds,
            latent_shape=self.space.vqvae.latent_shape(self.settings.image_size_px), num_steps=sampling.steps,
            batch_size=sampling.batch_size, sampler=sampling.sampler, guidance=sampling.guidance,
            prediction=diffusion.prediction, speed=self.speed, guide=self.guide, **options,
        )  # fmt: skip

    def vary(
        self, tiles: Tensor, strength: float = STRENGTH, number: int = 1, seed: int = 765, *,
        cluster: int | str | None = None, progress: bool = True,
    ) -> Tensor:  # fmt: skip
        """Variations of tiles, uint8 (N, number, 3, S, S) on the CPU: each is encoded, noised, and drawn back.

        tiles: uint8 (N, 3, S, S). strength: the share of the sampler's steps that is drawn anew, above 0 to 1, which
        leaves nothing of a tile (SDEdit, Meng et al. 2022). cluster: as which all are drawn, an id, 0-based; or a
        name, or a number from 1 as text; None: each as its own. The noise depends on seed and place alone.
        """
        soundness.require_images(tiles, self.settings.image_size_px)
        soundness.require_variations(strength, number)
        codes = encode_tiles(self.space.vqvae, tiles.to(next(self.unet.parameters()).device))
        if cluster is None:
            cluster_ids, _ = predict_clusters(self.space.vqvae, self.bank, codes)
            cluster_ids = cluster_ids.repeat_interleave(number)
        elif isinstance(cluster, str):
            cluster_ids = self.cluster_ids(len(tiles) * number, seed, cluster)
        else:
            cluster_ids = torch.tensor(cluster).expand(len(tiles) * number)
        soundness.require_cluster_ids(cluster_ids, self.n_clusters)
        originals = self.space.embed(codes).repeat_interleave(number, 0)
        seeds = image_seeds(seed, range(len(cluster_ids)))
        images = self._sample(cluster_ids, seeds, progress=progress, originals=originals, strength=strength)
        return images.unflatten(0, (len(tiles), number))

    def field(
        self, layout: Layout, seed: int = 765, *, stride: int | None = None, blend: int | None = None,
        region: Box | None = None, progress: bool = True,
    ) -> Tensor:  # fmt: skip
        """Tissue larger than a tile as one image, uint8 (3, H, W) on the CPU; the same layout and seed give the same.

        layout: which cluster lies where, from `read_layout` or `make_layout`. stride, blend: see `make_field`. region:
            only that part, in pixels; it is equal to the same part of the whole but for single values by one level.
        """
        networks = self.unet, self.space, self.settings
        whole = make_field(*networks, layout, seed, stride, blend, self.speed, self.guide)
        return draw_field(whole, region, progress)

    @property
    def reader(self) -> Reader:
        """What the names and numbers in a layout mean to this generator, for `read_layout`."""
        side = self.settings.image_size_px
        return Reader(self.names, self.n_clusters, self.shares.tolist(), side, self.mpp)

    def cluster_ids(self, number: int, seed: int, name: str | None = None) -> Tensor:
        """`number` cluster ids of that name, see `find_clusters`, drawn as frequent as among the training tiles."""
        if not isinstance(number, int) or number < 1:
            raise InputError(f"The number of tiles to draw must be a whole number of at least 1, but is {number!r}.")
        shares = self.shares.double()
        if name is not None:
            ids, all_shares = find_clusters(name, self.names, self.n_clusters), shares
            shares = torch.zeros_like(all_shares)
            shares[ids] = all_shares[ids] if all_shares[ids].any() else 1.0
        return torch.multinomial(shares, number, replacement=True, generator=make_rng(seed, "clusters"))

    def assign(self, images: Tensor) -> Assignment:
        """The cluster of each of uint8 images (N, 3, S, S) and its probability."""
        soundness.require_images(images, self.settings.image_size_px)
        device = next(self.unet.parameters()).device
        return predict_clusters(self.space.vqvae, self.bank, encode_tiles(self.space.vqvae, images.to(device)))

    def save(self, folder: Path, *, half: bool = False) -> None:
        """Write `config.json` and `model.safetensors`.

        half: in half precision, half the size; a guide, which may err, in a quarter (8 bits, E4M3).
        """
        folder = Path(folder)
        state = {
            f"{name}.{key}": tensor.detach().cpu().contiguous()
            for name, network in self._networks().items()
            for key, tensor in network.state_dict().items()
        }
        if half:
            kinds = {name: torch.float8_e4m3fn if name.startswith("guide.") else torch.float16 for name in state}
            state = {
                name: value.to(kinds[name]) if value.is_floating_point() else value for name, value in state.items()
            }
        config = {
            "n_clusters": self.n_clusters,
            "clustering": self.clustering,
            "settings": {name: _value(self.settings, name) for name in NEEDED} | ({} if self.guide else UNGUIDED),
            "latent_scaling": self.space.as_json(),
            "cluster_shares": [round(share, 6) for share in self.shares.tolist()],
            "cluster_names": {str(number): name for number, name in self.names.items()},
            "mpp": self.mpp,
            "about": dict(self.about),
        }
        write_json(folder / "config.json", json.loads(json.dumps(config)))
        with atomic_write(folder / "model.safetensors") as file:
            file.write(save(state))

    def _networks(self) -> dict[str, nn.Module]:
        guide = {"guide": self.guide} if self.guide else {}
        return {"vqvae": self.space.vqvae, "unet": self.unet, "clusterer": self.bank, **guide}

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> "Generator":
        """The generator in a folder that `save` wrote, or "starter", the small one that comes with the project."""
        folder = find_generator(folder)
        soundness.require_sound_folder(folder)
        config, state = read_json(folder / "config.json", {}), read_weights(folder)
        soundness.require_sound_weights(state, folder)
        try:
            settings = get_settings("paper", config["settings"])
            k, kind = config["n_clusters"], CLUSTERINGS[CLUSTERINGS.index(config["clustering"])]
            vqvae = make_vqvae(settings.autoencoder)
            unet = make_unet(settings.diffusion, vqvae.z_channels, k)
            bank = ClusterBank.make(kind, vqvae.z_channels, [k])
            networks: dict[str, nn.Module] = {"vqvae": vqvae, "unet": unet, "clusterer": bank}
            guide = make_unet(settings.diffusion, vqvae.z_channels, k) if settings.sampling.guide != "itself" else None
            networks |= {"guide": guide} if guide else {}
            for name, network in networks.items():
                network.load_state_dict({key: state[f"{name}.{key}"].float() for key in network.state_dict()})
                network.to(device).eval().requires_grad_(False)
            space = LatentSpace.from_json(vqvae, config["latent_scaling"])
            shares = torch.tensor(config["cluster_shares"])
            names = {int(number): str(name) for number, name in config.get("cluster_names", {}).items()}
            mpp = config.get("mpp")
            return cls(unet, bank, space, settings, shares, config["about"], names, mpp=mpp, guide=guide)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            why = str(error).partition("\n")[0]
            raise InputError(f"{folder} does not hold a generator that fits together ({why}): get it anew.") from error

    def _save_pretrained(self, save_directory: Path) -> None:
        """What the hub's `save_pretrained` writes, beside a README.md where there is none."""
        self.save(save_directory)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, device: torch.device | str = "cpu", **options: Any
    ) -> "Generator":
        """The generator in a folder, or of that name on the Hugging Face hub, or "starter".

        options: those of the hub, such as revision, cache_dir, token and local_files_only. InputError if there is
        none. Unlike the hub's own method it reads nothing before the folder is checked.
        """
        name = pretrained_model_name_or_path
        folder = find_generator("starter") if str(name) == "starter" else expand(name)
        try:
            if not folder.is_dir():
                files = [Path(hf_hub_download(str(folder), file, **options)) for file in FILES]
                folder = files[0].parent
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            why = str(error).partition("\n")[0]
            raise InputError(
                f"There is no folder {folder}, and no generator of that name came from the hub ({why}): name a folder "
                "with config.json and model.safetensors, or a hub id such as someone/tissue."
            ) from error
        return cls.load(folder.absolute(), device)

    # the published files

    @classmethod
    def from_checkpoints(
        cls,
        folder: str | Path,
        n_clusters: int = 14,
        clustering: str = "classifier",
        preset: str = "paper",
        overrides: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> "Generator":
        """The networks in the published files, or in those of a run: kpc_ldm/vqvae_autoencoder_ckpt.pth, and the newest
        of finetuning-2 in clusters_14/models_14.

        The shares of the clusters are those in HHH14_C14_D14.csv; where that is absent, all are alike. Names are those
        that readers gave these clusters, and the scale is that of the run that was finished there, where there are any.
        """
        paths, settings = Paths(n_clusters, folder, clustering), get_settings(preset, overrides)
        vqvae = load_autoencoder(paths, settings, device)
        unet, bank, space, guide = load_stage(paths, settings, "finetuning2", clustering, vqvae, device)
        shares = torch.empty(0)
        if paths.latent_csv.exists():
            cluster_ids = torch.from_numpy(read_latent_csv(paths.latent_csv, n_clusters).cluster_ids)
            sizes = cluster_ids.bincount(minlength=n_clusters)
            shares = sizes / sizes.sum()
        readings = load_reader_names(paths.cluster_folder, fingerprint_of_clusters(vqvae, bank), n_clusters)
        mpp = read_json(paths.summary, {}).get("run", {}).get("mpp")
        return cls(
            unet.eval(), bank.eval(), space, settings, shares, names=majority_names(readings), mpp=mpp, guide=guide
        )

    def save_checkpoints(self, folder: str | Path) -> None:
        """Write the networks under their published names, as `from_checkpoints` and the notebooks read them, each with
        a JSON beside it. InputError if the folder holds such files already.

        A classifier is written as that of both trainings, as readers look for either. Names end in 0 epochs, as how
        long it was trained is not kept.
        """
        k, kind, paths = self.n_clusters, self.clustering, Paths(self.n_clusters, folder, self.clustering)
        if paths.autoencoder.exists() or any(paths.models.glob("*.pth")):
            raise InputError(f"{paths.root} holds checkpoints already: name another folder.")
        diffusion, day = self.settings.diffusion, date.today().strftime("%Y%m%d")
        about = {
            "clustering": kind,
            "settings": {"diffusion": {name: getattr(diffusion, name) for name in ("prediction", "latent_scaling")}},
            "latent_scaling": self.space.as_json(),
            "trained_with": {
                "autoencoder": inference_fingerprint(self.space.vqvae), "clusters": fingerprint(self.bank)
            },
        }  # fmt: skip
        save_weights(self.space.vqvae, paths.autoencoder, {})
        stages = [("unet", self.unet, "finetuning2"), (kind, self.bank, "training")]
        if kind == "classifier":
            stages.append((kind, self.bank, "finetuning2"))
        if self.guide:
            stages.append(("unet", self.guide, "training"))
        for network, module, stage in stages:
            path = paths.models / checkpoint_name(network, stage, 0, k, day, kind)
            save_weights(module, path, {**about, "network": network, "stage": stage})

    def to_diffusers(self, folder: str | Path) -> None:
        """Write the networks and the sampler in the layout of the library diffusers, see `in_diffusers`."""
        if self.guide:
            raise InputError(
                "The layout of diffusers has room for one UNet, but this generator has another one that guides it: "
                'draw with the setting sampling.guide = "itself".'
            )
        if find_spec("diffusers") is None:
            raise InputError("This needs the package diffusers: pip install -c constraints.txt diffusers.")
        from pfiles.drawing.in_diffusers import make_pipeline  # seconds to import

        make_pipeline(self.unet, self.space, self.settings).save_pretrained(folder)


def find_generator(folder: str | Path) -> Path:
    """The folder of a generator; "starter" is the one that comes with the project."""
    path = STARTER if str(folder) == "starter" else ROOT / expand(folder)
    if str(folder) == "starter" and not path.exists():
        raise InputError(f"The starter generator is not installed here ({path}): name the folder of another one.")
    if not (path / "config.json").exists():
        raise InputError(
            f"There is neither a generator (config.json) nor a run (summary.json) in {path}: correct the path, or take "
            "'starter'."
        )
    return path


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors in a generator's folder, named vqvae.*, unet.* and clusterer.*."""
    path = folder / "model.safetensors"
    soundness.read_shapes(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}): get it anew.") from error


def _value(settings: Settings, name: str) -> Any:
    group, _, setting = name.partition(".")
    return getattr(getattr(settings, group), setting) if setting else getattr(settings, group)
