"""People: pedestrians on pavements and zebra crossings, and cyclists at the edge of the lane."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data_prep.town.mesh import CORNERS, Polygons
from data_prep.town.paths import Path, direction, right_of
from data_prep.town.roads import LANE_M, PAVEMENT_M, ROAD_M, ZEBRA_M, Roads
from data_prep.town.tracks import STEP_S, places
from data_prep.town.traffic import Traffic

SKIN = [(0.85, 0.66, 0.54), (0.55, 0.38, 0.27), (0.94, 0.78, 0.66), (0.36, 0.24, 0.17)]
CLOTHES = [
    (0.75, 0.15, 0.15), (0.15, 0.25, 0.55), (0.85, 0.80, 0.70), (0.15, 0.15, 0.17), (0.25, 0.45, 0.30),
    (0.90, 0.65, 0.15), (0.50, 0.30, 0.50), (0.35, 0.55, 0.75),
]  # fmt: skip
TROUSERS = [(0.12, 0.14, 0.22), (0.25, 0.22, 0.20), (0.10, 0.10, 0.11), (0.42, 0.38, 0.30)]
RUBBER = (0.05, 0.05, 0.06)
PEDESTRIAN_SIZE = (0.7, 0.6, 1.76)
CYCLIST_SIZE = (1.75, 0.6, 1.80)
_TURN = np.linspace(0, 2 * np.pi, CORNERS + 1)[:-1]
ROUND = np.stack([np.cos(_TURN), np.sin(_TURN)])


@dataclass(frozen=True)
class Walker:
    """Someone who moves along a path at an even pace; hidden off its ends."""

    name: str  # pedestrian or cyclist
    path: Path
    offset: float  # metres to the right
    s0: float
    speed_mps: float  # negative: against the path
    phase: float
    skin: tuple
    top: tuple
    legs: tuple

    def track(self, steps: int) -> np.ndarray:
        """x, y, heading [steps, 3] every STEP_S; NaN when off the path."""
        table = places(self.path, self.s0 + self.speed_mps * STEP_S * np.arange(steps), self.offset)
        table[:, 2] += np.pi if self.speed_mps < 0 else 0
        return table

    def walked(self, time_s: float) -> float:
        """Metres gone, which moves the legs."""
        return abs(self.speed_mps) * time_s + self.phase


def build_walkers(rng: np.random.Generator, roads: Roads, traffic: Traffic, crowdedness: float) -> list[Walker]:
    """Everybody on foot or bicycle; nobody when the streets are to be empty."""
    if crowdedness <= 0:
        return []
    walkers = []
    for street in roads.streets:
        for side in (-1, 1):
            walkers += _strollers(rng, street.path, side, crowdedness, roads)
    for junction in roads.junctions:
        if junction.zebra and rng.random() < min(1, 0.7 * crowdedness):
            walkers += _crossing(rng, junction, traffic)
    for offset, lane in ((LANE_M - 0.3, roads.lane(LANE_M - 0.3)), (0.3 - LANE_M, roads.lane(0.3 - LANE_M))):
        for s in np.arange(rng.uniform(22, 60), lane.length, 70 / crowdedness):
            cycling = rng.uniform(3.5, 5.5) * np.sign(offset)
            walkers.append(_person(rng, "cyclist", lane, 0.0, s + rng.uniform(-12, 12), cycling))
    return walkers


def _person(rng: np.random.Generator, name: str, path: Path, offset: float, s0: float, speed: float) -> Walker:
    pick = lambda palette: palette[rng.integers(len(palette))]  # noqa: E731
    return Walker(name, path, offset, s0, speed, rng.uniform(0, 2), pick(SKIN), pick(CLOTHES), pick(TROUSERS))


def _strollers(rng, path: Path, side: int, crowdedness: float, roads: Roads) -> list[Walker]:
    """Along one pavement; away from the turns, where the route would cut across them."""
    people = []
    for s in np.arange(rng.uniform(0, 20), path.length, 22 / crowdedness):
        offset = side * (ROAD_M + rng.uniform(1.4, PAVEMENT_M - 0.4))
        speed = rng.uniform(0.9, 1.6) * rng.choice([-1, 1])
        point, _ = path.at(s)
        if all(np.linalg.norm(point - junction.centre) > 35 for junction in roads.junctions):
            people.append(_person(rng, "pedestrian", path, offset, s + rng.uniform(-8, 8), speed))
    return people


def _crossing(rng: np.random.Generator, junction, traffic: Traffic) -> list[Walker]:
    """Someone on the zebra before the junction, at a time when no car comes; nobody if there is no such time."""
    middle = junction.centre - direction(junction.heading) * sum(ZEBRA_M) / 2
    across = right_of(junction.heading) * (ROAD_M + 1.8)
    path = Path(np.array([middle - across, middle + across]))
    speed = rng.uniform(1.0, 1.5)
    for start_s in rng.uniform(-3, len(traffic.s) * STEP_S, 6):
        window = slice(max(0, int((start_s - 1) / STEP_S)), max(0, int((start_s + path.length / speed + 1) / STEP_S)))
        if not _occupied(traffic, middle, window):
            return [_person(rng, "pedestrian", path, 0.0, -speed * start_s, speed)]
    return []


def _occupied(traffic: Traffic, point: np.ndarray, window: slice) -> bool:
    """Does any moving car come within seven metres of the point in these steps?"""
    for index, driver in enumerate(traffic.drivers):
        where, _ = driver.lane.path.at(traffic.s[window, index])
        if len(where) and ((where - point) ** 2).sum(-1).min() < 7.0**2:
            return True
    return False


def figure(walker: Walker, at: np.ndarray, heading: float, walked_m: float, camera: np.ndarray) -> Polygons:
    """The walker as flat limbs turned towards the camera [2], in world coordinates."""
    limbs = _cyclist(walker, walked_m) if walker.name == "cyclist" else _pedestrian(walker, walked_m)
    ends = np.array([(a, b) for a, b, _, _ in limbs], np.float32)
    axes = np.array([[*direction(heading), 0], [*-right_of(heading), 0], [0, 0, 1]], np.float32)
    sight = at - camera
    side = np.array([sight[1], -sight[0], 0], np.float32) / np.float32(np.linalg.norm(sight) + 1e-6)
    thick = np.array([limb[2] for limb in limbs])
    points, corners = _strips(ends @ axes + np.array([*at, 0], np.float32), thick, side)
    colour = np.array([colour for *_, colour in limbs], np.float32)
    none = np.zeros_like(colour)
    return Polygons(points, corners, none, colour, colour, none, np.zeros(len(limbs), bool), np.zeros(len(limbs), int))


def _strips(ends: np.ndarray, thick: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strips between ends [n, 2, 3] as seen along the level direction across `side` [3]; discs where ends coincide.

    returns  points [n, CORNERS, 3], how many corners count [n]
    """
    up = np.array([0, 0, 1], np.float32)
    a, b = ends[:, 0], ends[:, 1]
    u, v = (b - a) @ side, (b - a) @ up
    length = np.hypot(u, v)
    # Seen end on, a limb has no direction on the picture: stand it upright.
    end_on, length = length < 1e-3, np.maximum(length, 1e-3)
    u, v = np.where(end_on, 0, u / length), np.where(end_on, 1, v / length)
    half = (thick / 2)[:, None]
    normal = (v[:, None] * side - u[:, None] * up) * half
    points = np.stack([a - normal, a + normal, b + normal, b - normal], 1)
    points = np.concatenate([points, np.repeat(points[:, -1:], CORNERS - 4, 1)], 1).astype(np.float32)
    disc = (a == b).all(1)
    ring = ROUND[0][:, None] * side + 1.2 * ROUND[1][:, None] * up
    points[disc] = a[disc, None] + half[disc, None] * ring
    return points, np.where(disc, CORNERS, 4)


def _pedestrian(w: Walker, walked_m: float) -> list[tuple]:
    """(end, end, thickness, colour) of each limb, body frame x forward, y left, z up, metres; far limbs first."""
    swing = np.sin(walked_m * 2 * np.pi / 1.4)
    limbs = []
    for side in (-1, 1):
        stride = 0.26 * swing * side
        knee = (stride * 0.55 + 0.04, 0.09 * side, 0.46)
        limbs += [((0, 0.09 * side, 0.88), knee, 0.17, w.legs), (knee, (stride, 0.09 * side, 0.05), 0.13, w.legs)]
        hand = (-0.2 * swing * side, 0.25 * side, 0.82)
        limbs.append(((0, 0.21 * side, 1.38), hand, 0.10, w.top))
    limbs.append(((0, 0, 0.86), (0.02, 0, 1.46), 0.38, w.top))
    limbs.append(((0.02, 0, 1.60), (0.02, 0, 1.60), 0.23, w.skin))
    return limbs


def _cyclist(w: Walker, ridden_m: float) -> list[tuple]:
    turn = ridden_m * 2 * np.pi / 4.0
    limbs: list[tuple] = []
    for x in (-0.52, 0.52):
        rim = [(x + 0.33 * np.cos(a), 0, 0.34 + 0.33 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 11)]
        limbs += [(p, q, 0.06, RUBBER) for p, q in pairwise(rim)]
    frame = w.legs if sum(w.legs) > 0.8 else (0.55, 0.10, 0.12)
    saddle, bars, pedal, hub = (-0.18, 0, 0.92), (0.36, 0, 1.0), (-0.05, 0, 0.36), (-0.52, 0, 0.34)
    tubes = ((saddle, pedal), (pedal, bars), (saddle, bars), (hub, pedal), (bars, (0.52, 0, 0.34)))
    limbs += [(p, q, 0.05, frame) for p, q in tubes]
    for side in (-1, 1):
        angle = turn + (np.pi if side < 0 else 0)
        foot = (-0.05 + 0.16 * np.cos(angle), 0.09 * side, 0.36 + 0.16 * np.sin(angle))
        knee = (0.20 + 0.07 * np.cos(angle), 0.1 * side, 0.72 + 0.08 * np.sin(angle))
        limbs += [((-0.18, 0.09 * side, 0.98), knee, 0.16, w.legs), (knee, foot, 0.12, w.legs)]
        limbs.append(((0.12, 0.2 * side, 1.42), (0.36, 0.22 * side, 1.04), 0.09, w.top))
    limbs.append(((-0.16, 0, 0.95), (0.14, 0, 1.48), 0.36, w.top))
    limbs.append(((0.22, 0, 1.65), (0.22, 0, 1.65), 0.22, w.skin))
    return limbs
