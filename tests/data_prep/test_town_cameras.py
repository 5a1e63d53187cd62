"""Several cameras on the car of the town: one world, seen from all sides."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from data_prep.mounts import MOUNTS
from data_prep.source import Unit
from data_prep.town.source import TownConfig, TownSource
from data_prep.town.world import World
from drivesim.clip import VEHICLES, Camera
from drivesim.errors import UserError

HEIGHT, WIDTH = 256, 512
SOURCE = TownSource(
    TownConfig(
        routes=2,
        sparse_routes=0,
        seconds=2.0,
        height=HEIGHT,
        width=WIDTH,
        night_share=0.0,  # lamps glow beyond the outline of a car
        dusk_share=0.0,
        crowdedness=1.5,
        cameras=[*MOUNTS],
    )
)
NOTHING = np.zeros((0, 10, 3), np.float32)


@cache
def world(camera: str, route: int = 0) -> World:
    return World(SOURCE.setting(Unit(f"town_000{route}_{camera}", f"town_000{route}")))


@pytest.mark.parametrize(
    ("camera", "degrees"),
    [
        ("CAM_FRONT_LEFT", 55),
        ("CAM_FRONT_RIGHT", -55),
        ("CAM_BACK", 180),
        ("CAM_BACK_LEFT", 110),
        ("CAM_BACK_RIGHT", -110),
    ],
)
def test_cameras_look_where_those_of_nuscenes_do_from_within_two_metres(camera, degrees):
    front, other = (world(name).view(1.0).pose for name in ("CAM_FRONT", camera))
    seen = np.linalg.inv(front) @ other
    angle = np.radians(degrees)
    np.testing.assert_allclose(seen[:3, 2], [-np.sin(angle), 0, np.cos(angle)], atol=1e-12)  # right, down, forward
    np.testing.assert_allclose(seen[:3, 1], [0, 1, 0], atol=1e-12)
    assert np.linalg.norm(seen[:3, 3]) < 2
    assert seen[1, 3] == 0
    if degrees != 180:
        assert np.sign(seen[0, 3]) == -np.sign(degrees)  # the left camera sits on the left


@pytest.mark.parametrize("camera", ["CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"])
def test_vehicles_are_drawn_where_their_3d_boxes_project(camera, monkeypatch):
    monkeypatch.setattr(World, "_ground_shadows", lambda *_: (NOTHING, NOTHING))  # shadows rightly reach out
    found = 0
    for route in (0, 1):
        town = world(camera, route)
        for time_s in (0.0, 1.0, 1.9):
            frame = town.frame(time_s)
            for box in frame.boxes:
                x1, y1, x2, y2 = projected(box, frame.intrinsics)
                if box.name not in VEHICLES or box.visibility < 0.97 or not min(x2 - x1, y2 - y1) > 14:
                    continue
                gone = town.frame(time_s, without=frozenset([box.track])).image
                v, u = np.nonzero(np.abs(frame.image.astype(int) - gone).max(-1) > 8)
                assert u.min() > x1 - 2.5
                assert u.max() < x2 + 2.5
                assert v.min() > y1 - 2.5
                assert v.max() < y2 + 2.5
                assert len(u) > 0.4 * (x2 - x1) * (y2 - y1)
                found += 1
    assert found


def projected(box, intrinsics) -> np.ndarray:
    """Outline x1, y1, x2, y2 in pixels of the 3D box, worked out apart from the code under test; NaN behind."""
    length, width, height = box.size_m
    forward = np.array([np.sin(box.yaw), 0, np.cos(box.yaw)])
    right = np.array([np.cos(box.yaw), 0, -np.sin(box.yaw)])
    signs = np.array([(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])
    offsets = signs * [length / 2, width / 2, height / 2] @ np.array([forward, right, [0, 1, 0]])
    corners = np.array(box.centre_m) + offsets
    if corners[:, 2].min() < 0.5:
        return np.full(4, np.nan)
    pixels = Camera(intrinsics, HEIGHT, WIDTH).project(corners).clip(0, [WIDTH, HEIGHT])
    return np.r_[pixels.min(0), pixels.max(0)]


def test_a_thing_seen_by_two_cameras_is_at_one_place_of_the_world():
    places: dict[int, list] = {}
    for camera in MOUNTS:
        frame = world(camera).frame(1.0)
        for box in frame.boxes:
            place = frame.pose @ [*box.centre_m, 1]
            ahead = frame.pose[:3, :3] @ [np.sin(box.yaw), 0, np.cos(box.yaw)]
            places.setdefault(box.track, []).append((*place[:3], *ahead, *box.size_m, box.name))
    shared = [seen for seen in places.values() if len(seen) > 1]
    assert len(shared) >= 3
    for seen in shared:
        assert len({row[-1] for row in seen}) == 1
        rows = np.array([row[:-1] for row in seen])
        np.testing.assert_allclose(rows, np.broadcast_to(rows[0], rows.shape), atol=1e-6)


def test_cars_follow_behind_and_the_street_they_come_from_is_there():
    town = world("CAM_BACK")
    behind = [box for box in town.frame(0.0).boxes if box.name in VEHICLES and box.visibility > 0.5]
    assert behind
    road = np.concatenate([street.path.points for street in town.roads.streets])
    local = town.view(0.0).to_camera(np.c_[road, 0 * road[:, 0]].astype(np.float32))
    assert local[np.abs(local[:, 0]) < 30, 2].max() > 100


def test_headlights_shine_ahead_only():
    night = replace(SOURCE.setting(Unit("town_0001_CAM_FRONT", "town_0001")), time_of_day="night", crowdedness=0.0)
    light = [World(replace(night, camera=camera)).frame(1.0).image[200:].mean() for camera in ("CAM_FRONT", "CAM_BACK")]
    assert light[0] > 2 * light[1]


def test_units_are_routes_by_cameras_and_clips_tell_theirs():
    source = TownSource(TownConfig(routes=1, sparse_routes=1, cameras=["CAM_FRONT", "CAM_BACK"]))
    units = source.units()
    assert [(unit.name, unit.route) for unit in units] == [
        ("town_0000_CAM_FRONT", "town_0000"),
        ("town_0000_CAM_BACK", "town_0000"),
        ("town_s0000_CAM_FRONT", "town_s0000"),
        ("town_s0000_CAM_BACK", "town_s0000"),
    ]
    clips = [next(source.clips(unit)) for unit in units]
    assert [clip.camera for clip in clips] == ["CAM_FRONT", "CAM_BACK"] * 2
    assert [clip.fps for clip in clips] == [30.0, 30.0, 1.875, 1.875]
    assert {clip.start_s for clip in clips} == {0.0}


def test_with_the_front_camera_alone_clips_are_named_by_route():
    source = TownSource(TownConfig(routes=1, sparse_routes=0))
    (clip,) = source.clips(source.units()[0])
    assert (clip.name, clip.camera) == ("town_0000", "CAM_FRONT")


@pytest.mark.parametrize("cameras", [[], ["CAM_TOP"], ["CAM_BACK", "CAM_BACK"]])
def test_cameras_that_cannot_be_are_refused_with_those_that_can(cameras):
    with pytest.raises(UserError, match=r"expected some of CAM_FRONT, .*CAM_BACK_RIGHT, each once"):
        TownSource(TownConfig(cameras=cameras))
