"""Distillation on a Gaussian in float64: what a student is taught, and where it lands, against the exact flow."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from drivesim.diffusion.distill import ladder, lesson
from drivesim.diffusion.sampler import Denoise, sample
from drivesim.diffusion.schedule import Diffusion, ScheduleConfig
from drivesim.diffusion.solvers import build_solver
from drivesim.errors import UserError

from .gaussian import Gaussian

FACTOR = torch.tensor([[1.2, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.4, 0.2]], dtype=torch.double)
GAUSSIAN = Gaussian(torch.tensor([0.5, -0.3, 0.2], dtype=torch.double), FACTOR @ FACTOR.T)
LINEAR = ScheduleConfig("linear", zero_snr=False, beta_start=1e-4, beta_end=2e-2)
COSINE = ScheduleConfig("cosine", zero_snr=True)
SCHEDULES = [LINEAR, COSINE]


def noise(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().mean().sqrt())


def fitted(teacher: Denoise, config: ScheduleConfig, steps: int, teacher_steps: int, order: int = 2) -> Denoise:
    """A student that is an affine map at each of its steps, as the perfect one of a Gaussian is, fitted by least
    squares to lessons at noised data."""
    diffusion, layers = Diffusion(config), {}
    for row in ladder(config, steps, teacher_steps):
        data = GAUSSIAN.mean + noise(64, 1) @ FACTOR.T
        z = diffusion.add_noise(data, noise(64, 2), row[:1].expand(64))
        taught = lesson(teacher, z, row.expand(64, -1), diffusion, order)
        layers[int(row[0])] = torch.linalg.lstsq(torch.cat([z, torch.ones(64, 1)], 1), taught.velocity).solution

    def denoise(z: Tensor, timestep: Tensor) -> Tensor:
        return torch.cat([z, torch.ones(len(z), 1)], 1) @ layers[int(timestep[0])]

    return denoise


@pytest.mark.parametrize("config", SCHEDULES)
def test_the_one_step_of_a_student_ends_where_the_exact_flow_does(config):
    teacher, start = GAUSSIAN.denoiser(Diffusion(config)), noise(200, 3)
    exact = GAUSSIAN.flow(start, Diffusion(config))
    for teacher_steps, order, bound in ((500, 1, 0.01), (50, 2, 0.006)):
        student = fitted(teacher, config, 1, teacher_steps, order)
        assert apart(sample(student, start, config, 1), exact) < bound
    assert apart(sample(teacher, start, config, 1), exact) > 0.3  # without distillation


@pytest.mark.parametrize("config", SCHEDULES)
def test_rounds_that_halve_the_steps_end_where_their_first_teacher_does(config):
    first, start = GAUSSIAN.denoiser(Diffusion(config)), noise(200, 3)
    student = first
    for steps in (32, 16, 8, 4, 2, 1):
        student = fitted(student, config, steps, 2 * steps, order=1)
        assert_close(sample(student, start, config, steps), sample(first, start, config, 64), atol=0.002, rtol=0)


@pytest.mark.parametrize("config", SCHEDULES)
@pytest.mark.parametrize(("steps", "teacher_steps"), [(1, 7), (3, 12), (4, 48), (7, 21)])
def test_steps_as_taught_are_those_of_the_teacher(config, steps, teacher_steps):
    diffusion, start = Diffusion(config), noise(50)
    teacher, rows = GAUSSIAN.denoiser(diffusion), {int(row[0]): row for row in ladder(config, steps, teacher_steps)}

    def student(z: Tensor, timestep: Tensor) -> Tensor:
        return lesson(teacher, z, rows[int(timestep[0])].expand(len(z), -1), diffusion, order=1).velocity

    landed = start
    for now, following in pairwise([*build_solver(config, teacher_steps).timesteps.tolist(), -1]):
        at, to = (torch.full((50,), int(time)) for time in (now, following))
        landed = diffusion.jump(teacher(landed, at), landed, at, to)
    tolerance = 0.002  # a step of the teacher may end one timestep off where 1000 does not divide
    assert_close(sample(student, start, config, steps), landed, atol=tolerance, rtol=0)


@pytest.mark.parametrize("config", SCHEDULES)
def test_a_teacher_of_second_order_teaches_in_16_steps_better_than_one_of_first_order_in_48(config):
    teacher, start = GAUSSIAN.denoiser(Diffusion(config)), noise(200, 3)
    exact, error = GAUSSIAN.flow(start, Diffusion(config)), {}
    for steps, order in ((16, 1), (16, 2), (48, 1), (32, 2)):
        student = fitted(teacher, config, 4, steps, order)
        error[steps, order] = apart(sample(student, start, config, 4), exact)
    assert error[16, 2] < error[48, 1] < error[16, 1]
    assert error[32, 2] < error[16, 2] / 2.5


@pytest.mark.parametrize("config", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_a_jump_is_a_step_of_the_sampler(config, steps):
    diffusion, start = Diffusion(config), noise(20)
    denoise, x = GAUSSIAN.denoiser(diffusion), start
    for now, following in pairwise([*build_solver(config, steps).timesteps.tolist(), -1]):
        at, to = (torch.full((20,), int(time)) for time in (now, following))
        x = diffusion.jump(denoise(x, at), x, at, to)
    assert_close(x, sample(denoise, start, config, steps), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("now", "following"), [(999, -1), (999, 500), (500, 499), (0, -1)])
def test_a_velocity_is_found_from_where_it_leads(now, following):
    diffusion, z, velocity = Diffusion(COSINE), noise(5), noise(5, 1)
    times = torch.full((5,), now), torch.full((5,), following)
    assert_close(diffusion.velocity_to(diffusion.jump(velocity, z, *times), z, *times), velocity)


def test_a_weighted_error_is_that_of_the_place_where_a_step_lands():
    diffusion, z = Diffusion(COSINE), noise(6)
    times = ladder(COSINE, 3, 6)[torch.tensor([0, 0, 1, 1, 2, 2])]
    taught = lesson(GAUSSIAN.denoiser(diffusion), z, times, diffusion)
    right, wrong = (diffusion.jump(v, z, times[:, 0], times[:, -1]) for v in (taught.velocity, taught.velocity + 0.1))
    assert_close((right - wrong).square().mean(1), taught.weight.double() * 0.01)


@pytest.mark.parametrize(("steps", "teacher_steps"), [(4, 16), (3, 24), (1, 1000), (7, 21)])
def test_a_student_begins_its_steps_where_the_sampler_does(steps, teacher_steps):
    rungs = ladder(COSINE, steps, teacher_steps)
    assert rungs[:, 0].tolist() == build_solver(COSINE, steps).timesteps.tolist()
    assert rungs[:-1, -1].tolist() == rungs[1:, 0].tolist()
    assert int(rungs[-1, -1]) == -1
    assert (rungs.diff(dim=1) < 0).all()
    assert (rungs[:, :-1].flatten() - build_solver(COSINE, teacher_steps).timesteps).abs().max() <= 1


@pytest.mark.parametrize(("steps", "teacher_steps"), [(4, 50), (4, 4), (8, 4), (0, 4), (3, 1002)])
def test_a_teacher_of_no_multiple_of_the_steps_is_refused(steps, teacher_steps):
    with pytest.raises(UserError, match=f"steps={steps}, teacher_steps={teacher_steps}; expected"):
        ladder(replace(COSINE), steps, teacher_steps)
