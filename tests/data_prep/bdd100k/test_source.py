"""BDD100K trees in miniature, written here as the published format describes them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.bdd100k.source import Bdd100kConfig, Bdd100kSource
from data_prep.prepare import main
from data_prep.source import Dropped, Refused
from drivesim.data.store import ClipStore
from drivesim.errors import UserError

NAMES = {"train": "0000f77c-6257be58", "val": "b1c66a42-6f7d68ca", "test": "cabc30fc-e7726578"}
HEIGHT, WIDTH = 72, 128
START_MS = 1503828163000


def config(**changes):
    return Bdd100kConfig(**{"height": 32, "width": 64, "clip_seconds": 4.0, "min_seconds": 0.5} | changes)


def put(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def label(track, category, x1, y1, x2, y2, **attributes):
    traits = {"occluded": False, "truncated": False, "crowd": False} | attributes
    box = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return {"id": track, "category": category, "attributes": traits, "box2d": box}


def info(speeds, start_ms=START_MS):
    places = [
        {"timestamp": start_ms + 1000 * i, "speed": v, "latitude": 40.7, "longitude": -74.0, "course": 90.0}
        for i, v in enumerate(speeds)
    ]
    return {"rideID": "0000f77c", "startTime": start_ms, "endTime": start_ms + 40000, "locations": places}


def attributes(split, weather="rainy", timeofday="dawn/dusk"):
    traits = {"weather": weather, "scene": "city street", "timeofday": timeofday}
    other = {"name": "ffffffff-00000000.jpg", "attributes": traits | {"weather": "snowy"}, "labels": [{"x": [1]}]}
    return [other, {"name": f"{NAMES[split]}.jpg", "timestamp": 10000, "attributes": traits, "labels": None}]


@pytest.fixture
def films(tmp_path, make_video, make_scene):
    """A tree with one video a split, with attributes and speed."""
    root = tmp_path / "data" / "bdd100k"
    film = make_video(tmp_path / "film.mov", make_scene(1, 60), rate=30).read_bytes()
    for split, name in NAMES.items():
        (root / "videos" / split).mkdir(parents=True)
        (root / "videos" / split / f"{name}.mov").write_bytes(film)
        put(root / "info/100k" / split / f"{name}.json", info([0, 10, -1]))
    for split in ("train", "val"):
        put(root / "labels/det_20" / f"det_{split}.json", attributes(split))
    return root


@pytest.fixture
def tracks(tmp_path):
    """A tree with 15 pictures of one video, 5 a second, in which the grey level is the number of the picture."""
    root, name = tmp_path / "data" / "bdd100k", NAMES["train"]
    frames = []
    for number in range(1, 16):
        path = root / "images/track/train" / name / f"{name}-{number:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8))
        labels = [label("00091078", "car", 20 + number, 30, 60 + number, 50, occluded=True)]
        frames.append({"name": path.name, "videoName": name, "frameIndex": number - 1, "labels": labels})
    put(root / "labels/box_track_20/train" / f"{name}.json", frames)
    put(root / "labels/det_20/det_train.json", attributes("train", "partly cloudy", "night"))
    put(root / "info/100k/train" / f"{name}.json", info([0, 10, 20, 30]))
    return root


def read(source, unit=None):
    """[(clip, frames)] and the reasons of what was dropped."""
    clips, reasons = [], []
    for piece in source.clips(unit or source.units()[0]):
        if isinstance(piece, Dropped):
            reasons.append(piece.reason)
        else:
            try:
                clips.append((piece, list(piece.frames)))
            except Refused as reason:
                reasons.append(str(reason))
    return clips, reasons


def relabel(root, change):
    path = root / "labels/box_track_20/train" / f"{NAMES['train']}.json"
    frames = json.loads(path.read_text())
    put(path, change(frames))


def test_videos_have_their_official_split_weather_night_and_speed_but_no_boxes(films):
    source = Bdd100kSource(config(), films)
    assert {(unit.split, Path(unit.path).stem) for unit in source.units()} == set(NAMES.items())
    [(clip, frames)], reasons = read(source, source.units()[0])
    assert not reasons
    assert (clip.weather, clip.has_boxes, clip.licence, clip.fps) == ("rain", False, "BDD100K", 30.0)
    assert clip.source == f"videos/train/{NAMES['train']}.mov"
    assert {frame.night for frame in frames} == {0.5}
    np.testing.assert_allclose([frame.speed_mps for frame in frames], np.minimum(np.arange(60) / 3, 10), atol=1e-3)
    assert np.isnan([frame.vehicles for frame in frames]).all()
    [(clip, frames)], _ = read(source, source.units()[2])  # the test split has no labels
    assert clip.weather == ""
    assert np.isnan(frames[0].night)


@pytest.mark.parametrize(
    ("weather", "timeofday", "expected"),
    [
        ("clear", "daytime", ("clear", 0.0)),
        ("overcast", "night", ("cloudy", 1.0)),
        ("partly cloudy", "dawn/dusk", ("cloudy", 0.5)),
        ("snowy", "undefined", ("snow", np.nan)),
        ("foggy", "daytime", ("fog", 0.0)),
        ("undefined", "night", ("", 1.0)),
    ],
)
@pytest.mark.parametrize("form", ["det_20", "scalabel", "2018", "one file a video"])
def test_weather_and_time_of_day_are_found_in_every_release(films, form, weather, timeofday, expected):
    (films / "labels/det_20/det_train.json").unlink()
    frames = attributes("train", weather, timeofday)
    if form == "det_20":
        put(films / "labels/det_20/det_train.json", json.dumps(frames, indent=2))
    elif form == "scalabel":
        put(films / "labels/det_20/det_train.json", {"config": {"attributes": []}, "frames": frames})
    elif form == "2018":
        put(films / "labels/bdd100k_labels_images_train.json", frames)
    else:
        put(films / f"labels/100k/train/{NAMES['train']}.json", {"attributes": frames[1]["attributes"], "frames": []})
    source = Bdd100kSource(config(splits=["train"], min_seconds=0.1), films)
    [(clip, shown)], _ = read(source)
    assert clip.weather == expected[0]
    np.testing.assert_equal(shown[0].night, expected[1])


def test_pictures_come_with_exactly_their_boxes_at_five_a_second(tracks):
    [(clip, frames)], reasons = read(Bdd100kSource(config(form="track"), tracks))
    assert not reasons
    assert (clip.fps, clip.has_boxes, clip.weather, len(frames)) == (5.0, True, "cloudy", 15)
    levels = [frame.image.mean() / 10 for frame in frames]
    np.testing.assert_allclose(levels, np.arange(1, 16), atol=0.3)
    for number, frame in enumerate(frames, start=1):
        [box] = frame.boxes
        assert box.name == "car"
        # 128x72 is cropped to 128x64, so rows 4 to 68 stay
        assert box.xyxy == pytest.approx(((20 + number) / 128, 26 / 64, (60 + number) / 128, 46 / 64))
        assert np.isnan(box.visibility)
    assert {frame.vehicles for frame in frames} == {1.0}
    assert {frame.night for frame in frames} == {1.0}
    np.testing.assert_allclose([frame.speed_mps for frame in frames], 2 * np.arange(15), atol=1e-9)


def test_classes_are_mapped_and_crowds_signs_and_trains_left_out(tracks):
    names = ["car", "truck", "trailer", "bus", "pedestrian", "other person", "bicycle", "motor"]
    left_out = ["train", "other vehicle", "traffic light", "traffic sign"]
    labels = [label(str(i), name, 10 * i, 10, 10 * i + 8, 60) for i, name in enumerate(names)]
    labels += [label(f"x{name}", name, 0, 10, 90, 60) for name in left_out]
    labels += [label("crowd", "pedestrian", 0, 10, 90, 60, crowd=True), {"id": "lane", "category": "car", "poly2d": []}]
    relabel(tracks, lambda frames: {"frames": [frame | {"labels": labels} for frame in frames]})
    [(_, frames)], _ = read(Bdd100kSource(config(form="track"), tracks))
    found = [box.name for box in frames[0].boxes]
    assert found == ["car", "truck", "truck", "bus", "pedestrian", "pedestrian", "cyclist", "cyclist"]


def test_a_rider_and_his_cycle_are_one_cyclist(tracks):
    labels = [
        label("a", "bicycle", 40, 40, 60, 60),
        label("b", "rider", 44, 20, 56, 50),
        label("c", "motorcycle", 90, 40, 110, 60),
        label("d", "rider", 10, 20, 20, 40),
    ]
    relabel(tracks, lambda frames: [frame | {"labels": labels} for frame in frames])
    [(_, frames)], _ = read(Bdd100kSource(config(form="track"), tracks))
    boxes = {box.track: np.array(box.xyxy) * [128, 64, 128, 64] + [0, 4, 0, 4] for box in frames[0].boxes}
    assert {box.name for box in frames[0].boxes} == {"cyclist"}
    assert sorted(boxes) == [1, 2, 3]
    np.testing.assert_allclose(boxes[1], [40, 20, 60, 60], atol=1e-9)
    np.testing.assert_allclose(boxes[3], [10, 20, 20, 40], atol=1e-9)


def test_pictures_without_labels_are_left_out_and_told(tracks):
    relabel(tracks, lambda frames: frames[:10])
    [(_, frames)], reasons = read(Bdd100kSource(config(form="track"), tracks))
    assert len(frames) == 10
    assert f"5 pictures have no labels, {NAMES['train']}-0000011.jpg first" in reasons[0]


def test_a_missing_picture_ends_a_clip_and_the_rest_is_used(tracks):
    (tracks / "images/track/train" / NAMES["train"] / f"{NAMES['train']}-0000006.jpg").unlink()
    clips, reasons = read(Bdd100kSource(config(form="track"), tracks))
    assert [len(frames) for _, frames in clips] == [5, 9]
    assert "0000006.jpg: the file is missing" in reasons[0]


def test_a_video_without_a_label_file_has_unknown_boxes(tracks):
    (tracks / "labels/box_track_20/train" / f"{NAMES['train']}.json").unlink()
    [(clip, frames)], reasons = read(Bdd100kSource(config(form="track"), tracks))
    assert not clip.has_boxes
    assert np.isnan(frames[0].vehicles)
    assert "is missing; the boxes of its clips are unknown" in reasons[0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([label("1", "car", 5, 5, 3, 9)], "0000001.jpg, label 0: x1,y1,x2,y2 are .*expected x1 <= x2"),
        ([label("1", "car", 5, "left", 9, 9)], "0000001.jpg, label 0: y1 is 'left'"),
        (["car"], "0000001.jpg, label 0: expected an object"),
        ({"car": 1}, "0000001.jpg: labels: expected a list"),
    ],
)
def test_damaged_boxes_leave_their_video_out_and_say_where(tracks, labels, message):
    relabel(tracks, lambda frames: [frame | {"labels": labels} for frame in frames])
    with pytest.raises(Refused, match=message):
        read(Bdd100kSource(config(form="track"), tracks))


@pytest.mark.parametrize("content", ["{", "[]", {"startTime": "noon"}, {"startTime": 0, "locations": [{"speed": 1}]}])
def test_speeds_that_cannot_be_read_are_told_and_the_clip_is_made(films, content):
    put(films / "info/100k/train" / f"{NAMES['train']}.json", content)
    [(_, frames)], reasons = read(Bdd100kSource(config(splits=["train"]), films))
    assert len(frames) == 60
    assert np.isnan(frames[0].speed_mps)
    assert "the clips were made without it" in reasons[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "lidar"}, "form is 'lidar'"),
        ({"splits": ["train", "minival"]}, "splits has 'minival'"),
        ({"height": 33}, "33x64.*even"),
        ({"form": "track"}, "holds no images/track"),
    ],
)
def test_mistakes_are_told(films, changes, message):
    with pytest.raises(UserError, match=message):
        Bdd100kSource(config(**changes), films)


def test_attributes_that_are_cut_off_are_told(films):
    path = films / "labels/det_20/det_train.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match=r"det_train.json is not readable JSON"):
        Bdd100kSource(config(), films).units()


def test_the_command_makes_a_store_with_the_official_splits(films, tracks, tmp_path):
    words = ["source=bdd100k", f"root={films.parent}", "workers=1", "bdd100k.height=32", "bdd100k.width=64"]
    main([*words, f"out={tmp_path / 'a'}", "bdd100k.min_seconds=1", "bdd100k.splits=[train,val]"])
    index = ClipStore(tmp_path / "a").index
    assert dict(index["split"]) == {f"{s}_{NAMES[s]}_0000": s for s in ("train", "val")}
    assert set(index["weather"]) == {"rain", "cloudy"}
    main([*words, f"out={tmp_path / 'b'}", "bdd100k.form=track"])
    index = ClipStore(tmp_path / "b").index
    assert list(index["has_boxes"]) == [True]
    assert list(index["boxes"]) == [15]
