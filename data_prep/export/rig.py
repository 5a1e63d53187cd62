"""Poses of a store in the terms of nuScenes: camera to world = ego to world times camera to ego.

A store knows where its cameras were, not where they sat on the car. So the first camera of a scene is taken to sit at
a fixed place; the other ones follow from where they were beside it. The product is always the camera's own pose.

Frames: world x east, y north, z up; ego x forward, y left, z up; camera x right, y down, z forward. Poses are [4, 4].
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation

from data_prep.mounts import MOUNTS, Mount
from drivesim.geometry import upright

FRONT_M = (
    1.7,
    0.0,
    1.5,
)  # where the front camera of nuScenes sits before, beside and above the middle of the rear axle
LEVEL = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # camera to ego of a camera that looks straight ahead


def camera_poses(frames: pd.DataFrame) -> np.ndarray:
    """Camera to world [t, 4, 4] of the rows of a FRAMES table."""
    poses = np.tile(np.eye(4), (len(frames), 1, 1))
    poses[:, :3, :3] = Rotation.from_quat(frames[["qx", "qy", "qz", "qw"]].to_numpy(float)).as_matrix()
    poses[:, :3, 3] = frames[["x_m", "y_m", "z_m"]].to_numpy(float)
    return poses


def sensor_poses(poses: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Camera to ego [4, 4] of each channel; `poses` [t, 4, 4] camera to world, the channel to start from first."""
    reference = next(iter(poses))
    ego = poses[reference][0] @ np.linalg.inv(_assumed(MOUNTS.get(reference, Mount(0.0, 0.0, 0.0))))
    return {channel: np.linalg.inv(ego) @ pose[0] for channel, pose in poses.items()}


def _assumed(mount: Mount) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec([0, 0, mount.yaw]).as_matrix() @ LEVEL
    pose[:3, 3] = np.add(FRONT_M, [mount.forward_m, mount.left_m, 0.0])
    return pose


def boxes_in_world(poses: np.ndarray, boxes: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Centres [n, 3] and rotations [n, 3, 3] in the world of rows of a BOXES table.

    poses  [n, 4, 4] camera to world of each row's frame
    The axes of a box: x along its length, y to its left, z up.
    """
    centre = boxes[["x_m", "y_m", "z_m"]].to_numpy(float)
    turned = poses[:, :3, :3] @ upright(boxes["yaw"].to_numpy(float))
    return np.einsum("nij,nj->ni", poses[:, :3, :3], centre) + poses[:, :3, 3], turned


def wxyz(rotation: np.ndarray) -> list[float]:
    """A rotation matrix [3, 3] as the quaternion w, x, y, z that nuScenes writes; w >= 0."""
    x, y, z, w = Rotation.from_matrix(rotation).as_quat(canonical=True).tolist()
    return [w, x, y, z]
