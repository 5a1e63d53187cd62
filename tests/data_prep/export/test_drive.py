"""Scenes of cameras that are not those of the town: tilted, numbering things each for itself, none in front."""

import numpy as np
import pytest
from pyquaternion import Quaternion
from scipy.spatial.transform import Rotation

from data_prep.export.drive import kept_frames, read_drive
from data_prep.export.scenes import Scene, scenes_of
from data_prep.source import Box, Frame, RawClip
from data_prep.writer import merge, write_clip
from drivesim.data.store import ClipStore

PICTURE = np.zeros((32, 64, 3), np.uint8)
INTRINSICS = np.array([[40.0, 0, 32], [0, 40, 16], [0, 0, 1]])
THING = np.array([20.0, 12.0, 0.8])  # in the world
ASIDE = np.array([0.5, 0.0, 0.0])


def look(degrees: float, pitch: float = 0.0) -> np.ndarray:
    """Camera to world: level and to the east at 0, further to the left with more degrees; pitched downward."""
    east = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    turn, nod = (Rotation.from_euler(axis, angle, degrees=True) for axis, angle in (("z", degrees), ("x", -pitch)))
    return turn.as_matrix() @ east @ nod.as_matrix()


def clip(camera: str, rotation: np.ndarray, track: int, thing: np.ndarray, visibility: float, fps: float = 10.0):
    def frames():
        for number in range(13):
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = rotation, [5.0 + number, 7.0, 1.6]
            centre = tuple((rotation.T @ (thing - pose[:3, 3])).tolist())
            box = Box(track, "car", (0.1, 0.1, 0.9, 0.9), visibility, centre, (4.0, 1.8, 1.5), 0.3)
            yield Frame(PICTURE, [box], pose, INTRINSICS)

    return RawClip(f"drive_{camera}", "drive", fps, "rig", "", True, frames(), camera, start_s=0.0)


@pytest.fixture
def drive_of(tmp_path):
    def make(*clips: RawClip):
        for raw in clips:
            write_clip(tmp_path, raw, "train")
        merge(tmp_path, {"source": "rig"})
        store = ClipStore(tmp_path)
        (scene,) = scenes_of(store.index)
        return read_drive(store, scene)

    return make


def test_one_number_at_one_place_is_one_thing_and_the_better_view_is_kept(drive_of):
    drive = drive_of(clip("CAM_FRONT", look(0), 4, THING, 0.5), clip("CAM_FRONT_LEFT", look(55), 4, THING + ASIDE, 0.9))
    assert drive.boxes["thing"].tolist() == ["4", "4", "4"]  # key frames 0, 5 and 10
    assert drive.boxes["channel"].unique().tolist() == ["CAM_FRONT_LEFT"]
    np.testing.assert_allclose(drive.boxes["translation"].iloc[0][:2], (THING + ASIDE)[:2] - drive.origin, atol=1e-5)


def test_one_number_at_two_places_is_two_things(drive_of):
    drive = drive_of(clip("CAM_FRONT", look(0), 4, THING, 0.5), clip("CAM_BACK", look(180), 4, THING - [40, 0, 0], 0.9))
    assert drive.boxes["thing"].value_counts().to_dict() == {"CAM_FRONT/4": 3, "CAM_BACK/4": 3}


def test_boxes_seen_by_a_pitched_camera_keep_their_place_and_their_axes(drive_of):
    rotation = look(20, pitch=6)
    drive = drive_of(clip("CAM_FRONT", rotation, 1, THING, 1.0))
    row = drive.boxes.iloc[0]
    np.testing.assert_allclose(np.add(row["translation"], [*drive.origin, 0]), THING, atol=1e-5)
    assert row["size"] == pytest.approx([1.8, 4.0, 1.5])  # width, length, height
    axes = Quaternion(row["rotation"]).rotation_matrix
    np.testing.assert_allclose(
        rotation.T @ axes[:, 0], [np.sin(0.3), 0, np.cos(0.3)], atol=1e-6
    )  # the yaw of the store
    np.testing.assert_allclose(rotation.T @ axes[:, 2], [0, -1, 0], atol=1e-6)


def test_without_a_front_camera_the_car_looks_where_the_name_of_its_camera_says(drive_of):
    drive = drive_of(clip("CAM_BACK", look(180), 1, THING, 1.0))
    ego = drive.egos["CAM_BACK"][0]
    np.testing.assert_allclose(ego[:3, :3], np.eye(3), atol=1e-9)  # the camera looks west, the car drives east
    np.testing.assert_allclose(ego[:2, 3] + drive.origin, [5, 7], atol=1e-6)


def test_frames_after_the_last_key_frame_are_left_out():
    scene = Scene("s", "s", "train", 10.0, 0, {})
    assert [kept_frames(scene, frames) for frames in (1, 5, 6, 13, 16)] == [1, 1, 6, 11, 16]
    assert kept_frames(Scene("s", "s", "train", 1.875, 0, {}), 7) == 7  # slower than key frames: each is one
