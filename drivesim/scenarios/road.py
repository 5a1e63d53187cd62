"""The way that the camera car drives, and the road that it thereby marks out.

Everything is in the frame of the first camera: x right, y down, z forward, metres; headings in radians to the right of
its z axis.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

from drivesim.scenarios.schema import Ego

STEP_S = 0.01  # in which speed and turn are added up, beside their own keyframes
STEP_M = 0.1  # in which a path is laid out
LEAST_M = 0.02  # of way between two points that tell which way the road goes: a standing camera trembles


class Road:
    """A line on the ground, straight on beyond both ends.

    along  [K] metres from where the camera starts, increasing;  points [K, 3] of the camera over it;  heading [K]
    """

    def __init__(self, along: np.ndarray, points: np.ndarray, heading: np.ndarray) -> None:
        rising = np.maximum.accumulate(np.floor((along - along[0]) / LEAST_M))
        kept = np.flatnonzero(np.diff(rising, prepend=-1) > 0)
        self.along, self.points, self.heading = along[kept], points[kept], np.unwrap(heading)[kept]

    def at(self, along: np.ndarray, left: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Points [T, 3] at camera height, and headings [T] of the road there. along [T], left of it [T], metres"""
        heading = np.interp(along, self.along, self.heading)
        points = np.stack([np.interp(along, self.along, axis) for axis in self.points.T], -1)
        beyond = along - np.clip(along, self.along[0], self.along[-1])
        ahead, right = _ahead(heading), _ahead(heading + math.pi / 2)
        return points + beyond[:, None] * ahead - np.broadcast_to(left, along.shape)[:, None] * right, heading

    def seen_from(self, pose: np.ndarray) -> "Road":
        """The same road in the frame of a level camera at `pose` [4, 4]."""
        points = (self.points - pose[:3, 3]) @ pose[:3, :3]
        return Road(self.along, points, self.heading - math.atan2(pose[0, 2], pose[2, 2]))


@dataclass(frozen=True)
class Drive:
    """How the camera drives, at each frame: travel [T] metres, heading [T] radians to the right, both since the first
    frame, speed [T] m/s, turn [T] radians a second to the right, poses [T, 4, 4] camera to first camera."""

    travel: np.ndarray
    heading: np.ndarray
    speed: np.ndarray
    turn: np.ndarray
    poses: np.ndarray
    road: Road


def drive(ego: Ego, times_s: np.ndarray) -> Drive:
    """What `ego` says, at the times [T]. Numbers between keyframes are linear, and added up by trapezoids."""
    times_s = times_s.clip(0)
    fine = _fine(times_s, ego)
    speed = ego.speed_mps.at(fine)
    travel = added(fine, speed)
    if ego.path is None:
        turn = np.radians(ego.turn_deg_s.at(fine)) if ego.turn_deg_s else np.zeros_like(fine)
        heading = added(fine, np.where(speed > 0, turn, 0.0))  # a car does not turn where it stands
        road = Road(travel, _way(travel, heading), heading)
    else:
        road = _along(ego.path)
    speeds, travels = np.interp(times_s, fine, speed), np.interp(times_s, fine, travel)
    points, headings = road.at(travels, left := ego.left_m.eased(times_s))
    headings = headings - _drift(travels, left)
    turns = np.gradient(headings, times_s) if len(times_s) > 1 else np.zeros(1)
    start = flat_poses(points[:1], headings[:1])[0]
    poses = np.linalg.inv(start) @ flat_poses(points, headings)
    return Drive(travels, headings - headings[0], speeds, turns, poses, road.seen_from(start))


def _drift(travel: np.ndarray, left: np.ndarray) -> np.ndarray:
    """The angle [T] to the left at which a car crosses its lane; 0 where it stands."""
    if len(travel) < 2:
        return np.zeros_like(travel)
    ahead, aside = np.gradient(travel), np.gradient(left)
    return np.where(ahead > LEAST_M, np.arctan2(aside, np.maximum(ahead, LEAST_M)), 0.0)


def added(times_s: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """The integral of a rate [K] over times [K], from 0."""
    return np.append(0.0, np.cumsum(np.diff(times_s) * (rate[1:] + rate[:-1]) / 2))


def flat_poses(points: np.ndarray, heading: np.ndarray) -> np.ndarray:
    """Poses [T, 4, 4] of a camera at points [T, 3] that looks level along headings [T]."""
    poses = np.tile(np.eye(4), (len(points), 1, 1))
    sin, cos = np.sin(heading), np.cos(heading)
    poses[:, 0, 0], poses[:, 0, 2], poses[:, 2, 0], poses[:, 2, 2] = cos, sin, -sin, cos
    poses[:, :3, 3] = points
    return poses


def _fine(times_s: np.ndarray, ego: Ego) -> np.ndarray:
    """Times at which to add up, so close that keyframes of speed and turn are among them, as are the frames."""
    knots = [*ego.speed_mps.times_s, *(ego.turn_deg_s.times_s if ego.turn_deg_s else ())]
    steps = np.arange(0, times_s[-1] + STEP_S, STEP_S)
    return np.unique(np.concatenate([[0.0], steps, times_s, [knot for knot in knots if knot < steps[-1]]]))


def _way(travel: np.ndarray, heading: np.ndarray) -> np.ndarray:
    """Points [K, 3] of a camera that has driven so far, turned so far."""
    step = np.diff(travel)[:, None] * _ahead((heading[1:] + heading[:-1]) / 2)
    return np.concatenate([np.zeros((1, 3)), np.cumsum(step, 0)])


def _along(path: tuple[tuple[float, float], ...]) -> Road:
    """A smooth road from the camera through points (ahead, left), which begins straight ahead."""
    knots = np.array([(0.0, 0.0), *(point for point in path if point != (0.0, 0.0))])
    if len(knots) == 1:
        return Road(np.zeros(1), np.zeros((1, 3)), np.zeros(1))
    chord = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1)))
    curve = CubicSpline(chord, knots, bc_type=((1, (1.0, 0.0)), (2, (0.0, 0.0))))
    steps = np.linspace(0, chord[-1], max(2, int(chord[-1] / STEP_M)))
    ahead, left = curve(steps).T
    slope = curve(steps, 1)
    points = np.stack([-left, np.zeros_like(ahead), ahead], -1)
    along = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1)))
    return Road(along, points, np.arctan2(-slope[:, 1], slope[:, 0]))


def _ahead(heading: np.ndarray) -> np.ndarray:
    """Unit vectors [K, 3] along headings [K]."""
    return np.stack([np.sin(heading), np.zeros_like(heading), np.cos(heading)], -1)
