"""Finding hard cuts in a stream of frames, looking only a few frames ahead.

What is compared is the fine structure of two small grey pictures (their high-pass parts), not their colours: driving
under a bridge or a tree changes every brightness within a frame, yet edges stay where they were. Measured on 12
driving clips (city, motorway, wide angle) and all 132 ways to splice one onto another:

    change of structure   within clips <= 0.26, played at six times the speed <= 0.57, at splices >= 0.64
    mean abs difference   within clips <= 14,   played at six times the speed <= 37,   at splices >= 15 (levels)

(leaving out two splices that are none: consecutive seconds of one recording). As in PySceneDetect's adaptive detector
a cut must also stand out from its neighbours in time, so footage that is restless all along is not chopped up.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

SMALL = (64, 36)  # width, height of the compared pictures
DETAIL_SIGMA = 4.0  # pixels of the small picture; anything smoother is light and shade
NOISE_LEVELS = 2.0  # grey levels; structure fainter than this says nothing (a dark tunnel)
CUT_CHANGE = 0.5
CUT_RATIO = 2.5  # times the median change around it
NEIGHBOURS = 8  # frames looked at on either side


def mark_cuts(frames: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, bool]]:
    """Each uint8 RGB frame [H, W, 3] with whether a new scene starts at it; holds NEIGHBOURS + 1 frames in memory."""
    ahead: deque[tuple[np.ndarray, float]] = deque()
    behind: deque[float] = deque(maxlen=NEIGHBOURS)
    previous = None
    for frame in frames:
        detail = _detail(frame)
        ahead.append((frame, 0.0 if previous is None else _change(previous, detail)))
        previous = detail
        if len(ahead) > NEIGHBOURS:
            yield _decide(ahead, behind)
    while ahead:
        yield _decide(ahead, behind)


def _decide(ahead: deque[tuple[np.ndarray, float]], behind: deque[float]) -> tuple[np.ndarray, bool]:
    frame, change = ahead.popleft()
    # Frames that a slower recording repeats show no change at all; they would make any motion look like a cut.
    around = [other for other in (*behind, *(later for _, later in ahead)) if other > 0]
    behind.append(change)
    return frame, change >= CUT_CHANGE and change >= CUT_RATIO * float(np.median(around or [0.0]))


def _detail(frame: np.ndarray) -> np.ndarray:
    """[36, 64] grey levels less their smooth part."""
    grey = cv2.cvtColor(cv2.resize(frame, SMALL, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY).astype(np.float32)
    return grey - cv2.GaussianBlur(grey, (0, 0), DETAIL_SIGMA)


def _change(before: np.ndarray, after: np.ndarray) -> float:
    """1 - correlation of two details: 0 alike, 1 unrelated; two pictures without detail are alike."""
    floor = NOISE_LEVELS**2 * before.size
    energy = float(np.sqrt((before**2).sum() * (after**2).sum()))
    return max(0.0, 1 - (float((before * after).sum()) + floor) / (energy + floor))
