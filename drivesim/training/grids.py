"""What a diffusion stage shows of itself while it trains: samples beside the held-out windows they were asked for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from drivesim.clip import to_uint8
from drivesim.data.windows import Batch
from drivesim.diffusion.sampler import window_noise
from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.tasks import Frames
from drivesim.diffusion.upsample import Upsample
from drivesim.generation.draw import draw_layout
from drivesim.generation.samplers import SamplerConfig, sample_frames, sample_upsampled, sample_window, upsampling_noise
from drivesim.models.denoiser import Denoiser


class GridMaker(Protocol):
    """Draws a picture [H, W, 3] uint8 of what a denoiser makes."""

    def __call__(self, denoiser: Denoiser) -> np.ndarray: ...


@dataclass
class LatentGrid:
    """Real frames with the asked boxes above, samples below; a row pair a window."""

    batch: Batch
    decode: Callable[[Tensor], Tensor]
    schedule: ScheduleConfig
    task: Frames
    sampler: SamplerConfig
    rows: int = 3

    def __call__(self, denoiser: Denoiser) -> np.ndarray:
        batch = self.batch[: self.rows]
        config = self.sampler
        noise = window_noise(tuple(batch.x.shape), 0, 0)
        if not self.task.context_channels:
            config = replace(config, image_steps=config.keyframe_steps) if self.task.temporal else config
            made = sample_frames(denoiser, self.schedule, batch.layout, noise, config, batch.captions)
        else:
            counts = torch.ones(len(batch.x), dtype=torch.long)
            known = self.task.known(counts if hasattr(self.task, "probabilities") else batch.level)  # type: ignore
            made = sample_window(
                denoiser,
                self.schedule,
                batch.layout,
                batch.x,
                known,
                noise,
                config.keyframe_steps,
                config,
                guidance=False,
                captions=batch.captions,
            )
        rows = []
        for i in range(len(made)):
            real = [draw_layout(_picture(frame), batch.layout[i, t]) for t, frame in enumerate(self.decode(batch.x[i]))]
            fake = [_picture(frame) for frame in self.decode(made[i])]
            rows += [np.concatenate(real, 1), np.concatenate(fake, 1)]
        return np.concatenate(rows, 0)


@dataclass
class UpsampleGrid:
    """Bicubic, sampled and real, side by side."""

    batch: Batch
    schedule: ScheduleConfig
    task: Upsample
    sampler: SamplerConfig
    rows: int = 3

    def __call__(self, denoiser: Denoiser) -> np.ndarray:
        high = self.batch.x[: self.rows]
        low = self.task.shrink(high)
        noise = upsampling_noise(denoiser, self.task, tuple(low.shape), 0, 0)
        made = sample_upsampled(denoiser, self.schedule, self.task, low, *noise, self.sampler)
        rows = [
            np.concatenate([_picture(x[i, 0]) for x in (self.task.enlarge(low), made, high)], 1)
            for i in range(len(high))
        ]
        return np.concatenate(rows, 0)


def _picture(frame: Tensor) -> np.ndarray:
    """[3, H, W] in [-1, 1] -> [H, W, 3] uint8."""
    return to_uint8(frame).permute(1, 2, 0).contiguous().cpu().numpy()
