"""How each trained denoiser is sampled: what it is told, and with which guidance. Used by the cascade and by training's
sample grids alike. What they are given may lie anywhere; what they make lies where the denoiser does."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drivesim.clip import Layout
from drivesim.diffusion.precondition import predict_velocity
from drivesim.diffusion.sampler import Denoise, guided, sample, window_noise
from drivesim.diffusion.schedule import Diffusion, ScheduleConfig
from drivesim.diffusion.tasks import Known, context_planes
from drivesim.diffusion.tiles import Crop, Stitch, Tiles
from drivesim.diffusion.upsample import Upsample, space_of
from drivesim.errors import UserError
from drivesim.machine import probe
from drivesim.models.denoiser import Context, Denoiser
from drivesim.models.upscaler import Upscaler


@dataclass
class SamplerConfig:
    """Steps and guidance of every stage."""

    sampler: str = "ddim"  # or dpm++
    image_steps: int = 20
    keyframe_steps: int = 16
    interpolate_steps: int = 6
    upsample_steps: int = 3
    layout_guidance: float = 1.5  # classifier-free guidance of boxes and labels, image LDM and keyframes
    context_guidance: float = 1.0  # paper, section 3.2; 1 is off, since it doubles the cost of a keyframe
    upsample_noise: float = 0.02  # noise augmentation at sampling time; where it is told as a timestep:
    upsample_level: int = 20
    upsample_guidance: float = 1.0  # of a latent upscaler's prompt, away from its negative one; 1 is off
    upsample_tile: int = 0  # low-resolution pixels, each way, that are made at once, which bounds the memory; 0: all
    upsample_overlap: int = 16  # low-resolution pixels that neighbouring tiles share
    upsample_portion: int = 8  # frames that are made at once (paper, section 3.4)
    upsample_portion_overlap: int = 0  # frames that one portion shares with the next; 2 hide the border between them
    temperature: float = 1.0  # scales the noise that sampling starts from; below 1: less variety, less noise left
    detail: float = 0.0  # further scales it by spread^detail in channels that spread less than 1, fine detail mostly:
    # a model of little training tells structure from noise long before it tells detail from noise
    upsample_temperature: float = 1.0

    def start(self, denoiser: Denoiser, noise: Tensor) -> Tensor:
        """Standard normal noise [B, T, C, h, w] brought to the temperature of each channel."""
        spread = denoiser.latent_std.to(noise).clamp_max(1.0)
        return self.temperature * spread[:, None, None] ** self.detail * noise


@torch.no_grad()
def sample_frames(
    denoiser: Denoiser, schedule: ScheduleConfig, layout: Layout, noise: Tensor, config: SamplerConfig
) -> Tensor:
    """Latents [B, T, C, h, w] of frames by themselves: the image LDM. layout [B, T], noise like the latents."""
    device = _device(denoiser)
    layout, noise = layout.to(device), noise.to(device)
    with probe().autocast():
        conditional = _denoise(denoiser, schedule, layout, noise, None)
        null = _denoise(denoiser, schedule, unknown_like(layout), noise, None)
        return sample(
            guided(conditional, null, config.layout_guidance),
            config.start(denoiser, noise),
            schedule,
            config.image_steps,
            config.sampler,
        )


@torch.no_grad()
def sample_window(
    denoiser: Denoiser,
    schedule: ScheduleConfig,
    layout: Layout,
    latents: Tensor,
    known: Known,
    noise: Tensor,
    steps: int,
    config: SamplerConfig,
    guidance: bool,
) -> Tensor:
    """Fill in a window: latents [B, T, C, h, w] of which `known` are given (the others are ignored), layout [B, T] with
    known ego motion.

    returns  [B, T, C, h, w], the known frames as they were
    """
    device = _device(denoiser)
    layout, latents, noise = layout.to(device), latents.to(device), noise.to(device)
    mask = known.mask.to(latents)[..., None, None, None]
    with probe().autocast():
        context = denoiser.encode_context(context_planes(denoiser, latents, known, layout))
        denoise = _denoise(denoiser, schedule, layout, noise, context)
        if guidance:
            nothing = Known(torch.zeros_like(known.mask), known.flag)
            without = denoiser.encode_context(context_planes(denoiser, latents, nothing, layout))
            denoise = guided(denoise, _denoise(denoiser, schedule, layout, noise, without), config.context_guidance)
            denoise = guided(
                denoise, _denoise(denoiser, schedule, unknown_like(layout), noise, context), config.layout_guidance
            )
        made = sample(denoise, config.start(denoiser, noise), schedule, steps, config.sampler)
    return mask * latents + (1 - mask) * made


@torch.no_grad()
def sample_upsampled(
    denoiser: Denoiser,
    schedule: ScheduleConfig,
    task: Upsample,
    low: Tensor,
    noise: Tensor,
    low_noise: Tensor,
    config: SamplerConfig,
    stitch: Stitch | None = None,
) -> Tensor:
    """low [B, T, 3, h, w] in [-1, 1] -> [B, T, 3, h·factor, w·factor], tile by tile.

    noise, low_noise  from `upsampling_noise`
    stitch            joins this portion of a video to the one before
    raises            UserError for tiles that make no sense, or too small a low resolution
    """
    device, (height, width) = _device(denoiser), low.shape[-2:]
    low, noise, low_noise = low.to(device), noise.to(device), low_noise.to(device)
    tiles = upsampling_tiles(denoiser, task, height, width, config)
    space = space_of(task, denoiser)
    with probe().autocast():
        level = task.chosen_level(config.upsample_noise, config.upsample_level).expand(len(low)).to(device)
        planes = task.condition(low, level, low_noise, space)
        told = denoiser, schedule, tiles, planes, task.label(level)
        denoise = guided(_denoise_tiles(*told), _denoise_tiles(*told, negative=True), config.upsample_guidance)
        if stitch is not None:
            denoise = stitch.join(denoise)
        start = config.upsample_temperature * noise
        x = sample(denoise, start, schedule, config.upsample_steps, config.sampler)
        return space.decode(x, low, tiles).clamp(-1, 1)


def upsampling_noise(
    denoiser: Denoiser, task: Upsample, shape: tuple[int, ...], seed: int, *index: int
) -> tuple[Tensor, Tensor]:
    """Standard normal noise for low-resolution frames of shape [B, T, 3, h, w]: that of what is made
    [B, T, C, h', w'], and that of the augmentation [B, T, 3, h, w]."""
    space = space_of(task, denoiser)
    size = (at * task.factor // space.patch for at in shape[-2:])
    noise = window_noise((*shape[:2], space.channels, *size), seed, *index)
    # Where many channels make a cell, some of them serve: no second draw to keep.
    spare = space.spare_noise(noise)
    return noise, window_noise(shape, seed, *index, 1) if spare is None else spare


def upsampling_tiles(denoiser: Denoiser, task: Upsample, height: int, width: int, config: SamplerConfig) -> Tiles:
    """The tiles of a low resolution of height x width. raises UserError where there can be none"""
    space, halved = space_of(task, denoiser), 2 ** (len(denoiser.config.block_out_channels) - 1)
    if (height * task.factor % space.patch, width * task.factor % space.patch) != (0, 0):
        raise UserError(
            f"a low resolution of {height}x{width} does not become whole cells of {space.patch} pixels at "
            f"{task.factor} times the size; crop it to multiples of {math.lcm(space.patch, task.factor) // task.factor}"
        )
    align = math.lcm(space.patch * halved, task.factor) // task.factor
    if min(height, width) < align:
        raise UserError(f"a low resolution of {height}x{width} is too small for the upsampler; give {align} or more")
    return Tiles(height, width, config.upsample_tile, config.upsample_overlap, align)


def check_upsampling(denoiser: Denoiser, task: Upsample, height: int, width: int, config: SamplerConfig) -> None:
    """raises UserError unless frames of height x width can be upsampled as `config` says"""
    upsampling_tiles(denoiser, task, height, width, config)
    task.chosen_level(config.upsample_noise, config.upsample_level)
    Stitch(config.upsample_portion, config.upsample_portion_overlap)


def _denoise_tiles(
    denoiser: Denoiser,
    schedule: ScheduleConfig,
    tiles: Tiles,
    planes: Tensor,
    level: Tensor | None,
    negative: bool = False,
) -> Denoise:
    """The upsampler's denoiser, tile by tile; negative: told the prompt that guidance leads away from."""
    diffusion = Diffusion(schedule)
    asked = torch.full((len(planes),), negative)
    tokens = denoiser.prompted(asked, planes.shape[1]) if isinstance(denoiser, Upscaler) else None

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        def part(crop: Crop) -> Tensor:
            return predict_velocity(
                denoiser, diffusion, crop.of(x), timestep, crop.of(planes), tokens, None, level=level
            )

        return tiles.blend(part)

    return denoise


def _device(module: torch.nn.Module) -> torch.device:
    """Where a network lives, and its samples are made."""
    return next(module.parameters()).device


def _denoise(denoiser: Denoiser, schedule: ScheduleConfig, layout: Layout, noise: Tensor, context: Context | None):
    planes, tokens = denoiser.condition(layout, noise.shape[-2], noise.shape[-1])
    diffusion = Diffusion(schedule)

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        return predict_velocity(denoiser, diffusion, x, timestep, planes, tokens, context)

    return denoise


def unknown_like(layout: Layout) -> Layout:
    """The unconditional layout of the same shape."""
    nan = torch.full_like(layout.night, float("nan"))
    return replace(layout, night=nan, crowdedness=nan.clone(), known=torch.zeros_like(layout.known))
