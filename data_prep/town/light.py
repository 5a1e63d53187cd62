"""Daylight, dusk and night: what the sun, the sky, the lamps and the haze do to colours."""

from dataclasses import dataclass

import numpy as np

NIGHT_VALUE = {"day": 0.0, "dusk": 0.5, "night": 1.0}


@dataclass(frozen=True)
class Light:
    """One route's light. Colours are RGB in 0..1 factors; `sun` is the unit direction towards the sun."""

    night: float
    sun: np.ndarray
    sunlight: np.ndarray
    ambient: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    haze_m: float
    lamps: float  # how strongly lamps, windows and headlights show, 0..1
    overcast: bool
    clouds: float  # share of sky covered


def build_light(rng: np.random.Generator, time_of_day: str) -> Light:
    """A seeded variant of "day", "dusk" or "night"."""
    azimuth = rng.uniform(-np.pi, np.pi)
    overcast = bool(rng.random() < 0.3)
    clouds = rng.uniform(0.1, 0.6)
    colour = lambda *rgb: np.array(rgb, np.float32) * np.float32(rng.uniform(0.95, 1.05))  # noqa: E731
    if time_of_day == "day":
        sun = _towards(azimuth, np.radians(rng.uniform(28, 60)))
        if overcast:
            sky, horizon = colour(0.66, 0.70, 0.75), colour(0.80, 0.82, 0.84)
            sunlight, ambient = colour(0.16, 0.16, 0.16), colour(0.82, 0.84, 0.86)
            return Light(0.0, sun, sunlight, ambient, sky, horizon, 135, 0.0, True, 0.0)
        sky, horizon = colour(0.36, 0.55, 0.82), colour(0.76, 0.84, 0.90)
        sunlight, ambient = colour(0.52, 0.49, 0.42), colour(0.61, 0.63, 0.68)
        return Light(0.0, sun, sunlight, ambient, sky, horizon, 150, 0.0, False, clouds)
    if time_of_day == "dusk":
        sun = _towards(azimuth, np.radians(rng.uniform(8, 14)))
        sky, horizon = colour(0.24, 0.27, 0.47), colour(0.93, 0.62, 0.42)
        sunlight, ambient = colour(0.34, 0.22, 0.13), colour(0.41, 0.38, 0.43)
        return Light(0.5, sun, sunlight, ambient, sky, horizon, 150, 0.65, False, clouds)
    sky, horizon = colour(0.025, 0.03, 0.065), colour(0.085, 0.08, 0.11)
    moonlight, ambient = colour(0.03, 0.035, 0.05), colour(0.075, 0.08, 0.115)
    return Light(1.0, _towards(azimuth, 0.9), moonlight, ambient, sky, horizon, 260, 1.0, False, clouds * 0.5)


def _towards(azimuth: float, elevation: float) -> np.ndarray:
    return np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])


LAMP_COLOUR = np.array([1.0, 0.80, 0.52], np.float32)
BEAM_COLOUR = np.array([1.0, 0.97, 0.88], np.float32)
LAMP_REACH_M = 9.0


def lamp_glow(points: np.ndarray, lamps: np.ndarray) -> np.ndarray:
    """Light [n] from street lamps [m, 3] at points [n, 3]; falls with the squared distance."""
    if len(lamps) == 0:
        return np.zeros(len(points), np.float32)
    squared = ((points[:, None] - lamps[None]) ** 2).sum(-1)
    return np.minimum(1.2, (36 / (25 + squared)).sum(1)).astype(np.float32)


def headlight_beam(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Light from the camera car's headlights at camera coordinates x (right) and z (forward), metres."""
    spread = np.abs(x) / np.maximum(z + 1.5, 0.1)
    cone = np.clip(1.15 - spread / 0.75, 0, 1)
    return (1.35 * cone * np.exp(-np.maximum(z - 5, 0) / 22) * np.clip(z / 4, 0, 1)).astype(np.float32)


def shade(
    light: Light, normal: np.ndarray, albedo: np.ndarray, emission: np.ndarray, lamp: np.ndarray, beam: np.ndarray
) -> np.ndarray:
    """Colours [n, 3] in 0..1 of surfaces before haze.

    normal, albedo, emission  [n, 3];  lamp, beam  [n] light from street lamps and from the camera car's headlights
    A zero normal is lit like a wall halfway to the sun.
    """
    facing = np.where((normal == 0).all(1), 0.45, np.clip(normal @ light.sun, 0, 1))[:, None]
    # Faces that look up see more sky than walls do; this keeps shapes readable where the sun does not reach.
    sky = 0.86 + 0.14 * normal[:, 2:3]
    lit = light.ambient * sky + light.sunlight * facing
    lit = lit + light.lamps * (lamp[:, None] * LAMP_COLOUR * 0.40 + beam[:, None] * BEAM_COLOUR * 0.55 * light.night)
    return (albedo * lit + emission * light.lamps).astype(np.float32)


def haze(light: Light, colour: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Blend colours [n, 3] towards the horizon with distance [n] metres."""
    clear = np.exp(-distance / light.haze_m)[:, None]
    return colour * clear + light.horizon * 0.96 * (1 - clear)
