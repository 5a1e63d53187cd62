"""Speed and steering from the CAN bus expansion of nuScenes, where it is there."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from nuscenes.can_bus.can_bus_api import NuScenesCanBus

from data_prep.source import Refused

MOST_S = 0.5  # a message farther away in time says nothing; they come 50 to 100 times a second


def speed_and_steering(root: Path, scene: str, utimes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Speed in m/s and angle of the steering wheel, radians, positive to the left, at `utimes` [n], microseconds.

    scene    its name
    returns  [n] each, NaN where the bus tells nothing: no such folder, no file of the scene, or no messages
    raises   Refused if a file is damaged
    """
    unknown = np.full(len(utimes), np.nan)
    if not (root / "can_bus").is_dir() or not re.fullmatch(r"scene-\d{4}", scene):
        return unknown, unknown
    bus = NuScenesCanBus(str(root))
    if int(scene[-4:]) in bus.can_blacklist:
        return unknown, unknown
    # Positive to the left: github.com/nutonomy/nuscenes-devkit/issues/371.
    return (
        _series(bus, scene, "pose", lambda message: float(np.linalg.norm(message["vel"])), utimes),
        _series(bus, scene, "steeranglefeedback", lambda message: float(message["value"]), utimes),
    )


def _series(
    bus: NuScenesCanBus, scene: str, name: str, value: Callable[[dict], float], utimes: np.ndarray
) -> np.ndarray:
    file = Path(bus.can_dir, f"{scene}_{name}.json")
    if not file.is_file():
        return np.full(len(utimes), np.nan)
    try:
        messages = bus.get_messages(scene, name, print_warnings=False)
        known = np.array([(float(message["utime"]), value(message)) for message in messages]).reshape(-1, 2)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise Refused(
            f"{file} is not readable ({type(error).__name__}: {error}); speed and steering from it are left out"
        ) from error
    return _at(known[np.argsort(known[:, 0], kind="stable")], utimes)


def _at(known: np.ndarray, utimes: np.ndarray) -> np.ndarray:
    """Interpolate known [k, 2] (time, value), sorted by time, at `utimes`; NaN far from any."""
    if len(known) == 0:
        return np.full(len(utimes), np.nan)
    right = np.searchsorted(known[:, 0], utimes).clip(0, len(known) - 1)
    left = (right - 1).clip(0)
    away = np.minimum(abs(known[right, 0] - utimes), abs(known[left, 0] - utimes))
    return np.where(away > MOST_S * 1e6, np.nan, np.interp(utimes, known[:, 0], known[:, 1]))
