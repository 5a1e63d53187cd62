"""A Gaussian whose perfect denoiser, and the flow that a sampler follows with it, are known in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from drivesim.diffusion.sampler import Denoise
from drivesim.diffusion.schedule import TIMESTEPS, Diffusion


@dataclass(frozen=True)
class Gaussian:
    """mean [D] and covariance [D, D], float64; z = alpha·x + sigma·noise has mean and covariance in closed form too."""

    mean: Tensor
    covariance: Tensor

    def denoiser(self, diffusion: Diffusion) -> Denoise:
        """Predicts what the configuration says, perfectly, and is converted to velocity as a network's answer is."""

        def denoise(z: Tensor, timestep: Tensor) -> Tensor:
            alpha, sigma = (value.flatten()[0] for value in diffusion.coefficients(timestep, z))
            whitened = (z - alpha * self.mean) @ torch.linalg.inv(self._covariance(alpha, sigma))
            epsilon = sigma * whitened  # E[noise | z], and E[x | z], by linear regression on z
            if diffusion.config.prediction == "epsilon":
                return diffusion.velocity_of(epsilon, z, timestep)
            return alpha * epsilon - sigma * (self.mean + alpha * whitened @ self.covariance)

        return denoise

    def flow(self, z: Tensor, diffusion: Diffusion) -> Tensor:
        """Data that the probability flow brings z [..., D] of the last timestep to: every principal component keeps
        its place in standard deviations."""
        alpha, sigma = diffusion.coefficients(torch.tensor([TIMESTEPS - 1]), z[:1])
        variances, components = torch.linalg.eigh(self.covariance)
        ratio = (variances / (alpha.flatten() ** 2 * variances + sigma.flatten() ** 2)).sqrt()
        return self.mean + ((z - alpha * self.mean) @ components * ratio) @ components.T

    def _covariance(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.mean), dtype=torch.double)
