"""From metres to pixels: the camera over the road, clipping, and polygons ready to fill."""

from dataclasses import dataclass

import numpy as np

from data_prep.mounts import Mount
from data_prep.town.paths import direction, right_of
from drivesim.geometry import NEAR_M

CAMERA_HEIGHT_M = 1.5
FIELD_OF_VIEW = np.radians(77)  # horizontal
HORIZON = 0.44  # of the picture's height from the top
SHIFT = 4  # fractional bits of the fixed-point pixels that OpenCV draws


@dataclass(frozen=True)
class View:
    """A level pinhole camera at a point of the road; the horizon lies above the middle by shifting the lens.

    position [2] metres, heading radians, height and width pixels
    """

    position: np.ndarray
    heading: float
    height: int
    width: int

    @property
    def focal(self) -> float:
        return self.width / 2 / np.tan(FIELD_OF_VIEW / 2)

    @property
    def centre(self) -> tuple[float, float]:
        return self.width / 2, self.height * HORIZON

    @property
    def intrinsics(self) -> np.ndarray:
        return np.array([[self.focal, 0, self.centre[0]], [0, self.focal, self.centre[1]], [0, 0, 1]])

    @property
    def rotation(self) -> np.ndarray:
        """[3, 3] camera to world; columns are right, down, forward."""
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        return np.array([[sin, 0, cos], [-cos, 0, sin], [0, -1, 0]])

    @property
    def pose(self) -> np.ndarray:
        """[4, 4] camera to world."""
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = self.rotation, [*self.position, CAMERA_HEIGHT_M]
        return pose

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """World points [..., 3] in the camera frame (x right, y down, z forward)."""
        origin = np.array([*self.position, CAMERA_HEIGHT_M], np.float32)
        flat = points.reshape(-1, 3)  # one product of matrices, not one a polygon
        return ((flat - origin) @ self.rotation.astype(np.float32)).reshape(points.shape)

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Camera-frame points [..., 3] with z > 0 to pixels [..., 2]."""
        scale = np.float32(self.focal) / points[..., 2:]
        return points[..., :2] * scale + np.array(self.centre, np.float32)


def mounted(mount: Mount, position: np.ndarray, heading: np.ndarray | float) -> tuple[np.ndarray, np.ndarray | float]:
    """Position [..., 2] and heading [...] of a camera on a car whose front camera is at `position`, `heading`."""
    ahead, right = direction(heading), right_of(heading)
    return position + ahead * mount.forward_m - right * mount.left_m, heading + mount.yaw


def from_front(mount: Mount, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points x to the right and z ahead of a camera, metres, as the front camera of its car sees them."""
    cos, sin = float(np.cos(mount.yaw)), float(np.sin(mount.yaw))
    return x * cos - z * sin - mount.left_m, x * sin + z * cos + mount.forward_m


@dataclass
class Outlines:
    """Polygons on the picture.

    pixels [n, k, 2]; corners [n] how many count; index [n] which of the given polygons each is
    low, high [n, 2] pixel bounds;  distance [n] metres along the view
    """

    pixels: np.ndarray
    corners: np.ndarray
    index: np.ndarray
    low: np.ndarray
    high: np.ndarray
    distance: np.ndarray

    def fixed(self) -> np.ndarray:
        """Fixed-point coordinates for OpenCV, whose pixel centres are whole numbers."""
        return np.round((self.pixels - 0.5) * (1 << SHIFT)).astype(np.int32)


def outlines(
    view: View,
    points: np.ndarray,
    corners: np.ndarray,
    smallest_px: float = 0.6,
    thinnest_px: float | np.ndarray = 0.0,
) -> Outlines:
    """Project polygons [n, k, 3] (world), clip them to the near plane, leave out what is unseen or tiny.

    smallest_px bounds the longer side on the picture, thinnest_px (one for all, or [n]) the shorter.
    """
    local = view.to_camera(points)
    nearest, farthest = _extremes(local[..., 2])
    whole = nearest > NEAR_M
    cut = np.flatnonzero((farthest > NEAR_M) & ~whole)
    index = np.flatnonzero(whole)
    local_whole, count = local[index], corners[index]
    if len(cut):
        clipped = [_clip(local[i, : corners[i]]) for i in cut]
        width = max(points.shape[1], max(len(c) for c in clipped))
        local_whole = np.concatenate([_pad(local_whole, width), *(_pad(c[None], width) for c in clipped)])
        index, count = np.r_[index, cut], np.r_[count, [len(c) for c in clipped]]
    pixels = view.to_pixels(local_whole)
    low, high = _extremes(pixels)
    size = high - low
    thinnest = np.broadcast_to(thinnest_px, len(points))[index]
    inside = (high > 0).all(1) & (low[:, 0] < view.width) & (low[:, 1] < view.height)
    seen = inside & (size.max(1) > smallest_px) & (size.min(1) > thinnest)
    order = np.flatnonzero(seen)
    order = order[np.argsort(index[order], kind="stable")]
    return Outlines(
        pixels[order], count[order], index[order], low[order], high[order], local_whole[order, :, 2].mean(1)
    )


def _extremes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest over axis 1, which is short; several times faster than `min(1)` and `max(1)`."""
    low = high = values[:, 0]
    for k in range(1, values.shape[1]):
        low, high = np.minimum(low, values[:, k]), np.maximum(high, values[:, k])
    return low, high


def _pad(points: np.ndarray, corners: int) -> np.ndarray:
    """Repeat the last corner of polygons [n, k, 3] up to `corners`."""
    missing = corners - points.shape[1]
    return points if missing == 0 else np.concatenate([points, np.repeat(points[:, -1:], missing, 1)], 1)


def _clip(polygon: np.ndarray) -> np.ndarray:
    """The part of a polygon [k, 3] with z >= NEAR_M (Sutherland and Hodgman 1974)."""
    kept = []
    rows = polygon.tolist()  # a handful of corners: plain numbers beat arrays
    for (ax, ay, az), (bx, by, bz) in zip(rows, rows[1:] + rows[:1], strict=True):
        if az >= NEAR_M:
            kept.append((ax, ay, az))
        if (az >= NEAR_M) != (bz >= NEAR_M):
            t = (NEAR_M - az) / (bz - az)
            kept.append((ax + (bx - ax) * t, ay + (by - ay) * t, NEAR_M))
    return np.array(kept, np.float32)
