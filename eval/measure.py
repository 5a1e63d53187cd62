"""One pass over a set of videos: features, motion, likeness to the truth and obedience to boxes, in constant memory."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from torch import nn
from tqdm import tqdm

from drivesim.clip import Layout
from drivesim.data.store import ClipStore
from eval import features
from eval.layout import CarFinder
from eval.motion import MotionMeter
from eval.similarity import SimilarityMeter
from eval.steering import LayoutMeter, boxes_at
from eval.videos import Video, VideoSet, Window, choose_windows, windows

Layouts = dict[str, tuple[Layout, float]]  # clip -> its layout, and the frames a second of that


@dataclass(frozen=True)
class Options:
    """How to look. Two results are comparable only if all of these agree.

    clip_frames       frames a window
    fps               rate to read every video at; None: their own, which must agree
    resize            bring other sizes to that of the real videos
    max_windows       windows a video, spread evenly; None: all
    frames_a_window   frames of each window that frame features are taken of; neighbours add little
    curve_step_s      seconds between the points of curves over time
    crops             also measure native-resolution crops
    repeats           half-samples for the standard errors
    """

    clip_frames: int = 16
    fps: float | None = None
    seed: int = 0
    resize: bool = False
    max_windows: int | None = None
    frames_a_window: int = 4
    curve_step_s: float = 0.5
    crops: bool = True
    repeats: int = 8
    progress: bool = True


@dataclass(frozen=True)
class Networks:
    """What the user may add: the standard networks, and a car finder with the store whose layouts were asked for."""

    inception: nn.Module | None = None
    i3d: nn.Module | None = None
    finder: CarFinder | None = None
    layouts: ClipStore | None = None


@dataclass
class FeatureTable:
    """Rows of features with where each came from."""

    rows: list[np.ndarray] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def add(self, rows: np.ndarray, group: str, times: np.ndarray) -> None:
        self.rows.extend(rows)
        self.groups.extend([group] * len(rows))
        self.times.extend(np.asarray(times, float).tolist())

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def matrix(self) -> np.ndarray:
        return np.stack(self.rows)

    def at(self, low_s: float, high_s: float) -> np.ndarray:
        """Rows [n, d] of moments in [low, high) seconds."""
        chosen = [row for row, time in zip(self.rows, self.times, strict=True) if low_s <= time < high_s]
        return np.stack(chosen) if chosen else np.zeros((0, self.rows[0].shape[0]), np.float32)


@dataclass
class Measures:
    """All that was seen of one set."""

    videos: int = 0
    windows: int = 0
    paired: int = 0
    tables: dict[str, FeatureTable] = field(default_factory=dict)
    motion: MotionMeter = field(default_factory=MotionMeter)
    similarity: SimilarityMeter = field(default_factory=SimilarityMeter)
    layout: LayoutMeter | None = None

    def table(self, name: str) -> FeatureTable:
        return self.tables.setdefault(name, FeatureTable())


def measure(videos: VideoSet, real: VideoSet, options: Options, networks: Networks) -> Measures:
    """Look at every chosen window of a set once.

    real  the true videos: they give the size everything is brought to, and by name the true continuations
    """
    seen = Measures(motion=MotionMeter(_vanishing_point(real)))
    layouts: Layouts = {}
    if networks.finder is not None and networks.layouts is not None:
        seen.layout, layouts = LayoutMeter(networks.finder), _layouts(networks.layouts)
    for video in tqdm(videos.videos, videos.name, unit="video", disable=not options.progress):
        truth = real.find(video.name) if videos is not real else None
        seen.videos += 1
        seen.paired += truth is not None
        _measure_video(seen, video, truth, real.size, options, networks, layouts)
    return seen


def _layouts(store: ClipStore) -> Layouts:
    rows = store.index[store.index["has_boxes"]]
    return {str(clip): (store.layout(str(clip)), float(fps)) for clip, fps in rows["fps"].items()}


def _measure_video(
    seen: Measures,
    video: Video,
    truth: Video | None,
    size: tuple[int, int],
    options: Options,
    networks: Networks,
    layouts: Layouts,
) -> None:
    start = None
    for window, true in _side_by_side(video, truth, size, options):
        seen.windows += 1
        _add_features(seen, window, options, networks)
        seen.motion.add(window.frames, window.fps, None if true is None else true.frames)
        if true is not None:
            start = true.frames[0] if start is None else start
            _add_similarity(seen.similarity, window, true, start, options)
        if seen.layout is not None:
            _add_layout(seen.layout, window, layouts, options)


def _side_by_side(
    video: Video, truth: Video | None, size: tuple[int, int], options: Options
) -> Iterator[tuple[Window, Window | None]]:
    """Windows of a video, each with the same moments of the true one as far as that goes."""
    chosen = choose_windows(video, options.clip_frames, options.fps, options.max_windows)
    mine = windows(video, options.clip_frames, chosen, options.fps, size)
    if truth is None:
        return ((window, None) for window in mine)
    total = len(choose_windows(truth, options.clip_frames, options.fps))
    true = windows(truth, options.clip_frames, [i for i in chosen if i < total], options.fps, size)
    return zip_longest(mine, true)


def _sampled(window: Window, count: int) -> np.ndarray:
    """Indices of `count` frames spread over a window."""
    length = len(window.frames)
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int))


def _add_features(seen: Measures, window: Window, options: Options, networks: Networks) -> None:
    name, chosen = window.video.name, _sampled(window, options.frames_a_window)
    frames, times = window.frames[chosen], window.times[chosen]
    looks = features.frame_features(frames)
    beside = features.frame_features(window.frames[np.where(chosen > 0, chosen - 1, 1)])
    seen.table("efficientnet_lite0").add(looks, name, times)
    seen.table("efficientnet_lite0_clips").add(features.change_features(looks, beside)[None], name, times[:1])
    seen.table("transnetv2").add(features.clip_features(window.frames)[None], name, times[:1])
    if options.crops:
        # Seeded by the moment, so that the same moment is cropped alike in every set.
        crops = features.crop_features(frames, crops=1, seed=options.seed + window.start)
        seen.table("efficientnet_lite0_crops").add(crops, name, times)
    if networks.inception is not None:
        seen.table("inception").add(features.inception_features(networks.inception, frames), name, times)
    if networks.i3d is not None:
        seen.table("i3d").add(features.i3d_features(networks.i3d, window.frames)[None], name, times[:1])


def _add_similarity(meter: SimilarityMeter, window: Window, true: Window, start: np.ndarray, options: Options) -> None:
    step = max(1, round(options.curve_step_s * window.fps))
    for t in range(len(window.frames)):
        if (window.start + t) % step == 0:
            meter.add(window.video.name, float(window.times[t]), window.frames[t], true.frames[t], start)


def _add_layout(meter: LayoutMeter, window: Window, layouts: Layouts, options: Options) -> None:
    for t in _sampled(window, options.frames_a_window):
        boxes = boxes_at(layouts, float(window.times[t]))
        if window.video.name in boxes:
            meter.add(window.frames[t], window.video.name, boxes)


def _vanishing_point(real: VideoSet) -> tuple[float, float]:
    """Where a forward drive comes from: the principal point of a level camera, else the middle of the picture."""
    if real.store is None:
        return 0.5, 0.5
    camera = real.store.camera(real.videos[0].name)
    x, y = camera.intrinsics[0, 2] / camera.width, camera.intrinsics[1, 2] / camera.height
    return (float(x), float(y)) if np.isfinite([x, y]).all() else (0.5, 0.5)
