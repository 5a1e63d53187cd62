"""KITTI tracking: boxes against the format description, and what becomes of damage."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_prep.kitti.calibration import tracking_calibration
from data_prep.kitti.source import KittiConfig, KittiSource
from data_prep.prepare import main
from drivesim.clip import Camera
from drivesim.data.store import ClipStore
from drivesim.geometry import corners

HEIGHT, WIDTH = 64, 160
CAR = "2 7 Car 0 1 -1.57 60.5 20.25 90.0 40.75 1.50 1.70 4.20 1.25 1.60 14.50 {:.4f}"
LABELS = (
    "0 -1 DontCare -1 -1 -10.000000 10.0 10.0 30.0 30.0 -1000 -1000 -1000 -10 -1 -1 -1",
    CAR.format(0.3),
    "3 7 Car 1 2 -1.57 60.5 20.25 90.0 40.75 1.50 1.70 4.20 1.25 1.60 14.00 0.30",
    "3 9 Person_sitting 0 3 0.1 20 20 40 50 1.2 0.6 0.8 -3.0 1.5 9.0 -2.9",
    "4 4 Tram 0 0 0.1 20 20 40 50 -1 -1 -1 -1000 -1000 -1000 -10",
    "4 5 Misc 0 0 0.1 20 20 40 50 1.2 0.6 0.8 -3.0 1.5 9.0 -2.9",
)


def source(root, **changes):
    options = {"height": HEIGHT, "width": WIDTH, "min_seconds": 0.3, "clip_seconds": 2.0} | changes
    return KittiSource(KittiConfig(**options), root)


def solid_as_published(h, w, l, x, y, z, rotation_y):  # noqa: E741
    """Corners [8, 3] in the rectified coordinates of camera 0, as the readme gives them."""
    cos, sin = np.cos(rotation_y), np.sin(rotation_y)
    local = np.array([[l, l, -l, -l, l, l, -l, -l], [0] * 4 + [-2 * h] * 4, [w, -w, -w, w, w, -w, -w, w]]) / 2
    return (np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]) @ local).T + np.array([x, y, z])


def projection_in(path: Path, name: str) -> np.ndarray:
    line = next(line for line in path.read_text().splitlines() if line.startswith(name))
    return np.array(line.split()[1:], float).reshape(3, 4)


@pytest.mark.parametrize("camera", ["image_02", "image_03"])
def test_velodyne_points_project_as_published(tracking_tree, published, camera):
    calibration = tracking_calibration(tracking_tree() / "training" / "calib" / "0000.txt", camera)
    points = np.random.default_rng(0).uniform([3, -10, -2], [80, 10, 3], (200, 3))
    rectified = points @ calibration.velo_to_rect[:3, :3].T + calibration.velo_to_rect[:3, 3]
    pixels = Camera(calibration.intrinsics, HEIGHT, WIDTH).project(rectified + calibration.offset)
    assert np.abs(pixels - published(camera, points)).max() < 1e-6


@pytest.mark.parametrize("camera", ["image_02", "image_03"])
@pytest.mark.parametrize("rotation_y", [-3.0, -1.2, 0.0, 0.3, 2.0])
def test_a_3d_box_is_that_of_the_label(tracking_tree, contents, camera, rotation_y):
    root = tracking_tree(labels=(CAR.format(rotation_y),))
    (frames,) = contents(source(root, cameras=[camera]))[0].values()
    (box,) = frames[2].boxes
    ours = corners(np.array([box.centre_m]), np.array([box.size_m]), np.array([box.yaw]))[0]
    ours = Camera(frames[2].intrinsics, HEIGHT, WIDTH).project(ours)
    theirs = solid_as_published(1.5, 1.7, 4.2, 1.25, 1.6, 14.5, rotation_y)
    homogeneous = projection_in(root / "training/calib/0000.txt", f"P{camera[-1]}:") @ np.c_[theirs, np.ones(8)].T
    theirs = (homogeneous[:2] / homogeneous[2]).T
    np.testing.assert_allclose(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], atol=1e-6)
    assert -np.pi <= box.yaw <= np.pi
    if camera == "image_02":
        np.testing.assert_allclose(box.xyxy, [60.5 / 160, 20.25 / 64, 90 / 160, 40.75 / 64])
    else:  # the labels' boxes on the picture are those of the left camera
        np.testing.assert_allclose(box.xyxy, np.concatenate([theirs.min(0), theirs.max(0)]) / [160, 64, 160, 64])


def test_classes_tracks_and_visibility_are_those_of_the_labels(tracking_tree, contents):
    (frames,) = contents(source(tracking_tree(labels=LABELS)))[0].values()
    found = [(number, b.track, b.name, b.visibility) for number, frame in enumerate(frames) for b in frame.boxes]
    assert [row[:3] for row in found] == [(2, 7, "car"), (3, 7, "car"), (3, 9, "pedestrian"), (4, 4, "bus")]
    assert [row[3] for row in found] == pytest.approx([0.75, 0.25 * 0.75, np.nan, 1.0], nan_ok=True)
    assert np.isnan(frames[4].boxes[0].centre_m).all()  # a label without a 3D box
    assert frames[3].vehicles == 1


def test_training_has_boxes_and_testing_is_the_test_split_without(tracking_tree, tmp_path):
    root = tracking_tree(labels=LABELS)
    main([
        "source=kitti", f"root={root}", f"out={tmp_path / 'store'}", "workers=1", "kitti.height=64",
        "kitti.width=128", "kitti.min_seconds=0.5",
    ])  # fmt: skip
    index = ClipStore(tmp_path / "store").index
    assert dict(index["has_boxes"]) == {"testing_0000_image_02_0000": False, "training_0000_image_02_0000": True}
    assert list(index["split"]) == ["test", "train"]
    assert list(index["route"]) == ["testing/0000", "training/0000"]
    assert list(index["source"]) == ["testing/image_02/0000", "training/image_02/0000"]
    assert np.isnan(index["crowdedness"].iloc[0])
    assert index["crowdedness"].iloc[1] == pytest.approx(0.3)
    assert index["speed_mps"].to_numpy() == pytest.approx([8.0, 8.0])
    assert json.loads((tmp_path / "store" / "dropped.json").read_text()) == []


def test_sequences_of_both_cameras_are_units_of_one_route(tracking_tree):
    units = source(tracking_tree(testing=False), cameras=["image_03", "image_02"]).units()
    assert [(unit.name, unit.route) for unit in units] == [
        ("training_0000_image_02", "training/0000"), ("training_0000_image_03", "training/0000"),
    ]  # fmt: skip


def replace(old: str, new: str):
    def change(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("name", "spoil", "reason"),
    [
        ("calib/0000.txt", Path.unlink, "calib/0000.txt is missing"),
        ("calib/0000.txt", replace("P2:", "P7:"), "calib/0000.txt lacks P2"),
        ("calib/0000.txt", replace("Tr_velo_cam ", "Tr_velo_cam x"), r"0000.txt line 6 \(Tr_velo_cam\).*'x"),
        ("label_02/0000.txt", Path.unlink, "label_02/0000.txt is missing"),
        ("label_02/0000.txt", replace("60.5", "6o.5"), "label_02/0000.txt line 2: .*'6o.5'"),
        ("label_02/0000.txt", replace("2 7 Car", "2 7 Bus"), "line 2: type 'Bus' is none of Car, Van"),
        ("label_02/0000.txt", replace("2 7 Car", "2 7.5 Car"), "line 2: frame, track.*'7.5'.*expected whole numbers"),
        ("label_02/0000.txt", replace("2 7 Car", "2 7777777777 Car"), "line 2: .*expected whole numbers"),
        ("label_02/0000.txt", replace(" 60.5", ""), "line 2: found 16 values, expected 17"),
        ("oxts/0000.txt", replace(" 113.03", " height"), "oxts/0000.txt line 4: .*'height'"),
        ("oxts/0000.txt", replace(" 113.03", ""), "oxts/0000.txt line 4: found 29 values, expected 30"),
    ],
)
def test_a_sequence_that_cannot_be_used_is_refused_with_the_file_and_the_line(
    tracking_tree, contents, name, spoil, reason
):
    root = tracking_tree(labels=LABELS, testing=False)
    spoil(root / "training" / name)
    clips, reasons = contents(source(root))
    assert clips == {}
    assert len(reasons) == 1
    assert re.search(reason, reasons[0]), reasons


def test_labels_beyond_the_pictures_and_missing_positions_are_told(tracking_tree, contents):
    root = tracking_tree(labels=(*LABELS, LABELS[1].replace("2 7", "10 7")), testing=False)
    oxts = root / "training" / "oxts" / "0000.txt"
    oxts.write_text("".join(oxts.read_text().splitlines(keepends=True)[:6]))
    clips, reasons = contents(source(root))
    assert [len(frames) for frames in clips.values()] == [10]
    assert reasons == [
        "oxts has no row for 4 pictures (6, 7, 8 ...): pose and speed unknown",
        "labels are given for 1 frame (10) without a picture, left out",
    ]


def test_a_folder_with_a_few_stray_numbers_is_refused_at_once(tracking_tree, contents):
    root = tracking_tree(testing=False)
    pictures = root / "training" / "image_02" / "0000"
    (pictures / "000009.png").rename(pictures / "99999999999999.png")
    clips, reasons = contents(source(root))
    assert clips == {}
    assert "10 of the pictures 0 to 99999999999999, less than half of them" in reasons[0]
