"""One sampler loop for every stage, over any callable."""

import hashlib
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from drivesim.diffusion.draws import stream
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
    guess: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor:
    """Turn noise into latents.

    denoise     predicts the velocity; a perfect one for a known distribution is a line, which the tests use
    noise       [B, ...] standard normal
    sampler     a name in `solvers.SOLVERS`
    spacing     trailing or leading, see `solvers.build_solver`
    eta         of DDIM: 0 is deterministic, 1 draws as much noise as DDPM
    generators  one a sample for what a stochastic sampler draws; by default they follow from `noise`
    guess       [B, ...] what the sample may look like: below a strength of 1 only this last share of the steps is
                taken, from the guess with the noise that it stands for (SDEdit, Meng et al. 2022); what noise of that
                size does not drown in the guess is kept
    returns     [B, ...] a sample
    raises      UserError for an unknown sampler or spacing, or an impossible number of steps
    """
    solver = build_solver(schedule, num_steps, sampler, spacing)
    options = {"eta": eta, "generator": generators or continuing(noise)}
    accepted = inspect.signature(solver.step).parameters  # schedulers differ in what they take
    options = {name: value for name, value in options.items() if name in accepted}
    x, begin = noise * solver.init_noise_sigma, 0
    if guess is not None and (skipped := num_steps - max(round(strength * num_steps), 1)) > 0:
        begin = skipped * solver.order
        if hasattr(solver, "set_begin_index"):
            solver.set_begin_index(begin)
        x = solver.add_noise(guess, noise, solver.timesteps[begin].repeat(len(noise)))
    for timestep in solver.timesteps[begin:]:
        z = solver.scale_model_input(x, timestep)
        velocity = denoise(z, timestep.long().to(x.device).repeat(len(x)))
        x = solver.step(velocity.to(x.dtype), timestep, x, return_dict=False, **options)[0]
    return x


def window_noise(shape: tuple[int, ...], seed: int, *index: int) -> Tensor:
    """Standard normal noise from (seed, index) alone: window 17 of a rollout gets the same noise whether or not the
    windows before it were made in this process."""
    return torch.randn(shape, generator=stream(seed, *index))


def continuing(noise: Tensor) -> list[torch.Generator]:
    """A generator for each sample of standard normal noise [B, ...], seeded by that noise: whoever gets the same noise
    from `window_noise` gets the same draws after it, alone or in a batch, on any device."""
    heads = noise.detach().flatten(1)[:, :SEEDING].float().cpu()
    seeds = (hashlib.blake2b(row.numpy().tobytes(), digest_size=8).digest() for row in heads)
    return [torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1) for seed in seeds]
