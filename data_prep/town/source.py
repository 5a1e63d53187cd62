"""The procedural town as a source of `drivesim prepare`."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from data_prep.mounts import CAM_FRONT, MOUNTS
from data_prep.source import Dropped, Frame, RawClip, Unit
from data_prep.town.traffic import START_M
from data_prep.town.weather import SKIES
from data_prep.town.world import SEEN_M, Setting, World, weather_of
from drivesim.config import option
from drivesim.errors import UserError

LICENCE = "CC0-1.0"
SPARSE = 1  # kind of route in seeds
FULL = 0
TIMES = {"day": "by day", "dusk": "at dusk", "night": "at night"}
TRAFFIC = ((1.3, "heavy"), (0.7, "some"), (1e-9, "light"), (0.0, "no"))  # least crowdedness of a setting -> word


@dataclass
class TownConfig:
    """The embedded town: every route is its own seeded piece of streets, with traffic and exact boxes."""

    routes: int = option(24, "routes at the full frame rate")
    seconds: float = option(6.0, "length of each of them, seconds")
    fps: float = option(30.0, "their frames a second")
    sparse_routes: int = option(96, "routes at the low frame rate")
    sparse_seconds: float = option(16.0, "length of each of them, seconds")
    sparse_fps: float = option(1.875, "their frames a second")
    height: int = option(512, "picture height, pixels")
    width: int = option(1024, "picture width, pixels")
    night_share: float = option(0.25, "share of routes at night")
    dusk_share: float = option(0.15, "share of routes at dusk")
    rain_share: float = option(0.0, "share of routes in rain")
    snow_share: float = option(0.0, "share of routes in snow")
    fog_share: float = option(0.0, "share of routes in fog")
    crowdedness: float = option(1.0, "scales traffic and people; 0 for empty streets")
    min_speed_mps: float = option(4.0, "slowest cruising speed, m/s")
    max_speed_mps: float = option(12.0, "fastest cruising speed, m/s")
    seed: int = option(0, "another seed, another town")
    cameras: list[str] = option(
        [CAM_FRONT], "channels of nuScenes, each a clip of its own: CAM_FRONT, CAM_BACK_LEFT ..."
    )


@dataclass
class TownSource:
    """Implements `data_prep.source.Source`. raises UserError for values that make no town."""

    config: TownConfig

    def __post_init__(self) -> None:
        c = self.config
        positive = ("seconds", "fps", "sparse_seconds", "sparse_fps", "min_speed_mps", "max_speed_mps")
        for name in positive:
            if not getattr(c, name) > 0:
                raise UserError(f"{name} is {getattr(c, name)}, expected more than 0")
        wet = [f"{weather}_share" for weather in SKIES]
        for name in ("routes", "sparse_routes", "crowdedness", "night_share", "dusk_share", "seed", *wet):
            if getattr(c, name) < 0:
                raise UserError(f"{name} is {getattr(c, name)}, expected 0 or more")
        if c.night_share + c.dusk_share > 1:
            raise UserError(f"night_share + dusk_share is {c.night_share + c.dusk_share:g}, expected at most 1")
        if (together := sum(getattr(c, name) for name in wet)) > 1:
            raise UserError(f"{' + '.join(wet)} is {together:g}, expected at most 1")
        if c.min_speed_mps > c.max_speed_mps:
            raise UserError(f"min_speed_mps {c.min_speed_mps} exceeds max_speed_mps {c.max_speed_mps}; swap them")
        if c.height < 64 or c.width < 64 or c.height % 8 or c.width % 8:
            raise UserError(f"picture is {c.height}x{c.width}, expected multiples of 8 of at least 64")
        if not c.cameras or len(set(c.cameras)) < len(c.cameras) or not set(c.cameras) <= set(MOUNTS):
            raise UserError(f"cameras is {c.cameras}, expected some of {', '.join(MOUNTS)}, each once")

    def units(self) -> list[Unit]:
        """One unit a route and camera, the full-rate routes first."""
        names = [f"town_{i:04d}" for i in range(self.config.routes)]
        names += [f"town_s{i:04d}" for i in range(self.config.sparse_routes)]
        if not names:
            raise UserError("routes and sparse_routes are both 0, so there is nothing to prepare; raise one of them")
        if not self._looks_about:
            return [Unit(name, name) for name in names]
        return [Unit(f"{name}_{camera}", name) for name in names for camera in self.config.cameras]

    @property
    def _looks_about(self) -> bool:
        """Whether there is more to see than the road ahead. Then a route starts later, with a street behind it."""
        return self.config.cameras != [CAM_FRONT]

    def clips(self, unit: Unit) -> Iterator[RawClip | Dropped]:
        """The one clip of a unit; its world is built when the first frame is asked for."""
        fps = self.config.sparse_fps if _is_sparse(unit) else self.config.fps
        frames = self._frames(unit, fps)
        setting, camera = self.setting(unit), _camera(unit)
        weather, caption = weather_of(setting), describe(setting)
        yield RawClip(unit.name, unit.route, fps, "town", LICENCE, True, frames, camera, weather, caption, start_s=0.0)

    def setting(self, unit: Unit) -> Setting:
        """What a unit shows; depends on the seed, the names of its route and camera, and the options."""
        c, sparse = self.config, _is_sparse(unit)
        number = int(unit.route.removeprefix("town_").removeprefix("s"))
        seed = (c.seed, SPARSE if sparse else FULL, number)
        rng = np.random.default_rng([*seed, 99])
        # A low-discrepancy sequence keeps the shares exact also for a handful of routes.
        draw = (number * 0.6180339887 + 0.5 + 0.37 * sparse) % 1
        time_of_day = "night" if draw < c.night_share else "dusk" if draw < c.night_share + c.dusk_share else "day"
        return Setting(
            seed=seed,
            seconds=c.sparse_seconds if sparse else c.seconds,
            height=c.height,
            width=c.width,
            time_of_day=time_of_day,
            crowdedness=c.crowdedness * float(rng.uniform(0.3, 1.7)),
            speed_mps=(c.min_speed_mps, c.max_speed_mps),
            camera=_camera(unit),
            start_m=SEEN_M + START_M if self._looks_about else START_M,
            weather=self._weather(number, sparse),
        )

    def _weather(self, number: int, sparse: bool) -> str:
        """Of a route: another low-discrepancy sequence, so that every weather comes at every time of day."""
        draw = (number * 0.7548776662 + 0.5 + 0.37 * sparse) % 1
        for weather in SKIES:
            draw -= getattr(self.config, f"{weather}_share")
            if draw < 0:
                return weather
        return ""

    def _frames(self, unit: Unit, fps: float) -> Iterator[Frame]:
        cv2.setNumThreads(1)  # the work is spread over processes, one route each
        setting = self.setting(unit)
        world = World(setting)
        for index in range(max(1, round(setting.seconds * fps))):
            yield world.frame(index / fps)


def describe(setting: Setting) -> str:
    """What a route shows, in words: "a street at night in rain with heavy traffic"."""
    busy = setting.crowdedness
    traffic = next(word for least, word in TRAFFIC if busy >= least)
    weather = f" in {setting.weather}" if setting.weather else ""
    return f"a street {TIMES[setting.time_of_day]}{weather} with {traffic} traffic"


def _is_sparse(unit: Unit) -> bool:
    return unit.route.startswith("town_s")


def _camera(unit: Unit) -> str:
    return unit.name.removeprefix(unit.route).removeprefix("_") or CAM_FRONT
