import pickle
from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest

from data_prep.source import Box, Unit
from data_prep.town.light import build_light
from data_prep.town.mesh import CORNERS, Polygons, placed
from data_prep.town.painter import Scene, paint
from data_prep.town.roads import PAVEMENT_M, ROAD_M
from data_prep.town.source import TownConfig, TownSource, describe
from data_prep.town.vehicles import vehicle
from data_prep.town.view import View
from data_prep.town.world import Setting, World
from drivesim.clip import CLASSES, VEHICLES, Camera
from drivesim.errors import UserError

TOLERANCE_PX = 2.2  # anti-aliased edges spread over two pixels
NOTHING = np.zeros((0, CORNERS, 3), np.float32)
SIZE = {"height": 256, "width": 512}


@cache
def world(seed: int = 1, **changes) -> World:
    return World(Setting((seed,), 4.0, **{**SIZE, **changes}))


def corners_of(box: Box) -> np.ndarray:
    """The corners of a 3D box, written out independently of the code under test."""
    length, width, height = box.size_m
    forward = np.array([np.sin(box.yaw), 0, np.cos(box.yaw)])
    right = np.array([np.cos(box.yaw), 0, -np.sin(box.yaw)])
    signs = [(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]
    offsets = [a * forward * length / 2 + b * right * width / 2 + np.array([0, c * height / 2, 0]) for a, b, c in signs]
    return np.array(box.centre_m) + np.array(offsets)


def clear_vehicles(seed: int):
    """(world, time, box in pixels, box) of vehicles seen whole and large."""
    town = world(seed, crowdedness=1.5)
    for time_s in (0.0, 2.0, 3.5):
        for box in town.frame(time_s).boxes:
            x1, y1, x2, y2 = np.array(box.xyxy) * [512, 256, 512, 256]
            whole = min(x1, y1) > 0 and x2 < 512 and y2 < 256
            if whole and box.name in VEHICLES and box.visibility > 0.97 and y2 - y1 > 14:
                yield town, time_s, (x1, y1, x2, y2), box


def test_the_2d_box_holds_the_pixels_that_a_vehicle_changes_and_is_filled_by_them(monkeypatch):
    found = 0
    for seed in (1, 2, 3):
        for town, time_s, (x1, y1, x2, y2), box in clear_vehicles(seed):
            monkeypatch.setattr(World, "_ground_shadows", lambda *_: (NOTHING, NOTHING))  # shadows rightly reach out
            shown, gone = town.frame(time_s).image, town.frame(time_s, without=frozenset([box.track])).image
            monkeypatch.undo()
            v, u = np.nonzero(np.abs(shown.astype(int) - gone).max(-1) > 8)
            assert u.min() >= x1 - TOLERANCE_PX
            assert u.max() <= x2 + TOLERANCE_PX
            assert v.min() >= y1 - TOLERANCE_PX
            assert v.max() <= y2 + TOLERANCE_PX
            assert len(u) > 0.4 * (x2 - x1) * (y2 - y1)
            found += 1
    assert found >= 3


def test_the_2d_box_is_the_projection_of_the_3d_box():
    checked = 0
    for seed in (1, 2):
        frame = world(seed).frame(1.0)
        camera = Camera(frame.intrinsics, **SIZE)
        for box in frame.boxes:
            corners = corners_of(box)
            if (corners[:, 2] > 0.5).all():
                pixels = camera.project(corners) / [512, 256]
                expected = np.clip([*pixels.min(0), *pixels.max(0)], 0, 1)
                np.testing.assert_allclose(box.xyxy, expected, atol=1e-6)
                checked += 1
    assert checked > 10


def test_box_fields_are_in_range():
    for box in world(3, crowdedness=2.0).frame(2.0).boxes:
        x1, y1, x2, y2 = box.xyxy
        assert 0 <= x1 < x2 <= 1
        assert 0 <= y1 < y2 <= 1
        assert box.name in CLASSES
        assert 0 <= box.visibility <= 1
        assert np.hypot(box.centre_m[0], box.centre_m[2]) < 81
        assert box.centre_m[1] == pytest.approx(1.5 - box.size_m[2] / 2)  # stands on the road


def test_points_of_the_road_move_on_the_picture_as_the_poses_say():
    """Optical flow (Lucas and Kanade, by OpenCV) against the displacement of points on the ground plane."""
    town = World(Setting((4,), 3.0, crowdedness=0.0))
    first, second = town.frame(1.0), town.frame(1.0 + 1 / 30)
    grey = [cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
    mask = np.zeros_like(grey[0])
    mask[265:490] = 255
    corners = cv2.goodFeaturesToTrack(grey[0], 200, 0.01, 5, mask=mask)
    tracked, status, _ = cv2.calcOpticalFlowPyrLK(*grey, corners, None, winSize=(15, 15))
    pixels = corners[:, 0] + 0.5  # OpenCV counts from pixel centres
    rays = np.c_[pixels, np.ones(len(pixels))] @ np.linalg.inv(first.intrinsics).T
    ground = rays * (1.5 / rays[:, 1:2])
    there = np.c_[ground, np.ones(len(ground))] @ (np.linalg.inv(second.pose) @ first.pose).T
    on_road = (np.abs(ground[:, 0]) < 4) & (there[:, 2] > 3) & (ground[:, 2] < 30) & (status[:, 0] == 1)
    expected = Camera(second.intrinsics, 512, 1024).project(there[on_road, :3])
    error = np.linalg.norm(tracked[on_road, 0] + 0.5 - expected, axis=1)
    moved = np.linalg.norm(expected - pixels[on_road], axis=1)
    assert on_road.sum() >= 8
    assert np.median(moved) > 2
    assert np.median(error) < 0.5


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_picture():
    again = World(Setting((1,), 4.0, **SIZE)).frame(1.5)
    assert np.array_equal(world(1).frame(1.5).image, again.image)
    assert not np.array_equal(world(2).frame(1.5).image, again.image)


def test_a_frame_does_not_depend_on_the_frames_rendered_before():
    fresh = World(Setting((5,), 4.0, **SIZE)).frame(2.0)
    used = world(5)
    for time_s in (3.0, 0.0, 1.9):
        used.frame(time_s)
    assert np.array_equal(used.frame(2.0).image, fresh.image)
    assert used.frame(2.0).boxes == fresh.boxes


def test_a_slow_clip_is_every_sixteenth_frame_of_the_fast_one():
    def frames(fps: float):
        source = TownSource(TownConfig(routes=1, sparse_routes=0, seconds=1.1, fps=fps, height=64, width=128))
        (clip,) = source.clips(source.units()[0])
        return list(clip.frames)

    fast, slow = frames(30.0), frames(1.875)
    assert len(slow) == 2
    for index, frame in enumerate(slow):
        assert np.array_equal(frame.image, fast[16 * index].image)


def test_night_is_darker_than_dusk_and_dusk_than_day():
    brightness = [
        np.mean([world(seed, time_of_day=time).frame(1.0).image.mean() for seed in (1, 2)])
        for time in ("night", "dusk", "day")
    ]
    assert brightness[0] < 0.7 * brightness[1]
    assert brightness[1] < 0.8 * brightness[2]
    assert [world(1, time_of_day=time).frame(1.0).night for time in ("day", "dusk", "night")] == [0.0, 0.5, 1.0]


def test_empty_streets_have_no_boxes_and_crowded_ones_more_vehicles_than_quiet_ones():
    assert all(not world(seed, crowdedness=0.0).frame(1.0).boxes for seed in (1, 2))
    quiet, crowded = (
        np.mean([world(seed, crowdedness=amount).frame(1.0).vehicles for seed in (1, 2, 3)]) for amount in (0.2, 2.0)
    )
    assert crowded > quiet + 1


def test_cars_advance_along_their_lane_at_their_speed():
    town = world(2, crowdedness=1.5)
    before, _ = town.company.vehicles(1.0)
    after, _ = town.company.vehicles(1.2)
    speed = town.traffic.speed(1.1)[1:]
    drivers = town.traffic.drivers[1:]
    moving = np.flatnonzero(
        np.isfinite(before[: len(drivers), 0]) & np.isfinite(after[: len(drivers), 0]) & (speed > 1)
    )
    assert len(moving) > 2
    for i in moving:
        step = after[i] - before[i]
        along = drivers[i].lane.path.at(town.traffic.along(1.1)[i + 1])[1]
        assert np.linalg.norm(step) == pytest.approx(0.2 * speed[i], rel=0.15)
        assert step @ [np.cos(along), np.sin(along)] > 0.95 * np.linalg.norm(step)


def test_the_reported_speed_is_how_far_the_camera_moves():
    town = world(3)
    a, b = town.frame(1.0), town.frame(1.1)
    assert np.linalg.norm(b.pose[:3, 3] - a.pose[:3, 3]) == pytest.approx(
        0.1 * (a.speed_mps + b.speed_mps) / 2, rel=0.05
    )


def test_cars_on_a_lane_never_overlap():
    for seed in (1, 2, 3):
        traffic = World(Setting((seed,), 12.0, crowdedness=2.0, height=64, width=128)).traffic
        for i, front in enumerate(traffic.drivers):
            for j, behind in enumerate(traffic.drivers):
                if front.lane is behind.lane and front.s > behind.s:
                    assert (traffic.s[:, i] - traffic.s[:, j]).min() > (front.length + behind.length) / 2


def test_the_camera_stays_on_the_carriageway_and_out_of_houses():
    for seed in range(6):
        town = World(Setting((seed,), 16.0, height=64, width=128))
        middles = np.concatenate([street.path.points for street in town.roads.streets])
        for time_s in np.arange(0, 16, 1.0):
            at = town.view(time_s).position
            assert np.sqrt(((middles - at) ** 2).sum(1).min()) < ROAD_M + PAVEMENT_M / 4


def test_a_car_hidden_behind_a_truck_is_hardly_visible():
    assert visible_share("truck", (12.0, 0.0), car_at=(22.0, 0.0)) < 0.1
    assert visible_share("truck", (12.0, 0.0), car_at=(22.0, 9.0)) == 1.0


def test_a_car_beside_the_far_half_of_a_bus_is_painted_over_the_bus():
    assert visible_share("bus", (14.0, -2.6), car_at=(14.0, -0.4)) == 1.0


def visible_share(other: str, other_at: tuple[float, float], car_at: tuple[float, float]) -> float:
    """Visibility of a car (object 2) with something else (object 1) about; the camera at the origin looks along x."""
    view = View(np.zeros(2), 0.0, 512, 1024)
    models, places = [vehicle(other, (0.8, 0.1, 0.1)), vehicle("hatch", (0.1, 0.2, 0.6))], [other_at, car_at]
    sets, parts, objects = [], [], []
    for number, (model, place) in enumerate(zip(models, places, strict=True), start=1):
        count = len(model.polygons)
        moved = placed(model.polygons, np.tile([*place, 0.0], (count, 1)), np.zeros(count))
        moved.owner = moved.owner + len(parts)
        sets.append(moved)
        parts += [(place[0] + (x0 + x1) / 2, place[1], 0.0, (x1 - x0) / 2, half) for x0, x1, half in model.parts]
        objects += [number] * len(model.parts)
    polygons = Polygons.cat(sets)
    dark = np.zeros(len(polygons), np.float32)
    scene = Scene(polygons, np.array(parts), np.array(objects), dark, dark, [])
    image = np.zeros((512, 1024, 3), np.uint8)
    return paint(image, view, scene, build_light(np.random.default_rng(0), "day")).share(2)


def test_units_are_named_by_route_and_the_source_can_be_pickled():
    source = pickle.loads(pickle.dumps(TownSource(TownConfig(routes=2, sparse_routes=1))))
    assert source.units() == [Unit(n, n) for n in ("town_0000", "town_0001", "town_s0000")]
    (clip,) = source.clips(source.units()[2])
    assert (clip.fps, clip.licence, clip.source, clip.has_boxes) == (1.875, "CC0-1.0", "town", True)


def test_a_clip_says_in_words_what_it_shows():
    source = TownSource(TownConfig(routes=12, sparse_routes=0))
    for unit in source.units():
        setting, (clip,) = source.setting(unit), source.clips(unit)
        assert clip.caption == describe(setting)
        assert ("at night" in clip.caption) == (setting.time_of_day == "night")
    empty = replace(source.setting(source.units()[0]), time_of_day="dusk", crowdedness=0.0)
    assert describe(empty) == "a street at dusk with no traffic"
    busy = replace(empty, crowdedness=1.6, weather="rain")
    assert describe(busy) == "a street at dusk in rain with heavy traffic"


def test_the_shares_of_night_and_dusk_hold():
    source = TownSource(TownConfig(routes=40, sparse_routes=0, night_share=0.25, dusk_share=0.15))
    times = [source.setting(unit).time_of_day for unit in source.units()]
    assert abs(times.count("night") - 10) <= 1
    assert abs(times.count("dusk") - 6) <= 1


def test_every_weather_has_its_share_at_every_time_of_day_and_the_index_names_it():
    shares = {"rain_share": 0.2, "snow_share": 0.1, "fog_share": 0.3}
    source = TownSource(TownConfig(routes=400, sparse_routes=0, night_share=0.5, **shares))
    settings = [source.setting(unit) for unit in source.units()]
    for time in ("day", "night"):
        found = [setting.weather for setting in settings if setting.time_of_day == time]
        for name, share in shares.items():
            assert abs(found.count(name.removesuffix("_share")) / len(found) - share) < 0.05
    for unit, setting in zip(source.units()[:20], settings[:20], strict=True):
        (clip,) = source.clips(unit)
        assert clip.weather == setting.weather or (not setting.weather and clip.weather in ("clear", "cloudy"))
        assert (f" in {setting.weather} " in clip.caption) == bool(setting.weather)


@cache
def grey(weather: str, time_of_day: str = "day") -> np.ndarray:
    """The same place in another weather, brightness 0..1 [H, W]."""
    return world(weather=weather, time_of_day=time_of_day).frame(1.0).image.mean(-1) / 255


@pytest.mark.parametrize("time_of_day", ["day", "dusk", "night"])
def test_weather_changes_how_bright_the_road_is_and_how_far_one_sees(time_of_day):
    """Snow is brighter than dry ground and that than wet; in fog the distance has no contrast."""
    dry, rain, snow, fog = (grey(weather, time_of_day) for weather in ("", "rain", "snow", "fog"))
    road = np.s_[200:, 150:350]
    assert snow[road].mean() > 1.1 * dry[road].mean() > 1.2 * rain[road].mean()
    far = np.s_[90:125, 200:320]
    assert fog[far].std() < 0.8 * dry[far].std()


def test_what_falls_is_the_same_whenever_a_frame_is_asked_for_and_another_in_the_next():
    snowy = World(Setting((1,), 4.0, **SIZE, weather="snow"))
    later, first = snowy.frame(0.1).image, snowy.frame(0.0).image
    assert np.array_equal(first, World(Setting((1,), 4.0, **SIZE, weather="snow")).frame(0.0).image)
    sky = np.s_[:60]
    assert not np.array_equal(first[sky], later[sky])


def test_weather_moves_nothing():
    dry, wet = (world(weather=weather).frame(1.0) for weather in ("", "snow"))
    assert [(box.track, box.xyxy, box.visibility) for box in dry.boxes] == [
        (box.track, box.xyxy, box.visibility) for box in wet.boxes
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fog_share": -0.1}, "fog_share is -0.1, expected 0 or more"),
        ({"rain_share": 0.6, "snow_share": 0.6}, r"rain_share \+ snow_share \+ fog_share is 1.2, expected at most 1"),
        ({"fps": 0.0}, "fps is 0.0, expected more than 0"),
        ({"night_share": 0.9, "dusk_share": 0.2}, "expected at most 1"),
        ({"min_speed_mps": 20.0}, "exceeds max_speed_mps"),
        ({"height": 100}, "multiples of 8"),
        ({"crowdedness": -1.0}, "expected 0 or more"),
    ],
)
def test_values_that_make_no_town_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        TownSource(TownConfig(**changes))


def test_no_routes_at_all_is_a_mistake():
    with pytest.raises(UserError, match="nothing to prepare"):
        TownSource(TownConfig(routes=0, sparse_routes=0)).units()
