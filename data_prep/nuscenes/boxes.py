"""The annotations of a nuScenes picture as boxes: moved to the camera, projected, named."""

import re

import numpy as np
from nuscenes.utils.data_classes import Box as Solid
from pyquaternion import Quaternion

from data_prep.nuscenes.database import Database
from data_prep.nuscenes.records import Row
from data_prep.source import NAN, Box
from drivesim.clip import Camera
from drivesim.geometry import picture_box, turned_corners, yaw_of

# Categories, or what they begin with. Left out: animals, emergency vehicles, things that can be moved, racks.
CLASS_OF = {
    "vehicle.car": "car",
    "vehicle.truck": "truck",
    "vehicle.construction": "truck",
    "vehicle.trailer": "truck",
    "vehicle.bus": "bus",
    "human.pedestrian": "pedestrian",
    "vehicle.bicycle": "cyclist",  # with a rider or without
    "vehicle.motorcycle": "cyclist",
}


def class_of(category: str) -> str | None:
    """One of drivesim.clip.CLASSES, or None for what is not boxed."""
    return next((name for begin, name in CLASS_OF.items() if f"{category}.".startswith(f"{begin}.")), None)


def visible_share(level: str) -> float:
    """The middle of a level of the visibility table, v40-60 say."""
    found = re.fullmatch(r"v(\d+)-(\d+)", level)
    return (int(found[1]) + int(found[2])) / 200 if found else NAN


def track_numbers(database: Database, scene: str) -> dict[str, int]:
    """Instance token -> track, the same for all cameras of a scene."""
    tokens = {
        database.get("sample_annotation", annotation)["instance_token"]
        for sample in database.samples(scene)
        for annotation in sample["anns"]
    }
    return {token: number for number, token in enumerate(sorted(tokens), start=1)}


def boxes_of(database: Database, picture: Row, tracks: dict[str, int]) -> list[Box]:
    """The boxes in a picture, a row of sample_data; between key frames the devkit interpolates them."""
    solids = [solid for solid in database.get_boxes(picture["token"]) if class_of(solid.name) is not None]
    if not solids:
        return []
    calibration = database.get("calibrated_sensor", picture["calibrated_sensor_token"])
    pose = database.get("ego_pose", picture["ego_pose_token"])
    for solid in solids:
        for frame in (pose, calibration):  # world to car, car to camera
            solid.translate(-np.array(frame["translation"]))
            solid.rotate(Quaternion(frame["rotation"]).inverse)
    camera = Camera(np.array(calibration["camera_intrinsic"]), picture["height"], picture["width"])
    centre = np.array([solid.center for solid in solids])
    size = np.array([solid.wlh for solid in solids])[:, [1, 0, 2]]  # length, width, height
    rotation = np.array([solid.orientation.rotation_matrix for solid in solids])
    shown = [picture_box(camera, corners) for corners in turned_corners(centre, size, rotation)]
    yaw = yaw_of(rotation)
    return [
        Box(
            xyxy=xyxy,
            centre_m=tuple(centre[i].tolist()),
            size_m=tuple(size[i].tolist()),
            yaw=float(yaw[i]),
            **_labels(database, solids[i], tracks),
        )
        for i, xyxy in enumerate(shown)
        if xyxy is not None
    ]


def _labels(database: Database, solid: Solid, tracks: dict[str, int]) -> dict:
    annotation = database.get("sample_annotation", solid.token)
    seen = annotation["visibility_token"]
    return {
        "track": tracks[annotation["instance_token"]],
        "name": class_of(solid.name),
        "visibility": visible_share(database.get("visibility", seen)["level"]) if seen else NAN,
    }
