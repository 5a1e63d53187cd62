"""Flat convex polygons in bulk, and a builder that collects them."""

import math
from dataclasses import dataclass, fields, replace

import numpy as np

CORNERS = 10  # most corners a polygon may have; arrays are padded by repeating the last one


@dataclass
class Polygons:
    """Convex polygons as arrays; order within an owner is drawing order.

    points    [n, CORNERS, 3] metres;  corners [n] how many of them count
    normal    [n, 3] outward;  two_sided polygons have a zero normal
    albedo    [n, 3] in 0..1;  base [n, 3] what lies under a detail, which it fades to when small
    emission  [n, 3] light given off when lamps are on, in 0..1
    detail    [n] lies flat on another polygon
    owner     [n] index of the part it belongs to
    """

    points: np.ndarray
    corners: np.ndarray
    normal: np.ndarray
    albedo: np.ndarray
    base: np.ndarray
    emission: np.ndarray
    detail: np.ndarray
    owner: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index) -> "Polygons":
        return Polygons(*(getattr(self, f.name)[index] for f in fields(self)))

    def owned_by(self, owner: int) -> "Polygons":
        return replace(self, owner=np.full(len(self), owner))

    @staticmethod
    def cat(sets: list["Polygons"]) -> "Polygons":
        return Polygons(*(np.concatenate([getattr(s, f.name) for s in sets]) for f in fields(Polygons)))


class Builder:
    """Collects polygons of one body in its own frame (x forward, y left, z up)."""

    def __init__(self) -> None:
        self._points: list[np.ndarray] = []
        self._rows: list[tuple] = []

    def add(self, points, albedo, normal=None, base=None, emission=(0.0, 0.0, 0.0), owner: int = 0) -> None:
        """Add one polygon [k, 3]; without a normal, the right-hand one of its corners. `base` makes it a detail."""
        points = np.asarray(points, np.float32)
        if normal is None:
            normal = _cross(points[1] - points[0], points[2] - points[1])
        length = math.hypot(*normal)
        normal = np.asarray(normal) / length if length > 0 else np.zeros(3)
        padded = np.concatenate([points, np.repeat(points[-1:], CORNERS - len(points), 0)])
        self._points.append(padded)
        under = albedo if base is None else base
        self._rows.append((len(points), normal, albedo, under, emission, base is not None, owner))

    def prism(self, profile, half_width_low: float, half_width_high: float, albedo, owner: int = 0) -> None:
        """A convex solid: `profile` [k, 2] (x, z) anticlockwise, extruded in y, narrower toward its top."""
        profile = np.asarray(profile, float)
        low, high = profile[:, 1].min(), profile[:, 1].max()
        half = half_width_low + (half_width_high - half_width_low) * (profile[:, 1] - low) / (high - low)
        left = np.stack([profile[:, 0], half, profile[:, 1]], -1)
        right = left * [1, -1, 1]
        centre = np.concatenate([left, right]).mean(0)
        faces = [left, right] + [np.stack([left[i - 1], left[i], right[i], right[i - 1]]) for i in range(len(profile))]
        for face in faces:
            normal = _cross(face[1] - face[0], face[2] - face[1])
            outward = np.sign(normal @ (face.mean(0) - centre)) or 1.0
            self.add(face, albedo, normal * outward, owner=owner)

    def box(self, x0: float, x1: float, half_width: float, z0: float, z1: float, albedo, owner: int = 0) -> None:
        """An axis-aligned box, symmetric about the body's middle plane."""
        self.prism([(x0, z0), (x1, z0), (x1, z1), (x0, z1)], half_width, half_width, albedo, owner)

    def build(self) -> Polygons:
        """Everything added so far."""
        corners, normal, albedo, base, emission, detail, owner = zip(*self._rows, strict=True)
        as32 = lambda rows: np.asarray(rows, np.float32).reshape(-1, 3)  # noqa: E731
        return Polygons(
            np.stack(self._points),
            np.asarray(corners),
            as32(normal),
            as32(albedo),
            as32(base),
            as32(emission),
            np.asarray(detail, bool),
            np.asarray(owner),
        )


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Vector product of two vectors; np.cross takes ten times longer for so little."""
    (ax, ay, az), (bx, by, bz) = a.tolist(), b.tolist()
    return np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])


def placed(polygons: Polygons, position: np.ndarray, yaw: np.ndarray) -> Polygons:
    """Move bodies to where they stand: position [n, 3] and yaw [n] of the body each polygon belongs to."""
    cos, sin = np.cos(yaw).astype(np.float32), np.sin(yaw).astype(np.float32)

    def turned(v: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        return np.stack([v[..., 0] * cos - v[..., 1] * sin, v[..., 0] * sin + v[..., 1] * cos, v[..., 2]], -1)

    points = turned(polygons.points, cos[:, None], sin[:, None]) + position[:, None].astype(np.float32)
    return replace(polygons, points=points, normal=turned(polygons.normal, cos, sin))
