"""The procedural town as a source of `drivesim prepare`."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from data_prep.source import Dropped, Frame, RawClip, Unit
from data_prep.town.world import Setting, World
from drivesim.config import option
from drivesim.errors import UserError

LICENCE = "CC0-1.0"
SPARSE = 1  # kind of route in seeds
FULL = 0


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
    crowdedness: float = option(1.0, "scales traffic and people; 0 for empty streets")
    min_speed_mps: float = option(4.0, "slowest cruising speed, m/s")
    max_speed_mps: float = option(12.0, "fastest cruising speed, m/s")
    seed: int = option(0, "another seed, another town")


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
        for name in ("routes", "sparse_routes", "crowdedness", "night_share", "dusk_share", "seed"):
            if getattr(c, name) < 0:
                raise UserError(f"{name} is {getattr(c, name)}, expected 0 or more")
        if c.night_share + c.dusk_share > 1:
            raise UserError(f"night_share + dusk_share is {c.night_share + c.dusk_share:g}, expected at most 1")
        if c.min_speed_mps > c.max_speed_mps:
            raise UserError(f"min_speed_mps {c.min_speed_mps} exceeds max_speed_mps {c.max_speed_mps}; swap them")
        if c.height < 64 or c.width < 64 or c.height % 8 or c.width % 8:
            raise UserError(f"picture is {c.height}x{c.width}, expected multiples of 8 of at least 64")

    def units(self) -> list[Unit]:
        """One unit a route, the full-rate ones first."""
        names = [f"town_{i:04d}" for i in range(self.config.routes)]
        names += [f"town_s{i:04d}" for i in range(self.config.sparse_routes)]
        if not names:
            raise UserError("routes and sparse_routes are both 0, so there is nothing to prepare; raise one of them")
        return [Unit(name, name) for name in names]

    def clips(self, unit: Unit) -> Iterator[RawClip | Dropped]:
        """The one clip of a route; its world is built when the first frame is asked for."""
        fps = self.config.sparse_fps if _is_sparse(unit) else self.config.fps
        yield RawClip(unit.name, unit.route, fps, "town", LICENCE, True, self._frames(unit, fps))

    def setting(self, unit: Unit) -> Setting:
        """What the route of a unit is made of; depends on the seed, the route's name and the options."""
        c, sparse = self.config, _is_sparse(unit)
        number = int(unit.name.removeprefix("town_").removeprefix("s"))
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
        )

    def _frames(self, unit: Unit, fps: float) -> Iterator[Frame]:
        cv2.setNumThreads(1)  # the work is spread over processes, one route each
        setting = self.setting(unit)
        world = World(setting)
        for index in range(max(1, round(setting.seconds * fps))):
            yield world.frame(index / fps)


def _is_sparse(unit: Unit) -> bool:
    return unit.name.startswith("town_s")
