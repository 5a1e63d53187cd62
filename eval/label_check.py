"""Do generated pictures show the boxes that they are labelled with? Window by window, as a detector sees it."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drivesim.clip import CLASSES, NO_BOX, Layout
from eval.detectors import Detector, Finds
from eval.label_sheet import Worst
from eval.layout import FOUND_IOU, SMALLEST, overlap


@dataclass(frozen=True)
class Rules:
    """How to look.

    window_seconds   length of what passes or fails as one
    frames_a_window  of each that are looked at, spread evenly
    min_recall       share of the asked boxes that must be found
    smallest         share of the picture; smaller boxes are neither asked for nor counted as false finds
    """

    window_seconds: float = 1.0
    frames_a_window: int = 4
    min_recall: float = 0.5
    smallest: float = SMALLEST


@dataclass(frozen=True)
class WindowCheck:
    """What was seen of `frames` frames of a video from frame `first` on, in those that were looked at.

    asked, found  boxes that the layout asks for, and of them those that a find meets with IoU >= 0.5
    false         finds that meet no box that was asked for
    ok            whether enough was found; true where nothing is asked for
    """

    video: str
    first: int
    frames: int
    asked: int
    found: int
    false: int
    ok: bool

    @property
    def recall(self) -> float:
        """nan where nothing is asked for."""
        return self.found / self.asked if self.asked else float("nan")


def check_video(
    video: str,
    pictures: Iterable[np.ndarray],
    layout: Layout,
    fps: float,
    detector: Detector,
    rules: Rules,
    worst: Worst,
) -> list[WindowCheck]:
    """Look at a video once, as it streams by; of each window the worst picture is offered to `worst`.

    pictures  [H, W, 3] uint8 RGB, as many as `layout` [T] has frames
    """
    checks, held, chosen = [], [], []
    windows = iter(window_ranges(layout.num_frames, fps, rules.window_seconds))
    window = next(windows)
    for number, picture in enumerate(pictures):
        if number in sampled(window, rules.frames_a_window):
            held.append(picture)
            chosen.append(number)
        if number == window.stop - 1:
            checks.append(_check(video, window, np.stack(held), layout[chosen], fps, detector, rules, worst))
            held, chosen, window = [], [], next(windows, range(0))
    return checks


def window_ranges(frames: int, fps: float, seconds: float) -> list[range]:
    """Windows of `seconds` end to end; the last one takes what is left, from half to one and a half of that."""
    length = max(1, round(seconds * fps))
    starts = [length * i for i in range(max(1, int(frames / length + 0.5)))]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], frames], strict=True)]


def sampled(window: range, count: int) -> list[int]:
    """`count` frames of a window, or all of a shorter one, in the middles of equal parts."""
    parts = min(count, len(window))
    return [window[int((i + 0.5) * len(window) / parts)] for i in range(parts)]


def _check(
    video: str,
    window: range,
    pictures: np.ndarray,
    layout: Layout,
    fps: float,
    detector: Detector,
    rules: Rules,
    worst: Worst,
) -> WindowCheck:
    asked = [_asked(layout[t], detector) for t in range(len(pictures))]
    finds = detector.find(pictures)
    counts = [_count(*pair, rules.smallest) for pair in zip(asked, finds, strict=True)]
    total, found, false = np.sum(counts, 0).tolist()
    if total:
        t = min(range(len(counts)), key=lambda t: counts[t][1] / counts[t][0] if counts[t][0] else 1)
        caption = f"{video} {window.start / fps:.1f} s: {found} of {total}"
        worst.offer(found / total, caption, pictures[t], _large(asked[t], rules.smallest).boxes, finds[t].boxes)
    ok = not total or found / total >= rules.min_recall
    return WindowCheck(video, window.start, len(window), total, found, false, ok)


def _asked(frame: Layout, detector: Detector) -> Finds:
    """The boxes of one frame that the detector could find, named as it names them; none where they are not known."""
    slots = [
        (slot, detector.kinds[CLASSES[kind]])
        for slot, kind in enumerate(frame.classes.tolist())
        if frame.known and kind != NO_BOX and CLASSES[kind] in detector.kinds
    ]
    boxes = frame.boxes[[slot for slot, _ in slots]].double().numpy().reshape(-1, 4)
    return Finds(boxes, np.array([kind for _, kind in slots], int))


def _count(asked: Finds, finds: Finds, smallest: float) -> tuple[int, int, int]:
    """Large boxes asked for, those of them that are found, and large finds that meet no box of any size."""
    large, seen = _large(asked, smallest), _large(finds, smallest)
    found = _met(large, finds).sum()
    return len(large.boxes), int(found), int((~_met(seen, asked)).sum())


def _met(boxes: Finds, others: Finds) -> np.ndarray:
    """Which of `boxes` meet one of `others` of their kind: bool [n]."""
    same = boxes.kinds[:, None] == others.kinds[None]
    return ((overlap(boxes.boxes, others.boxes) >= FOUND_IOU) & same).any(1)


def _large(finds: Finds, smallest: float) -> Finds:
    chosen = (finds.boxes[:, 2:] - finds.boxes[:, :2]).prod(-1) >= smallest
    return Finds(finds.boxes[chosen], finds.kinds[chosen])


def flags(checks: Sequence[WindowCheck]) -> tuple[np.ndarray, np.ndarray]:
    """Of every frame of a video the recall of its window [T], nan where nothing is asked for, and whether it is ok."""
    lengths = [check.frames for check in checks]
    return np.repeat([c.recall for c in checks], lengths), np.repeat([c.ok for c in checks], lengths)


def save_table(checks: Sequence[tuple[WindowCheck, float]], path: Path) -> None:
    """One row a window as CSV. checks: with the frames a second of their videos"""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "start_s", "frame", "frames", "asked", "found", "false", "label_recall", "label_ok"])
        for check, fps in checks:
            recall = f"{check.recall:.4f}" if check.asked else ""
            counts = (check.first, check.frames, check.asked, check.found, check.false)
            writer.writerow([check.video, f"{check.first / fps:.3f}", *counts, recall, str(check.ok).lower()])
