"""One camera through one scene: its pictures in order, with pose, speed, boxes and the rest."""

import os
import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from nuscenes.utils.geometry_utils import transform_matrix
from pyquaternion import Quaternion

from data_prep.nuscenes.boxes import boxes_of, track_numbers
from data_prep.nuscenes.can import speed_and_steering
from data_prep.nuscenes.database import Database
from data_prep.nuscenes.maps import map_layers
from data_prep.nuscenes.records import Row
from data_prep.recording import Shot
from data_prep.source import NAN, Frame, MapLayer, Refused

MISSING_SHARE = 0.5  # where more pictures than this are not there, the archive was not unpacked


class Drive:
    """The pictures of a camera in a scene.

    losses  what of the extras could not be read, and why; they are unknown then
    raises  Refused if rows of the scene are damaged, their links or times do not fit, or most pictures are missing
    """

    def __init__(self, database: Database, scene: str, camera: str, sweeps: bool) -> None:
        _check_faults(database, scene, camera)
        self.database, self.root, self.scene = database, Path(database.dataroot), database.get("scene", scene)
        chain("sample", database.samples(scene))  # their times are what boxes are interpolated by
        rows = chain("sample_data", database.pictures(scene, camera))
        self.rows = [row for row in rows if sweeps or row["is_key_frame"]]
        self.losses: list[str] = []
        self._check_pictures(camera, sweeps)
        self.utimes = np.array([row["timestamp"] for row in self.rows], float)
        self.ego = np.array([_pose(database.get("ego_pose", row["ego_pose_token"])) for row in self.rows])
        mounted = [_pose(self._calibration(row)) for row in self.rows]
        self.poses = self.ego @ np.array(mounted)  # camera to world
        self.night, self.weather = conditions(self.scene["description"])
        self.tracks = track_numbers(database, scene)
        self.speed, self.steering = self._motion()

    def shots(self) -> list[Shot]:
        return [
            Shot(self.utimes[index] * 1e-6, self.root / row["filename"], partial(self._frame, index))
            for index, row in enumerate(self.rows)
        ]

    def maps(self) -> list[MapLayer]:
        """The road map around the drive, if there is one."""
        location = self.database.get("log", self.scene["log_token"])["location"]
        try:
            return map_layers(self.root, location, self.ego[:, :2, 3])
        except Refused as reason:
            self.losses.append(str(reason))
            return []

    def _frame(self, index: int, picture: np.ndarray) -> Frame:
        row = self.rows[index]
        if picture.shape[:2] != (row["height"], row["width"]):
            found, told = f"{picture.shape[1]}x{picture.shape[0]}", f"{row['width']}x{row['height']}"
            raise Refused(f"{row['filename']} is {found}, but sample_data {row['token']} says {told}")
        return Frame(
            image=picture,
            boxes=boxes_of(self.database, row, self.tracks),
            pose=self.poses[index],
            intrinsics=np.array(self._calibration(row)["camera_intrinsic"], float),
            speed_mps=float(self.speed[index]),
            night=self.night,
            steering_rad=float(self.steering[index]),
        )

    def _calibration(self, row: Row) -> Row:
        return self.database.get("calibrated_sensor", row["calibrated_sensor_token"])

    def _check_pictures(self, camera: str, sweeps: bool) -> None:
        if not self.rows:
            raise Refused(f"sample_data has no picture of {camera} in this scene")
        if blind := [row for row in self.rows if not self._calibration(row)["camera_intrinsic"]]:
            token = blind[0]["calibrated_sensor_token"]
            raise Refused(f"calibrated_sensor {token}: camera_intrinsic is empty, expected 3x3 numbers")
        missing = [row["filename"] for row in self.rows if not os.path.isfile(self.root / row["filename"])]
        if len(missing) > MISSING_SHARE * len(self.rows):
            hint = ", or add nuscenes.sweeps=false" if sweeps and len(missing) < len(self.rows) else ""
            found = f"{len(missing)} of {len(self.rows)} pictures are missing, {missing[0]} first"
            raise Refused(f"{found}; unpack the archive that has them{hint}")

    def _motion(self) -> tuple[np.ndarray, np.ndarray]:
        """Speed and steering [n] of the car: from the CAN bus, the speed else from its poses."""
        unknown = np.full(len(self.rows), NAN)
        try:
            speed, steering = speed_and_steering(self.root, self.scene["name"], self.utimes)
        except Refused as reason:
            self.losses.append(str(reason))
            speed, steering = unknown, unknown
        return np.where(np.isnan(speed), _speed(self.ego[:, :3, 3], self.utimes * 1e-6), speed), steering


def chain(table: str, rows: Sequence[Row]) -> list[Row]:
    """The rows of a scene in the order of their links.

    raises  Refused if the links do not join all of them, or the times do not rise
    """
    by_token = {row["token"]: row for row in rows}
    for row in rows:
        for link in ("prev", "next"):
            if row[link] and row[link] not in by_token:
                raise Refused(f"{table} {row['token']}: {link} {row[link]!r} is not in {table}, or of another scene")
    ordered = [row for row in rows if not row["prev"]][:1]
    while ordered and ordered[-1]["next"] and len(ordered) <= len(rows):
        ordered.append(by_token[ordered[-1]["next"]])
    if len(ordered) != len(rows):
        last = f"{table} {ordered[-1]['token']}" if ordered else table
        raise Refused(f"{last}: prev and next do not join the {len(rows)} rows of the scene into one chain")
    for before, row in pairwise(ordered):
        if row["prev"] != before["token"]:
            raise Refused(f"{table} {row['token']}: prev is {row['prev']!r}, but {before['token']!r} leads here")
        if not row["timestamp"] > before["timestamp"]:
            what = "repeats" if row["timestamp"] == before["timestamp"] else f"goes back from {before['timestamp']}"
            raise Refused(f"{table} {row['token']}: the time stamp {row['timestamp']} {what}")
    return ordered


def conditions(description: str) -> tuple[float, str]:
    """(night, weather) as a scene's description tells them: 0 day, 1 night; NaN and empty where there is no text."""
    words = description.lower()
    if not words.strip():
        return NAN, ""
    raining = re.search(r"(?<!after )\brain", words)
    return float(re.search(r"\bnight", words) is not None), "rain" if raining else "clear"


def _check_faults(database: Database, scene: str, camera: str) -> None:
    reasons = list(dict.fromkeys(fault.reason for fault in database.faults_of(scene, camera)))
    if reasons:
        more = f"; and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        raise Refused(f"{reasons[0]}{more}")


def _pose(row: Row) -> np.ndarray:
    return transform_matrix(row["translation"], Quaternion(row["rotation"]))


def _speed(places: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Speed [n] in m/s at places [n, 3]: over the neighbours, at the ends over the one there is."""
    if len(places) < 2:
        return np.full(len(places), NAN)
    return np.linalg.norm(np.gradient(places, times_s, axis=0), axis=1)
