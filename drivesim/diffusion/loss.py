"""The training loss of every stage: the squared error of the velocity (paper, eq. 1)."""

from torch import Tensor

from drivesim.diffusion.draws import Generator, randn
from drivesim.diffusion.precondition import predict_velocity
from drivesim.diffusion.schedule import Diffusion
from drivesim.diffusion.tasks import Problem
from drivesim.models.denoiser import Denoiser


def velocity_loss(denoiser: Denoiser, problem: Problem, diffusion: Diffusion, generator: Generator) -> Tensor:
    """Noise the problem at random times, predict the velocity, compare on the frames that are not known."""
    x = problem.x
    timestep = diffusion.sample_timesteps(len(x), generator).to(x.device)
    noise = randn(x.shape, generator).to(x)
    context = None if problem.context is None else denoiser.encode_context(problem.context)
    noisy = diffusion.add_noise(x, noise, timestep)
    predicted = predict_velocity(denoiser, diffusion, noisy, timestep, problem.planes, problem.tokens, context)
    error = (predicted - diffusion.velocity(x, noise, timestep)).square().mean((2, 3, 4))
    if diffusion.config.weighting == "latents":
        error = error * diffusion.sigmas.to(x.device)[timestep].square()[:, None]
    of_samples = (error * problem.weight).sum(1) / problem.weight.sum(1).clamp_min(1)
    return of_samples.mean()  # of samples, so that the parts of a batch add up to the whole on any number of processes
