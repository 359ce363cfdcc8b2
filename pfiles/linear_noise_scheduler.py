"""The diffusion process of DDPM (Ho et al. 2020) with variances that grow linearly."""

import torch
from torch import Tensor


class LinearNoiseScheduler:
    """beta_t grows linearly from `beta_start` to `beta_end` over t = 0 ... num_timesteps - 1."""

    def __init__(self, num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02):
        self.num_timesteps = num_timesteps
        # float64: a step's alpha is the quotient of two cumulative products that differ by as little as 1e-4
        self.betas = torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64)
        self.alphas = 1 - self.betas
        self.alpha_cumprod = self.alphas.cumprod(0)
        self._copies: dict[torch.device, Tensor] = {}

    def _alpha_cumprod_on(self, device: torch.device) -> Tensor:
        """`alpha_cumprod` on `device`, copied there once: a copy in every step would make the host wait for it."""
        if device not in self._copies:
            self._copies[device] = self.alpha_cumprod.to(device)
        return self._copies[device]

    def velocity(self, original: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """v = sqrt(alpha_bar_t) noise - sqrt(1 - alpha_bar_t) x_0, Salimans & Ho 2022, section 4.

        original, noise: (B, ...); t: (B,) time steps. As a target it asks for the image where noise hides it, and
        for the noise where there is little of it.
        """
        alpha_bar = self._alpha_cumprod_on(original.device)[t].view(-1, *[1] * (original.dim() - 1))
        return alpha_bar.sqrt().to(original.dtype) * noise - (1 - alpha_bar).sqrt().to(original.dtype) * original

    def noise_from_velocity(self, xt: Tensor, velocity: Tensor, t: int) -> Tensor:
        """The noise in x_t that a predicted `velocity` means: sqrt(alpha_bar_t) v + sqrt(1 - alpha_bar_t) x_t."""
        alpha_bar = self.alpha_cumprod[t].item()
        return alpha_bar**0.5 * velocity + (1 - alpha_bar) ** 0.5 * xt

    def add_noise(self, original: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Draw x_t from q(x_t | x_0), Ho et al. 2020, equation 4.

        original, noise: (B, ...); t: (B,) time steps.
        """
        alpha_bar = self._alpha_cumprod_on(original.device)[t].view(-1, *[1] * (original.dim() - 1))
        return alpha_bar.sqrt().to(original.dtype) * original + (1 - alpha_bar).sqrt().to(original.dtype) * noise

    def sample_prev_timestep(
        self, xt: Tensor, noise_pred: Tensor, t: int | Tensor, t_prev: int | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One ancestral step from x_t back to x_{t_prev}, Ho et al. 2020, equations 7 and 11.

        t, t_prev: time steps shared by the batch; t_prev is t - 1 unless steps are skipped (Nichol & Dhariwal 2021,
        section 4), -1 stands for the clean latent. noise: standard normal like `xt`; drawn here where it is None.
        Returns the latent at t_prev and the predicted x_0 clamped to [0, 1]. The clamp is the published one, touches
        only that second value, and would be wrong for latents, which are not bounded.
        """
        t = int(t)
        t_prev = t - 1 if t_prev is None else t_prev
        alpha_bar = self.alpha_cumprod[t].item()
        alpha_bar_prev = self.alpha_cumprod[t_prev].item() if t_prev >= 0 else 1.0
        alpha = alpha_bar / alpha_bar_prev
        beta = 1 - alpha

        x0 = (xt - (1 - alpha_bar) ** 0.5 * noise_pred) / alpha_bar**0.5
        mean = (xt - beta / (1 - alpha_bar) ** 0.5 * noise_pred) / alpha**0.5  # equation 11
        if t_prev >= 0:  # the last step adds no noise
            variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta  # equation 7, beta tilde
            mean = mean + variance**0.5 * (torch.randn_like(xt) if noise is None else noise)
        return mean, x0.clamp(0, 1)

    def ddim_step(self, xt: Tensor, noise_pred: Tensor, t: int, t_prev: int) -> Tensor:
        """One step without noise from x_t to x_{t_prev}; -1 stands for the clean latent.

        Song et al. 2021 (DDIM), equation 12 with sigma = 0: the predicted x_0, noised again to t_prev with the
        predicted noise.
        """
        alpha_bar = self.alpha_cumprod[t].item()
        alpha_bar_prev = self.alpha_cumprod[t_prev].item() if t_prev >= 0 else 1.0
        x0 = (xt - (1 - alpha_bar) ** 0.5 * noise_pred) / alpha_bar**0.5
        return alpha_bar_prev**0.5 * x0 + (1 - alpha_bar_prev) ** 0.5 * noise_pred
