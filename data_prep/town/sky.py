"""The sky and the far skyline, painted once round the compass and looked up by heading."""

from functools import lru_cache

import cv2
import numpy as np

from data_prep.town.light import Light
from data_prep.town.view import View

CLEAR_M = 130.0  # haze that hides no skyline


def build_panorama(rng: np.random.Generator, light: Light, view: View) -> np.ndarray:
    """[rows above the horizon, pixels round the compass, 3] uint8; column 0 looks east, columns go clockwise."""
    rows, columns = int(np.ceil(view.centre[1])) + 2, round(2 * np.pi * view.focal)
    rise = np.linspace(1, 0, rows, dtype=np.float32)[:, None]
    sky = light.horizon + (light.zenith - light.horizon) * (rise**0.7)[..., None]
    sky = np.repeat(sky, columns, 1).astype(np.float32)
    azimuth = -2 * np.pi * np.arange(columns) / columns
    toward_sun = np.cos(azimuth - np.arctan2(light.sun[1], light.sun[0])).astype(np.float32)
    glow = np.clip(toward_sun, 0, 1)[None] ** 3 * np.exp(-rise * 3)
    strength = 1.0 if light.night == 0.5 else 0.25 * (1 - light.night)
    sky += glow[..., None] * np.array([0.30, 0.18, 0.06], np.float32) * strength
    if not light.overcast:
        sky = _clouds(rng, sky, light, rise)
    if light.night == 1.0 and not light.overcast:
        _stars(rng, sky, rows)
    _skyline(rng, sky, light, rows)
    return (np.clip(sky, 0, 1) * 255).astype(np.uint8)


def _clouds(rng: np.random.Generator, sky: np.ndarray, light: Light, rise: np.ndarray) -> np.ndarray:
    rows, columns, _ = sky.shape
    cover = np.zeros((rows, columns), np.float32)
    for cells, weight in ((10, 1.0), (24, 0.55), (60, 0.28)):
        coarse = rng.random((max(3, cells // 3), cells)).astype(np.float32)
        coarse = np.concatenate([coarse, coarse[:, :1]], 1)  # closes round the compass
        cover += weight * cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)
    threshold = np.quantile(cover, 1 - light.clouds)
    alpha = np.clip((cover - threshold) / 0.35, 0, 1) * np.clip(rise * 5, 0, 1) * 0.85
    cloud = np.clip(light.horizon * 0.55 + light.ambient * 0.30 + light.sunlight * 0.35, 0, 1)
    return sky + (cloud - sky) * alpha[..., None].astype(np.float32)


def _stars(rng: np.random.Generator, sky: np.ndarray, rows: int) -> None:
    count = 350
    y, x = rng.integers(0, int(rows * 0.8), count), rng.integers(0, sky.shape[1], count)
    sky[y, x] += rng.uniform(0.15, 0.6, (count, 1)).astype(np.float32)


def _skyline(rng: np.random.Generator, sky: np.ndarray, light: Light, rows: int) -> None:
    """Hazy roofs and hills behind the last house one can see."""
    columns, seen = sky.shape[1], min(1.0, light.haze_m / CLEAR_M)
    for closeness, tall in ((0.25 * seen, 0.16), (0.5 * seen, 0.10)):
        colour = light.horizon * (1 - closeness) + (light.ambient * 0.42 + light.sunlight * 0.1) * closeness
        x = 0
        while x < columns:
            width = int(rng.uniform(0.010, 0.035) * columns)
            height = int(rows * tall * rng.uniform(0.4, 1.0))
            block = sky[rows - 2 - height :, x : x + width]
            block[:] = colour * rng.uniform(0.94, 1.06)
            if light.lamps > 0:
                _far_windows(rng, block, light.lamps * closeness)
            x += width


def _far_windows(rng: np.random.Generator, block: np.ndarray, strength: float) -> None:
    lit = np.argwhere(rng.random((block.shape[0] // 4, block.shape[1] // 4)) < 0.12) * 4
    warm = np.array([0.5, 0.4, 0.2], np.float32) * strength
    for dy in (1, 2):
        block[np.minimum(lit[:, 0] + dy, len(block) - 1), lit[:, 1] + 1] += warm


def draw_sky(image: np.ndarray, panorama: np.ndarray, view: View) -> None:
    """Fill the rows of `image` above the horizon."""
    rows = int(np.ceil(view.centre[1]))
    turned, row_map = _lens(rows, view.width, view.centre[0], view.focal)
    columns = (turned - np.float32(view.heading)) * np.float32(panorama.shape[1] / (2 * np.pi))
    column_map = np.broadcast_to(np.mod(columns, panorama.shape[1]).astype(np.float32), (rows, view.width))
    column_map = np.ascontiguousarray(column_map)
    cv2.remap(panorama, column_map, row_map, cv2.INTER_LINEAR, dst=image[:rows], borderMode=cv2.BORDER_WRAP)


@lru_cache(maxsize=1)
def _lens(rows: int, width: int, centre: float, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """What no heading changes: the angle of each column [width], radians, and the panorama's row of each pixel."""
    u = np.arange(width, dtype=np.float32) + 0.5 - centre
    turned = np.arctan(u / np.float32(focal))
    # A level line far away stays level only if its elevation shrinks towards the picture's sides.
    above = np.arange(rows, 0, -1, dtype=np.float32)[:, None] * np.cos(turned)[None]
    return turned, (rows - above).astype(np.float32)
