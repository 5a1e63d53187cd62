"""Distillation as a task: the problem of another task, of which the right answer is where a teacher gets in more steps.

Guidance is the teacher's (Meng et al. 2023): what it takes several answers for, the student says in one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drivesim.data.windows import Batch
from drivesim.diffusion.distill import ladder, lesson
from drivesim.diffusion.draws import Generator, randn, spread
from drivesim.diffusion.guidance import Term
from drivesim.diffusion.sampler import Denoise
from drivesim.diffusion.schedule import Diffusion
from drivesim.diffusion.tasks import Problem, Task, unknown_context
from drivesim.generation.samplers import SamplerConfig, Told, layout_terms
from drivesim.models.denoiser import Denoiser
from drivesim.models.upscaler import Upscaler


@dataclass
class Distill:
    """What `task` poses, noised to where a step of the student begins, to be answered as the teacher does.

    teacher      is not trained, nor a part of the module that is
    sampler      the teacher's settings, of which guidance is learned
    order        of the teacher's solver, see `distill.lesson`
    start        brings standard normal noise to the temperature that the stage is sampled from
    """

    task: Task
    teacher: Denoiser
    sampler: SamplerConfig
    steps: int
    teacher_steps: int
    start: Callable[[Tensor], Tensor]
    order: int = 2

    def __post_init__(self) -> None:
        self.teacher.requires_grad_(False).eval()

    @property
    def temporal(self) -> bool:
        return self.task.temporal

    @property
    def context_channels(self) -> int:
        return self.task.context_channels

    def pose(
        self, batch: Batch, denoiser: Denoiser, generator: Generator, diffusion: Diffusion | None = None
    ) -> Problem:
        assert diffusion is not None
        problem = self.task.pose(batch, denoiser, generator, diffusion)
        rungs = ladder(diffusion.config, self.steps, self.teacher_steps).to(problem.x.device)
        times = rungs[(spread(len(problem.x), generator) * self.steps).long().to(problem.x.device)]
        noise = self.start(randn(problem.x.shape, generator).to(problem.x))
        z = diffusion.add_noise(problem.x, noise, times[:, 0])
        return replace(problem, lesson=lesson(self.guided(problem, diffusion), z, times, diffusion, self.order))

    @torch.no_grad()
    def guided(self, problem: Problem, diffusion: Diffusion) -> Denoise:
        """The teacher as it is sampled, told what the student is told."""
        teacher, sampler, layout = self.teacher.to(problem.x.device), self.sampler, problem.layout
        told, terms = self._told(problem), []
        if problem.context is not None and sampler.context_guidance != 1.0:
            without = teacher.encode_context(unknown_context(problem.context, teacher.config.channels))
            terms.append(Term(sampler.context_guidance, replace(told, context=without)))
        if layout is not None:
            terms += layout_terms(teacher, layout, told, sampler)
        if isinstance(teacher, Upscaler):
            terms.append(Term(sampler.upsample_guidance, replace(told, tokens=_negative(teacher, problem.x))))
        return sampler.guided(teacher, diffusion.config, told, terms)

    def _told(self, problem: Problem) -> Told:
        """What the student is told, in the teacher's words where those may have been trained since."""
        planes, tokens, context = problem.planes, problem.tokens, None
        if problem.layout is not None and not self.teacher.reads:
            planes, tokens = self.teacher.condition(problem.layout, *planes.shape[-2:])
        if problem.context is not None:
            context = self.teacher.encode_context(problem.context)
        return Told(planes, tokens, context, problem.level)


def _negative(teacher: Upscaler, x: Tensor) -> Tensor:
    """Tokens of the prompt that guidance leads away from, for latents [B, T, ...]."""
    return teacher.prompted(torch.ones(len(x), dtype=torch.bool), x.shape[1])
