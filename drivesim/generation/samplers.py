"""How each trained denoiser is sampled: what it is told, and with which guidance. Used by the cascade and by training's
sample grids alike. What they are given may lie anywhere; what they make lies where the denoiser does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from drivesim.clip import Layout
from drivesim.diffusion.guidance import Interval, Term, guided
from drivesim.diffusion.precondition import predict_velocity
from drivesim.diffusion.sampler import Denoise, continuing, sample, window_noise
from drivesim.diffusion.schedule import TIMESTEPS, Diffusion, ScheduleConfig
from drivesim.diffusion.solvers import check_solver
from drivesim.diffusion.tasks import Known, context_planes, noised_context
from drivesim.diffusion.tiles import Crop, Stitch, Tiles
from drivesim.diffusion.upsample import Upsample, space_of
from drivesim.errors import UserError
from drivesim.machine import probe
from drivesim.models.conditions import CONDITIONS, check_known, without
from drivesim.models.denoiser import Context, Denoiser
from drivesim.models.upscaler import Upscaler

GUIDANCE = ("layout_guidance", "context_guidance", "interpolate_guidance", "text_guidance", "upsample_guidance")


@dataclass
class SamplerConfig:
    """Steps and guidance of every stage."""

    sampler: str = "ddim"  # a name in diffusion/solvers.py: ddim, ddpm, dpm++, dpm++_sde, unipc, euler, euler_a, heun
    image_steps: int = 20
    keyframe_steps: int = 16
    interpolate_steps: int = 6
    upsample_steps: int = 3
    layout_guidance: float = 1.5  # classifier-free guidance of boxes and labels, image LDM and keyframes
    guidance: dict[str, float] = field(default_factory=dict)  # the same of single conditions by name, on top of it
    text_guidance: float = 7.5  # of captions, where these are told instead: keyframes of text-to-video
    negative_prompt: str = ""  # what text guidance leads away from
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
    keyframe_strength: float = (
        1.0  # share of the steps that is taken in the first window of keyframes; below 1 it starts
    )
    # from the carried start frame, noised so far: sharp as that, and cheaper
    interpolate_strength: float = 1.0
    upsample_temperature: float = 1.0
    spacing: str = "trailing"  # of the timesteps: trailing, or leading as in Stable Diffusion's pipelines
    eta: float = 0.0  # noise drawn at every step of ddim: 0 none, 1 as much as ddpm
    interpolate_guidance: float = (
        1.0  # context guidance of the interpolation; needs interpolate.drop_context in training
    )
    guidance_low: float = 0.0  # timesteps that are guided, as shares of all: 0 is data, 1 is noise
    guidance_high: float = 1.0
    guidance_rescale: float = 0.0  # 0..1, how far guided answers are brought back to the spread of unguided ones
    guidance_batched: bool = True  # all terms of a guided answer in one call of the network
    context_augmentation: int = 0  # timestep to which known frames are noised; needs the tasks' context_augmentation
    distilled: list[str] = field(default_factory=list)  # stages that learned few steps by `drivesim distill`; see `of`

    def check(self, schedule: ScheduleConfig) -> None:
        """raises UserError for what no sampler can do."""
        check_solver(self.sampler, self.spacing, schedule.zero_snr)
        for name in ("eta", "guidance_low", "guidance_high", "guidance_rescale"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"sampler.{name}={getattr(self, name):g}, expected 0 to 1")
        if not 0 <= self.context_augmentation < TIMESTEPS:
            raise UserError(
                f"sampler.context_augmentation={self.context_augmentation}, expected a timestep, 0 to {TIMESTEPS - 1}"
            )

    def __post_init__(self) -> None:
        for name in ("keyframe_strength", "interpolate_strength"):
            if not 0 < (found := getattr(self, name)) <= 1:
                raise UserError(
                    f"sampler.{name} is {found:g}, expected more than 0, up to 1, which is to start from noise"
                )

    def of(self, stage: str) -> "SamplerConfig":
        """The settings that a stage is sampled with: one that was distilled takes the steps that it learned, those of
        plain DDIM, and has its guidance in its weights."""
        if stage not in self.distilled:
            return self
        unguided: dict[str, Any] = dict.fromkeys(GUIDANCE, 1.0)
        return replace(self, sampler="ddim", spacing="trailing", eta=0.0, guidance={}, **unguided)

    def between(self) -> "SamplerConfig":
        """The settings of the interpolation, which is steered by its ends alone."""
        return replace(self, context_guidance=self.interpolate_guidance, layout_guidance=1.0, text_guidance=1.0)

    def start(self, denoiser: Denoiser, noise: Tensor) -> Tensor:
        """Standard normal noise [B, T, C, h, w] brought to the temperature of each channel."""
        spread = denoiser.latent_std.to(noise).clamp_max(1.0)
        return self.temperature * spread[:, None, None] ** self.detail * noise

    def guided(
        self,
        denoiser: Denoiser,
        schedule: ScheduleConfig,
        told: "Told",
        terms: Sequence[Term],
        tiles: Tiles | None = None,
    ) -> Denoise:
        """The denoiser told everything, guided by `terms` as configured, tile by tile where there are `tiles`."""
        diffusion = Diffusion(schedule)

        def answer(z: Tensor, timestep: Tensor, told: Told) -> Tensor:
            if tiles is None:
                seen = told.planes, told.tokens, told.context, told.level
                return predict_velocity(denoiser, diffusion, z, timestep, *seen)

            def part(crop: Crop) -> Tensor:
                cut = crop.of(z), timestep, crop.of(told.planes), told.tokens
                return predict_velocity(denoiser, diffusion, *cut, level=told.level)

            return tiles.blend(part)

        interval = Interval(self.guidance_low, self.guidance_high)
        return guided(answer, told, terms, interval, self.guidance_rescale, self.guidance_batched)

    def sample(
        self,
        denoise: Denoise,
        start: Tensor,
        noise: Tensor,
        schedule: ScheduleConfig,
        steps: int,
        guess: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """A sample from `start`, or from `guess` below a strength of 1; what a stochastic sampler draws on the way
        follows from the `noise` of the window, of which `start` may have nothing left."""
        return sample(
            denoise,
            start,
            schedule,
            steps,
            self.sampler,
            spacing=self.spacing,
            eta=self.eta,
            generators=continuing(noise),
            guess=guess,
            strength=strength,
        )


@dataclass(frozen=True)
class Told:
    """What a denoiser is told beside the noisy latents; see `Denoiser.forward`."""

    planes: Tensor
    tokens: Tensor | None = None
    context: Context | None = None
    level: Tensor | None = None


@torch.no_grad()
def sample_frames(
    denoiser: Denoiser,
    schedule: ScheduleConfig,
    layout: Layout,
    noise: Tensor,
    config: SamplerConfig,
    captions: Sequence[str] = (),
) -> Tensor:
    """Latents [B, T, C, h, w] of frames of which none is known: the image LDM, text-to-video. layout [B, T], captions
    one for each of B, noise like the latents."""
    device = _device(denoiser)
    layout, noise = layout.to(device), noise.to(device)
    with probe().autocast():
        told = Told(*denoiser.condition(layout, noise.shape[-2], noise.shape[-1], captions))
        denoise = config.guided(denoiser, schedule, told, layout_terms(denoiser, layout, told, config))
        return config.sample(denoise, config.start(denoiser, noise), noise, schedule, config.image_steps)


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
    strength: float = 1.0,
    captions: Sequence[str] = (),
) -> Tensor:
    """Fill in a window: latents [B, T, C, h, w] of which `known` are given (the others are ignored), layout [B, T] with
    known ego motion.

    strength  of what sampling makes of the carried frames, see `sampler.sample`; 1: they are only told
    returns  [B, T, C, h, w], the known frames as they were
    """
    device = _device(denoiser)
    layout, latents, noise = layout.to(device), latents.to(device), noise.to(device)
    mask = known.mask.to(latents)[..., None, None, None]
    with probe().autocast():
        seen = latents
        if known.noised is not None:
            timestep = torch.full((len(latents),), config.context_augmentation)
            drawn = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in continuing(noise.neg())])
            seen, known = noised_context(latents, known, timestep, drawn, Diffusion(schedule))
        context = denoiser.encode_context(context_planes(denoiser, seen, known, layout))
        told = Told(*denoiser.condition(layout, noise.shape[-2], noise.shape[-1], captions), context)
        terms = []
        if guidance and config.context_guidance != 1.0:
            nothing = replace(known, mask=torch.zeros_like(known.mask))
            without = denoiser.encode_context(context_planes(denoiser, latents, nothing, layout))
            terms.append(Term(config.context_guidance, replace(told, context=without)))
        if guidance:
            terms += layout_terms(denoiser, layout, told, config)
        denoise = config.guided(denoiser, schedule, told, terms)
        guess = context.held.float() if denoiser.carries and bool(context.given.all()) else None
        made = config.sample(denoise, config.start(denoiser, noise), noise, schedule, steps, guess, strength)
    return mask * latents + (1 - mask) * made


def layout_terms(denoiser: Denoiser, layout: Layout, told: Told, config: SamplerConfig) -> list[Term]:
    """Guidance by the layout: away from one that says nothing, and by single conditions: away from one that says all
    but it. There is none for what the layout does not tell, where both say the same. Of a denoiser that reads, guidance
    by the caption, away from the negative prompt.

    raises  UserError if a condition is to guide that the denoiser is not told
    """
    nothing = unknown_like(layout)
    if denoiser.reads:
        negative = [config.negative_prompt] * len(layout.night)
        planes, tokens = denoiser.condition(nothing, told.planes.shape[-2], told.planes.shape[-1], negative)
        return [Term(config.text_guidance, replace(told, planes=planes, tokens=tokens))]
    check_known("guidance", config.guidance, denoiser.config.conditions)
    less = [(config.layout_guidance, nothing)]
    for name, scale in config.guidance.items():
        if CONDITIONS[name].told(layout).any():
            less.append((scale, without(layout, [name])))

    def but(layout: Layout) -> Told:
        planes, tokens = denoiser.condition(layout, *told.planes.shape[-2:])
        return replace(told, planes=planes, tokens=tokens)

    return [Term(scale, but(layout)) for scale, layout in less if scale != 1.0]


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
        told, terms = Told(planes, level=task.label(level)), []
        if isinstance(denoiser, Upscaler):
            told, less = (replace(told, tokens=_prompt(denoiser, low, negative)) for negative in (False, True))
            terms = [Term(config.upsample_guidance, less)]
        denoise = config.guided(denoiser, schedule, told, terms, tiles)
        if stitch is not None:
            denoise = stitch.join(denoise)
        x = config.sample(denoise, config.upsample_temperature * noise, noise, schedule, config.upsample_steps)
        return space.decode(x, low, tiles).clamp(-1, 1)


def _prompt(denoiser: Upscaler, low: Tensor, negative: bool) -> Tensor:
    """Tokens of the prompt, or of the one that guidance leads away from, for every frame of low [B, T, 3, h, w]."""
    return denoiser.prompted(torch.full((len(low),), negative), low.shape[1])


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


def _device(module: Denoiser) -> torch.device:
    """Where a network lives, and its samples are made. Its weights may wait elsewhere (generation/offload.py)."""
    return module.latent_std.device


def unknown_like(layout: Layout) -> Layout:
    """The unconditional layout of the same shape."""
    return without(layout, CONDITIONS)
