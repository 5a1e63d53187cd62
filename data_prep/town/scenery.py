"""What stands still beside the streets: houses, hedges, trees, lamp posts and signals."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial import cKDTree

from data_prep.town.houses import STOREY_M, District, house
from data_prep.town.mesh import Builder, Polygons, placed
from data_prep.town.paths import direction, right_of
from data_prep.town.roads import CLEAR_M, PAVEMENT_M, ROAD_M, STOP_M, Roads, Street

LEAVES = [(0.20, 0.38, 0.14), (0.27, 0.44, 0.16), (0.16, 0.33, 0.17), (0.40, 0.45, 0.15), (0.58, 0.40, 0.13)]
BARK = (0.26, 0.20, 0.15)
STEEL = (0.30, 0.32, 0.33)
HEDGE = (0.16, 0.31, 0.13)
LAMP_HEIGHT_M = 6.0
LAMP_GAP_M = 26.0
LARGEST_M = 60.0  # no two plots whose corners are this far apart touch
_GRID = np.stack(np.meshgrid(np.linspace(0, 1, 4), np.linspace(0, 1, 4)), -1).reshape(-1, 2)


@dataclass
class Scenery:
    """Static things. A part is what the painter sorts: a rectangle on the ground.

    watched  tells whether a body at a point [2] is ever seen; the polygons of others are never made
    parts    rows of x, y, yaw, half length, half width
    blobs    rows of x, y, z, radius, r, g, b, nx, ny, nz, part: the leaves of trees
    lamps    rows of x, y, z: where street lamps shine;  lamp_parts: the parts they hang on
    shadows  (outline [k, 2], height): what throws a shadow
    """

    watched: Callable[[np.ndarray], bool]
    polygons: list[Polygons] = field(default_factory=list)
    parts: list[tuple] = field(default_factory=list)
    blobs: list[np.ndarray] = field(default_factory=list)
    lamps: list[np.ndarray] = field(default_factory=list)
    lamp_parts: list[int] = field(default_factory=list)
    shadows: list[tuple[np.ndarray, float]] = field(default_factory=list)

    def place(self, body: Builder, at: np.ndarray, yaw: np.ndarray | float, half: tuple[float, float]) -> None:
        """Stand a body (one part) at a point [2]."""
        if self.watched(at):
            polygons = body.build()
            position = np.tile([at[0], at[1], 0.0], (len(polygons), 1))
            moved = placed(polygons, position, np.full(len(polygons), yaw))
            self.polygons.append(moved.owned_by(len(self.parts)))
        self.parts.append((at[0], at[1], yaw, *half))


def build_scenery(
    rng: np.random.Generator, roads: Roads, district: District, watched: Callable[[np.ndarray], bool]
) -> Scenery:
    """Line every street with plots, trees and lamps."""
    scenery = Scenery(watched)
    taken: list[np.ndarray] = []
    streets = cKDTree(np.concatenate([street.path.points[::2] for street in roads.streets]))
    for street in roads.streets:
        for side in (-1, 1):
            _plots(rng, scenery, street, side, district, streets, taken)
            _trees(rng, scenery, roads, street, side, district)
    for index, street in enumerate(roads.streets):
        _lamps(scenery, roads, street, side=1 if index % 2 else -1)
    _signals(scenery, roads)
    return scenery


def _plots(rng, scenery: Scenery, street: Street, side: int, district: District, streets, taken: list) -> None:
    """Houses in a row along one side, wherever they do not stand on a street or on each other."""
    s = rng.uniform(0, 4)
    while s < street.path.length:
        width = rng.uniform(*district.frontage_m)
        depth, setback = rng.uniform(8, 12), rng.uniform(*district.setback_m)
        front = ROAD_M + PAVEMENT_M + setback
        at, heading = street.path.at(s + width / 2, side * (front + depth / 2))
        yaw = heading + side * np.pi / 2  # its front looks back at the street
        corners = _rectangle(at, yaw, depth / 2, width / 2)
        if _free(corners, streets, taken):
            if rng.random() < district.built_share:
                taken.append(corners)
                body, height = house(rng, width - 0.4, depth, district)
                scenery.place(body, at, yaw, (depth / 2, width / 2))
                scenery.shadows.append((corners, height))
            else:
                for _ in range(int(rng.integers(1, 4))):
                    spot, _ = street.path.at(s + rng.uniform(0, width), side * (front + rng.uniform(2, depth)))
                    _tree(rng, scenery, spot)
            if setback > 2.5 and rng.random() < 0.7:
                _hedge(scenery, street, s, width, side)
            s += width + rng.uniform(0, 1.5 if district.built_share > 0.9 else 4)
        else:
            s += 3.0


def _rectangle(at: np.ndarray, yaw: np.ndarray | float, half_x: float, half_y: float) -> np.ndarray:
    x, y = direction(yaw) * half_x, -right_of(yaw) * half_y
    return np.array([at - x - y, at + x - y, at + x + y, at - x + y])


def _free(corners: np.ndarray, streets: cKDTree, taken: list[np.ndarray]) -> bool:
    inside = corners[0] + _GRID[:, :1] * (corners[1] - corners[0]) + _GRID[:, 1:] * (corners[3] - corners[0])
    if streets.query(inside)[0].min() < ROAD_M + PAVEMENT_M - 0.3:
        return False
    if not taken:
        return True
    close = np.flatnonzero(np.abs(np.array(taken)[:, 0] - corners[0]).max(1) < LARGEST_M)
    return not any(_overlap(corners, taken[i]) for i in close)


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Do two rectangles [4, 2] overlap? Separating axis test."""
    for corners in (a, b):
        for axis in (corners[1] - corners[0], corners[3] - corners[0]):
            p, q = a @ axis, b @ axis
            if p.max() <= q.min() + 1e-6 or q.max() <= p.min() + 1e-6:
                return False
    return True


def _hedge(scenery: Scenery, street: Street, s: float, width: float, side: int) -> None:
    at, heading = street.path.at(s + width / 2, side * (ROAD_M + PAVEMENT_M + 0.5))
    build = Builder()
    build.box(-width / 2 + 0.8, width / 2 - 0.8, 0.3, 0, 1.0, HEDGE)
    scenery.place(build, at, heading, (width / 2, 0.3))


def _clear(roads: Roads, street: Street, s: float, metres: float) -> bool:
    """Is the street's middle at `s` this far from every junction?"""
    point, _ = street.path.at(s)
    return all(np.linalg.norm(point - junction.centre) > metres for junction in roads.junctions)


def _trees(rng, scenery: Scenery, roads: Roads, street: Street, side: int, district: District) -> None:
    s = rng.uniform(0, district.tree_gap_m)
    while s < street.path.length:
        if _clear(roads, street, s, CLEAR_M + 1.5) and rng.random() < 0.85:
            _tree(rng, scenery, street.path.at(s, side * (ROAD_M + 0.8))[0])
        s += district.tree_gap_m * rng.uniform(0.7, 1.4)


def _tree(rng, scenery: Scenery, at: np.ndarray) -> None:
    """A trunk and a heap of leaf blobs, dark ones within and bright ones without."""
    crown, trunk = rng.uniform(1.3, 2.2), rng.uniform(1.9, 2.8)
    build = Builder()
    build.box(-0.13, 0.13, 0.13, 0, trunk + crown * 0.6, BARK)
    part = len(scenery.parts)
    scenery.place(build, at, rng.uniform(0, np.pi), (0.0, 0.0))
    count = 44
    outward = rng.normal(size=(count, 3))
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    far = np.r_[np.zeros(1), rng.uniform(0.55, 0.92, count - 1)]
    radius = np.r_[0.74, rng.uniform(0.16, 0.36, count - 1)] * crown
    centre = np.array([*at, trunk + crown * 0.95]) + outward * (far * crown)[:, None] * [1, 1, 1.15]
    leaf = np.array(LEAVES[rng.choice(5, p=[0.3, 0.3, 0.22, 0.12, 0.06])])
    colour = leaf * rng.uniform(0.82, 1.18, (count, 1))
    colour[0] *= 0.7
    normal = outward * 0.8 + [0, 0, 0.35]
    normal[0] = 0
    rows = np.concatenate([centre, radius[:, None], colour, normal, np.full((count, 1), part)], 1)
    scenery.blobs.append(rows.astype(np.float32))
    ring = np.linspace(0, 2 * np.pi, 9)[:-1]
    scenery.shadows.append((at + np.stack([np.cos(ring), np.sin(ring)], -1) * crown * 0.9, -(trunk + crown)))


def _lamps(scenery: Scenery, roads: Roads, street: Street, side: int) -> None:
    for s in np.arange(8, street.path.length, LAMP_GAP_M):
        if not _clear(roads, street, s, ROAD_M + 3):
            continue
        side = -side
        at, heading = street.path.at(s, side * (ROAD_M + 0.45))
        build = Builder()
        build.box(-0.07, 0.07, 0.07, 0, LAMP_HEIGHT_M, STEEL)
        build.box(0, 1.7, 0.05, LAMP_HEIGHT_M - 0.1, LAMP_HEIGHT_M, STEEL)
        light = (1.0, 0.85, 0.55)
        build.box(1.1, 1.8, 0.14, LAMP_HEIGHT_M - 0.16, LAMP_HEIGHT_M - 0.02, (0.85, 0.85, 0.8), emission=light)
        yaw = heading + side * np.pi / 2
        scenery.place(build, at, yaw, (0.0, 0.0))
        scenery.lamp_parts.append(len(scenery.parts) - 1)
        scenery.lamps.append(np.array([*(at + direction(yaw) * 1.45), LAMP_HEIGHT_M - 0.1]))


def _signals(scenery: Scenery, roads: Roads) -> None:
    """Traffic lights: green along the route, red from the sides."""
    for junction in roads.junctions:
        for number, arm in enumerate(junction.arms()):
            straight = number in (0, 2) if junction.turn == 0 else number in (0, 2 + junction.turn)
            at = junction.centre + direction(arm) * (STOP_M - 0.6) - right_of(arm) * (ROAD_M + 0.5)
            scenery.place(_signal(green=bool(straight)), at, arm, (0.0, 0.0))


def _signal(green: bool) -> Builder:
    """A post with three lights that look along +x."""
    build = Builder()
    build.box(-0.06, 0.06, 0.06, 0, 2.4, STEEL)
    build.box(-0.14, 0.14, 0.18, 2.4, STOREY_M + 0.4, (0.10, 0.10, 0.10))
    ring = np.linspace(0, 2 * np.pi, 9)[:-1]
    red, amber, lime = (0.95, 0.1, 0.08), (0.9, 0.6, 0.1), (0.1, 0.85, 0.4)
    for z, colour, on in ((3.2, red, not green), (2.9, amber, False), (2.6, lime, green)):
        disc = [(0.15, 0.11 * np.cos(a), z + 0.11 * np.sin(a)) for a in ring]
        shown = colour if on else tuple(0.25 * np.array(colour))
        build.add(disc, shown, (1, 0, 0), (0.1, 0.1, 0.1), tuple(np.multiply(colour, 1.0 if on else 0.0)))
    return build
