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
        self._points: list[list] = []
        self._rows: list[tuple] = []

    def add(self, points, albedo, normal, base=None, emission=(0.0, 0.0, 0.0), owner: int = 0) -> None:
        """Add one polygon [k, 3] with an outward normal of any length. `base` makes it a detail."""
        x, y, z = normal
        length = math.hypot(x, y, z)
        unit = (x / length, y / length, z / length) if length > 0 else (0.0, 0.0, 0.0)
        self._points.append([*points, *points[-1:] * (CORNERS - len(points))])
        under = albedo if base is None else base
        self._rows.append((len(points), unit, albedo, under, emission, base is not None, owner))

    def prism(
        self, profile, half_width_low: float, half_width_high: float, albedo, owner: int = 0, emission=(0.0, 0.0, 0.0)
    ) -> None:
        """A convex solid: `profile` [k, 2] (x, z) anticlockwise, extruded in y, narrower toward its top."""
        heights = [z for _, z in profile]
        low, high, wider = min(heights), max(heights), half_width_high - half_width_low
        left = [(x, half_width_low + wider * (z - low) / (high - low), z) for x, z in profile]
        right = [(x, -y, z) for x, y, z in left]
        centre = _mean([*left, *right])
        faces = [left, right] + [[left[i - 1], left[i], right[i], right[i - 1]] for i in range(len(left))]
        for face in faces:
            normal = _normal(face)
            inward = sum(n * (a - b) for n, a, b in zip(normal, _mean(face), centre, strict=True)) < 0
            self.add(face, albedo, [-n for n in normal] if inward else normal, emission=emission, owner=owner)

    def box(self, x0: float, x1: float, half_width: float, z0: float, z1: float, albedo, **more) -> None:
        """An axis-aligned box, symmetric about the body's middle plane."""
        self.prism([(x0, z0), (x1, z0), (x1, z1), (x0, z1)], half_width, half_width, albedo, **more)

    def build(self) -> Polygons:
        """Everything added so far."""
        corners, normal, albedo, base, emission, detail, owner = zip(*self._rows, strict=True)
        as32 = lambda rows: np.asarray(rows, np.float32).reshape(-1, 3)  # noqa: E731
        return Polygons(
            np.asarray(self._points, np.float32),
            np.asarray(corners),
            as32(normal),
            as32(albedo),
            as32(base),
            as32(emission),
            np.asarray(detail, bool),
            np.asarray(owner),
        )


def _mean(points: list) -> list[float]:
    return [sum(column) / len(points) for column in zip(*points, strict=True)]


def _normal(face: list) -> list[float]:
    """Vector product of the first two edges."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = face[:3]
    ux, uy, uz, vx, vy, vz = bx - ax, by - ay, bz - az, cx - bx, cy - by, cz - bz
    return [uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx]


def placed(polygons: Polygons, position: np.ndarray, yaw: np.ndarray) -> Polygons:
    """Move bodies to where they stand: position [n, 3] and yaw [n] of the body each polygon belongs to."""
    cos, sin = np.cos(yaw).astype(np.float32), np.sin(yaw).astype(np.float32)

    def turned(v: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        return np.stack([v[..., 0] * cos - v[..., 1] * sin, v[..., 0] * sin + v[..., 1] * cos, v[..., 2]], -1)

    points = turned(polygons.points, cos[:, None], sin[:, None]) + position[:, None].astype(np.float32)
    return replace(polygons, points=points, normal=turned(polygons.normal, cos, sin))
