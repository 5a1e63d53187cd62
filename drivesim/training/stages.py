"""The stages: for each, what is trained, on which windows, starting from which earlier stages."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from drivesim.bundle import Bundle, to_dict
from drivesim.clip import Layout
from drivesim.data.cache import FrameCache, LatentCache
from drivesim.data.loader import WindowModule
from drivesim.data.store import ClipStore
from drivesim.data.windows import Batch, Reader, VideoPatches, WindowDataset, WindowSpec, collate
from drivesim.diffusion.schedule import Diffusion
from drivesim.diffusion.tasks import Frames, Interpolate, Predict, Task, Upsample
from drivesim.errors import UserError
from drivesim.machine import probe
from drivesim.models.autoencoder import Autoencoder, AutoencoderConfig
from drivesim.models.conditioning import label_features, rasterise
from drivesim.models.denoiser import Denoiser, DenoiserConfig
from drivesim.models.inflation import TemporalConfig
from drivesim.models.motion import SceneFlow, measured_flow
from drivesim.models.patch_autoencoder import PatchAutoencoder
from drivesim.models.video_decoder import VideoDecoderConfig
from drivesim.training.experiment import ExperimentConfig, StageConfig
from drivesim.training.grids import GridMaker, LatentGrid, UpsampleGrid
from drivesim.training.latent import LatentVideoDiffusion
from drivesim.training.pixels import AutoencoderTraining

VALIDATION_BATCHES = 2
FLOW_FPS = 7.0  # frames for optical flow lie at most this far apart in a second
FLOW_PAIRS = 400
PRIOR_FRAMES = 2000  # for the closed-form prior: seconds of one core
PATCH = (128, 256)  # full-resolution pixels the upsampler trains on (paper: patches, applied convolutionally)
FILTER_PICTURES = 64  # of 512x1024: two million neighbourhoods, some thousands a class


@dataclass
class Workspace:
    """What every stage builds from: the experiment, the data, and the bundle of the stages before it."""

    experiment: ExperimentConfig
    store: ClipStore
    bundle: Bundle
    seed: int

    @cached_property
    def frames(self) -> FrameCache:
        data = self.experiment.data
        return FrameCache(self.store, data.height, data.width).build(probe().threads)

    @cached_property
    def autoencoder(self) -> Autoencoder:
        return load_autoencoder(self.bundle)

    @cached_property
    def _encoder(self) -> Autoencoder:
        return copy.deepcopy(self.autoencoder).to(probe().device)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, C, h, w]; fp32: made once, so precision costs nothing."""
        return self._encoder.encode(frames.to(probe().device)).float().cpu()

    @cached_property
    def latents(self) -> LatentCache:
        key = f"{self.bundle.sha('autoencoder')[:16]}_{self.frames.height}x{self.frames.width}"
        return LatentCache(self.store, key).build(self.frames, self.encode)

    @cached_property
    def mirrored_latents(self) -> LatentCache:
        return self.latents.mirrored().build(self.frames, lambda frames: self.encode(frames.flip(-1)))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, 3, H, W], frame by frame."""
        return self.autoencoder.decode(latents.float().to(next(self.autoencoder.parameters()).device))

    def latent_std(self) -> Tensor:
        """Spread of every latent channel, [C], over training frames."""
        clips = self.store.clips("train")
        picked = torch.cat([self.latents.read(clip)[::8].float() for clip in clips[:: max(len(clips) // 100, 1)]])
        return picked.std((0, 2, 3)).clamp_min(1e-3)

    def fit_prior(self, denoiser: Denoiser) -> None:
        """What frames look like, from training frames half a second apart."""
        assert denoiser.prior is not None
        latents, layouts = [], []
        for clip in self.store.clips("train"):
            apart = max(round(float(self.store.index.loc[clip].fps) / 2), 1)
            latents.append(self.latents.read(clip)[::apart])
            layouts.append(self.store.layout(clip)[torch.arange(0, int(self.store.index.loc[clip].frames), apart)])
        x, layout = torch.cat(latents), Layout.cat(layouts)
        picked = torch.linspace(0, len(x) - 1, min(len(x), PRIOR_FRAMES)).long()
        planes = rasterise(layout[picked], 1, 1)[None]
        denoiser.prior.fit(x[picked].float(), label_features(planes)[0])

    @cached_property
    def flow(self) -> SceneFlow:
        """How the picture moves with the car, from pairs of training frames; still where no clip is fast enough."""
        flow = SceneFlow()
        spec = WindowSpec(2, next((r for r in (self.fps / 4, self.fps / 2, self.fps) if r >= FLOW_FPS), self.fps))
        try:
            pairs = WindowDataset(self.store, self.frames, "train", [spec], self.seed)
        except UserError:
            return flow
        samples = [pairs[i] for i in range(FLOW_PAIRS)]
        flows = torch.stack([measured_flow(x[0], x[1]) for x, *_ in samples])
        motions = torch.stack([torch.stack([lay.travel.diff()[0], lay.heading.diff()[0]]) for _, lay, _ in samples])
        return flow.fit(motions, flows)

    @property
    def fps(self) -> float:
        return self.experiment.data.key_fps * self.experiment.interpolate.factor**2

    @property
    def specs(self) -> dict[str, list[WindowSpec]]:
        """The windows that each stage trains on; both levels of the interpolation are one stage."""
        predict, between, stages = self.experiment.predict, self.experiment.interpolate, self.experiment.stages
        coarse = WindowSpec(between.frames, self.fps / between.factor, level=0)
        fine = WindowSpec(between.frames, self.fps, level=1)
        return {
            "autoencoder": [WindowSpec(1, 0)],
            "image": [WindowSpec(1, 0)],
            "keyframes": [WindowSpec(predict.frames, self.experiment.data.key_fps)],
            "interpolate": [coarse, fine],
            "decoder": [WindowSpec(stages.decoder.frames, self.fps)],
            "upsample": [WindowSpec(stages.upsample.frames, 0)],
            "upsample_temporal": [WindowSpec(stages.upsample_temporal.frames, self.fps)],
        }

    def patches(self) -> VideoPatches:
        """What the upsampler sees: random patches at full resolution."""
        data, factor = self.experiment.data, self.experiment.upsample.factor
        return VideoPatches(self.store, min(PATCH[0], factor * data.height), min(PATCH[1], factor * data.width))

    def pictures(self, count: int) -> Tensor:
        """Training pictures [count, 1, 3, H, W] as large as every clip of the store and the final video are: decoding
        a whole frame costs what a patch of it costs."""
        data, factor = self.experiment.data, self.experiment.upsample.factor
        height, width = self.store.index[["height", "width"]].min()
        reader = VideoPatches(
            self.store,
            min(int(height) // factor, data.height) * factor,
            min(int(width) // factor, data.width) * factor,
        )
        frames = WindowDataset(self.store, reader, "train", self.specs["upsample"][:1], self.seed, data.slots)
        return torch.stack([frames[i][0][:1] for i in range(count)])

    def check(self, stages: list[str]) -> None:
        """raises UserError if the store does not serve one of `stages`"""
        whole = FrameCache(self.store, self.experiment.data.height, self.experiment.data.width)
        for name in stages:
            reader: Reader = self.patches() if name.startswith("upsample") else whole
            WindowDataset(
                self.store, reader, "train", self.specs[name], self.seed, balance=self.experiment.data.balance
            )

    def image(self) -> Denoiser:
        return load_denoiser(self.bundle, "image")

    def data(
        self,
        reader: Reader,
        specs: list[WindowSpec],
        stage: StageConfig,
        workers: int = 0,
        mirrored: Reader | None = None,
    ) -> tuple[WindowModule, list[Batch]]:
        """Endless training windows, and a few fixed held-out batches (of the training split where none is held out),
        which are neither balanced nor changed."""
        slots, balance = self.experiment.data.slots, self.experiment.data.balance
        training = WindowDataset(self.store, reader, "train", specs, self.seed, slots, balance, stage.augment, mirrored)
        try:
            held_out = WindowDataset(self.store, reader, "val", specs, self.seed, slots)
        except UserError:
            held_out = WindowDataset(self.store, reader, "train", specs, self.seed, slots)
        size = min(stage.batch_size, 8)
        batches = [collate([held_out[i * size + j] for j in range(size)]) for i in range(VALIDATION_BATCHES)]
        return WindowModule(training, stage.batch_size, workers), batches


@dataclass
class StageRun:
    """A stage ready to train. `config` is what the bundle keeps: enough to rebuild the network by itself."""

    module: pl.LightningModule
    data: pl.LightningDataModule
    config: dict


def autoencoder(work: Workspace, stage: StageConfig) -> StageRun:
    model = work.experiment.autoencoder.build()
    if model.config.pretrained:
        model.load_pretrained()
        model.requires_grad_(model.config.finetune)
    data, validation = work.data(work.frames, work.specs["autoencoder"], stage)
    if isinstance(model, PatchAutoencoder):
        sample = [data.dataset[i][0] for i in range(min(256, max(64, 4 * stage.batch_size)))]
        model.fit_patches(torch.cat(sample))
    return StageRun(
        AutoencoderTraining(model, stage, False, validation, work.seed), data, {"model": to_dict(model.config)}
    )


def image(work: Workspace, stage: StageConfig) -> StageRun:
    data, factor = work.experiment.data, work.autoencoder.config.factor
    size = [data.height // factor, data.width // factor]
    denoiser = replace(work.experiment.denoiser, prior_size=size).build()
    denoiser.latent_std.copy_(work.latent_std())
    if denoiser.prior is not None:
        work.fit_prior(denoiser)
    return _latent_run(work, stage, denoiser, work.experiment.image, work.specs["image"])


def keyframes(work: Workspace, stage: StageConfig) -> StageRun:
    return _latent_run(work, stage, work.image(), work.experiment.predict, work.specs["keyframes"])


def interpolate(work: Workspace, stage: StageConfig) -> StageRun:
    return _latent_run(work, stage, work.image(), work.experiment.interpolate, work.specs["interpolate"])


def decoder(work: Workspace, stage: StageConfig) -> StageRun:
    config = work.experiment.decoder
    if stage.frames < 2:
        raise UserError(f"config.stages.decoder.frames is {stage.frames}, expected 2 or more frames to a window")
    config = replace(config, temporal=replace(config.temporal, frames=stage.frames))
    model = load_autoencoder(work.bundle).inflate_decoder(config)
    data, validation = work.data(work.frames, work.specs["decoder"], stage)
    return StageRun(AutoencoderTraining(model, stage, True, validation, work.seed), data, {"model": to_dict(config)})


def upsample(work: Workspace, stage: StageConfig) -> StageRun:
    task, config = work.experiment.upsample, work.experiment.upsampler
    denoiser = replace(config, channels=task.channels, planes=task.planes, filters=task.factor).build()
    assert denoiser.filters is not None
    high = work.pictures(FILTER_PICTURES)
    low = task.shrink(high)
    missing = (full[0] - task.enlarge(small[None])[0, 0] for full, small in zip(high, low, strict=True))
    denoiser.filters.fit(low[:, 0], missing)
    return _upsample_run(work, stage, denoiser, task)


def upsample_temporal(work: Workspace, stage: StageConfig) -> StageRun:
    task = work.bundle.value("upsample", "task", Upsample)
    return _upsample_run(work, stage, load_denoiser(work.bundle, "upsample"), replace(task, temporal=True))


STAGES: dict[str, Callable[[Workspace, StageConfig], StageRun]] = {
    builder.__name__: builder
    for builder in (autoencoder, image, keyframes, interpolate, decoder, upsample, upsample_temporal)
}
LATENT_STAGES = ("image", "keyframes", "interpolate")  # the others train on pixels


def _latent_run(
    work: Workspace, stage: StageConfig, denoiser: Denoiser, task: Frames, specs: list[WindowSpec]
) -> StageRun:
    channels = work.autoencoder.config.channels
    if denoiser.config.channels != channels:
        raise UserError(
            f"config.denoiser.channels is {denoiser.config.channels} but the autoencoder has {channels}; set them alike"
        )
    if task.temporal:
        _inflate(work, stage, denoiser, channels + task.context_channels, specs[0].frames).carry_by(work.autoencoder)
        if denoiser.carries:
            denoiser.flow.load_state_dict(work.flow.state_dict())
    mirrored = work.mirrored_latents if stage.augment.flip else None
    data, validation = work.data(work.latents, specs, stage, mirrored=mirrored)
    grid = LatentGrid(
        validation[0],
        work.decode,
        work.experiment.schedule,
        task,
        work.experiment.sampler,
        rows=3 if task.temporal else 8,
    )
    return _diffusion_run(work, stage, denoiser, task, data, validation, grid)


def _upsample_run(work: Workspace, stage: StageConfig, denoiser: Denoiser, task: Upsample) -> StageRun:
    specs = work.specs["upsample_temporal" if task.temporal else "upsample"]
    data, validation = work.data(work.patches(), specs, stage, work.experiment.data.workers)
    if task.temporal:
        _inflate(work, stage, denoiser, 0, stage.frames)
    else:
        task = replace(task, residual_std=_residual_std(task, denoiser, validation))
    grid = UpsampleGrid(validation[0], work.experiment.schedule, task, work.experiment.sampler)
    return _diffusion_run(work, stage, denoiser, task, data, validation, grid)


def _inflate(work: Workspace, stage: StageConfig, denoiser: Denoiser, context: int, frames: int) -> Denoiser:
    return denoiser.inflate(context, replace(work.experiment.temporal, frames=frames), freeze=not stage.train_image)


def _diffusion_run(
    work: Workspace,
    stage: StageConfig,
    denoiser: Denoiser,
    task: Task,
    data: WindowModule,
    validation: list[Batch],
    grid: GridMaker,
) -> StageRun:
    """Every diffusion stage: the one module, its task, and the config that rebuilds both."""
    schedule = work.experiment.schedule
    if stage.checkpointing:
        denoiser.enable_checkpointing()
    module = LatentVideoDiffusion(denoiser, task, Diffusion(schedule), stage, work.seed, validation, grid)
    config: dict[str, Any] = {"model": to_dict(denoiser.config), "task": to_dict(task), "schedule": to_dict(schedule)}
    if denoiser.temporal is not None:
        config |= {"temporal": to_dict(denoiser.temporal.config), "image_trained": stage.train_image}
    return StageRun(module, data, config)


def _residual_std(task: Upsample, denoiser: Denoiser, batches: list[Batch]) -> float:
    """Spread of what the base misses."""
    high = torch.cat([batch.x for batch in batches])
    return float((high - task.base(task.shrink(high), denoiser.filters)).std().clamp_min(1e-3))


# Before a bundle said what its decoder is made of.
OLD_DECODER = VideoDecoderConfig(temporal=TemporalConfig(attention="none"))


def load_autoencoder(bundle: Bundle, decoder: bool = False) -> Autoencoder:
    """The autoencoder of a bundle, frozen; with `decoder`, its decoder is the temporally tuned one."""
    model = bundle.network("autoencoder", AutoencoderConfig)
    model.requires_grad_(False).eval()
    if decoder:
        known = "model" in bundle.config("decoder")
        model.inflate_decoder(bundle.value("decoder", "model", VideoDecoderConfig) if known else OLD_DECODER)
        assert model.temporal is not None
        bundle.load("decoder", model.temporal.requires_grad_(False))
    return model


TASKS: dict[str, type] = {"keyframes": Predict, "interpolate": Interpolate, "upsample_temporal": Upsample}


def load_denoiser(bundle: Bundle, stage: str) -> Denoiser:
    """An image network of a bundle (image, upsample), or one with its temporal layers (keyframes, ...)."""
    image_stage = {"keyframes": "image", "interpolate": "image", "upsample_temporal": "upsample"}.get(stage, stage)
    denoiser = bundle.network(image_stage, DenoiserConfig)
    if image_stage != stage:
        config = bundle.config(stage)
        context: int = bundle.value(stage, "task", TASKS[stage]).context_channels
        temporal = bundle.value(stage, "temporal", TemporalConfig) if "temporal" in config else None  # none before 0.2
        denoiser.inflate(denoiser.config.channels + context if context else 0, temporal)
        assert denoiser.temporal is not None
        bundle.load(stage, denoiser if config.get("image_trained") else denoiser.temporal)
    return denoiser.eval()
