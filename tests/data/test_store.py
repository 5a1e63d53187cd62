"""Reading a clip store that `data_prep.writer` wrote."""

import hashlib
import json
import os

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from scipy.spatial.transform import Rotation

from data_prep.source import Box, Frame, RawClip
from data_prep.writer import merge, write_clip
from drivesim.clip import CLASSES, NO_BOX
from drivesim.data.schema import WEATHERS
from drivesim.data.store import INDEX, SCHEMA, ClipStore, ego_motion
from drivesim.data.video import iterate, read_window
from drivesim.errors import UserError

BOXES = [
    Box(1, "car", (0.1, 0.1, 0.2, 0.2), visibility=1.0, centre_m=(1, 2, 10), size_m=(4, 2, 1.5), yaw=0.3),
    Box(2, "bus", (0.0, 0.0, 0.5, 0.5)),  # visibility unknown
    Box(3, "pedestrian", (0.4, 0.4, 0.7, 0.7), visibility=0.1),  # all but hidden
    Box(4, "truck", (0.6, 0.6, 0.9, 0.9), visibility=0.5),
]
INTRINSICS = np.array([[100.0, 0, 48], [0, 90, 32], [0, 0, 1]])


@pytest.fixture
def store(tmp_path):
    picture = np.full((64, 96, 3), 90, np.uint8)
    boxed = [
        Frame(picture, BOXES, intrinsics=INTRINSICS, night=1.0, vehicles=3),
        Frame(picture, [], night=1.0, vehicles=0),
    ]
    write_clip(tmp_path, RawClip("b_boxes", "r1", 30.0, "town", "CC0-1.0", True, iter(boxed)), "train")
    write_clip(tmp_path, RawClip("a_film", "r2", 25.0, "film.mp4", "", False, iter([Frame(picture)])), "val")
    merge(tmp_path, {"source": "test"})
    return ClipStore(tmp_path)


def test_a_store_made_before_there_were_captions_opens_and_has_none(store):
    path = store.root / "index.parquet"
    pq.write_table(pq.read_table(path).drop_columns("caption"), path)
    old = ClipStore(store.root)
    assert old.index["caption"].tolist() == ["", ""]
    assert old.table("index")["caption"].tolist() == ["", ""]
    assert list(old.table("index").columns) == INDEX.names
    assert old.query("caption != ''").empty


def test_a_store_made_before_there_were_generated_clips_opens_and_has_none(store):
    for name in ("index", "frames"):
        table = pq.read_table(store.root / f"{name}.parquet")
        gone = [
            column for column in ("synthetic", "provenance", "label_recall", "label_ok") if column in table.column_names
        ]
        pq.write_table(table.drop_columns(gone), store.root / f"{name}.parquet")
    old = ClipStore(store.root)
    assert old.query("synthetic").empty
    assert old.query("label_ok").index.tolist() == ["a_film", "b_boxes"]
    frames = old.frames("b_boxes")
    assert frames["label_recall"].isna().all()
    assert frames["label_ok"].all()
    assert old.layout("b_boxes").num_frames == 2
    assert old.table("index")["provenance"].tolist() == ["", ""]


def test_a_layout_holds_weather_speed_steering_and_boxes_in_space(tmp_path):
    picture = np.zeros((64, 96, 3), np.uint8)
    frames = [Frame(picture, BOXES, speed_mps=7.0 + t, steering_rad=0.5) for t in range(3)]
    write_clip(tmp_path, RawClip("a", "r", 10.0, "", "", True, iter(frames), weather="fog"), "train")
    merge(tmp_path, {"source": "test"})
    layout = ClipStore(tmp_path).layout("a", slots=4)
    assert layout.weather.tolist() == [WEATHERS.index("fog")] * 3
    assert (layout.speed.tolist(), layout.steering.tolist()) == ([7, 8, 9], [0.5] * 3)
    assert layout.turn.isnan().all()  # no pose
    car = layout.solids[0, layout.tracks[0].tolist().index(1)]
    torch.testing.assert_close(car, torch.tensor([10, 4, 2, 1.5, 0.3]))
    bus = layout.solids[0, layout.tracks[0].tolist().index(2)]
    assert bus.isnan().all()


def test_clips_are_listed_by_split_and_can_be_opened(store):
    assert store.clips() == ["a_film", "b_boxes"]
    assert (store.clips("train"), store.clips("val"), store.clips("test")) == (["b_boxes"], ["a_film"], [])
    for clip in store.clips():
        with store.video(clip).open() as file:
            assert hashlib.sha256(file.read()).hexdigest() == store.hashes[clip]
    with pytest.raises(UserError, match="has no clip 'a_flim'; try a_film"):
        store.video("a_flim")


def test_a_layout_holds_the_boxes_of_each_frame_largest_first(store):
    layout = store.layout("b_boxes", slots=3)
    assert layout.classes.tolist() == [
        [CLASSES.index("bus"), CLASSES.index("truck"), CLASSES.index("car")],
        [NO_BOX] * 3,
    ]
    assert layout.tracks[0].tolist() == [2, 4, 1]
    torch.testing.assert_close(layout.boxes[0, 2], torch.tensor([0.1, 0.1, 0.2, 0.2]))
    assert layout.known.all()
    assert (layout.night.tolist(), layout.crowdedness.tolist()) == ([1, 1], [3, 0])


def test_hidden_boxes_are_left_out_and_unknown_visibility_is_kept(store):
    assert 3 not in store.layout("b_boxes").tracks
    assert 3 in store.layout("b_boxes", min_visibility=0.05).tracks
    assert 2 in store.layout("b_boxes", min_visibility=0.99).tracks


def test_with_too_few_slots_the_largest_boxes_stay(store):
    assert store.layout("b_boxes", slots=1).tracks.tolist() == [[2], [NO_BOX]]


def test_a_box_of_a_class_that_is_none_is_told(store):
    path = store.root / "boxes.parquet"
    pd.read_parquet(path).replace({"class": {"bus": "tram"}}).to_parquet(path)
    with pytest.raises(UserError, match=r"a box of class tram, expected one of car.*verify"):
        store.layout("b_boxes")


def test_a_film_without_boxes_is_unknown_rather_than_empty(store):
    layout = store.layout("a_film")
    assert not layout.known.any()
    assert layout.night.isnan().all()
    assert len(store.boxes("a_film")) == 0


def test_the_camera_is_in_pixels_of_the_stored_size(store):
    camera = store.camera("b_boxes")
    np.testing.assert_array_equal(camera.intrinsics, INTRINSICS)
    assert (camera.height, camera.width) == (64, 96)


def test_boxes_keep_their_size_and_place_in_metres(store):
    car = store.boxes("b_boxes").set_index("track").loc[1]
    found = [car[name] for name in ("x_m", "y_m", "z_m", "length_m", "width_m", "height_m", "yaw")]
    np.testing.assert_allclose(found, [1, 2, 10, 4, 2, 1.5, 0.3], rtol=1e-6)


def test_the_way_driven_and_turned_is_that_of_the_poses():
    speed, rate, steps = 2.0, -0.3, np.arange(6) / 5  # metres and radians to the right a second: a bend to the left
    yaw = rate * steps
    cameras = Rotation.from_euler("y", yaw[:, None])  # in a world with the axes of the first
    place = np.cumsum(cameras.apply([0, 0, speed / 5]), 0)
    table = pd.DataFrame(np.hstack([place, cameras.as_quat()]), columns=["x_m", "y_m", "z_m", "qx", "qy", "qz", "qw"])
    travel, heading = ego_motion(table)
    assert np.allclose(heading, yaw, atol=1e-5)
    assert np.allclose(travel, speed * steps, rtol=1e-2)  # chords for arcs


def test_from_an_unknown_pose_on_the_way_is_unknown():
    table = pd.DataFrame({name: np.zeros(4) for name in ("x_m", "y_m", "z_m", "qx", "qy", "qz")} | {"qw": np.ones(4)})
    table.loc[2, "x_m"] = np.nan
    assert np.isnan(ego_motion(table)).tolist() == [[False, False, True, True]] * 2


def test_a_film_without_poses_has_no_known_motion(store):
    assert store.layout("a_film").travel.isnan().all()


def test_a_selection_is_the_store_with_fewer_clips(store):
    chosen = store.select("has_boxes and seconds < 1")
    assert chosen.clips() == ["b_boxes"]
    assert chosen.selection == "has_boxes and seconds < 1"
    assert list(chosen.index.columns) == list(store.index.columns)
    assert torch.equal(chosen.layout("b_boxes").boxes, store.layout("b_boxes").boxes)
    assert store.clips() == ["a_film", "b_boxes"]
    assert store.select(" ") is store


def test_a_selection_of_a_selection_has_both_conditions(store):
    chosen = store.select("has_boxes or fps < 30").select("fps < 30")
    assert chosen.clips() == ["a_film"]
    assert store.select(chosen.selection).clips() == ["a_film"]


def test_a_selection_of_nothing_is_told(store):
    with pytest.raises(UserError, match="where=frames > 9 holds for none of 2 clips"):
        store.select("frames > 9")


def test_clips_that_show_a_class_are_found_also_in_a_selection(store):
    assert store.holds_class("bus").tolist() == [False, True]
    assert store.holds_class("cyclist").tolist() == [False, False]
    assert store.select("frames == 1").holds_class("bus").tolist() == [False]


@pytest.mark.parametrize("clip", ["a", "c", "", "b_boxes2"])
def test_an_unknown_clip_has_no_row(store, clip):
    with pytest.raises(UserError):
        store.row(clip)


def test_an_empty_folder_is_no_store(tmp_path):
    with pytest.raises(UserError, match="no clip store; make one with"):
        ClipStore(tmp_path)


def test_a_preparation_that_did_not_finish_is_called_that(store):
    (store.root / "store.json").unlink()
    with pytest.raises(UserError, match="did not finish"):
        ClipStore(store.root)


def test_another_schema_is_refused(store):
    (store.root / "store.json").write_text(json.dumps({"schema": SCHEMA + 1}))
    with pytest.raises(UserError, match=f"schema {SCHEMA + 1}, this version reads {SCHEMA}"):
        ClipStore(store.root)


def test_an_unreadable_marker_is_named(store):
    (store.root / "store.json").write_text("{")
    with pytest.raises(UserError, match=r"store\.json is not readable"):
        ClipStore(store.root)


def test_a_table_that_is_missing_damaged_or_lacks_a_column_is_named(store):
    path = store.root / "boxes.parquet"
    pd.read_parquet(path).drop(columns="yaw").to_parquet(path)
    with pytest.raises(UserError, match=r"boxes.parquet lacks yaw; prepare the store again"):
        store.table("boxes")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"boxes.parquet is not readable .*; prepare the store again"):
        store.layout("b_boxes")
    path.unlink()
    with pytest.raises(UserError, match=r"boxes.parquet is not readable"):
        store.table("boxes")


@pytest.mark.parametrize("shard", ["../train-00000.tar", "/shards/train-00000.tar", "shards/../../x.tar"])
def test_a_shard_outside_the_store_is_refused(store, shard):
    path = store.root / "index.parquet"
    pd.read_parquet(path).assign(shard=shard).to_parquet(path)
    with pytest.raises(UserError, match=r"places clip a_film in .*, outside the store"):
        store.video("a_film")


@pytest.mark.parametrize("name", ["../a", "a/b", "a\\b", ".a"])
def test_a_clip_whose_name_leads_out_of_a_folder_is_refused(store, name):
    path = store.root / "index.parquet"
    pd.read_parquet(path).replace("a_film", name).to_parquet(path)
    with pytest.raises(UserError, match="which is no file name"):
        store.clips()


def test_a_shard_that_is_missing_or_cut_off_is_named_with_the_clip(store):
    video = store.video("b_boxes")
    os.truncate(video.shard, video.offset + video.bytes - 1)
    for read in (video.open, lambda: next(iterate(video)), lambda: read_window(video, 0, 1)):
        with pytest.raises(UserError, match=r"train-00000.tar is cut off: .*b_boxes.mp4 ends at"):
            read()
    video.shard.unlink()
    for read in (video.open, lambda: next(iterate(video)), lambda: read_window(video, 0, 1)):
        with pytest.raises(UserError, match=r"train-00000.tar is missing, which holds b_boxes.mp4"):
            read()
