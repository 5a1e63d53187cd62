"""Where agents end up on the picture, who is asked for, and what is refused."""

import math

import cv2
import numpy as np
import pytest
import torch
from shapely import Polygon
from shapely.affinity import rotate

from drivesim.clip import CLASSES, NO_BOX
from drivesim.data.schema import WEATHERS
from drivesim.errors import UserError
from drivesim.generation.layout_file import load_layout, read_layout, save_layout
from drivesim.scenarios.build import build
from drivesim.scenarios.checks import overlaps
from drivesim.scenarios.files import library
from drivesim.scenarios.schema import CameraSpec
from tests.scenarios.conftest import car

CAMERA = CameraSpec()


def track_of(layout, track: int, tensor: str) -> torch.Tensor:
    """The rows of `tensor` that belong to a track, NaN where it is not there: [T, n]."""
    there = layout.tracks == track
    values = getattr(layout, tensor).masked_fill(~there[..., None], 0).sum(-2)
    return values.masked_fill(~there.any(-1, keepdim=True), math.nan)


def project(points: np.ndarray) -> np.ndarray:
    """Camera-frame points [n, 3] as fractions of the picture, by OpenCV."""
    height, width = 512, 1024
    focal = width / 2 / math.tan(math.radians(CAMERA.field_of_view_deg) / 2)
    matrix = np.array([[focal, 0, width / 2], [0, focal, CAMERA.horizon * height], [0, 0, 1]])
    return cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix, None)[0][:, 0] / [width, height]


def test_a_box_is_where_opencv_projects_its_corners(scenario):
    spec = scenario(seconds=2, agents=[car(ahead_m=15, left_m=2, heading_deg=30, relative_to="ego")])
    layout = build(spec).layout
    length, width, height = 4.4, 1.8, 1.5
    turned = math.radians(30)  # to the right
    along, across = (
        np.array([math.sin(turned), 0, math.cos(turned)]),
        np.array([math.cos(turned), 0, -math.sin(turned)]),
    )
    middle = np.array([-2, 1.5, 15])
    signs = [(a, b, c) for a in (-0.5, 0.5) for b in (-0.5, 0.5) for c in (0, 1)]
    corners = np.array([middle + a * length * along + b * width * across - [0, c * height, 0] for a, b, c in signs])
    pixels = project(corners)
    expected = [*pixels.min(0), *pixels.max(0)]
    np.testing.assert_allclose(layout.boxes[:, 0].numpy(), np.tile(expected, (20, 1)), atol=1e-5)
    np.testing.assert_allclose(layout.solids[0, 0].numpy(), [15, 4.4, 1.8, 1.5, turned], atol=1e-5)


def test_the_lens_that_is_told_with_a_layout_is_that_of_the_camera(scenario):
    lens = build(scenario(seconds=2, agents=[car(ahead_m=40)])).timed().lens
    points = np.array([[-2, 1.5, 15], [3, 0, 20]])
    seen = [lens.fx, lens.fy] * points[:, :2] / points[:, 2:] + [lens.cx, lens.cy]
    np.testing.assert_allclose(seen, project(points), atol=1e-6)


def test_a_parked_car_comes_nearer_as_fast_as_we_drive(scenario):
    layout = build(scenario(seconds=2, ego={"speed_mps": 8}, agents=[car(ahead_m=30, left_m=-3)])).layout
    np.testing.assert_allclose(track_of(layout, 1, "solids")[:, 0], 30 - 0.8 * np.arange(20), atol=1e-4)
    np.testing.assert_allclose(layout.travel, 0.8 * np.arange(20), atol=1e-5)
    assert layout.speed.tolist() == [8] * 20


def test_speed_is_added_up_along_the_heading(scenario):
    agents = [
        car("brakes", ahead_m=20, speed_mps=[[0, 10], [2, 0]]),
        car("crosses", "pedestrian", ahead_m=25, left_m=-4, speed_mps=2, heading_deg=-90),
    ]
    built = build(scenario(seconds=3, ego={"speed_mps": 0}, agents=agents))
    times = np.arange(30) / 10
    moving = np.minimum(times, 2)
    np.testing.assert_allclose(built.scene.actors[0].centre[:, 2], 20 + 10 * moving - 2.5 * moving**2, atol=1e-3)
    np.testing.assert_allclose(built.scene.actors[1].centre[:, 0], 4 - 2 * times, atol=1e-6)
    np.testing.assert_allclose(built.scene.actors[1].yaw, -math.pi / 2)


def test_who_says_no_heading_faces_where_it_moves_and_keeps_to_it_when_it_stops(scenario):
    spec = scenario(seconds=3, ego={"speed_mps": 0}, agents=[car(ahead_m=20, left_m=[[0, 4], [2, -4]])])
    yaw = build(spec).scene.actors[0].yaw
    np.testing.assert_allclose(yaw[:19], math.pi / 2)
    np.testing.assert_allclose(yaw, math.pi / 2)


def test_a_car_on_the_road_follows_its_bend(scenario):
    ego = {"speed_mps": 6, "turn_deg_s": 10}
    layout = build(scenario(seconds=4, ego=ego, agents=[car(relative_to="ego", ahead_m=8)])).layout
    radius = 6 / math.radians(10)
    angle = 8 / radius  # ahead on the circle, as the camera on it sees it
    solids = track_of(layout, 1, "solids")[1:25]  # until its road is straight, where our drive ends
    np.testing.assert_allclose(solids[:, 0], radius * math.sin(angle), atol=0.02)
    np.testing.assert_allclose(solids[:, 4], angle, atol=2e-3)


def test_labels_run_as_their_keyframes_say(scenario):
    spec = scenario(
        seconds=4,
        time_of_day=[[0, "day"], [4, "night"]],
        weather=[[0, "clear"], [2, "rain"]],
        crowdedness=[[1, 2], [3, 6]],
    )
    layout = build(spec).layout
    times = np.arange(40) / 10
    np.testing.assert_allclose(layout.night, times / 4, atol=1e-6)
    np.testing.assert_allclose(layout.crowdedness, np.interp(times, [1, 3], [2, 6]), atol=1e-5)
    assert [WEATHERS[i] for i in layout.weather] == ["clear"] * 20 + ["rain"] * 20
    assert layout.known.all()  # an empty road is known to be empty
    assert (layout.classes == NO_BOX).all()


def test_vehicles_in_view_are_counted(scenario):
    agents = [car("a", ahead_m=20), car("b", ahead_m=20, left_m=4, leaves_s=1), car("c", "pedestrian", left_m=-4)]
    layout = build(scenario(seconds=2, ego={"speed_mps": 0}, agents=agents)).layout
    assert layout.crowdedness.tolist() == [2] * 10 + [1] * 10


def test_a_car_behind_another_is_not_asked_for_until_it_comes_out(scenario):
    hidden = car("hidden", ahead_m=30, left_m=[[0, 0], [2, 0], [4, 6]])
    built = build(scenario(seconds=4, ego={"speed_mps": 0}, agents=[car("bus", "bus", ahead_m=15), hidden]))
    seen = (built.layout.tracks == 2).any(-1)
    assert not seen[:20].any()
    assert seen[-5:].all()
    assert built.layout.crowdedness[0] == 1


def test_who_is_drawn_on_the_picture_moves_between_its_corners(scenario):
    keyframes = [
        {"time_s": 0, "x1": 0.1, "y1": 0.4, "x2": 0.2, "y2": 0.5},
        {"time_s": 1, "x1": 0.9, "y1": 0.5, "x2": 1.2, "y2": 0.7},
    ]
    layout = build(scenario(seconds=2, agents=[{"name": "a", "class": "bus", "track": 5, "image": keyframes}])).layout
    boxes = track_of(layout, 5, "boxes")
    np.testing.assert_allclose(boxes[5], [0.5, 0.45, 0.7, 0.6], atol=1e-6)
    np.testing.assert_allclose(boxes[15], [0.9, 0.5, 1, 0.7], atol=1e-6)  # cut at the edge, and held on
    assert layout.solids.isnan().all()
    assert layout.classes[0, 0] == CLASSES.index("bus")


def test_agents_are_there_from_when_they_appear_until_they_leave(scenario):
    layout = build(scenario(seconds=2, agents=[car(relative_to="ego", appears_s=0.5, leaves_s=1.5)])).layout
    assert (layout.classes[:, 0] != NO_BOX).tolist() == [False] * 5 + [True] * 10 + [False] * 5


def crowd(scenario, **first):
    agents = [car(f"c{i}", ahead_m=10 + 8 * i, left_m=3 * (i % 3 - 1), relative_to="ego") for i in range(4)]
    agents[3] |= first
    return scenario(seconds=1, agents=agents)


def test_of_too_many_the_nearest_are_kept_and_a_line_names_the_others(scenario, capsys):
    spec = crowd(scenario)
    layout = load_layout(spec, 1, 10, 2)
    assert layout.tracks.tolist() == [[1, 2]] * 10
    told = capsys.readouterr().err
    assert "the model takes 2 boxes a frame; left out: c2 (track 3) in frames 0-9, c3 (track 4) in frames 0-9" in told
    assert told.count("\n") == 1
    load_layout(spec, 1, 10, 4)
    assert capsys.readouterr().err == ""


def test_of_too_many_those_with_priority_are_kept_first(scenario, capsys):
    layout = load_layout(crowd(scenario, priority=1), 1, 10, 2)
    assert layout.tracks.tolist() == [[4, 1]] * 10
    assert "left out: c1 (track 2) in frames 0-9, c2 (track 3)" in capsys.readouterr().err


@pytest.mark.parametrize("name", library())
@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_every_scenario_of_the_library_comes_back_exactly_from_a_layout_file(name, suffix, tmp_path):
    built = build(name)
    path = save_layout(built.layout, 1 / built.scene.frame_s, tmp_path / f"a.{suffix}")
    timed = read_layout(str(path))
    slots = built.layout.classes.shape[-1]
    loaded = timed.layout.pad(slots)
    for field in (
        "boxes",
        "classes",
        "tracks",
        "solids",
        "night",
        "crowdedness",
        "travel",
        "heading",
        "speed",
        "turn",
        "weather",
        "known",
    ):
        a, b = getattr(built.layout, field), getattr(loaded, field)
        assert torch.equal(a.nan_to_num(-7), b.nan_to_num(-7)), field
    np.testing.assert_allclose(timed.times_s, built.scene.times_s)


@pytest.mark.parametrize("name", library())
def test_every_scenario_of_the_library_steers_a_video(name):
    layout = load_layout(name, 4, 30, 24)
    assert layout.num_frames == 120
    assert (layout.known).all()
    if name != "empty_road":
        assert (layout.classes != NO_BOX).any()


def test_rectangles_overlap_where_shapely_says_so():
    rng = np.random.default_rng(0)
    a, b = (
        np.column_stack([rng.uniform(-4, 4, (400, 2)), rng.uniform(-4, 4, 400), rng.uniform(0.5, 5, (400, 2))])
        for _ in "ab"
    )

    def polygon(x, z, yaw, length, width):
        square = Polygon(
            [(-width / 2, -length / 2), (width / 2, -length / 2), (width / 2, length / 2), (-width / 2, length / 2)]
        )
        turned = rotate(square, -yaw, (0, 0), use_radians=True)  # to the right, from z towards x
        return Polygon([(x + u, z + v) for u, v in turned.exterior.coords])

    shapes = [(polygon(*p), polygon(*q)) for p, q in zip(a, b, strict=True)]
    found = overlaps(a, b)
    assert found[[p.buffer(-0.06).intersects(q.buffer(-0.06)) for p, q in shapes]].all()
    assert not found[[not p.intersects(q) for p, q in shapes]].any()
    assert 50 < found.sum() < 350


CORNERS = {"time_s": 0, "x1": 0.1, "y1": 0.1, "x2": 0.2, "y2": 0.2}
BAD = {
    "nothing said": ({}, "seconds is missing"),
    "misspelt key": ({"agent": []}, r"unknown key 'agent'; did you mean agents\?"),
    "misspelt agent key": (
        {"agents": [car(speed=3)]},
        r"agents\[0\] \(a\): road: unknown key 'speed'; did you mean speed_mps",
    ),
    "no such class": (
        {"agents": [car(kind="tram")]},
        "class is 'tram'.*; expected one of car",
    ),
    "no such weather": ({"weather": "rian"}, r"weather is 'rian'; did you mean rain\?"),
    "no such time of day": (
        {"time_of_day": "noon"},
        "time_of_day is 'noon', expected a number or one of day, dusk, night",
    ),
    "night out of range": ({"time_of_day": 2}, "time_of_day is 2, expected 0 to 1"),
    "endless": ({"seconds": 1e9}, "seconds is 1e.09, expected 0 to 3600"),
    "no time": ({"seconds": 0}, "seconds is 0, expected more than 0"),
    "times out of order": (
        {"crowdedness": [[0, 1], [2, 3], [1, 2]]},
        "crowdedness: keyframe 2 is at 1 s, not after keyframe 1 at 2 s",
    ),
    "a keyframe that is none": ({"crowdedness": [[0, 1, 2]]}, r"keyframe 0 is \[0, 1, 2\], expected \[time_s, value\]"),
    "corners out of order": (
        {"agents": [{"name": "a", "class": "car", "image": [CORNERS | {"time_s": 1}, CORNERS]}]},
        "image: keyframe 1 is at 0 s, not after keyframe 0 at 1 s",
    ),
    "a box of no size": (
        {"agents": [{"name": "a", "class": "car", "image": [CORNERS | {"x2": 0.1}]}]},
        "size 0 x 0.1 is not positive",
    ),
    "a box in pixels": (
        {"agents": [{"name": "a", "class": "car", "image": [CORNERS | {"x2": 300}]}]},
        "x2 is 300, expected -10 to 10",
    ),
    "a box outside": (
        {"agents": [{"name": "a", "class": "car", "image": [CORNERS | {"x1": 1.2, "x2": 1.5}]}]},
        r"a \(track 1\) is wholly outside the picture",
    ),
    "a car of no size": ({"agents": [car(size_m=[4, 0, 1])]}, "size_m: width is 0, expected more than 0"),
    "half a size": ({"agents": [car(size_m=[4, 2])]}, r"size_m is \[4, 2\], expected \[length, width, height\]"),
    "neither place": ({"agents": [{"name": "a", "class": "car"}]}, "has neither road and image"),
    "both places": ({"agents": [car() | {"image": [CORNERS]}]}, "has both road and image"),
    "gone before it comes": ({"agents": [car(appears_s=1, leaves_s=0.5)]}, "leaves_s 0.5 is not after appears_s 1"),
    "never there": ({"agents": [car(appears_s=1000)]}, r"a \(track 1\) is never there"),
    "behind": ({"agents": [car(ahead_m=-20, relative_to="ego")]}, r"a \(track 1\) is behind the camera the whole time"),
    "out of sight": (
        {"agents": [car(left_m=300, ahead_m=30)]},
        r"never in the picture \(nearest in frame 19 \(1.90 s\), 14.8 m ahead\)",
    ),
    "too far": ({"agents": [car(ahead_m=500)]}, "never in the picture"),
    "in our car": (
        {"agents": [car(ahead_m=9)]},
        r"frame 6 \(0.60 s\) to frame 16 \(1.60 s\): a \(track 1\) and the camera car overlap",
    ),
    "in each other": (
        {"agents": [car("a", ahead_m=30), car("b", "bus", ahead_m=34)]},
        r"b \(track 2\) and a \(track 1\) overlap",
    ),
    "one name twice": (
        {"agents": [car("a"), car("a", ahead_m=30)]},
        r"agents\[0\] and agents\[1\] are both called 'a'",
    ),
    "one track twice": ({"agents": [car("a", track=4), car("b", track=4)]}, "b has track 4, and so has a"),
    "half a track": ({"agents": [car(track=1.5)]}, "track is 1.5, expected a whole number"),
    "speed over moving ground": ({"agents": [car(relative_to="ego", speed_mps=3)]}, "speed_mps is over ground"),
    "two ways": ({"ego": {"path": [[10, 0]], "turn_deg_s": 3}}, "ego has both path and turn_deg_s"),
    "one point twice": ({"ego": {"path": [[10, 0], [10, 0]]}}, "path has one point twice"),
    "edits of nothing": ({"edits": [{"track": 1, "remove": True}]}, "has edits but no base"),
    "two beginnings": ({"base": "cut_in", "traffic": {}}, "has both base and traffic"),
    "no such base": ({"base": "cut_on"}, "there is no 'cut_on'; .*did you mean cut_in"),
    "its own base": ({"base": "{self}"}, "its base leads back to itself"),
    "a camera too many": ({"base": "cut_in", "camera": {}}, "camera is that of the base"),
    "a rate too many": ({"base": "cut_in", "fps": 5}, "fps is that of the base"),
    "too long for its base": ({"base": "cut_in", "seconds": 9}, "seconds is 9, the base has 8.00"),
    "no such model": ({"traffic": {"model": "sumo"}}, "there is no model 'sumo'"),
    "agents no list": ({"agents": {"a": 1}}, "agents is .*, expected a list"),
    "an agent no object": ({"agents": [3]}, r"agents\[0\] is '3', expected an object with name"),
    "a nameless agent": ({"agents": [{"class": "car", "road": {"ahead_m": 3}}]}, r"agents\[0\]: name is missing"),
    "true for a number": ({"crowdedness": True}, "crowdedness is True, expected a number"),
    "infinite": ({"crowdedness": math.inf}, "crowdedness is infinite"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_in_one_line(case, scenario, tmp_path):
    content, message = BAD[case]
    usual = {} if case in ("nothing said",) or "base" in content else {"seconds": 2}
    content = {key: str(tmp_path / "a.yaml") if value == "{self}" else value for key, value in content.items()}
    spec = scenario(**(usual | content))
    with pytest.raises(UserError, match=message) as caught:
        read_layout(spec)
    assert "\n" not in str(caught.value)
    assert "a.yaml" in str(caught.value)


TEXTS = {
    "agents: [": "is not valid YAML",
    "seconds: 3\nseconds: 4": "key 'seconds' is there twice in line 2",
    "- 3": "expected an object with title",
    "": "expected an object with title",
    "seconds: !!python/object/apply:os.system [true]": "is not valid YAML",
    b"\xff\xfe": "is not UTF-8",
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_file_that_is_no_scenario_is_named_in_one_line(text, tmp_path):
    (tmp_path / "b.yml").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=TEXTS[text]) as caught:
        read_layout(str(tmp_path / "b.yml"))
    assert "\n" not in str(caught.value)
    assert "b.yml" in str(caught.value)


def test_a_name_that_is_nearly_in_the_library_is_recognised():
    with pytest.raises(UserError, match=r"layout cut-in: .*did you mean cut_in"):
        read_layout("cut-in")
    with pytest.raises(UserError, match=r"missing.yaml does not exist"):
        read_layout("missing.yaml")


def test_a_scenario_shorter_than_the_video_is_refused():
    with pytest.raises(UserError, match=r"scenario cut_in has 80 frames, 8.00 s; 9 s were asked for"):
        load_layout("cut_in", 9, 30, 24)
