"""Draws the ground: flat colours first, then light, shadows, grain and haze over the whole of it at once.

On level ground everything but the shadows is the same in every frame, so it is worked out once a route.
"""

import cv2
import numpy as np

from data_prep.mounts import Mount
from data_prep.town.ground import Ground
from data_prep.town.light import BEAM_COLOUR, LAMP_COLOUR, LAMP_REACH_M, Light, headlight_beam
from data_prep.town.mesh import CORNERS
from data_prep.town.view import CAMERA_HEIGHT_M, SHIFT, View, from_front, outlines

SEEN_M = 130.0
GRAIN_M = 0.05  # metres a texel
GRAIN_FADE_M = (6.0, 17.0)  # beyond, texels would be smaller than pixels and flicker
FULL, SUN_SHADOW, CONTACT = 235, 92, 35  # of the light mask


class Floor:
    """The ground of one route under one light, for one picture size and one camera on the car."""

    def __init__(
        self,
        rng: np.random.Generator,
        ground: Ground,
        light: Light,
        view: View,
        mount: Mount,
        base: tuple,
        lamps: np.ndarray,
    ):
        self.light, self.base, self.lamps = light, tuple(255.0 * c for c in base), lamps
        count = len(ground.points)
        self.points = np.concatenate([ground.points, np.zeros((count, 4, 1), np.float32)], -1)
        self.middle = ground.points.mean(1)
        self.albedo, self.under = ground.albedo * 255, ground.base * 255
        self.top = int(np.ceil(view.centre[1]))
        self.grain_tile = _grain_tile(rng)
        v = np.arange(self.top, view.height, dtype=np.float32) + 0.5 - view.centre[1]
        self.depth = view.focal * CAMERA_HEIGHT_M / np.maximum(v, 0.25)
        self._fixed_maps(view, mount)

    def _fixed_maps(self, view: View, mount: Mount) -> None:
        rows = view.height - self.top
        near, far = GRAIN_FADE_M
        fade = np.clip((far - self.depth) / (far - near), 0, 1)
        self.grain_weight = _column(fade * 255, view.width, 1)
        clear = np.exp(-np.minimum(self.depth, 2000) / self.light.haze_m)
        self.clear = _column(clear * 255, view.width, 3)
        haze = np.clip((1 - clear)[:, None] * self.light.horizon * 0.96 * 255, 0, 255)
        self.haze = np.ascontiguousarray(np.broadcast_to(haze[:, None], (rows, view.width, 3))).astype(np.uint8)
        self.palette = _palette(self.light)
        level = np.full((rows, view.width), FULL, np.float32)
        if self.light.lamps > 0:
            u = np.arange(view.width, dtype=np.float32) + 0.5 - view.centre[0]
            x = u[None] / view.focal * self.depth[:, None]
            z = np.broadcast_to(self.depth[:, None], x.shape)
            beam = headlight_beam(*from_front(mount, x, z)) * self.light.night
            level = np.clip(60 + 170 * beam, 0, 255)
        self.level = cv2.resize(level.astype(np.uint8), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)

    def draw(self, image: np.ndarray, view: View, sun_shadows: np.ndarray, contacts: np.ndarray) -> None:
        """Paint the rows below the horizon.

        sun_shadows  [n, CORNERS, 3] outlines on the ground in the world;  contacts [m, CORNERS, 3] the dark under cars
        """
        cv2.rectangle(image, (0, self.top), (view.width, view.height), self.base, cv2.FILLED)
        near = np.flatnonzero(((self.middle - view.position) ** 2).sum(1) < SEEN_M**2)
        shapes = outlines(view, self.points[near], np.full(len(near), 4), smallest_px=0.8, thinnest_px=0.25)
        index = near[shapes.index]
        # Marks thinner than a pixel take the colour they would blur to.
        thin = np.clip((shapes.high - shapes.low).min(1, keepdims=True) / 1.5, 0, 1)
        colours = (self.under[index] + (self.albedo[index] - self.under[index]) * thin).tolist()
        fill, pixels = cv2.fillConvexPoly, shapes.fixed()
        for outline, corners, colour in zip(pixels, shapes.corners.tolist(), colours, strict=True):
            fill(image, outline[:corners], colour, cv2.LINE_AA, SHIFT)
        floor = image[self.top :]
        mask = self._light_mask(view, sun_shadows, contacts)
        lit = cv2.applyColorMap(mask, self.palette)
        cv2.multiply(floor, lit, dst=floor, scale=1 / 255)
        cv2.multiply(floor, self.clear, dst=floor, scale=1 / 255)
        cv2.add(floor, self.haze, dst=floor)

    def _light_mask(self, view: View, sun_shadows: np.ndarray, contacts: np.ndarray) -> np.ndarray:
        """How lit each ground pixel is, [rows, width] uint8; shadows are drawn at half size, which softens them."""
        half = self.level.copy()
        if self.light.lamps > 0:
            self._lamp_pools(half, view)
        self._stamp(half, view, sun_shadows, SUN_SHADOW)
        half = cv2.blur(half, (3, 3))
        before = half.copy()
        self._stamp(before, view, contacts, CONTACT if self.light.lamps < 1 else 8)
        half = cv2.min(half, cv2.blur(before, (5, 5)))
        full = (view.width, view.height - self.top)
        mask = cv2.resize(half, full, interpolation=cv2.INTER_LINEAR)
        grain = cv2.resize(self._grain(view), full, interpolation=cv2.INTER_LINEAR)
        grain = cv2.multiply(grain, self.grain_weight, scale=1 / 255)
        return cv2.subtract(mask, cv2.multiply(mask, grain, scale=1 / 255))

    def _stamp(self, half: np.ndarray, view: View, shapes: np.ndarray, level: int) -> None:
        if len(shapes) == 0:
            return
        shown = outlines(view, shapes, np.full(len(shapes), CORNERS), smallest_px=2)
        offset = np.array([0, self.top], np.float32)
        pixels = np.round(((shown.pixels - offset) / 2 - 0.5) * (1 << SHIFT)).astype(np.int32)
        for outline, corners in zip(pixels, shown.corners.tolist(), strict=True):
            cv2.fillConvexPoly(half, outline[:corners], (level,), cv2.LINE_AA, SHIFT)

    def _lamp_pools(self, half: np.ndarray, view: View) -> None:
        """Rings of light under the street lamps, brighter inward."""
        close = self.lamps[((self.lamps[:, :2] - view.position) ** 2).sum(1) < 80**2] if len(self.lamps) else self.lamps
        angle = np.linspace(0, 2 * np.pi, CORNERS + 1)[:-1]
        circle = np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)
        pool = np.zeros_like(half)
        for reach, level in ((1.0, 16), (0.8, 36), (0.62, 60), (0.45, 88), (0.3, 118)):
            rings = close[:, None] * [1, 1, 0] + circle * LAMP_REACH_M * reach
            self._stamp(pool, view, rings.astype(np.float32), level)
        cv2.add(half, pool, dst=half)
        cv2.blur(half, (15, 9), dst=half)

    def _grain(self, view: View) -> np.ndarray:
        """The asphalt's grain seen from here, [rows, width] uint8: how much darker than smooth."""
        cos, sin = np.cos(view.heading), np.sin(view.heading)
        cx, cy = view.centre[0] - 0.5, view.centre[1] - 0.5
        # A pixel (u, v) shows the ground z = f h / (v - cy) ahead and x = (u - cx) h / (v - cy) to the right.
        f, h = view.focal, CAMERA_HEIGHT_M
        x, y = view.position
        v_row = np.array([0.0, 1.0, self.top - cy])
        u_row = np.array([1.0, 0.0, -cx])
        ahead = np.array([0.0, 0.0, f * h])
        east = x * v_row + cos * ahead + sin * h * u_row
        north = y * v_row + sin * ahead - cos * h * u_row
        to_tile = np.array([east / GRAIN_M, north / GRAIN_M, v_row])
        # The grain is soft, so half the picture's size holds it: four times fewer look-ups.
        halved = to_tile @ np.array([[2.0, 0, 0.5], [0, 2.0, 0.5], [0, 0, 1]])
        size = (view.width // 2, (view.height - self.top + 1) // 2)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpPerspective(self.grain_tile, halved, size, flags=flags, borderMode=cv2.BORDER_WRAP)


def _column(values: np.ndarray, width: int, channels: int) -> np.ndarray:
    """Spread one value a row over the picture's width."""
    rows = np.repeat(np.clip(values, 0, 255).astype(np.uint8)[:, None], width, 1)
    return rows if channels == 1 else np.ascontiguousarray(np.repeat(rows[..., None], channels, 2))


def _grain_tile(rng: np.random.Generator, size: int = 512) -> np.ndarray:
    """A tile of soft grain that repeats seamlessly, [size, size] uint8."""
    noise = np.roll(rng.normal(size=(size, size)).astype(np.float32), (size // 2, size // 2), (0, 1))
    layers = ((1.3, 0.4), (4.0, 0.6), (16.0, 0.8))
    grain = sum(weight * _normalised(_blurred_round(noise, sigma)) for sigma, weight in layers)
    return np.clip(18 + 9 * grain, 0, 255).astype(np.uint8)


def _blurred_round(tile: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of a tile that repeats."""
    edge = int(np.ceil(4 * sigma)) + 1  # OpenCV's kernel for floats reaches four sigma
    wide = cv2.copyMakeBorder(tile, edge, edge, edge, edge, cv2.BORDER_WRAP)
    return cv2.GaussianBlur(wide, (0, 0), sigma)[edge:-edge, edge:-edge]


def _normalised(field: np.ndarray) -> np.ndarray:
    return (field - field.mean()) / field.std()


def _palette(light: Light) -> np.ndarray:
    """[256, 1, 3] uint8: the colour of light on level ground for each value of the light mask."""
    level = np.arange(256, dtype=np.float32)[:, None]
    full = light.ambient + light.sunlight * light.sun[2]
    if light.lamps == 0:
        shadow = light.ambient * 1.02
        dark = light.ambient * 0.42
        colour = np.where(level < SUN_SHADOW, dark + (shadow - dark) * level / SUN_SHADOW,
                          shadow + (full - shadow) * (level - SUN_SHADOW) / (FULL - SUN_SHADOW))  # fmt: skip
    else:
        warm = LAMP_COLOUR * (1 - 0.5 * light.night) + BEAM_COLOUR * 0.5 * light.night
        colour = full * np.minimum(level / 60, 1) + light.lamps * warm * np.maximum(level - 60, 0) / 195 * 0.9
    return np.ascontiguousarray((np.clip(colour, 0, 1) * 255).astype(np.uint8)[:, None])
