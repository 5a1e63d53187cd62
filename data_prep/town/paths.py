"""Lines that things move along: a smooth curve addressed by the distance travelled on it."""

from functools import cached_property

import numpy as np

STEP_M = 0.5  # spacing of the stored points


def direction(heading: np.ndarray | float) -> np.ndarray:
    """Unit vectors [..., 2] of headings [...] (radians, counter-clockwise from east)."""
    return _pairs(np.cos(heading), np.sin(heading))


def right_of(heading: np.ndarray | float) -> np.ndarray:
    """Unit vectors [..., 2] a quarter turn clockwise of the headings [...]."""
    return _pairs(np.sin(heading), -np.cos(heading))


def _pairs(x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
    """x [...] and y [...] side by side, [..., 2]; np.stack takes five times longer for single numbers."""
    pairs = np.empty((*np.shape(x), 2), np.result_type(x))
    pairs[..., 0], pairs[..., 1] = x, y
    return pairs


class Path:
    """A curve through points [n, 2] (metres), resampled every half metre."""

    def __init__(self, points: np.ndarray):
        points = np.asarray(points, np.float64)
        along = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
        self.length = float(along[-1])
        self.s = np.linspace(0, self.length, max(3, round(self.length / STEP_M) + 1))
        self.points = np.stack([np.interp(self.s, along, points[:, axis]) for axis in (0, 1)], -1)

    @cached_property
    def heading(self) -> np.ndarray:
        """[n] radians at the stored points, unwrapped."""
        tangent = np.gradient(self.points, self.s, axis=0)
        return np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0]))

    @cached_property
    def curvature(self) -> np.ndarray:
        """[n] 1/metres, absolute."""
        return np.abs(np.gradient(self.heading, self.s))

    def at(self, s: np.ndarray | float, offset: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Points [..., 2] and headings [...] at distances s [...], moved `offset` metres to the right."""
        heading = np.interp(s, self.s, self.heading)
        point = _pairs(np.interp(s, self.s, self.points[:, 0]), np.interp(s, self.s, self.points[:, 1]))
        return point + right_of(heading) * np.asarray(offset)[..., None], heading

    def nearest(self, point: np.ndarray) -> float:
        """Distance along the path of its point nearest to `point` [2]."""
        return float(self.s[np.argmin(((self.points - point) ** 2).sum(1))])
