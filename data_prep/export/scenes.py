"""Which clips of a store are one scene: the cameras of one car, filming the same stretch of its drive."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from data_prep.mounts import CAM_FRONT, MOUNTS

EPOCH_US = 946_684_800_000_000  # 2000-01-01, the day of the first route; each has a day of its own
HOUR_US = 3600 * 1_000_000
DAY_US = 24 * HOUR_US
NEEDED = ["x_m", "y_m", "z_m", "qw", "qx", "qy", "qz", "fx", "fy", "cx", "cy"]  # of the FRAMES table
SOLID = ["x_m", "y_m", "z_m", "length_m", "width_m", "height_m", "yaw"]  # of the BOXES table


@dataclass(frozen=True)
class Scene:
    """Clips of one route that begin together.

    name      the route, and a number where the route has several scenes
    start_us  microseconds since 1970, as all times of nuScenes; made up, since a store knows no dates
    clips     channel -> clip, the front camera first
    """

    name: str
    route: str
    split: str
    fps: float
    start_us: int
    clips: dict[str, str]


def scenes_of(index: pd.DataFrame) -> list[Scene]:
    """All scenes of a store, sorted by name; `index` is the INDEX table with the clip as index.

    Clips belong together if route and rate agree and they start within one frame of each other. Where the start is
    unknown, every clip is a scene of its own.
    """
    scenes = []
    for day, (route, rows) in enumerate(index.rename_axis("clip").reset_index().groupby("route")):
        groups: list[list[Any]] = []
        for row in rows.sort_values(["start_s", "clip"]).itertuples():
            home = next((group for group in reversed(groups) if _together(group, row)), None)
            if home is None:
                groups.append([row])
            else:
                home.append(row)
        for number, group in enumerate(groups):
            name = route if len(groups) == 1 else f"{route}_part{number:04d}"
            scenes.append(_scene(name, EPOCH_US + day * DAY_US + _start_us(group[0].start_s, number), group))
    return sorted(scenes, key=lambda scene: scene.name)


def _together(group: list[Any], row: Any) -> bool:
    near = abs(group[0].start_s - row.start_s) < 1 / row.fps  # false for NaN
    return near and group[0].fps == row.fps and row.camera not in {other.camera for other in group}


def _start_us(start_s: float, number: int) -> int:
    """Time since the recording began of its scene `number`; an hour from scene to scene where it is unknown."""
    return HOUR_US * number if np.isnan(start_s) else round(start_s * 1e6)


def _scene(name: str, start_us: int, group: list[Any]) -> Scene:
    first = group[0]
    clips = {row.camera or CAM_FRONT: row.clip for row in group}
    order = [*(camera for camera in MOUNTS if camera in clips), *sorted(set(clips) - set(MOUNTS))]
    return Scene(name, first.route, first.split, first.fps, start_us, {camera: clips[camera] for camera in order})


def unfit(has_boxes: bool, frames: pd.DataFrame, boxes: pd.DataFrame) -> str | None:
    """Why a clip cannot be exported with boxes in space, or None if it can; its rows of FRAMES and BOXES."""
    if not has_boxes:
        return "its boxes are unknown"
    if not np.isfinite(frames[NEEDED].to_numpy(float)).all():
        return "the pose or the intrinsics of its camera are unknown"
    if len(boxes) and not np.isfinite(boxes[SOLID].to_numpy(float)).all(1).any():
        return "its boxes are known on the picture only, not in space"
    return None
