"""The forward process against diffusers' own."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch.testing import assert_close

from drivesim.diffusion.schedule import TIMESTEPS, Diffusion, ScheduleConfig

BETAS = ["linear", "scaled_linear", "squaredcos_cap_v2"]


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("zero_snr", [True, False])
def test_noise_and_velocity_are_those_of_diffusers(beta, zero_snr):
    diffusion = Diffusion(ScheduleConfig(beta, zero_snr))
    scheduler = DDPMScheduler(1000, 8.5e-4, 1.2e-2, beta, rescale_betas_zero_snr=zero_snr)
    x, noise = torch.randn(4, 2, 3, 5, 5), torch.randn(4, 2, 3, 5, 5)
    timestep = torch.tensor([0, 1, 500, 999])
    assert_close(diffusion.add_noise(x, noise, timestep), scheduler.add_noise(x, noise, timestep))
    assert_close(diffusion.velocity(x, noise, timestep), scheduler.get_velocity(x, noise, timestep))


@pytest.mark.parametrize("beta", BETAS)
def test_the_schedule_preserves_variance_and_ends_in_pure_noise(beta):
    diffusion = Diffusion(ScheduleConfig(beta, zero_snr=True))
    assert_close(diffusion.alphas**2 + diffusion.sigmas**2, torch.ones(TIMESTEPS))
    assert diffusion.alphas[-1] == 0
    assert (diffusion.alphas.diff() < 0).all()
    assert diffusion.alphas[0] > 0.99
    assert Diffusion(ScheduleConfig(beta, zero_snr=False)).alphas[-1] > 0


def test_timesteps_are_one_from_each_share_and_reach_both_ends():
    diffusion, generator = Diffusion(ScheduleConfig()), torch.Generator().manual_seed(0)
    drawn = torch.stack([diffusion.sample_timesteps(4, generator) for _ in range(2000)])
    assert (drawn // 250).equal(torch.arange(4).expand(2000, 4))
    assert (drawn.min(), drawn.max()) == (0, 999)
    assert abs(drawn.float().mean() - 499.5) < 4 * 250 / (12 * 8000) ** 0.5
