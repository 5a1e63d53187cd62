"""CAN bus and road maps, where they lie beside the data set."""

import json
import sys

import matplotlib
import numpy as np
import pytest

from data_prep.nuscenes.can import speed_and_steering
from data_prep.nuscenes.maps import METRES_PER_PIXEL, map_layers
from data_prep.nuscenes.source import NuscenesConfig, NuscenesSource
from data_prep.source import Refused
from drivesim.data.schema import MAP_LAYERS

START_US = 1_532_402_927_000_000
SCENE = "scene-0061"


def write_can(root, scene=SCENE, seconds=2.0):
    """Speed 3 t + 4 m/s, steering 0.5 - t."""
    (root / "can_bus").mkdir(exist_ok=True)
    times = np.arange(0, seconds, 0.02)
    pose = [{"utime": START_US + int(t * 1e6), "vel": [(3 * t + 4) * 0.6, (3 * t + 4) * 0.8, 0.0]} for t in times]
    steering = [{"utime": START_US + int(t * 1e6), "value": 0.5 - t} for t in times]
    (root / "can_bus" / f"{scene}_pose.json").write_text(json.dumps(pose))
    (root / "can_bus" / f"{scene}_steeranglefeedback.json").write_text(json.dumps(steering))


def test_speed_and_steering_are_interpolated(tmp_path):
    write_can(tmp_path)
    times = np.array([0.0, 0.501, 1.4])
    speed, steering = speed_and_steering(tmp_path, SCENE, START_US + times * 1e6)
    np.testing.assert_allclose(speed, 3 * times + 4, atol=1e-6)
    np.testing.assert_allclose(steering, 0.5 - times, atol=1e-6)


def test_far_from_any_message_they_are_unknown(tmp_path):
    write_can(tmp_path)
    speed, _ = speed_and_steering(tmp_path, SCENE, START_US + np.array([-1.0, 0.0, 5.0]) * 1e6)
    assert np.isnan(speed).tolist() == [True, False, True]


@pytest.mark.parametrize("scene", ["scene-0161", "scene-0002", "town/1"])
def test_scenes_without_a_bus_have_none(tmp_path, scene):
    write_can(tmp_path, "scene-0161")  # one that the devkit knows to be without
    speed, steering = speed_and_steering(tmp_path, scene, np.full(3, START_US))
    assert np.isnan([*speed, *steering]).all()
    assert np.isnan(speed_and_steering(tmp_path / "elsewhere", scene, np.full(3, START_US))).all()


@pytest.mark.parametrize("text", ["{", '[{"utime": 1}]', '["no message"]', '{"utime": 3}'])
def test_a_damaged_bus_file_is_named(tmp_path, text):
    write_can(tmp_path)
    (tmp_path / "can_bus" / f"{SCENE}_steeranglefeedback.json").write_text(text)
    with pytest.raises(Refused, match=r"scene-0061_steeranglefeedback.json is not readable"):
        speed_and_steering(tmp_path, SCENE, np.full(3, START_US))


def write_map(root, version="1.3"):
    """A road 10 m wide along y = 100 with an island, a divider along its middle that leaves the map and comes back."""
    nodes = {
        "road": [(0, 95), (400, 95), (400, 105), (0, 105)],
        "island": [(100, 99), (110, 99), (110, 101), (100, 101)],
        "divider": [(0, 100), (90, 100), (90, 400), (130, 400), (130, 100), (400, 100)],
    }
    tables = {
        "polygon": [
            {
                "token": "road",
                "exterior_node_tokens": [f"road{i}" for i in range(4)],
                "holes": [{"node_tokens": [f"island{i}" for i in range(4)]}],
            }
        ],
        "line": [{"token": "divider", "node_tokens": [f"divider{i}" for i in range(6)]}],
        "node": [{"token": f"{name}{i}", "x": x, "y": y} for name, at in nodes.items() for i, (x, y) in enumerate(at)],
        "drivable_area": [{"token": "area", "polygon_tokens": ["road"]}],
        "road_divider": [{"token": "middle", "line_token": "divider"}],
    }
    empty = "road_segment road_block lane ped_crossing walkway stop_line carpark_area lane_divider traffic_light"
    tables |= {name: [] for name in (*empty.split(), "lane_connector")}
    folder = root / "maps" / "expansion"
    folder.mkdir(parents=True)
    whole = {"version": version, "canvas_edge": [1585.6, 2025.0], "arcline_path_3": {}, "connectivity": {}} | tables
    (folder / "singapore-onenorth.json").write_text(json.dumps(whole))


PATH = np.array([[90.0, 100.0], [120.0, 103.0]])


def at(layer, x, y):
    """Whether a layer is at a place of the world, as docs/clip_store.md says where its pixels lie."""
    column = int((x - layer.x_m) / layer.metres_per_pixel)
    row = layer.mask.shape[0] - 1 - int((y - layer.y_m) / layer.metres_per_pixel)
    return bool(layer.mask[row, column])


def test_the_map_reaches_around_the_path_and_lies_where_the_world_says(tmp_path):
    write_map(tmp_path)
    layers = {layer.name: layer for layer in map_layers(tmp_path, "singapore-onenorth", PATH)}
    assert set(layers) == set(MAP_LAYERS)
    road = layers["drivable_area"]
    assert (road.x_m, road.y_m, road.metres_per_pixel) == (40.0, 50.0, METRES_PER_PIXEL)
    assert road.mask.shape == (103 / 0.25, 130 / 0.25)
    assert at(road, 50, 96)
    assert at(road, 165, 104)
    assert not at(road, 105, 100)  # the island
    assert not at(road, 50, 94)
    assert not at(road, 50, 106)
    assert road.mask.sum() * 0.25**2 == pytest.approx(130 * 10 - 20, rel=0.05)
    assert not layers["walkway"].mask.any()


def test_a_line_that_leaves_the_map_and_comes_back_is_drawn_in_parts(tmp_path):
    write_map(tmp_path)
    layers = {layer.name: layer for layer in map_layers(tmp_path, "singapore-onenorth", PATH)}
    divider = layers["road_divider"]
    for x, y in ((50, 100), (160, 100), (90, 140), (130, 140)):
        assert divider.mask[::-1][
            int((y - 50.5) * 4) : int((y - 49.5) * 4), int((x - 40.5) * 4) : int((x - 39.5) * 4)
        ].any()
    assert divider.mask.sum() * 0.25 == pytest.approx(50 + 53 + 53 + 40, rel=0.05)  # metres, one pixel wide


def test_reading_a_map_changes_no_plots(tmp_path):
    write_map(tmp_path)
    sys.modules.pop("nuscenes.map_expansion.map_api", None)  # its import would, by a style of its own
    before = dict(matplotlib.rcParams)
    map_layers(tmp_path, "singapore-onenorth", PATH)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("location", ["boston-seaport", "town", "../../etc/passwd"])
def test_places_without_a_map_have_none(tmp_path, location):
    write_map(tmp_path)
    assert map_layers(tmp_path, location, PATH) == []


def test_a_map_that_cannot_be_used_is_told(tmp_path):
    write_map(tmp_path, version="1.0")
    with pytest.raises(Refused, match=r"no road map: singapore-onenorth.json cannot be used .*outdated"):
        map_layers(tmp_path, "singapore-onenorth", PATH)
    with pytest.raises(Refused, match=r"the path spans 99100 m"):
        map_layers(tmp_path, "singapore-onenorth", np.array([[0.0, 0.0], [99_000.0, 0.0]]))


def test_clips_carry_what_the_expansions_tell(tree):
    write_can(tree.root)
    write_map(tree.root)
    source = NuscenesSource(NuscenesConfig(height=80, width=160, min_seconds=0.5), tree.root)
    clips = {unit.route: next(source.clips(unit)) for unit in source.units()}
    assert [layer.name for layer in clips[SCENE].maps] == list(MAP_LAYERS)
    frames = list(clips[SCENE].frames)
    times = np.array([row["timestamp"] - START_US for row in tree.pictures(SCENE, "CAM_FRONT")]) * 1e-6
    np.testing.assert_allclose([frame.speed_mps for frame in frames], 3 * times + 4, atol=1e-6)
    np.testing.assert_allclose([frame.steering_rad for frame in frames], 0.5 - times, atol=1e-6)
    low = np.min([frame.pose[:2, 3] for frame in frames], 0) - 50
    np.testing.assert_allclose([clips[SCENE].maps[0].x_m, clips[SCENE].maps[0].y_m], low, atol=3)
    other = next(iter(clips["scene-0103"].frames))  # of which the bus says nothing
    assert other.speed_mps == pytest.approx(8.0, rel=1e-3)
    assert np.isnan(other.steering_rad)
