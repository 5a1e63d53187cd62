"""Where many things are at any time, from positions worked out beforehand at even steps."""

import numpy as np

STEP_S = 0.1  # positions between steps are interpolated: at 12 m/s on the tightest bend that is off by 2 cm


def between_steps(table: np.ndarray, time_s: float) -> np.ndarray:
    """Interpolate a table [steps, ...] at a time; NaN (absent) at either step gives NaN."""
    step = min(int(time_s / STEP_S), len(table) - 2)
    return table[step] + (table[step + 1] - table[step]) * (time_s / STEP_S - step)


def places(path, s: np.ndarray, offset: float = 0.0) -> np.ndarray:
    """x, y, heading [steps, 3] of distances s [steps] along a path; NaN off its ends."""
    point, heading = path.at(s, offset)
    table = np.concatenate([point, heading[:, None]], 1)
    table[(s < 0) | (s > path.length)] = np.nan
    return table
