"""The training loss of every stage: the squared error of the velocity, weighted over time (paper, eq. 1)."""

import torch
from torch import Tensor

from drivesim.diffusion.precondition import predict_velocity
from drivesim.diffusion.schedule import Diffusion
from drivesim.diffusion.tasks import Problem
from drivesim.models.denoiser import Denoiser


def velocity_loss(denoiser: Denoiser, problem: Problem, diffusion: Diffusion, generator: torch.Generator) -> Tensor:
    """Noise the problem at random times, predict, compare velocities on the frames that are not known."""
    x = problem.x
    timestep = diffusion.sample_timesteps(len(x), generator).to(x.device)
    noise = torch.randn(x.shape, generator=generator).to(x)
    context = None if problem.context is None else denoiser.encode_context(problem.context)
    noisy = diffusion.add_noise(x, noise, timestep)
    predicted = predict_velocity(denoiser, diffusion, noisy, timestep, problem.planes, problem.tokens, context)
    error = (predicted - diffusion.velocity(x, noise, timestep)).square().mean((2, 3, 4))
    error = error * diffusion.weight(timestep)[:, None]
    return (error * problem.weight).sum() / problem.weight.sum().clamp_min(1)
