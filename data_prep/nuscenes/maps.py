"""Road maps around a drive from the map expansion of nuScenes, where it is there."""

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import matplotlib
import numpy as np
import shapely

from data_prep.source import MapLayer, Refused
from drivesim.data.schema import MAP_LAYERS

if TYPE_CHECKING:
    from nuscenes.map_expansion.map_api import NuScenesMap

AROUND_M = 50.0  # how far beyond the path the map reaches
LARGEST_M = 3000.0  # a drive of 20 s is 600 m long at most; the pictures of a path that jumps would fill the memory
METRES_PER_PIXEL = 0.25
SUBPIXEL_BITS = 4


def map_layers(root: Path, location: str, path: np.ndarray) -> list[MapLayer]:
    """The layers around a path [n, 2], metres in the world of the map; none where there is no map of the location.

    raises  Refused if the map is damaged, outdated or of a place unknown to the devkit, or the path too long
    """
    if "/" in location or not os.path.isfile(root / "maps" / "expansion" / f"{location}.json"):
        return []
    low, high = np.floor(path.min(0) - AROUND_M), np.ceil(path.max(0) + AROUND_M)
    size = high - low
    if size.max() > LARGEST_M:
        raise Refused(f"no road map: the path spans {size.max():.0f} m, more than {LARGEST_M:.0f}")
    middle = (low + high) / 2
    patch = (middle[0], middle[1], size[1], size[0])
    try:
        geometry = _open(root, location).explorer.get_map_geom(patch, 0.0, list(MAP_LAYERS))
    except Exception as error:  # the devkit raises nothing more special, for an outdated map say
        raise Refused(f"no road map: {location}.json cannot be used ({type(error).__name__}: {error})") from error
    place = {"x_m": float(low[0]), "y_m": float(low[1]), "metres_per_pixel": METRES_PER_PIXEL}
    return [MapLayer(name, _mask(shapes, size), **place) for name, shapes in geometry]


@lru_cache(maxsize=2)  # a map is some 100 MB; scenes of one place mostly follow each other
def _open(root: Path, location: str) -> "NuScenesMap":
    with matplotlib.rc_context():  # the module changes how all plots of the process look
        from nuscenes.map_expansion.map_api import NuScenesMap
    return NuScenesMap(str(root), location)


def _mask(shapes: list, size: np.ndarray) -> np.ndarray:
    """Draw shapes, metres from the middle of the map, x east, y north -> bool [h, w], up is north.

    The devkit's own drawing cannot draw lines in parts with shapely 2.
    """
    width, height = np.round(size / METRES_PER_PIXEL).astype(int)
    mask = np.zeros((height, width), np.uint8)
    for part in shapely.get_parts(shapes):
        for piece in shapely.get_parts(part):
            if piece.geom_type == "Polygon":
                rings = [_pixels(ring.coords, size) for ring in (piece.exterior, *piece.interiors)]
                cv2.fillPoly(mask, rings, [1], shift=SUBPIXEL_BITS)  # together, so that holes stay open
            elif piece.geom_type == "LineString":
                cv2.polylines(mask, [_pixels(piece.coords, size)], False, [1], shift=SUBPIXEL_BITS)
    return mask.astype(bool)


def _pixels(points: shapely.coords.CoordinateSequence, size: np.ndarray) -> np.ndarray:
    """Fixed-point pixels as OpenCV wants them, whose whole numbers are the middles of pixels."""
    x, y = np.asarray(points)[:, :2].T
    pixels = np.stack([x + size[0] / 2, size[1] / 2 - y], -1) / METRES_PER_PIXEL - 0.5
    return np.round(pixels * 2**SUBPIXEL_BITS).astype(np.int32)
