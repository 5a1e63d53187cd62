"""The rows that one scene adds to the tables of nuScenes; their fields are those of its docs/schema_nuscenes.md."""

import hashlib
from typing import Any

import numpy as np

from data_prep.export.drive import Drive, stride_of, time_us
from data_prep.export.marks import marks
from data_prep.export.rig import wxyz
from data_prep.export.vocabulary import CATEGORIES, visibility_token
from drivesim.data.store import ClipStore

Row = dict[str, Any]


def token(*names: object) -> str:
    """The same 32 hexadecimal digits for the same names."""
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()[:32]


def picture_name(clip: str, channel: str, key: bool, timestamp: int) -> str:
    """File of a picture relative to the data set."""
    return f"{'samples' if key else 'sweeps'}/{channel}/{clip}__{channel}__{timestamp}.jpg"


def map_name(scene: str) -> str:
    """File of the map of a scene relative to the data set."""
    return f"maps/{token('map', scene)}.png"


def scene_rows(drive: Drive, store: ClipStore, description: str) -> dict[str, list[Row]]:
    """Table -> rows."""
    samples = _samples(drive, store)
    instances, annotations = _instances(drive)
    tables: dict[str, list[Row]] = {"sample": samples, "instance": instances, "sample_annotation": annotations}
    tables |= {"calibrated_sensor": [], "ego_pose": [], "sample_data": []}
    for channel in drive.frames:
        for table, rows in _pictures(drive, store, channel).items():
            tables[table] += rows
    return tables | _scene(drive, samples, description)


def _scene(drive: Drive, samples: list[Row], description: str) -> dict[str, list[Row]]:
    name = drive.scene.name
    log = {
        "token": token("log", name),
        "logfile": drive.scene.route,
        "vehicle": "drivesim",
        "date_captured": str(np.datetime64(drive.scene.start_us, "us").astype("datetime64[D]")),
        "location": name,  # every scene has coordinates of its own, and so a map of its own
    }
    scene = {
        "token": token("scene", name),
        "log_token": log["token"],
        "nbr_samples": len(samples),
        "first_sample_token": samples[0]["token"],
        "last_sample_token": samples[-1]["token"],
        "name": name,
        "description": description,
    }
    road = {
        "token": token("map", name),
        "log_tokens": [log["token"]],
        "category": "semantic_prior",
        "filename": map_name(name),
    }
    return {"log": [log], "scene": [scene], "map": [road]}


def _samples(drive: Drive, store: ClipStore) -> list[Row]:
    """One a key frame."""
    scene, marked = drive.scene, marks(store, next(iter(drive.scene.clips.values())))
    frames = range(0, max(map(len, drive.frames.values())), stride_of(scene))
    rows = [
        {
            "token": token("sample", scene.name, frame),
            "timestamp": time_us(scene, frame),
            "scene_token": token("scene", scene.name),
            **(marked[frame] if frame < len(marked) else {}),
        }
        for frame in frames
    ]
    return _linked(rows)


def _pictures(drive: Drive, store: ClipStore, channel: str) -> dict[str, list[Row]]:
    """One sample_data and one ego_pose a picture; one calibrated_sensor for all that share their intrinsics."""
    scene, stride = drive.scene, stride_of(drive.scene)
    size = store.index.loc[scene.clips[channel]]
    sensors: dict[str, Row] = {}
    poses, data = [], []
    for number, row in enumerate(drive.frames[channel].itertuples()):
        sensor = _sensor(drive, channel, row)
        sensors[sensor["token"]] = sensor
        poses.append(_ego_pose(drive, channel, number))
        key, timestamp = number % stride == 0, time_us(scene, number)
        data.append(
            {
                "token": token("sample_data", scene.name, channel, number),
                # A sweep belongs to the key frame that follows it: the devkit moves boxes back from there.
                "sample_token": token("sample", scene.name, -(-number // stride) * stride),
                "ego_pose_token": poses[-1]["token"],
                "calibrated_sensor_token": sensor["token"],
                "timestamp": timestamp,
                "fileformat": "jpg",
                "is_key_frame": key,
                "height": int(size.height),
                "width": int(size.width),
                "filename": picture_name(scene.clips[channel], channel, key, timestamp),
            }
        )
    return {"calibrated_sensor": list(sensors.values()), "ego_pose": poses, "sample_data": _linked(data)}


def _sensor(drive: Drive, channel: str, row: Any) -> Row:
    matrix = [[row.fx, 0.0, row.cx], [0.0, row.fy, row.cy], [0.0, 0.0, 1.0]]
    return {
        "token": token("calibrated_sensor", drive.scene.name, channel, matrix),
        "sensor_token": token("sensor", channel),
        "translation": drive.sensors[channel][:3, 3].tolist(),
        "rotation": wxyz(drive.sensors[channel][:3, :3]),
        "camera_intrinsic": matrix,
    }


def _ego_pose(drive: Drive, channel: str, number: int) -> Row:
    pose = drive.egos[channel][number]
    return {
        "token": token("ego_pose", drive.scene.name, channel, number),
        "timestamp": time_us(drive.scene, number),
        "rotation": wxyz(pose[:3, :3]),
        "translation": pose[:3, 3].tolist(),
    }


def _instances(drive: Drive) -> tuple[list[Row], list[Row]]:
    """One instance a thing of the scene, with its annotations in order."""
    instances, annotations = [], []
    for thing, rows in drive.boxes.groupby("thing"):
        instance = token("instance", drive.scene.name, thing)
        chain = _linked([_annotation(drive, instance, row) for row in rows.itertuples()])
        annotations += chain
        instances.append(
            {
                "token": instance,
                "category_token": token("category", CATEGORIES[rows["class"].iloc[0]][0]),
                "nbr_annotations": len(chain),
                "first_annotation_token": chain[0]["token"],
                "last_annotation_token": chain[-1]["token"],
            }
        )
    return instances, annotations


def _annotation(drive: Drive, instance: str, row: Any) -> Row:
    return {
        "token": token("sample_annotation", instance, row.frame),
        "sample_token": token("sample", drive.scene.name, row.frame),
        "instance_token": instance,
        "visibility_token": visibility_token(row.visibility),
        "attribute_tokens": [],
        "translation": row.translation,
        "size": row.size,
        "rotation": row.rotation,
        "num_lidar_pts": 0,
        "num_radar_pts": 0,
    }


def _linked(rows: list[Row]) -> list[Row]:
    """The same rows, each with the tokens of its neighbours; empty at the ends."""
    tokens = ["", *(row["token"] for row in rows), ""]
    for row, before, after in zip(rows, tokens, tokens[2:], strict=False):
        row |= {"prev": before, "next": after}
    return rows
