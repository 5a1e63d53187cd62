"""The upsampler's task, and the spaces that it may work in: pixels, folded or not, and the latents of a codec."""

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from drivesim.diffusion.draws import Generator, rand, randn
from drivesim.diffusion.schedule import TIMESTEPS, Diffusion, ScheduleConfig
from drivesim.diffusion.tasks import Problem
from drivesim.diffusion.tiles import Crop, Tiles
from drivesim.errors import UserError
from drivesim.models.codec import Codec
from drivesim.models.filters import EdgeFilters
from drivesim.models.upscaler import Upscaler

if TYPE_CHECKING:
    from drivesim.data.windows import Batch
    from drivesim.models.denoiser import Denoiser, DenoiserConfig

DETAIL_GAIN = 8.0  # brings differences of neighbouring pixels, about an eighth of their range, to unit size
TARGETS = ("residual", "picture")
BESIDE = ("folded", "bicubic", "bilinear")
D = TypeVar("D", bound="DenoiserConfig")


@dataclass
class Upsample:
    """Full resolution from a low one that is noise-augmented and laid beside what is made (paper, section 3.4).

    The defaults are made for minutes of two CPU cores: pixels folded `patch` x `patch` into channels (no information is
    lost), which puts the U-Net at 1/patch of the resolution, and of them only what a closed-form enlargement misses.
    The paper's are in conf/experiment/rds_512x1024.yaml. A latent upscaler (models/upscaler.py) brings its own codec,
    which takes the place of the folding.
    """

    factor: int = 4
    patch: int = 8  # full-resolution pixels, each way, of a cell of the denoiser's grid; 1: no folding
    residual_std: float = 0.1  # of the training data; divides the residual to unit size
    max_noise: float = 0.1  # standard deviation of the noise augmentation in training, pixels in [-1, 1]
    target: str = "residual"  # residual: what the enlargement misses; picture: the full resolution itself
    filters: bool = True  # whether closed-form filters are part of the enlargement
    beside: str = "folded"  # the low resolution beside it: its pixels and detail folded; bicubic, bilinear: resized
    # Augmentation by the forward process of `augmentation` up to this timestep, told to the network as an embedding (Ho
    # et al. 2022, "Cascaded diffusion models"); 0: by noise of up to `max_noise`, told as a plane.
    max_level: int = 0
    augmentation: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(zero_snr=False))
    crop: list[int] = field(default_factory=lambda: [128, 256])  # full-resolution pixels of a training patch
    drop_prompt: float = 0.1  # latent upscaler: clips that are told the negative prompt
    temporal: bool = False
    context_channels: int = 0

    @property
    def channels(self) -> int:
        return 3 * self.patch**2

    @property
    def planes(self) -> int:
        """Of the low resolution on the denoiser's grid, and of the level of its noise where that is told as one."""
        seen = 2 * 3 * (self.patch // self.factor) ** 2 if self.beside == "folded" else self.channels
        return seen + (self.max_level == 0)

    def network(self, config: D) -> D:
        """The config of a network on pixels, made to fit this task."""
        filters = self.factor if self.filters else 0
        told = self.max_level > 0
        return replace(config, channels=self.channels, planes=self.planes, filters=filters, level_embedding=told)

    def pose(
        self, batch: "Batch", denoiser: "Denoiser", generator: Generator, diffusion: Diffusion | None = None
    ) -> Problem:
        """batch.x [B, T, 3, H, W] full resolution."""
        high = batch.x
        low = self.shrink(high)
        level = self.level(rand((len(high),), generator)).to(high.device)
        noise = randn(low.shape, generator).to(high)
        space = space_of(self, denoiser)
        planes = self.condition(low, level, noise, space)
        tokens = None
        if isinstance(denoiser, Upscaler):
            negative = rand((len(high),), generator) < self.drop_prompt
            tokens = denoiser.prompted(negative, high.shape[1])
        weight = torch.ones(high.shape[:2], device=high.device)
        return Problem(space.encode(high, low), planes, tokens, None, weight, self.label(level))

    def level(self, share: Tensor) -> Tensor:
        """The level of noise at a share [B], 0 to 1, of the largest: a standard deviation, or a timestep."""
        return (share * (self.max_level + 1)).long() if self.max_level else share * self.max_noise

    def chosen_level(self, deviation: float, timestep: int) -> Tensor:
        """The level [1] of one of both kinds that sampling uses. raises UserError above the highest of training"""
        if self.max_level and not 0 <= timestep <= self.max_level:
            raise UserError(
                f"upsample_level={timestep}, the upsampler knows levels of noise from 0 to {self.max_level}"
            )
        return torch.tensor([timestep] if self.max_level else [deviation])

    def label(self, level: Tensor) -> Tensor | None:
        """What is embedded of a level [B]."""
        return level if self.max_level else None

    def condition(self, low: Tensor, level: Tensor, noise: Tensor, space: "Space") -> Tensor:
        """Planes [B, T, P, h', w'] of low [B, T, 3, h, w], augmented by noise like it at level [B]."""
        seen = space.beside(self.augment(low, level, noise))
        if self.max_level:
            return seen
        flat = (level / self.max_noise).view(-1, 1, 1, 1, 1).expand(*seen.shape[:2], 1, *seen.shape[-2:])
        return torch.cat([seen, flat], 2)

    def augment(self, low: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        if self.max_level:
            return Diffusion(self.augmentation).add_noise(low, noise, level)
        return low + level.view(-1, 1, 1, 1, 1) * noise

    def shrink(self, high: Tensor) -> Tensor:
        """Area average, [B, T, 3, H, W] -> [B, T, 3, h, w]."""
        return F.interpolate(high.flatten(0, 1), scale_factor=1 / self.factor, mode="area").unflatten(0, high.shape[:2])

    def enlarge(self, low: Tensor, mode: str = "bicubic") -> Tensor:
        """[B, T, 3, h, w] -> [B, T, 3, H, W]."""
        return F.interpolate(low.flatten(0, 1), scale_factor=self.factor, mode=mode).unflatten(0, low.shape[:2])

    def check(self, height: int, width: int, name: str = "config.upsample") -> None:
        """raises UserError unless low-resolution pictures of height x width can be worked on"""
        for key, found, known in (("target", self.target, TARGETS), ("beside", self.beside, BESIDE)):
            if found not in known:
                raise UserError(f"{name}.{key}={found}, expected one of {', '.join(known)}")
        if not 0 <= self.max_level < TIMESTEPS:
            raise UserError(f"{name}.max_level={self.max_level}, expected 0 to {TIMESTEPS - 1}")
        if not self.max_level and self.max_noise <= 0:
            raise UserError(f"{name}.max_noise={self.max_noise:g}, expected more than 0, or max_level above 0")
        full = (height * self.factor, width * self.factor)
        if (self.beside == "folded" and self.patch % self.factor) or any(size % self.patch for size in full):
            multiple = f"be a multiple of {name}.factor={self.factor} and " if self.beside == "folded" else ""
            raise UserError(f"{name}.patch={self.patch} must {multiple}divide {full[0]}x{full[1]}")
        cell = math.lcm(self.patch, self.factor)
        if len(self.crop) != 2 or any(size < cell or size % cell for size in self.crop):
            raise UserError(f"{name}.crop={list(self.crop)}, expected a height and a width, multiples of {cell}")


class Space(Protocol):
    """What an upsampler denoises, and how the low resolution is brought beside it."""

    patch: int  # full-resolution pixels, each way, of a cell of the denoiser's grid
    channels: int  # of what is denoised

    def encode(self, high: Tensor, low: Tensor) -> Tensor:
        """Full [B, T, 3, H, W] and low resolution -> what is to be made, [B, T, channels, H/patch, W/patch]."""

    def decode(self, x: Tensor, low: Tensor, tiles: Tiles) -> Tensor:
        """The inverse; `tiles` of the low resolution where the whole picture at once would take too much memory."""

    def beside(self, low: Tensor) -> Tensor:
        """[B, T, 3, h, w], augmented -> planes [B, T, P, H/patch, W/patch]."""

    def spare_noise(self, noise: Tensor) -> Tensor | None:
        """Noise for the augmentation [B, T, 3, h, w] taken from that of what is denoised; None where there is none to
        spare."""


class Pixels:
    """The picture, or what its enlargement misses, folded `patch` x `patch` into channels."""

    def __init__(self, task: Upsample, filters: EdgeFilters | None) -> None:
        self.task, self.filters = task, filters
        self.patch, self.channels = task.patch, task.channels

    def encode(self, high: Tensor, low: Tensor) -> Tensor:
        if self.task.target == "picture":
            return fold(high, self.patch)
        return fold(high - self.base(low), self.patch) / self.task.residual_std

    def decode(self, x: Tensor, low: Tensor, tiles: Tiles) -> Tensor:
        if self.task.target == "picture":
            return unfold(x, self.patch)
        return self.base(low) + unfold(x * self.task.residual_std, self.patch)

    def base(self, low: Tensor) -> Tensor:
        """What the residual is added to: the enlargement, and what least-squares filters know to be missing in it."""
        enlarged = self.task.enlarge(low)
        if self.filters is None:
            return enlarged
        return enlarged + self.filters(low.flatten(0, 1)).unflatten(0, low.shape[:2])

    def beside(self, low: Tensor) -> Tensor:
        """Resized pixels; or the pixels folded, and their difference from their surroundings, which is what missing
        detail can be told from and would drown in the brightness otherwise."""
        if self.task.beside != "folded":
            return fold(self.task.enlarge(low, self.task.beside), self.patch)
        seen = low.flatten(0, 1)
        detail = (seen - F.avg_pool2d(seen, 5, 1, 2, count_include_pad=False)) * DETAIL_GAIN
        return fold(torch.cat([seen, detail], 1).unflatten(0, low.shape[:2]), self.patch // self.task.factor)

    def spare_noise(self, noise: Tensor) -> Tensor | None:
        """The first of the many channels of a cell, unfolded to white noise of the low resolution."""
        if self.task.beside != "folded":
            return None
        cell = self.patch // self.task.factor
        return unfold(noise[:, :, : 3 * cell**2], cell)


class Latents:
    """The latents of a codec, one cell a low-resolution pixel, which is laid beside it as it is."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.patch, self.channels = codec, codec.factor, codec.channels

    def encode(self, high: Tensor, low: Tensor) -> Tensor:
        return self.codec.encode(high.flatten(0, 1)).unflatten(0, high.shape[:2])

    def decode(self, x: Tensor, low: Tensor, tiles: Tiles) -> Tensor:
        def picture(crop: Crop) -> Tensor:
            return self.codec.decode(crop.of(x).flatten(0, 1)).unflatten(0, x.shape[:2])

        return tiles.blend(picture)

    def beside(self, low: Tensor) -> Tensor:
        return low

    def spare_noise(self, noise: Tensor) -> Tensor | None:
        return None


def space_of(task: Upsample, denoiser: "Denoiser") -> Space:
    """Where an upsampler works: in the latents of its codec, or else in pixels."""
    return Latents(denoiser.codec) if isinstance(denoiser, Upscaler) else Pixels(task, denoiser.filters)


def fold(x: Tensor, patch: int) -> Tensor:
    """[B, T, C, H, W] -> [B, T, C·patch², H/patch, W/patch]."""
    return F.pixel_unshuffle(x.flatten(0, 1), patch).unflatten(0, x.shape[:2])


def unfold(x: Tensor, patch: int) -> Tensor:
    """Inverse of `fold`."""
    return F.pixel_shuffle(x.flatten(0, 1), patch).unflatten(0, x.shape[:2])
