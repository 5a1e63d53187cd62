"""The shapes of cars, vans, trucks and buses: solids of a few faces with windows, wheels and lights on them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from data_prep.town.mesh import Builder, Polygons

GLASS = (0.20, 0.24, 0.29)
TYRE = (0.11, 0.11, 0.12)
HUB = (0.55, 0.56, 0.58)
DARK = (0.15, 0.15, 0.16)
PLATE = (0.85, 0.85, 0.78)
TAIL = (0.75, 0.06, 0.06)
HEADLIGHT = (0.92, 0.92, 0.86)
TAIL_GLOW = (0.85, 0.05, 0.04)
HEADLIGHT_GLOW = (1.0, 0.96, 0.82)

PAINTS = [
    (0.84, 0.84, 0.84), (0.62, 0.64, 0.67), (0.17, 0.17, 0.19), (0.34, 0.36, 0.39), (0.72, 0.10, 0.10),
    (0.10, 0.22, 0.60), (0.08, 0.34, 0.22), (0.93, 0.72, 0.08), (0.90, 0.42, 0.08), (0.35, 0.60, 0.82),
    (0.50, 0.08, 0.16), (0.75, 0.70, 0.58),
]  # fmt: skip
BUS_PAINTS = [(0.80, 0.12, 0.10), (0.12, 0.35, 0.70), (0.92, 0.75, 0.15), (0.15, 0.50, 0.32)]
CARGO_PAINTS = [(0.90, 0.90, 0.88), (0.20, 0.38, 0.66), (0.82, 0.30, 0.12), (0.30, 0.52, 0.34), (0.70, 0.68, 0.62)]


@dataclass(frozen=True)
class Model:
    """A vehicle shape. `parts` [p, 3]: x0, x1, half width of the convex parts that are sorted by distance."""

    name: str  # one of drivesim.clip.VEHICLES
    polygons: Polygons
    parts: np.ndarray
    size: tuple[float, float, float]  # length, width, height in metres


@dataclass(frozen=True)
class Saloon:
    """Side view of a car: heights and positions (metres) of its body and cabin."""

    length: float
    width: float
    height: float
    waist: float  # height where the cabin starts
    bonnet: float  # x where the windscreen meets the bonnet
    boot: float  # x where the rear window meets the body
    roof: tuple[float, float]  # x of the roof's ends


CARS = {
    "saloon": Saloon(4.5, 1.80, 1.45, 0.92, 1.05, -1.75, (-1.05, 0.20)),
    "hatch": Saloon(3.9, 1.72, 1.50, 0.92, 0.95, -1.88, (-1.50, 0.15)),
    "estate": Saloon(4.6, 1.82, 1.50, 0.95, 1.10, -2.20, (-1.85, 0.30)),
    "suv": Saloon(4.5, 1.90, 1.75, 1.08, 1.05, -2.18, (-1.90, 0.35)),
    "van": Saloon(5.0, 1.95, 2.05, 1.10, 1.80, -2.45, (-2.38, 1.00)),
}


@cache
def vehicle(kind: str, paint: tuple[float, float, float]) -> Model:
    """The model of a kind ("truck", "bus" or one of CARS) in a colour."""
    if kind in CARS:
        return _car(CARS[kind], paint)
    return {"truck": _truck, "bus": _bus}[kind](paint)


def _car(shape: Saloon, paint: tuple) -> Model:
    build = Builder()
    half, x1, waist = shape.length / 2, shape.length / 2, shape.waist
    body = [
        (-half + 0.06, 0.2), (half - 0.06, 0.2), (half, 0.55), (half - 0.12, 0.74), (shape.bonnet, waist),
        (shape.boot, waist), (-half + 0.03, waist - 0.05), (-half, 0.60),
    ]  # fmt: skip
    width = shape.width / 2
    build.prism(body, width, width - 0.05, paint)
    _sides(build, lambda x, z: width - 0.05 * (z - 0.2) / (waist - 0.2), half, paint, waist)
    _ends(build, width, half, waist, paint)
    _wheels(build, width, half * 0.62, half, 0.33)
    glass_low, glass_high = width - 0.06, width - 0.22
    cabin = [(shape.boot, waist), (shape.bonnet, waist), (shape.roof[1], shape.height), (shape.roof[0], shape.height)]
    build.prism(cabin, glass_low, glass_high, paint)
    _windows(build, shape, glass_low, glass_high, paint)
    return Model("car", build.build(), np.array([[-x1, x1, width]]), (shape.length, shape.width, shape.height))


def _sides(build: Builder, y_at: Callable, half: float, paint: tuple, waist: float) -> None:
    """A dark sill and a door line on either flank."""
    shade = tuple(0.72 * c for c in paint)
    for side in (-1, 1):
        flank = lambda x0, x1, z0, z1, side=side: [  # noqa: E731
            (x, side * (y_at(x, z) + 0.004), z) for x, z in ((x0, z0), (x1, z0), (x1, z1), (x0, z1))
        ]
        normal = (0, side, 0)
        build.add(flank(-half + 0.1, half - 0.1, 0.20, 0.36), DARK, normal, base=paint)
        build.add(flank(-half + 0.2, half - 0.25, 0.62, 0.66), shade, normal, base=paint)
        build.add(flank(-0.22, -0.19, 0.42, waist - 0.02), shade, normal, base=paint)


def _ends(build: Builder, width: float, half: float, waist: float, paint: tuple) -> None:
    """Lights, bumpers, number plates and grille."""
    rear, front = -half - 0.005, half + 0.005

    def panel(x: float, y0: float, y1: float, z0: float, z1: float, colour, emission=(0.0, 0.0, 0.0)) -> None:
        build.add([(x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)], colour, (np.sign(x), 0, 0), paint, emission)

    panel(rear, -width + 0.04, width - 0.04, 0.20, 0.46, DARK)
    panel(rear, -0.26, 0.26, 0.50, 0.62, PLATE)
    panel(front, -width + 0.05, width - 0.05, 0.20, 0.42, DARK)
    panel(front, -0.50, 0.50, 0.46, 0.62, DARK)
    panel(front, -0.26, 0.26, 0.36, 0.47, PLATE)
    for side in (-1, 1):
        inner, outer = side * (width - 0.36), side * (width - 0.03)
        panel(rear, inner, outer, waist - 0.28, waist - 0.10, TAIL, TAIL_GLOW)
        panel(front, inner, outer, 0.56, 0.72, HEADLIGHT, HEADLIGHT_GLOW)


def _wheels(build: Builder, width: float, axle: float, half: float, radius: float) -> None:
    """Discs on the flanks, and the treads seen from either end."""
    circle = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    for x in (-axle, axle):
        for side in (-1, 1):
            for r, colour, out in ((radius, TYRE, 0.008), (radius * 0.58, HUB, 0.012)):
                ring = [(x + r * np.cos(a), side * (width + out), radius + r * np.sin(a)) for a in circle]
                build.add(ring, colour, (0, side, 0), base=TYRE)
    for x, sign in ((-half + 0.12, -1), (half - 0.12, 1)):
        for side in (-1, 1):
            outer, inner = side * width * 0.98, side * (width - 0.24)
            tread = [(x, outer, 0), (x, inner, 0), (x, inner, 0.28), (x, outer, 0.28)]
            build.add(tread, TYRE, (sign, 0, 0), base=TYRE)


def _windows(build: Builder, shape: Saloon, low: float, high: float, paint: tuple) -> None:
    """Glass on the four slanting faces of the cabin."""
    rise = shape.height - shape.waist
    at = lambda t, x0, x1: x0 + (x1 - x0) * t  # noqa: E731
    for x_low, x_high, sign in ((shape.boot, shape.roof[0], -1), (shape.bonnet, shape.roof[1], 1)):
        corners = [(t, y) for t, y in ((0.12, -1), (0.12, 1), (0.88, 1), (0.88, -1))]
        pane = [
            (at(t, x_low, x_high) + sign * 0.01, y * (at(t, low, high) - 0.09), shape.waist + rise * t)
            for t, y in corners
        ]
        build.add(pane, GLASS, (sign * rise, 0, abs(x_low - x_high)), base=paint)
    post = -0.2
    for side in (-1, 1):
        for back, front in (((shape.boot, shape.roof[0]), (post, post)), ((post, post), (shape.bonnet, shape.roof[1]))):
            pane = []
            for t, end in ((0.14, 0), (0.14, 1), (0.86, 1), (0.86, 0)):
                edge = at(t, *back) + 0.10 if end == 0 else at(t, *front) - 0.10
                pane.append((edge, side * (at(t, low, high) + 0.004), shape.waist + rise * t))
            build.add(pane, GLASS, (0, side * rise, low - high), base=paint)


def _truck(paint: tuple) -> Model:
    """A lorry: a cab and a box, two parts that are sorted by distance."""
    build, half, width = Builder(), 4.0, 1.22
    cargo = CARGO_PAINTS[int(sum(paint) * 100) % len(CARGO_PAINTS)]
    build.box(-half, 2.0, width, 0.95, 3.3, cargo)
    build.box(-half + 0.1, 2.0, width - 0.15, 0.5, 0.95, DARK)
    shade = tuple(0.8 * c for c in cargo)
    build.add([(-half - 0.01, -0.03, 1.0), (-half - 0.01, 0.03, 1.0), (-half - 0.01, 0.03, 3.2),
               (-half - 0.01, -0.03, 3.2)], shade, (-1, 0, 0), base=cargo)  # fmt: skip
    for side in (-1, 1):
        y = side * (width + 0.01)
        stripe = [(-half + 0.3, y, 1.7), (1.7, y, 1.7), (1.7, y, 2.2), (-half + 0.3, y, 2.2)]
        build.add(stripe, paint, (0, side, 0), cargo)
        lamp = [(-half - 0.01, side * u, z) for u, z in ((0.75, 0.62), (1.12, 0.62), (1.12, 0.82), (0.75, 0.82))]
        build.add(lamp, TAIL, (-1, 0, 0), DARK, TAIL_GLOW)
    _wheels(build, width, 2.6, half, 0.48)
    build.prism([(2.1, 0.45), (half, 0.45), (half, 1.4), (half - 0.25, 2.6), (2.1, 2.6)], width - 0.02, width - 0.1,
                paint, owner=1)  # fmt: skip
    x = half + 0.005
    pane = [(x - 0.02, -1.0, 1.5), (x - 0.02, 1.0, 1.5), (x - 0.22, 0.95, 2.4), (x - 0.22, -0.95, 2.4)]
    build.add(pane, GLASS, (1, 0, 0.2), paint, owner=1)
    build.add([(x, -0.7, 0.7), (x, 0.7, 0.7), (x, 0.7, 1.15), (x, -0.7, 1.15)], DARK, (1, 0, 0), paint, owner=1)
    for side in (-1, 1):
        lamp = [(x, side * u, z) for u, z in ((0.75, 0.7), (1.12, 0.7), (1.12, 0.92), (0.75, 0.92))]
        build.add(lamp, HEADLIGHT, (1, 0, 0), paint, HEADLIGHT_GLOW, owner=1)
        y = side * (width - 0.03)
        build.add([(2.5, y, 1.5), (3.55, y, 1.5), (3.4, y, 2.35), (2.5, y, 2.35)], GLASS, (0, side, 0), paint, owner=1)
    parts = np.array([[-half, 2.0, width], [2.1, half, width]])
    return Model("truck", build.build(), parts, (2 * half, 2 * width + 0.02, 3.3))


def _bus(paint: tuple) -> Model:
    build, half, width, roof = Builder(), 5.6, 1.25, 3.05
    build.box(-half, half, width, 0.35, roof, paint)
    pale = (0.86, 0.86, 0.84)
    for side in (-1, 1):
        y = side * (width + 0.005)
        flank = lambda x0, x1, z0, z1, y=y: [(x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)]  # noqa: E731
        build.add(flank(-half, half, 0.35, 0.75), pale, (0, side, 0), paint)
        for x in np.arange(-half + 0.25, half - 1.2, 1.55):
            lit = (0.75, 0.70, 0.50)
            build.add(flank(x, x + 1.4, 1.45, 2.55), GLASS, (0, side, 0), paint, lit)
    for sign, colour, glow, glass_low in ((-1, TAIL, TAIL_GLOW, 1.7), (1, HEADLIGHT, HEADLIGHT_GLOW, 1.1)):
        x = sign * (half + 0.005)
        panel = lambda u0, u1, z0, z1, x=x: [(x, u0, z0), (x, u1, z0), (x, u1, z1), (x, u0, z1)]  # noqa: E731
        build.add(panel(-1.1, 1.1, glass_low, 2.55), GLASS, (sign, 0, 0), paint)
        build.add(panel(-0.7, 0.7, 2.68, 2.92), DARK, (sign, 0, 0), paint, (0.9, 0.55, 0.1))
        build.add(panel(-1.2, 1.2, 0.36, 0.55), DARK, (sign, 0, 0), paint)
        for side in (-1, 1):
            build.add(panel(side * 0.75, side * 1.15, 0.65, 0.90), colour, (sign, 0, 0), paint, glow)
    _wheels(build, width, 3.3, half, 0.48)
    return Model("bus", build.build(), np.array([[-half, half, width]]), (2 * half, 2 * width + 0.02, roof))
