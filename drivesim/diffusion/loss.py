"""The training loss of every stage: the squared error of the velocity, weighted over time (paper, eq. 1)."""

from torch import Tensor

from drivesim.diffusion.draws import Generator, randn
from drivesim.diffusion.precondition import predict_velocity
from drivesim.diffusion.schedule import Diffusion
from drivesim.diffusion.tasks import Problem
from drivesim.models.denoiser import Denoiser


def velocity_loss(denoiser: Denoiser, problem: Problem, diffusion: Diffusion, generator: Generator) -> Tensor:
    """Noise the problem at random times, predict, compare velocities on the frames that are not known."""
    x = problem.x
    timestep = diffusion.sample_timesteps(len(x), generator).to(x.device)
    noise = randn(x.shape, generator).to(x)
    context = None if problem.context is None else denoiser.encode_context(problem.context)
    noisy = diffusion.add_noise(x, noise, timestep)
    told = problem.planes, problem.tokens, context, problem.level
    predicted = predict_velocity(denoiser, diffusion, noisy, timestep, *told)
    error = (predicted - diffusion.velocity(x, noise, timestep)).square().mean((2, 3, 4))
    error = error * diffusion.weight(timestep)[:, None]
    of_samples = (error * problem.weight).sum(1) / problem.weight.sum(1).clamp_min(1)
    return of_samples.mean()  # of samples, so that the parts of a batch add up to the whole on any number of processes
