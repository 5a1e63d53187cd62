"""Stages as training builds them, on the meta device: of every network its shapes, of no data and no weights anything.

A plan runs the very builders and steps that train (training/stages.py), so what is planned is what will be trained.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drivesim.bundle import Bundle
from drivesim.clip import SPEED_MPS, Layout
from drivesim.data.windows import Batch
from drivesim.errors import UserError
from drivesim.models.autoencoder import Autoencoder
from drivesim.models.denoiser import Denoiser
from drivesim.models.motion import SceneFlow
from drivesim.planning.backbones import Words
from drivesim.training.experiment import ExperimentConfig, StageConfig
from drivesim.training.stages import STAGES, StageRun, Workspace, load_denoiser

META = torch.device("meta")


class Planned(Bundle):
    """A bundle that holds configurations alone."""

    def __init__(self) -> None:
        super().__init__(Path("plan"))
        self.configs: dict[str, dict[str, Any]] = {}

    @property
    def index(self) -> dict[str, Any]:
        return {"stages": {name: {"sha256": ""} for name in self.configs}}

    def config(self, stage: str) -> dict[str, Any]:
        return self.configs[stage]

    def load(self, stage: str, module: nn.Module) -> None:
        """There are no weights to load."""


@dataclass(frozen=True)
class Shape:
    """Stands where a reader of windows does: the shape of one frame of them."""

    size: tuple[int, ...]

    def window(self, *_: Any) -> Tensor:
        raise RuntimeError("a plan reads no data")


@dataclass
class PlanWorkspace(Workspace):
    """Gives stage builders shapes where the workspace of training gives data."""

    experiment: ExperimentConfig
    store: Any = None
    bundle: Bundle = field(default_factory=Planned)
    seed: int = 0
    words: Words | None = None  # an image network that reads, instead of one that is trained

    @property
    def frames(self) -> Any:
        return Shape((3, self.experiment.data.height, self.experiment.data.width))

    @property
    def latents(self) -> Any:
        config, data = self.autoencoder.config, self.experiment.data
        return Shape((config.channels, data.height // config.factor, data.width // config.factor))

    mirrored_latents = latents

    def patches(self) -> Any:
        return Shape((3, *self.patch_size))

    @property
    def flow(self) -> SceneFlow:
        return SceneFlow()

    def image(self) -> Denoiser:
        return load_denoiser(self.bundle, "image") if self.words is None else self.words.denoiser.build()

    @property
    def text(self) -> Any:
        assert self.words is not None
        return self.words.read

    def latent_std(self) -> Tensor:
        return torch.ones(self.autoencoder.config.channels)

    def fit_prior(self, denoiser: Denoiser) -> None: ...

    def fit_patches(self, model: Autoencoder, data: Any) -> None: ...

    def fit_filters(self, *_: Any) -> None: ...

    def residual_std(self, task: Any, denoiser: Denoiser, batches: list[Batch]) -> float:
        return task.residual_std

    def data(self, reader: Any, specs: Any, stage: StageConfig, *_: Any, **__: Any) -> tuple[Any, list[Batch]]:
        frames = max(spec.frames for spec in specs)
        return None, [self.batch(reader, stage.batch_size, frames), self.batch(reader, 1, frames)]

    def batch(self, reader: Shape, size: int, frames: int) -> Batch:
        """`size` windows of `frames` frames."""
        layout = Layout.unknown(frames, slots=self.experiment.data.slots)
        layout = layout.driven(torch.arange(frames) / self.fps, SPEED_MPS)
        x = torch.empty(size, frames, *reader.size, device=META)
        return Batch(x, Layout.stack([layout] * size).to(META), torch.zeros(size), numbers=list(range(size)))


@contextmanager
def without_memory() -> Iterator[None]:
    """What is built lies on the meta device."""
    with META:
        yield


def build(work: PlanWorkspace, name: str, checkpointing: bool) -> StageRun:
    """A stage as training builds it. raises UserError for sizes that describe no network"""
    stage = replace(getattr(work.experiment.stages, name), checkpointing=checkpointing)
    try:
        with without_memory():
            run = STAGES[name](work, stage)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError) as error:
        raise UserError(f"stage {name} describes no network: {str(error).splitlines()[0]}") from error
    run.module.to(META)  # what brings weights of its own, as a perceptual loss does
    work.bundle.configs[name] = run.config  # type: ignore[attr-defined]
    return run
