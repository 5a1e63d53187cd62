"""Houses: plain solids with a roof, and doors, windows, shops and balconies on the faces towards the street."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_prep.town.mesh import Builder

WALLS = [
    (0.78, 0.70, 0.58), (0.70, 0.42, 0.32), (0.86, 0.83, 0.76), (0.62, 0.30, 0.24), (0.80, 0.62, 0.40),
    (0.60, 0.64, 0.62), (0.86, 0.74, 0.50), (0.52, 0.44, 0.38), (0.72, 0.78, 0.80), (0.80, 0.56, 0.50),
]  # fmt: skip
ROOFS = [(0.45, 0.22, 0.17), (0.30, 0.30, 0.33), (0.38, 0.27, 0.20), (0.24, 0.26, 0.30)]
DOORS = [(0.30, 0.18, 0.10), (0.12, 0.26, 0.20), (0.45, 0.10, 0.10), (0.14, 0.18, 0.34)]
AWNINGS = [(0.72, 0.16, 0.14), (0.14, 0.40, 0.26), (0.16, 0.30, 0.60), (0.88, 0.66, 0.16)]
PANES = [(0.32, 0.38, 0.44), (0.40, 0.46, 0.52), (0.28, 0.31, 0.35)]
LAMPLIGHT = [(0.95, 0.78, 0.45), (0.90, 0.68, 0.34), (0.80, 0.82, 0.85)]
STOREY_M = 3.0


@dataclass
class District:
    """What a neighbourhood looks like; drawn once a route."""

    storeys: tuple[int, int]
    frontage_m: tuple[float, float]
    setback_m: tuple[float, float]
    built_share: float  # of the plots; gardens fill the rest
    gabled_share: float
    shop_share: float
    tree_gap_m: float
    lit_share: float


DISTRICTS = {
    "old town": District((2, 4), (7, 12), (0, 0.4), 0.95, 0.7, 0.45, 24, 0.45),
    "centre": District((4, 8), (12, 20), (0, 1.5), 0.95, 0.1, 0.6, 30, 0.5),
    "suburb": District((1, 2), (9, 13), (3, 6), 0.8, 0.9, 0.05, 13, 0.4),
    "avenue": District((3, 5), (10, 16), (1, 3), 0.85, 0.4, 0.25, 9, 0.4),
}


def house(rng: np.random.Generator, width: float, depth: float, district: District) -> tuple[Builder, float]:
    """A house standing on x in [-depth/2, depth/2] with its front at +x; returns (body, height in metres)."""
    wall = _varied(rng, WALLS)
    storeys = int(rng.integers(district.storeys[0], district.storeys[1] + 1))
    height = storeys * STOREY_M + rng.uniform(0.4, 1.0)
    build = Builder()
    build.box(-depth / 2, depth / 2, width / 2, 0, height, wall)
    top = height + (_gable(build, rng, width, depth, height, wall) if rng.random() < district.gabled_share else 0)
    trim = _scaled(wall, 0.8)
    shop = bool(rng.random() < district.shop_share)
    panes = _Panes(rng, trim, wall, district.lit_share)
    front = _Face(build, depth / 2 + 0.01, (1, 0, 0), width, lambda u, x: (x, u))
    front.panel(-width / 2, width / 2, height - 0.35, height, trim, wall)
    front.panel(-width / 2, width / 2, 0, 0.5, trim, wall)
    _ground_floor(front, rng, width, wall, panes, shop)
    for storey in range(1, storeys):
        front.panel(-width / 2, width / 2, storey * STOREY_M - 0.05, storey * STOREY_M + 0.08, trim, wall)
        panes.row(front, width, storey * STOREY_M + 0.9, 1.5)
    for side in (-1, 1):
        gable = _Face(build, side * (width / 2 + 0.01), (0, side, 0), depth, lambda u, y: (u, y))
        for storey in range(storeys):
            panes.row(gable, depth, storey * STOREY_M + 0.9, 1.4, sparse=True)
    return build, top


def _varied(rng: np.random.Generator, palette: list) -> tuple:
    chosen, brighter = palette[rng.integers(len(palette))], rng.uniform(0.85, 1.1)
    tint = rng.uniform(-0.03, 0.03, 3).tolist()
    return tuple(min(max(c * brighter + t, 0.02), 0.95) for c, t in zip(chosen, tint, strict=True))


def _scaled(colour: tuple, factor: float) -> tuple:
    return tuple(c * factor for c in colour)


@dataclass
class _Face:
    """A vertical wall; `plane` is its distance from the middle, `to_xy` maps (along, plane) to (x, y)."""

    build: Builder
    plane: float
    normal: tuple
    width: float
    to_xy: Callable[[float, float], tuple[float, float]]

    def panel(self, u0, u1, z0, z1, colour, base, emission=(0.0, 0.0, 0.0)) -> None:
        first, last = self.to_xy(u0, self.plane), self.to_xy(u1, self.plane)
        points = [(*first, z0), (*last, z0), (*last, z1), (*first, z1)]
        self.build.add(points, colour, self.normal, base, emission)


@dataclass
class _Panes:
    """Draws windows in one house's style."""

    rng: np.random.Generator
    frame: tuple
    wall: tuple
    lit_share: float

    def __post_init__(self) -> None:
        self.width, self.gap = self.rng.uniform(0.9, 1.5), self.rng.uniform(1.0, 1.8)
        self.cross = bool(self.rng.random() < 0.6)
        self.frame = self.frame if self.rng.random() < 0.5 else (0.80, 0.80, 0.77)

    def row(self, face: _Face, length: float, z: float, tall: float, sparse: bool = False) -> None:
        pitch = (self.width + self.gap) * (1.8 if sparse else 1)
        count = int((length - self.gap) / pitch)
        for number in range(count):
            self.window(face, (number - (count - 1) / 2) * pitch, z, tall)

    def window(self, face: _Face, middle: float, z: float, tall: float, wide: float | None = None) -> None:
        half = (wide or self.width) / 2
        pane = _varied(self.rng, PANES)
        lit = self.rng.random() < self.lit_share
        glow = _scaled(LAMPLIGHT[self.rng.integers(3)], self.rng.uniform(0.55, 1)) if lit else (0, 0, 0)
        face.panel(middle - half - 0.1, middle + half + 0.1, z - 0.14, z + tall + 0.1, self.frame, self.wall)
        face.panel(middle - half, middle + half, z, z + tall, pane, self.frame, glow)
        if self.cross:
            face.panel(middle - 0.035, middle + 0.035, z, z + tall, self.frame, pane)


def _ground_floor(front: _Face, rng, width: float, wall: tuple, panes: _Panes, shop: bool) -> None:
    door = DOORS[rng.integers(len(DOORS))]
    at = rng.uniform(-width / 2 + 1.0, width / 2 - 1.0)
    if shop:
        sign = AWNINGS[rng.integers(len(AWNINGS))]
        front.panel(-width / 2 + 0.3, width / 2 - 0.3, 0.45, 2.35, panes.frame, wall)
        for left, right in ((-width / 2 + 0.45, at - 0.7), (at + 0.7, width / 2 - 0.45)):
            if right - left > 0.6:
                front.panel(left, right, 0.6, 2.25, _varied(rng, PANES), panes.frame, (0.85, 0.74, 0.5))
        front.panel(-width / 2 + 0.3, width / 2 - 0.3, 2.35, 2.95, sign, wall, _scaled(sign, 0.5))
    else:
        for middle in np.arange(-width / 2 + 1.3, width / 2 - 1.0, panes.width + panes.gap).tolist():
            if abs(middle - at) > 0.6 + panes.width / 2:
                panes.window(front, middle, 0.95, 1.4)
    front.panel(at - 0.6, at + 0.6, 0, 2.3, panes.frame, wall)
    front.panel(at - 0.48, at + 0.48, 0, 2.2, door, panes.frame)


def _gable(build: Builder, rng, width: float, depth: float, height: float, wall: tuple) -> float:
    """A pitched roof with its ridge along the street; returns its height."""
    rise = rng.uniform(0.3, 0.5) * depth
    roof, half, eaves = _varied(rng, ROOFS), width / 2, depth / 2 + 0.3
    for sign in (-1, 1):
        build.add([(sign * eaves, -half, height - 0.1), (sign * eaves, half, height - 0.1), (0, half, height + rise),
                   (0, -half, height + rise)], roof, (sign * rise, 0, depth / 2))  # fmt: skip
        y = sign * half
        build.add([(-depth / 2, y, height), (depth / 2, y, height), (0, y, height + rise)], wall, (0, sign, 0))
    return rise
