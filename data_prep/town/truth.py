"""Ground truth: the boxes of things, in the camera frame and on the picture."""

from dataclasses import dataclass

import numpy as np

from data_prep.source import Box
from data_prep.town.painter import Visibility
from data_prep.town.view import CAMERA_HEIGHT_M, NEAR_M, View
from drivesim.clip import Camera

BOXED_M = 80.0  # things farther away are drawn but have no box
SMALLEST_PX = 4.0  # boxes lower than this are left out
_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_EDGES = [(a, b) for a in range(8) for b in range(a + 1, 8) if np.abs(_CORNERS[a] - _CORNERS[b]).sum() == 1]


@dataclass(frozen=True)
class Thing:
    """Something with a box: position [2] on the ground, heading, (length, width, height) in metres."""

    track: int
    name: str
    position: np.ndarray
    heading: float
    size: tuple[float, float, float]


def corners(centre: np.ndarray, size: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Corners [n, 8, 3] of camera-frame boxes: centre [n, 3], size [n, 3] length, width, height, yaw [n].

    At yaw 0 the length lies along z and the width along x.
    """
    x, y, z = (_CORNERS[:, None] * size[None, :, [1, 2, 0]]).transpose(2, 1, 0)
    cos, sin = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    return np.stack([x * cos + z * sin, y, z * cos - x * sin], -1) + centre[:, None]


def boxes_of(view: View, things: list[Thing], visibility: Visibility) -> list[Box]:
    """Boxes of the things in view; thing i is object i + 1 of `visibility`."""
    if not things:
        return []
    size = np.array([thing.size for thing in things])
    ground = np.array([[*thing.position, thing.size[2] / 2] for thing in things])
    heading = np.array([thing.heading for thing in things])
    centre = (ground - [*view.position, CAMERA_HEIGHT_M]) @ view.rotation
    yaw = view.heading - heading  # clockwise from the view direction, as the camera's y axis points down
    yaw = np.arctan2(np.sin(yaw), np.cos(yaw))
    camera, boxes = Camera(view.intrinsics, view.height, view.width), []
    solids = corners(centre, size, yaw)
    for i in np.flatnonzero((visibility.own[1:] > 0) & (np.hypot(centre[:, 0], centre[:, 2]) <= BOXED_M)):
        xyxy = picture_box(camera, solids[i])
        if xyxy is None or (xyxy[3] - xyxy[1]) * view.height < SMALLEST_PX:
            continue
        thing, share = things[i], visibility.share(i + 1)
        boxes.append(Box(thing.track, thing.name, xyxy, share, tuple(centre[i].tolist()), thing.size, float(yaw[i])))
    return boxes


def picture_box(camera: Camera, solid: np.ndarray) -> tuple[float, float, float, float] | None:
    """Tight box (fractions of the picture) of the 8 corners, cut at the near plane; None when out of view."""
    if (solid[:, 2] < NEAR_M).any():
        solid = _cut(solid)
        if len(solid) == 0:
            return None
    pixels = camera.project(solid) / [camera.width, camera.height]
    low, high = np.clip(pixels.min(0), 0, 1), np.clip(pixels.max(0), 0, 1)
    return (float(low[0]), float(low[1]), float(high[0]), float(high[1])) if (high > low).all() else None


def _cut(solid: np.ndarray) -> np.ndarray:
    """Corners [k, 3] of what is left of a box in front of the near plane."""
    kept = list(solid[solid[:, 2] >= NEAR_M])
    for a, b in _EDGES:
        p, q = solid[a], solid[b]
        if (p[2] < NEAR_M) != (q[2] < NEAR_M):
            kept.append(p + (q - p) * (NEAR_M - p[2]) / (q[2] - p[2]))
    return np.array(kept).reshape(-1, 3)
