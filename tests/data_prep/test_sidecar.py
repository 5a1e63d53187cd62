"""Boxes in a file beside a video: on the frames they belong to, through cuts, resampling and cropping, or refused."""

import csv
import io
import json
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation

from data_prep.source import Refused
from data_prep.videos import VideosConfig, VideosSource
from drivesim.clip import Layout
from drivesim.data.store import ego_motion
from drivesim.errors import UserError
from drivesim.generation.layout_file import read_layout, save_layout

HEIGHT, WIDTH = 72, 128


def config(**changes):
    return VideosConfig(**{"height": 32, "width": 64, "fps": 15.0, "clip_seconds": 2.0, "min_seconds": 0.2} | changes)


def car(track=1, x1=0.2, **more):
    return {"track": track, "class": "car", "x1": x1, "y1": 0.4, "x2": x1 + 0.2, "y2": 0.6} | more


@pytest.fixture
def prepared(tmp_path, make_video, make_scene):
    """prepared(content, frames=..., **options): the clips of a video of 15 fps with that sidecar."""

    def prepare(content, frames=None, rate=15, name="drive.boxes.json", **options):
        make_video(tmp_path / "drive.mp4", frames or make_scene(1, 30), rate)
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        source = VideosSource(config(**options), tmp_path)
        return [(piece, list(piece.frames)) for piece in source.clips(source.units()[0])]

    return prepare


def lefts(frames, track=1):
    """x1 of a track in each frame, NaN where it is not there."""
    return [next((box.xyxy[0] for box in frame.boxes if box.track == track), np.nan) for frame in frames]


def test_between_two_instants_a_box_moves_linearly_and_it_is_never_carried_on(prepared):
    instants = [(0.4, [car(x1=0.2)]), (1.0, [car(x1=0.5)]), (1.6, [])]
    [_, (clip, frames), _] = prepared({"frames": [{"time_s": t, "boxes": boxes} for t, boxes in instants]})
    times = 0.4 + np.arange(len(frames)) / 15
    assert clip.has_boxes
    assert times[-1] == pytest.approx(1.6)
    expected = np.where(times <= 1.0 + 1e-6, 0.2 + (times - 0.4) / 2, np.nan)
    np.testing.assert_allclose(lefts(frames), expected, atol=1e-4)  # the crop keeps the full width
    assert [frame.vehicles for frame in frames] == [0.0 if np.isnan(x) else 1.0 for x in expected]


def test_where_boxes_are_not_known_is_not_where_no_cars_are(prepared):
    seconds = [0.4, 1.0, 1.6]
    pieces = prepared({"frames": [{"time_s": t, "boxes": [car()]} for t in seconds]})
    assert [(clip.has_boxes, len(frames)) for clip, frames in pieces] == [(False, 6), (True, 19), (False, 5)]
    assert all(np.isnan(frame.vehicles) and not frame.boxes for frame in pieces[0][1])


def test_a_pause_longer_than_the_limit_is_not_bridged(prepared):
    content = {"frames": [{"time_s": t, "boxes": [car()]} for t in (0, 0.2, 1.4, 1.6)]}
    known = [(clip.has_boxes, len(frames)) for clip, frames in prepared(content, min_seconds=0.1)]
    assert known == [(True, 4), (False, 17), (True, 4), (False, 5)]
    assert [clip.has_boxes for clip, _ in prepared(content, gap_seconds=1.2)] == [True, False]


def test_a_track_that_pauses_is_bridged_while_others_are_seen(prepared):
    content = {"frames": [{"time_s": i / 5, "boxes": [car(2)]} for i in range(6)]}
    for i in (0, 1, 4, 5):
        content["frames"][i]["boxes"].append(car(1))
    [(_, frames), _] = prepared(content)
    assert not np.isnan(lefts(frames)).any()
    [(_, frames), _] = prepared(content, gap_seconds=0.3)
    assert np.flatnonzero(np.isnan(lefts(frames))).tolist() == [4, 5, 6, 7, 8, 9, 10, 11]


def test_boxes_by_frame_number_stay_on_their_frames_when_resampled_and_cut(prepared, make_scene):
    film = make_scene(1, 30) + make_scene(2, 30)  # a cut at frame 30
    content = {"unit": "pixels", "frames": []}
    for i in range(60):
        box = {"track": 7, "class": "bus", "x1": 10 + i, "y1": 30, "x2": 40 + i, "y2": 50}
        content["frames"].append({"frame": i, "boxes": [box]})
    pieces = prepared(content, film, rate=30, fps=10.0)
    assert [len(frames) for _, frames in pieces] == [10, 10]
    assert [clip.has_boxes for clip, _ in pieces] == [True, True]
    shown = [x * WIDTH for _, frames in pieces for x in lefts(frames, 7)]
    np.testing.assert_allclose(shown, 10 + np.arange(0, 60, 3), atol=1e-3)


def test_a_variable_rate_keeps_boxes_on_the_frame_that_is_shown(tmp_path, make_scene):
    begins = [0, 1, 2, 6, 7, 12, 13, 14]  # fifteenths of a second
    with av.open(str(tmp_path / "phone.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=15)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for begin, picture in zip(begins, make_scene(1, 8), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    rows = [{"frame": i, "boxes": [car(x1=i / 10)]} for i in range(8)]
    (tmp_path / "phone.boxes.json").write_text(json.dumps({"frames": rows}))
    source = VideosSource(config(), tmp_path)
    [frames] = [list(piece.frames) for piece in source.clips(source.units()[0])]
    shown = np.searchsorted(begins, np.arange(15), side="right") - 1
    np.testing.assert_allclose(lefts(frames), shown / 10, atol=1e-6)


def test_a_crop_moves_boxes_and_lowers_what_is_seen_of_them(prepared):
    # 128x72 becomes 64x32: the rows from 4 to 68 stay. Half of a box from row 0 to 8 is left.
    boxes = [
        {"track": 1, "class": "truck", "x1": 32, "y1": 36, "x2": 64, "y2": 52, "visibility": 0.5},
        {"track": 2, "class": "car", "x1": 0, "y1": 0, "x2": 64, "y2": 12, "visibility": 0.9},
    ]
    content = {"unit": "pixels", "frames": [{"time_s": t, "boxes": boxes} for t in (0, 0.95, 1.94)]}
    (_, frames), *_ = prepared(content)
    truck, high = frames[0].boxes
    assert truck.xyxy == pytest.approx((32 / 128, 32 / 64, 64 / 128, 48 / 64))
    assert (truck.name, truck.visibility) == ("truck", 0.5)
    assert high.xyxy == pytest.approx((0, 0, 0.5, 8 / 64))
    assert high.visibility == pytest.approx(0.9 * 8 / 12)


def test_pixels_are_those_of_the_picture_held_upright(tmp_path, make_video, make_scene):
    data = bytearray(make_video(tmp_path / "drive.mp4", make_scene(1, 10)).read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    (tmp_path / "drive.mp4").write_bytes(data)
    box = {"track": 1, "class": "car", "x1": 36, "y1": 64, "x2": 72, "y2": 80}
    (tmp_path / "drive.boxes.json").write_text(json.dumps({"unit": "pixels", "frames": [{"frame": 0, "boxes": [box]}]}))
    source = VideosSource(config(height=128, width=72, min_seconds=0.01), tmp_path)
    first = next(next(source.clips(source.units()[0])).frames)
    assert first.image.shape == (128, 72, 3)
    assert first.boxes[0].xyxy == pytest.approx((0.5, 0.5, 1, 80 / 128))


def test_boxes_in_space_are_taken_and_turn_the_short_way_round(prepared):
    solid = {"x_m": 1, "y_m": 1.5, "z_m": 20, "length_m": 4, "width_m": 1.8, "height_m": 1.5}
    boxes = [car(**solid, yaw=3.1), car(**(solid | {"z_m": 10}), yaw=-3.1)]
    ((_, frames), *_) = prepared(
        {"frames": [{"time_s": t, "boxes": [box]} for t, box in zip((0, 0.8), boxes, strict=True)]}
    )
    middle = frames[6].boxes[0]
    assert middle.centre_m == pytest.approx((1, 1.5, 15))
    assert middle.size_m == (4, 1.8, 1.5)
    assert np.cos(middle.yaw) == pytest.approx(-1, abs=1e-3)


def test_labels_of_the_recording_and_over_time(prepared):
    content = {
        "night": 1, "weather": "rain", "licence": "CC0-1.0", "caption": " A wet\nstreet ",
        "frames": [{"time_s": 0, "speed_mps": 0, "crowdedness": 3}, {"time_s": 1, "speed_mps": 10}],
    }  # fmt: skip
    [(clip, frames)] = prepared(content, licence="all rights reserved", gap_seconds=0.5)
    assert (clip.weather, clip.licence, clip.has_boxes) == ("rain", "CC0-1.0", False)
    assert clip.caption == "A wet street"
    assert {frame.night for frame in frames} == {1.0}
    speeds = [frame.speed_mps for frame in frames]
    times = np.arange(30) / 15
    expected = np.where(times <= 1.5 + 1e-6, np.minimum(10 * times, 10), np.nan)
    np.testing.assert_allclose(speeds, expected, atol=1e-6)
    assert frames[0].vehicles == 3


def test_the_way_driven_becomes_poses_that_give_it_back(prepared):
    travel, heading = np.array([0.0, 4, 10, 12]), np.array([0.0, 0.1, 0.5, 0.5])
    rows = [
        {"time_s": i / 2, "travel_m": t, "heading_rad": h} for i, (t, h) in enumerate(zip(travel, heading, strict=True))
    ]
    [(_, frames)] = prepared({"frames": rows})
    poses = [frame.pose for frame in frames if frame.pose is not None]
    assert len(poses) == 23  # to 1.5 s
    turns = Rotation.from_matrix([pose[:3, :3] for pose in poses]).as_quat()
    columns = ["x_m", "y_m", "z_m", "qx", "qy", "qz", "qw"]
    table = pd.DataFrame(np.hstack([[pose[:3, 3] for pose in poses], turns]), columns=columns)
    driven, turned = ego_motion(table)
    times = np.arange(23) / 15
    np.testing.assert_allclose(driven, np.interp(times, np.arange(4) / 2, travel), atol=0.01)
    np.testing.assert_allclose(turned, np.interp(times, np.arange(4) / 2, heading), atol=1e-5)


def test_a_table_in_any_order_says_the_same_as_json(prepared, tmp_path):
    frames, rows = [], []
    for i in range(5):
        box = {"track": 3, "class": "cyclist", "x1": 20 + i, "y1": 20, "x2": 50, "y2": 50}
        frames.append({"time_s": i / 4, "speed_mps": i, "boxes": [box, box | {"track": 4}]})
        rows += [{"time_s": i / 4, "unit": "pixels", "speed_mps": i} | box for box in frames[-1]["boxes"]]
    frames.append({"time_s": 1.5, "boxes": []})
    rows.append({"time_s": 1.5, "unit": "pixels"})
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]))
    table.writeheader()
    table.writerows(rows[::-1])
    told = prepared({"unit": "pixels", "frames": frames})
    (tmp_path / "drive.boxes.json").unlink()
    again = prepared(text.getvalue(), name="drive.boxes.csv")
    for (clip, shown), (other, listed) in zip(told, again, strict=True):
        assert clip.has_boxes == other.has_boxes
        assert str([frame.boxes for frame in shown]) == str([frame.boxes for frame in listed])
        np.testing.assert_array_equal([frame.speed_mps for frame in shown], [frame.speed_mps for frame in listed])


def test_a_layout_file_is_a_sidecar(prepared, tmp_path):
    layout = Layout.unknown(8, slots=2)
    layout.known[:], layout.night[:] = True, 0.25
    layout.classes[:, 0], layout.tracks[:, 0] = 1, 4
    layout.boxes[:, 0] = layout.boxes.new_tensor([0.25, 0.5, 0.5, 0.75])
    for suffix in (".json", ".csv"):
        path = save_layout(layout, 4.0, tmp_path / f"layout{suffix}")
        assert read_layout(str(path)) is not None
        (clip, frames), *_ = prepared(path.read_text(), name=f"drive.boxes{suffix}")
        (tmp_path / f"drive.boxes{suffix}").unlink()
        assert clip.has_boxes
        assert (frames[0].night, frames[0].boxes[0].name, frames[0].boxes[0].track) == (0.25, "truck", 4)


def test_a_sidecar_in_fractions_is_a_layout(tmp_path):
    boxes = [car(visibility=0.9, z_m=20, yaw=0)]
    frames = [{"time_s": 0, "speed_mps": 5, "boxes": boxes}, {"time_s": 1, "night": 0, "boxes": []}]
    content = {"unit": "fractions", "licence": "CC0-1.0", "weather": "rain", "night": 1, "frames": frames}
    content["caption"] = "rain"
    (tmp_path / "drive.boxes.json").write_text(json.dumps(content))
    layout = read_layout(str(tmp_path / "drive.boxes.json")).layout
    assert layout.night.tolist() == [1, 0]
    assert layout.tracks.tolist() == [[1], [-1]]
    (tmp_path / "drive.boxes.json").write_text(json.dumps(content | {"unit": "pixels"}))
    with pytest.raises(UserError, match=r"unit is 'pixels'.*give fractions"):
        read_layout(str(tmp_path / "drive.boxes.json"))


@pytest.mark.parametrize(("kind", "count"), [("json", 2), ("csv", 1)])
def test_the_examples_of_the_documentation_are_read(prepared, kind, count):
    page = (Path(__file__).parents[2] / "docs" / "videos.md").read_text(encoding="utf-8")
    example = page.split(f"```{kind}\n")[1].split("```")[0]
    black = [np.zeros((720, 1280, 3), np.uint8)] * 16
    (clip, frames), *_ = prepared(example, black, name=f"drive.boxes.{kind}", height=288, width=512)
    assert clip.has_boxes
    assert len(frames[0].boxes) == count


WRONG = [
    ("{", r"drive.boxes.json is not valid JSON"),
    ({"frames": [{"time": 0}]}, r"frame 0: unknown key 'time'"),
    ({"frames": [{"boxes": [car(), car()]}]}, r"frame 0, box 1: track 1 is there twice"),
    ({"frames": [{"boxes": [car() | {"class": "tram"}]}]}, r"frame 0, box 0: class is 'tram', expected one of car"),
    ({"frames": [{"boxes": [car() | {"x1": None}]}]}, r"frame 0, box 0: x1 is missing"),
    ({"frames": [{"boxes": [car() | {"x2": 0.1}]}]}, r"frame 0, box 0: x1,y1,x2,y2 are .*expected x1 < x2"),
    ({"frames": [{"boxes": [car() | {"x1": 30, "x2": 40, "y1": 9, "y2": 20}]}]}, r"wholly outside the picture.*pixels"),
    ({"unit": "inches", "frames": []}, r"unit is 'inches', expected one of fractions, pixels"),
    ({"weather": "hail"}, r"weather is 'hail', expected one of clear"),
    ({"caption": 3}, r"caption is 3, expected text"),
    ({"frames": [{"time_s": 2000, "boxes": []}]}, r"frame 0: time_s is 2000, expected 0 to 3"),
    ({"frames": [{"frame": 30, "boxes": []}]}, r"frame 0: frame is 30, expected 0 to 29"),
    ({"frames": [{"time_s": 1}, {"time_s": 1}]}, r"two frames are at 1 s"),
    ({"frames": [{"boxes": [car()]}, {"boxes": [car() | {"class": "bus"}]}]}, r"track 1 is a car, and a bus at"),
    ({"frames": [{"boxes": [car(visibility=1.5)]}]}, r"frame 0, box 0: visibility is 1.5, expected 0 to 1"),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_a_broken_sidecar_leaves_its_video_out_and_says_where(prepared, content, message):
    with pytest.raises(Refused, match=message):
        prepared(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time_s,track,klass\n", r"drive.boxes.csv: line 1 has unknown 'klass'"),
        ("track,class,x1,y1,x2,y2\n", r"line 1 has neither time_s nor frame"),
        ("time_s,track,class,x1,y1,x2,y2\n0,1,car,.1,.1,.2,.2\n0.1,1,car,.1,.1,wide,.2\n", r"line 3: x2 is 'wide'"),
        ("time_s,track,class,x1,y1,x2,y2\n0,1,car,.1,.1,.2,.2,.3\n", r"line 2 has more values"),
    ],
)
def test_a_broken_table_names_the_line(prepared, text, message):
    with pytest.raises(Refused, match=message):
        prepared(text, name="drive.boxes.csv")


def test_two_sidecars_or_one_without_a_video_are_told(tmp_path, prepared):
    (tmp_path / "drive.boxes.csv").write_text("time_s\n")
    with pytest.raises(Refused, match="both there"):
        prepared({"frames": []})
    (tmp_path / "other.boxes.json").write_text("{}")
    source = VideosSource(config(), tmp_path)
    orphan = next(unit for unit in source.units() if "other" in unit.path)
    with pytest.raises(Refused, match="no video of that name"):
        list(source.clips(orphan))
