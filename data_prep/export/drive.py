"""A scene of a store in the terms of nuScenes: key frames, poses of the car, things in the world."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from data_prep.export.rig import boxes_in_world, camera_poses, sensor_poses, wxyz
from data_prep.export.roadmap import origin_of
from data_prep.export.scenes import SOLID, Scene
from drivesim.data.store import ClipStore

KEY_HZ = 2.0  # nuScenes annotates this often
APART_M = 3.0  # shutters of one car open at slightly different times; a fast thing moves less than this meanwhile


@dataclass
class Drive:
    """What there is to tell of a scene.

    frames   channel -> rows of FRAMES up to the last key frame
    sensors  channel -> camera to ego [4, 4]
    egos     channel -> ego to world [t, 4, 4] when each of its pictures was taken
    origin   [2] what was taken off x and y of the store's world
    boxes    one row a thing and key frame: thing, frame, class, visibility, translation, size, rotation (lists)
    """

    scene: Scene
    frames: dict[str, pd.DataFrame]
    sensors: dict[str, np.ndarray]
    egos: dict[str, np.ndarray]
    origin: np.ndarray
    boxes: pd.DataFrame

    @property
    def places(self) -> np.ndarray:
        """Where the car was, [t, 2], in the world of the store."""
        longest = max(self.egos.values(), key=len)
        return longest[:, :2, 3] + self.origin


def stride_of(scene: Scene) -> int:
    """Frames from one key frame to the next."""
    return max(1, round(scene.fps / KEY_HZ))


def kept_frames(scene: Scene, frames: int) -> int:
    """How many of so many frames are exported: up to the last key frame, since later ones have no boxes to go by."""
    return (frames - 1) // stride_of(scene) * stride_of(scene) + 1


def time_us(scene: Scene, frame: int) -> int:
    """When a frame was taken: microseconds, as all times of nuScenes."""
    return scene.start_us + round(frame / scene.fps * 1e6)


def read_drive(store: ClipStore, scene: Scene) -> Drive:
    """All of a scene but its pictures."""
    frames = {}
    for channel, clip in scene.clips.items():
        table = store.frames(clip)
        frames[channel] = table.iloc[: kept_frames(scene, len(table))]
    cameras = {channel: camera_poses(table) for channel, table in frames.items()}
    sensors = sensor_poses(cameras)
    egos = {channel: poses @ np.linalg.inv(sensors[channel]) for channel, poses in cameras.items()}
    origin = origin_of(np.concatenate([ego[:, :2, 3] for ego in egos.values()]))
    for poses in (*cameras.values(), *egos.values()):
        poses[:, :2, 3] -= origin
    seen = [_seen(store.boxes(clip), cameras[channel], channel, scene) for channel, clip in scene.clips.items()]
    return Drive(scene, frames, sensors, egos, origin, _things(pd.concat(seen)))


def _seen(boxes: pd.DataFrame, poses: np.ndarray, channel: str, scene: Scene) -> pd.DataFrame:
    """Rows of BOXES of the key frames of one camera that are known in space, brought to the world."""
    key = (boxes["frame"] % stride_of(scene) == 0) & (boxes["frame"] < len(poses))
    boxes = boxes[key & np.isfinite(boxes[SOLID].to_numpy(float)).all(1)]
    centre, turned = boxes_in_world(poses[boxes["frame"].to_numpy(int)], boxes)
    return boxes.assign(
        channel=channel,
        translation=centre.tolist(),
        size=boxes[["width_m", "length_m", "height_m"]].to_numpy(float).tolist(),
        rotation=[wxyz(rotation) for rotation in turned],
    )


def _things(seen: pd.DataFrame) -> pd.DataFrame:
    """One row a thing and frame: of several cameras the one that sees most of it."""
    thing = seen["track"].astype(str)
    seen = seen.assign(thing=thing if _tracks_agree(seen) else seen["channel"] + "/" + thing)
    # Stable, so that the first camera wins a tie.
    seen = seen.sort_values("visibility", ascending=False, na_position="last", kind="stable")
    return seen.drop_duplicates(["thing", "frame"]).sort_values(["thing", "frame"])


def _tracks_agree(seen: pd.DataFrame) -> bool:
    """Whether the cameras number things together, as those of the town and of nuScenes do, or each for itself."""
    for _, rows in seen[seen.duplicated(["track", "frame"], keep=False)].groupby(["track", "frame"]):
        places = np.array(rows["translation"].tolist())
        if rows["class"].nunique() > 1 or np.linalg.norm(places - places[0], axis=1).max() > APART_M:
            return False
    return True
