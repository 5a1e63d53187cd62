"""One sampler loop for every stage, over any callable, with guidance."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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


def summed(denoise: Denoise, conditional: Denoise, terms: Sequence[tuple[float, Denoise]]) -> Denoise:
    """f' + sum over i of (s_i - 1)·(f(z; c) - f(z; c without i)): conditions guided each by itself.

    denoise      f', what is guided further: f itself, or f guided in another way
    conditional  f(z; c)
    terms        the scale s_i of each condition, and the denoiser that is told all but it
    """
    if not terms:
        return denoise

    def together(x: Tensor, timestep: Tensor) -> Tensor:
        told = conditional(x, timestep)
        start = told if denoise is conditional else denoise(x, timestep)
        return start + sum((scale - 1) * (told - without(x, timestep)) for scale, without in terms)

    return together


def window_noise(shape: tuple[int, ...], seed: int, *index: int) -> Tensor:
    """Standard normal noise from (seed, index) alone: window 17 of a rollout gets the same noise whether or not the
    windows before it were made in this process."""
    mixed = 0x9E3779B97F4A7C15
    for number in (seed, *index):
        mixed = ((mixed ^ number) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**63 - 1)
        mixed ^= mixed >> 31
    return torch.randn(shape, generator=torch.Generator().manual_seed(mixed))
