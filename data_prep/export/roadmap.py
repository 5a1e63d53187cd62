"""The map of a scene as nuScenes keeps it: a picture from above, white where a car may drive, 0.1 m a pixel."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

METRES_PER_PIXEL = 0.1  # fixed by nuscenes.utils.map_mask
MARGIN_M = 60.0  # the devkit cuts 57 m about the car out of the picture
LANE_M = 3.5


@dataclass(frozen=True)
class Layer:
    """A row of the MAPS table: mask [h, w] uint8, 255 where the layer is; world position of its lower left corner."""

    mask: np.ndarray
    x_m: float
    y_m: float
    metres_per_pixel: float


def origin_of(places: np.ndarray) -> np.ndarray:
    """World position [2] of the lower left corner of the map about places [n, 2]: whole metres, MARGIN_M away.

    Masks of nuScenes begin at x = y = 0, so this is also what positions are moved by.
    """
    return np.floor(places.min(0) - MARGIN_M)


def road_mask(places: np.ndarray, drivable: Sequence[Layer]) -> np.ndarray:
    """Mask [h, w] uint8 0 or 255 about where the car was, places [n, 2] in order; up is +y.

    It shows the drivable area if that is known, and else what is known to be drivable: one lane along the drive.
    """
    origin = origin_of(places)
    width, height = np.ceil((places.max(0) + MARGIN_M - origin) / METRES_PER_PIXEL).astype(int).tolist()
    mask = np.zeros((height, width), np.uint8)
    for layer in drivable:
        mask |= _moved(layer, origin, (width, height))
    if not drivable:
        pixels = (places - origin) / METRES_PER_PIXEL * [1, -1] + [0, height]
        thickness = round(LANE_M / METRES_PER_PIXEL)
        cv2.polylines(mask, [np.round(pixels).astype(np.int32)], isClosed=False, color=(255,), thickness=thickness)
    return mask


def _moved(layer: Layer, origin: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A layer on the grid of a map of `size` (width, height) pixels."""
    scale = layer.metres_per_pixel / METRES_PER_PIXEL
    left = (layer.x_m - origin[0]) / METRES_PER_PIXEL
    top = size[1] - (layer.y_m + len(layer.mask) * layer.metres_per_pixel - origin[1]) / METRES_PER_PIXEL
    # Corners map to corners; OpenCV counts from the middles of pixels.
    shift = np.array([left, top]) + (scale - 1) / 2
    return cv2.warpAffine(
        layer.mask, np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]), size, flags=cv2.INTER_NEAREST
    )
