"""`drivesim export` as a command: labels equal to the asked ones in every format, the check, mistakes."""

import csv
import errno
import hashlib
import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import BoxVisibility
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from drivesim.clip import CLASSES, SOLID
from drivesim.data.store import ClipStore, ego_motion
from drivesim.data.video import read_window
from eval.layout import CarFinder


@pytest.fixture(scope="module")
def videos(make_generated, tmp_path_factory) -> Path:
    """a.mp4 shows all it was asked for, the car is missing in second 1 of b.mp4; no layout lies beside c.mp4.

    Not to be changed by a test.
    """
    folder = tmp_path_factory.mktemp("videos")
    make_generated(folder / "a.mp4", 40)
    make_generated(folder / "b.mp4", 40, hidden=range(10, 20))
    Path(f"{make_generated(folder / 'c.mp4', 10)}.layout.json").unlink()
    return folder


def digest(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_a_store_holds_what_was_asked_for_and_where_it_comes_from(export, videos, asked, tmp_path):
    code, told, _ = export(f"videos={videos}", "format=store", f"out={tmp_path / 'out'}", "licence=mine")
    assert code == 0
    assert "2 clips, 8.0 s with 160 boxes, of 3 videos, as store" in told
    assert "c.mp4: has no c.mp4.layout.json beside it" in told
    store, layout = ClipStore(tmp_path / "out"), asked(40)
    row = store.row("a_0000")
    assert (row.synthetic, row.route, row.source, row.weather, row.licence) == (True, "a", "a.mp4", "rain", "mine")
    assert (row.night, row.crowdedness, row.speed_mps, row.has_boxes) == (1, 1, 8, True)
    origins = store.table("index").set_index("clip")["provenance"]
    assert json.loads(origins["a_0000"])["bundle_sha256"] == "ab" * 32
    read = store.layout("a_0000", slots=3)
    for t in range(40):
        slots = [read.tracks[t].tolist().index(track) for track in (3, 7)]
        assert read.boxes[t, slots].equal(layout.boxes[t, :2])
        assert read.solids[t, slots].equal(layout.solids[t, :2])
        assert read.classes[t, slots].equal(layout.classes[t, :2])
    travel, heading = ego_motion(store.frames("a_0000"))
    np.testing.assert_allclose(travel, layout.travel, atol=1e-5)
    np.testing.assert_allclose(heading, layout.heading, atol=1e-6)
    car = store.boxes("a_0000").query("track == 3")
    np.testing.assert_allclose(car[["x_m", "y_m"]], [[-2.0, 0.8]] * 40, atol=1e-5)
    original = read_window(videos / "a.mp4", 5, 1)[0].astype(float)
    assert np.abs(read_window(store.video("a_0000"), 5, 1)[0] - original).mean() < 3
    with store.video("a_0000").open() as file, av.open(file) as container:
        assert container.metadata["synthetic"] == "true"
        assert "made by a generative model" in container.metadata["comment"]


def test_windows_that_fail_are_flagged_in_every_table(export, videos, tmp_path):
    code, told, _ = export(f"videos={videos}", "format=store", f"out={tmp_path / 'out'}", "min_recall=0.6")
    assert code == 0
    assert "60 of 64 asked boxes found (94%); 1 of 8 windows below 60%, flagged label_ok=false" in told
    store = ClipStore(tmp_path / "out")
    assert store.index["label_ok"].to_dict() == {"a_0000": True, "b_0000": False}
    assert store.index["label_recall"].tolist() == [1.0, 0.875]
    assert store.query("synthetic and label_ok").index.tolist() == ["a_0000"]
    frames = store.frames("b_0000")
    assert frames["label_recall"].tolist() == [1.0] * 10 + [0.5] * 10 + [1.0] * 20
    assert frames["label_ok"].tolist() == [True] * 10 + [False] * 10 + [True] * 20
    with (tmp_path / "out" / "label_check.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label_ok"] for row in rows] == ["true"] * 5 + ["false"] + ["true"] * 2
    assert rows[5] | {"asked": "8", "found": "4", "start_s": "1.000"} == rows[5]
    sheet = cv2.imread(str(tmp_path / "out" / "label_check.png"))
    assert sheet.shape[1] == 384 + 8  # the only window that fails


def test_windows_that_fail_are_left_out_when_told(export, videos, tmp_path):
    words = [f"videos={videos}", "format=store", f"out={tmp_path / 'out'}", "min_recall=0.6", "drop_failed=true"]
    code, told, _ = export(*words)
    assert code == 0
    assert "1 of 8 windows below 60%, left out" in told
    index = ClipStore(tmp_path / "out").index
    assert index["frames"].to_dict() == {"a_0000": 40, "b_0000": 10, "b_0001": 20}
    assert index["start_s"].tolist() == [0, 0, 2]
    assert index["label_ok"].all()


def test_the_devkit_reads_boxes_equal_to_those_asked_for(export, videos, asked, tmp_path):
    out, layout = tmp_path / "out", asked(40)
    code, _, error = export(f"videos={videos}", "format=nuscenes", f"out={out}", "min_recall=0.6")
    assert code == 0, error
    nusc = NuScenes("v1.0-drivesim", str(out), verbose=False)
    assert [scene["name"] for scene in nusc.scene] == ["a", "b"]
    assert all("made by a generative model" in scene["description"] for scene in nusc.scene)
    compared = 0
    for sample in nusc.sample:
        record = nusc.get("sample_data", sample["data"]["CAM_FRONT"])
        frame = round((sample["timestamp"] - nusc.get("sample", first_of(nusc, sample))["timestamp"]) / 1e5)
        _, boxes, _ = nusc.get_sample_data(record["token"], BoxVisibility.NONE)
        for slot, track in enumerate((3, 7)):
            depth, length, width, height, _ = layout.solids[frame, slot].tolist()
            (box,) = (box for box in boxes if abs(box.wlh[2] - height) < 0.05)
            assert box.name == ("vehicle.car" if track == 3 else "human.pedestrian.adult")
            np.testing.assert_allclose(box.wlh, [width, length, height], rtol=1e-6)
            assert box.center[2] == pytest.approx(depth, abs=1e-5)
            compared += 1
        scene = nusc.get("scene", sample["scene_token"])["name"]
        fails = scene == "b" and 10 <= frame < 20
        assert (sample["synthetic"], sample["label_ok"], sample["label_recall"]) == (
            True,
            not fails,
            0.5 if fails else 1,
        )
    assert compared == 2 * 2 * 8
    notes = json.loads((out / "drivesim.json").read_text())
    assert notes["synthetic"] is True
    assert notes["provenance"]["a_0000"]["seed"] == 4
    assert not (out / ".store").exists()


def first_of(nusc: NuScenes, sample: dict) -> str:
    return nusc.get("scene", sample["scene_token"])["first_sample_token"]


def test_pycocotools_scores_the_boxes_that_were_asked_for_as_perfect(export, videos, asked, tmp_path):
    out, layout = tmp_path / "out", asked(40)
    code, _, error = export(f"videos={videos}", "format=coco", f"out={out}", "min_recall=0.6")
    assert code == 0, error
    truth = COCO(str(out / "annotations.json"))
    answers = []
    for image in truth.dataset["images"]:
        assert image["synthetic"] is True
        assert image["label_ok"] is not (image["clip"] == "b_0000" and 10 <= image["frame"] < 20)
        for slot in range(2):
            x1, y1, x2, y2 = layout.boxes[image["frame"], slot].double().numpy() * [128, 64, 128, 64]
            category = int(layout.classes[image["frame"], slot]) + 1
            bbox = [x1, y1, x2 - x1, y2 - y1]
            answers.append({"image_id": image["id"], "category_id": category, "bbox": bbox, "score": 1.0})
    boxes = [sorted(row["bbox"] for row in rows) for rows in (truth.dataset["annotations"], answers)]
    np.testing.assert_allclose(*boxes, atol=1e-9)
    score = COCOeval(truth, truth.loadRes(answers), "bbox")
    score.evaluate()
    score.accumulate()
    score.summarize()
    assert score.stats[0] == pytest.approx(1.0)
    assert {CLASSES[row["category_id"] - 1] for row in truth.dataset["annotations"]} == {"car", "pedestrian"}


@pytest.mark.parametrize("format", ["store", "coco"])
def test_the_same_videos_give_the_same_bytes(export, videos, tmp_path, format):
    for out in ("one", "other"):
        assert export(f"videos={videos}", f"format={format}", f"out={tmp_path / out}")[0] == 0
    assert digest(tmp_path / "one") == digest(tmp_path / "other")


def test_boxes_without_solids_keep_their_outlines_and_are_no_boxes_in_space(export, make_generated, asked, tmp_path):
    layout = asked(10)
    layout.solids[:] = float("nan")
    make_generated(tmp_path / "in" / "a.mp4", 10, layout=layout)
    words = [f"videos={tmp_path / 'in'}", f"out={tmp_path / 'out'}"]
    assert export(*words, "format=store")[0] == 0
    boxes = ClipStore(tmp_path / "out").boxes("a_0000")
    assert boxes[["x_m", "y_m", *SOLID]].isna().all(axis=None)
    assert len(boxes) == 20
    code, _, error = export(f"videos={tmp_path / 'in'}", f"out={tmp_path / 'nusc'}", "format=nuscenes")
    assert (code, "known on the picture only, not in space" in error) == (2, True)
    assert not (tmp_path / "nusc").exists()


def test_a_layout_without_a_lens_is_seen_through_a_nominal_one(export, make_generated, tmp_path):
    make_generated(tmp_path / "in" / "a.mp4", 10, lens=None)
    words = [f"videos={tmp_path / 'in'}", f"out={tmp_path / 'out'}", "format=store", "lens.fov=90", "lens.horizon=0.4"]
    assert export(*words)[0] == 0
    row = ClipStore(tmp_path / "out").frames("a_0000").iloc[0]
    np.testing.assert_allclose([row.fx, row.fy, row.cx, row.cy], [64, 64, 64, 25.6])


def test_routes_are_shared_out_and_futures_of_one_start_stay_together(export, make_generated, tmp_path):
    for name in ("a_0", "a_1", "b_0", "b_1", "c_0"):
        make_generated(tmp_path / "in" / f"{name}.mp4", 10)
    words = [f"videos={tmp_path / 'in'}", "format=store"]
    assert export(*words, f"out={tmp_path / 'out'}", "val_share=0.3", "test_share=0.3")[0] == 0
    index = ClipStore(tmp_path / "out").index
    assert index.groupby("route")["split"].nunique().to_dict() == {"a": 1, "b": 1, "c": 1}
    assert set(index["split"]) == {"train", "val", "test"}
    assert export(*words, f"out={tmp_path / 'held'}", "split=test")[0] == 0
    assert set(ClipStore(tmp_path / "held").index["split"]) == {"test"}


def test_without_a_detector_nothing_is_flagged_and_that_is_said(export, videos, tmp_path):
    words = [f"videos={videos}", "format=store", f"out={tmp_path / 'out'}", "detector=none"]
    code, told, _ = export(*words, looking=False)
    assert code == 0
    assert "label check: none was asked for" in told
    index = ClipStore(tmp_path / "out").index
    assert index["label_ok"].all()
    assert index["label_recall"].isna().all()
    assert not (tmp_path / "out" / "label_check.csv").exists()


def test_the_car_finder_looks_where_no_detector_is_given(export, videos, tmp_path, monkeypatch):
    """With a finder that sees the whole picture as one car, no box of a car is found."""
    finder = CarFinder()
    finder.recall, finder.precision = 0.8, 0.7
    finder.save(tmp_path / "finder.safetensors")
    everything = np.array([[0.0, 0, 1, 1]]), np.array([0.9]), np.zeros((32, 64))
    monkeypatch.setattr(CarFinder, "look", lambda self, frame: everything)
    words = [f"videos={videos}", "format=store", f"out={tmp_path / 'out'}", f"finder={tmp_path / 'finder.safetensors'}"]
    code, told, _ = export(*words, looking=False)
    assert code == 0
    assert "car finder, which finds 80% of the vehicles of real frames" in told
    assert "0 of 32 asked boxes found (0%); 8 of 8 windows below 50%" in told  # pedestrians are not looked for


def test_a_damaged_video_is_left_out_with_its_reason_and_the_rest_is_exported(export, make_generated, tmp_path):
    for name in ("a", "b"):
        make_generated(tmp_path / "in" / f"{name}.mp4", 20)
    content = bytearray((tmp_path / "in" / "b.mp4").read_bytes())
    content[-(len(content) // 5) :] = bytes(len(content) // 5)
    (tmp_path / "in" / "b.mp4").write_bytes(content)
    assert export(f"videos={tmp_path / 'in'}", "format=store", f"out={tmp_path / 'out'}")[0] == 0
    (left,) = json.loads((tmp_path / "out" / "dropped.json").read_text())
    assert left["unit"] == "b.mp4"
    assert "has 20 frames, of which" in left["reason"]
    assert ClipStore(tmp_path / "out").clips() == ["a_0000"]


def test_a_detector_that_answers_nonsense_ends_the_export(export, videos, tmp_path):
    torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "d.pt"))
    words = [f"videos={videos}", "format=store", f"out={tmp_path / 'out'}", f"detector={tmp_path / 'd.pt'}"]
    code, _, error = export(*words, looking=False)
    assert (code, "d.pt answers Tensor to 4 frames; expected boxes" in error) == (2, True)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_ends_the_export_in_one_line(export, videos, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("data_prep.writer.encode", full)
    code, _, error = export(f"videos={videos}", "format=store", f"out={tmp_path / 'out'}")
    assert (code, "disk full while writing" in error) == (2, True)
    assert list(tmp_path.iterdir()) == []


MISTAKES = {
    "format": (["format=kitti"], "format=kitti is unknown; expected one of store, nuscenes, coco"),
    "split": (["split=all"], "split=all is unknown; expected one of train, val, test"),
    "route": (["route_by=day"], "route_by=day is unknown; expected one of name, file, folder"),
    "shares": (["val_share=0.6", "test_share=0.6"], "val_share is 0.6, test_share 0.6; expected 0 or more"),
    "quality": (["quality=0"], "quality is 0; expected 1..100"),
    "recall": (["min_recall=50"], "min_recall is 50.0; expected 0..1"),
    "window": (["window_seconds=0"], "window_seconds is 0.0"),
    "seconds": (["min_seconds=30"], "expected 0 < min_seconds <= clip_seconds"),
    "lens": (["lens.fov=200"], "lens.fov is 200.0"),
    "no videos": (["videos=nothing/*.mp4"], "videos=nothing/*.mp4 names no .mp4 file"),
    "label": (["detector_labels={1: tram}"], "detector_labels names 'tram'; expected some of car, truck"),
    "detector": (["detector=missing.pt"], "detector=missing.pt does not exist"),
    "drop": (["detector=none", "drop_failed=true"], "drop_failed=true needs a label check"),
    "finder": (["detector=default"], "the label check needs real=STORE"),
    "all fail": (
        ["min_recall=1", "drop_failed=true", "smallest=0", "detector_score=1"],
        "none of 3 videos can be exported",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(export, videos, tmp_path, case):
    words, message = MISTAKES[case]
    given = {word.partition("=")[0]: word for word in (f"videos={videos}", "format=store", *words)}
    code, _, error = export(*given.values(), f"out={tmp_path / 'out'}")
    assert code == 2
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_replaced_only_when_told_and_other_folders_never(export, videos, tmp_path):
    out = tmp_path / "out"
    words = [f"videos={videos}", "format=store", f"out={out}"]
    assert export(*words)[0] == 0
    before = digest(out)
    code, _, error = export(*words, "clip_seconds=2")
    assert (code, "add overwrite=true" in error, digest(out)) == (2, True, before)
    code, _, error = export(*words[::2], "format=coco", "overwrite=true")
    assert (code, "holds other files (no drivesim.json)" in error, digest(out)) == (2, True, before)
    assert export(*words, "clip_seconds=2", "overwrite=true")[0] == 0
    assert len(ClipStore(out).index) == 4
