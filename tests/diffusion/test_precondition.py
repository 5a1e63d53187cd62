"""Preconditioning against the Gaussian whose perfect denoiser is linear."""

import torch
from torch.testing import assert_close

from drivesim.diffusion.precondition import predict_velocity
from drivesim.diffusion.schedule import Diffusion, ScheduleConfig

DIFFUSION = Diffusion(ScheduleConfig())
SPREAD = torch.tensor([0.3, 1.0, 3.0])


class Silent(torch.nn.Module):
    """A network that answers a constant and keeps what it saw."""

    def __init__(self, spread: torch.Tensor, answer: float = 0.0) -> None:
        super().__init__()
        self.latent_std, self.answer = spread, answer

    def forward(self, x, *conditions):
        self.seen = x
        return torch.full_like(x, self.answer)


def noisy(time: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Many latents of the spread at one time: noisy, their velocity, the timestep."""
    generator = torch.Generator().manual_seed(time)
    x = torch.randn(1, 64, 3, 32, 32, generator=generator) * SPREAD[:, None, None]
    noise = torch.randn(x.shape, generator=generator)
    timestep = torch.tensor([time])
    return DIFFUSION.add_noise(x, noise, timestep), DIFFUSION.velocity(x, noise, timestep), timestep


def test_a_silent_network_gives_the_best_linear_guess():
    for time in (50, 500, 900):
        z, velocity, timestep = noisy(time)
        guess = predict_velocity(Silent(SPREAD), DIFFUSION, z, timestep, torch.zeros(1))
        by_regression = (z * velocity).mean((0, 1, 3, 4)) / z.square().mean((0, 1, 3, 4))
        assert_close(guess, by_regression[:, None, None] * z, atol=0.1, rtol=0.05)


def test_the_network_sees_unit_size_and_predicts_unit_size_in_every_channel():
    for time in (0, 50, 500, 900, 999):
        z, velocity, timestep = noisy(time)
        network = Silent(SPREAD)
        guess = predict_velocity(network, DIFFUSION, z, timestep, torch.zeros(1))
        assert_close(network.seen.std((0, 1, 3, 4)), torch.ones(3), atol=0.02, rtol=0)
        one = predict_velocity(Silent(SPREAD, 1.0), DIFFUSION, z, timestep, torch.zeros(1))
        assert_close(((velocity - guess) / (one - guess)).std((0, 1, 3, 4)), torch.ones(3), atol=0.02, rtol=0)


def test_with_a_spread_of_one_the_network_predicts_the_velocity_itself():
    z, _, timestep = noisy(300)
    answer = predict_velocity(Silent(torch.ones(3), 0.7), DIFFUSION, z, timestep, torch.zeros(1))
    assert_close(answer, torch.full_like(z, 0.7))
