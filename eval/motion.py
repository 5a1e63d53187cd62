"""Motion of generated video, by DIS optical flow (Kroeger et al. 2016, in OpenCV).

Flow is measured on frames shrunk to 256 pixels of width, and told in widths a second, so that resolution and frame
rate do not enter.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from drivesim.models.optical_flow import flow
from eval.videos import resize

WIDTH = 256  # pixels
STILL = 0.25  # pixels; DIS gives no direction below
LEAST_MOVING = 0.01  # share of the picture that must move for it to have a direction


def shrink(frame: np.ndarray) -> np.ndarray:
    """[H, W, 3] -> [h, 256, 3] uint8, aspect kept."""
    return resize(frame, (max(32, round(WIDTH * frame.shape[0] / frame.shape[1])), WIDTH))


def warp(image: np.ndarray, field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sample image [h, w, 3] at each pixel plus field [h, w, 2]; returns it and where it lies inside, [h, w]."""
    height, width = field.shape[:2]
    xs, ys = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    xs, ys = xs + field[..., 0], ys + field[..., 1]
    inside = (xs >= 0) & (xs <= width - 1) & (ys >= 0) & (ys <= height - 1)
    return cv2.remap(image, xs, ys, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), inside


def flicker(first: np.ndarray, second: np.ndarray) -> float:
    """What motion does not explain between two frames: mean |second - warped first| over 0..255, as a fraction.

    A frozen video has none, so read it beside the speed.
    """
    warped, inside = warp(first, flow(second, first))
    difference = np.abs(second.astype(np.float32) - warped).mean(-1)
    return float(difference[inside].mean() / 255) if inside.any() else float("nan")


def expansion(field: np.ndarray, vanishing: tuple[float, float] = (0.5, 0.5)) -> float:
    """Does the picture open up from the vanishing point, as it does when driving forward?

    field      [h, w, 2] pixels
    vanishing  (x, y) fractions of width and height
    returns    mean cosine between flow and the outward direction, weighted by speed; 1 pure expansion, -1 driving
               backwards, about 0 for noise, nan if less than 1 % of the picture moves
    """
    height, width = field.shape[:2]
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    outward = np.stack([xs - vanishing[0] * width, ys - vanishing[1] * height], -1)
    speed = np.linalg.norm(field, axis=-1)
    if (moving := speed > STILL).mean() < LEAST_MOVING:
        return float("nan")
    cosine = (field * outward).sum(-1) / (np.linalg.norm(outward, axis=-1) * speed + 1e-6)
    return float((cosine * speed)[moving].sum() / speed[moving].sum())


@dataclass
class MotionMeter:
    """Means over all pairs of neighbouring frames it is shown, one window at a time.

    vanishing  (x, y) fractions; of a level forward camera, its principal point
    """

    vanishing: tuple[float, float] = (0.5, 0.5)

    def __post_init__(self) -> None:
        self._rows: list[dict[str, float]] = []

    def add(self, frames: np.ndarray, fps: float, truth: np.ndarray | None = None) -> None:
        """Take [T, H, W, 3] uint8, and the true continuation of the same shape where there is one."""
        small = [shrink(frame) for frame in frames]
        true = [shrink(frame) for frame in truth] if truth is not None else None
        for t in range(1, len(small)):
            field = flow(small[t - 1], small[t])
            row = {
                "speed": _widths(field, fps),
                "expansion": expansion(field, self.vanishing),
                "flicker": flicker(small[t - 1], small[t]),
            }
            if true is not None:
                wanted = flow(true[t - 1], true[t])
                row |= {"error": _widths(field - wanted, fps), "true_speed": _widths(wanted, fps)}
            self._rows.append(row)

    def result(self) -> dict[str, float]:
        """
        flow_speed_dis    mean speed in the picture, widths a second
        expansion_dis     see `expansion`
        flicker_dis       see `flicker`
        flow_error_dis    mean |flow - true flow| over mean |true flow|: 0 the same motion, 1 no better than standing
                          still; only where a true continuation was given and moves
        """
        column = {key: np.array([row.get(key, np.nan) for row in self._rows]) for key in
                  ("speed", "expansion", "flicker", "error", "true_speed")}  # fmt: skip
        true_speed = np.nansum(column["true_speed"])
        return {
            "flow_speed_dis": _mean(column["speed"]),
            "expansion_dis": _mean(column["expansion"]),
            "flicker_dis": _mean(column["flicker"]),
            "flow_error_dis": float(np.nansum(column["error"]) / true_speed) if true_speed > 0 else float("nan"),
        }


def _widths(field: np.ndarray, fps: float) -> float:
    return float(np.linalg.norm(field, axis=-1).mean() / field.shape[1] * fps)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
