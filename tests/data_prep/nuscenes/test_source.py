"""Scenes in the format of nuScenes as units, splits and clips."""

import json

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes
from pyquaternion import Quaternion

from data_prep.nuscenes.drive import conditions
from data_prep.nuscenes.source import NuscenesConfig, NuscenesSource, official_splits
from data_prep.prepare import main
from data_prep.source import Dropped
from drivesim.data.store import ClipStore
from drivesim.errors import UserError

BOTH = ["CAM_FRONT", "CAM_BACK"]


def source_of(tree, **options) -> NuscenesSource:
    given = {"height": 80, "width": 160, "min_seconds": 0.5, **options}
    return NuscenesSource(NuscenesConfig(**given), tree.root)


def read(source, number=0):
    """The clips of a unit with their frames, and the reasons of what is not one."""
    clips, reasons = [], []
    for piece in source.clips(source.units()[number]):
        if isinstance(piece, Dropped):
            reasons.append(piece.reason)
        else:
            clips.append((piece, list(piece.frames)))
    return clips, reasons


def test_a_unit_is_a_scene_seen_by_a_camera_in_its_official_split(tree):
    units = source_of(tree, cameras=BOTH).units()
    assert [(unit.name, unit.route, unit.split) for unit in units] == [
        ("scene-0061_CAM_FRONT", "scene-0061", "train"),
        ("scene-0061_CAM_BACK", "scene-0061", "train"),
        ("scene-0103_CAM_FRONT", "scene-0103", "val"),
        ("scene-0103_CAM_BACK", "scene-0103", "val"),
    ]


def test_all_but_mini_have_the_splits_of_the_whole_data_set():
    splits = official_splits("v1.0-trainval")
    assert [list(splits.values()).count(name) for name in ("train", "val", "test")] == [700, 150, 150]
    assert len(official_splits("v1.0-mini")) == 10


def test_scenes_of_no_official_split_are_shared_out(tree):
    tree.scene("scene-0061")["name"] = "town/1"
    tree.save()
    unit = source_of(tree).units()[0]
    assert (unit.name, unit.route, unit.split) == ("town_1_CAM_FRONT", "town_1", "")


def test_scenes_of_the_same_name_stay_apart(tree):
    tree.scene("scene-0061")["name"] = "scene-0103"
    tree.save()
    units = source_of(tree).units()
    assert len({unit.name for unit in units}) == len({unit.route for unit in units}) == 2


def test_sweeps_are_frames_too_and_key_frames_alone_come_at_two_a_second(tree):
    clips, reasons = read(source_of(tree))
    assert (len(clips), len(clips[0][1]), reasons) == (1, 13, [])
    levels = [int(frame.image.mean()) for frame in clips[0][1]]
    assert levels == sorted(set(levels))
    clips, _ = read(source_of(tree, sweeps=False, fps=2.0))
    assert len(clips[0][1]) == 3


def test_more_frames_than_key_frames_are_refused_before_anything_is_read(tree):
    with pytest.raises(UserError, match=r"nuscenes.fps is 12, but key frames come at 2 a second; add nuscenes.fps=2"):
        source_of(tree, sweeps=False).units()


def test_poses_are_those_of_the_camera_in_the_world(tree):
    (_, frames), *_ = read(source_of(tree, cameras=BOTH), 1)[0]
    database = NuScenes("v1.0-mini", str(tree.root), verbose=False)
    for frame, row in zip(frames, tree.pictures("scene-0061", "CAM_BACK"), strict=True):
        mounted = database.get("calibrated_sensor", row["calibrated_sensor_token"])
        ego = database.get("ego_pose", row["ego_pose_token"])
        point = np.array([0.3, -0.2, 7.0])  # in the camera
        world = Quaternion(mounted["rotation"]).rotate(point) + mounted["translation"]
        world = Quaternion(ego["rotation"]).rotate(world) + ego["translation"]
        np.testing.assert_allclose(frame.pose[:3, :3] @ point + frame.pose[:3, 3], world, atol=1e-9)


def test_the_speed_is_that_of_the_drive_at_its_ends_too(tree):
    (_, frames), *_ = read(source_of(tree))[0]
    np.testing.assert_allclose([frame.speed_mps for frame in frames], 8.0, rtol=1e-3)
    assert np.isnan([frame.steering_rad for frame in frames]).all()


def test_intrinsics_follow_the_crop(tree):
    (_, frames), *_ = read(source_of(tree))[0]
    np.testing.assert_allclose(frames[0].intrinsics, [[126, 0, 81], [0, 126, 42], [0, 0, 1]])


def test_clips_tell_night_weather_camera_and_licence(tree):
    (day, frames), *_ = read(source_of(tree), 0)[0]
    (night, dark), *_ = read(source_of(tree), 1)[0]
    assert (day.weather, frames[0].night, night.weather, dark[0].night) == ("clear", 0.0, "rain", 1.0)
    assert (day.camera, day.licence, day.source) == ("CAM_FRONT", "CC BY-NC-SA 4.0", "v1.0-mini/scene-0061")
    assert day.has_boxes
    assert day.caption == "Parked truck, train crossing, after rain"
    assert night.caption == "Night, heavy rain, many pedestrians"


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("Night, rain, cones", (1.0, "rain")),
        ("Raining, peds", (0.0, "rain")),
        ("After rain, many turns", (0.0, "clear")),
        ("Nighttime, wait for train", (1.0, "clear")),
        ("Turn left, overnight parking", (0.0, "clear")),
    ],
)
def test_night_and_rain_are_words_of_the_description(description, expected):
    assert conditions(description) == expected


def test_without_a_description_night_and_weather_are_unknown():
    night, weather = conditions(" ")
    assert np.isnan(night)
    assert weather == ""


def test_without_annotations_boxes_are_unknown(tree):
    tree.tables["sample_annotation"] = tree.tables["instance"] = []
    tree.save()
    (clip, frames), *_ = read(source_of(tree))[0]
    assert not clip.has_boxes
    assert np.isnan(frames[0].vehicles)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"version": "v1.0-trainval"},
            r"has the tables of v1.0-mini; expected .*/v1.0-trainval: give nuscenes.version",
        ),
        ({"version": "v1.0-mini/scene.json"}, "has the tables of v1.0-mini"),
        ({"cameras": ["CAM_FRONT", "CAM_TOP"]}, "nuscenes.cameras has CAM_TOP; .* knows CAM_BACK, CAM_FRONT"),
        ({"cameras": ["LIDAR_TOP"]}, "nuscenes.cameras has LIDAR_TOP"),
        ({"cameras": []}, "nuscenes.cameras is empty"),
    ],
)
def test_mistakes_are_told(tree, options, message):
    with pytest.raises(UserError, match=message):
        source_of(tree, **options).units()


def test_one_camera_without_brackets_is_told(tree, tmp_path):
    words = ["source=nuscenes", f"root={tree.root}", f"out={tmp_path / 'store'}", "nuscenes.cameras=CAM_FRONT"]
    with pytest.raises(UserError, match=r"nuscenes.cameras: expected a list in brackets, as in \[a,b\]"):
        main(words)


def test_a_whole_data_set_becomes_a_store(tree, tmp_path, capfd):
    out = tmp_path / "store"
    options = ["nuscenes.height=80", "nuscenes.width=160", "nuscenes.min_seconds=0.5", "workers=1"]
    main(["source=nuscenes", f"root={tree.root}", f"out={out}", "nuscenes.cameras=[CAM_FRONT,CAM_BACK]", *options])
    store = ClipStore(out)
    assert list(store.index.index) == [
        f"{scene}_{camera}_0000" for scene in ("scene-0061", "scene-0103") for camera in sorted(BOTH)
    ]
    assert list(store.index["split"]) == ["train", "train", "val", "val"]
    assert list(store.index["frames"]) == [13] * 4
    assert json.loads((out / "dropped.json").read_text()) == []
    assert set(store.boxes("scene-0061_CAM_FRONT_0000")["class"]) == {"car", "truck", "pedestrian"}
    assert set(store.boxes("scene-0061_CAM_BACK_0000")["class"]) == {"cyclist", "truck"}  # which it has passed
    said = capfd.readouterr()
    assert "Loading NuScenes" not in said.out + said.err
