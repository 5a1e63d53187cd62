"""Ground truth: the boxes of things, in the camera frame and on the picture."""

from dataclasses import dataclass

import numpy as np

from data_prep.source import Box
from data_prep.town.painter import Visibility
from data_prep.town.view import CAMERA_HEIGHT_M, View
from drivesim.clip import Camera
from drivesim.geometry import corners, picture_box

BOXED_M = 80.0  # things farther away are drawn but have no box
SMALLEST_PX = 4.0  # boxes lower than this are left out


@dataclass(frozen=True)
class Thing:
    """Something with a box: position [2] on the ground, heading, (length, width, height) in metres."""

    track: int
    name: str
    position: np.ndarray
    heading: float
    size: tuple[float, float, float]


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
