"""Where cameras sit on a car: the six channels of nuScenes, for the town to film from and for exports to assume."""

from dataclasses import dataclass

import numpy as np

CAM_FRONT = "CAM_FRONT"


@dataclass(frozen=True)
class Mount:
    """A level camera as seen from the front camera, all of them at one height.

    forward_m, left_m  where its lens is, metres;  yaw  where it looks, radians to the left of straight ahead
    """

    forward_m: float
    left_m: float
    yaw: float


# Directions and places of the lenses as on the cars of nuScenes (Caesar et al. 2020, table 2 and figure 4), rounded.
MOUNTS = {
    CAM_FRONT: Mount(0.0, 0.0, 0.0),
    "CAM_FRONT_LEFT": Mount(-0.2, 0.5, float(np.radians(55))),
    "CAM_FRONT_RIGHT": Mount(-0.2, -0.5, float(np.radians(-55))),
    "CAM_BACK": Mount(-1.7, 0.0, float(np.pi)),
    "CAM_BACK_LEFT": Mount(-0.7, 0.5, float(np.radians(110))),
    "CAM_BACK_RIGHT": Mount(-0.7, -0.5, float(np.radians(-110))),
}
