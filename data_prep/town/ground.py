"""The ground as flat quads in painting order: pavements, kerbs, carriageways, markings."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data_prep.town.paths import direction, right_of
from data_prep.town.roads import LANE_M, PAVEMENT_M, ROAD_M, STOP_M, ZEBRA_M, Junction, Roads, Street

ASPHALT = (0.44, 0.44, 0.455)
PATCH = (0.38, 0.38, 0.39)
PAVEMENT = (0.62, 0.60, 0.57)
JOINT = (0.54, 0.52, 0.50)
KERB = (0.69, 0.68, 0.65)
GUTTER = (0.34, 0.34, 0.35)
PAINT = (0.77, 0.77, 0.74)
IRON = (0.22, 0.22, 0.23)
GRASS = (0.36, 0.46, 0.24)
YARD = (0.52, 0.49, 0.44)
DASH_M, DASH_GAP_M = 3.0, 6.0
MARKING_M = 0.13
UNMARKED_M = STOP_M + 1.0


@dataclass
class Ground:
    """points [n, 4, 2] metres; albedo [n, 3]; base [n, 3] what a narrow mark fades to when it is far away."""

    points: np.ndarray
    albedo: np.ndarray
    base: np.ndarray


class _Quads:
    def __init__(self) -> None:
        self.points: list[np.ndarray] = []
        self.albedo: list[tuple] = []
        self.base: list[tuple] = []

    def strip(self, knots: np.ndarray, inner: float, outer: float, colour: tuple, base: tuple | None = None) -> None:
        """A band along knots [k, 3] between two offsets to the right."""
        right = right_of(knots[:, 2])
        a, b = knots[:, :2] + right * inner, knots[:, :2] + right * outer
        for i in range(len(knots) - 1):
            self.quad(np.array([a[i], a[i + 1], b[i + 1], b[i]]), colour, base)

    def quad(self, points: np.ndarray, colour: tuple, base: tuple | None = None) -> None:
        self.points.append(points)
        self.albedo.append(colour)
        self.base.append(base or colour)

    def across(self, at, heading: np.ndarray | float, length: float, u0: float, u1: float, colour, base) -> None:
        """A rectangle from `at` forward by `length`, between offsets u0 and u1 to the right."""
        along, right = direction(heading) * length, right_of(heading)
        self.quad(
            np.array([at + right * u0, at + along + right * u0, at + along + right * u1, at + right * u1]), colour, base
        )


def build_ground(rng: np.random.Generator, roads: Roads) -> Ground:
    """All quads of a street plan."""
    quads = _Quads()
    pavement = tuple(np.clip(np.multiply(PAVEMENT, rng.uniform(0.88, 1.08)), 0, 1))
    asphalt = tuple(np.multiply(ASPHALT, rng.uniform(0.85, 1.12)))
    outer = ROAD_M + PAVEMENT_M
    pieces = [_pieces(street.knots) for street in roads.streets]
    for knots in pieces:
        quads.strip(knots, -outer, outer, pavement)
    for street in roads.streets:
        _joints(quads, street, pavement)
    for knots in pieces:
        quads.strip(knots, -ROAD_M - 0.28, ROAD_M + 0.28, KERB, pavement)
    for junction in roads.junctions:
        _corners(quads, junction, asphalt)
    for reach, colour in ((ROAD_M, GUTTER), (ROAD_M - 0.2, asphalt)):
        for knots in pieces:
            quads.strip(knots, -reach, reach, colour)
    for street in roads.streets:
        _wear(rng, quads, street, asphalt)
        _markings(quads, roads, street, asphalt)
    for junction in roads.junctions:
        _junction_marks(quads, junction, asphalt)
    return Ground(*(np.array(rows, np.float32) for rows in (quads.points, quads.albedo, quads.base)))


def _pieces(knots: np.ndarray, longest_m: float = 24.0) -> np.ndarray:
    """Cut long straights, so that what is out of sight can be left out."""
    rows = [knots[:1]]
    for a, b in pairwise(knots):
        steps = max(1, int(np.ceil(np.linalg.norm(b[:2] - a[:2]) / longest_m)))
        rows.append(a + (b - a) * np.linspace(0, 1, steps + 1)[1:, None])
    return np.concatenate(rows)


def _joints(quads: _Quads, street: Street, pavement: tuple) -> None:
    for at, heading in zip(*street.path.at(np.arange(0, street.path.length, 1.8)), strict=True):
        for side in (-1, 1):
            quads.across(at, heading, 0.05, side * (ROAD_M + 0.28), side * (ROAD_M + PAVEMENT_M), JOINT, pavement)


def _corners(quads: _Quads, junction: Junction, asphalt: tuple) -> None:
    """Cut the kerb's corners, as wheels do."""
    for arm in junction.arms():
        ahead, right = direction(arm), right_of(arm)
        corner = junction.centre + (ahead + right) * ROAD_M
        for reach, colour in ((3.3, KERB), (3.0, asphalt)):
            quads.quad(
                np.array([corner - ahead - right, corner + ahead * reach, corner + right * reach, corner - right]),
                colour,
            )


def _wear(rng: np.random.Generator, quads: _Quads, street: Street, asphalt: tuple) -> None:
    """Mended patches and manhole covers: they show how fast one drives."""
    for s in np.arange(rng.uniform(0, 15), street.path.length, 13):
        at, heading = street.path.at(s + rng.uniform(0, 8))
        u = rng.uniform(-ROAD_M + 0.5, ROAD_M - 2)
        if rng.random() < 0.5:
            quads.across(at, heading, rng.uniform(1.5, 5), u, u + rng.uniform(0.7, 2), PATCH, asphalt)
        else:
            quads.across(at, heading, 0.65, u, u + 0.65, IRON, asphalt)


def _markings(quads: _Quads, roads: Roads, street: Street, asphalt: tuple) -> None:
    """Parking lines and the broken line in the middle, left out at junctions."""
    period = DASH_M + DASH_GAP_M
    along = np.arange(0, street.path.length - DASH_M, DASH_M)
    starts, ends = (np.column_stack(street.path.at(s)) for s in (along, along + DASH_M))
    marked = roads.clear_of_junctions((starts[:, :2] + ends[:, :2]) / 2, UNMARKED_M + DASH_M / 2)
    for index in np.flatnonzero(marked):
        piece = np.stack([starts[index], ends[index]])
        if index % round(period / DASH_M) == 0:
            quads.strip(piece, -MARKING_M / 2, MARKING_M / 2, PAINT, asphalt)
        for side in (-1, 1):
            quads.strip(piece, side * LANE_M, side * (LANE_M + 0.1), PAINT, asphalt)


def _junction_marks(quads: _Quads, junction: Junction, asphalt: tuple) -> None:
    for arm in junction.arms():
        # Traffic towards the junction keeps to the left of the outward direction.
        quads.across(junction.centre + direction(arm) * STOP_M, arm, 0.4, -LANE_M, -0.1, PAINT, asphalt)
        if junction.zebra:
            start = junction.centre + direction(arm) * ZEBRA_M[0]
            for u in np.arange(-ROAD_M + 0.4, ROAD_M - 0.5, 1.0):
                quads.across(start, arm, ZEBRA_M[1] - ZEBRA_M[0], u, u + 0.5, PAINT, asphalt)
