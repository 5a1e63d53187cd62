"""An experiment: everything that decides what is trained, as one tree of typed, checked values."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from drivesim.config import option
from drivesim.data.augment import AugmentConfig
from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.tasks import Frames, Interpolate, Predict
from drivesim.diffusion.upsample import Upsample
from drivesim.generation.samplers import SamplerConfig
from drivesim.models.autoencoder import AutoencoderConfig
from drivesim.models.backbone import Backbone
from drivesim.models.denoiser import DenoiserConfig
from drivesim.models.inflation import TemporalConfig
from drivesim.models.upscaler import UpsamplerConfig
from drivesim.models.video_decoder import VideoDecoderConfig


@dataclass
class DataConfig:
    """Sizes and rates. The final video is `upsample.factor` times as high and wide as the working resolution, and
    `interpolate.factor`² times as fast as the keyframes."""

    height: int = 128  # working resolution, pixels
    width: int = 256
    key_fps: float = 1.875
    slots: int = 24  # boxes a frame
    workers: int = 0  # processes that decode full-resolution patches
    where: str = option("", "train on the clips for which this holds, as in `drivesim data query`; empty: on all")
    balance: str = option(
        "",
        "tag of which each value is drawn equally often: night, crowdedness, speed, weather, camera, source, licence, "
        "route, class:car, class:pedestrian ...; empty: each second of video is",
    )


@dataclass
class StageConfig:
    """How long and how a stage trains."""

    share: float = 0.1  # of the whole time budget; the shares of an experiment add up to 1
    max_steps: int = -1  # with a budget it ends the stage early, without one it is what ends it
    batch_size: int = 8
    frames: int = 1  # of a window, where the task leaves it open
    lr: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    ema_decay: float = 0.995
    accumulate: int = 1
    # Autoencoder and decoder alone:
    reconstruction: str = "flicker"  # l1, l2, or l2 of pixels and, in video, of their change from frame to frame
    perceptual: str = ""  # stlpips, or a safetensors file of VGG-16 for LPIPS; empty: none (models/perceptual.py)
    perceptual_weight: float = 1.0
    adversarial: float = 0.0  # weight of the patch discriminator, of video in the decoder, else of pictures
    image_adversarial: float = 0.0  # decoder: weight of one of pictures beside it, which the paper found worse
    adversarial_start: int = 0  # steps before discriminators begin
    discriminator_width: int = 32  # channels of their first layer; latent diffusion has 64
    kl: float = 1e-6  # kl autoencoder: weight of the divergence of latents, against the summed error of pixels
    train_image: bool = False  # a temporal stage: the image layers are trained too, the paper's "end to end"
    checkpointing: bool = False  # activations are computed again in the backward pass: less memory, a third more time
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class StagesConfig:
    autoencoder: StageConfig = field(default_factory=StageConfig)
    image: StageConfig = field(default_factory=StageConfig)
    keyframes: StageConfig = field(default_factory=StageConfig)
    interpolate: StageConfig = field(default_factory=StageConfig)
    decoder: StageConfig = field(default_factory=StageConfig)
    upsample: StageConfig = field(default_factory=StageConfig)
    upsample_temporal: StageConfig = field(default_factory=StageConfig)


@dataclass
class ExperimentConfig:
    data: DataConfig = field(default_factory=DataConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    decoder: VideoDecoderConfig = field(default_factory=VideoDecoderConfig)  # its temporal layers
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    upsampler: UpsamplerConfig = field(default_factory=UpsamplerConfig)
    temporal: TemporalConfig = field(default_factory=TemporalConfig)  # of keyframes, interpolation and upsampler
    image: Frames = field(default_factory=Frames)
    predict: Predict = field(default_factory=Predict)
    interpolate: Interpolate = field(default_factory=Interpolate)
    upsample: Upsample = field(default_factory=Upsample)
    stages: StagesConfig = field(default_factory=StagesConfig)
    sampler: SamplerConfig = field(
        default_factory=SamplerConfig
    )  # what the bundle is sampled with unless told otherwise

    def resolved(self) -> "ExperimentConfig":
        """With what a pretrained backbone decides: its layout and its noise schedule. raises UserError if it is none"""
        if not self.denoiser.pretrained:
            return self
        schedule = Backbone(Path(self.denoiser.pretrained)).schedule(self.schedule)
        return replace(self, denoiser=self.denoiser.resolved(), schedule=schedule)
