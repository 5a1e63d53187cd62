"""Small trees written after the format descriptions of KITTI raw and KITTI tracking; all numbers are made up."""

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_prep.source import Dropped, Frame, Refused, Source, Unit

HEIGHT, WIDTH = 64, 160
CAMERA_OF_VELO = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
PROJECTION = {
    "image_00": np.array([[90.0, 0, 80.3, 0], [0, 90.0, 30.2, 0], [0, 0, 1, 0]]),
    "image_01": np.array([[90.0, 0, 80.3, -48.6], [0, 90.0, 30.2, 0], [0, 0, 1, 0]]),
    "image_02": np.array([[90.0, 0, 80.3, 5.61], [0, 90.0, 30.2, 0.027], [0, 0, 1, 0.00275]]),
    "image_03": np.array([[90.0, 0, 80.3, -42.44], [0, 90.0, 30.2, 0.275], [0, 0, 1, 0.00273]]),
}
RECTIFY = Rotation.from_euler("xyz", [0.004, -0.007, 0.010]).as_matrix()
VELO_TO_CAM = Rotation.from_euler("xyz", [0.006, 0.002, -0.015]).as_matrix() @ CAMERA_OF_VELO
VELO_TO_CAM_SHIFT = np.array([-0.004, -0.0763, -0.2718])
IMU_TO_VELO = Rotation.from_euler("xyz", [0.015, -0.002, 0.001]).as_matrix()
IMU_TO_VELO_SHIFT = np.array([-0.81, 0.32, -0.8])
SPEED_MPS, TURN_RAD_S, HERTZ = 8.0, 0.2, 10.0


def words(values: np.ndarray) -> str:
    return " ".join(f"{value:.12e}" for value in np.ravel(values))


def write_pictures(folder: Path, digits: int, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        grey = np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8)
        cv2.imwrite(str(folder / f"{number:0{digits}d}.png"), grey)


def oxts_row(number: int) -> str:
    """A car that drives a left-hand circle from heading north, slightly rolled and pitched."""
    yaw = np.pi / 2 + TURN_RAD_S * number / HERTZ
    radius = SPEED_MPS / TURN_RAD_S
    east, north = radius * (np.sin(yaw) - 1), -radius * np.cos(yaw)
    latitude = 49.0 + np.degrees(north / 6378137.0)
    longitude = 8.4 + np.degrees(east / 6378137.0 / np.cos(np.radians(49.0)))
    values = [latitude, longitude, 113.0 + 0.01 * number, 0.02, 0.01, yaw, 0, 0, SPEED_MPS, *[0.0] * 21]
    return " ".join(f"{value:.14g}" for value in values)


def write_days_calibration(day: Path) -> None:
    lines = ["calib_time: 09-Jan-2012 13:57:47", "corner_dist: 9.950000e-02"]
    for camera, projection in PROJECTION.items():
        xx = camera[-2:]
        lines += [f"S_rect_{xx}: {WIDTH:e} {HEIGHT:e}", f"R_rect_{xx}: {words(RECTIFY)}"]
        lines += [f"P_rect_{xx}: {words(projection)}"]
    (day / "calib_cam_to_cam.txt").write_text("\n".join(lines) + "\n")
    time = "calib_time: 15-Mar-2012 11:37:16"
    rigid = f"{time}\nR: {words(VELO_TO_CAM)}\nT: {words(VELO_TO_CAM_SHIFT)}\n"
    (day / "calib_velo_to_cam.txt").write_text(rigid + "delta_f: 0.0 0.0\ndelta_c: 0.0 0.0\n")
    (day / "calib_imu_to_velo.txt").write_text(f"{time}\nR: {words(IMU_TO_VELO)}\nT: {words(IMU_TO_VELO_SHIFT)}\n")


def tracklet(kind: str, size: tuple[float, float, float], first: int, poses: list[dict[str, float]]) -> str:
    """size: h, w, l; poses: tx, ty, tz, rz, occlusion, truncation"""
    unset = {"rx": 0, "ry": 0, "rz": 0, "state": 1, "occlusion": 0, "occlusion_kf": 0, "truncation": 0}
    unset |= {"amt_occlusion": 0, "amt_occlusion_kf": 0, "amt_border_l": 0, "amt_border_r": 0, "amt_border_kf": 0}
    items = ""
    for pose in poses:
        inside = "".join(f"<{key}>{value}</{key}>\n" for key, value in (unset | pose).items())
        items += f'<item class_id="3" tracking_level="0" version="2">\n{inside}</item>\n'
    h, w, l = size  # noqa: E741
    return f"""<item class_id="1" tracking_level="0" version="1">
<objectType>{kind}</objectType>
<h>{h}</h>
<w>{w}</w>
<l>{l}</l>
<first_frame>{first}</first_frame>
<poses class_id="2" tracking_level="0" version="0">
<count>{len(poses)}</count>
<item_version>2</item_version>
{items}</poses>
<finished>1</finished>
</item>
"""


def write_tracklets(path: Path, tracklets: list[str]) -> None:
    path.write_text(f"""<?xml version="1.0" encoding="UTF-8" standalone="yes" ?>
<!DOCTYPE boost_serialization>
<boost_serialization signature="serialization::archive" version="9">
<tracklets class_id="0" tracking_level="0" version="0">
<count>{len(tracklets)}</count>
<item_version>1</item_version>
{"".join(tracklets)}</tracklets>
</boost_serialization>
""")


def write_raw(root: Path, count: int = 10, name: str = "2011_09_26_drive_0001", tracklets: tuple = ()) -> Path:
    day = root / name[:10]
    drive = day / f"{name}_sync"
    for camera in ("image_02", "image_03"):
        write_pictures(drive / camera / "data", 10, count)
        stamps = [f"2011-09-26 13:02:{25 + 0.1 * i + 0.000000445:012.9f}" for i in range(count)]
        (drive / camera / "timestamps.txt").write_text("\n".join(stamps) + "\n")
    (drive / "oxts" / "data").mkdir(parents=True)
    for number in range(count):
        (drive / "oxts" / "data" / f"{number:010d}.txt").write_text(oxts_row(number) + "\n")
    write_days_calibration(day)
    if tracklets:
        write_tracklets(drive / "tracklet_labels.xml", [tracklet(*each) for each in tracklets])
    return drive


def write_tracking(root: Path, count: int = 10, labels: tuple = (), testing: bool = True) -> Path:
    for part in ("training", "testing") if testing else ("training",):
        for camera in ("image_02", "image_03"):
            write_pictures(root / part / camera / "0000", 6, count)
        for folder in ("calib", "oxts"):
            (root / part / folder).mkdir()
        lines = [f"P{camera[-1]}: {words(projection)}" for camera, projection in PROJECTION.items()]
        velo = np.column_stack([VELO_TO_CAM, VELO_TO_CAM_SHIFT])
        imu = np.column_stack([IMU_TO_VELO, IMU_TO_VELO_SHIFT])
        lines += [f"R_rect {words(RECTIFY)}", f"Tr_velo_cam {words(velo)}", f"Tr_imu_velo {words(imu)}"]
        (root / part / "calib" / "0000.txt").write_text("\n".join(lines) + "\n\n")
        (root / part / "oxts" / "0000.txt").write_text("".join(oxts_row(i) + "\n" for i in range(count)))
    (root / "training" / "label_02").mkdir()
    (root / "training" / "label_02" / "0000.txt").write_text("".join(f"{line}\n" for line in labels))
    return root


def read_all(source: Source, unit: Unit | None = None) -> tuple[dict[str, list[Frame]], list[str]]:
    clips, reasons = {}, []
    pieces = source.clips(unit or source.units()[0])
    try:
        for piece in pieces:
            if isinstance(piece, Dropped):
                reasons.append(piece.reason)
                continue
            try:
                clips[piece.name] = list(piece.frames)
            except Refused as reason:
                reasons.append(str(reason))
    except Refused as reason:
        reasons.append(str(reason))
    return clips, reasons


@pytest.fixture
def raw_tree(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """raw_tree(count=10, name=..., tracklets=()) writes a drive of KITTI raw below tmp_path; returns its folder."""
    return lambda **options: write_raw(tmp_path / "raw", **options)


@pytest.fixture
def tracking_tree(tmp_path: Path) -> Callable[..., Path]:
    """tracking_tree(count=10, labels=(), testing=True) writes KITTI tracking; returns its root."""
    return lambda **options: write_tracking(tmp_path / "tracking", **options)


@pytest.fixture
def contents() -> Callable[..., tuple[dict[str, list[Frame]], list[str]]]:
    """contents(source, unit): the frames of each clip by name, and the reasons of what was left out."""
    return read_all


@pytest.fixture
def published() -> Callable[[str, np.ndarray], np.ndarray]:
    """published(camera, points): the format description's projection of Velodyne points [n, 3] to pixels [n, 2]."""

    def project(camera: str, points: np.ndarray) -> np.ndarray:
        rectify, rigid = np.eye(4), np.eye(4)
        rectify[:3, :3] = RECTIFY
        rigid[:3, :3], rigid[:3, 3] = VELO_TO_CAM, VELO_TO_CAM_SHIFT
        x = PROJECTION[camera] @ rectify @ rigid @ np.column_stack([points, np.ones(len(points))]).T
        return (x[:2] / x[2]).T

    return project
