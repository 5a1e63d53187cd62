"""Outlines of shadows on level ground, in bulk."""

import cv2
import numpy as np

from data_prep.town.mesh import CORNERS


def shadow_outlines(casters: list[tuple[np.ndarray, float]], sun: np.ndarray) -> np.ndarray:
    """Shadows [n, CORNERS, 3] thrown by (outline [k, 2], height) in the light of `sun` (unit, towards it).

    A negative height means a crown that floats: only its top throws a shadow, not the air below it.
    """
    shift_per_metre = -sun[:2] / max(sun[2], 0.15)
    rows = [_hull(outline, shift_per_metre * abs(height), floating=height < 0) for outline, height in casters]
    return np.stack(rows) if rows else np.zeros((0, CORNERS, 3), np.float32)


def _hull(outline: np.ndarray, shift: np.ndarray, floating: bool) -> np.ndarray:
    low = outline + shift * 0.55 if floating else outline
    hull = cv2.convexHull(np.concatenate([low, outline + shift]).astype(np.float32))[:, 0]
    if len(hull) > CORNERS:
        hull = hull[np.linspace(0, len(hull) - 1, CORNERS).round().astype(int)]
    flat = np.zeros((CORNERS, 3), np.float32)
    flat[: len(hull), :2], flat[len(hull) :, :2] = hull, hull[-1]
    return flat


def on_ground(outlines: np.ndarray) -> np.ndarray:
    """Convex outlines [n, k, 2] as padded polygons [n, CORNERS, 3] at height 0."""
    padded = np.concatenate([outlines, np.repeat(outlines[:, -1:], CORNERS - outlines.shape[1], 1)], 1)
    return np.concatenate([padded, np.zeros_like(padded[..., :1])], -1).astype(np.float32)


def footprints(parts: np.ndarray, grow_m: float = 0.0) -> np.ndarray:
    """Corner points [n, 4, 2] of rectangles given as rows of x, y, yaw, half length, half width."""
    local = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float) * (parts[:, None, 3:5] + grow_m)
    cos, sin = np.cos(parts[:, 2:3]), np.sin(parts[:, 2:3])
    x, y = local[..., 0], local[..., 1]
    return np.stack([x * cos - y * sin, x * sin + y * cos], -1) + parts[:, None, :2]
