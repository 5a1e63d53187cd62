"""Cars on the lanes: each follows the one in front (intelligent driver model), slows in bends, waits at junctions."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data_prep.town.paths import Path, direction
from data_prep.town.roads import CLEAR_M, LANE_M, ROAD_M, SIDE_M, STOP_M, Roads
from data_prep.town.tracks import STEP_S, between_steps
from data_prep.town.vehicles import BUS_PAINTS, CARS, PAINTS, Model, vehicle

ACCELERATION, BRAKING, SIDEWAYS = 1.5, 2.5, 2.2  # m/s^2
GAP_M, HEADWAY_S = 2.5, 1.3
EGO_LENGTH_M = 4.4
START_M = 12.0  # where on its lane the camera car starts, unless it is to see what lies behind it
CONFLICT_M = 12.0  # half the stretch of a lane that crossing cars occupy


@dataclass
class Lane:
    """A path with its speed limit, and where cars must wait (`stop_m`, inf if nowhere)."""

    path: Path
    stop_m: float
    limit: np.ndarray  # [n] m/s at the path's points
    crossing: np.ndarray | None = None  # [2] middle of the junction it crosses


@dataclass
class Driver:
    """A moving vehicle. `s` is its middle along the lane; `camera` marks the car the camera is in."""

    lane: Lane
    s: float
    v: float
    cruise_mps: float
    length: float
    model: Model | None  # None: the camera car


@dataclass
class Traffic:
    """Moving and parked vehicles. Trajectories are [steps, drivers] every STEP_S."""

    drivers: list[Driver]
    s: np.ndarray
    v: np.ndarray
    parked: list[tuple[Model, np.ndarray, float]]  # model, position [2], yaw

    def along(self, time_s: float) -> np.ndarray:
        """Where every driver is on its lane, [drivers] metres."""
        return between_steps(self.s, time_s)

    def speed(self, time_s: float) -> np.ndarray:
        """[drivers] metres a second."""
        return between_steps(self.v, time_s)


def build_traffic(
    rng, roads: Roads, seconds: float, crowdedness: float, speed_mps: tuple[float, float], start: float = START_M
) -> Traffic:
    """Fill the lanes, simulate, park cars at the kerbs. Driver 0 carries the camera, from `start` metres on."""
    cruise = rng.uniform(*speed_mps)
    forward, oncoming = _lane(roads.lane(LANE_M / 2)), _lane(Path(roads.lane(-LANE_M / 2).points[::-1]))
    speed = min(cruise, float(np.interp(start, forward.path.s, forward.limit)))
    drivers = [Driver(forward, start, speed, cruise, EGO_LENGTH_M, None)]
    if crowdedness > 0:
        _fill(rng, drivers, forward, start + rng.uniform(11, 45), crowdedness, speed_mps, 55)
        _fill(rng, drivers, oncoming, rng.uniform(0, 40) - cruise * seconds, crowdedness, speed_mps, 42)
        for lane in _side_lanes(roads):
            _fill(rng, drivers, lane, rng.uniform(0, 50), crowdedness, speed_mps, 45)
        if start > START_M:
            _fill(rng, drivers, forward, rng.uniform(0, 40), crowdedness, speed_mps, 55, last_m=start - 11)
    s, v = _simulate(drivers, [forward, oncoming], int(np.ceil(seconds / STEP_S)) + 2)
    return Traffic(drivers, s, v, _park(rng, roads, crowdedness))


def _lane(path: Path, stop_m: float = np.inf, crossing: np.ndarray | None = None) -> Lane:
    """The fastest speed that bends allow, braking in time for them."""
    limit = np.sqrt(SIDEWAYS / np.maximum(path.curvature, 1e-3)).tolist()
    ahead = np.diff(path.s).tolist()
    for index in range(len(ahead) - 1, -1, -1):
        limit[index] = min(limit[index], math.sqrt(limit[index + 1] ** 2 + 2 * 1.5 * ahead[index]))
    return Lane(path, stop_m, np.array(limit), crossing)


def _side_lanes(roads: Roads) -> list[Lane]:
    """Lanes of the streets that the route does not follow: through at a crossing, up to or away from a turn."""
    lanes = []
    for junction in roads.junctions:
        for number, arm in enumerate(junction.arms()):
            if number in (0, 2 + junction.turn):
                continue  # the route itself
            out, side = direction(arm), np.array([-direction(arm)[1], direction(arm)[0]]) * LANE_M / 2
            far, near = junction.centre + out * SIDE_M, junction.centre + out * (STOP_M + 1)
            if junction.turn:
                lanes.append(_lane(Path(np.array([far, near]) + side), SIDE_M - STOP_M - 1.5))
                lanes.append(_lane(Path(np.array([near, far]) - side)))
            else:
                through = np.array([far, 2 * junction.centre - far]) + side
                lanes.append(_lane(Path(through), SIDE_M - STOP_M - 1, junction.centre))
    return lanes


def _model(rng: np.random.Generator, heavy_share: float = 0.14) -> Model:
    if rng.random() < heavy_share:
        kind = str(rng.choice(["truck", "bus"]))
        palette = PAINTS if kind == "truck" else BUS_PAINTS
    else:
        kind, palette = str(rng.choice(list(CARS), p=[0.3, 0.25, 0.15, 0.2, 0.1])), PAINTS
    return vehicle(kind, palette[rng.integers(len(palette))])


def _fill(
    rng, drivers: list, lane: Lane, first_m: float, crowdedness: float, speed_mps, gap_m: float, last_m: float = np.inf
) -> None:
    s = first_m
    while s < min(lane.path.length, last_m):
        model = _model(rng)
        cruise = rng.uniform(*speed_mps) * 1.1
        v = min(cruise, float(np.interp(s, lane.path.s, lane.limit)))
        if abs(s - lane.stop_m) > 14:  # nobody starts inside a junction, nor too late to brake for it
            drivers.append(Driver(lane, s, v, cruise, model.size[0], model))
        s += model.size[0] + 5 + rng.exponential(gap_m / crowdedness)


def _simulate(drivers: list[Driver], main: list[Lane], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and speeds [steps, drivers]."""
    s, v = np.array([d.s for d in drivers]), np.array([d.v for d in drivers])
    ahead = _leaders(drivers)
    stop = np.array([d.lane.stop_m if d.s < d.lane.stop_m else np.inf for d in drivers])
    half = np.array([d.length / 2 for d in drivers])
    cruise = np.array([d.cruise_mps for d in drivers])
    crossing = _crossings(drivers, main)
    lanes = {id(d.lane): d.lane for d in drivers}
    on_lane = [(lane, [i for i, d in enumerate(drivers) if d.lane is lane]) for lane in lanes.values()]
    limit = np.empty(len(drivers))
    track_s, track_v = [s.copy()], [v.copy()]
    for _ in range(steps):
        for index, conflicts in crossing.items():
            if np.isfinite(stop[index]) and stop[index] - s[index] < 12 and _gap_is_safe(s, v, conflicts):
                stop[index] = np.inf
        leader_gap = np.where(ahead >= 0, s[ahead] - half[ahead] - half - s, np.inf)
        leader_v = np.where(ahead >= 0, v[ahead], 0)
        stop_gap = stop - half - s
        gap, front_v = np.minimum(stop_gap, leader_gap), np.where(stop_gap < leader_gap, 0, leader_v)
        for lane, members in on_lane:
            limit[members] = np.interp(s[members], lane.path.s, lane.limit)
        v = np.clip(v + STEP_S * _acceleration(v, np.minimum(cruise, limit), gap, v - front_v), 0, None)
        s = s + STEP_S * v
        track_s.append(s.copy())
        track_v.append(v.copy())
    return np.array(track_s), np.array(track_v)


def _acceleration(v: np.ndarray, limit: np.ndarray, gap: np.ndarray, closing: np.ndarray) -> np.ndarray:
    """Intelligent driver model, Treiber, Hennecke and Helbing 2000, equations 2 and 3."""
    wanted = GAP_M + np.maximum(0, v * HEADWAY_S + v * closing / (2 * np.sqrt(ACCELERATION * BRAKING)))
    free = 1 - (v / limit) ** 4
    return np.maximum(ACCELERATION * (free - (wanted / np.maximum(gap, 0.3)) ** 2), -8.0)


def _leaders(drivers: list[Driver]) -> np.ndarray:
    """Index of the driver in front on the same lane, -1 for none."""
    ahead = np.full(len(drivers), -1)
    for lane in {id(d.lane) for d in drivers}:
        row = sorted((i for i, d in enumerate(drivers) if id(d.lane) == lane), key=lambda i: drivers[i].s)
        for behind, front in pairwise(row):
            ahead[behind] = front
    return ahead


def _crossings(drivers: list[Driver], main: list[Lane]) -> dict[int, list[tuple[int, float]]]:
    """For each driver who crosses the route: the drivers on it and where on their lane they would meet."""
    found = {}
    for index, driver in enumerate(drivers):
        if driver.lane.crossing is not None:
            meet = {id(lane): lane.path.nearest(driver.lane.crossing) for lane in main}
            found[index] = [(i, meet[id(d.lane)]) for i, d in enumerate(drivers) if id(d.lane) in meet]
    return found


def _gap_is_safe(s: np.ndarray, v: np.ndarray, conflicts: list[tuple[int, float]]) -> bool:
    """True if nobody on the route is at the junction or reaches it within seven seconds."""
    return all(not (-CONFLICT_M < meet - s[i] < CONFLICT_M + 7 * max(v[i], 3)) for i, meet in conflicts)


def _park(rng: np.random.Generator, roads: Roads, crowdedness: float) -> list[tuple[Model, np.ndarray, float]]:
    """Cars at the kerb, facing the way of the traffic beside them."""
    parked = []
    for street in roads.streets:
        for side in (-1, 1):
            share = min(1.0, rng.uniform(0.2, 0.75) * crowdedness)
            along = np.arange(rng.uniform(3, 8), street.path.length, 6.3)
            drawn = [(_model(rng, heavy_share=0.0), rng.uniform(-0.3, 0.3), rng.random()) for _ in along]
            if not drawn:
                continue
            models, wobble, lot = zip(*drawn, strict=True)
            points, headings = street.path.at(along + wobble, side * (ROAD_M - 1.15))
            taken = (np.array(lot) < share) & roads.clear_of_junctions(points, CLEAR_M + 6)
            turned = headings + (np.pi if side < 0 else 0)
            parked += [(models[i], points[i], float(turned[i])) for i in np.flatnonzero(taken)]
    return parked
