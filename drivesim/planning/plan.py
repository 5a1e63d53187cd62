"""The plan of a stage: parameters, FLOPs, memory and time, from what one step of it costs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from drivesim.diffusion.draws import Streams
from drivesim.diffusion.precondition import predict_velocity
from drivesim.errors import UserError
from drivesim.planning.gpus import Gpu
from drivesim.planning.measure import Cost, flops_of, mixed_precision, training_step
from drivesim.planning.workspace import PlanWorkspace, build
from drivesim.training.experiment import StageConfig
from drivesim.training.latent import LatentVideoDiffusion
from drivesim.training.sharding import units

FP32 = 4
MOMENTS = 2 * FP32  # of AdamW, bytes a trained parameter
DAY = 86400
# Names of a module's parts by the beginnings of the names of their weights; the first that fits.
PARTS = {
    "denoiser.temporal.": "temporal layers",
    "denoiser.unet.": "image U-Net",
    "denoiser.": "conditions and others",
    "autoencoder.temporal.": "temporal layers",
    "autoencoder.": "autoencoder",
    "discriminator.": "discriminators",
    "perceptual.": "perceptual loss",
}


@dataclass(frozen=True)
class Part:
    """parameters, of which trained"""

    parameters: int
    trained: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU: what a layout of the training keeps there all the time, and what a step adds."""

    weights: float
    gradients: float
    optimizer: float
    averages: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations


@dataclass(frozen=True)
class StagePlan:
    """What training a stage takes.

    window    shape of what one GPU sees at a time, [B, T, C, H, W]
    parts     by name
    plain, checkpointed  cost of a batch on one GPU, without and with gradient checkpointing, where there is such
    sampling  FLOPs of one denoising step of one window (of the autoencoder: of a window there and back)
    shard     bytes of the largest unit that is gathered at once where weights are shared out; None: they are not
    """

    name: str
    stage: StageConfig
    window: tuple[int, ...]
    parts: dict[str, Part]
    plain: Cost
    checkpointed: Cost | None
    sampling: int
    shard: float | None

    def memory(self, gpus: int, sharded: bool, checkpointing: bool) -> Memory:
        """On each of `gpus`; sharded: weights, gradients, moments and averages are shared out over them."""
        parameters, trained = (sum(getattr(p, kind) for p in self.parts.values()) for kind in ("parameters", "trained"))
        share = gpus if sharded else 1
        whole = 2 * (self.shard or 0.0) if sharded else 0.0  # one unit at work, the next on its way
        kept = self.plain.kept
        if checkpointing and self.checkpointed is not None:  # a block is computed again while the rest waits
            kept = self.checkpointed.kept + self.plain.largest
        fixed = (FP32 * parameters / share + whole, FP32 * trained / share, MOMENTS * trained / share)
        return Memory(*fixed, FP32 * trained / share, kept)

    def layouts(self, gpus: int) -> dict[str, tuple[bool, bool]]:
        """The ways to train it: (sharded, checkpointing) by name, the fastest first."""
        ways = {"ddp": (False, False), "fsdp": (True, False)}
        ways |= {"ddp + checkpointing": (False, True), "fsdp + checkpointing": (True, True)}
        return {
            name: (sharded, checkpointing)
            for name, (sharded, checkpointing) in ways.items()
            if (not sharded or (self.shard is not None and gpus > 1))
            and (not checkpointing or self.checkpointed is not None)
        }

    def fitting(self, gpu: Gpu, gpus: int) -> list[str]:
        return [name for name, way in self.layouts(gpus).items() if self.memory(gpus, *way).total <= gpu.usable_bytes]

    def days(self, gpu: Gpu, gpus: int, utilisation: float) -> float | None:
        """Of all steps, by the fastest layout that fits; None if none does."""
        fitting = self.fitting(gpu, gpus)
        if not fitting:
            return None
        cost = self.checkpointed if self.layouts(gpus)[fitting[0]][1] else self.plain
        assert cost is not None
        return cost.flops * self.stage.accumulate * self.stage.max_steps / (gpu.tflops * 1e12 * utilisation) / DAY

    @property
    def windows(self) -> int:
        """Of a step on one GPU."""
        return self.stage.batch_size * self.stage.accumulate


def plan(work: PlanWorkspace, name: str) -> StagePlan:
    """Build a stage as training does, with and without checkpointing, and run a step of each without memory."""
    module: Any = build(work, name, checkpointing=False).module
    batch, single = module.validation
    plain = training_step(module, batch)
    try:
        checkpointed = training_step(build(work, name, checkpointing=True).module, batch)
    except UserError:  # this kind of network has none
        checkpointed = None
    denoiser = getattr(module, "denoiser", None)
    shard = None if denoiser is None else max((_bytes(unit) for unit in units(denoiser)), default=0.0)
    stage: StageConfig = getattr(work.experiment.stages, name)
    window, sampling = tuple(batch.x.shape), _sampling(module, single)
    return StagePlan(name, stage, window, dict(parts(module)), plain, checkpointed, sampling, shard)


def parts(module: nn.Module) -> Iterator[tuple[str, Part]]:
    """The parts of a module, the largest first."""
    counts: dict[str, list[int]] = {}
    for name, weight in module.named_parameters():
        part = next(part for beginning, part in PARTS.items() if name.startswith(beginning))
        count = counts.setdefault(part, [0, 0])
        count[0] += weight.numel()
        count[1] += weight.numel() * weight.requires_grad
    for name, (parameters, trained) in sorted(counts.items(), key=lambda item: -item[1][0]):
        yield name, Part(parameters, trained)


def _sampling(module: Any, batch: Any) -> int:
    if not isinstance(module, LatentVideoDiffusion):
        return flops_of(lambda: module.reconstruct(batch.x))
    denoiser, streams = module.denoiser, Streams(0, batch.numbers)
    with torch.no_grad(), mixed_precision():
        problem = module.task.pose(batch, denoiser, streams, module.diffusion)
        context = None if problem.context is None else denoiser.encode_context(problem.context)
    timestep = torch.zeros(len(problem.x), dtype=torch.long, device=problem.x.device)
    told = problem.planes, problem.tokens, context, problem.level
    return flops_of(lambda: predict_velocity(denoiser, module.diffusion, problem.x, timestep, *told))


def _bytes(module: nn.Module) -> float:
    return FP32 * sum(weight.numel() for weight in module.parameters())
