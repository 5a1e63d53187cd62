"""Noise schedule, what the network outputs, and how the loss weighs noise levels."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from drivesim.diffusion.draws import Generator, spread
from drivesim.errors import UserError

TIMESTEPS = 1000
# Our names of diffusers' schedules of betas; older bundles say squaredcos_cap_v2 for cosine.
BETAS = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
    "squaredcos_cap_v2": "squaredcos_cap_v2",
}
PREDICTIONS = ("v", "epsilon")
WEIGHTINGS = ("velocity", "epsilon", "latents", "min_snr")


def read_betas(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a ScheduleConfig that a scheduler_config.json of diffusers tells, with its defaults."""
    return {
        "beta": values.get("beta_schedule", "linear"),
        "beta_start": values.get("beta_start", 1e-4),
        "beta_end": values.get("beta_end", 0.02),
        "zero_snr": values.get("rescale_betas_zero_snr", False),
    }


@dataclass
class ScheduleConfig:
    """A variance-preserving process of 1000 timesteps.

    beta: linear (the paper's; DDPM's ends are 1e-4 and 2e-2), scaled_linear (latent diffusion's and Stable Diffusion's,
    linear in the root), both from beta_start to beta_end; or cosine, which has no ends to choose.

    zero_snr rescales the schedule so that the last step is pure noise (Lin et al. 2023): sampling then starts from
    what training has seen, and pictures may be as dark as the night.

    prediction: what the network outputs, v or epsilon (paper, section 3). All other code speaks of velocity.

    weighting of the squared error over time, whatever is predicted: velocity (the paper's for v) or epsilon (that for
    epsilon); latents, the error of the latents that the output stands for, sigma² times that of the velocity: the last
    steps of sampling, where hardly any noise is left to remove and most of it cannot be told from detail, then hardly
    count, so a training of minutes spends itself on structure; min_snr, that error of the latents times the
    signal-to-noise ratio up to gamma (Hang et al. 2023).
    """

    beta: str = "squaredcos_cap_v2"
    zero_snr: bool = True
    weighting: str = "velocity"
    prediction: str = "v"
    beta_start: float = 8.5e-4
    beta_end: float = 1.2e-2
    gamma: float = 5.0

    def check(self) -> "ScheduleConfig":
        """raises UserError for what is no process, or cannot be sampled from."""
        for name, known in (("beta", tuple(BETAS)), ("prediction", PREDICTIONS), ("weighting", WEIGHTINGS)):
            if getattr(self, name) not in known:
                raise UserError(f"schedule.{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
        if not 0 < self.beta_start < self.beta_end < 1:
            raise UserError(
                f"schedule.beta_start={self.beta_start:g}, beta_end={self.beta_end:g}; expected 0 < start < end < 1"
            )
        if self.prediction == "epsilon" and self.zero_snr:
            raise UserError(
                "schedule.prediction=epsilon with zero_snr=true: where all is noise, epsilon says nothing of the "
                "picture; set prediction=v or zero_snr=false"
            )
        return self

    def check_training(self) -> None:
        """raises UserError for what could be sampled from, but not learned."""
        self.check()
        if not self.gamma > 0:
            raise UserError(f"schedule.gamma={self.gamma:g}, expected more than 0")
        if self.zero_snr and self.weighting in ("epsilon", "min_snr"):
            raise UserError(
                f"schedule.weighting={self.weighting} with zero_snr=true gives the last timestep, which sampling "
                "starts from, no weight; set weighting to velocity or latents, or zero_snr=false"
            )
        if self.prediction == "epsilon" and self.weighting in ("velocity", "latents"):
            raise UserError(
                f"schedule.weighting={self.weighting} with prediction=epsilon weighs an error by 1/alpha², thousands "
                "of times as much where all is noise; set weighting to epsilon or min_snr, or prediction=v"
            )

    def alphas_cumprod(self) -> Tensor:
        """[1000] share of the signal in the variance at every timestep; exactly 0 at the last one with `zero_snr`."""
        return DDIMScheduler(**self.betas(), rescale_betas_zero_snr=self.zero_snr).alphas_cumprod

    @property
    def process(self) -> tuple:
        """What networks that denoise one after the other have in common: all but how their losses were weighed."""
        return self.betas(), self.zero_snr, self.prediction

    def betas(self) -> dict[str, Any]:
        """The schedule, but for `zero_snr`, as arguments of diffusers' schedulers."""
        return dict(
            num_train_timesteps=TIMESTEPS,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            beta_schedule=BETAS[self.beta],
        )


class Diffusion:
    """The forward process: z_t = alpha_t·x + sigma_t·eps and its velocity v = alpha_t·eps - sigma_t·x.

    Computes in the precision of what it is given, and in float32 at least.
    """

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config.check()
        cumulative = config.alphas_cumprod().double()
        self._exact = cumulative.sqrt(), (1 - cumulative).sqrt()
        self.alphas, self.sigmas = (values.float() for values in self._exact)

    def coefficients(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of timesteps [B], shaped to multiply `like` [B, ...]."""
        shape = (-1, *(1,) * (like.dim() - 1))
        alphas, sigmas = self._exact if like.dtype == torch.double else (self.alphas, self.sigmas)
        return alphas.to(like.device)[timestep].view(shape), sigmas.to(like.device)[timestep].view(shape)

    def add_noise(self, x: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        alpha, sigma = self.coefficients(timestep, x)
        return alpha * x + sigma * noise

    def velocity(self, x: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        alpha, sigma = self.coefficients(timestep, x)
        return alpha * noise - sigma * x

    def latents_of(self, velocity: Tensor, z: Tensor, timestep: Tensor) -> Tensor:
        """x that a velocity stands for at noisy latents z."""
        alpha, sigma = self.coefficients(timestep, z)
        return alpha * z - sigma * velocity

    def epsilon_of(self, velocity: Tensor, z: Tensor, timestep: Tensor) -> Tensor:
        """The noise that a velocity stands for at noisy latents z."""
        alpha, sigma = self.coefficients(timestep, z)
        return alpha * velocity + sigma * z

    def velocity_of(self, epsilon: Tensor, z: Tensor, timestep: Tensor) -> Tensor:
        """Inverse of `epsilon_of`; alpha must not be 0, which `ScheduleConfig.check` sees to."""
        alpha, sigma = self.coefficients(timestep, z)
        return (epsilon - sigma * z) / alpha

    def jump(self, velocity: Tensor, z: Tensor, timestep: Tensor, following: Tensor) -> Tensor:
        """Noisy latents z at timesteps [B] brought to those `following` [B], -1 being data, in one step of DDIM."""
        turn = self.turn(z, timestep, following)
        return turn.cos() * z - turn.sin() * velocity

    def velocity_to(self, landed: Tensor, z: Tensor, timestep: Tensor, following: Tensor) -> Tensor:
        """Inverse of `jump`: the velocity that brings z to `landed`. `following` must be less noisy."""
        turn = self.turn(z, timestep, following)
        return (turn.cos() * z - landed) / turn.sin()

    def turn(self, like: Tensor, timestep: Tensor, following: Tensor) -> Tensor:
        """Angle from timesteps [B] to those `following`, where alpha and sigma are cosine and sine of noise levels;
        shaped to multiply `like` [B, ...]."""
        return self._angle(timestep, like) - self._angle(following, like)

    def _angle(self, timestep: Tensor, like: Tensor) -> Tensor:
        alpha, sigma = self.coefficients(timestep.clamp_min(0), like)
        angle = torch.atan2(sigma, alpha)
        return angle.masked_fill((timestep < 0).to(angle.device).view(angle.shape), 0.0)

    def weight(self, timestep: Tensor) -> Tensor:
        """What the loss multiplies the squared error of the velocity by at timesteps [B].

        The error of epsilon is alpha², that of the latents sigma² times that of the velocity. With a signal-to-noise
        ratio of alpha²/sigma², min(ratio, gamma)·sigma² is min(alpha², gamma·sigma²): nothing divides by sigma.
        """
        alpha, sigma = self.alphas.to(timestep.device)[timestep], self.sigmas.to(timestep.device)[timestep]
        if self.config.weighting == "epsilon":
            return alpha**2
        if self.config.weighting == "latents":
            return sigma**2
        if self.config.weighting == "min_snr":
            return torch.minimum(alpha**2, self.config.gamma * sigma**2)
        return torch.ones_like(alpha)

    def sample_timesteps(self, count: int, generator: Generator) -> Tensor:
        """Timesteps [count], spread evenly over 0..999."""
        return (spread(count, generator) * TIMESTEPS).long()
