"""One route of the town: everything that exists on it, and the picture of it at a given time.

A frame is a function of the seed and the time alone, so frames may be asked for in any order and at any rate.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from data_prep.framing import COUNTED_VISIBILITY
from data_prep.mounts import CAM_FRONT, MOUNTS
from data_prep.source import Frame
from data_prep.town.cast import SEEN_M, Cast, Company
from data_prep.town.floor import Floor
from data_prep.town.ground import GRASS, YARD, build_ground
from data_prep.town.houses import DISTRICTS
from data_prep.town.leaves import leaf_polygons
from data_prep.town.light import LAMP_COLOUR, NIGHT_VALUE, Light, build_light, headlight_beam, lamp_glow
from data_prep.town.mesh import CORNERS, Polygons
from data_prep.town.painter import Scene, paint
from data_prep.town.paths import direction, right_of
from data_prep.town.roads import build_roads
from data_prep.town.scenery import Scenery, build_scenery
from data_prep.town.shadows import footprints, on_ground, shadow_outlines
from data_prep.town.sky import build_panorama, draw_sky
from data_prep.town.tracks import STEP_S
from data_prep.town.traffic import START_M, build_traffic
from data_prep.town.truth import boxes_of
from data_prep.town.view import FIELD_OF_VIEW, View, from_front, mounted
from data_prep.town.walkers import build_walkers
from data_prep.town.weather import covered, covered_colour, covered_leaves, covered_scenery, draw_fall, weathered
from drivesim.clip import VEHICLES

SHADOWS_SEEN_M = 90.0
LAMPS_GLOW_M = 90.0
BETWEEN_STEPS_M = 8.0  # far more than the camera's move and turn within STEP_S shift what is SEEN_M away
SKY, FALL = 5, 6  # streams of random numbers
REACH_M = 12.0  # no house is larger than this from its middle


@dataclass(frozen=True)
class Setting:
    """What a route is made of.

    seconds  how long the camera drives;  crowdedness  1 usual, 0 empty streets;  time_of_day  "day", "dusk", "night"
    weather  "rain", "snow", "fog", or empty: dry, with clouds or without
    camera   channel, one of MOUNTS;  start_m  road behind the car at the start: to look back, more than SEEN_M
    """

    seed: tuple[int, ...]
    seconds: float
    height: int = 512
    width: int = 1024
    time_of_day: str = "day"
    crowdedness: float = 1.0
    speed_mps: tuple[float, float] = (4.0, 12.0)
    camera: str = CAM_FRONT
    start_m: float = START_M
    weather: str = ""


def light_of(setting: Setting) -> tuple[Light, np.random.Generator]:
    """The light of a route, and what its sky is drawn with next."""
    rng = np.random.default_rng([*setting.seed, SKY])
    return weathered(build_light(rng, setting.time_of_day), setting.weather), rng


def weather_of(setting: Setting) -> str:
    """One of drivesim.data.schema.WEATHERS."""
    return setting.weather or ("cloudy" if light_of(setting)[0].overcast else "clear")


class World:
    """A route, built once; `frame(time_s)` renders it with its ground truth.

    Settings that differ in the camera alone are one world, filmed from the same car.
    """

    def __init__(self, setting: Setting):
        self.setting, self.mount = setting, MOUNTS[setting.camera]
        # Independent streams: changing the traffic leaves the streets and houses as they are.
        plan, build, surface, drive, walk = (np.random.default_rng([*setting.seed, i]) for i in range(5))
        self.light, sky = light_of(setting)
        self.roads = build_roads(plan, setting.seconds * setting.speed_mps[1] + setting.start_m - START_M)
        style = str(build.choice(list(DISTRICTS)))
        self.traffic = build_traffic(
            drive, self.roads, setting.seconds, setting.crowdedness, setting.speed_mps, setting.start_m
        )
        scenery = build_scenery(build, self.roads, DISTRICTS[style], self._watched())
        lit = scenery.lamps if self.light.lamps > 0 else []
        self.lamps = np.array(lit, np.float32).reshape(-1, 3)
        walkers = build_walkers(walk, self.roads, self.traffic, setting.crowdedness)
        self.company = Company(self.traffic, walkers, self.lamps, self.light.lamps > 0)
        start, beside = self.view(0.0), GRASS if style in ("suburb", "avenue") else YARD
        ground = covered(build_ground(surface, self.roads), setting.weather)
        base = covered_colour(beside, setting.weather)
        self._floor = Floor(surface, ground, self.light, start, self.mount, base, self.lamps)
        self._panorama = build_panorama(sky, self.light, start)
        self._set_scenery(scenery)

    def _set_scenery(self, scenery: Scenery) -> None:
        self._static = covered_scenery(Polygons.cat(scenery.polygons), self.setting.weather)
        self._static_parts = np.array(scenery.parts)
        self._static_lamp = lamp_glow(self._static.points[:, :3].mean(1), self.lamps)
        self._blobs = np.concatenate([np.zeros((0, 11), np.float32), *scenery.blobs])
        self._blobs[:, 4:7] = covered_leaves(self._blobs[:, 4:7], self.setting.weather)
        self._blob_lamp = lamp_glow(self._blobs[:, :3], self.lamps)
        self._lamp_parts = scenery.lamp_parts
        self._sunny = not self.light.overcast and self.light.lamps == 0
        self._shadows = shadow_outlines(scenery.shadows if self._sunny else [], self.light.sun)

    def _watched(self) -> Callable[[np.ndarray], bool]:
        """Whether scenery at a point [2] comes into sight at any time of the drive."""
        ego = self.traffic.drivers[0].lane.path
        times = np.arange(0, self.setting.seconds + STEP_S, STEP_S)
        along = np.array([self.traffic.along(time_s)[0] for time_s in times])
        positions, headings = mounted(self.mount, *ego.at(along))
        return lambda point: bool(_in_sight(point, positions, headings, BETWEEN_STEPS_M).any())

    def view(self, time_s: float) -> View:
        """The camera at a time."""
        position, heading = mounted(self.mount, *self.traffic.drivers[0].lane.path.at(self.traffic.along(time_s)[0]))
        return View(position, float(heading), self.setting.height, self.setting.width)

    def frame(self, time_s: float, without: frozenset[int] = frozenset()) -> Frame:
        """Render the route at a time; `without` leaves out the things with these track ids."""
        view = self.view(time_s)
        cast = self.company.cast(view, time_s, without)
        image = np.empty((view.height, view.width, 3), np.uint8)
        draw_sky(image, self._panorama, view)
        self._floor.draw(image, view, *self._ground_shadows(view, cast))
        visibility = paint(image, view, self._scene(view, cast), self.light)
        draw_fall(image, self.setting.weather, self.light, (*self.setting.seed, FALL, round(time_s * 1e3)))
        boxes = boxes_of(view, cast.things, visibility)
        vehicles = sum(box.name in VEHICLES and box.visibility >= COUNTED_VISIBILITY for box in boxes)
        speed, night = float(self.traffic.speed(time_s)[0]), NIGHT_VALUE[self.setting.time_of_day]
        return Frame(image, boxes, view.pose, view.intrinsics, speed, night, float(vehicles))

    def _ground_shadows(self, view: View, cast: Cast) -> tuple[np.ndarray, np.ndarray]:
        """What the sun leaves dark, and the dark right under vehicles and people."""
        parts = np.array(cast.parts).reshape(-1, 5)
        contacts = on_ground(footprints(parts, grow_m=0.12))
        if not self._sunny:
            return np.zeros((0, CORNERS, 3), np.float32), contacts
        near = ((self._shadows[:, 0, :2] - view.position) ** 2).sum(1) < SHADOWS_SEEN_M**2
        heights = [cast.things[number - 1].size[2] * 0.9 for number in cast.objects]
        thrown = shadow_outlines(list(zip(footprints(parts), heights, strict=True)), self.light.sun)
        return np.concatenate([self._shadows[near], thrown]), contacts

    def _scene(self, view: View, cast: Cast) -> Scene:
        static = len(self._static_parts)
        seen = _in_sight(self._static_parts[:, :2], view.position, view.heading)
        kept = np.flatnonzero(seen[self._static.owner])
        blobs = np.flatnonzero(seen[self._blobs[:, 10].astype(int)])
        leaves, order = leaf_polygons(self._blobs[blobs], view)
        moved = [replace(polygons, owner=polygons.owner + static) for polygons in cast.polygons]
        polygons = Polygons.cat([self._static[kept], leaves, *moved])
        lamp = np.concatenate([self._static_lamp[kept], self._blob_lamp[blobs][order], *cast.lamp])
        parts = np.concatenate([self._static_parts, np.array(cast.parts).reshape(-1, 5)])
        objects = np.concatenate([np.zeros(static, int), np.array(cast.objects, int)])
        glows = [(part + static, *glow) for part, *glow in cast.glows] + self._lamp_glows(view)
        return Scene(polygons, parts, objects, lamp, self._beam(view, polygons), glows)

    def _beam(self, view: View, polygons: Polygons) -> np.ndarray:
        if self.light.night < 1:
            return np.zeros(len(polygons), np.float32)
        local = view.to_camera(polygons.points[:, :3].mean(1))
        return headlight_beam(*from_front(self.mount, local[:, 0], local[:, 2]))

    def _lamp_glows(self, view: View) -> list[tuple]:
        if self.light.lamps == 0 or len(self.lamps) == 0:
            return []
        local = view.to_camera(self.lamps)
        colour = LAMP_COLOUR * 0.8 * self.light.lamps
        shown = (local[:, 2] > 2) & (local[:, 2] < LAMPS_GLOW_M)
        return [(self._lamp_parts[i], local[i], 0.9, colour) for i in np.flatnonzero(shown)]


def _in_sight(
    points: np.ndarray, position: np.ndarray, heading: np.ndarray | float, margin_m: float = 0.0
) -> np.ndarray:
    """[n] whether a body that stands at points [n, 2] may be in the picture; any of the three may be one for all."""
    offset = points - position
    ahead = (offset * direction(heading)).sum(-1)
    aside = np.abs((offset * right_of(heading)).sum(-1))
    beside = ahead * np.tan(FIELD_OF_VIEW / 2) + 2 * REACH_M
    return (ahead > -REACH_M - margin_m) & (ahead < SEEN_M + margin_m) & (aside < beside + margin_m)
