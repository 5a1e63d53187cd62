"""Pictures taken one after the other, with times of their own, into clips of a constant frame rate.

What a recording can suffer from is dealt with here for every source: times that go back or repeat, gaps, pictures
that are missing, cut off or far too large.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_prep.framing import framed
from data_prep.naming import printable
from data_prep.options import ClipOptions
from data_prep.source import Dropped, Frame, RawClip, Refused
from drivesim.data.video import MOST_PIXELS

TIE_S = 1e-6  # of two pictures as near as this the later is shown: at twice the recorded rate each is shown twice
GAP_PERIODS = 2.5  # a pause longer than this many usual intervals ends a clip


@dataclass(frozen=True)
class Shot:
    """One recorded picture.

    time_s    seconds, of any origin
    image     its file
    describe  makes the Frame of the decoded picture, uint8 RGB [H, W, 3]: boxes as fractions of it, intrinsics in
              its pixels; called only when the frame is written
    """

    time_s: float
    image: Path
    describe: Callable[[np.ndarray], Frame]


def clips_of(template: RawClip, shots: Sequence[Shot], options: ClipOptions) -> Iterator[RawClip | Dropped]:
    """The clips of one recording, to be read one after the other, and what had to be left out.

    template  a RawClip without frames: names the recording, its route, its licence ...
    raises    Refused if there are too few pictures, or their times go back or repeat
    """
    times = _checked_times(template.name, shots)
    runs = deque(_runs(times, options))
    number = 0
    while runs:
        start_s, shown = runs.popleft()
        piece = _Piece(shown, shots, options, template.has_boxes)
        name = f"{template.name}_{number:04d}"
        yield replace(template, name=name, fps=options.fps, frames=iter(piece), start_s=start_s)
        piece.finish()  # what the consumer left, as it does for a clip that is in the store already
        if piece.bad is not None:
            yield Dropped(name, piece.bad)
        if piece.rest:
            runs.appendleft((start_s + (len(shown) - len(piece.rest)) / options.fps, piece.rest))
        number += 1


def _checked_times(name: str, shots: Sequence[Shot]) -> np.ndarray:
    if len(shots) < 2:
        raise Refused(f"{len(shots)} pictures; at least 2 are needed")
    times = np.array([shot.time_s for shot in shots])
    step = np.diff(times)
    if not np.isfinite(times).all() or (step <= 0).any():
        at = int(np.flatnonzero(~(step > 0))[0])
        what = "repeats" if step[at] == 0 else "goes back"
        raise Refused(
            f"the time {what} from {times[at]:.6f} s ({printable(shots[at].image.name)}) to {times[at + 1]:.6f} s "
            f"({printable(shots[at + 1].image.name)}); repair the time stamps"
        )
    return times - times[0]


def _runs(times: np.ndarray, options: ClipOptions) -> Iterator[tuple[float, list[int]]]:
    """For each clip its start, seconds, and the shot that every frame shows: the one nearest in time.

    No clip runs over a gap.
    """
    step = np.diff(times)
    ends = np.flatnonzero(step > GAP_PERIODS * np.median(step)) + 1
    longest = max(1, round(options.clip_seconds * options.fps))
    for part in np.split(np.arange(len(times)), ends):
        seconds = times[part[-1]] - times[part[0]] + np.median(step)  # the last picture stays as long as any
        instants = times[part[0]] + np.arange(max(1, round(seconds * options.fps))) / options.fps
        middles = (times[part][1:] + times[part][:-1]) / 2
        shown = part[np.searchsorted(middles, instants + TIE_S, side="right")].tolist()
        for start in range(0, len(shown), longest):
            yield float(instants[start]), shown[start : start + longest]


class _Piece:
    """The frames of one clip. After a picture that cannot be read it ends; `rest` are the shots that follow."""

    def __init__(self, shown: list[int], shots: Sequence[Shot], options: ClipOptions, has_boxes: bool) -> None:
        self.shown, self.shots, self.options, self.has_boxes = shown, shots, options, has_boxes
        self.bad: str | None = None
        self.rest: list[int] = []
        self._frames = self._read()

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def finish(self) -> None:
        try:
            for _ in self._frames:
                pass
        except Refused:
            pass  # a consumer that read to the end has heard of it; one that did not has no use for it

    def _read(self) -> Iterator[Frame]:
        last, frame, count = None, None, 0
        for position, index in enumerate(self.shown):
            if index != last:  # a picture that is shown twice is read once
                try:
                    picture = read_picture(self.shots[index].image)
                except (OSError, ValueError) as error:
                    self.bad = f"{printable(self.shots[index].image)}: {error}"
                    self.rest = [other for other in self.shown[position:] if other != index]
                    break
                recorded = self.shots[index].describe(picture)
                frame = framed(recorded, self.options.size, self.options.crop, self.has_boxes)
                last = index
            count += 1
            yield frame  # type: ignore[misc]
        if count < round(self.options.min_seconds * self.options.fps):
            found, least = count / self.options.fps, self.options.min_seconds
            raise Refused(f"{found:.2f} s before a gap, a bad picture or the end, shorter than min_seconds={least:g}")


def read_picture(path: Path) -> np.ndarray:
    """uint8 RGB [H, W, 3]. raises OSError or ValueError, worded for users, if the file is not a whole picture"""
    if not path.is_file():
        raise FileNotFoundError("the file is missing")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MOST_PIXELS says it better
            image = Image.open(path)
        with image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"claims {image.width}x{image.height} pixels, more than {MOST_PIXELS:,} allowed")
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError("not a readable picture") from error
