"""A trained bundle as one object that makes video."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from drivesim.bundle import Bundle
from drivesim.clip import SPEED_MPS, Layout
from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.tasks import Interpolate, Predict
from drivesim.diffusion.upsample import Upsample
from drivesim.errors import UserError
from drivesim.generation import cascade
from drivesim.generation.costs import Meter
from drivesim.generation.samplers import SamplerConfig, check_upsampling
from drivesim.generation.stage import Rollout, Stage, take
from drivesim.machine import probe
from drivesim.models.autoencoder import Autoencoder
from drivesim.models.denoiser import Denoiser
from drivesim.training.stages import load_autoencoder, load_denoiser

UPSAMPLERS = ("diffusion", "bicubic", "none")


@dataclass(eq=False)  # compared and hashed by identity, being made of networks
class DrivingPipeline:
    """The whole cascade.

    low_height, low_width  working resolution, pixels;  height, width  of the final video
    fps                    of the final video;  key_fps  of the keyframes and of two start frames
    slots                  boxes a frame
    """

    autoencoder: Autoencoder
    image: Denoiser
    keyframes: Denoiser
    interpolator: Denoiser
    upsampler: Denoiser | None
    schedule: ScheduleConfig
    predict: Predict
    interpolate: Interpolate
    upsample: Upsample
    low_height: int
    low_width: int
    key_fps: float
    slots: int
    config: SamplerConfig = field(default_factory=SamplerConfig)
    upsample_schedule: ScheduleConfig | None = None  # where it is another than that of the other stages

    def __post_init__(self) -> None:
        for video in (self.keyframes, self.interpolator):
            video.carry_by(self.autoencoder)
        self.meter = Meter()
        for denoiser in (self.image, self.keyframes, self.interpolator, self.upsampler):
            if denoiser is not None:
                self.meter.watch(denoiser)

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, tuned_decoder: bool = True, upsampler: bool = True
    ) -> "DrivingPipeline":
        """Load a bundle.

        tuned_decoder  with the temporal layers of the decoder;  upsampler  with the diffusion upsampler
        raises         UserError for a missing, damaged or mismatched bundle or stage
        """
        return cls.from_bundle(Bundle(Path(folder)).require(), tuned_decoder, upsampler).to(probe().device)

    @classmethod
    def from_bundle(cls, bundle: Bundle, tuned_decoder: bool = True, upsampler: bool = True) -> "DrivingPipeline":
        """The same, left on the device that the networks are built on."""
        if bundle.has_folder("image", "text_encoder"):
            raise UserError(f"bundle {bundle.root} makes video from words; `drivesim generate prompt=...` does")
        data = bundle.data
        pipeline = cls(
            autoencoder=load_autoencoder(bundle, decoder=tuned_decoder),
            image=load_denoiser(bundle, "image"),
            keyframes=load_denoiser(bundle, "keyframes"),
            interpolator=load_denoiser(bundle, "interpolate"),
            upsampler=load_denoiser(bundle, "upsample_temporal") if upsampler else None,
            schedule=bundle.value("image", "schedule", ScheduleConfig),
            predict=bundle.value("keyframes", "task", Predict),
            interpolate=bundle.value("interpolate", "task", Interpolate),
            upsample=bundle.value("upsample", "task", Upsample),
            low_height=int(data["height"]),
            low_width=int(data["width"]),
            key_fps=data["key_fps"],
            slots=int(data["slots"]),
            config=bundle.sampler(SamplerConfig),
            upsample_schedule=bundle.value("upsample", "schedule", ScheduleConfig),
        )
        pipeline._check(bundle)
        return pipeline

    def to(self, device: str) -> "DrivingPipeline":
        """Move every network; what comes and goes, pictures and layouts, stays on the CPU."""
        for network in (self.autoencoder, self.image, self.keyframes, self.interpolator, self.upsampler):
            if network is not None:
                network.to(device)
        return self

    def _check(self, bundle: Bundle) -> None:
        channels = self.autoencoder.config.channels
        for name, denoiser in (
            ("image", self.image),
            ("keyframes", self.keyframes),
            ("interpolate", self.interpolator),
        ):
            if denoiser.config.channels != channels:
                raise UserError(
                    f"bundle {bundle.root}: stage {name} makes {denoiser.config.channels} latent channels, "
                    f"the autoencoder has {channels}; the stages are of different runs"
                )
        for name in ("keyframes", "interpolate"):
            if bundle.value(name, "schedule", ScheduleConfig).check().process != self.schedule.check().process:
                raise UserError(
                    f"bundle {bundle.root}: stage {name} was trained with another noise schedule than stage image; "
                    "the stages are of different runs"
                )
        factor = self.autoencoder.config.factor
        if (self.low_height % factor, self.low_width % factor) != (0, 0):
            raise UserError(
                f"bundle {bundle.root}: {self.low_height}x{self.low_width} is no multiple of the "
                f"autoencoder's factor of {factor}; the stages are of different runs"
            )
        grid = self.upsample.patch
        if (self.height % grid, self.width % grid) != (0, 0):
            raise UserError(
                f"bundle {bundle.root}: {self.height}x{self.width} is no multiple of the upsampler's "
                f"patch of {grid}; the stages are of different runs"
            )

    @property
    def height(self) -> int:
        return self.low_height * self.upsample.factor

    @property
    def width(self) -> int:
        return self.low_width * self.upsample.factor

    @property
    def spacing(self) -> int:
        """Final frames from keyframe to keyframe."""
        return self.interpolate.factor**2

    @property
    def fps(self) -> float:
        return self.key_fps * self.spacing

    def __call__(
        self, *, start: Tensor | None, layout: Layout | None, seconds: float, seed: int, upsampler: str = "diffusion"
    ) -> Rollout:
        """Frames uint8 [3, H, W], one by one, in memory that does not depend on how many. They can be stopped between
        any two and go on in another process (`Rollout.state`, `restore`).

        start      [S, 3, H, W] in [-1, 1]: one first frame, or two that are 1 / key_fps seconds apart (the newer is
                   the first frame of the video); None: the image LDM makes the first frame
        layout     one entry a final frame, [T]; None asks for nothing
        seconds    length of the video
        upsampler  diffusion, bicubic, or none (working resolution)
        raises     UserError for a sampler that cannot do what `config` asks
        """
        self.config.check(self.schedule)
        full = take(self.low_resolution(start, layout, seed), round(seconds * self.fps))
        if upsampler == "bicubic":
            full = cascade.enlarge(self.upsample, full)
        elif upsampler == "diffusion":
            full = self.upsampled(full, seed)
        return Rollout(full, self.meter)

    def upsampled(self, low: Iterator[Tensor], seed: int) -> Stage:
        """Frames [3, H, W] in [-1, 1] of low-resolution ones. raises UserError, before the first, if it cannot be"""
        if self.upsampler is None:
            raise UserError("this pipeline was loaded without its upsampler; use upsampler=bicubic")
        check_upsampling(self.upsampler, self.upsample, self.low_height, self.low_width, self.config)
        schedule = self.upsample_schedule or self.schedule
        return cascade.upsample(self.upsampler, schedule, self.upsample, low, seed, self.config)

    def low_resolution(self, start: Tensor | None, layout: Layout | None, seed: int) -> Stage:
        """Endless frames [3, h, w] in [-1, 1] at the working resolution and the full rate."""
        at = self.layout_at(layout)
        coarse = self.coarse_latents(start, layout, seed)
        fine = cascade.interpolate(
            self.interpolator,
            self.schedule,
            self.interpolate,
            coarse,
            at,
            self.interpolate.factor,
            1,
            seed,
            self.config,
        )
        return cascade.decode(self.autoencoder, fine)

    def coarse_latents(self, start: Tensor | None, layout: Layout | None, seed: int) -> Stage:
        """Endless latents [C, h, w] after the first interpolation, at fps / factor."""
        at = self.layout_at(layout)
        keys = cascade.keyframes(
            self.keyframes,
            self.schedule,
            self.predict,
            lambda: self.start_latents(start, at, seed),
            at,
            self.spacing,
            seed,
            self.config,
        )
        return cascade.interpolate(
            self.interpolator, self.schedule, self.interpolate, keys, at, self.spacing, 0, seed, self.config
        )

    @torch.no_grad()
    def start_latents(self, start: Tensor | None, at: cascade.LayoutAt, seed: int) -> Tensor:
        """[S, C, h, w]: the start frames encoded, or a first frame of the image LDM."""
        if start is None:
            factor = self.autoencoder.config.factor
            shape = (self.autoencoder.config.channels, self.low_height // factor, self.low_width // factor)
            return cascade.first_keyframe(self.image, self.schedule, at, shape, seed, self.config)
        low = F.interpolate(start, (self.low_height, self.low_width), mode="area")
        return self.autoencoder.encode(low.to(next(self.autoencoder.parameters()).device)).float()

    def layout_at(self, layout: Layout | None) -> cascade.LayoutAt:
        """Layout of final frames by index, driven on at SPEED_MPS where it does not say how the car moves. Beyond the
        ends of `layout` its last frame holds and the car goes on as it did (a cascade looks ahead by up to one window
        of keyframes, and a start video began before)."""
        if layout is None:
            return lambda index: Layout.unknown(len(index), slots=self.slots).driven(index / self.fps, SPEED_MPS)
        frames = layout.num_frames
        times_s = torch.arange(frames) / self.fps
        known = layout.pad(self.slots).moving(times_s).driven(times_s, SPEED_MPS)

        def go_on(path: Tensor, index: Tensor, alone: float) -> Tensor:
            inside = index.clamp(0, frames - 1)
            rates = path.diff() if frames > 1 else path.new_full((1,), alone)
            return path[inside] + (index - inside) * torch.where(index < 0, rates[0], rates[-1])

        def at(index: Tensor) -> Layout:
            travel = go_on(known.travel, index, SPEED_MPS / self.fps)
            heading = go_on(known.heading, index, 0.0)
            return replace(known[index.clamp(0, frames - 1)], travel=travel, heading=heading)

        return at
