"""What all contenders share: data, conditions, and the library's training module around a denoiser."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from drivesim.bundle import Bundle
from drivesim.data.store import ClipStore
from drivesim.data.windows import Batch, WindowDataset, WindowSpec, collate
from drivesim.diffusion.schedule import Diffusion
from drivesim.diffusion.tasks import Frames
from drivesim.errors import UserError
from drivesim.models.autoencoder import Autoencoder
from drivesim.models.conditioning import POSITIONS, plane_count
from drivesim.models.denoiser import Denoiser
from drivesim.training.experiment import ExperimentConfig, StageConfig
from drivesim.training.grids import LatentGrid
from drivesim.training.latent import LatentVideoDiffusion
from drivesim.training.stages import Workspace, inflate

VALIDATION_BATCH = 4  # held-out windows at once, whatever a contender trains with


class Field:
    """A store with its latents under one autoencoder, and what is known of it in closed form."""

    def __init__(self, bundle: str, data: str, experiment: ExperimentConfig, held_out: int, seed: int) -> None:
        self.work = Workspace(experiment, ClipStore(data), Bundle(Path(bundle)).require(), seed)
        self.held_out, self.seed = held_out, seed
        if experiment.denoiser.pretrained:
            raise UserError("config.denoiser.pretrained is set, but all contenders are trained from random weights")
        if not self.work.store.clips("val"):
            raise UserError(f"{data} has no held-out clips; prepare it with val_share above 0")
        self.work.check(["keyframes"])
        channels, factor = self.autoencoder.config.channels, self.autoencoder.config.factor
        if experiment.denoiser.channels != channels:
            raise UserError(
                f"config.denoiser.channels is {experiment.denoiser.channels} but the autoencoder of {bundle} has "
                f"{channels}; set them alike"
            )
        size = [experiment.data.height // factor, experiment.data.width // factor]
        planes = plane_count(experiment.denoiser.conditions) + POSITIONS
        denoiser = replace(experiment.denoiser, prior_size=size, planes=planes)
        self.experiment = replace(experiment, denoiser=denoiser)

    @property
    def autoencoder(self) -> Autoencoder:
        return self.work.autoencoder

    @cached_property
    def frames(self) -> WindowDataset:
        return self._dataset("train", self.work.specs["image"])

    @cached_property
    def windows(self) -> WindowDataset:
        return self._dataset("train", self.work.specs["keyframes"])

    def _dataset(self, split: str, specs: list[WindowSpec]) -> WindowDataset:
        return WindowDataset(self.work.store, self.work.latents, split, specs, self.seed, self.experiment.data.slots)

    def _validation(self, specs: list[WindowSpec]) -> list[Batch]:
        held = self._dataset("val", specs)
        numbers = range(max(self.held_out // VALIDATION_BATCH, 1))
        return [collate([held[i * VALIDATION_BATCH + j] for j in range(VALIDATION_BATCH)]) for i in numbers]

    @cached_property
    def _fitted(self) -> Denoiser:
        """Holds the spread of the latents and the closed-form prior, fitted once."""
        denoiser = self.experiment.denoiser.build()
        denoiser.latent_std.copy_(self.work.latent_std())
        if denoiser.prior is not None:
            self.work.fit_prior(denoiser)
        return denoiser

    def told(self, denoiser: Denoiser) -> Denoiser:
        """Give a new denoiser the closed forms."""
        denoiser.latent_std.copy_(self._fitted.latent_std)
        if denoiser.prior is not None and self._fitted.prior is not None:
            denoiser.prior.load_state_dict(self._fitted.prior.state_dict())
        return denoiser

    def image(self, denoiser: Denoiser, rate: float) -> LatentVideoDiffusion:
        """Training on single frames, all weights."""
        stage = replace(self.experiment.stages.image, lr=rate)
        return self._module(denoiser, self.experiment.image, stage, self._image_validation)

    def keyframes(self, denoiser: Denoiser, rate: float, freeze: bool) -> LatentVideoDiffusion:
        """Training on windows of keyframes, from a denoiser trained on single frames."""
        task = self.experiment.predict
        stage = replace(self.experiment.stages.keyframes, lr=rate, train_image=not freeze)
        channels = self.experiment.denoiser.channels + task.context_channels
        torch.manual_seed(self.seed)  # of the temporal layers' first weights
        inflate(self.work, stage, denoiser, channels, task.frames)
        return self._module(denoiser, task, stage, self._video_validation)

    @cached_property
    def _image_validation(self) -> list[Batch]:
        return self._validation(self.work.specs["image"])

    @cached_property
    def _video_validation(self) -> list[Batch]:
        return self._validation(self.work.specs["keyframes"])

    def _module(
        self, denoiser: Denoiser, task: Frames, stage: StageConfig, validation: list[Batch]
    ) -> LatentVideoDiffusion:
        schedule = self.experiment.schedule
        grid = LatentGrid(validation[0], self.work.decode, schedule, task, self.experiment.sampler)
        return LatentVideoDiffusion(denoiser, task, Diffusion(schedule), stage, self.seed, validation, grid)
