"""Random windows of a store: `dataset[i]` depends on i and the seed alone, so a resumed run sees what it would have."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from drivesim.clip import SPEED_MPS, Layout, from_uint8
from drivesim.data.augment import AugmentConfig, change_pixels
from drivesim.data.balance import groups, shares
from drivesim.data.recent import Recent
from drivesim.data.store import ClipStore
from drivesim.data.video import read_window
from drivesim.errors import UserError

LAYOUT_FRAMES = 2**17  # frames whose layouts a process keeps: 170 MB of 24 boxes each
NAMES_AT_ONCE = 10_000  # as Python texts a million names take 100 MB


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


@dataclass
class Mirrored:
    """A reader of pixels, seen in a mirror. (Latents are not: the latent of a mirrored frame is no mirrored latent.)"""

    reader: Reader

    def window(self, clip: str, start: int, count: int, stride: int, rng: np.random.Generator) -> Tensor:
        return self.reader.window(clip, start, count, stride, rng).flip(-1)


@dataclass(frozen=True)
class WindowSpec:
    """frames at fps; level is handed to the task (interpolation: 0 coarse, 1 fine). fps 0: any clip, its own rate."""

    frames: int
    fps: float
    level: int = 0


@dataclass
class Batch:
    """x [B, T, ...] latents or pixels, layout [B, T], level [B]; captions: B texts, each empty where unknown;
    numbers: of the B windows in their data set, see `WindowDataset.place`; none of windows from elsewhere."""

    x: Tensor
    layout: Layout
    level: Tensor
    captions: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.captions = self.captions or [""] * len(self.x)

    def to(self, *args, **kwargs) -> "Batch":
        layout, level = self.layout.to(*args, **kwargs), self.level.to(*args, **kwargs)
        return Batch(self.x.to(*args, **kwargs), layout, level, self.captions, self.numbers)

    def pin_memory(self) -> "Batch":
        layout, level = self.layout.map(Tensor.pin_memory), self.level.pin_memory()
        return Batch(self.x.pin_memory(), layout, level, self.captions, self.numbers)

    def __getitem__(self, clips: slice) -> "Batch":
        """Some of its clips."""
        return Batch(self.x[clips], self.layout[clips], self.level[clips], self.captions[clips], self.numbers[clips])


def collate(items: Sequence[tuple[Tensor, Layout, int, str, int]]) -> Batch:
    x, layouts, levels, captions, numbers = zip(*items, strict=True)
    return Batch(torch.stack(x), Layout.stack(layouts), torch.tensor(levels), list(captions), list(numbers))


@dataclass(frozen=True)
class Choices:
    """Where the windows of a spec may begin, in the clips that serve it: arrays of one length.

    rows        of the index
    strides     frames of the clip from one of the window to the next
    starts      how many frames a window may begin at, from the first on
    cumulative  running sum of how likely each clip is drawn; the last is 1
    """

    rows: np.ndarray
    strides: np.ndarray
    starts: np.ndarray
    cumulative: np.ndarray

    def draw(self, rng: np.random.Generator) -> tuple[int, int, int]:
        """Row, first frame, stride."""
        clip = int(self.cumulative.searchsorted(rng.random(), side="right"))
        return int(self.rows[clip]), int(rng.integers(self.starts[clip])), int(self.strides[clip])


class WindowDataset(Dataset):
    """Endless random windows of the clips of a split.

    A clip serves a spec when its rate is a whole multiple of the spec's and it is long enough; clips are drawn in
    proportion to the seconds they hold, so that every moment is equally likely. With a tag to `balance` by (see
    balance.py), every value of the tag that serves a spec is equally likely, and every moment within one.

    augment   changes to the windows; crop and jitter are for readers of pixels
    mirrored  where mirrored windows come from; by default the pixels of `reader` are mirrored
    raises    UserError when no clip serves one of the specs, or there is no such tag
    """

    def __init__(
        self,
        store: ClipStore,
        reader: Reader,
        split: str,
        specs: Sequence[WindowSpec],
        seed: int,
        slots: int = 24,
        balance: str = "",
        augment: AugmentConfig | None = None,
        mirrored: Reader | None = None,
        length: int = 2**31,
    ) -> None:
        self.store, self.reader, self.seed, self.slots, self.length = store, reader, seed, slots, length
        self.specs, self.balance, self.augment = list(specs), balance, augment or AugmentConfig()
        self.mirrored = mirrored or Mirrored(reader)
        group = groups(store, balance)
        self.choices = [self._choices(spec, split, group) for spec in self.specs]
        for spec, choices in zip(self.specs, self.choices, strict=True):
            if not len(choices.rows):
                rate = f" at {spec.fps:g} fps" if spec.fps else ""
                raise UserError(
                    f"{store.root}: no {split} clip is long enough for a window of {spec.frames} frames"
                    f"{rate}; prepare longer clips, or at a frame rate that is a whole multiple"
                )
        kept = LAYOUT_FRAMES // max(int(store.index["frames"].mean()), 1)
        self.layout = Recent(self._layout, max(kept, 16))

    def _choices(self, spec: WindowSpec, split: str, group: np.ndarray) -> Choices:
        """Clips that serve a spec."""
        index = self.store.index
        fps, frames = index["fps"].to_numpy(), index["frames"].to_numpy()
        exact = fps / spec.fps if spec.fps else np.ones_like(fps)
        stride = exact.round()
        starts = frames - (spec.frames - 1) * stride
        whole = (stride >= 1) & (np.abs(exact - stride) < 1e-3)
        rows = np.flatnonzero((index["split"] == split).to_numpy() & whole & (starts > 0))
        cumulative = np.cumsum(shares(starts[rows] / fps[rows], group[rows]))
        stride, starts = stride[rows].astype(np.int32), starts[rows].astype(np.int32)
        return Choices(rows.astype(np.int32), stride, starts, cumulative / cumulative[-1:])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> tuple[Tensor, Layout, int, str, int]:
        """A window, its layout, the level of its spec, what the clip shows in words, empty where unknown, and i."""
        spec, row, start, stride, rng = self._drawn(i)
        clip = self.store.index.index[row]
        mirror = self.augment.flip > 0 and rng.random() < self.augment.flip
        x = (self.mirrored if mirror else self.reader).window(clip, start, spec.frames, stride, rng)
        layout = self.layout(clip)[start + stride * torch.arange(spec.frames)]
        layout = layout.mirrored() if mirror else layout
        x, layout = change_pixels(self.augment, x, layout, rng)
        return x, layout, spec.level, str(self.store.index["caption"].iat[row]), i

    def place(self, i: int) -> str:
        """Where window i lies, for people: clip, first frame, and how many of the clip's frames it is to the next."""
        _, row, start, stride, _ = self._drawn(i)
        return f"clip {self.store.index.index[row]} from frame {start}" + (f" by {stride}" if stride > 1 else "")

    def _drawn(self, i: int) -> tuple[WindowSpec, int, int, int, np.random.Generator]:
        """Spec, row of the index, first frame, stride, and the generator of all that is drawn later."""
        rng = np.random.default_rng((self.seed, i))
        which = int(rng.integers(len(self.specs)))
        return self.specs[which], *self.choices[which].draw(rng), rng

    def _layout(self, clip: str) -> Layout:
        layout = self.store.layout(clip, self.slots)
        seconds = torch.arange(layout.num_frames) / float(self.store.row(clip).fps)
        return layout.driven(seconds, SPEED_MPS)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides which windows are drawn, and what is done to them."""
        drawn = hashlib.sha256()
        for choices in self.choices:
            for rows in np.array_split(choices.rows, len(choices.rows) // NAMES_AT_ONCE + 1):
                drawn.update("\n".join(self.store.index.index[rows]).encode())
            drawn.update(choices.strides.tobytes())
            drawn.update(choices.starts.tobytes())
        return {
            "seed": self.seed,
            "where": self.store.selection,
            "balance": self.balance,
            "augment": asdict(self.augment),
            "windows": [asdict(spec) for spec in self.specs],
            "clips": drawn.hexdigest(),
        }
