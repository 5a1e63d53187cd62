"""Where the sensors of KITTI's car sit, and how its cameras see.

Source: the readme files of the development kits of KITTI raw and KITTI tracking, which give the projection of a
point y in Velodyne coordinates as P_rect_xx * R_rect_00 * (R|T)_velo_to_cam * y.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.kitti.text import numbers, read_lines
from data_prep.source import Refused

NOT_A_ROTATION = 1e-2  # files give 6 digits or more; what is farther from orthonormal was damaged


@dataclass(frozen=True)
class Calibration:
    """One camera of one drive.

    intrinsics    [3, 3] pixels
    offset        [3] metres; x in the rectified coordinates of camera 0 is x + offset in those of this camera
    velo_to_rect  [4, 4] Velodyne (x forward, y left, z up) to the rectified coordinates of camera 0
    imu_to_velo   [4, 4]
    """

    intrinsics: np.ndarray
    offset: np.ndarray
    velo_to_rect: np.ndarray
    imu_to_velo: np.ndarray

    @property
    def camera_to_imu(self) -> np.ndarray:
        """[4, 4]"""
        shift = np.eye(4)
        shift[:3, 3] = self.offset
        return np.linalg.inv(shift @ self.velo_to_rect @ self.imu_to_velo)


def raw_calibration(folder: Path, camera: str) -> Calibration:
    """Of a day of KITTI raw; `camera` is image_02, say. raises Refused if a file or a value is missing or wrong"""
    cameras = _File(folder / "calib_cam_to_cam.txt")
    velo, imu = _File(folder / "calib_velo_to_cam.txt"), _File(folder / "calib_imu_to_velo.txt")
    return _calibration(
        cameras.matrix(3, 4, "P_rect_" + camera[-2:]),
        cameras.matrix(3, 3, "R_rect_00"),
        np.hstack([velo.matrix(3, 3, "R"), velo.matrix(3, 1, "T")]),
        np.hstack([imu.matrix(3, 3, "R"), imu.matrix(3, 1, "T")]),
        str(folder),
    )


def tracking_calibration(path: Path, camera: str) -> Calibration:
    """Of a sequence of KITTI tracking. raises Refused if the file or a value is missing or wrong"""
    file = _File(path)
    return _calibration(
        file.matrix(3, 4, "P" + camera[-1]),
        file.matrix(3, 3, "R_rect", "R0_rect"),
        file.matrix(3, 4, "Tr_velo_cam", "Tr_velo_to_cam"),
        file.matrix(3, 4, "Tr_imu_velo", "Tr_imu_to_velo"),
        str(path),
    )


def _calibration(
    projection: np.ndarray, rectify: np.ndarray, velo_to_cam: np.ndarray, imu_to_velo: np.ndarray, where: str
) -> Calibration:
    intrinsics = projection[:, :3]
    (fx, _, cx), (_, fy, cy), _ = intrinsics
    if not (fx > 0 and fy > 0 and (intrinsics == [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]).all()):
        raise Refused(f"{where}: the camera's projection {intrinsics.tolist()} is no pinhole camera")
    # P = K [I | offset]. Not P[0, 3] / P[0, 0]: the cameras also differ by millimetres along z, which would be lost.
    offset = np.linalg.solve(intrinsics, projection[:, 3])
    rectified = _rigid(np.hstack([rectify, np.zeros((3, 1))]), f"{where}: R_rect")
    velo_to_rect = rectified @ _rigid(velo_to_cam, f"{where}: Velodyne to camera")
    return Calibration(intrinsics, offset, velo_to_rect, _rigid(imu_to_velo, f"{where}: IMU to Velodyne"))


def _rigid(matrix: np.ndarray, where: str) -> np.ndarray:
    """[4, 4] of [3, 4]. raises Refused if it does not rotate and shift alone"""
    rotation = matrix[:, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > NOT_A_ROTATION or np.linalg.det(rotation) < 0:
        raise Refused(f"{where} is no rotation")
    return np.vstack([matrix, [0, 0, 0, 1]])


class _File:
    """Lines of a name and numbers. Most names end in a colon; some in KITTI tracking do not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = [(number, line.split()) for number, line in enumerate(read_lines(path), start=1)]
        self.rows = {words[0].rstrip(":"): (number, words[1:]) for number, words in lines if words}

    def matrix(self, height: int, width: int, *names: str) -> np.ndarray:
        """[height, width], stored row by row under one of `names`."""
        name = next((name for name in names if name in self.rows), None)
        if name is None:
            raise Refused(f"{self.path} lacks {names[0]}")
        number, words = self.rows[name]
        return numbers(words, height * width, f"{self.path} line {number} ({name})").reshape(height, width)
