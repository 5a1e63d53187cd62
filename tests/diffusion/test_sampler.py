"""The sampler on distributions whose perfect denoiser is known."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch.testing import assert_close

from drivesim.diffusion.sampler import sample, window_noise
from drivesim.diffusion.schedule import Diffusion, ScheduleConfig

DIFFUSION = Diffusion(ScheduleConfig())


def perfect(mean: torch.Tensor, covariance: torch.Tensor):
    """Velocity of a Gaussian: z = a·x + s·e, E[x|z] and E[e|z] by linear regression on z."""

    def denoise(z: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        a, s = DIFFUSION.alphas[timestep[0]].double(), DIFFUSION.sigmas[timestep[0]].double()
        inverse = torch.linalg.inv(a**2 * covariance + s**2 * torch.eye(len(mean), dtype=torch.double))
        centred = (z - a * mean) @ inverse
        return a * s * centred - s * (mean + a * centred @ covariance)

    return denoise


@pytest.mark.parametrize(("sampler", "steps", "bias"), [("ddim", 200, 0.02), ("dpm++", 50, 0.02)])
def test_a_perfect_denoiser_of_a_gaussian_gives_its_mean_and_covariance(sampler, steps, bias):
    mean = torch.tensor([1.0, -2.0], dtype=torch.double)
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.double)
    count = 20000
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    made = sample(perfect(mean, covariance), noise, ScheduleConfig(), steps, sampler)
    # error bars of 4 standard errors, plus what the number of steps leaves
    bars = 4 * covariance.diagonal().sqrt() / math.sqrt(count)
    assert ((made.mean(0) - mean).abs() < bars + bias).all()
    spread = (covariance**2 + covariance.diagonal()[:, None] * covariance.diagonal()).sqrt()
    assert ((made.T.cov() - covariance).abs() < 4 * spread / math.sqrt(count) + bias).all()


def test_more_steps_come_closer_to_the_gaussian():
    mean, covariance = torch.zeros(1, dtype=torch.double), torch.tensor([[0.25]], dtype=torch.double)
    noise = torch.tensor([[1.0]], dtype=torch.double)  # the exact flow maps 1 to 0.5
    errors = [
        abs(float(sample(perfect(mean, covariance), noise, ScheduleConfig(), steps)) - 0.5) for steps in (5, 20, 80)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01


def test_one_step_gives_the_mean_of_the_data():
    mean, covariance = torch.tensor([3.0], dtype=torch.double), torch.eye(1, dtype=torch.double)
    noise = torch.randn(5, 1, dtype=torch.double)
    assert_close(sample(perfect(mean, covariance), noise, ScheduleConfig(), 1), mean.expand(5, 1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 6, 7, 16])
def test_ddim_is_the_textbook_formula_with_trailing_steps(steps):
    seen = []

    def denoise(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.append(int(timestep[0]))
        return torch.tanh(x) + timestep[:, None] / 1000

    x = noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    made = sample(denoise, noise, ScheduleConfig(), steps)
    times = [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]
    assert seen == times
    for time, following in zip(times, [*times[1:], None], strict=True):
        velocity = torch.tanh(x) + time / 1000
        a, s = DIFFUSION.alphas[time], DIFFUSION.sigmas[time]
        clean, eps = a * x - s * velocity, a * velocity + s * x
        # the last step goes to the data itself
        x = clean if following is None else DIFFUSION.alphas[following] * clean + DIFFUSION.sigmas[following] * eps
    assert_close(made, x, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("steps", [4, 10])
def test_ddim_equals_that_of_diffusers_where_the_steps_are_whole(steps):
    scheduler = DDIMScheduler(1000, 8.5e-4, 1.2e-2, "squaredcos_cap_v2", prediction_type="v_prediction",
                              timestep_spacing="trailing", rescale_betas_zero_snr=True, clip_sample=False)  # fmt: skip
    scheduler.set_timesteps(steps)
    x = noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x), timestep, x).prev_sample
    assert_close(sample(lambda x, t: torch.tanh(x), noise, ScheduleConfig(), steps), x, atol=1e-3, rtol=1e-3)


def test_noise_depends_on_seed_and_index_alone():
    first = window_noise((2, 3), 5, 1, 7)
    torch.manual_seed(123)
    torch.randn(10)
    assert torch.equal(window_noise((2, 3), 5, 1, 7), first)


def test_different_indices_give_independent_normal_noise():
    rows = [window_noise((4096,), seed, stream, i) for seed in (0, 1, 2**63 - 1) for stream in (0, 1) for i in range(6)]
    noise = torch.stack(rows)
    assert noise.corrcoef().sub(torch.eye(len(rows))).abs().max() < 5 / 4096**0.5
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5
    assert abs(noise.std() - 1) < 4 / (2 * noise.numel()) ** 0.5


def test_swapping_seed_and_index_gives_other_noise():
    assert not torch.equal(window_noise((8,), 1, 2, 3), window_noise((8,), 2, 1, 3))
    assert not torch.equal(window_noise((8,), 1, 2, 3), window_noise((8,), 1, 3, 2))


def test_a_guess_that_is_a_sample_of_the_data_gives_one_again_from_any_strength():
    mean, covariance = torch.tensor([1.0, -2.0]).double(), torch.tensor([[1.0, 0.6], [0.6, 0.5]]).double()
    generator, count = torch.Generator().manual_seed(0), 20000
    guess = mean + torch.randn(count, 2, generator=generator).double() @ torch.linalg.cholesky(covariance).T
    noise = torch.randn(count, 2, generator=generator, dtype=torch.double)
    made = sample(perfect(mean, covariance), noise, ScheduleConfig(), 200, guess=guess, strength=0.5)
    assert_close(made.mean(0), mean, atol=0.03, rtol=0)
    assert_close(made.T.cov(), covariance, atol=0.04, rtol=0)
    kept = torch.corrcoef(torch.stack([made[:, 0], guess[:, 0]]))[0, 1]
    assert 0.3 < kept < 0.95  # it is neither the guess nor forgets it


def test_the_stronger_the_noise_the_less_of_the_guess_is_left():
    mean, covariance = torch.zeros(1).double(), torch.eye(1).double()
    guess, noise = torch.full((1, 1), 2.0).double(), torch.zeros(1, 1).double()
    made = [
        float(sample(perfect(mean, covariance), noise, ScheduleConfig(), 10, guess=guess, strength=s))
        for s in (0.1, 0.3, 0.6, 0.9)
    ]
    assert 2 > made[0] > made[1] > made[2] > made[3] > 0


def test_at_full_strength_the_guess_is_not_looked_at():
    mean, covariance = torch.zeros(2).double(), torch.eye(2).double()
    noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).double()
    plain = sample(perfect(mean, covariance), noise, ScheduleConfig(), 7)
    assert torch.equal(plain, sample(perfect(mean, covariance), noise, ScheduleConfig(), 7, guess=noise + 5))


def test_one_last_step_gives_the_mean_of_the_data_given_the_noisy_guess():
    mean, covariance = torch.tensor([3.0]).double(), torch.eye(1).double()
    guess, noise = torch.tensor([[1.0]]).double(), torch.tensor([[0.5]]).double()
    made = sample(perfect(mean, covariance), noise, ScheduleConfig(), 10, guess=guess, strength=0.1)
    a, s = DIFFUSION.alphas[99].double(), DIFFUSION.sigmas[99].double()
    assert_close(made, mean + a * (a * guess + s * noise - a * mean), atol=1e-3, rtol=0)
