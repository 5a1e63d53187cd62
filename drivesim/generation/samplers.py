"""How each trained denoiser is sampled: what it is told, and with which guidance. Used by the cascade and by training's
sample grids alike. What they are given may lie anywhere; what they make lies where the denoiser does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drivesim.clip import Layout
from drivesim.diffusion.guidance import Interval, Term, guided
from drivesim.diffusion.precondition import predict_velocity
from drivesim.diffusion.sampler import Denoise, continuing, sample
from drivesim.diffusion.schedule import TIMESTEPS, Diffusion, ScheduleConfig
from drivesim.diffusion.solvers import check_solver
from drivesim.diffusion.tasks import Known, Upsample, context_planes, noised_context
from drivesim.errors import UserError
from drivesim.machine import probe
from drivesim.models.denoiser import Context, Denoiser


@dataclass
class SamplerConfig:
    """Steps and guidance of every stage."""

    sampler: str = "ddim"  # a name in diffusion/solvers.py: ddim, ddpm, dpm++, dpm++_sde, unipc, euler, euler_a, heun
    image_steps: int = 20
    keyframe_steps: int = 16
    interpolate_steps: int = 6
    upsample_steps: int = 3
    layout_guidance: float = 1.5  # classifier-free guidance of boxes and labels, image LDM and keyframes
    text_guidance: float = 7.5  # of captions, where these are told instead: keyframes of text-to-video
    negative_prompt: str = ""  # what text guidance leads away from
    context_guidance: float = 1.0  # paper, section 3.2; 1 is off, since it doubles the cost of a keyframe
    upsample_noise: float = 0.02  # noise augmentation at sampling time
    temperature: float = 1.0  # scales the noise that sampling starts from; below 1: less variety, less noise left
    detail: float = 0.0  # further scales it by spread^detail in channels that spread less than 1, fine detail mostly:
    # a model of little training tells structure from noise long before it tells detail from noise
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

    def start(self, denoiser: Denoiser, noise: Tensor) -> Tensor:
        """Standard normal noise [B, T, C, h, w] brought to the temperature of each channel."""
        spread = denoiser.latent_std.to(noise).clamp_max(1.0)
        return self.temperature * spread[:, None, None] ** self.detail * noise

    def guided(self, denoiser: Denoiser, schedule: ScheduleConfig, told: "Told", terms: Sequence[Term]) -> Denoise:
        """The denoiser told everything, guided by `terms` as configured."""
        diffusion = Diffusion(schedule)

        def answer(z: Tensor, timestep: Tensor, told: Told) -> Tensor:
            return predict_velocity(denoiser, diffusion, z, timestep, told.planes, told.tokens, told.context)

        interval = Interval(self.guidance_low, self.guidance_high)
        return guided(answer, told, terms, interval, self.guidance_rescale, self.guidance_batched)

    def sample(self, denoise: Denoise, start: Tensor, noise: Tensor, schedule: ScheduleConfig, steps: int) -> Tensor:
        """A sample from `start`; what a stochastic sampler draws on the way follows from the `noise` of the window, of
        which `start` may have nothing left."""
        return sample(
            denoise,
            start,
            schedule,
            steps,
            self.sampler,
            spacing=self.spacing,
            eta=self.eta,
            generators=continuing(noise),
        )


@dataclass(frozen=True)
class Told:
    """What a denoiser is told beside the noisy latents; see `Denoiser.forward`."""

    planes: Tensor
    tokens: Tensor | None = None
    context: Context | None = None


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
    captions: Sequence[str] = (),
) -> Tensor:
    """Fill in a window: latents [B, T, C, h, w] of which `known` are given (the others are ignored), layout [B, T] with
    known ego motion.

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
        made = config.sample(denoise, config.start(denoiser, noise), noise, schedule, steps)
    return mask * latents + (1 - mask) * made


def layout_terms(denoiser: Denoiser, layout: Layout, told: Told, config: SamplerConfig) -> list[Term]:
    """Guidance by the layout, away from one that says nothing; or by the caption, away from the negative prompt."""
    scale = config.text_guidance if denoiser.reads else config.layout_guidance
    if scale == 1.0:
        return []
    nothing = [config.negative_prompt] * len(layout.night)
    height, width = told.planes.shape[-2:]
    planes, tokens = denoiser.condition(unknown_like(layout), height, width, nothing)
    return [Term(scale, replace(told, planes=planes, tokens=tokens))]


@torch.no_grad()
def sample_upsampled(
    denoiser: Denoiser, schedule: ScheduleConfig, task: Upsample, low: Tensor, noise: Tensor, config: SamplerConfig
) -> Tensor:
    """low [B, T, 3, h, w] in [-1, 1] -> [B, T, 3, h·factor, w·factor]; noise [B, T, C, H/patch, W/patch]."""
    low, noise = low.to(_device(denoiser)), noise.to(_device(denoiser))
    with probe().autocast():
        level = torch.full((len(low),), config.upsample_noise, device=low.device)
        # The first channels of the residual's noise serve as the noise of the augmentation, unfolded to white noise of
        # the low resolution as in training: no second draw to keep.
        fold = task.patch // task.factor
        spare = torch.nn.functional.pixel_shuffle(noise[:, :, : 3 * fold**2].flatten(0, 1), fold)
        base, planes = task.condition(low, level, spare.unflatten(0, low.shape[:2]), denoiser.filters)
        denoise = config.guided(denoiser, schedule, Told(planes), [])
        residual = config.sample(denoise, config.upsample_temperature * noise, noise, schedule, config.upsample_steps)
    return (base + task.unfold(residual * task.residual_std)).clamp(-1, 1)


def _device(module: Denoiser) -> torch.device:
    """Where a network lives, and its samples are made. Its weights may wait elsewhere (generation/offload.py)."""
    return module.latent_std.device


def unknown_like(layout: Layout) -> Layout:
    """The unconditional layout of the same shape."""
    nan = torch.full_like(layout.night, float("nan"))
    return replace(layout, night=nan, crowdedness=nan.clone(), known=torch.zeros_like(layout.known))
