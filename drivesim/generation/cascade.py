"""The cascade as iterators: keyframes -> x4 -> x4 -> decode -> upsample. Nothing grows with the length of the video.

Every iterator takes and yields single frames. Final frame i is keyframe i / 16 where that is whole; between keyframes
k and k + 1 the first interpolation puts frames 16k + 4, + 8, + 12, the second the rest, so windows share their ends and
no frame comes twice or is missing (paper, section 3.3: T frames become 4·(T - 1) + 1).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from drivesim.clip import Layout
from drivesim.diffusion.sampler import window_noise
from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.tasks import Interpolate, Predict
from drivesim.diffusion.tiles import Stitch
from drivesim.diffusion.upsample import Upsample
from drivesim.generation.samplers import (
    SamplerConfig,
    sample_frames,
    sample_upsampled,
    sample_window,
    upsampling_noise,
)
from drivesim.machine import probe
from drivesim.models.autoencoder import Autoencoder
from drivesim.models.denoiser import Denoiser
from drivesim.models.video_decoder import WINDOW

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
    config = config.of("keyframes")
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
    caption: str = "",
) -> Iterator[Tensor]:
    """`factor` - 1 frames between each two, in windows of `task.keys` that share their ends; `spacing` final frames
    lie between the frames that come in. About `batch` pairs are made at once, which is only a matter of speed: noise
    belongs to a window. The caption is for a denoiser that reads.

    raises  UserError where the frames end within a window
    """
    steps = task.keys - 1  # pairs a window
    at_once = max(batch // steps, 1)
    config = config.of("interpolate").between()
    last = next(frames)
    window = 0
    yield last
    while given := list(islice(frames, at_once * steps)):
        task.frames_of(1 + window * steps + len(given))  # refuses a part of a window
        keys = torch.stack([last, *given])
        count = len(given) // steps
        latents = keys.new_zeros(count, task.frames, *last.shape)
        latents[:, :: task.factor] = torch.stack([keys[i * steps : i * steps + task.keys] for i in range(count)])
        index = torch.arange(window, window + count)
        at = index[:, None] * steps * spacing + torch.arange(task.frames) * (spacing // task.factor)
        layout = Layout.stack([layout_at(row) for row in at])
        stream = FINE if level else COARSE
        noise = torch.stack([window_noise(tuple(latents.shape[1:]), seed, stream, int(i)) for i in index])
        known = task.known(torch.full((count,), level))
        made = sample_window(
            denoiser,
            schedule,
            layout,
            latents,
            known,
            noise,
            config.interpolate_steps,
            config,
            guidance=True,
            strength=config.interpolate_strength,
            captions=[caption] * count,
        )
        yield from made[:, 1:].flatten(0, 1)
        last, window = given[-1], window + count


@torch.no_grad()
def decode(autoencoder: Autoencoder, latents: Iterator[Tensor], window: int = 0) -> Iterator[Tensor]:
    """Pixels [3, H, W] of latents. The temporal decoder sees windows of frames that overlap, of which each window keeps
    the half it sees both sides of: with aligned neighbours alone no border between windows shows, with layers that see
    all of a window each frame at least sees a quarter of it to each side.

    window  frames decoded at once; 0: as many as the decoder was trained on
    """
    layers = autoencoder.temporal
    window = window or (layers.window if layers else WINDOW)
    overlap = layers.overlap(window) if layers else 0
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
) -> Iterator[Tensor]:
    """Full-resolution frames [3, H, W] of low-resolution ones, in portions of 8 frames (paper, section 3.4), of which
    each may share some with the next. Noise belongs to a frame."""
    config = config.of("upsample_temporal")
    portion, overlap = config.upsample_portion, config.upsample_portion_overlap
    stitch, noises = Stitch(portion, overlap), FrameNoise(denoiser, task, seed, portion)
    chunk, first = list(islice(frames, portion)), 0
    while chunk:
        low = torch.stack(chunk)[None]
        noise = noises.of(first, low)
        made = sample_upsampled(denoiser, schedule, task, low, *noise, config, stitch)[0]
        yield from made[: portion - overlap]
        more = list(islice(frames, portion - overlap))
        if not more:  # then nothing comes that shares the rest
            yield from made[portion - overlap :]
        chunk, first = (chunk[portion - overlap :] + more if more else []), first + portion - overlap


@dataclass
class FrameNoise:
    """Noise of every frame of an endless video, drawn a portion of frames at a time, from (seed, frame) alone."""

    denoiser: Denoiser
    task: Upsample
    seed: int
    portion: int
    drawn: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def of(self, first: int, low: Tensor) -> tuple[Tensor, Tensor]:
        """That of low [1, T, 3, h, w], whose first frame has this number, as `upsampling_noise` gives it."""
        numbers = range(first // self.portion, (first + low.shape[1] - 1) // self.portion + 1)
        shape = (1, self.portion, *low.shape[2:])
        self.drawn = {n: self.drawn.get(n) or self._draw(shape, n) for n in numbers}
        start = first - numbers[0] * self.portion
        both = zip(*self.drawn.values(), strict=True)
        noise, low_noise = (torch.cat(parts, 1)[:, start : start + low.shape[1]] for parts in both)
        return noise, low_noise

    def _draw(self, shape: tuple[int, ...], number: int) -> tuple[Tensor, Tensor]:
        return upsampling_noise(self.denoiser, self.task, shape, self.seed, UPSAMPLE, number)


def enlarge(task: Upsample, frames: Iterator[Tensor]) -> Iterator[Tensor]:
    """Bicubic enlargement: the baseline of the upsampler."""
    for frame in frames:
        yield task.enlarge(frame[None, None])[0, 0].clamp(-1, 1)
