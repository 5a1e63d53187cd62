"""Progressive distillation (Salimans and Ho 2022): one step of DDIM that lands where several of a teacher's do.

The paper halves the number of steps in rounds. Here a round may take any whole factor, so that one round of a factor of
four and two of a factor of two are the same code; which is better is a matter of time (docs/distillation.md).
"""

from itertools import pairwise

import torch
from torch import Tensor

from drivesim.diffusion.sampler import Denoise
from drivesim.diffusion.schedule import TIMESTEPS, Diffusion, ScheduleConfig
from drivesim.diffusion.solvers import build_solver
from drivesim.diffusion.tasks import Lesson
from drivesim.errors import UserError


def ladder(schedule: ScheduleConfig, steps: int, teacher_steps: int) -> Tensor:
    """Timesteps of every step of the student: [steps, factor + 1], the teacher's steps on the way from the first to the
    last one, which is where the next of the student's begins, -1 being data.

    raises  UserError where the teacher's steps are no multiple of the student's
    """
    if not 1 <= steps < teacher_steps <= TIMESTEPS or teacher_steps % steps:
        more = steps * max(round(teacher_steps / max(steps, 1)), 2)
        raise UserError(
            f"steps={steps}, teacher_steps={teacher_steps}; expected a teacher of a whole multiple of the student's "
            f"steps, {more} say, and of at most {TIMESTEPS}"
        )
    begins, between = (build_solver(schedule, n).timesteps.long() for n in (steps, teacher_steps))
    rungs = between.view(steps, -1).clone()
    rungs[:, 0] = begins  # they may be one apart, by rounding
    ends = torch.cat([begins[1:], begins.new_tensor([-1])])
    return torch.cat([rungs, ends[:, None]], 1)


@torch.no_grad()
def lesson(denoise: Denoise, z: Tensor, times: Tensor, diffusion: Diffusion, order: int = 2) -> Lesson:
    """The velocity that brings noisy latents z [B, ...] in one step of DDIM where `denoise` brings them in several.

    times  [B, factor + 1] rows of `ladder`
    order  1: the teacher's steps are DDIM's, too. 2: each but the first takes the latents of its middle, extrapolated
           from the step before as in multistep solvers (Lu et al. 2022), but over the angle of noise levels, which is
           finite at both ends; no further answers of the network

    The weight makes the squared error that of the place where the step lands.
    """
    landed, before = z, None
    for now, following in pairwise(times.T):
        velocity, turn = denoise(landed, now), diffusion.turn(z, now, following)
        latents = diffusion.latents_of(velocity, landed, now)
        if order == 2 and before is not None:
            ahead = turn / (2 * before[1]) * (latents - before[0])
            velocity = velocity - ahead / diffusion.coefficients(now, z)[1]
        landed, before = diffusion.jump(velocity, landed, now, following), (latents, turn)
    first, last = times[:, 0], times[:, -1]
    weight = diffusion.turn(first.float(), first, last).sin().square()
    return Lesson(z, first, diffusion.velocity_to(landed, z, first, last), weight)
