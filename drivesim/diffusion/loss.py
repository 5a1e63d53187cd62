"""The training loss of every stage: the squared error of the velocity, weighted over time (paper, eq. 1)."""

from torch import Tensor

from drivesim.diffusion.draws import Generator, randn
from drivesim.diffusion.precondition import predict_velocity
from drivesim.diffusion.schedule import Diffusion
from drivesim.diffusion.tasks import Lesson, Problem
from drivesim.models.denoiser import Denoiser


def velocity_loss(denoiser: Denoiser, problem: Problem, diffusion: Diffusion, generator: Generator) -> Tensor:
    """Predict at the noise levels of the problem's lesson, compare velocities on the frames that are not known."""
    lesson = problem.lesson or random_lesson(problem.x, diffusion, generator)
    context = None if problem.context is None else denoiser.encode_context(problem.context)
    told = problem.planes, problem.tokens, context, problem.level
    predicted = predict_velocity(denoiser, diffusion, lesson.noisy, lesson.timestep, *told)
    error = (predicted - lesson.velocity).square().mean((2, 3, 4))
    error = error * lesson.weight[:, None]
    of_samples = (error * problem.weight).sum(1) / problem.weight.sum(1).clamp_min(1)
    return of_samples.mean()  # of samples, so that the parts of a batch add up to the whole on any number of processes


def random_lesson(x: Tensor, diffusion: Diffusion, generator: Generator) -> Lesson:
    """x [B, T, C, h, w] noised at random times, and the velocities of data and noise."""
    timestep = diffusion.sample_timesteps(len(x), generator).to(x.device)
    noise = randn(x.shape, generator).to(x)
    noisy = diffusion.add_noise(x, noise, timestep)
    return Lesson(noisy, timestep, diffusion.velocity(x, noise, timestep), diffusion.weight(timestep))
