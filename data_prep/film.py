"""One video file into clips: resampled, cropped, cut at scene changes, with what is known of it moved along.

What a file can suffer from is dealt with here for every source: it is missing, no video, far too large, cut off, or
breaks in the middle.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from data_prep.framing import framed
from data_prep.naming import printable
from data_prep.options import ClipOptions
from data_prep.scenes import mark_cuts
from data_prep.source import Dropped, Frame, RawClip, Refused
from drivesim.data.video import FrameIterator, Shown, iterate
from drivesim.errors import UserError


class Notes(Protocol):
    """What is known of a video beside its pictures."""

    def frame(self, image: np.ndarray, shown: Shown) -> Frame:
        """The frame of a picture that is cropped and resized; boxes are fractions of the recorded picture."""

    def has_boxes(self, shown: Shown) -> bool:
        """Whether the boxes of this recorded frame are known."""


class NoNotes:
    """Nothing but the pictures."""

    def frame(self, image: np.ndarray, shown: Shown) -> Frame:
        return Frame(image)

    def has_boxes(self, shown: Shown) -> bool:
        return False


def clips_of_video(path: Path, template: RawClip, options: ClipOptions, notes: Notes) -> Iterator[RawClip | Dropped]:
    """The clips of one file, to be read one after the other; what is unreadable or lost comes as Dropped.

    template  a RawClip without frames: names the video, its route, its licence ...
    """
    try:
        frames = iterate(path, options.fps, options.size, crop=options.crop)
    except UserError as error:
        yield Dropped(template.name, printable(str(error)))
        return
    stream = _Stream(frames, options, notes)
    number = 0
    while not stream.ended:
        piece = _piece(stream, options)
        name = f"{template.name}_{number:04d}"
        yield replace(template, name=name, fps=options.fps, has_boxes=stream.has_boxes, frames=piece)
        _drain(piece)
        number += 1
    if stream.broken:
        yield Dropped(template.name, printable(stream.broken))
    elif frames.lost:
        found = f"{frames.decoded} of {frames.promised} promised frames decode"
        yield Dropped(template.name, f"{found}; the file is cut off or damaged, the readable frames were used")


class _Stream:
    """The frames of a video; it can be asked what comes next.

    has_boxes  whether the boxes of the frame that comes next are known
    at_known   whether boxes are known from it on, or no longer
    at_cut     whether a clip must end before it: there, or at a new scene
    broken     why reading ended early, empty if it did not
    """

    def __init__(self, frames: FrameIterator, options: ClipOptions, notes: Notes) -> None:
        self._options, self._notes = options, notes
        self._shown: deque[Shown] = deque()  # of the frames that `mark_cuts` holds
        self._marked = mark_cuts(self._watched(frames))
        self._ahead: tuple[np.ndarray, bool] | None = None
        self.broken, self.has_boxes, self.at_known, self.at_cut = "", False, False, False
        self._advance()

    @property
    def ended(self) -> bool:
        return self._ahead is None

    def take(self) -> Frame:
        assert self._ahead is not None
        shown, has_boxes = self._shown.popleft(), self.has_boxes
        frame = self._notes.frame(self._ahead[0], shown)
        self._advance()
        return framed(frame, self._options.size, self._options.crop, has_boxes, shown.displayed)

    def _advance(self) -> None:
        self._ahead = next(self._marked, None)
        if self._ahead is None:
            self.at_known = False
        else:
            known = self._notes.has_boxes(self._shown[0])
            self.at_known, self.has_boxes = known != self.has_boxes, known
            self.at_cut = self._ahead[1] or self.at_known

    def _watched(self, frames: FrameIterator) -> Iterator[np.ndarray]:
        try:
            for picture in frames:
                self._shown.append(frames.shown)
                yield picture
        except UserError as error:
            self.broken = str(error)


def _piece(stream: _Stream, options: ClipOptions) -> Iterator[Frame]:
    """Frames up to the next cut, the longest clip or the end; raises Refused there if they were too few."""
    longest = max(1, round(options.clip_seconds * options.fps))
    count = 0
    while not stream.ended and count < longest and not (count and stream.at_cut):
        yield stream.take()
        count += 1
    if count < round(options.min_seconds * options.fps):
        why = "where the boxes begin or end to be known" if stream.at_known else "before a cut or the end"
        raise Refused(f"{count / options.fps:.2f} s {why}, shorter than min_seconds={options.min_seconds:g}")


def _drain(piece: Iterator[Frame]) -> None:
    """Read what the consumer left, as it does for a clip that is in the store already."""
    try:
        for _ in piece:
            pass
    except Refused:
        pass  # a consumer that read to the end has heard of it; one that did not has no use for it
