"""KITTI raw: projections, tracklets and poses against the format description, and what becomes of damage."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_prep.kitti.calibration import raw_calibration
from data_prep.kitti.oxts import raw_motions
from data_prep.kitti.raw import read_times
from data_prep.kitti.source import KittiConfig, KittiSource
from data_prep.prepare import main
from drivesim.clip import Camera
from drivesim.data.store import ClipStore, ego_motion
from drivesim.errors import UserError
from drivesim.geometry import corners

HEIGHT, WIDTH = 64, 160
CAR = ("Car", (1.5, 1.7, 4.2), 2, [{"tx": 12.0 + i, "ty": 1.5, "tz": -1.7, "rz": 0.6} for i in range(4)])


def source(root, **changes):
    options = {"height": HEIGHT, "width": WIDTH, "min_seconds": 0.3, "clip_seconds": 2.0} | changes
    return KittiSource(KittiConfig(**options), root)


def solid_in_velodyne(h, w, l, tx, ty, tz, rz):  # noqa: E741
    """Corners [8, 3] as the development kit makes them: around the centre of the bottom, turned, moved."""
    x, y, z = [l, l, -l, -l] * 2, [w, -w, -w, w] * 2, [0] * 4 + [h] * 4
    local = np.array([np.array(x) / 2, np.array(y) / 2, np.array(z)])
    turn = np.array([[np.cos(rz), -np.sin(rz), 0], [np.sin(rz), np.cos(rz), 0], [0, 0, 1]])
    return (turn @ local).T + np.array([tx, ty, tz])


@pytest.mark.parametrize("camera", ["image_02", "image_03"])
def test_velodyne_points_project_as_published(raw_tree, published, camera):
    calibration = raw_calibration(raw_tree().parent, camera)
    points = np.random.default_rng(0).uniform([3, -10, -2], [80, 10, 3], (200, 3))
    rectified = points @ calibration.velo_to_rect[:3, :3].T + calibration.velo_to_rect[:3, 3]
    pixels = Camera(calibration.intrinsics, HEIGHT, WIDTH).project(rectified + calibration.offset)
    assert np.abs(pixels - published(camera, points)).max() < 1e-6


@pytest.mark.parametrize("camera", ["image_02", "image_03"])
@pytest.mark.parametrize("rz", [-2.4, 0.0, 0.6, 1.6])
def test_a_tracklet_is_boxed_where_the_development_kit_draws_it(raw_tree, published, contents, camera, rz):
    pose = {"tx": 12.0, "ty": 1.0, "tz": -1.7, "rz": rz}
    raw = raw_tree(tracklets=(("Van", (2.0, 1.8, 4.5), 0, [pose] * 10),))
    clips, reasons = contents(source(raw.parents[1], cameras=[camera]))
    (frames,), expected = clips.values(), published(camera, solid_in_velodyne(2.0, 1.8, 4.5, **pose))
    (box,) = frames[0].boxes
    assert not reasons
    assert box.name == "car"
    on_picture = np.concatenate([expected.min(0), expected.max(0)]) / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    np.testing.assert_allclose(box.xyxy, on_picture.clip(0, 1), atol=1e-8)
    # The 3D box stands upright in the camera, the car on the laser's ground: 2 degrees of tilt at 12 m.
    solid = corners(np.array([box.centre_m]), np.array([box.size_m]), np.array([box.yaw]))[0]
    pixels = Camera(frames[0].intrinsics, HEIGHT, WIDTH).project(solid)
    assert np.abs(np.sort(pixels, 0) - np.sort(expected, 0)).max() < 1.0


def test_tracklets_keep_their_frames_track_and_visibility(raw_tree, contents):
    seen = {"tx": 12.0, "ty": 0.0, "tz": -1.7}
    levels = [(0, 0, 1.0), (1, 0, 0.5), (2, 0, 0.0), (1, 1, 0.25), (-1, 0, np.nan), (0, 99, np.nan)]
    poses = [seen | {"occlusion": occlusion, "truncation": truncation} for occlusion, truncation, _ in levels]
    others = [("Misc", (1, 1, 1), 0, [seen]), ("Person (sitting)", (1.2, 0.6, 0.8), 3, poses)]
    raw = raw_tree(tracklets=(*others, CAR))
    (frames,) = contents(source(raw.parents[1]))[0].values()
    tracks = [[(box.track, box.name) for box in frame.boxes] for frame in frames]
    person, car = (1, "pedestrian"), (2, "car")
    assert tracks == [[], [], [car], *[[person, car]] * 3, *[[person]] * 3, []]
    visible = [frame.boxes[0].visibility for frame in frames[3:9]]
    assert visible == pytest.approx([share for *_, share in levels], nan_ok=True)


def test_the_camera_follows_the_position_and_attitude_of_the_car(raw_tree, contents):
    drive = raw_tree(count=20)
    (frames,) = contents(source(drive.parents[1]))[0].values()
    calibration = raw_calibration(drive.parent, "image_02")
    motion = raw_motions(drive / "oxts" / "data")[7].imu_to_world
    point = np.array([10.0, 2.0, 0.5, 1])  # in the IMU's coordinates; once to the world, once to the camera and there
    seen = calibration.velo_to_rect @ calibration.imu_to_velo @ point
    seen[:3] += calibration.offset
    np.testing.assert_allclose(frames[7].pose @ seen, motion @ point, atol=1e-9)
    ahead = frames[0].pose[:3, :3] @ [0, 0, 1]
    assert ahead[1] > 0.99  # the drive begins to the north
    assert (frames[0].pose[:3, :3] @ [0, 1, 0])[2] < -0.99  # down is down


def test_the_way_driven_is_speed_times_time_and_the_turn_is_to_the_left(raw_tree, tmp_path):
    root = raw_tree(count=20).parents[1]
    main([
        "source=kitti", f"root={root}", f"out={tmp_path / 'store'}", "workers=1", "kitti.cameras=[image_02,image_03]",
        "kitti.height=64", "kitti.width=128", "kitti.min_seconds=0.5",
    ])  # fmt: skip
    store = ClipStore(tmp_path / "store")
    assert list(store.index.index) == [f"2011_09_26_drive_0001_image_0{n}_0000" for n in (2, 3)]
    row = store.index.iloc[0]
    told = (row.route, row.camera, row.frames, row.fps, row.licence, row.night, row.weather, row.has_boxes)
    assert told == ("2011_09_26_drive_0001", "image_02", 20, 10.0, "CC BY-NC-SA 3.0", 0.0, "", False)
    assert row.source == "2011_09_26/2011_09_26_drive_0001_sync/image_02/data"
    assert row.speed_mps == pytest.approx(8.0)
    assert store.index["route"].nunique() == 1
    travel, heading = ego_motion(store.frames(store.clips()[0]))
    assert travel[-1] == pytest.approx(8.0 * 1.9, rel=0.01)
    assert heading[-1] == pytest.approx(-0.2 * 1.9, rel=0.01)
    assert json.loads((tmp_path / "store" / "dropped.json").read_text()) == []
    assert store.camera(store.clips()[0]).intrinsics[0, 2] == pytest.approx(80.3 - 16)  # 160 wide cropped to 128


def test_nanoseconds_are_kept(tmp_path):
    (tmp_path / "t.txt").write_text("2011-09-26 23:59:59.999999999\n2011-09-27 00:00:00.100000001\n")
    assert read_times(tmp_path / "t.txt") == {0: 0.0, 1: 0.100000002}


def test_a_day_is_as_good_a_root_and_the_pictures_may_be_jpg(raw_tree, contents):
    drive = raw_tree()
    for path in (drive / "image_02" / "data").iterdir():
        path.rename(path.with_suffix(".jpg"))
    clips, reasons = contents(source(drive.parent))
    assert (list(clips), reasons) == (["2011_09_26_drive_0001_image_02_0000"], [])


def replace(old: str, new: str):
    def change(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def cut_lines(count: int):
    return lambda path: path.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))


CALIBRATIONS = ("calib_cam_to_cam.txt", "calib_velo_to_cam.txt", "calib_imu_to_velo.txt")
OXTS = "oxts/data/0000000004.txt"


@pytest.mark.parametrize(
    ("name", "spoil", "reason"),
    [
        *[(f"../{name}", Path.unlink, f"{name} is missing") for name in CALIBRATIONS],
        ("../calib_cam_to_cam.txt", replace("P_rect_02", "P_rect_09"), "calib_cam_to_cam.txt lacks P_rect_02"),
        ("../calib_cam_to_cam.txt", replace("P_rect_02: 9.0", "P_rect_02: 9..0"), r"line 11 \(P_rect_02\).*'9..0"),
        ("../calib_cam_to_cam.txt", replace("P_rect_02: 9.0", "P_rect_02: 1 9.0"), "found 13 values, expected 12"),
        ("../calib_cam_to_cam.txt", replace("P_rect_02: 9.0", "P_rect_02: 0.0"), "no pinhole camera"),
        ("../calib_velo_to_cam.txt", replace(" -9.99", " -99.99"), "is no rotation"),
        ("../calib_velo_to_cam.txt", lambda path: path.write_bytes(b"\xff\xfe\x00"), "is no text file"),
        ("image_02/timestamps.txt", Path.unlink, "timestamps.txt is missing"),
        ("image_02/timestamps.txt", replace("13:02:25.3", "soon"), "timestamps.txt line 4: .*soon.* is no time"),
        ("image_02/timestamps.txt", replace("13:02:25.3", "25:02:25.3"), "line 4: .* is no time"),
        ("image_02/timestamps.txt", replace("25.5", "25.3"), r"goes back from 0.4.* \(0000000004.png\) to 0.3.*5.png"),
        ("image_02/timestamps.txt", cut_lines(0), "timestamps.txt holds no time"),
        (OXTS, replace("49.", "x49."), "0000000004.txt line 1: .*'x49."),
        (OXTS, replace("49.", "nan 49."), "0000000004.txt line 1: found 31 values, expected 30"),
        (OXTS, replace("49.0", "nan "), "0000000004.txt line 1: .*31 values|nan is no finite"),
        (OXTS, replace("49.0", "149.0"), "line 1: the latitude is 149"),
        (OXTS, cut_lines(0), "0000000004.txt line 1: found 0 values"),
        ("tracklet_labels.xml", replace("</poses>", ""), "tracklet_labels.xml is not readable .*line"),
        ("tracklet_labels.xml", replace("<tx>13.0", "<tx>far"), r"tracklet 0 pose 1 \(tx, .*'far'"),
        ("tracklet_labels.xml", replace("<ty>1.5</ty>", ""), "tracklet 0 pose 0 .*<ty> missing"),
        ("tracklet_labels.xml", replace("Car", "Cart"), "tracklet 0: objectType 'Cart' is none of Car, Van"),
    ],
)  # fmt: skip
def test_a_drive_that_cannot_be_used_is_refused_with_the_file_and_the_line(raw_tree, contents, name, spoil, reason):
    drive = raw_tree(tracklets=(CAR,))
    spoil(drive / name)
    clips, reasons = contents(source(drive.parents[1]))
    assert clips == {}
    assert len(reasons) == 1
    assert re.search(reason, reasons[0]), reasons


PICTURE = "image_02/data/0000000004.png"


def cut_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def remove_pictures(*numbers: int):
    def change(drive: Path) -> None:
        for number in numbers:
            (drive / "image_02" / "data" / f"{number:010d}.png").unlink()

    return change


@pytest.mark.parametrize(
    ("spoil", "lengths", "reasons"),
    [
        (lambda drive: cut_lines(8)(drive / "image_02" / "timestamps.txt"), [8], [r"2 pictures \(8, 9\), left out"]),
        (
            remove_pictures(8, 9),
            [8],
            [r"pictures are 0 to 7, times are given for 2 more \(8, 9\)", r"oxts has 2 rows \(8, 9\) without"],
        ),
        (remove_pictures(4), [4, 5], [r"oxts has 1 row \(4\) without", "0000000004.png: the file is missing"]),
        (lambda drive: (drive / OXTS).unlink(), [10], [r"oxts has no row for 1 picture \(4\): pose and speed unknown"]),
        (lambda drive: (drive / PICTURE).write_bytes(b"\x89PNG"), [4, 5], ["0000000004.png: not a readable"]),
        (lambda drive: cut_bytes(drive / PICTURE), [4, 5], ["0000000004.png: "]),
    ],
)  # fmt: skip
def test_what_does_not_match_is_left_out_and_told(raw_tree, contents, spoil, lengths, reasons):
    drive = raw_tree()
    spoil(drive)
    clips, told = contents(source(drive.parents[1]))
    assert [len(frames) for frames in clips.values()] == lengths
    assert len(told) == len(reasons)
    for reason, expected in zip(told, reasons, strict=True):
        assert re.search(expected, reason), told


def test_labels_beyond_the_pictures_are_told(raw_tree, contents):
    drive = raw_tree(tracklets=((*CAR[:2], 8, CAR[3]),))
    clips, reasons = contents(source(drive.parents[1]))
    assert [len(frame.boxes) for frame in next(iter(clips.values()))] == [0] * 8 + [1] * 2
    assert reasons == ["labels are given for 2 frames (10, 11) without a picture, left out"]


def test_an_empty_or_absent_folder_of_a_camera_is_told(raw_tree, contents):
    drive = raw_tree()
    for path in (drive / "image_02" / "data").iterdir():
        path.unlink()
    assert "holds no picture" in contents(source(drive.parents[1]))[1][0]
    (drive / "image_02" / "data").rmdir()
    assert "data is missing" in contents(source(drive.parents[1]))[1][0]


def test_without_oxts_poses_and_speed_are_unknown(raw_tree, contents):
    drive = raw_tree()
    (drive / "oxts").rename(drive / "elsewhere")
    (frames,) = contents(source(drive.parents[1]))[0].values()
    assert frames[0].pose is None
    assert np.isnan(frames[0].speed_mps)


def test_a_folder_of_neither_layout_both_or_one_drive_twice_is_told(raw_tree, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither KITTI raw .* nor KITTI tracking"):
        source(tmp_path / "empty").units()
    root = raw_tree().parents[1]
    (root / "training" / "image_02" / "0000").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds KITTI raw \(2011.*0001\) and KITTI tracking \(training/0000\)"):
        source(root).units()
    (root / "copy" / "2011_09_26_drive_0001_sync").mkdir(parents=True)
    with pytest.raises(UserError, match="drive_0001_sync twice"):
        source(root).units()
    with pytest.raises(UserError, match="needs root="):
        source(None)
    with pytest.raises(UserError, match="is not a folder"):
        source(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"kitti.cameras is \['image_00'\]; expected some of image_02, image_03"):
        source(root, cameras=["image_00"])
