"""A town store as a data set of nuScenes, opened with nuscenes-devkit."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import BoxVisibility, transform_matrix, view_points
from nuscenes.utils.splits import get_scenes_of_split
from PIL import Image
from pyquaternion import Quaternion

from data_prep.export.command import main
from data_prep.export.rows import token
from drivesim.data.video import read_window

VERSION = "v1.0-drivesim"
# The fields that docs/schema_nuscenes.md of the devkit asks for, and where each foreign key points.
FIELDS = {
    "attribute": {"token", "name", "description"},
    "calibrated_sensor": {"token", "sensor_token", "translation", "rotation", "camera_intrinsic"},
    "category": {"token", "name", "description"},
    "ego_pose": {"token", "translation", "rotation", "timestamp"},
    "instance": {"token", "category_token", "nbr_annotations", "first_annotation_token", "last_annotation_token"},
    "log": {"token", "logfile", "vehicle", "date_captured", "location"},
    "map": {"token", "log_tokens", "category", "filename"},
    "sample": {"token", "timestamp", "scene_token", "next", "prev"},
    "sample_annotation": {
        "token", "sample_token", "instance_token", "attribute_tokens", "visibility_token", "translation", "size",
        "rotation", "num_lidar_pts", "num_radar_pts", "next", "prev",
    },
    "sample_data": {
        "token", "sample_token", "ego_pose_token", "calibrated_sensor_token", "filename", "fileformat", "width",
        "height", "timestamp", "is_key_frame", "next", "prev",
    },
    "scene": {
        "token", "name", "description", "log_token", "nbr_samples", "first_sample_token", "last_sample_token",
    },
    "sensor": {"token", "channel", "modality"},
    "visibility": {"token", "level", "description"},
}  # fmt: skip
POINTS_AT = {
    "sensor_token": "sensor", "category_token": "category", "first_annotation_token": "sample_annotation",
    "last_annotation_token": "sample_annotation", "log_tokens": "log", "scene_token": "scene",
    "sample_token": "sample", "instance_token": "instance", "attribute_tokens": "attribute",
    "visibility_token": "visibility", "ego_pose_token": "ego_pose", "calibrated_sensor_token": "calibrated_sensor",
    "log_token": "log", "first_sample_token": "sample", "last_sample_token": "sample",
}  # fmt: skip


@pytest.fixture(scope="module")
def tree(town_store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tree") / "out"
    main([f"store={town_store.root}", "format=nuscenes", f"out={out}"])
    return out


@pytest.fixture(scope="module")
def tables(tree) -> dict[str, list[dict]]:
    return {name: json.loads((tree / VERSION / f"{name}.json").read_text()) for name in FIELDS}


@pytest.fixture(scope="module")
def nusc(tree) -> NuScenes:
    return NuScenes(VERSION, str(tree), verbose=False)


@pytest.fixture(scope="module")
def notes(tree) -> dict:
    return json.loads((tree / "drivesim.json").read_text())


def clip_and_frame(record: dict) -> tuple[str, int]:
    """Of a sample_data record, from its file name."""
    clip, _, timestamp = Path(record["filename"]).stem.split("__")
    return clip, int(timestamp) % 86_400_000_000 // 100_000  # routes begin at midnight


def camera_pose(nusc: NuScenes, record: dict) -> np.ndarray:
    """Camera to world [4, 4] as the devkit reads it."""
    parts = [
        nusc.get("ego_pose", record["ego_pose_token"]),
        nusc.get("calibrated_sensor", record["calibrated_sensor_token"]),
    ]
    ego, sensor = (transform_matrix(part["translation"], Quaternion(part["rotation"])) for part in parts)
    return ego @ sensor


def stored_boxes(store, record: dict):
    clip, frame = clip_and_frame(record)
    boxes = store.boxes(clip)
    return boxes[boxes["frame"] == frame]


def nearest(boxes: list, row):
    """The box nearest to where the store has one."""
    centre = np.array([row.x_m, row.y_m, row.z_m])
    return min(boxes, key=lambda box: np.linalg.norm(box.center - centre))


def test_every_table_has_the_fields_of_the_schema_and_each_token_once(tables):
    for name, rows in tables.items():
        assert rows, name
        assert all(set(row) == FIELDS[name] for row in rows), name
        assert len({row["token"] for row in rows}) == len(rows), name


def test_every_foreign_key_points_at_a_row(tables):
    tokens = {name: {row["token"] for row in rows} for name, rows in tables.items()}
    for name, rows in tables.items():
        for field in FIELDS[name] & set(POINTS_AT):
            for row in rows:
                keys = row[field] if isinstance(row[field], list) else [row[field]]
                assert set(keys) <= tokens[POINTS_AT[field]], (name, field)
        for field in FIELDS[name] & {"prev", "next"}:
            assert {row[field] for row in rows} <= tokens[name] | {""}, (name, field)


def test_chains_run_from_first_to_last_in_time(nusc):
    for scene in nusc.scene:
        samples = chain(nusc, "sample", scene["first_sample_token"])
        assert [len(samples), samples[-1]["token"]] == [scene["nbr_samples"], scene["last_sample_token"]]
        assert {b["timestamp"] - a["timestamp"] for a, b in pairwise(samples)} == {500_000}
        for first in samples[0]["data"].values():
            pictures = chain(nusc, "sample_data", first)
            assert {b["timestamp"] - a["timestamp"] for a, b in pairwise(pictures)} == {100_000}
            assert [row["is_key_frame"] for row in pictures] == [n % 5 == 0 for n in range(21)]
            for picture in pictures:
                sample = nusc.get("sample", picture["sample_token"])
                assert 0 <= sample["timestamp"] - picture["timestamp"] < 500_000  # the sample that follows closest
    for instance in nusc.instance:
        seen = chain(nusc, "sample_annotation", instance["first_annotation_token"])
        assert [len(seen), seen[-1]["token"]] == [instance["nbr_annotations"], instance["last_annotation_token"]]
        times = [nusc.get("sample", row["sample_token"])["timestamp"] for row in seen]
        assert times == sorted(set(times))
    assert sum(instance["nbr_annotations"] for instance in nusc.instance) == len(nusc.sample_annotation)


def chain(nusc: NuScenes, table: str, key: str) -> list[dict]:
    rows: list[dict] = []
    while key:
        rows.append(nusc.get(table, key))
        assert rows[-1]["prev"] == (rows[-2]["token"] if len(rows) > 1 else "")
        key = rows[-1]["next"]
    return rows


def test_pictures_are_there_and_show_the_frames(tree, nusc, town_store):
    assert len(nusc.sample_data) == 2 * 3 * 21
    for record in nusc.sample_data[::25]:
        assert record["filename"].startswith("samples" if record["is_key_frame"] else "sweeps")
        shown = np.asarray(Image.open(tree / record["filename"])).astype(float)
        clip, frame = clip_and_frame(record)
        assert shown.shape == (record["height"], record["width"], 3) == (128, 256, 3)
        assert np.abs(shown - read_window(town_store.video(clip), frame, 1)[0]).mean() < 2.5  # JPEG, quality 95
    files = {path.relative_to(tree).as_posix() for path in tree.rglob("*.jpg")}
    assert files == {record["filename"] for record in nusc.sample_data}


def test_ego_pose_times_calibrated_sensor_is_the_pose_of_the_camera(nusc, town_store, notes):
    for record in nusc.sample_data:
        clip, frame = clip_and_frame(record)
        row = town_store.frames(clip).iloc[frame]
        origin = notes["scenes"][clip[: len("town_0000")]]["origin_m"]
        expected = transform_matrix([row.x_m, row.y_m, row.z_m], Quaternion(row.qw, row.qx, row.qy, row.qz))
        expected[:2, 3] -= origin
        np.testing.assert_allclose(camera_pose(nusc, record), expected, atol=1e-9)


def test_the_car_is_level_on_the_ground_with_its_cameras_where_they_are(nusc, town_store):
    for pose in nusc.ego_pose:
        assert pose["translation"][2] == pytest.approx(0, abs=1e-9)
        assert Quaternion(pose["rotation"]).rotation_matrix[2, 2] == pytest.approx(1)
    for record in nusc.calibrated_sensor:
        channel = nusc.get("sensor", record["sensor_token"])["channel"]
        ahead = Quaternion(record["rotation"]).rotation_matrix[:, 2]
        degrees = {"CAM_FRONT": 0, "CAM_FRONT_LEFT": 55, "CAM_BACK": 180}[channel]
        np.testing.assert_allclose(ahead, [np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), 0], atol=1e-9)
        assert record["translation"][2] == pytest.approx(1.5)
    front = town_store.frames("town_0000_CAM_FRONT").iloc[0]
    for record in nusc.calibrated_sensor:
        assert record["camera_intrinsic"] == [[front.fx, 0, front.cx], [0, front.fy, front.cy], [0, 0, 1]]


def test_boxes_of_key_frames_are_those_of_the_store_in_space_and_on_the_picture(nusc, town_store):
    compared = 0
    for record in filter(lambda record: record["is_key_frame"], nusc.sample_data):
        _, boxes, intrinsic = nusc.get_sample_data(record["token"], BoxVisibility.NONE)
        for row in stored_boxes(town_store, record).itertuples():
            box = nearest(boxes, row)
            np.testing.assert_allclose(box.center, [row.x_m, row.y_m, row.z_m], atol=2e-5)
            np.testing.assert_allclose(box.wlh, [row.width_m, row.length_m, row.height_m], rtol=1e-6)
            corners = box.corners()
            if corners[2].min() > 0.5:
                pixels = view_points(corners, intrinsic, normalize=True)[:2].clip(0, [[256], [128]])
                outline = np.r_[pixels.min(1), pixels.max(1)] / [256, 128, 256, 128]
                np.testing.assert_allclose(outline, [row.x1, row.y1, row.x2, row.y2], atol=3e-5)
                compared += 1
    assert compared > 100


def test_the_front_of_a_box_is_the_front_of_the_thing(nusc):
    """Moving things move the way their boxes look."""
    checked = 0
    for row in nusc.sample_annotation:
        step = nusc.box_velocity(row["token"])[:2]
        if np.linalg.norm(step) > 2:
            ahead = Quaternion(row["rotation"]).rotation_matrix[:2, 0]
            assert ahead @ step > 0.9 * np.linalg.norm(step)
            checked += 1
    assert checked > 10


def test_the_devkit_interpolates_boxes_on_sweeps_to_within_30_cm_of_those_of_the_store(nusc, town_store):
    compared = 0
    for record in filter(lambda record: not record["is_key_frame"], nusc.sample_data):
        sample = nusc.get("sample", record["sample_token"])
        before = {nusc.get("sample_annotation", key)["instance_token"] for key in previous_anns(nusc, sample)}
        boxes = {
            nusc.get("sample_annotation", box.token)["instance_token"]: box for box in nusc.get_boxes(record["token"])
        }
        scene = nusc.get("scene", sample["scene_token"])["name"]
        for row in stored_boxes(town_store, record).itertuples():
            instance = token("instance", scene, row.track)
            if instance in before & set(boxes):  # otherwise it came into view between key frames
                place = np.linalg.inv(camera_pose(nusc, record)) @ [*boxes[instance].center, 1]
                assert np.linalg.norm(place[:3] - [row.x_m, row.y_m, row.z_m]) < 0.3
                compared += 1
    assert compared > 200


def previous_anns(nusc: NuScenes, sample: dict) -> list[str]:
    return nusc.get("sample", sample["prev"])["anns"]


def test_a_thing_seen_by_two_cameras_is_annotated_once_with_the_better_view(nusc, town_store):
    shared = 0
    for sample in nusc.sample:
        seen: dict[int, list[float]] = {}
        for key in sample["data"].values():
            for row in stored_boxes(town_store, nusc.get("sample_data", key)).itertuples():
                seen.setdefault(row.track, []).append(row.visibility)
        assert len(sample["anns"]) == len(seen)
        levels = sorted(1 + sum(max(shares) >= bound for bound in (0.4, 0.6, 0.8)) for shares in seen.values())
        shown = [int(nusc.get("sample_annotation", key)["visibility_token"]) for key in sample["anns"]]
        assert sorted(shown) == levels
        shared += sum(len(shares) > 1 for shares in seen.values())
    assert shared > 3


def test_the_car_drives_on_the_map(nusc):
    for scene in nusc.scene:
        mask = nusc.get("map", nusc.get("log", scene["log_token"])["map_token"])["mask"]
        for sample in chain(nusc, "sample", scene["first_sample_token"]):
            pose = nusc.get("ego_pose", nusc.get("sample_data", sample["data"]["CAM_FRONT"])["ego_pose_token"])
            x, y = pose["translation"][:2]
            left = Quaternion(pose["rotation"]).rotation_matrix[:2, 1]
            assert mask.is_on_mask(x, y).all()
            assert not mask.is_on_mask(*(np.array([x, y]) + 3 * left)).any()  # one lane is all that is known
            assert min(x, y) > 59


def test_scenes_tell_the_time_of_day_and_that_they_are_drawn(nusc, notes):
    assert [scene["description"].split(", ")[0] for scene in nusc.scene] == ["Day", "Night"]
    assert [log["date_captured"] for log in nusc.log] == ["2000-01-01", "2000-01-02"]
    assert all("synthetic" in scene["description"] for scene in nusc.scene)
    assert (notes["sources"], notes["licences"], notes["left_out"]) == (["town"], ["CC0-1.0"], {})


def test_splits_are_found_by_the_devkit(nusc):
    assert get_scenes_of_split("drivesim_train", nusc) == ["town_0000"]
    assert get_scenes_of_split("drivesim_val", nusc) == ["town_0001"]


def test_the_devkit_draws_and_lists_it(nusc, tmp_path, capsys):
    nusc.render_sample_data(
        nusc.sample[1]["data"]["CAM_FRONT_LEFT"], out_path=str(tmp_path / "drawn.png"), verbose=False
    )
    assert Image.open(tmp_path / "drawn.png").width > 100
    nusc.list_scenes()
    nusc.list_categories()
    assert "town_0000" in capsys.readouterr().out
