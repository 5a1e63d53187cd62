"""Generated video in space: poses from the way that was asked to be driven, places of boxes from lens and depth."""

from dataclasses import dataclass

import numpy as np

from data_prep.annotations import camera_pose
from data_prep.export.rig import FRONT_M
from drivesim.config import option
from drivesim.errors import UserError
from drivesim.generation.layout_file import Lens
from drivesim.geometry import EDGES, NEAR_M, corners

AT_EDGE = 1e-6  # a side this near to the picture's is taken to be cut off by it


@dataclass
class LensOptions:
    """The lens of layouts that name none; square pixels, principal point in the middle of the width."""

    fov: float = option(77.0, "horizontal field of view, degrees; the town's is 77")
    horizon: float = option(0.5, "height of the horizon, as share of the picture from its top; the town's is 0.44")

    def check(self) -> None:
        """raises UserError for values that cannot work"""
        if not 0 < self.fov < 180:
            raise UserError(f"lens.fov is {self.fov}; expected degrees above 0 and below 180")
        if not -1 <= self.horizon <= 2:
            raise UserError(f"lens.horizon is {self.horizon}; expected -1..2")

    def lens(self, height: int, width: int) -> Lens:
        """The lens of pictures of so many pixels."""
        focal = 0.5 / float(np.tan(np.radians(self.fov) / 2))
        return Lens(focal, focal * width / height, 0.5, self.horizon)


def intrinsics(lens: Lens, height: int, width: int) -> np.ndarray:
    """[3, 3] in pixels."""
    return np.array([[lens.fx * width, 0, lens.cx * width], [0, lens.fy * height, lens.cy * height], [0, 0, 1]])


def poses(travel: np.ndarray, heading: np.ndarray) -> np.ndarray | None:
    """Camera to world [T, 4, 4] of a level camera that sets out at the origin, looking north; None where the way is
    not known.

    travel   [T] metres driven forward: along the view of the frame before, as `ego_motion` adds them up
    heading  [T] radians turned to the right
    """
    if not np.isfinite([travel, heading]).all():
        return None
    turn, middle = np.diff(heading), (heading[1:] + heading[:-1]) / 2
    chord = np.diff(travel) / np.cos(turn / 2)  # from place to place along an arc
    east, north = (np.append(0.0, np.cumsum(chord * part)) for part in (np.sin(middle), np.cos(middle)))
    found = np.stack([camera_pose(*place) for place in zip(east, north, heading, strict=True)])
    found[:, 2, 3] = FRONT_M[2]  # above the road
    return found


def centres(boxes: np.ndarray, solids: np.ndarray, lens: Lens) -> np.ndarray:
    """Where boxes are [n, 3], metres in the camera frame: there where they fill their outline on the picture.

    boxes   [n, 4] x1, y1, x2, y2, fractions of the picture
    solids  [n, 5] depth, length, width, height in metres and yaw in radians, as `drivesim.clip.SOLID`
    NaN where a solid is not known, lies behind the camera, or is cut off by the picture on two opposite sides.
    """
    depth, size, yaw = solids[:, 0], solids[:, 1:4], solids[:, 4]
    ahead = np.stack([np.zeros_like(depth), np.zeros_like(depth), depth], 1)
    points, seen = _seen_points(corners(ahead, size, yaw))
    slopes = (boxes - [lens.cx, lens.cy] * 2) / ([lens.fx, lens.fy] * 2)  # metres aside a metre ahead
    slopes = np.where((boxes <= AT_EDGE) | (boxes >= 1 - AT_EDGE), np.nan, slopes)
    x, y = (_aside(slopes[:, axis], slopes[:, axis + 2], points[..., axis], points[..., 2], seen) for axis in (0, 1))
    found = np.stack([x, y, depth], 1)
    return np.where(seen.any(1)[:, None] & np.isfinite(found).all(1)[:, None], found, np.nan)


def _seen_points(solid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points that may bound the outline of solids, of which corners [n, 8, 3] are given, and which of them are
    there [n, 20]: the corners before the near plane, and where edges pass through it."""
    first, last = (solid[:, list(ends)] for ends in zip(*EDGES, strict=True))
    passed = (first[..., 2] < NEAR_M) != (last[..., 2] < NEAR_M)
    share = (NEAR_M - first[..., 2]) / np.where(passed, last[..., 2] - first[..., 2], 1)
    through = first + (last - first) * share[..., None]
    return np.concatenate([solid, through], 1), np.concatenate([solid[..., 2] >= NEAR_M, passed], 1)


def _aside(low: np.ndarray, high: np.ndarray, offset: np.ndarray, depth: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """How far to move solids aside [n] for their outline to reach from `low` to `high` [n]; the mean where both are
    known, as rounding and movement between two keyframes make them differ, NaN where neither is.

    offset, depth, seen  [n, points]: metres, and which count. The outermost point touches its side, all others lie
    within, so each bounds the place from one side.
    """
    from_high = np.where(seen, high[:, None] * depth - offset, np.inf).min(1)
    from_low = np.where(seen, low[:, None] * depth - offset, -np.inf).max(1)
    with np.errstate(invalid="ignore"):  # nothing bounds what lies behind the camera: inf - inf is NaN
        return (np.where(np.isnan(low), from_high, from_low) + np.where(np.isnan(high), from_low, from_high)) / 2
