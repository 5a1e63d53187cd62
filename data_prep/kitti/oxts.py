"""The car's motion from KITTI's GPS/IMU unit.

Source: `dataformat.txt` of the data and the readme of the raw development kit (the 30 values of a row); its
`convertOxtsToPose.m` (Mercator projection, order of the rotations).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from data_prep.kitti.text import numbers, read_lines
from data_prep.source import Refused

VALUES = 30
LATITUDE, LONGITUDE, ALTITUDE, ROLL, PITCH, YAW, FORWARD_VELOCITY = 0, 1, 2, 3, 4, 5, 8
EARTH_RADIUS_M = 6378137.0


@dataclass(frozen=True)
class Motion:
    """imu_to_world [4, 4]: IMU x forward, y left, z up (the readme says right and down, but angles and calibration
    of the files follow the former); world x east, y north, z up, metres from where the drive began."""

    imu_to_world: np.ndarray
    speed_mps: float


def raw_motions(folder: Path) -> dict[int, Motion]:
    """By frame, from one file each (`oxts/data`); none where there is no such folder."""
    rows = {}
    for path in sorted(folder.glob("*.txt")):
        if path.stem.isdecimal():
            lines = read_lines(path) or [""]
            rows[int(path.stem)] = _row(lines[0], f"{path} line 1")
    return motions(rows)


def tracking_motions(path: Path) -> dict[int, Motion]:
    """By frame, from one file with a row each (`oxts/0000.txt`); none where there is no such file."""
    lines = read_lines(path) if path.exists() else []
    return motions({number: _row(line, f"{path} line {number + 1}") for number, line in enumerate(lines)})


def motions(rows: Mapping[int, np.ndarray]) -> dict[int, Motion]:
    """Rows [30] to motions; the world's origin is where the first row was taken."""
    if not rows:
        return {}
    first = rows[min(rows)]
    scale = np.cos(np.radians(first[LATITUDE]))
    origin = _place(first, scale)
    found = {}
    for number, row in rows.items():
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("ZYX", row[[YAW, PITCH, ROLL]]).as_matrix()  # Rz(yaw) Ry(pitch) Rx(roll)
        pose[:3, 3] = _place(row, scale) - origin
        found[number] = Motion(pose, float(row[FORWARD_VELOCITY]))
    return found


def _place(row: np.ndarray, scale: float) -> np.ndarray:
    """[3] metres, by a Mercator projection that is true to scale at the latitude of the first row."""
    east = scale * EARTH_RADIUS_M * np.radians(row[LONGITUDE])
    north = scale * EARTH_RADIUS_M * np.log(np.tan(np.radians(90 + row[LATITUDE]) / 2))
    return np.array([east, north, row[ALTITUDE]])


def _row(line: str, where: str) -> np.ndarray:
    row = numbers(line.split(), VALUES, where)
    if not -89 < row[LATITUDE] < 89:
        raise Refused(f"{where}: the latitude is {row[LATITUDE]:g} degrees")
    return row
