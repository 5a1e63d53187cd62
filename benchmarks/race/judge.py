"""Continuations of held-out drives by a contender, and how far they are from the true ones as clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import clock
from drivesim.clip import SPEED_MPS, Layout, from_uint8, to_uint8
from drivesim.data.store import ClipStore
from drivesim.data.video import iterate
from drivesim.diffusion.sampler import window_noise
from drivesim.diffusion.tasks import Predict
from drivesim.errors import UserError
from drivesim.generation.samplers import SamplerConfig, sample_window
from drivesim.models.denoiser import Denoiser
from drivesim.training.experiment import ExperimentConfig
from eval.distances import frechet
from eval.features import change_features, clip_features, frame_features

BATCH = 4  # windows sampled at once
DISTANCES = ("fd_transnetv2", "fd_efficientnet_lite0_clips")
Clip = np.ndarray  # [T, H, W, 3] uint8


@dataclass(frozen=True)
class Drive:
    """A held-out window of keyframes: frames [T, H, W, 3] uint8, layout [T] with known ego motion."""

    frames: Clip
    layout: Layout


def held_out_drives(store: ClipStore, split: str | None, count: int, experiment: ExperimentConfig) -> list[Drive]:
    """Windows of keyframes that do not overlap, the first of every clip, then the second ones.

    raises  UserError if there are fewer than two
    """
    data, frames = experiment.data, experiment.predict.frames
    clips = store.clips(split) if split else list(store.index.index)
    seconds = store.index["frames"] / store.index["fps"]
    starts = [(i, clip) for clip in clips for i in range(int((float(seconds[clip]) * data.key_fps + 1e-6) // frames))]
    chosen = sorted(starts, key=lambda window: window[0])[:count]
    if len(chosen) < 2:
        raise UserError(
            f"{store.root}: {len(chosen)} held-out windows of {frames} keyframes at {data.key_fps:g} a second, at "
            "least 2 are needed; prepare longer clips, or give another store as real=..."
        )
    drives: list[Drive] = []
    for clip in dict.fromkeys(clip for _, clip in chosen):
        numbers = [i for i, name in chosen if name == clip]
        video = iterate(store.video(clip), fps=data.key_fps, size=(data.height, data.width))
        shown = np.stack(list(islice(video, (max(numbers) + 1) * frames)))
        fps, stored = float(store.index.loc[clip].fps), store.layout(clip, data.slots)
        stored = stored.driven(torch.arange(stored.num_frames) / fps, SPEED_MPS)
        for i in numbers:
            at = torch.arange(i * frames, (i + 1) * frames)
            rows = (at * fps / data.key_fps).round().long().clamp_max(stored.num_frames - 1)
            drives.append(Drive(shown[i * frames : (i + 1) * frames], stored[rows]))
    return drives


class Judge:
    """Knows the true drives and their features."""

    def __init__(
        self, drives: Sequence[Drive], autoencoder, experiment: ExperimentConfig, sampler: SamplerConfig
    ) -> None:
        self.drives, self.autoencoder, self.sampler = drives, autoencoder, sampler
        self.schedule, self.task, self.key_fps = experiment.schedule, experiment.predict, experiment.data.key_fps
        self.real = features([drive.frames for drive in drives])
        pixels = [from_uint8(torch.from_numpy(drive.frames[:1].copy()).permute(0, 3, 1, 2)) for drive in drives]
        with torch.no_grad():
            self.starts = [autoencoder.encode(frame).float()[0] for frame in pixels]  # [C, h, w] each

    @property
    def seconds(self) -> float:
        """Of video that is made of all drives together; the given frames do not count."""
        return len(self.drives) * (self.task.frames - 1) / self.key_fps

    def distances(self, clips: Sequence[Clip]) -> dict[str, float]:
        """To the true drives, by the names of eval's metrics."""
        made = features(clips)
        return {name: frechet(made[name], self.real[name]) for name in DISTANCES}

    def ceiling(self) -> dict[str, float]:
        """Distances of the true drives by way of the autoencoder: no contender can do much better."""
        latents = [self._encode(drive.frames) for drive in self.drives]
        return self.distances([self._decode(latent) for latent in latents])

    def continuations(
        self, denoiser: Denoiser, steps: int, strength: float = 1.0, seed: int = 0
    ) -> tuple[list[Clip], float]:
        """Clips after the first frame of every drive, steered by its layout, and the seconds that denoising took.
        The noise follows from the seed and the number of the drive.

        strength  of sampling, from the carried start frame where it is below 1
        """
        clips: list[Clip] = []
        taken = 0.0
        for first in range(0, len(self.drives), BATCH):
            numbers = range(first, min(first + BATCH, len(self.drives)))
            start = torch.stack([self.starts[i] for i in numbers])
            latents = torch.zeros(len(start), self.task.frames, *start.shape[1:])
            latents[:, 0] = start
            noise = torch.stack([window_noise(tuple(latents.shape[1:]), seed, i) for i in numbers])
            layout = Layout.stack([self.drives[i].layout for i in numbers])
            known = _first_known(self.task, len(start))
            began = clock()
            made = sample_window(
                denoiser, self.schedule, layout, latents, known, noise, steps, self.sampler, guidance=True,
                strength=strength,
            )  # fmt: skip
            taken += clock() - began
            clips += [self._decode(latent) for latent in made]
        return clips, taken

    @torch.no_grad()
    def _encode(self, frames: Clip) -> Tensor:
        return self.autoencoder.encode(from_uint8(torch.from_numpy(frames.copy()).permute(0, 3, 1, 2))).float()

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Clip:
        return to_uint8(self.autoencoder.decode(latents.float())).permute(0, 2, 3, 1).contiguous().numpy()


def _first_known(task: Predict, count: int):
    return task.known(torch.ones(count, dtype=torch.long))


def features(clips: Sequence[Clip]) -> dict[str, np.ndarray]:
    """[n, d] for every distance."""
    coarse = np.stack([clip_features(clip) for clip in clips])
    looks = [frame_features(clip) for clip in clips]
    fine = np.stack([change_features(look[1:], look[:-1]) for look in looks])
    return dict(zip(DISTANCES, (coarse, fine), strict=True))
