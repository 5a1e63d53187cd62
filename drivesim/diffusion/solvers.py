"""diffusers' schedulers by name: how a sample is brought from noise to data."""

from fractions import Fraction
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from drivesim.diffusion.schedule import TIMESTEPS, ScheduleConfig
from drivesim.errors import UserError

SPACINGS = ("trailing", "leading")


class ExactDDIM(DDIMScheduler):
    """DDIM (Song et al. 2021; the paper's sampler), of any number of steps.

    diffusers' own takes every step to be 1000 // num_steps long, which is off by one where that is not whole: 1 % of
    the result at 6 or 16 steps.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        eta: float = 0.0,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        following = self.timesteps[self.timesteps < timestep]
        length = int(timestep) - (int(following[0]) if len(following) else -1)
        self.num_inference_steps = Fraction(self.config.num_train_timesteps, length)  # 1000 // this is the length
        return super().step(  # type: ignore[misc]
            model_output, timestep, sample, eta, generator=generator, return_dict=return_dict
        )


# Orders in the number of steps: 1 for ddim and euler, the same up to where they start; 2 for the solvers of Lu et al.
# (2022), Zhao et al. (2023) and Karras et al. (2022), of which heun asks the network twice a step. ddpm, euler_a,
# dpm++_sde and ddim with eta > 0 draw noise in every step.
SOLVERS: dict[str, tuple[type, dict[str, Any]]] = {
    "ddim": (ExactDDIM, dict(clip_sample=False)),
    "ddpm": (DDPMScheduler, dict(clip_sample=False)),
    "dpm++": (DPMSolverMultistepScheduler, dict(algorithm_type="dpmsolver++", solver_order=2)),
    "dpm++_sde": (DPMSolverMultistepScheduler, dict(algorithm_type="sde-dpmsolver++", solver_order=2)),
    "unipc": (UniPCMultistepScheduler, dict(solver_order=2)),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
}


def check_solver(sampler: str, spacing: str = "trailing", zero_snr: bool = False) -> None:
    """raises UserError for a name that is not known, or a sampler that cannot start from pure noise."""
    for name, value, known in (("sampler", sampler, tuple(SOLVERS)), ("spacing", spacing, SPACINGS)):
        if value not in known:
            raise UserError(f"{name}={value}, expected one of {', '.join(known)}")
    if sampler == "heun" and zero_snr:
        raise UserError(
            "sampler=heun averages the slopes at both ends of a step, and a schedule with zero_snr=true begins with "
            "one from infinitely much noise; use dpm++ or unipc, of second order too"
        )


def build_solver(
    schedule: ScheduleConfig, num_steps: int, sampler: str = "ddim", spacing: str = "trailing"
) -> SchedulerMixin:
    """A scheduler that is told velocities, with its timesteps set.

    spacing  of the timesteps: trailing, from the noisiest on, which zero_snr needs (Lin et al. 2023, table 2); or
             leading, as Stable Diffusion's pipelines have it, one timestep off the data and as far from all noise
    raises   UserError as `check_solver`, or for more steps than there are timesteps
    """
    check_solver(sampler, spacing, schedule.zero_snr)
    most = TIMESTEPS if spacing == "trailing" else TIMESTEPS // 2
    if not 1 <= num_steps <= most:
        raise UserError(f"{num_steps} steps of sampling with spacing={spacing}, expected 1 to {most}")
    kind, options = SOLVERS[sampler]
    if sampler != "heun":
        options = dict(options, rescale_betas_zero_snr=schedule.zero_snr)
    offset = 1 if spacing == "leading" else 0
    if spacing == "leading" and sampler == "ddim":  # as there, the last step ends at the first timestep's noise
        options = dict(options, set_alpha_to_one=False)
    solver = kind(
        **schedule.betas(), prediction_type="v_prediction", timestep_spacing=spacing, steps_offset=offset, **options
    )
    solver.set_timesteps(num_steps)
    # numpy.arange rounds so that 61 trailing steps, and as many other numbers, become one more, at timestep -1.
    if extra := int((solver.timesteps < 0).sum()):
        solver.timesteps = solver.timesteps[:-extra]
        if hasattr(solver, "sigmas"):
            solver.sigmas = torch.cat([solver.sigmas[: -1 - extra], solver.sigmas[-1:]])
    return solver
