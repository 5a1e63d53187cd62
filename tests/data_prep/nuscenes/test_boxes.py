"""Boxes in the pictures of nuScenes, against the devkit's own projection."""

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import BoxVisibility, view_points
from pyquaternion import Quaternion

from data_prep.nuscenes.boxes import boxes_of, class_of, track_numbers, visible_share
from data_prep.nuscenes.database import open_database
from drivesim.geometry import NEAR_M, corners

CAMERAS = ("CAM_BACK", "CAM_FRONT")
SCENE = "scene-0061"


@pytest.fixture
def both(tree):
    """The database of drivesim and that of the devkit."""
    return open_database(tree.root, "v1.0-mini", CAMERAS), NuScenes("v1.0-mini", str(tree.root), verbose=False)


def ours(tree, database, camera, step):
    row = tree.pictures(SCENE, camera)[step]
    tracks = track_numbers(database, tree.scene(SCENE)["token"])
    return row, {box.name: box for box in boxes_of(database, row, tracks)}


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("step", [0, 2, 5, 6, 11, 12])
def test_boxes_are_those_of_the_devkit_on_key_frames_and_between(tree, both, camera, step):
    database, devkit = both
    row, boxes = ours(tree, database, camera, step)
    _, solids, intrinsics = devkit.get_sample_data(row["token"], box_vis_level=BoxVisibility.ANY)
    compared = 0
    for solid in solids:
        if class_of(solid.name) is None or solid.corners()[2].min() < NEAR_M:
            continue
        pixels = view_points(solid.corners(), intrinsics, normalize=True)[:2].clip(0, [[160], [90]])
        box = boxes[class_of(solid.name)]
        found = np.array(box.xyxy) * [160, 90, 160, 90]
        np.testing.assert_allclose(found, [*pixels.min(1), *pixels.max(1)], atol=1e-6)
        np.testing.assert_allclose(box.centre_m, solid.center, atol=1e-9)
        np.testing.assert_allclose(box.size_m, solid.wlh[[1, 0, 2]])
        compared += 1
    assert compared > 0


def test_between_key_frames_a_box_is_where_its_speed_takes_it(tree, both):
    database, _ = both
    row, boxes = ours(tree, database, "CAM_FRONT", 3)
    start = np.array(tree.find("sample_annotation", instance_token=instance_of(tree, "vehicle.car"))[0]["translation"])
    seconds = (row["timestamp"] - tree.pictures(SCENE, "LIDAR_TOP")[0]["timestamp"]) * 1e-6
    ahead = start + Quaternion(axis=[0, 0, 1], angle=0.4).rotate([6.0 * seconds, 0, 0])
    pose = database.get("ego_pose", row["ego_pose_token"])
    mounted = database.get("calibrated_sensor", row["calibrated_sensor_token"])
    for frame in (pose, mounted):
        ahead = Quaternion(frame["rotation"]).inverse.rotate(ahead - frame["translation"])
    np.testing.assert_allclose(boxes["car"].centre_m, ahead, atol=0.02)  # the road is pitched by 0.01


def instance_of(tree, category):
    wanted = tree.find("category", name=category)[0]["token"]
    scene = {row["token"] for row in tree.find("sample", scene_token=tree.scene(SCENE)["token"])}
    of_scene = {row["instance_token"] for row in tree.tables["sample_annotation"] if row["sample_token"] in scene}
    return next(row["token"] for row in tree.find("instance", category_token=wanted) if row["token"] in of_scene)


def test_a_box_beside_the_camera_is_cut_at_the_near_plane(tree, both):
    database, devkit = both
    row, boxes = ours(tree, database, "CAM_FRONT", 0)
    _, solids, _ = devkit.get_sample_data(row["token"], box_vis_level=BoxVisibility.NONE)
    truck = next(solid for solid in solids if solid.name == "vehicle.truck")
    assert truck.corners()[2].min() < 0 < truck.corners()[2].max()
    x1, y1, x2, y2 = boxes["truck"].xyxy
    assert x1 == 0  # it fills the left edge
    assert 0 < x2 < 1
    assert (y1, y2) == (0, 1)


def test_the_yaw_is_where_the_length_points(tree, both):
    database, devkit = both
    row, boxes = ours(tree, database, "CAM_FRONT", 4)
    _, solids, _ = devkit.get_sample_data(row["token"])
    solid = next(solid for solid in solids if solid.name == "vehicle.car")
    front, rear = solid.corners()[:, :4].mean(1), solid.corners()[:, 4:].mean(1)
    x, _, z = front - rear
    assert boxes["car"].yaw == pytest.approx(np.arctan2(x, z), abs=1e-9)
    box = boxes["car"]
    upright = corners(np.array([box.centre_m]), np.array([box.size_m]), np.array([box.yaw]))[0]
    away = np.linalg.norm(upright[:, None] - solid.corners().T[None], axis=-1).min(1)
    assert away.max() < 0.3  # the same box, but for the tilt of road and camera


def test_tracks_are_the_same_for_both_cameras_and_all_frames(tree, both):
    database, _ = both
    found = {}
    for camera in CAMERAS:
        for step in range(13):
            for name, box in ours(tree, database, camera, step)[1].items():
                assert found.setdefault(name, box.track) == box.track
    assert set(found) == {"car", "truck", "pedestrian", "cyclist"}
    assert len(set(found.values())) == 4


def test_visibility_is_the_middle_of_its_level(tree, both):
    database, _ = both
    shares = [ours(tree, database, "CAM_FRONT", step)[1]["car"].visibility for step in (0, 3, 6, 12)]
    assert shares == pytest.approx([0.9, 0.7, 0.7, 0.5])
    assert [visible_share(level) for level in ("v0-40", "v40-60")] == pytest.approx([0.2, 0.5])
    assert np.isnan(visible_share("unknown"))


def test_a_box_nobody_judged_has_no_visibility(tree):
    for row in tree.tables["sample_annotation"]:
        row["visibility_token"] = ""
    tree.save()
    database = open_database(tree.root, "v1.0-mini", CAMERAS)
    assert np.isnan(ours(tree, database, "CAM_FRONT", 0)[1]["car"].visibility)


@pytest.mark.parametrize(
    ("category", "name"),
    [
        ("vehicle.car", "car"),
        ("vehicle.truck", "truck"),
        ("vehicle.construction", "truck"),
        ("vehicle.trailer", "truck"),
        ("vehicle.bus.bendy", "bus"),
        ("vehicle.bus.rigid", "bus"),
        ("human.pedestrian.police_officer", "pedestrian"),
        ("vehicle.bicycle", "cyclist"),
        ("vehicle.motorcycle", "cyclist"),
        ("vehicle.emergency.police", None),
        ("vehicle.carriage", None),
        ("movable_object.barrier", None),
        ("static_object.bicycle_rack", None),
        ("animal", None),
    ],
)
def test_categories_become_classes(category, name):
    assert class_of(category) == name
