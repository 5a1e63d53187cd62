"""A recorded frame, with its boxes and its camera, brought to the size of the store."""

from dataclasses import replace

import numpy as np

from data_prep.source import Box, Frame
from drivesim.classes import VEHICLES
from drivesim.data.video import fit, kept

SMALLEST_PX = 4.0  # boxes that are lower or narrower than this after cropping and resizing are left out
COUNTED_VISIBILITY = 0.15  # vehicles seen less are not counted


def framed(
    frame: Frame,
    size: tuple[int, int],
    crop: str = "center",
    has_boxes: bool = True,
    recorded: tuple[int, int] | None = None,
) -> Frame:
    """Crop and resize a frame to `size` (height, width); boxes, intrinsics and the count of vehicles follow.

    Boxes of `frame` are fractions of the recorded picture and may reach out of it, intrinsics are in its pixels.
    recorded  (height, width) the picture had, where it has been brought to `size` already
    """
    height, width = recorded or frame.image.shape[:2]
    top, left, kept_h, kept_w = kept(height, width, size, crop)
    scale = np.array([size[1] / kept_w, size[0] / kept_h])
    intrinsics = frame.intrinsics
    if intrinsics is not None:
        # The picture's left edge is at 0, as for the boxes.
        intrinsics = np.array(intrinsics, float)
        intrinsics[0, 0], intrinsics[1, 1] = intrinsics[0, 0] * scale[0], intrinsics[1, 1] * scale[1]
        intrinsics[:2, 2] = (intrinsics[:2, 2] - [left, top]) * scale
    boxes = [kept_box for box in frame.boxes if (kept_box := _box(box, (height, width), size, crop)) is not None]
    counted = [box for box in boxes if box.name in VEHICLES and not box.visibility < COUNTED_VISIBILITY]
    return replace(
        frame,
        image=fit(frame.image, size, crop),
        boxes=boxes,
        intrinsics=intrinsics,
        vehicles=float(len(counted)) if has_boxes else frame.vehicles,
    )


def _box(box: Box, recorded: tuple[int, int], size: tuple[int, int], crop: str) -> Box | None:
    """The box in fractions of the kept part, or None if too little of it is left to see."""
    height, width = recorded
    top, left, kept_h, kept_w = kept(height, width, size, crop)
    corners = np.array(box.xyxy, float).reshape(2, 2)
    whole = (corners * [width, height] - [left, top]) / [kept_w, kept_h]
    seen = whole.clip(0, 1)
    if ((seen[1] - seen[0]) * [size[1], size[0]] < SMALLEST_PX).any():
        return None
    shown = np.prod(seen[1] - seen[0]) / np.prod(np.clip(corners, 0, 1)[1] - np.clip(corners, 0, 1)[0])
    shown = min(1.0, float(shown * kept_h * kept_w / (height * width)))  # share of the box that the crop left
    x1, y1, x2, y2 = seen.ravel().tolist()
    return replace(box, xyxy=(x1, y1, x2, y2), visibility=box.visibility * shown)
