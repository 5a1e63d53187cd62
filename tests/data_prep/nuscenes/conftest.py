"""A small data set in the format of nuScenes: two scenes, two cameras, key frames and sweeps, all extras."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pyquaternion import Quaternion

HEIGHT, WIDTH = 90, 160
VERSION = "v1.0-mini"
SCENES = {  # of the official train and val parts of v1.0-mini
    "scene-0061": "Parked truck, train crossing, after rain",
    "scene-0103": "Night, heavy rain, many pedestrians",
}
CAMERAS = {"CAM_FRONT": 0.02, "CAM_BACK": np.pi - 0.03}  # turn to the left from straight ahead
START_US = 1_532_402_927_000_000
STEP_US = 83_333
SWEEPS = 5  # between two key frames
KEY_FRAMES = 3
THINGS = {  # category: place beside the road, ahead and left of the start; size: width, length, height; drives by m/s
    "vehicle.car": ((14, 0.5, 0.8), (1.9, 4.5, 1.6), 6.0),
    "vehicle.truck": ((2.6, 2.4, 1.6), (2.5, 8.0, 3.2), 0.0),  # beside the camera: cut at the near plane
    "human.pedestrian.adult": ((16, -4, 0.9), (0.6, 0.7, 1.8), 1.0),
    "vehicle.bicycle": ((-14, 1.0, 0.7), (0.6, 1.7, 1.3), 4.0),  # seen to the rear
    "movable_object.trafficcone": ((12, 2, 0.4), (0.4, 0.4, 0.8), 0.0),
}


def token(*parts: object) -> str:
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


@dataclass
class Tree:
    """A data set: change `tables` or files, then `save`."""

    root: Path
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def save(self) -> Path:
        (self.root / VERSION).mkdir(parents=True, exist_ok=True)
        for name, rows in self.tables.items():
            (self.root / VERSION / f"{name}.json").write_text(json.dumps(rows, indent=0))
        return self.root

    def add(self, table: str, **row: Any) -> str:
        self.tables.setdefault(table, []).append(row)
        return row["token"]

    def find(self, table: str, **wanted: Any) -> list[dict[str, Any]]:
        return [row for row in self.tables[table] if all(row[name] == value for name, value in wanted.items())]

    def scene(self, name: str) -> dict[str, Any]:
        return self.find("scene", name=name)[0]

    def pictures(self, scene: str, camera: str) -> list[dict[str, Any]]:
        """Rows of sample_data in order of time."""
        rows = [row for row in self.tables["sample_data"] if f"{scene}__{camera}__" in row["filename"]]
        return sorted(rows, key=lambda row: row["timestamp"])


def turn(yaw: float, pitch: float = 0.0) -> Quaternion:
    return Quaternion(axis=[0, 0, 1], angle=yaw) * Quaternion(axis=[0, 1, 0], angle=pitch)


def ego(seconds: float) -> tuple[np.ndarray, Quaternion]:
    """Drives 8 m/s along a bend."""
    yaw = 0.4 + 0.2 * seconds
    place = np.array([600 + 40 * (np.sin(yaw) - np.sin(0.4)), 1600 - 40 * (np.cos(yaw) - np.cos(0.4)), 0.0])
    return place, turn(yaw, 0.01)


def build(root: Path) -> Tree:
    tree = Tree(root)
    for category in THINGS:
        tree.add("category", token=token(category), name=category, description="")
    tree.add("attribute", token=token("moving"), name="vehicle.moving", description="")
    for number, level in enumerate(("v0-40", "v40-60", "v60-80", "v80-100"), start=1):
        tree.add("visibility", token=str(number), level=level, description="")
    for channel in (*CAMERAS, "LIDAR_TOP"):
        modality = "lidar" if channel == "LIDAR_TOP" else "camera"
        tree.add("sensor", token=token(channel), channel=channel, modality=modality)
    for name, description in SCENES.items():
        add_scene(tree, name, description)
    logs = [row["token"] for row in tree.tables["log"]]
    tree.add("map", token=token("map"), log_tokens=logs, category="semantic_prior", filename="maps/town.png")
    (root / "maps").mkdir(parents=True)
    cv2.imwrite(str(root / "maps" / "town.png"), np.zeros((8, 8), np.uint8))
    tree.save()
    return tree


def add_scene(tree: Tree, name: str, description: str) -> None:
    log = tree.add(
        "log",
        token=token(name, "log"),
        logfile=name,
        vehicle="n015",
        date_captured="2018-07-24",
        location="singapore-onenorth",
    )
    samples = [token(name, "sample", number) for number in range(KEY_FRAMES)]
    for number, sample in enumerate(samples):
        tree.add(
            "sample",
            token=sample,
            timestamp=time_us(number * (SWEEPS + 1)),
            scene_token=token(name),
            **links(samples, number),
        )
    tree.add(
        "scene",
        token=token(name),
        log_token=log,
        nbr_samples=KEY_FRAMES,
        first_sample_token=samples[0],
        last_sample_token=samples[-1],
        name=name,
        description=description,
    )
    for channel in (*CAMERAS, "LIDAR_TOP"):
        add_sensor(tree, name, channel, samples)
    for category, (place, size, speed) in THINGS.items():
        add_thing(tree, name, category, samples, np.array(place), size, speed)


def time_us(step: int) -> int:
    return START_US + step * STEP_US


def links(tokens: list[str], number: int) -> dict[str, str]:
    return {"prev": ["", *tokens][number], "next": [*tokens, ""][number + 1]}


def add_sensor(tree: Tree, scene: str, channel: str, samples: list[str]) -> None:
    optical = Quaternion(0.5, -0.5, 0.5, -0.5)  # camera z ahead, x right, y down, to car x ahead, y left, z up
    is_camera = channel in CAMERAS
    calibration = tree.add(
        "calibrated_sensor",
        token=token(scene, channel, "calibration"),
        sensor_token=token(channel),
        translation=[1.7, 0.02, 1.5],
        rotation=list(turn(CAMERAS[channel], 0.02) * optical) if is_camera else [1.0, 0.0, 0.0, 0.0],
        camera_intrinsic=[[126.0, 0.0, 81.0], [0.0, 126.0, 47.0], [0.0, 0.0, 1.0]] if is_camera else [],
    )
    count = (KEY_FRAMES - 1) * (SWEEPS + 1) + 1
    tokens = [token(scene, channel, step) for step in range(count)]
    for step, row in enumerate(tokens):
        jitter = {"CAM_FRONT": 900, "CAM_BACK": 2100}.get(channel, 0)
        place, rotation = ego((step * STEP_US + jitter) * 1e-6)
        tree.add(
            "ego_pose", token=row, timestamp=time_us(step) + jitter, rotation=list(rotation), translation=place.tolist()
        )
        key = step % (SWEEPS + 1) == 0
        folder, kind = "samples" if key else "sweeps", "jpg" if is_camera else "pcd"
        file = f"{folder}/{channel}/{scene}__{channel}__{time_us(step)}.{kind}"
        if is_camera:
            write_picture(tree.root / file, step)
        tree.add(
            "sample_data",
            token=row,
            sample_token=samples[-(-step // (SWEEPS + 1))],  # sweeps belong to the key frame after them
            ego_pose_token=row,
            calibrated_sensor_token=calibration,
            timestamp=time_us(step) + jitter,
            fileformat=kind,
            is_key_frame=key,
            height=HEIGHT if is_camera else 0,
            width=WIDTH if is_camera else 0,
            filename=file,
            **links(tokens, step),
        )


def write_picture(path: Path, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.full((HEIGHT, WIDTH, 3), 40 + 10 * step, np.uint8)
    cv2.imwrite(str(path), picture)


def add_thing(
    tree: Tree, scene: str, category: str, samples: list[str], place: np.ndarray, size: tuple, speed: float
) -> None:
    instance = token(scene, category)
    start, heading = ego(0)
    annotations = [token(scene, category, number) for number in range(KEY_FRAMES)]
    tree.add(
        "instance",
        token=instance,
        category_token=token(category),
        nbr_annotations=KEY_FRAMES,
        first_annotation_token=annotations[0],
        last_annotation_token=annotations[-1],
    )
    for number, annotation in enumerate(annotations):
        seconds = number * (SWEEPS + 1) * STEP_US * 1e-6
        where = start + heading.rotate(place + np.array([speed * seconds, 0, 0]))
        tree.add(
            "sample_annotation",
            token=annotation,
            sample_token=samples[number],
            instance_token=instance,
            visibility_token=str(4 - number),
            attribute_tokens=[],
            translation=where.tolist(),
            size=list(size),
            rotation=list(turn(0.5 + 0.3 * number, 0.05)),
            num_lidar_pts=5,
            num_radar_pts=0,
            **links(annotations, number),
        )


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A whole data set of its own, that a test may spoil."""
    return build(tmp_path / "nuscenes")
