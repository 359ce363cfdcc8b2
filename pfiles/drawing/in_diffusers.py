"""A generator in the layout of the library diffusers: its own schedulers, and our networks as models that it loads.

    from pfiles.drawing.in_diffusers import TilePipeline

    tiles = TilePipeline.from_pretrained(FOLDER)(class_labels=[0, 0, 3]).images

The folder holds scheduler/, unet/ and vqvae/, each with a config.json and, for the networks, safetensors. No network of
diffusers has our blocks, so that the weights cannot become one of those; whoever reads the folder needs this package.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    ConfigMixin,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    ImagePipelineOutput,
    ModelMixin,
    SchedulerMixin,
)
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pfiles.drawing.samplers import make_solver
from pfiles.errors import InputError
from pfiles.latents import LatentSpace
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.machine.runtime import eval_mode
from pfiles.settings import Settings
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE

ORDERS = {"ddim": 1, "dpm-solver++": 2}  # of DPM-Solver++, by sampler


class TileUNet(ModelMixin, ConfigMixin):
    """`UNet` with the call of diffusers' UNet2DModel.

    arguments: of `UNet`. drawing: how the pipeline draws: timesteps, those to visit, falling; guidance, as in
    `sampling.sample`.
    """

    @register_to_config
    def __init__(
        self, in_channels: int, num_class_embeds: int, sample_size: int, arguments: Mapping[str, Any],
        drawing: Mapping[str, Any],
    ):  # fmt: skip
        super().__init__()
        self.unet = UNet(in_channels, num_class_embeds, **arguments)

    def forward(self, sample: Tensor, timestep: Tensor | int, class_labels: Tensor | None = None) -> UNet2DOutput:
        """Latents (B, C, h, w), a time step, clusters (B,), 0-based, or -1 for none -> noise or velocity."""
        return UNet2DOutput(sample=self.unet(sample, timestep, class_labels))


class TileVQVAE(ModelMixin, ConfigMixin):
    """`VQVAE` with the call of diffusers' VQModel, from the latents that the UNet draws to images in [0, 1]."""

    @register_to_config
    def __init__(self, arguments: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.vqvae = VQVAE(**arguments)
        self.register_buffer("shift", torch.tensor(mean)[:, None, None])
        self.register_buffer("scale", torch.tensor(std)[:, None, None])

    def decode(self, latents: Tensor) -> DecoderOutput:
        return DecoderOutput(sample=self.vqvae.decode(latents * self.scale + self.shift))


class TilePipeline(DiffusionPipeline):
    """Draws tiles of given clusters."""

    def __init__(self, unet: TileUNet, vqvae: TileVQVAE, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=unet, vqvae=vqvae, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """generator: one for all tiles, or one for each. output_type: "pil" or "np", floats (N, H, W, 3) in [0, 1]."""
        labels, drawing = torch.as_tensor(class_labels, device=self.device), self.unet.config.drawing
        guidance, side = drawing["guidance"], self.unet.config.sample_size
        shape = (len(labels), self.unet.config.in_channels, side, side)
        x = randn_tensor(shape, generator=generator, device=self.device) * self.scheduler.init_noise_sigma
        self.scheduler.set_timesteps(timesteps=drawing["timesteps"], device=self.device)
        extra = {"generator": generator} if isinstance(self.scheduler, DDPMScheduler) else {}
        with eval_mode(self.unet, self.vqvae):
            for t in self.progress_bar(self.scheduler.timesteps):
                predicted = self.unet(x, t, labels).sample
                if guidance != 1:
                    without = self.unet(x, t, torch.full_like(labels, -1)).sample
                    predicted = without + guidance * (predicted - without)
                x = self.scheduler.step(predicted, t, x, **extra).prev_sample
            images = self.vqvae.decode(x).sample.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        return ImagePipelineOutput(images=self.numpy_to_pil(images) if output_type == "pil" else images)


def make_pipeline(unet: UNet, space: LatentSpace, settings: Settings) -> TilePipeline:
    """The pipeline that draws what these networks of a `Generator` draw, with copies of their weights."""
    diffusion, sampling = settings.diffusion, settings.sampling
    channels, side, _ = space.vqvae.latent_shape(settings.image_size_px)
    process = LinearNoiseScheduler(diffusion.num_timesteps, diffusion.beta_start, diffusion.beta_end)
    timesteps = make_solver(sampling.sampler, process, sampling.steps).timesteps
    drawing = {"timesteps": timesteps, "guidance": sampling.guidance}
    predictor = TileUNet(channels, unet.class_emb.num_embeddings, side, dict(diffusion.unet), drawing)
    predictor.unet.load_state_dict(unet.state_dict())
    scaling = space.as_json() or {"mean": [0.0] * channels, "std": [1.0] * channels}
    decoder = TileVQVAE(dict(settings.autoencoder.vqvae) | {"upsampling": settings.autoencoder.upsampling}, **scaling)
    decoder.vqvae.load_state_dict(space.vqvae.state_dict())
    scheduler = _scheduler(sampling.sampler, process, {"noise": "epsilon", "v": "v_prediction"}[diffusion.prediction])
    return TilePipeline(predictor.eval(), decoder.eval(), scheduler)


def _scheduler(sampler: str, process: LinearNoiseScheduler, prediction: str) -> SchedulerMixin:
    """diffusers' scheduler that takes the steps of `samplers.make_solver`; DDIM is DPM-Solver++ of first order (Lu et
    al. 2022, section 4), whose steps need not be evenly spaced, as those of diffusers' own DDIM must."""
    common = {"num_train_timesteps": process.num_timesteps, "trained_betas": process.betas.tolist()}
    common["prediction_type"] = prediction
    if sampler == "ddpm":
        return DDPMScheduler(**common, clip_sample=False)
    common["final_sigmas_type"] = "zero"
    if sampler not in ORDERS:
        raise InputError(f"diffusers draws with ddpm, {', '.join(ORDERS)}, not with {sampler!r}: set sampling.sampler.")
    return DPMSolverMultistepScheduler(**common, solver_order=ORDERS[sampler], lower_order_final=False)
