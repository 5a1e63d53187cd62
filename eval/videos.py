"""Sets of videos to compare: a folder of files, one file, or a split of a clip store; read as windows, in a stream."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from drivesim.data.clip_file import ClipFile
from drivesim.data.store import ClipStore
from drivesim.data.video import iterate, probe
from drivesim.errors import UserError

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm")


@dataclass(frozen=True)
class Video:
    """One file, or one clip of a store. Sizes in pixels; `frames` is what the header promises."""

    name: str
    path: Path | ClipFile
    fps: float
    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Window:
    """Consecutive frames of one video.

    frames  [T, H, W, 3] uint8 RGB
    start   index of the first frame, at the rate the window was read with
    """

    video: Video
    start: int
    frames: np.ndarray
    fps: float

    @property
    def times(self) -> np.ndarray:
        """[T] seconds since the start of the video."""
        return (self.start + np.arange(len(self.frames))) / self.fps


@dataclass(frozen=True)
class VideoSet:
    """Videos under one label, in the order of their names. `store` is set when they come from a clip store."""

    name: str
    root: Path
    videos: tuple[Video, ...]
    store: ClipStore | None = None

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the first video."""
        return self.videos[0].height, self.videos[0].width

    def find(self, name: str) -> Video | None:
        return next((video for video in self.videos if video.name == name), None)


def open_set(name: str, source: Path | str, split: str | None = None, limit: int | None = None) -> VideoSet:
    """Open a folder of videos, a video file, or a clip store (of which `split`, or everything).

    raises  UserError when nothing is there, when it holds no video, or when a file cannot be read (named)
    """
    root = Path(source)
    if not root.exists():
        raise UserError(f"{name}={root} does not exist; give a folder of videos, a video or a clip store")
    store = ClipStore(root) if (root / "store.json").exists() else None
    paths: Mapping[str, Path | ClipFile]
    if store is not None:
        paths = {clip: store.video(clip) for clip in store.clips(split)}
        where = f"split {split} of the clip store {root}" if split else f"the clip store {root}"
    else:
        files = [root] if root.is_file() else sorted(p for p in root.iterdir() if p.suffix.lower() in SUFFIXES)
        paths = {file.stem: file for file in files}
        where = str(root)
    if not paths:
        raise UserError(f"{name}: no videos in {where}; expected {', '.join(SUFFIXES)} files or another split")
    chosen = list(paths.items())[:limit]
    return VideoSet(name, root, tuple(_describe(path, clip) for clip, path in chosen), store)


def _describe(path: Path | ClipFile, name: str) -> Video:
    info = probe(path)
    if info.fps <= 0:
        raise UserError(f"{path} has no frame rate; encode it again")
    return Video(name, path, info.fps, info.frames, info.height, info.width)


def read_frames(video: Video, fps: float | None = None, size: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
    """Frames [H, W, 3] uint8 RGB, one after the other; see `drivesim.data.video.iterate`.

    raises  UserError naming a file that breaks off: a metric must not silently judge the half that is left
    """
    frames = iterate(video.path, fps, size)
    yield from frames
    if frames.lost:
        raise UserError(f"{video.path}: {frames.lost} of {frames.promised} frames cannot be decoded; make it again")


def resize(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Resize [H, W, 3] to (height, width); area averaging when it shrinks, so that nothing aliases."""
    if size is None or image.shape[:2] == tuple(size):
        return image
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def count_windows(video: Video, length: int, fps: float | None = None) -> int:
    """How many whole windows of `length` frames a video holds when read at `fps`."""
    return int(video.frames * (fps or video.fps) / video.fps + 1e-6) // length


def choose_windows(video: Video, length: int, fps: float | None = None, limit: int | None = None) -> list[int]:
    """Numbers of the windows to read: all, or `limit` of them spread evenly, the first always among them."""
    total = count_windows(video, length, fps)
    if limit is None or limit >= total:
        return list(range(total))
    return sorted(set(np.linspace(0, total - 1, limit).round().astype(int).tolist()))


def windows(
    video: Video,
    length: int,
    chosen: Sequence[int] | None = None,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
) -> Iterator[Window]:
    """The windows numbered in `chosen` (None: all), which lie end to end; one of them in memory at a time."""
    wanted = set(range(count_windows(video, length, fps)) if chosen is None else chosen)
    held: list[np.ndarray] = []
    for index, image in enumerate(read_frames(video, fps, size) if wanted else ()):
        if index // length in wanted:
            held.append(image)
        if len(held) == length:
            yield Window(video, index + 1 - length, np.stack(held), fps or video.fps)
            held = []
            wanted.discard(index // length)
            if not wanted:
                return


def check_comparable(
    real: VideoSet, others: list[VideoSet], length: int, fps: float | None, resizing: bool, least: int = 2
) -> None:
    """Refuse comparisons that would mislead.

    raises  UserError for a set compared with itself, videos too short for one window, fewer than `least` windows,
            other sizes without resize=true, other frame rates without fps=
    """
    for other in [real, *others]:
        if other is not real and other.root.resolve() == real.root.resolve() and other.videos == real.videos:
            raise UserError(f"real and {other.name} are the same videos ({real.root}); the distance would be 0")
        for video in other.videos:
            _check_video(video, real, other.name, length, fps, resizing)
        count = sum(count_windows(video, length, fps) for video in other.videos)
        if count < least:
            raise UserError(f"{other.name} has {count} windows of {length} frames, at least {least} are needed; "
                            "give more videos or lower clip_frames")  # fmt: skip


def _check_video(video: Video, real: VideoSet, name: str, length: int, fps: float | None, resizing: bool) -> None:
    if not resizing and (video.height, video.width) != real.size:
        raise UserError(
            f"{name}: {video.path.name} is {video.height}x{video.width}, real is {real.size[0]}x{real.size[1]}; "
            "resizing changes every distance, so ask for it with resize=true"
        )
    if fps is None and abs(video.fps - real.videos[0].fps) > 0.01:
        raise UserError(
            f"{name}: {video.path.name} has {video.fps:g} frames a second, real has {real.videos[0].fps:g}; give fps="
        )
    if not count_windows(video, length, fps):
        available = int(video.frames * (fps or video.fps) / video.fps)
        raise UserError(f"{name}: {video.path.name} has {available} frames, clip_frames is {length}; lower clip_frames")
