"""Boxes in space and on the picture, as scenarios and every source with 3D annotations need them."""

import numpy as np

from drivesim.clip import Camera

NEAR_M = 0.4  # what is nearer to the camera than this is cut off before it is projected
_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
EDGES = [(a, b) for a in range(8) for b in range(a + 1, 8) if np.abs(_CORNERS[a] - _CORNERS[b]).sum() == 1]


def corners(centre: np.ndarray, size: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Corners [n, 8, 3] of camera-frame boxes: centre [n, 3], size [n, 3] length, width, height, yaw [n].

    At yaw 0 the length lies along z and the width along x.
    """
    return turned_corners(centre, size, upright(yaw))


def turned_corners(centre: np.ndarray, size: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Corners [n, 8, 3] of boxes that are turned in any way: centre [n, 3], size [n, 3] length, width, height.

    rotation  [n, 3, 3] box to camera; the box's own x lies along its length, y along its width, z along its height
    """
    return _CORNERS * size[:, None] @ rotation.transpose(0, 2, 1) + centre[:, None]


def upright(yaw: np.ndarray) -> np.ndarray:
    """Rotations [n, 3, 3], box to camera, of boxes that stand upright: yaw [n], about the camera's y axis."""
    cos, sin, no = np.cos(yaw), np.sin(yaw), np.zeros_like(yaw)
    length, width, height = (sin, no, cos), (-cos, no, sin), (no, no - 1, no)
    return np.stack([np.stack(axis, -1) for axis in (length, width, height)], -1)


def yaw_of(rotation: np.ndarray) -> np.ndarray:
    """The yaw [n] of rotations [n, 3, 3], box to camera: where the length points, seen from above."""
    return np.arctan2(rotation[:, 0, 0], rotation[:, 2, 0])


def outline(camera: Camera, solid: np.ndarray) -> np.ndarray | None:
    """Points [k, 2], fractions of the picture, whose hull a box fills: its 8 corners [8, 3], cut at the near plane.

    None for a box behind it. Points may lie outside the picture.
    """
    if (solid[:, 2] < NEAR_M).any():
        solid = _cut(solid)
        if len(solid) == 0:
            return None
    return camera.project(solid) / [camera.width, camera.height]


def picture_box(camera: Camera, solid: np.ndarray) -> tuple[float, float, float, float] | None:
    """Tight box (fractions of the picture) of the 8 corners of a box, cut at the near plane; None out of view."""
    points = outline(camera, solid)
    if points is None:
        return None
    low, high = np.clip(points.min(0), 0, 1), np.clip(points.max(0), 0, 1)
    return (float(low[0]), float(low[1]), float(high[0]), float(high[1])) if (high > low).all() else None


def _cut(solid: np.ndarray) -> np.ndarray:
    """Corners [k, 3] of what is left of a box in front of the near plane."""
    kept = list(solid[solid[:, 2] >= NEAR_M])
    for a, b in EDGES:
        p, q = solid[a], solid[b]
        if (p[2] < NEAR_M) != (q[2] < NEAR_M):
            kept.append(p + (q - p) * (NEAR_M - p[2]) / (q[2] - p[2]))
    return np.array(kept).reshape(-1, 3)
