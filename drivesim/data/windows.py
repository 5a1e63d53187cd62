"""Random windows of a store: `dataset[i]` depends on i and the seed alone, so a resumed run sees what it would have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from drivesim.clip import SPEED_MPS, Layout, from_uint8
from drivesim.data.store import ClipStore
from drivesim.data.video import read_window
from drivesim.errors import UserError


class Reader(Protocol):
    """Where windows come from: cached latents, cached frames, or the stored video itself."""

    def window(self, clip: str, start: int, count: int, stride: int, rng: np.random.Generator) -> Tensor: ...


@dataclass
class VideoPatches:
    """Random patches of the stored video at full resolution, decoded on the fly: [T, 3, height, width] in [-1, 1]."""

    store: ClipStore
    height: int
    width: int

    def __post_init__(self) -> None:
        index = self.store.index
        small = index[(index["height"] < self.height) | (index["width"] < self.width)]
        if len(small):
            clip = small.iloc[0]
            raise UserError(
                f"{self.store.root}: clip {clip.name} is {clip.height}x{clip.width}, the upsampler trains "
                f"on patches of {self.height}x{self.width}; prepare the store larger, or lower "
                "config.data.height and width"
            )

    def window(self, clip: str, start: int, count: int, stride: int, rng: np.random.Generator) -> Tensor:
        video = torch.from_numpy(read_window(self.store.video(clip), start, count, stride))
        y = int(rng.integers(0, video.shape[1] - self.height + 1))
        x = int(rng.integers(0, video.shape[2] - self.width + 1))
        return from_uint8(video[:, y : y + self.height, x : x + self.width].permute(0, 3, 1, 2))


@dataclass(frozen=True)
class WindowSpec:
    """frames at fps; level is handed to the task (interpolation: 0 coarse, 1 fine). fps 0: any clip, its own rate."""

    frames: int
    fps: float
    level: int = 0


@dataclass
class Batch:
    """x [B, T, ...] latents or pixels, layout [B, T], level [B]."""

    x: Tensor
    layout: Layout
    level: Tensor

    def to(self, *args, **kwargs) -> "Batch":
        return Batch(self.x.to(*args, **kwargs), self.layout.to(*args, **kwargs), self.level.to(*args, **kwargs))

    def pin_memory(self) -> "Batch":
        return Batch(self.x.pin_memory(), self.layout.map(Tensor.pin_memory), self.level.pin_memory())


def collate(items: Sequence[tuple[Tensor, Layout, int]]) -> Batch:
    x, layouts, levels = zip(*items, strict=True)
    return Batch(torch.stack(x), Layout.stack(layouts), torch.tensor(levels))


class WindowDataset(Dataset):
    """Endless random windows of the clips of a split.

    A clip serves a spec when its rate is a whole multiple of the spec's and it is long enough; clips are drawn in
    proportion to the seconds they hold, so that every moment is equally likely.
    raises  UserError when no clip serves one of the specs
    """

    def __init__(
        self,
        store: ClipStore,
        reader: Reader,
        split: str,
        specs: Sequence[WindowSpec],
        seed: int,
        slots: int = 24,
        length: int = 2**31,
    ) -> None:
        self.store, self.reader, self.seed, self.slots, self.length = store, reader, seed, slots, length
        self.specs = list(specs)
        self._layouts: dict[str, Layout] = {}
        self.choices = [self._choices(spec, split) for spec in self.specs]
        for spec, (names, *_) in zip(self.specs, self.choices, strict=True):
            if not names:
                rate = f" at {spec.fps:g} fps" if spec.fps else ""
                raise UserError(
                    f"{store.root}: no {split} clip is long enough for a window of {spec.frames} frames"
                    f"{rate}; prepare longer clips, or at a frame rate that is a whole multiple"
                )

    def _choices(self, spec: WindowSpec, split: str) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """Clips that serve a spec: names, strides, number of starts, probabilities."""
        rows = self.store.index[self.store.index["split"] == split]
        stride = (rows["fps"] / spec.fps) if spec.fps else rows["fps"] * 0 + 1
        whole = (stride.round() >= 1) & ((stride - stride.round()).abs() < 1e-3)
        starts = rows["frames"] - (spec.frames - 1) * stride.round()
        rows, stride, starts = (t[whole & (starts > 0)] for t in (rows, stride.round().astype(int), starts))
        seconds = (starts / rows["fps"]).to_numpy()
        return list(rows.index), stride.to_numpy(), starts.to_numpy().astype(int), seconds / max(seconds.sum(), 1e-9)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> tuple[Tensor, Layout, int]:
        rng = np.random.default_rng((self.seed, i))
        which = int(rng.integers(len(self.specs)))
        spec, (names, strides, starts, share) = self.specs[which], self.choices[which]
        clip = int(rng.choice(len(names), p=share))
        start, stride = int(rng.integers(starts[clip])), int(strides[clip])
        x = self.reader.window(names[clip], start, spec.frames, stride, rng)
        frames = start + stride * torch.arange(spec.frames)
        return x, self.layout(names[clip])[frames], spec.level

    def layout(self, clip: str) -> Layout:
        if clip not in self._layouts:
            info = self.store.index.loc[clip]
            seconds = torch.arange(int(info.frames)) / float(info.fps)
            self._layouts[clip] = self.store.layout(clip, self.slots).driven(seconds, SPEED_MPS)
        return self._layouts[clip]


class WindowModule(pl.LightningDataModule):
    """Training windows from the training split; resumes at the sample where the checkpoint stopped."""

    def __init__(self, dataset: WindowDataset, batch_size: int, workers: int = 0) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.workers = dataset, batch_size, workers

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        world, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1 if trainer else 0
        # Rank r of w takes every w-th sample: which samples a step sees does not depend on the number of processes.
        order = range(done * self.batch_size * world + rank, len(self.dataset), world)
        return DataLoader(
            self.dataset,
            self.batch_size,
            sampler=order,
            num_workers=self.workers,  # type: ignore[arg-type]
            collate_fn=collate,
            persistent_workers=self.workers > 0,
        )
