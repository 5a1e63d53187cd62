"""From agents of a scenario file to actors: on the road, or on the picture."""

import math
from dataclasses import replace

import numpy as np

from drivesim.errors import UserError
from drivesim.scenarios.road import added
from drivesim.scenarios.scene import Actor, Scene
from drivesim.scenarios.schema import SIZES_M, Agent, Corners, RoadPlace

MOVING_M = 1e-3  # between two frames: who moves less keeps facing where it did
FINE_STEPS = 10  # between two frames, in which speeds are added up


def make(agent: Agent, track: int, scene: Scene, where: str) -> Actor:
    """The actor that an agent is, over the frames of a scene. raises UserError for a place that cannot be"""
    if (agent.road is None) == (agent.image is None):
        found = "has both" if agent.road else "has neither"
        raise UserError(f"{where}: {found} road and image; say where it is by one of them")
    if agent.leaves_s is not None and agent.leaves_s <= agent.appears_s:
        found = f"leaves_s {agent.leaves_s:g} is not after appears_s {agent.appears_s:g}"
        raise UserError(f"{where}: {found}; let it appear first")
    there = (scene.times_s + 1e-9 >= agent.appears_s) & (scene.times_s < (agent.leaves_s or math.inf))
    size = np.tile(agent.size_m or SIZES_M[agent.kind], (len(there), 1))
    nowhere = np.full((len(there), 3), np.nan)
    actor = Actor(agent.name, track, agent.kind, nowhere, nowhere[:, 0], nowhere, priority=agent.priority)
    if agent.image is not None:
        boxes = np.where(there[:, None], _on_picture(agent.image, scene.times_s, where), np.nan)
        return replace(actor, boxes=boxes)
    assert agent.road is not None
    ground, yaw = _on_road(agent.road, scene, where)
    centre = ground + np.array([0, scene.height_m - size[0, 2] / 2, 0])
    centre[~there] = np.nan
    return replace(actor, centre=centre, yaw=yaw, size=size)


def _on_picture(keyframes: tuple[Corners, ...], times_s: np.ndarray, where: str) -> np.ndarray:
    """Boxes [T, 4], linear between keyframes."""
    times = [corners.time_s for corners in keyframes]
    for i in range(1, len(times)):
        if times[i] <= times[i - 1]:
            found = f"keyframe {i} is at {times[i]:g} s, not after keyframe {i - 1} at {times[i - 1]:g} s"
            raise UserError(f"{where}: image: {found}; sort them")
    for i, corners in enumerate(keyframes):
        if corners.x2 <= corners.x1 or corners.y2 <= corners.y1:
            found = f"size {corners.x2 - corners.x1:g} x {corners.y2 - corners.y1:g} is not positive"
            raise UserError(f"{where}: image: keyframe {i}: {found}; expected x1 < x2 and y1 < y2")
    edges = ([getattr(corners, edge) for corners in keyframes] for edge in ("x1", "y1", "x2", "y2"))
    return np.stack([np.interp(times_s, times, edge) for edge in edges], -1)


def _on_road(place: RoadPlace, scene: Scene, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Points [T, 3] at the height of the camera, and yaw [T], in the world."""
    times = scene.times_s.clip(0)
    ahead, left = place.ahead_m.eased(times), place.left_m.eased(times)
    if place.speed_mps is not None:
        if place.relative_to == "ego":
            raise UserError(
                f"{where}: road: speed_mps is over ground; with relative_to: ego give ahead_m as keyframes instead"
            )
        along, aside = _driven(place, times)
        ahead, left = ahead + along, left + aside
    points, road = _points(place, scene, ahead, left, where)
    if place.heading_deg is not None:
        return points, road + np.radians(place.heading_deg.at(times))
    return points, _facing(points, road)


def _points(
    place: RoadPlace, scene: Scene, ahead: np.ndarray, left: np.ndarray, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Where `ahead` and `left` [T] metres are: points [T, 3] as high as the camera, and the heading [T] of the road."""
    if scene.road is not None:
        ego = scene.labels.travel.numpy().astype(float) if place.relative_to == "ego" else 0.0
        return scene.road.at(ego + ahead, left)
    if place.relative_to == "start":
        raise UserError(f"{where}: road: it is not known how the base's camera drives; give ego, or relative_to: ego")
    return np.stack([-left, np.zeros_like(ahead), ahead], -1), np.zeros_like(ahead)


def _driven(place: RoadPlace, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Metres along the road and to its left [T] that its speed has brought it so far."""
    assert place.speed_mps is not None
    knots = (*place.speed_mps.times_s, *(place.heading_deg.times_s if place.heading_deg else ()))
    between = np.interp(np.arange((len(times_s) - 1) * FINE_STEPS + 1) / FINE_STEPS, np.arange(len(times_s)), times_s)
    fine = np.unique(np.concatenate([[0.0], between, [knot for knot in knots if knot < times_s[-1]]]))
    speed = place.speed_mps.at(fine)
    heading = np.radians(place.heading_deg.at(fine)) if place.heading_deg else np.zeros_like(fine)
    along, left = (added(fine, speed * part) for part in (np.cos(heading), -np.sin(heading)))
    return np.interp(times_s, fine, along), np.interp(times_s, fine, left)


def _facing(points: np.ndarray, road: np.ndarray) -> np.ndarray:
    """The way [T] in which points [T, 3] move; along the road [T] until they first do, and as before when they stop."""
    if len(points) < 2:
        return road
    step = np.gradient(points[:, [0, 2]], axis=0)
    moves = np.hypot(*step.T) > MOVING_M
    last = np.maximum.accumulate(np.where(moves, np.arange(len(step)), -1))
    return np.where(last >= 0, np.arctan2(*step[last].T), road)
