"""One sampler loop for every stage, over any callable."""

import hashlib
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.solvers import build_solver

Denoise = Callable[[Tensor, Tensor], Tensor]  # (noisy latents [B, ...], timestep [B]) -> velocity [B, ...]

SEEDING = 256  # numbers of a sample's noise that its later draws are seeded by


def sample(
    denoise: Denoise,
    noise: Tensor,
    schedule: ScheduleConfig,
    num_steps: int,
    sampler: str = "ddim",
    *,
    spacing: str = "trailing",
    eta: float = 0.0,
    generators: list[torch.Generator] | None = None,
) -> Tensor:
    """Turn noise into latents.

    denoise     predicts the velocity; a perfect one for a known distribution is a line, which the tests use
    noise       [B, ...] standard normal
    sampler     a name in `solvers.SOLVERS`
    spacing     trailing or leading, see `solvers.build_solver`
    eta         of DDIM: 0 is deterministic, 1 draws as much noise as DDPM
    generators  one a sample for what a stochastic sampler draws; by default they follow from `noise`
    returns     [B, ...] a sample
    raises      UserError for an unknown sampler or spacing, or an impossible number of steps
    """
    solver = build_solver(schedule, num_steps, sampler, spacing)
    options = {"eta": eta, "generator": generators or continuing(noise)}
    accepted = inspect.signature(solver.step).parameters  # schedulers differ in what they take
    options = {name: value for name, value in options.items() if name in accepted}
    x = noise * solver.init_noise_sigma
    for timestep in solver.timesteps:
        z = solver.scale_model_input(x, timestep)
        velocity = denoise(z, timestep.long().to(x.device).repeat(len(x)))
        x = solver.step(velocity.to(x.dtype), timestep, x, return_dict=False, **options)[0]
    return x


def window_noise(shape: tuple[int, ...], seed: int, *index: int) -> Tensor:
    """Standard normal noise from (seed, index) alone: window 17 of a rollout gets the same noise whether or not the
    windows before it were made in this process."""
    mixed = 0x9E3779B97F4A7C15
    for number in (seed, *index):
        mixed = ((mixed ^ number) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**63 - 1)
        mixed ^= mixed >> 31
    return torch.randn(shape, generator=torch.Generator().manual_seed(mixed))


def continuing(noise: Tensor) -> list[torch.Generator]:
    """A generator for each sample of standard normal noise [B, ...], seeded by that noise: whoever gets the same noise
    from `window_noise` gets the same draws after it, alone or in a batch, on any device."""
    heads = noise.detach().flatten(1)[:, :SEEDING].float().cpu()
    seeds = (hashlib.blake2b(row.numpy().tobytes(), digest_size=8).digest() for row in heads)
    return [torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1) for seed in seeds]
