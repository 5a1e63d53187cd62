"""What KITTI's two kinds of labels have in common: classes, visibility, and how an object becomes a box."""

from dataclasses import dataclass

import numpy as np

from data_prep.kitti.calibration import Calibration
from data_prep.source import NAN, Box
from drivesim.clip import Camera
from drivesim.geometry import picture_box

CLASSES = {
    "Car": "car",
    "Van": "car",
    "Truck": "truck",
    "Tram": "bus",
    "Pedestrian": "pedestrian",
    "Person_sitting": "pedestrian",  # as KITTI tracking writes it
    "Person (sitting)": "pedestrian",  # as KITTI raw writes it
    "Cyclist": "cyclist",
}
LEFT_OUT = ("Misc", "DontCare")


@dataclass(frozen=True)
class Labelled:
    """An object in one frame, in the rectified coordinates of camera 0 (x right, y down, z forward), metres.

    solid  [8, 3] its corners, in the order of drivesim.geometry.corners
    yaw    as in data_prep.source.Box
    xyxy   its box on the picture, pixels, where the label gives one; else it is found by projecting `solid`
    """

    track: int
    name: str
    visibility: float
    centre: np.ndarray
    size: tuple[float, float, float]
    yaw: float
    solid: np.ndarray
    xyxy: np.ndarray | None = None

    def box(self, calibration: Calibration, height: int, width: int) -> Box | None:
        """The box in a camera whose pictures are height x width pixels; None out of view."""
        xyxy = self._on_picture(calibration, height, width)
        if xyxy is None:
            return None
        x, y, z = (self.centre + calibration.offset).tolist()
        return Box(self.track, self.name, xyxy, self.visibility, (x, y, z), self.size, self.yaw)

    def _on_picture(
        self, calibration: Calibration, height: int, width: int
    ) -> tuple[float, float, float, float] | None:
        if self.xyxy is not None:
            x1, y1, x2, y2 = (self.xyxy / [width, height, width, height]).tolist()
            return x1, y1, x2, y2
        if np.isnan(self.solid).any():
            return None  # the label gives no 3D box
        return picture_box(Camera(calibration.intrinsics, height, width), self.solid + calibration.offset)


def visibility(occlusion: dict[int, float], occluded: int, truncation: dict[int, float], truncated: int) -> float:
    """Visible share of an object, from KITTI's levels and the tables of what they stand for; NaN for other levels."""
    return occlusion.get(occluded, NAN) * truncation.get(truncated, NAN)


def wrapped(angle: float) -> float:
    """The same angle within [-pi, pi]."""
    return float(np.arctan2(np.sin(angle), np.cos(angle)))
