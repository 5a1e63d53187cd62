"""What is noted of a video at some instants, asked for at any other: boxes by track, labels, the way driven.

Between two instants of a track its box moves linearly, unless they are further apart than a limit; it is never
carried on before the first or beyond the last. So are the labels, and the instants at which boxes are known at all.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from data_prep.source import NAN, Box, Frame
from drivesim.data.video import Shown

SLACK_S = 0.01  # an instant this near is meant: times are often written with two decimals
FINE_S = 0.02  # step in which the way driven is added up


@dataclass(frozen=True)
class Instant:
    """What is noted at one time.

    time_s  seconds after the video's first frame
    boxes   fractions of the recorded picture, each track once; None where they are not known
    labels  night, crowdedness, speed_mps, travel_m, heading_rad, steering_rad, as far as they are known
    """

    time_s: float
    boxes: Sequence[Box] | None = None
    labels: Mapping[str, float] = field(default_factory=dict)


class Annotations:
    """Implements `data_prep.film.Notes`.

    instants  in order of time
    gap_s     the longest pause that is bridged, seconds
    night     of the whole video, where no instant says
    """

    def __init__(self, instants: Sequence[Instant], gap_s: float, night: float = NAN) -> None:
        self._gap_s, self._night = gap_s, night
        self._known = np.array([instant.time_s for instant in instants if instant.boxes is not None])
        tracks: dict[int, list[tuple[float, Box]]] = defaultdict(list)
        labels: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for instant in instants:
            for box in instant.boxes or ():
                tracks[box.track].append((instant.time_s, box))
            for name, value in instant.labels.items():
                labels[name].append((instant.time_s, value))
        self._tracks = {
            track: (np.array([time for time, _ in seen]), [box for _, box in seen])
            for track, seen in sorted(tracks.items())
        }
        self._labels = {name: np.array(seen).T for name, seen in labels.items()}  # times, values
        self._way = _way(instants)

    def has_boxes(self, shown: Shown) -> bool:
        return self._between(self._known, shown.time_s) is not None

    def frame(self, image: np.ndarray, shown: Shown) -> Frame:
        night = self._label("night", shown.time_s)
        return Frame(
            image,
            self._boxes(shown.time_s) if self.has_boxes(shown) else [],
            pose=self._pose(shown.time_s),
            speed_mps=self._label("speed_mps", shown.time_s),
            night=self._night if np.isnan(night) else night,
            vehicles=self._label("crowdedness", shown.time_s),  # counted anew where boxes are known
            steering_rad=self._label("steering_rad", shown.time_s),
        )

    def _boxes(self, time_s: float) -> list[Box]:
        found = []
        for times, boxes in self._tracks.values():
            if (place := self._between(times, time_s)) is not None:
                before, after, share = place
                found.append(blend(boxes[before], boxes[after], share) if share else boxes[before])
        return found

    def _label(self, name: str, time_s: float) -> float:
        """Linear between the instants that have it, held at the ends as long as a gap is bridged; NaN beyond."""
        if name not in self._labels:
            return NAN
        times, values = self._labels[name]
        beyond = max(times[0] - time_s, time_s - times[-1])
        return float(np.interp(time_s, times, values)) if beyond <= self._gap_s else NAN

    def _pose(self, time_s: float) -> np.ndarray | None:
        if self._way is None or not self._way[0, 0] - SLACK_S <= time_s <= self._way[0, -1] + SLACK_S:
            return None
        east, north, heading = (float(np.interp(time_s, self._way[0], row)) for row in self._way[1:])
        return camera_pose(east, north, heading)

    def _between(self, times: np.ndarray, time_s: float) -> tuple[int, int, float] | None:
        """The two of `times` around an instant, by index, and the share of the way from one to the other."""
        after = int(np.searchsorted(times, time_s))
        around = [index for index in (after - 1, after) if 0 <= index < len(times)]
        nearest = min(around, key=lambda index: abs(times[index] - time_s), default=None)
        if nearest is not None and abs(times[nearest] - time_s) <= SLACK_S:
            return nearest, nearest, 0.0
        if len(around) < 2 or times[after] - times[after - 1] > self._gap_s + SLACK_S:
            return None
        return after - 1, after, float((time_s - times[after - 1]) / (times[after] - times[after - 1]))


def blend(a: Box, b: Box, share: float) -> Box:
    """The box at `share` (0..1) of the way from `a` to `b`, two boxes of one track; unknown where one is unknown."""

    def mix(p: tuple, q: tuple) -> tuple:
        return tuple(float(x + (y - x) * share) for x, y in zip(p, q, strict=True))

    turn = (b.yaw - a.yaw + np.pi) % (2 * np.pi) - np.pi  # the short way round
    return replace(
        a,
        xyxy=mix(a.xyxy, b.xyxy),
        visibility=mix((a.visibility,), (b.visibility,))[0],
        centre_m=mix(a.centre_m, b.centre_m),
        size_m=mix(a.size_m, b.size_m),
        yaw=float(a.yaw + turn * share),
    )


def camera_pose(east_m: float, north_m: float, heading_rad: float) -> np.ndarray:
    """[4, 4] camera to world of a level camera; heading: 0 north, growing to the right."""
    sin, cos = np.sin(heading_rad), np.cos(heading_rad)
    pose = np.eye(4)
    pose[:3, :3] = np.array([[cos, 0, sin], [-sin, 0, cos], [0, -1, 0]])  # columns: right, down, forward
    pose[:2, 3] = east_m, north_m
    return pose


def _way(instants: Sequence[Instant]) -> np.ndarray | None:
    """Times, metres east and north of the start, and heading [4, n] where `travel_m` and `heading_rad` are noted."""
    both = [i for i in instants if {"travel_m", "heading_rad"} <= set(i.labels)]
    if len(both) < 2:
        return None
    times = np.array([i.time_s for i in both])
    fine = np.append(np.arange(times[0], times[-1], FINE_S), times[-1])
    travel = np.interp(fine, times, [i.labels["travel_m"] for i in both])
    heading = np.interp(fine, times, [i.labels["heading_rad"] for i in both])
    middle, step = (heading[1:] + heading[:-1]) / 2, np.diff(travel)
    east, north = (np.append(0, np.cumsum(step * part)) for part in (np.sin(middle), np.cos(middle)))
    return np.stack([fine, east, north, heading])
