"""The stages: for each, what is trained, on which windows, starting from which earlier stages."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
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
from drivesim.diffusion.schedule import Diffusion, ScheduleConfig
from drivesim.diffusion.tasks import Frames, Interpolate, Predict, Task
from drivesim.diffusion.upsample import Pixels, Upsample, space_of
from drivesim.errors import UserError
from drivesim.generation.samplers import check_upsampling
from drivesim.machine import probe
from drivesim.models.autoencoder import Autoencoder, AutoencoderConfig
from drivesim.models.backbone import Backbone
from drivesim.models.conditioning import POSITIONS, label_features, plane_count, rasterise
from drivesim.models.denoiser import Denoiser, DenoiserConfig
from drivesim.models.filters import EdgeFilters
from drivesim.models.inflation import TemporalConfig, TemporalLayers
from drivesim.models.motion import SceneFlow, measured_flow
from drivesim.models.patch_autoencoder import PatchAutoencoder
from drivesim.models.text import TextEncoder
from drivesim.models.text_denoiser import TextDenoiser
from drivesim.models.upscaler import UpsamplerConfig, load_upscaler, read_schedules
from drivesim.models.video_decoder import VideoDecoderConfig
from drivesim.training.experiment import ExperimentConfig, StageConfig
from drivesim.training.grids import GridMaker, LatentGrid, UpsampleGrid
from drivesim.training.latent import LatentVideoDiffusion
from drivesim.training.pixels import AutoencoderTraining

VALIDATION_WINDOWS = 16  # held out; their number does not depend on the batches that a stage trains on
PATCH_FRAMES = 64  # for the closed-form start of the patch autoencoder: 30,000 patches and more
FLOW_FPS = 7.0  # frames for optical flow lie at most this far apart in a second
FLOW_PAIRS = 400
PRIOR_FRAMES = 2000  # for the closed-form prior: seconds of one core
FILTER_PICTURES = 64  # of 512x1024: two million neighbourhoods, some thousands a class


@dataclass
class Workspace:
    """What every stage builds from: the experiment, the data, and the bundle of the stages before it."""

    experiment: ExperimentConfig
    store: ClipStore
    bundle: Bundle
    seed: int
    command: str = ""  # that trains, for the record

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
        told = denoiser.config.conditions
        planes = rasterise(layout[picked], 1, 1, told)[None]
        denoiser.prior.fit(x[picked].float(), label_features(planes, told)[0])

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
        motions = torch.stack([torch.stack([lay.travel.diff()[0], lay.heading.diff()[0]]) for _, lay, *_ in samples])
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

    @property
    def patch_size(self) -> tuple[int, int]:
        """Full-resolution pixels that the upsampler trains on: patches, since it is applied convolutionally."""
        data, task = self.experiment.data, self.experiment.upsample
        return min(task.crop[0], task.factor * data.height), min(task.crop[1], task.factor * data.width)

    def patches(self) -> VideoPatches:
        """What the upsampler sees."""
        return VideoPatches(self.store, *self.patch_size)

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

    def fit_patches(self, model: PatchAutoencoder, data: WindowModule) -> None:
        """The closed-form start of a patch autoencoder."""
        model.fit_patches(torch.cat([data.dataset[i][0] for i in range(PATCH_FRAMES)]))

    def fit_filters(self, filters: EdgeFilters, task: Upsample) -> None:
        """The closed-form start of an upsampler."""
        high = self.pictures(FILTER_PICTURES)
        low = task.shrink(high)
        missing = (full[0] - task.enlarge(small[None])[0, 0] for full, small in zip(high, low, strict=True))
        filters.fit(low[:, 0], missing)

    def residual_std(self, task: Upsample, denoiser: Denoiser, batches: list[Batch]) -> float:
        """Spread of what the base misses, where that is what is made."""
        space = space_of(task, denoiser)
        if not isinstance(space, Pixels) or task.target != "residual":
            return task.residual_std
        high = torch.cat([batch.x for batch in batches])
        return float((high - space.base(task.shrink(high))).std().clamp_min(1e-3))

    def check(self, stages: list[str]) -> None:
        """raises UserError if the store does not serve one of `stages`"""
        whole = FrameCache(self.store, self.experiment.data.height, self.experiment.data.width)
        for name in stages:
            reader: Reader = self.patches() if name.startswith("upsample") else whole
            WindowDataset(
                self.store, reader, "train", self.specs[name], self.seed, balance=self.experiment.data.balance
            )

    def image(self) -> Denoiser:
        """The image network that temporal layers are put into. raises UserError if it is not the one that is named"""
        held = self.bundle.config("image").get("backbone", {})
        if (named := self.experiment.denoiser.pretrained) and held.get("sha256") != Backbone(Path(named)).sha256():
            raise UserError(
                f"{self.bundle.root} holds {held.get('folder', 'an image network trained here')}, not {named} as it is "
                "now; run `drivesim train stage=image overwrite=true`, or choose another out"
            )
        return load_denoiser(self.bundle, "image")

    @cached_property
    def text(self) -> TextEncoder:
        return load_text(self.bundle)

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
        size = 2 ** min(stage.batch_size.bit_length() - 1, 3)  # of batches that fit the memory, and divide the windows
        batches = [collate([held_out[i + j] for j in range(size)]) for i in range(0, VALIDATION_WINDOWS, size)]
        return WindowModule(training, stage.batch_size, workers), batches


@dataclass
class StageRun:
    """A stage ready to train. `config` is what the bundle keeps: enough to rebuild the network by itself; `folders` go
    there as they are."""

    module: pl.LightningModule
    data: pl.LightningDataModule
    config: dict
    folders: Sequence[Path] = ()


def autoencoder(work: Workspace, stage: StageConfig) -> StageRun:
    model = work.experiment.autoencoder.build()
    if model.config.pretrained:
        model.load_pretrained()
        model.requires_grad_(model.config.finetune)
    data, validation = work.data(work.frames, work.specs["autoencoder"], stage)
    if isinstance(model, PatchAutoencoder):
        work.fit_patches(model, data)
    return StageRun(
        AutoencoderTraining(model, stage, False, validation, work.seed), data, {"model": to_dict(model.config)}
    )


def image(work: Workspace, stage: StageConfig) -> StageRun:
    if work.experiment.denoiser.pretrained:
        return _pretrained_image(work, stage)
    data, factor = work.experiment.data, work.autoencoder.config.factor
    size = [data.height // factor, data.width // factor]
    config = work.experiment.denoiser
    denoiser = replace(config, prior_size=size, planes=plane_count(config.conditions) + POSITIONS).build()
    denoiser.latent_std.copy_(work.latent_std())
    if denoiser.prior is not None:
        work.fit_prior(denoiser)
    return _latent_run(work, stage, denoiser, work.experiment.image, work.specs["image"])


def _pretrained_image(work: Workspace, stage: StageConfig) -> StageRun:
    """Put into the bundle with its text encoder, so that a folder that changes later changes no bundle."""
    config = work.experiment.denoiser
    backbone = Backbone(Path(config.pretrained))
    denoiser = backbone.load(config).requires_grad_(config.finetune)
    denoiser.read_by(TextEncoder(backbone.root))
    run = _latent_run(work, stage, denoiser, work.experiment.image, work.specs["image"])
    origin = {"folder": str(backbone.root), "sha256": backbone.sha256()}
    return replace(run, config=run.config | {"backbone": origin}, folders=backbone.text_folders)


def keyframes(work: Workspace, stage: StageConfig, denoiser: Denoiser | None = None) -> StageRun:
    """denoiser  one that has temporal layers already, to go on from; by default they are put into the image network"""
    denoiser = told(work, denoiser or work.image())
    return _latent_run(work, stage, denoiser, work.experiment.predict, work.specs["keyframes"])


def interpolate(work: Workspace, stage: StageConfig, denoiser: Denoiser | None = None) -> StageRun:
    denoiser = told(work, denoiser or work.image())
    return _latent_run(work, stage, denoiser, work.experiment.interpolate, work.specs["interpolate"])


def told(work: Workspace, denoiser: Denoiser) -> Denoiser:
    """Ready to be told what there is to tell: captions need a text encoder."""
    return denoiser.read_by(work.text) if isinstance(denoiser, TextDenoiser) else denoiser


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
    if config.pretrained:
        return _pretrained_upscaler(work, stage, task, config)
    denoiser = task.network(config).build()
    if denoiser.filters is not None:
        work.fit_filters(denoiser.filters, task)
    return _upsample_run(work, stage, denoiser, task, work.experiment.schedule)


def _pretrained_upscaler(work: Workspace, stage: StageConfig, task: Upsample, config: UpsamplerConfig) -> StageRun:
    """Put into the bundle as it is: the temporal layers are trained on it."""
    schedule, augmentation, highest = read_schedules(Path(config.pretrained))
    denoiser = load_upscaler(config)
    if (factor := denoiser.codec.factor) != task.factor:
        raise UserError(
            f"{config.pretrained} upsamples by {factor}, config.upsample.factor is {task.factor}; set {factor}"
        )
    task = replace(task, patch=factor, max_level=highest, augmentation=augmentation, filters=False)
    return _upsample_run(work, stage, denoiser, task, schedule)


def upsample_temporal(work: Workspace, stage: StageConfig, denoiser: Denoiser | None = None) -> StageRun:
    task = work.bundle.value("upsample", "task", Upsample)
    schedule = work.bundle.value("upsample", "schedule", ScheduleConfig)
    denoiser = denoiser or load_denoiser(work.bundle, "upsample")
    return _upsample_run(work, stage, denoiser, replace(task, temporal=True), schedule)


Builder = Callable[[Workspace, StageConfig], StageRun]
STAGES: dict[str, Builder] = {
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
    if task.temporal and denoiser.temporal is None:
        context = channels + task.context_channels if task.context_channels else 0
        inflate(work, stage, denoiser, context, specs[0].frames)
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
    return _diffusion_run(work, stage, denoiser, task, data, validation, grid, work.experiment.schedule)


def _upsample_run(
    work: Workspace, stage: StageConfig, denoiser: Denoiser, task: Upsample, schedule: ScheduleConfig
) -> StageRun:
    size = work.experiment.data.height, work.experiment.data.width
    check_upsampling(denoiser, task, *size, work.experiment.sampler)
    specs = work.specs["upsample_temporal" if task.temporal else "upsample"]
    data, validation = work.data(work.patches(), specs, stage, work.experiment.data.workers)
    if task.temporal and denoiser.temporal is None:
        inflate(work, stage, denoiser, 0, stage.frames)
    elif not task.temporal:
        task = replace(task, residual_std=work.residual_std(task, denoiser, validation))
    grid = UpsampleGrid(validation[0], schedule, task, work.experiment.sampler)
    return _diffusion_run(work, stage, denoiser, task, data, validation, grid, schedule)


def inflate(work: Workspace, stage: StageConfig, denoiser: Denoiser, context: int, frames: int) -> None:
    """Put temporal layers in, which know how the picture moves with the car where they carry known frames."""
    denoiser.inflate(context, replace(work.experiment.temporal, frames=frames), freeze=not stage.train_image)
    if denoiser.carries:
        denoiser.carry_by(work.autoencoder).flow.load_state_dict(work.flow.state_dict())


def _diffusion_run(
    work: Workspace,
    stage: StageConfig,
    denoiser: Denoiser,
    task: Task,
    data: WindowModule,
    validation: list[Batch],
    grid: GridMaker,
    schedule: ScheduleConfig,
) -> StageRun:
    """Every diffusion stage: the one module, its task, and the config that rebuilds both."""
    if stage.checkpointing:
        denoiser.enable_checkpointing()
    module = LatentVideoDiffusion(denoiser, task, Diffusion(schedule), stage, work.seed, validation, grid)
    config: dict[str, Any] = {"model": to_dict(denoiser.config), "task": to_dict(task), "schedule": to_dict(schedule)}
    if denoiser.temporal is not None:
        config |= {"temporal": to_dict(denoiser.temporal.config), "image_trained": stage.train_image}
        if not stage.train_image:  # then they fit any image network of these widths
            config |= {"sites": denoiser.temporal.widths, "context_channels": denoiser.temporal.context_channels}
    return StageRun(module, data, config)


def load_autoencoder(bundle: Bundle, decoder: bool = False) -> Autoencoder:
    """The autoencoder of a bundle, frozen; with `decoder`, its decoder is the temporally tuned one."""
    model = bundle.network("autoencoder", AutoencoderConfig)
    model.requires_grad_(False).eval()
    if decoder:
        config = bundle.value("decoder", "model", VideoDecoderConfig)
        with bundle.building("decoder"):
            model.inflate_decoder(config)
        assert model.temporal is not None
        bundle.load("decoder", model.temporal.requires_grad_(False))
    return model


TASKS: dict[str, type] = {"keyframes": Predict, "interpolate": Interpolate, "upsample_temporal": Upsample}


def load_text(bundle: Bundle) -> TextEncoder:
    """The text encoder of a bundle. raises UserError if it has none"""
    if not bundle.value("image", "model", DenoiserConfig).unet:
        raise UserError(
            f"bundle {bundle.root} has no text encoder: its image network is told layouts; train one on a Stable "
            "Diffusion folder, `drivesim train experiment=sd_text_to_video config.denoiser.pretrained=...`"
        )
    bundle.folder("image", "tokenizer")
    return TextEncoder(bundle.folder("image", "text_encoder").parent)


def load_denoiser(bundle: Bundle, stage: str, image: Denoiser | None = None) -> Denoiser:
    """An image network of a bundle (image, upsample), or one with its temporal layers (keyframes, ...).

    image  another image network of the same widths, which the temporal layers are put into, in place
    """
    image_stage = {"keyframes": "image", "interpolate": "image", "upsample_temporal": "upsample"}.get(stage, stage)
    kind = UpsamplerConfig if image_stage == "upsample" else DenoiserConfig
    denoiser = bundle.network(image_stage, kind) if image is None else image
    if image_stage != stage:
        config = bundle.config(stage)
        context: int = bundle.value(stage, "task", TASKS[stage]).context_channels
        temporal = bundle.value(stage, "temporal", TemporalConfig)
        with bundle.building(stage):
            denoiser.inflate(denoiser.config.channels + context if context else 0, temporal)
        assert denoiser.temporal is not None
        if isinstance(held := config.get("sites"), dict):
            check_sites(held, denoiser.temporal, bundle.weights(stage))
        bundle.load(stage, denoiser if config.get("image_trained") else denoiser.temporal)
    return denoiser.eval()


def check_sites(held: dict[str, int], temporal: TemporalLayers, path: Path) -> None:
    """raises UserError, naming the first that differs, if temporal layers of `held` widths do not fit a network"""
    for name in [*held, *(name for name in temporal.widths if name not in held)]:
        if held.get(name) != temporal.widths.get(name):
            widths = held.get(name), temporal.widths.get(name)
            theirs, ours = (f"{width} channels" if width else "none" for width in widths)
            raise UserError(f"{path} has {theirs} at {name}, this image network {ours}; they are of different shapes")
