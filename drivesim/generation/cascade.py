"""The cascade as iterators: keyframes -> x4 -> x4 -> decode -> upsample. Nothing grows with the length of the video.

Every iterator takes and yields single frames, and can be stopped between any two (generation/stage.py). Final frame i
is keyframe i / 16 where that is whole; between keyframes k and k + 1 the first interpolation puts frames 16k + 4, + 8,
+ 12, the second the rest, so windows share their ends and no frame comes twice or is missing (paper, section 3.3: T
frames become 4·(T - 1) + 1).
"""

from collections.abc import Callable, Iterator, Sequence
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
from drivesim.generation.stage import Kept, Stage
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
    start: Tensor | Callable[[], Tensor],
    layout_at: LayoutAt,
    spacing: int,
    seed: int,
    config: SamplerConfig,
) -> Stage:
    """Endless keyframes [C, h, w] after the start frames [S, C, h, w], S 1 or 2, which are yielded first but for the
    older of two: that one only tells how things move. A start that is still to be made is made when it is needed.

    Autoregressive as in the paper: after the first window, two context frames, the last ones made (section 3.2). Only
    the first window starts from what is carried: from windows on windows the start would only be stretched further.
    """
    config = config.of("keyframes")

    def window(kept: Kept) -> Sequence[Tensor]:
        if not kept:
            first = start() if callable(start) else start
            kept.update(context=first[-2:], position=0, window=0)  # position: key index of the newest context frame
            return first[-1:].unbind()
        context, number = kept["context"], kept["window"]
        known = task.known(torch.tensor([len(context)]))
        keys = kept["position"] - (len(context) - 1) + torch.arange(task.frames)
        layout = layout_at(keys * spacing)
        latents = torch.cat([context, context.new_zeros(task.frames - len(context), *context.shape[1:])])[None]
        noise = window_noise(tuple(latents.shape), seed, KEYS, number)
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
            strength=config.keyframe_strength if number == 0 else 1.0,
        )[0]
        kept.update(context=made[-2:], position=int(keys[-1]), window=number + 1)
        return made[len(context) :].unbind()

    return Stage("keyframes", window)


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
) -> Stage:
    """`factor` - 1 frames between each two, in windows of `task.keys` that share their ends; `spacing` final frames
    lie between the frames that come in. About `batch` pairs are made at once, which is only a matter of speed: noise
    belongs to a window. The caption is for a denoiser that reads.

    raises  UserError where the frames end within a window
    """
    steps = task.keys - 1  # pairs a window
    at_once = max(batch // steps, 1)
    config = config.of("interpolate").between()

    def windows(kept: Kept) -> Sequence[Tensor]:
        if not kept:
            kept.update(last=next(frames), window=0)
            return [kept["last"]]
        if not (given := list(islice(frames, at_once * steps))):
            return ()
        last, window = kept["last"], kept["window"]
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
        kept.update(last=given[-1], window=window + count)
        return made[:, 1:].flatten(0, 1).unbind()

    return Stage(f"interpolate {level + 1}", windows, frames)


def decode(autoencoder: Autoencoder, latents: Iterator[Tensor], window: int = 0) -> Stage:
    """Pixels [3, H, W] of latents. The temporal decoder sees windows of frames that overlap, of which each window keeps
    the half it sees both sides of: with aligned neighbours alone no border between windows shows, with layers that see
    all of a window each frame at least sees a quarter of it to each side.

    window  frames decoded at once; 0: as many as the decoder was trained on
    """
    layers = autoencoder.temporal
    window = window or (layers.window if layers else WINDOW)
    overlap = layers.overlap(window) if layers else 0

    @torch.no_grad()
    def decoded(kept: Kept) -> Sequence[Tensor]:
        before = [*kept.get("before", ())]  # frames of the window before, which has shown the first half of them
        chunk, done = [*before, *islice(latents, window - len(before))], len(before) // 2
        if len(chunk) <= done:
            return ()
        stage.meter.evaluations += 1  # it watches denoisers
        with probe().autocast():
            video = autoencoder.decode(torch.stack(chunk), len(chunk)).float()
        kept.clear()
        if len(chunk) < window:  # the last one, kept to its end
            return video[done:].unbind()
        if overlap:
            kept["before"] = torch.stack(chunk[window - overlap :])
        return video[done : window - overlap // 2].unbind()

    stage = Stage("decode", decoded, latents)
    return stage


def upsample(
    denoiser: Denoiser,
    schedule: ScheduleConfig,
    task: Upsample,
    frames: Iterator[Tensor],
    seed: int,
    config: SamplerConfig,
) -> Stage:
    """Full-resolution frames [3, H, W] of low-resolution ones, in portions of 8 frames (paper, section 3.4), of which
    each may share some with the next. Noise belongs to a frame."""
    config = config.of("upsample_temporal")
    portion, overlap = config.upsample_portion, config.upsample_portion_overlap
    stitch, noises = Stitch(portion, overlap), FrameNoise(denoiser, task, seed, portion)

    def portions(kept: Kept) -> Sequence[Tensor]:
        shared = [*kept.get("shared", ())]  # low-resolution frames of the portion before
        more = list(islice(frames, portion - len(shared)))
        if not more:  # then nothing comes that shares the rest
            rest = kept.get("rest", torch.zeros(0))
            kept.clear()
            return rest.unbind()
        low, first = torch.stack([*shared, *more])[None], kept.get("first", 0)
        noise = noises.of(first, low)
        stitch.before = [*kept.get("predictions", ())]
        made = sample_upsampled(denoiser, schedule, task, low, *noise, config, stitch)[0]
        kept.update(first=first + portion - overlap)
        if overlap:
            kept.update(shared=low[0, portion - overlap :], rest=made[portion - overlap :])
            kept.update(predictions=torch.stack(stitch.before))
        return made[: portion - overlap].unbind()

    return Stage("upsample", portions, frames)


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


def enlarge(task: Upsample, frames: Iterator[Tensor]) -> Stage:
    """Bicubic enlargement: the baseline of the upsampler."""

    def one(kept: Kept) -> Sequence[Tensor]:
        return [task.enlarge(frame[None, None])[0, 0].clamp(-1, 1) for frame in islice(frames, 1)]

    return Stage("upsample", one, frames)
