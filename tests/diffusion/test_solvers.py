"""Every sampler, with both predictions, on a Gaussian in float64: its end, its order, its draws."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from drivesim.diffusion.sampler import continuing, sample, window_noise
from drivesim.diffusion.schedule import Diffusion, ScheduleConfig
from drivesim.diffusion.solvers import SOLVERS, build_solver
from drivesim.errors import UserError

from .gaussian import Gaussian

LINEAR = ScheduleConfig("linear", zero_snr=False, weighting="epsilon", beta_start=1e-4, beta_end=2e-2)
STOCHASTIC = ("ddpm", "dpm++_sde", "euler_a")
SECOND_ORDER = ("dpm++", "unipc", "heun")
FLOWING = tuple(name for name in SOLVERS if name not in STOCHASTIC)
FACTOR = torch.tensor([[1.2, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.4, 0.2]], dtype=torch.double)
GAUSSIAN = Gaussian(torch.tensor([0.5, -0.3, 0.2], dtype=torch.double), FACTOR @ FACTOR.T)


def noise(count: int, rows: int = 4) -> torch.Tensor:
    """[rows, count // rows, 3]: few samples of many points, since each sample has a generator of its own."""
    shape = (rows, count // rows, 3)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def made(config: ScheduleConfig, start: torch.Tensor, steps: int, name: str, **options) -> torch.Tensor:
    return sample(GAUSSIAN.denoiser(Diffusion(config)), start, config, steps, name, **options)


def error(config: ScheduleConfig, steps: int, name: str) -> float:
    """Root mean square distance from the exact flow."""
    start = noise(400)
    return float((made(config, start, steps, name) - GAUSSIAN.flow(start, Diffusion(config))).square().mean().sqrt())


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
@pytest.mark.parametrize(("name", "eta"), [*((name, 0.0) for name in SOLVERS), ("ddim", 0.5), ("ddim", 1.0)])
def test_samples_of_a_gaussian_have_its_mean_and_its_full_covariance(name, eta, prediction):
    config, count = replace(LINEAR, prediction=prediction), 8000
    points = made(config, noise(count), 50 if name in SECOND_ORDER else 250, name, eta=eta).flatten(0, 1)
    variances = GAUSSIAN.covariance.diagonal()
    bars = 4 * (variances / count).sqrt()  # 4 standard errors, and 0.05 of covariance for the number of steps
    assert ((points.mean(0) - GAUSSIAN.mean).abs() < bars).all()
    spread = ((GAUSSIAN.covariance**2 + variances[:, None] * variances) / count).sqrt()
    assert ((points.T.cov() - GAUSSIAN.covariance).abs() < 4 * spread + 0.05).all()


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
@pytest.mark.parametrize("name", FLOWING)
def test_every_deterministic_sampler_follows_the_exact_flow_point_by_point(name, prediction):
    assert error(replace(LINEAR, prediction=prediction), 320, name) < (0.001 if name in SECOND_ORDER else 0.007)


@pytest.mark.parametrize("name", FLOWING)
def test_errors_shrink_with_the_order_of_the_sampler(name):
    coarse, fine = (error(LINEAR, steps, name) for steps in (40, 160))
    order = math.log(coarse / fine, 4)
    low, high = (1.3, 2.3) if name in SECOND_ORDER else (0.85, 1.15)
    assert low < order < high


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "heun"])
def test_from_pure_noise_too_samples_are_those_of_the_gaussian(name):
    config, count = ScheduleConfig("cosine", zero_snr=True), 4000
    points = made(config, noise(count), 250, name).flatten(0, 1)
    assert ((points.mean(0) - GAUSSIAN.mean).abs() < 4 * (GAUSSIAN.covariance.diagonal() / count).sqrt()).all()
    assert ((points.T.cov() - GAUSSIAN.covariance).abs() < 0.2).all()


def test_euler_is_ddim_and_ancestral_steps_are_those_of_ddpm():
    start, config = noise(40), ScheduleConfig(beta="cosine")
    assert_close(made(config, start, 12, "euler"), made(config, start, 12, "ddim"), atol=5e-4, rtol=0)
    for other in (made(config, start, 12, "euler_a"), made(config, start, 12, "ddim", eta=1.0)):
        assert_close(other, made(config, start, 12, "ddpm"), atol=2e-3, rtol=0)


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("steps", [1, 2, 7, 61, 103, 499])
@pytest.mark.parametrize("name", SOLVERS)
def test_any_number_of_steps_is_that_many_and_each_is_a_timestep(name, steps, spacing):
    times = build_solver(LINEAR, steps, name, spacing).timesteps.tolist()
    assert len(times) == (2 * steps - 1 if name == "heun" else steps)
    assert times == sorted(times, reverse=True)
    assert all(time == int(time) and 0 <= time <= 999 for time in times)
    assert spacing == "leading" or times[0] == 999


@pytest.mark.parametrize(("name", "eta"), [*((name, 0.0) for name in STOCHASTIC), ("ddim", 0.7)])
def test_what_a_stochastic_sampler_draws_follows_from_the_noise_of_the_window_alone(name, eta):
    windows = torch.stack([window_noise((5, 3), 7, 1, i).double() for i in range(3)])
    batch = made(LINEAR, windows, 6, name, eta=eta)
    torch.manual_seed(123)
    torch.randn(11)
    assert torch.equal(made(LINEAR, windows, 6, name, eta=eta), batch)
    alone = torch.cat([made(LINEAR, window[None], 6, name, eta=eta) for window in windows])
    assert_close(alone, batch, atol=1e-5, rtol=1e-5)
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    assert not torch.allclose(made(LINEAR, windows, 6, name, eta=eta, generators=generators), batch)


def test_the_noise_drawn_on_the_way_is_normal_and_no_copy_of_that_which_it_follows():
    windows = torch.stack([window_noise((64, 64), 0, i) for i in range(4)])
    drawn = torch.stack([torch.randn(64, 64, generator=generator) for generator in continuing(windows)])
    rows = torch.cat([windows, drawn]).flatten(1)
    assert rows.corrcoef().sub(torch.eye(8)).abs().max() < 5 / 64
    assert abs(drawn.std() - 1) < 4 / (2 * drawn.numel()) ** 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(sampler="plms"), "sampler=plms, expected one of ddim, ddpm, dpm"),
        (dict(spacing="even"), "spacing=even, expected one of trailing, leading"),
        (dict(sampler="heun"), "zero_snr=true.*dpm"),
        (dict(num_steps=0), "0 steps.*expected 1 to 1000"),
        (dict(num_steps=501, spacing="leading"), "expected 1 to 500"),
    ],
)
def test_what_cannot_be_sampled_is_told(options, said):
    with pytest.raises(UserError, match=said):
        build_solver(**{"schedule": ScheduleConfig(), "num_steps": 4, **options})
