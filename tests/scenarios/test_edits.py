"""Bases and what is changed of them, against the store they come from and against closed forms."""

import math

import numpy as np
import pytest
import torch

from drivesim.clip import NO_BOX
from drivesim.data.store import ClipStore
from drivesim.errors import UserError
from drivesim.generation.layout_file import load_layout, save_layout
from drivesim.geometry import corners, picture_box
from drivesim.scenarios.build import build
from tests.scenarios.conftest import CAMERA, FRAMES, HEIGHT_M, HIDDEN, LEADER, PARKED, SIZE, car
from tests.scenarios.test_build import track_of

TIMES = np.arange(FRAMES) / 10


def projected(x: float, z: float, yaw: float = 0.0) -> np.ndarray:
    centre = np.array([[x, HEIGHT_M - SIZE[2] / 2, z]])
    return np.array(picture_box(CAMERA, corners(centre, np.array([SIZE]), np.full(1, yaw))[0]))


def assert_same(a, b) -> None:
    """Two layouts, their boxes in any order."""
    for name in ("night", "crowdedness", "travel", "heading", "weather", "speed", "turn", "steering", "known"):
        np.testing.assert_allclose(getattr(a, name).numpy(), getattr(b, name).numpy(), atol=1e-6, err_msg=name)
    assert a.classes.shape == b.classes.shape
    for track in sorted({*a.tracks.unique().tolist(), *b.tracks.unique().tolist()} - {NO_BOX}):
        for name in ("boxes", "solids"):
            assert torch.equal(track_of(a, track, name).nan_to_num(-7), track_of(b, track, name).nan_to_num(-7)), name


@pytest.mark.parametrize("clip", ["solid", "flat"])
def test_a_base_that_is_not_changed_is_the_stored_layout(store, clip):
    assert_same(build(f"{store}:{clip}").layout, ClipStore(store).layout(clip, 2))


def test_a_base_begins_where_it_is_told_to(scenario, store):
    layout = build(scenario(base=f"{store}:solid:0.5", seconds=1)).layout
    stored = ClipStore(store).layout("solid", 2)
    assert torch.equal(track_of(layout, PARKED, "boxes"), track_of(stored, PARKED, "boxes")[5:15])
    assert layout.travel[0] == 0
    assert load_layout(scenario(base=f"{store}:solid:0.55"), 1, 20, 2).num_frames == 20


def test_day_becomes_night_and_dry_becomes_rain_and_the_cars_stay(scenario, store):
    stored = ClipStore(store).layout("solid", 2)
    layout = build(scenario(base=f"{store}:solid", time_of_day="night", weather="rain")).layout
    assert layout.night.tolist() == [1] * FRAMES
    assert layout.weather.tolist() == [2] * FRAMES
    for name in ("boxes", "solids"):
        assert torch.equal(track_of(layout, PARKED, name), track_of(stored, PARKED, name))


def test_a_car_that_is_taken_away_is_gone_and_what_it_hid_comes_out(scenario, store):
    layout = build(scenario(base=f"{store}:solid", edits=[{"track": LEADER, "remove": True}])).layout
    assert not (layout.tracks == LEADER).any()
    assert (layout.tracks == HIDDEN).any(-1).all()
    np.testing.assert_allclose(track_of(layout, HIDDEN, "boxes")[3], projected(0, 24), atol=1e-5)
    assert layout.crowdedness.tolist() == [2] * FRAMES  # one less, one more


def test_what_houses_hid_stays_hidden_when_a_car_that_hid_nothing_is_taken_away(scenario, store):
    layout = build(scenario(base=f"{store}:solid", edits=[{"track": PARKED, "remove": True}])).layout
    assert not (layout.tracks == HIDDEN).any()
    assert (layout.tracks == LEADER).any(-1).all()


def test_a_car_is_shifted_by_metres_in_space(scenario, store):
    edit = {"track": PARKED, "left_m": 1, "ahead_m": 2}
    layout = build(scenario(base=f"{store}:solid", edits=[edit])).layout
    boxes, solids = track_of(layout, PARKED, "boxes"), track_of(layout, PARKED, "solids")
    for t in range(0, FRAMES, 5):
        np.testing.assert_allclose(boxes[t], projected(-5, 32 - 0.5 * t), atol=1e-5)
    np.testing.assert_allclose(solids[:, 0], 32 - 5 * TIMES, atol=1e-3)
    stored = ClipStore(store).layout("solid", 2)
    assert torch.equal(track_of(layout, LEADER, "boxes"), track_of(stored, LEADER, "boxes"))


def test_without_boxes_in_space_a_car_is_shifted_along_the_picture_by_its_depth(scenario, store):
    camera = {"field_of_view_deg": math.degrees(2 * math.atan(0.8)), "horizon": 28 / 64, "height_m": HEIGHT_M}
    spec = scenario(base=f"{store}:flat", camera=camera, edits=[{"track": LEADER, "left_m": 2, "ahead_m": 4}])
    boxes = track_of(build(spec).layout, LEADER, "boxes")
    x1, y1, x2, y2 = ClipStore(store).layout("flat", 2).boxes[0, 0].tolist()
    near = 12 - SIZE[0] / 2  # the box ends below where the road is at the rear of the car
    smaller, aside = near / (near + 4), 80 * 2 / (near + 4) / 128
    expected = [
        0.5 + (x1 - 0.5) * smaller - aside,
        28 / 64 + (y1 - 28 / 64) * smaller,
        0.5 + (x2 - 0.5) * smaller - aside,
        28 / 64 + (y2 - 28 / 64) * smaller,
    ]
    np.testing.assert_allclose(boxes[3], expected, atol=1e-4)


def test_a_car_goes_its_way_at_another_pace(scenario, store):
    solids = track_of(
        build(scenario(base=f"{store}:solid", edits=[{"track": LEADER, "speed": 0.5}])).layout, LEADER, "solids"
    )
    np.testing.assert_allclose(solids[:, 0], 12 - 2.5 * TIMES, atol=1e-3)  # half of our 5 m/s
    solids = track_of(
        build(scenario(base=f"{store}:solid", edits=[{"track": LEADER, "speed": 1.6}])).layout, LEADER, "solids"
    )
    np.testing.assert_allclose(solids[:, 0], 12 + 3 * TIMES, atol=1e-3)  # beyond the end of the base too


def test_the_same_street_is_driven_another_way(scenario, store):
    spec = scenario(base=f"{store}:solid", ego={"speed_mps": 2, "turn_deg_s": 5})
    layout = build(spec).layout
    np.testing.assert_allclose(layout.travel, 2 * TIMES, atol=1e-4)
    angle, radius = np.radians(5) * TIMES, 2 / np.radians(5)
    offset = np.stack([-4 - radius * (1 - np.cos(angle)), 30 - radius * np.sin(angle)])  # from us to the parked car
    depth = offset[0] * np.sin(angle) + offset[1] * np.cos(angle)
    np.testing.assert_allclose(track_of(layout, PARKED, "solids")[:, 0], depth, atol=5e-3)
    np.testing.assert_allclose(track_of(layout, PARKED, "solids")[:, 4], -angle, atol=1e-3)


def test_agents_drive_on_the_way_that_the_base_took(scenario, store):
    spec = scenario(base=f"{store}:solid", agents=[car("new", "bus", ahead_m=40, left_m=-4)])
    layout = build(spec).layout
    track = HIDDEN + 1  # the next free number
    np.testing.assert_allclose(track_of(layout, track, "solids")[:, 0], 40 - 5 * TIMES, atol=1e-3)
    assert layout.crowdedness.tolist() == [3] * FRAMES


def test_an_agent_hides_what_is_behind_it(scenario, store):
    spec = scenario(base=f"{store}:solid", agents=[car("new", "bus", ahead_m=20, left_m=3.3)])
    seen = (build(spec).layout.tracks == PARKED).any(-1)
    assert not seen[:5].any()


def test_a_scenario_is_a_base_too(scenario):
    plain, edited = (
        build("cut_in"),
        build(scenario(base="cut_in", time_of_day="night", edits=[{"track": 1, "ahead_m": 3}])),
    )
    assert edited.layout.night.tolist() == [1] * 80
    np.testing.assert_allclose(
        track_of(edited.layout, 1, "solids")[0, 0], track_of(plain.layout, 1, "solids")[0, 0] + 3, atol=1e-3
    )
    assert edited.scene.title == plain.scene.title


def test_a_layout_file_is_a_base_too(scenario, store, tmp_path):
    stored = ClipStore(store).layout("flat", 2)
    path = save_layout(stored, 10, tmp_path / "a.json")
    layout = build(scenario(base=str(path), edits=[{"track": PARKED, "remove": True}])).layout
    assert set(layout.tracks.unique().tolist()) == {LEADER}
    assert torch.equal(track_of(layout, LEADER, "boxes"), track_of(stored, LEADER, "boxes"))
    assert_same(build(str(path)).layout, stored)


def test_edits_of_all_tracks_reach_each(scenario, store):
    layout = build(scenario(base=f"{store}:solid", edits=[{"track": "all", "remove": True}])).layout
    assert (layout.classes == NO_BOX).all()
    assert layout.known.all()
    assert layout.crowdedness.tolist() == [0] * FRAMES


def test_of_all_that_are_shifted_some_may_leave_the_picture(scenario, store):
    layout = build(scenario(base=f"{store}:solid", edits=[{"track": "all", "ahead_m": 52}])).layout
    assert layout.tracks[-1, 0] == LEADER
    assert not (layout.tracks[0] == PARKED).any()  # 82 m ahead


def test_edits_raise_the_priority(scenario, store, capsys):
    layout = load_layout(scenario(base=f"{store}:solid", edits=[{"track": PARKED, "priority": 2}]), 1, 10, 1)
    assert layout.tracks.tolist() == [[PARKED]] * 10
    assert "left out: track 7 in frames 0-19" in capsys.readouterr().err


BAD = {
    "no such track": (
        "solid",
        {"edits": [{"track": 8, "remove": True}]},
        r"edits\[0\]: the base has no track 8; it has 3, 7, 9",
    ),
    "nothing changed": ("solid", {"edits": [{"track": 7}]}, r"edits\[0\] changes nothing"),
    "no such clip": ("solit", {}, "has no clip 'solit'; try solid"),
    "a start after the end": ("solid:7", {}, "start 7 s lies outside the clip of 2.00 s"),
    "two cameras": ("solid", {"camera": {}}, "camera is that of the base"),
    "into another": ("solid", {"edits": [{"track": 9, "ahead_m": -11}]}, r"frame 0 .*track 9 and track 7 overlap"),
    "into us": ("solid", {"edits": [{"track": 7, "ahead_m": -10}]}, "track 7 and the camera car overlap"),
    "out of the picture": ("solid", {"edits": [{"track": 7, "left_m": 200}]}, "track 7 is never in the picture"),
    "speed of a flat box": ("flat", {"edits": [{"track": 7, "speed": 2}]}, "does not say where track 7 is in space"),
    "behind us": ("flat", {"edits": [{"track": 7, "ahead_m": -300}]}, "track 7 would be behind the camera"),
    "another way through a flat base": (
        "flat",
        {"ego": {"speed_mps": 3}},
        "ego cannot be changed in this base: track 3 has no place",
    ),
    "on an unknown road": (
        "flat",
        {"agents": [car()]},
        "not known how the base's camera drives; give ego, or relative_to: ego",
    ),
    "our way through a car": ("solid", {"ego": {"speed_mps": 20}}, "track 7 and the camera car overlap"),
    "a track that is taken": ("solid", {"agents": [car(track=7)]}, "a has track 7, and so has one of the base"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_edit_that_cannot_be_is_refused_in_one_line(case, scenario, store):
    clip, content, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        build(scenario(base=f"{store}:{clip}", **content))
    assert "\n" not in str(caught.value)
