"""One sampler loop for every stage, over any callable, with guidance."""

from collections.abc import Callable

import torch
from torch import Tensor

from drivesim.diffusion.draws import stream
from drivesim.diffusion.schedule import ScheduleConfig

Denoise = Callable[[Tensor, Tensor], Tensor]  # (noisy latents [B, ...], timestep [B]) -> velocity [B, ...]


def sample(denoise: Denoise, noise: Tensor, schedule: ScheduleConfig, num_steps: int, sampler: str = "ddim") -> Tensor:
    """Turn noise into latents with a deterministic sampler.

    denoise   predicts the velocity; a perfect one for a known distribution is a line, which the tests use
    noise     [B, ...] standard normal
    returns   [B, ...] a sample
    """
    scheduler = schedule.build(sampler)
    scheduler.set_timesteps(num_steps, device=noise.device)
    x = noise
    for timestep in scheduler.timesteps:
        velocity = denoise(x, timestep.repeat(len(x)))
        x = scheduler.step(velocity.to(x.dtype), timestep, x, return_dict=False)[0]
    return x


def guided(conditional: Denoise, unconditional: Denoise, scale: float) -> Denoise:
    """f' = f(z) + s·(f(z; c) - f(z)): classifier-free guidance, and with c the context frames the paper's context
    guidance (section 3.2). A scale of 1 is the conditional model, at its price."""
    if scale == 1.0:
        return conditional

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        without = unconditional(x, timestep)
        return without + scale * (conditional(x, timestep) - without)

    return denoise


def window_noise(shape: tuple[int, ...], seed: int, *index: int) -> Tensor:
    """Standard normal noise from (seed, index) alone: window 17 of a rollout gets the same noise whether or not the
    windows before it were made in this process."""
    return torch.randn(shape, generator=stream(seed, *index))
