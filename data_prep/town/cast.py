"""The moving part of a frame: vehicles and people as polygons, with their lights and their boxes."""

from dataclasses import dataclass, field

import numpy as np

from data_prep.town.light import lamp_glow
from data_prep.town.mesh import Polygons, placed
from data_prep.town.paths import direction
from data_prep.town.tracks import between_steps, places
from data_prep.town.traffic import Traffic
from data_prep.town.truth import Thing
from data_prep.town.vehicles import HEADLIGHT_GLOW, TAIL_GLOW
from data_prep.town.view import View
from data_prep.town.walkers import CYCLIST_SIZE, PEDESTRIAN_SIZE, Walker, figure

SEEN_M = 130.0
WALKERS_SEEN_M = 75.0
NEAREST_WALKER_M = 0.8
BEHIND_M = 10.0  # things this far behind the camera may still reach into the picture


@dataclass
class Cast:
    """parts and objects as in `painter.Scene`, numbered from 0 and 1; lamp [n] light on each polygon."""

    things: list[Thing] = field(default_factory=list)
    polygons: list[Polygons] = field(default_factory=list)
    lamp: list[np.ndarray] = field(default_factory=list)
    parts: list[np.ndarray] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    glows: list[tuple[int, np.ndarray, float, np.ndarray]] = field(default_factory=list)


class Company:
    """All vehicles and walkers of a route. Track ids: vehicles 1.., then walkers."""

    def __init__(self, traffic: Traffic, walkers: list[Walker], lamps: np.ndarray, lights_on: bool):
        self.traffic, self.walkers, self.lamps, self.lights_on = traffic, walkers, lamps, lights_on
        moving = [driver.model for driver in traffic.drivers if driver.model is not None]
        self.models = moving + [model for model, _, _ in traffic.parked]
        self.moving = len(moving)
        drivers, steps = traffic.drivers[1:], len(traffic.s)
        driven = [places(driver.lane.path, traffic.s[:, i]) for i, driver in enumerate(drivers, start=1)]
        self._driven = np.stack(driven, 1) if driven else np.zeros((steps, 0, 3))
        self._parked = np.array([(*point, yaw) for _, point, yaw in traffic.parked]).reshape(-1, 3)
        walked = [walker.track(steps) for walker in walkers]
        self._walked = np.stack(walked, 1) if walked else np.zeros((steps, 0, 3))
        shapes = [model.polygons for model in self.models]
        self._shapes = Polygons.cat(shapes) if shapes else None
        self._vehicle = np.repeat(np.arange(len(shapes)), [len(s) for s in shapes])
        if self._shapes is not None:
            self._shapes.emission[self._vehicle >= self.moving] = 0  # parked cars are dark

    def vehicles(self, time_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Positions [n, 2] and headings [n] of moving, then parked vehicles; NaN for those off their lane."""
        table = np.concatenate([between_steps(self._driven, time_s), self._parked])
        return table[:, :2], table[:, 2]

    def cast(self, view: View, time_s: float, without: frozenset[int]) -> Cast:
        """Everybody in sight; `without` leaves out these track ids."""
        cast = Cast()
        self._add_vehicles(cast, view, time_s, without)
        places_now = between_steps(self._walked, time_s)
        offset = places_now[:, :2] - view.position
        seen = ((offset**2).sum(1) < WALKERS_SEEN_M**2) & (offset @ direction(view.heading) > NEAREST_WALKER_M)
        for number in np.flatnonzero(seen):
            track = len(self.models) + 1 + int(number)
            if track not in without:
                self._add_walker(cast, view, track, places_now[number], time_s)
        return cast

    def _add_vehicles(self, cast: Cast, view: View, time_s: float, without: frozenset[int]) -> None:
        if self._shapes is None:
            return
        position, heading = self.vehicles(time_s)
        offset = position - view.position
        seen = ((offset**2).sum(1) < SEEN_M**2) & (offset @ direction(view.heading) > -BEHIND_M)  # NaN compares False
        seen[[track - 1 for track in without if track <= len(seen)]] = False
        first_part = np.zeros(len(seen), int)
        for i in np.flatnonzero(seen):
            model = self.models[i]
            cast.things.append(Thing(int(i) + 1, model.name, position[i], float(heading[i]), model.size))
            first_part[i] = len(cast.parts)
            along = direction(heading[i])
            for x0, x1, half_width in model.parts:
                middle = position[i] + along * (x0 + x1) / 2
                cast.parts.append(np.array([*middle, heading[i], (x1 - x0) / 2, half_width]))
                cast.objects.append(len(cast.things))
            if self.lights_on and i < self.moving:
                self._add_lights(cast, view, cast.things[-1], int(first_part[i]), len(model.parts))
        chosen = np.flatnonzero(seen[self._vehicle])
        vehicle = self._vehicle[chosen]
        shapes = self._shapes[chosen]
        where = np.concatenate([position, np.zeros((len(position), 1))], 1)[vehicle]
        shapes = placed(shapes, where, heading[vehicle])
        shapes.owner = first_part[vehicle] + shapes.owner
        lamp = lamp_glow(np.concatenate([np.nan_to_num(position), np.ones((len(position), 1))], 1), self.lamps)
        cast.polygons.append(shapes)
        cast.lamp.append(lamp[vehicle])

    def _add_lights(self, cast: Cast, view: View, thing: Thing, part: int, parts: int) -> None:
        """Soft spots at the lamps of the end that one sees."""
        length, width, _ = thing.size
        along = direction(thing.heading)
        across = np.array([-along[1], along[0]])
        from_front = (view.position - thing.position) @ along > 0
        sign, height, radius, colour = (1, 0.66, 0.85, HEADLIGHT_GLOW) if from_front else (-1, 0.76, 0.5, TAIL_GLOW)
        owner = part + (parts - 1 if from_front else 0)
        for side in (-1, 1):
            spot = thing.position + along * sign * length / 2 + across * side * (width / 2 - 0.2)
            local = view.to_camera(np.array([*spot, height], np.float32))
            if local[2] > 1.5:
                cast.glows.append((owner, local, radius, 0.75 * np.array(colour, np.float32)))

    def _add_walker(self, cast: Cast, view: View, track: int, place: np.ndarray, time_s: float) -> None:
        walker = self.walkers[track - len(self.models) - 1]
        at, heading = place[:2], float(place[2])
        size = CYCLIST_SIZE if walker.name == "cyclist" else PEDESTRIAN_SIZE
        cast.things.append(Thing(track, walker.name, at, heading, size))
        cast.objects.append(len(cast.things))
        body = figure(walker, at, heading, walker.walked(time_s), view.position)
        cast.polygons.append(body.owned_by(len(cast.parts)))
        cast.lamp.append(np.repeat(lamp_glow(np.array([[*at, 1.0]]), self.lamps), len(body)))
        cast.parts.append(np.array([*at, heading, 0.0, 0.0]))
