"""Fills solids from far to near (painter's order), and keeps count of which object each pixel ends up showing."""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from data_prep.town.light import Light, haze, shade
from data_prep.town.mesh import Polygons
from data_prep.town.sorting import nearest_distance, object_distance
from data_prep.town.view import SHIFT, View, outlines

ID_SCALE = 4  # the id picture is this many times smaller
GLOW_PX = 64
THINNEST_DETAIL_PX = 1.0  # details fade in from this size on


@dataclass
class Scene:
    """What is to be painted in one frame.

    polygons   their owners are rows of `parts`
    parts      [p, 5] x, y, yaw, half length, half width: rectangles on the ground
    objects    [p] which object a part belongs to: 0 scenery, 1.. things with a box
    lamp, beam [n] light from street lamps and headlights on each polygon
    glows      (part, camera-frame point [3], radius in metres, colour in 0..1)
    """

    polygons: Polygons
    parts: np.ndarray
    objects: np.ndarray
    lamp: np.ndarray
    beam: np.ndarray
    glows: list[tuple[int, np.ndarray, float, np.ndarray]]


@dataclass
class Visibility:
    """own [k] id pixels an object covers; seen [k] how many of them nothing covers in turn; index 0 is scenery."""

    own: np.ndarray
    seen: np.ndarray

    def share(self, number: int) -> float:
        return float(self.seen[number] / self.own[number]) if self.own[number] else 0.0


def paint(image: np.ndarray, view: View, scene: Scene, light: Light) -> Visibility:
    """Draw a scene over `image` [h, w, 3] uint8 in place."""
    polygons = scene.polygons
    eye = np.array([*view.position, view.pose[2, 3]], np.float32)
    outward = ((eye - polygons.points[:, 0]) * polygons.normal).sum(1)
    facing = np.flatnonzero((outward > 0) | (polygons.normal == 0).all(1))
    thinnest = np.where(polygons.detail[facing], THINNEST_DETAIL_PX, 0.0)
    shapes = outlines(view, polygons.points[facing], polygons.corners[facing], thinnest_px=thinnest)
    index = facing[shapes.index]
    order = _far_to_near(scene, polygons.owner[index], view.position)
    index, pixels = index[order], shapes.fixed()[order]
    colours = _colours(polygons[index], scene, index, shapes, order, light)
    low, high = shapes.low[order], shapes.high[order]
    solid = ~polygons.detail[index]
    strokes = _Strokes(polygons.owner[index], solid, pixels, shapes.corners[order], colours, low, high)
    return _fill(image, view, scene, strokes)


def _far_to_near(scene: Scene, owners: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Objects by distance, the parts of an object by distance; polygons of a part keep their order."""
    part = nearest_distance(scene.parts, position)
    whole = object_distance(scene.parts, scene.objects, part, position)
    return np.lexsort((-part[owners], -whole[owners]))


def _colours(polygons: Polygons, scene: Scene, index, shapes, order, light: Light) -> list:
    size = (shapes.high - shapes.low)[order].min(1, keepdims=True)
    clearly = np.where(polygons.detail[:, None], np.clip((size - THINNEST_DETAIL_PX) / 1.5, 0, 1), 1)
    albedo = polygons.base + (polygons.albedo - polygons.base) * clearly
    colour = shade(light, polygons.normal, albedo, polygons.emission * clearly, scene.lamp[index], scene.beam[index])
    return np.clip(haze(light, colour, shapes.distance[order]) * 255, 0, 255).tolist()


@dataclass
class _Strokes:
    """Polygons in painting order: owner [n], solid [n] (not a detail), fixed-point pixels, colours, pixel bounds."""

    owner: np.ndarray
    solid: np.ndarray
    pixels: np.ndarray
    corners: np.ndarray
    colours: list
    low: np.ndarray
    high: np.ndarray


def _fill(image: np.ndarray, view: View, scene: Scene, strokes: _Strokes) -> Visibility:
    """Draw each part, its ids and its glows; count the id pixels of an object as it is drawn, and again at the end."""
    pixels, colours = strokes.pixels, strokes.colours
    ids = np.zeros((view.height // ID_SCALE, view.width // ID_SCALE), np.int32)
    # The same fixed-point numbers, read with two more fractional bits, are pixels of the smaller picture.
    small = pixels - ((ID_SCALE - 1) << SHIFT) // 2
    own = np.zeros(scene.objects.max(initial=0) + 1, np.int64)
    glows: dict[int, list] = {}
    for part, *glow in scene.glows:
        glows.setdefault(part, []).append(glow)
    if len(strokes.owner) == 0:
        return Visibility(own, own.copy())
    bounds = np.flatnonzero(np.diff(strokes.owner, prepend=-1, append=-1))
    low, high, counted = _id_bounds(strokes, bounds[:-1], scene.objects)
    fill, corners, solid = cv2.fillConvexPoly, strokes.corners.tolist(), strokes.solid.tolist()
    for (start, stop), covers in zip(pairwise(bounds.tolist()), counted, strict=True):
        part = int(strokes.owner[start])
        number = int(scene.objects[part])
        for i in range(start, stop):
            outline = pixels[i, : corners[i]]
            fill(image, outline, colours[i], cv2.LINE_AA, SHIFT)
            if covers and solid[i]:
                fill(ids, small[i, : corners[i]], (number,), cv2.LINE_8, SHIFT + 2)
        if number:
            (x0, y0), (x1, y1) = low[number], high[number]
            own[number] = np.count_nonzero(ids[y0:y1, x0:x1] == number)
        for glow in glows.get(part, ()):
            _add_glow(image, view, *glow)
    seen = np.bincount(ids.ravel(), minlength=len(own))
    return Visibility(own, seen)


def _id_bounds(strokes: _Strokes, starts: np.ndarray, objects: np.ndarray) -> tuple[list, list, list]:
    """For each object, the corners of the id pixels it may touch; for each part, whether its ids count.

    Scenery that touches no object's rectangle would only set to 0 what is 0.
    """
    numbers = objects[strokes.owner[starts]]
    part_low = np.clip(np.minimum.reduceat(strokes.low, starts) / ID_SCALE - 1, 0, 1e6).astype(int)
    part_high = (np.maximum.reduceat(strokes.high, starts) / ID_SCALE + 2).astype(int)
    low, high = np.full((objects.max() + 1, 2), 10**6), np.zeros((objects.max() + 1, 2), int)
    np.minimum.at(low, numbers, part_low)
    np.maximum.at(high, numbers, part_high)
    touches = (part_low[:, None] <= high[None, 1:]) & (part_high[:, None] >= low[None, 1:])
    return low.tolist(), high.tolist(), touches.all(-1).any(-1).tolist()


def _glow_sprite() -> np.ndarray:
    axis = np.linspace(-1, 1, GLOW_PX, dtype=np.float32)
    radius = np.hypot(axis[:, None], axis[None])
    return np.clip(1 - radius, 0, 1) ** 2.5


_SPRITE = _glow_sprite()


def _add_glow(image: np.ndarray, view: View, point: np.ndarray, radius_m: float, colour: np.ndarray) -> None:
    """Add a soft spot of light at a camera-frame point."""
    u, v = view.to_pixels(point)
    radius = max(2.0, radius_m * view.focal / point[2])
    x0, y0 = round(u - radius), round(v - radius)
    side = 2 * round(radius) + 1
    left, top = max(x0, 0), max(y0, 0)
    right, bottom = min(x0 + side, view.width), min(y0 + side, view.height)
    if left >= right or top >= bottom:
        return
    spot = cv2.resize(_SPRITE, (side, side), interpolation=cv2.INTER_LINEAR)
    spot = spot[top - y0 : bottom - y0, left - x0 : right - x0]
    region = image[top:bottom, left:right]
    cv2.add(region, (spot[..., None] * (colour * 255)).astype(np.uint8), dst=region)
