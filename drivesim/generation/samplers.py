"""How each trained denoiser is sampled: what it is told, and with which guidance. Used by the cascade and by training's
sample grids alike. What they are given may lie anywhere; what they make lies where the denoiser does."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drivesim.clip import Layout
from drivesim.diffusion.precondition import predict_velocity
from drivesim.diffusion.sampler import guided, sample
from drivesim.diffusion.schedule import Diffusion, ScheduleConfig
from drivesim.diffusion.tasks import Known, Upsample, context_planes
from drivesim.errors import UserError
from drivesim.machine import probe
from drivesim.models.denoiser import Context, Denoiser


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
    upsample_noise: float = 0.02  # noise augmentation at sampling time
    temperature: float = 1.0  # scales the noise that sampling starts from; below 1: less variety, less noise left
    detail: float = 0.0  # further scales it by spread^detail in channels that spread less than 1, fine detail mostly:
    # a model of little training tells structure from noise long before it tells detail from noise
    keyframe_strength: float = (
        1.0  # share of the steps that is taken in the first window of keyframes; below 1 it starts
    )
    # from the carried start frame, noised so far: sharp as that, and cheaper
    interpolate_strength: float = 1.0
    upsample_temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("keyframe_strength", "interpolate_strength"):
            if not 0 < (found := getattr(self, name)) <= 1:
                raise UserError(
                    f"sampler.{name} is {found:g}, expected more than 0, up to 1, which is to start from noise"
                )

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
    strength: float = 1.0,
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
        context = denoiser.encode_context(context_planes(denoiser, latents, known, layout))
        denoise = _denoise(denoiser, schedule, layout, noise, context)
        if guidance:
            nothing = Known(torch.zeros_like(known.mask), known.flag)
            without = denoiser.encode_context(context_planes(denoiser, latents, nothing, layout))
            denoise = guided(denoise, _denoise(denoiser, schedule, layout, noise, without), config.context_guidance)
            denoise = guided(
                denoise, _denoise(denoiser, schedule, unknown_like(layout), noise, context), config.layout_guidance
            )
        guess = context.held.float() if denoiser.carries and bool(context.given.all()) else None
        made = sample(denoise, config.start(denoiser, noise), schedule, steps, config.sampler, guess, strength)
    return mask * latents + (1 - mask) * made


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
        diffusion = Diffusion(schedule)
        base, planes = task.condition(low, level, spare.unflatten(0, low.shape[:2]), denoiser.filters)

        def denoise(x: Tensor, timestep: Tensor) -> Tensor:
            return predict_velocity(denoiser, diffusion, x, timestep, planes)

        residual = sample(denoise, config.upsample_temperature * noise, schedule, config.upsample_steps, config.sampler)
    return (base + task.unfold(residual * task.residual_std)).clamp(-1, 1)


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
