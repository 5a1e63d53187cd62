"""The preconditioning against closed forms of a Gaussian."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from drivesim.diffusion import precondition
from drivesim.diffusion.precondition import predict_velocity
from drivesim.diffusion.schedule import Diffusion, ScheduleConfig
from drivesim.models.denoiser import Context

SPREAD = torch.tensor([0.2, 1.0, 4.0])


EPSILON = ScheduleConfig("linear", zero_snr=False, prediction="epsilon", weighting="epsilon")


def noised(count: int = 4000, step: int = 600, schedule: ScheduleConfig | None = None):
    """Independent Gaussian latents [count, 1, 3, 1, 1] of known spread, noised: (diffusion, x, noise, z, timesteps)."""
    generator = torch.Generator().manual_seed(0)
    diffusion = Diffusion(schedule or ScheduleConfig())
    x = torch.randn(count, 1, 3, 1, 1, generator=generator) * SPREAD[:, None, None]
    noise = torch.randn(x.shape, generator=generator)
    timestep = torch.full((count,), step)
    return diffusion, x, noise, diffusion.add_noise(x, noise, timestep), timestep


def network(answer):
    """Something called like a denoiser, with the spread of the latents."""

    class Network:
        latent_std = SPREAD
        prior = None
        carries = True

        def __call__(self, z, timestep, planes, tokens, context, hint, level):
            return answer(z, hint)

    return Network()


def test_a_network_that_says_nothing_leaves_the_best_linear_guess():
    diffusion, x, noise, z, timestep = noised()
    velocity = diffusion.velocity(x, noise, timestep)
    guess = predict_velocity(network(lambda z, hint: torch.zeros_like(z)), diffusion, z, timestep, None)
    error = velocity - guess
    for channel in range(3):  # least squares: the error is uncorrelated with what was seen
        slope = (error * z)[:, 0, channel].mean() / (z * z)[:, 0, channel].mean()
        assert abs(float(slope)) < 0.05


def test_the_network_sees_and_predicts_unit_size_in_every_channel():
    diffusion, x, noise, z, timestep = noised()
    seen = []
    predict_velocity(network(lambda z, hint: seen.append(z) or torch.zeros_like(z)), diffusion, z, timestep, None)
    assert_close(seen[0].std((0, 1, 3, 4)), torch.ones(3), atol=0.05, rtol=0)
    alpha, sigma = diffusion.coefficients(timestep, z)
    spread = SPREAD[:, None, None]
    norm = (alpha**2 * spread**2 + sigma**2).sqrt()
    guess = predict_velocity(network(lambda z, hint: torch.zeros_like(z)), diffusion, z, timestep, None)
    rest = (diffusion.velocity(x, noise, timestep) - guess) * norm / spread
    assert_close(rest.std((0, 1, 3, 4)), torch.ones(3), atol=0.05, rtol=0)


def test_latents_of_unit_spread_are_predicted_as_plain_velocity():
    diffusion, _, _, z, timestep = noised(8)
    plain = network(lambda z, hint: 3 * z)
    plain.latent_std = torch.ones(3)
    assert_close(predict_velocity(plain, diffusion, z, timestep, None), 3 * z)


def test_a_network_of_epsilon_is_asked_for_plain_epsilon_whatever_the_spread():
    diffusion, x, noise, z, timestep = noised(8, schedule=EPSILON)
    seen = []
    velocity = predict_velocity(network(lambda z, hint: seen.append(z) or noise), diffusion, z, timestep, None)
    assert_close(velocity, diffusion.velocity(x, noise, timestep), atol=1e-4, rtol=1e-4)
    alpha, sigma = diffusion.coefficients(timestep, z)
    assert_close(seen[0] * (alpha**2 * SPREAD[:, None, None] ** 2 + sigma**2).sqrt(), z)


def test_latents_of_unit_spread_are_seen_as_they_are_by_a_network_of_epsilon():
    diffusion, _, _, z, timestep = noised(8, schedule=EPSILON)
    plain = network(lambda z, hint: 3 * z)
    plain.latent_std = torch.ones(3)
    assert_close(predict_velocity(plain, diffusion, z, timestep, None), diffusion.velocity_of(3 * z, z, timestep))


@pytest.mark.parametrize("schedule", [ScheduleConfig(), EPSILON])
def test_the_hint_is_the_answer_where_the_held_frames_are_the_true_ones(monkeypatch, schedule):
    monkeypatch.setattr(precondition, "HINT_LIMIT", 1e9)
    diffusion, x, noise, z, timestep = noised(64, schedule=schedule)
    held = Context({}, x, torch.ones(64))
    answer = predict_velocity(network(lambda z, hint: hint), diffusion, z, timestep, None, context=held)
    assert_close(answer, diffusion.velocity(x, noise, timestep), atol=1e-4, rtol=1e-4)


def test_the_hint_is_bounded_and_silent_where_nothing_is_known():
    diffusion, x, _, z, timestep = noised(2, step=10)
    hints = []
    held = Context({}, x + 100, torch.tensor([1.0, 0.0]))
    predict_velocity(network(lambda z, hint: hints.append(hint) or hint), diffusion, z, timestep, None, context=held)
    assert hints[0].abs().max() <= precondition.HINT_LIMIT
    assert hints[0][0].abs().max() > 0
    assert hints[0][1].abs().max() == 0


def test_temperature_scales_the_noise_and_detail_scales_it_further_in_narrow_channels():
    from drivesim.generation.samplers import SamplerConfig

    noise = torch.ones(1, 1, 3, 2, 2)
    start = SamplerConfig(temperature=0.8, detail=0.5).start(SimpleNamespace(latent_std=SPREAD), noise)
    assert_close(start[0, 0, :, 0, 0], 0.8 * torch.tensor([0.2**0.5, 1.0, 1.0]))
