"""Rain, snow and fog: what they do to the light, what lies on the ground, and what falls through the picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from data_prep.town.ground import Ground
from data_prep.town.light import Light
from data_prep.town.mesh import Polygons

SNOW = np.array([0.92, 0.94, 0.97], np.float32)
LYING = {"ground": 0.55, "road edge": 0.85, "roof": 0.8, "leaf": 0.45}  # how white snow makes what it lies on
FACES_UP = 0.5  # z of the normal of what snow stays on
WET = 0.72  # of the brightness of a dry road
SHIFT = 3  # fractional bits of drawn pixels
FALLING = 300  # drops or flakes in a picture
STREAK, FLAKE = np.array([3.0, 26.0]), 1.9  # of the nearest, right and down; radius: pixels of a picture of 256 rows
DIMMEST = {"rain": 0.16, "snow": 0.5}  # by night they are lit from the street
OPACITY = {"rain": 0.35, "snow": 0.75}


@dataclass(frozen=True)
class Sky:
    """What a weather makes of a light.

    haze      how far one sees, a share of the usual
    sunlight  what is left of it;  ambient: all other light
    grey      how far the sky above becomes that of the horizon, and colours of both lose their hue, 0..1
    """

    haze: float
    sunlight: float
    ambient: float
    grey: float


SKIES = {"rain": Sky(0.5, 0.12, 0.82, 0.75), "snow": Sky(0.5, 0.15, 1.0, 0.9), "fog": Sky(0.17, 0.1, 0.95, 1.0)}


def weathered(light: Light, weather: str) -> Light:
    """The light under a weather of SKIES; any other leaves it as it is."""
    if weather not in SKIES:
        return light
    sky = SKIES[weather]
    horizon = _mixed(light.horizon, np.full(3, light.horizon.mean()), sky.grey)
    return replace(
        light,
        sunlight=light.sunlight * sky.sunlight,
        ambient=(light.ambient + light.sunlight * 0.4) * sky.ambient,  # clouds scatter what they keep off
        horizon=horizon * sky.ambient,
        zenith=_mixed(light.zenith, horizon, sky.grey) * sky.ambient,
        haze_m=light.haze_m * sky.haze,
        overcast=True,
    )


def covered(ground: Ground, weather: str) -> Ground:
    """The ground with snow on it, or wet."""
    if weather == "snow":
        white = LYING["ground"]
        return replace(ground, albedo=_mixed(ground.albedo, SNOW, white), base=_mixed(ground.base, SNOW, white))
    if weather == "rain":
        return replace(ground, albedo=ground.albedo * WET, base=ground.base * WET)
    return ground


def covered_colour(colour: tuple, weather: str) -> tuple:
    """The colour of what lies beside the roads."""
    return tuple(_mixed(np.array(colour), SNOW, LYING["road edge"]).tolist()) if weather == "snow" else colour


def covered_scenery(polygons: Polygons, weather: str) -> Polygons:
    """Roofs and whatever else looks up, with snow on it."""
    if weather != "snow":
        return polygons
    white = LYING["roof"] * (polygons.normal[:, 2:] > FACES_UP)
    return replace(polygons, albedo=_mixed(polygons.albedo, SNOW, white), base=_mixed(polygons.base, SNOW, white))


def covered_leaves(albedo: np.ndarray, weather: str) -> np.ndarray:
    """Colours [n, 3] of leaves."""
    return _mixed(albedo, SNOW, LYING["leaf"]) if weather == "snow" else albedo


def draw_fall(image: np.ndarray, weather: str, light: Light, seed: Sequence[int]) -> None:
    """Rain or snow in the air, drawn over `image` [H, W, 3] uint8 in place; the same seed draws the same."""
    if weather not in ("rain", "snow"):
        return
    rng = np.random.default_rng(list(seed))
    height, width = image.shape[:2]
    unit, fixed = height / 256, 1 << SHIFT
    place = rng.uniform((-0.05 * width, -0.1 * height), (1.05 * width, height), (FALLING, 2))
    near = rng.uniform(0.3, 1.0, FALLING) ** 2  # most of what falls is far away
    colour = (np.clip(np.maximum(light.horizon * 1.15, DIMMEST[weather]), 0, 1) * 255).tolist()
    over = image.copy()
    if weather == "rain":
        ends = np.stack([place, place + near[:, None] * unit * STREAK], 1)
        for top, end in np.round(ends * fixed).astype(int).tolist():
            cv2.line(over, top, end, colour, max(1, round(0.6 * unit)), cv2.LINE_AA, SHIFT)
    else:
        radii = np.maximum(near * unit * FLAKE, 0.5)
        for middle, radius in zip(np.round(place * fixed).astype(int).tolist(), radii.tolist(), strict=True):
            cv2.circle(over, middle, round(radius * fixed), colour, cv2.FILLED, cv2.LINE_AA, SHIFT)
    share = OPACITY[weather]
    cv2.max(image, cv2.addWeighted(over, share, image, 1 - share, 0), dst=image)  # nothing that falls is dark


def _mixed(a: np.ndarray, b: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """`share` of the way from a to b, in the type of a."""
    return (a + (b - a) * share).astype(a.dtype)
