"""The streets of one route: straights, bends and junctions, and the lanes through them."""

from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import gaussian_filter1d

from data_prep.town.paths import STEP_M, Path, direction, right_of

LANE_M = 3.5
ROAD_M = LANE_M + 2.2  # half the carriageway: one lane and a parking strip
PAVEMENT_M = 3.2
ZEBRA_M = (6.4, 9.4)  # from the middle of a junction
STOP_M = 10.2
CLEAR_M = 11.0  # no markings, trees or parked cars nearer to a junction than this
SIDE_M = 95.0  # how far a side street runs from its junction
AHEAD_M = 170.0  # road beyond the end of the drive, further than one can see
STRAIGHT_M = 28.0  # the road runs straight at least this long on either side of a junction


@dataclass
class Street:
    """A stretch of road. `knots` [n, 3]: x, y, heading of its middle, sparse where it is straight."""

    knots: np.ndarray

    def __post_init__(self) -> None:
        self.path = Path(_dense(self.knots, 0.0))


@dataclass
class Junction:
    """Two streets crossing at a right angle; the route goes straight on (turn 0) or turns (+1 left, -1 right)."""

    centre: np.ndarray
    heading: float
    turn: int
    zebra: bool

    def arms(self) -> list[float]:
        """Headings from the middle outward, the street the route comes from first."""
        return [self.heading + np.pi + quarter * np.pi / 2 for quarter in range(4)]


@dataclass
class Roads:
    """streets: all of them; route: the pieces of road the camera car follows, cut at turns."""

    streets: list[Street] = field(default_factory=list)
    junctions: list[Junction] = field(default_factory=list)
    route: list[np.ndarray] = field(default_factory=list)

    def clear_of_junctions(self, points: np.ndarray, metres: float) -> np.ndarray:
        """[n] whether points [n, 2] are farther than this from the middle of every junction."""
        centres = np.array([junction.centre for junction in self.junctions]).reshape(-1, 2)
        return (np.linalg.norm(points[:, None] - centres, axis=-1) > metres).all(1)

    def lane(self, offset: float) -> Path:
        """The route moved `offset` metres to the right of the middle (negative: left), with rounded turns."""
        turns = [junction for junction in self.junctions if junction.turn]
        pieces = []
        for index, knots in enumerate(self.route):
            points = _dense(knots, offset)
            if index > 0:
                points = points[_ahead_of(points, *_turn_ends(turns[index - 1], offset)[1])]
            if index < len(turns):
                start, _, arc = _turn_ends(turns[index], offset)
                points = np.concatenate([points[~_ahead_of(points, *start)], arc])
            pieces.append(points)
        resampled = Path(np.concatenate(pieces)).points
        # Steering takes time: round the steps of curvature over about two metres.
        return Path(gaussian_filter1d(resampled, 2 / STEP_M, axis=0, mode="nearest"))


def build_roads(rng: np.random.Generator, length_m: float) -> Roads:
    """A seeded street plan whose route is at least `length_m` long, plus what one can see beyond."""
    roads = Roads()
    base = heading = rng.uniform(-np.pi, np.pi)
    knots = [np.array([0.0, 0.0, heading])]
    travelled = 0.0
    extend = lambda metres: knots.append(_forward(knots[-1], metres))  # noqa: E731
    extend(rng.uniform(20, 70))
    while travelled < length_m + AHEAD_M:
        if rng.random() < 0.6:
            travelled += _bend(rng, knots, base)
        extend(STRAIGHT_M + rng.uniform(0, 40))
        travelled += STRAIGHT_M
        junction = _junction(rng, knots[-1], base)
        roads.junctions.append(junction)
        if junction.turn:
            roads.streets.append(Street(np.array([*knots, _forward(knots[-1], SIDE_M)])))
            roads.route.append(np.array(knots))
            turned = np.array([*junction.centre, junction.heading + junction.turn * np.pi / 2])
            roads.streets.append(Street(np.array([_forward(turned, -SIDE_M), turned])))
            knots = [turned]
        else:
            side = np.array([*junction.centre, junction.heading + np.pi / 2])
            roads.streets.append(Street(np.array([_forward(side, -SIDE_M), _forward(side, SIDE_M)])))
        extend(STRAIGHT_M + rng.uniform(0, 50))
        travelled += float(np.linalg.norm(knots[-1][:2] - junction.centre))
    roads.streets.append(Street(np.array(knots)))
    roads.route.append(np.array(knots))
    return roads


def _junction(rng: np.random.Generator, knot: np.ndarray, base: float) -> Junction:
    """Go straight or turn, never so that the route could come back to where it was."""
    allowed = [turn for turn in (-1, 1) if abs(knot[2] + turn * np.pi / 2 - base) < np.radians(100)]
    turn = int(rng.choice(allowed)) if allowed and rng.random() < 0.3 else 0
    return Junction(knot[:2].copy(), float(knot[2]), turn, bool(rng.random() < 0.75))


def _bend(rng: np.random.Generator, knots: list[np.ndarray], base: float) -> float:
    """Append an arc that does not stray far from the main direction; returns its length."""
    angle = rng.uniform(np.radians(15), np.radians(50)) * rng.choice([-1, 1])
    if abs(knots[-1][2] + angle - base) > np.radians(100):
        angle = -angle
    radius = rng.uniform(32, 80)
    steps = int(np.ceil(abs(angle) * radius / 3))
    for _ in range(steps):
        x, y, heading = knots[-1]
        chord = 2 * radius * np.sin(abs(angle) / steps / 2)
        middle = heading + angle / steps / 2
        knots.append(np.array([x + chord * np.cos(middle), y + chord * np.sin(middle), heading + angle / steps]))
    return abs(angle) * radius


def _forward(knot: np.ndarray, metres: float) -> np.ndarray:
    return np.array([*(knot[:2] + direction(knot[2]) * metres), knot[2]])


def _dense(knots: np.ndarray, offset: float) -> np.ndarray:
    """Points [n, 2] beside the knots, `offset` metres to the right, close together also on straights."""
    return Path(knots[:, :2] + right_of(knots[:, 2]) * offset).points


def _turn_ends(junction: Junction, offset: float) -> tuple:
    """((start, direction), (end, direction), arc points [n, 2]) of a lane's quarter circle."""
    into = junction.heading + junction.turn * np.pi / 2
    corner = junction.centre + (right_of(junction.heading) + right_of(into)) * offset
    radius = 9.0 if junction.turn * offset < 0 else 11.0  # the inner lane cuts the corner, clear of the kerb
    start, end = corner - direction(junction.heading) * radius, corner + direction(into) * radius
    centre = start - right_of(junction.heading) * radius * junction.turn
    angles = np.linspace(0, junction.turn * np.pi / 2, 30)
    arc = centre + right_of(junction.heading + angles) * radius * junction.turn
    return (start, direction(junction.heading)), (end, direction(into)), arc


def _ahead_of(points: np.ndarray, origin: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Which points lie beyond the line across `origin`; far ones on bends count by order, not by side."""
    nearest = int(np.argmin(((points - origin) ** 2).sum(1)))
    ahead = np.arange(len(points)) > nearest
    ahead[nearest] = (points[nearest] - origin) @ along > 0.1
    return ahead
