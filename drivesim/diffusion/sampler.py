"""One sampler loop for every stage, over any callable, with guidance."""

from collections.abc import Callable

import torch
from torch import Tensor

from drivesim.diffusion.schedule import ScheduleConfig

Denoise = Callable[[Tensor, Tensor], Tensor]  # (noisy latents [B, ...], timestep [B]) -> velocity [B, ...]


def sample(
    denoise: Denoise,
    noise: Tensor,
    schedule: ScheduleConfig,
    num_steps: int,
    sampler: str = "ddim",
    guess: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor:
    """Turn noise into latents with a deterministic sampler.

    denoise   predicts the velocity; a perfect one for a known distribution is a line, which the tests use
    noise     [B, ...] standard normal
    guess     [B, ...] what the sample may look like: below a strength of 1 only this last share of the steps is taken,
              from the guess with the noise that it stands for (SDEdit, Meng et al. 2022); what noise of that size
              does not drown in the guess is kept
    returns   [B, ...] a sample
    """
    scheduler = schedule.build(sampler)
    scheduler.set_timesteps(num_steps, device=noise.device)
    x, begin = noise, num_steps - max(round(strength * num_steps), 1)
    if guess is not None and begin > 0:
        scheduler.set_begin_index(begin)
        x = scheduler.add_noise(guess, noise, scheduler.timesteps[begin].repeat(len(noise)))
    for timestep in scheduler.timesteps[0 if guess is None else begin :]:
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
    mixed = 0x9E3779B97F4A7C15
    for number in (seed, *index):
        mixed = ((mixed ^ number) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**63 - 1)
        mixed ^= mixed >> 31
    return torch.randn(shape, generator=torch.Generator().manual_seed(mixed))
