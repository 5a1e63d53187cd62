"""The forward process, its parameterisations and weights against diffusers' own and closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch.testing import assert_close

from drivesim.diffusion.loss import velocity_loss
from drivesim.diffusion.schedule import TIMESTEPS, Diffusion, ScheduleConfig
from drivesim.diffusion.tasks import Problem
from drivesim.errors import UserError

LINEAR = ScheduleConfig("linear", zero_snr=False, beta_start=1e-4, beta_end=2e-2)

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


def test_linear_betas_are_those_of_ddpm():
    share = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    assert_close(Diffusion(LINEAR).alphas.double() ** 2, torch.from_numpy(share), atol=1e-6, rtol=1e-4)


def test_scaled_linear_betas_are_linear_in_the_root():
    share = np.cumprod(1 - np.linspace(8.5e-4**0.5, 1.2e-2**0.5, 1000) ** 2)
    made = Diffusion(ScheduleConfig("scaled_linear", zero_snr=False)).alphas.double() ** 2
    assert_close(made, torch.from_numpy(share), atol=1e-6, rtol=1e-4)


def test_cosine_is_that_of_nichol_and_dhariwal():
    share = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    made = Diffusion(ScheduleConfig("cosine", zero_snr=False)).alphas.double() ** 2
    assert_close(made[:-1], torch.tensor(share[1:-1]).double() / share[0], atol=1e-5, rtol=1e-3)
    old = ScheduleConfig("squaredcos_cap_v2", zero_snr=False)
    assert torch.equal(Diffusion(old).alphas.double() ** 2, made)


@pytest.mark.parametrize("beta", BETAS)
def test_zero_terminal_noise_shifts_and_scales_the_signal(beta):
    before, after = (Diffusion(ScheduleConfig(beta, zero_snr=zero)).alphas for zero in (False, True))
    first, last = before[0], before[-1]  # Lin et al. 2023, algorithm 1
    assert_close(after, (before - last) * first / (first - last), atol=1e-4, rtol=1e-3)


def test_velocity_noise_and_latents_turn_into_each_other_exactly():
    diffusion, generator = Diffusion(LINEAR), torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 1000, 3, generator=generator, dtype=torch.double)
    timestep = torch.arange(1000)
    z, v = diffusion.add_noise(x, noise, timestep), diffusion.velocity(x, noise, timestep)
    assert_close(diffusion.latents_of(v, z, timestep), x, atol=1e-12, rtol=0)
    assert_close(diffusion.epsilon_of(v, z, timestep), noise, atol=1e-12, rtol=0)
    assert_close(diffusion.velocity_of(noise, z, timestep), v, atol=1e-11, rtol=0)  # divides by alpha, 1/157 at last


class Wrong(torch.nn.Module):
    """A network of unit latents whose answer is off the truth by as much as it is told."""

    prior = None

    def __init__(self, diffusion: Diffusion, x: torch.Tensor, off: torch.Tensor) -> None:
        super().__init__()
        self.diffusion, self.x, self.off, self.latent_std = diffusion, x, off, torch.ones(x.shape[2]).double()

    def forward(self, z, timestep, *conditions):
        self.timestep = timestep
        alpha, sigma = self.diffusion.coefficients(timestep, z)
        noise = (z - alpha * self.x) / sigma
        epsilon = self.diffusion.config.prediction == "epsilon"
        return (noise if epsilon else self.diffusion.velocity(self.x, noise, timestep)) + self.off


def loss_of(config: ScheduleConfig) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Loss of a network with known errors, the signal-to-noise ratios as diffusers computes them, squared errors."""
    generator = torch.Generator().manual_seed(0)
    x, off = torch.randn(2, 16, 1, 4, 2, 2, generator=generator, dtype=torch.double)
    diffusion = Diffusion(config)
    network = Wrong(diffusion, x, off)
    problem = Problem(x, torch.zeros(16, 1, 0, 2, 2), None, None, torch.ones(16, 1, dtype=torch.double))
    loss = velocity_loss(network, problem, diffusion, generator)
    scheduler = DDPMScheduler(1000, config.beta_start, config.beta_end, "linear")
    return float(loss), compute_snr(scheduler, network.timestep).double(), off.square().mean((1, 2, 3, 4))


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_min_snr_weights_are_those_of_its_paper_for_what_is_predicted(prediction, gamma):
    loss, snr, error = loss_of(replace(LINEAR, weighting="min_snr", prediction=prediction, gamma=gamma))
    capped = snr.clamp_max(gamma)
    weight = capped / snr if prediction == "epsilon" else capped / (snr + 1)  # Hang et al. 2023, section 3.4
    assert loss == pytest.approx(float((weight * error).mean()), rel=1e-4)


def test_plain_weights_leave_the_error_of_what_is_predicted():
    for prediction, weighting in (("v", "velocity"), ("epsilon", "epsilon")):
        loss, _, error = loss_of(replace(LINEAR, weighting=weighting, prediction=prediction))
        assert loss == pytest.approx(float(error.mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(beta="exp"), "beta is 'exp', expected one of linear, scaled_linear, cosine"),
        (dict(prediction="x"), "prediction is 'x', expected one of v, epsilon"),
        (dict(weighting="snr"), "weighting is 'snr', expected one of velocity, epsilon, latents, min_snr"),
        (dict(beta_start=0.1), "beta_start=0.1, beta_end=0.012; expected 0 < start < end < 1"),
        (dict(prediction="epsilon"), "zero_snr=true.*set prediction=v or zero_snr=false"),
        (dict(weighting="min_snr"), "min_snr with zero_snr=true gives the last timestep.* no weight"),
        (dict(prediction="epsilon", zero_snr=False), "weighting=velocity with prediction=epsilon.*min_snr"),
        (dict(gamma=0.0), "gamma=0, expected more than 0"),
    ],
)
def test_what_cannot_be_trained_is_told(options, said):
    with pytest.raises(UserError, match=said):
        ScheduleConfig(**options).check_training()
    ScheduleConfig().check_training()


def test_a_bundle_that_says_epsilon_from_pure_noise_is_refused_where_it_is_sampled():
    with pytest.raises(UserError, match="zero_snr"):
        Diffusion(ScheduleConfig(prediction="epsilon"))
