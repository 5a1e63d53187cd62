"""The cascade as iterators: keyframes -> x4 -> x4 -> decode -> upsample. Nothing grows with the length of the video.

Every iterator takes and yields single frames. Final frame i is keyframe i / 16 where that is whole; between keyframes
k and k + 1 the first interpolation puts frames 16k + 4, + 8, + 12, the second the rest, so windows share their ends and
no frame comes twice or is missing (paper, section 3.3: T frames become 4·(T - 1) + 1).
"""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from drivesim.clip import Layout
from drivesim.diffusion.sampler import window_noise
from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.tasks import Interpolate, Predict, Upsample
from drivesim.generation.samplers import SamplerConfig, sample_frames, sample_upsampled, sample_window
from drivesim.machine import probe
from drivesim.models.autoencoder import Autoencoder
from drivesim.models.denoiser import Denoiser

LayoutAt = Callable[[Tensor], Layout]  # final frame indices [n], any whole numbers -> layout [n] with ego motion
IMAGE, KEYS, COARSE, FINE, UPSAMPLE = range(5)  # streams of noise


def first_keyframe(
    image: Denoiser,
    schedule: ScheduleConfig,
    layout_at: LayoutAt,
    shape: tuple[int, ...],
    seed: int,
    config: SamplerConfig,
) -> Tensor:
    """A first frame from nothing but its layout, by the image LDM: latents [1, C, h, w]."""
    noise = window_noise((1, 1, *shape), seed, IMAGE, 0)
    return sample_frames(image, schedule, layout_at(torch.zeros(1, dtype=torch.long))[None], noise, config)[0]


def keyframes(
    denoiser: Denoiser,
    schedule: ScheduleConfig,
    task: Predict,
    start: Tensor,
    layout_at: LayoutAt,
    spacing: int,
    seed: int,
    config: SamplerConfig,
) -> Iterator[Tensor]:
    """Endless keyframes [C, h, w] after the start frames [S, C, h, w], S 1 or 2, which are yielded first but for the
    older of two: that one only tells how things move.

    Autoregressive as in the paper: after the first window, two context frames, the last ones made (section 3.2). Only
    the first window starts from what is carried: from windows on windows the start would only be stretched further.
    """
    yield start[-1]
    context, position = start[-2:], 0  # position: key index of the newest context frame
    for window in range(2**31):
        known = task.known(torch.tensor([len(context)]))
        keys = position - (len(context) - 1) + torch.arange(task.frames)
        layout = layout_at(keys * spacing)
        latents = torch.cat([context, context.new_zeros(task.frames - len(context), *context.shape[1:])])[None]
        noise = window_noise(tuple(latents.shape), seed, KEYS, window)
        made = sample_window(
            denoiser,
            schedule,
            layout[None],
            latents,
            known,
            noise,
            config.keyframe_steps,
            config,
            guidance=True,
            strength=config.keyframe_strength if window == 0 else 1.0,
        )[0]
        yield from made[len(context) :]
        position = int(keys[-1])
        context = made[-2:]


def interpolate(
    denoiser: Denoiser,
    schedule: ScheduleConfig,
    task: Interpolate,
    frames: Iterator[Tensor],
    layout_at: LayoutAt,
    spacing: int,
    level: int,
    seed: int,
    config: SamplerConfig,
    batch: int = 4,
) -> Iterator[Tensor]:
    """`factor` - 1 frames between each two; `spacing` final frames lie between the frames that come in. `batch` pairs
    are made at once, which is only a matter of speed: noise belongs to a pair."""
    last = next(frames)
    pair = 0
    yield last
    while ends := list(islice(frames, batch)):
        firsts = torch.stack([last, *ends[:-1]])
        latents = firsts.new_zeros(len(ends), task.frames, *last.shape)
        latents[:, 0], latents[:, -1] = firsts, torch.stack(ends)
        index = torch.arange(pair, pair + len(ends))
        at = index[:, None] * spacing + torch.arange(task.frames) * (spacing // task.factor)
        layout = Layout.stack([layout_at(row) for row in at])
        stream = FINE if level else COARSE
        noise = torch.stack([window_noise(tuple(latents.shape[1:]), seed, stream, int(i)) for i in index])
        known = task.known(torch.full((len(ends),), level))
        made = sample_window(
            denoiser,
            schedule,
            layout,
            latents,
            known,
            noise,
            config.interpolate_steps,
            config,
            guidance=False,
            strength=config.interpolate_strength,
        )
        yield from made[:, 1:].flatten(0, 1)
        last, pair = ends[-1], pair + len(ends)


@torch.no_grad()
def decode(autoencoder: Autoencoder, latents: Iterator[Tensor], window: int = 8) -> Iterator[Tensor]:
    """Pixels [3, H, W] of latents. The temporal decoder sees windows that overlap by two frames, of which each window
    keeps the half it sees both sides of, so that no border between windows shows."""
    overlap = 2 if autoencoder.temporal is not None else 0
    chunk, done = list(islice(latents, window)), 0  # done: frames at its start that the chunk before has yielded
    while len(chunk) > done:
        with probe().autocast():
            video = autoencoder.decode(torch.stack(chunk), len(chunk)).float()
        if len(chunk) < window:  # the last one, kept to its end
            yield from video[done:]
            return
        yield from video[done : window - overlap // 2]
        chunk, done = [*chunk[window - overlap :], *islice(latents, window - overlap)], overlap // 2


def upsample(
    denoiser: Denoiser,
    schedule: ScheduleConfig,
    task: Upsample,
    frames: Iterator[Tensor],
    seed: int,
    config: SamplerConfig,
    portion: int = 8,
) -> Iterator[Tensor]:
    """Full-resolution frames [3, H, W] of low-resolution ones, in portions of 8 frames (paper, section 3.4)."""
    number = 0
    while chunk := list(islice(frames, portion)):
        low = torch.stack(chunk)[None]
        h, w = low.shape[-2] * task.factor // task.patch, low.shape[-1] * task.factor // task.patch
        # The noise of a whole portion, so that the frames of a short last one get what they always get.
        noise = window_noise((1, portion, task.channels, h, w), seed, UPSAMPLE, number)[:, : len(chunk)]
        yield from sample_upsampled(denoiser, schedule, task, low, noise, config)[0]
        number += 1


def enlarge(task: Upsample, frames: Iterator[Tensor]) -> Iterator[Tensor]:
    """Bicubic enlargement: the baseline of the upsampler."""
    for frame in frames:
        yield task.enlarge(frame[None, None])[0, 0].clamp(-1, 1)
