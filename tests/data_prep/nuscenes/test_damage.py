"""Damaged data sets: what is wrong is named, and the rest is prepared."""

import json
import re

import numpy as np
import pytest

from data_prep.nuscenes.source import NuscenesConfig, NuscenesSource
from data_prep.prepare import main
from data_prep.source import Dropped, Refused
from drivesim.data.store import ClipStore
from drivesim.errors import UserError

BAD, GOOD = "scene-0061", "scene-0103"
CAMERAS = ["CAM_FRONT", "CAM_BACK"]


def outcome(tree) -> dict[str, str]:
    """Unit -> why there is nothing of it, or how many frames there are; under the version, what is nobody's."""
    tree.save()
    config = NuscenesConfig(height=80, width=160, min_seconds=0.1, cameras=CAMERAS)
    source, found = NuscenesSource(config, tree.root), {}
    for unit in source.units():
        frames, reasons = 0, []
        try:
            for piece in source.clips(unit):
                if isinstance(piece, Dropped):
                    found[piece.unit] = piece.reason
                else:
                    frames += len(list(piece.frames))
        except Refused as reason:
            reasons.append(str(reason))
        found.setdefault(unit.name, "; ".join(reasons) or f"{frames} frames")
    return found


def key(tree, table, number=1):
    """A row of the damaged scene."""
    if table in ("sample_data", "ego_pose"):
        picture = tree.pictures(BAD, "CAM_FRONT")[number]
        return tree.find(table, token=picture["token"])[0]
    scene = tree.scene(BAD)
    samples = tree.find("sample", scene_token=scene["token"])
    if table == "sample":
        return samples[number]
    if table == "sample_annotation":
        return tree.find("sample_annotation", sample_token=samples[number]["token"])[0]
    if table == "instance":
        return tree.find("instance", token=key(tree, "sample_annotation")["instance_token"])[0]
    if table == "calibrated_sensor":
        return tree.find("calibrated_sensor", token=tree.pictures(BAD, "CAM_FRONT")[0]["calibrated_sensor_token"])[0]
    return scene if table == "scene" else tree.find("log", token=scene["log_token"])[0]


@pytest.mark.parametrize(
    ("table", "name", "value", "words", "camera_only"),
    [
        ("sample_data", "ego_pose_token", "lost", "ego_pose_token 'lost' is not in ego_pose", True),
        ("sample_data", "calibrated_sensor_token", "lost", "'lost' is not in calibrated_sensor", True),
        ("sample_data", "sample_token", "lost", "sample_token 'lost' is not in sample", True),
        ("sample_data", "sample_token", ["a"], "sample_token is .*, expected text", True),
        ("sample_data", "next", "lost", "next 'lost' is not in sample_data", True),
        ("sample_data", "prev", "", "prev is '', but '.*' leads here", True),
        ("sample_data", "filename", "../secret.jpg", r"filename is '../secret.jpg', expected a path within root", True),
        ("sample_data", "filename", "/etc/passwd", "filename is '/etc/passwd', expected a path within root", True),
        ("sample_data", "filename", "samples/\0.jpg", r"filename is 'samples/.x00.jpg', expected a path", True),
        ("sample_data", "filename", "", "filename is '', expected a path within root", True),
        ("sample_data", "timestamp", float("nan"), "timestamp is 'nan', expected a time stamp", True),
        ("ego_pose", "translation", [1, 2], r"translation is '\[1, 2\]', expected three numbers", True),
        ("ego_pose", "rotation", [0, 0, 0, 0], "expected a quaternion", True),
        ("ego_pose", "rotation", [10**400, 0, 0, 0], "expected a quaternion", True),
        ("calibrated_sensor", "sensor_token", "lost", "sensor_token 'lost' is not in sensor", True),
        ("calibrated_sensor", "camera_intrinsic", [], "camera_intrinsic is empty", True),
        ("calibrated_sensor", "camera_intrinsic", [[1, 0, 0]], "expected 3x3 numbers", True),
        ("sample_annotation", "instance_token", "lost", "instance_token 'lost' is not in instance", False),
        ("sample_annotation", "visibility_token", "9", "visibility_token '9' is not in visibility", False),
        ("sample_annotation", "sample_token", "lost", "sample_token 'lost' is not in sample", False),
        ("sample_annotation", "size", [1, -2, 3], "expected three numbers above 0", False),
        ("instance", "category_token", "lost", "category_token 'lost' is not in category", False),
        ("sample", "scene_token", "lost", "scene_token 'lost' is not in scene", False),
        ("sample", "next", "lost", "next 'lost' is not in sample", False),
        ("scene", "log_token", "lost", "log_token 'lost' is not in log", False),
        ("log", "location", None, "location is 'None', expected text", False),
    ],
)
def test_a_damaged_row_drops_what_needs_it_and_is_named(tree, table, name, value, words, camera_only):
    row = key(tree, table)
    row[name] = value
    found = outcome(tree)
    assert re.search(words, found[f"{BAD}_CAM_FRONT"]), found
    assert f"{table} {row['token']}" in found[f"{BAD}_CAM_FRONT"]
    if camera_only:
        assert found.pop(f"{BAD}_CAM_BACK") == "13 frames"
    else:
        assert re.search(words, found.pop(f"{BAD}_CAM_BACK"))
    assert found.pop(f"{BAD}_CAM_FRONT")
    assert found == {f"{GOOD}_{camera}": "13 frames" for camera in CAMERAS}


def test_a_row_without_a_field_is_named(tree):
    row = key(tree, "sample_data")
    del row["ego_pose_token"]
    assert outcome(tree)[f"{BAD}_CAM_FRONT"] == f"sample_data {row['token']}: ego_pose_token is missing"


def test_two_rows_with_one_token_are_named(tree):
    row = key(tree, "sample_data")
    tree.tables["sample_data"].append(row | {"timestamp": 5})
    assert outcome(tree)[f"{BAD}_CAM_FRONT"] == f"sample_data {row['token']}: two rows have this token"


def test_a_camera_without_calibration_drops_alone(tree):
    lost = key(tree, "calibrated_sensor")
    tree.tables["calibrated_sensor"].remove(lost)
    found = outcome(tree)
    assert f"calibrated_sensor_token '{lost['token']}' is not in calibrated_sensor; and 12 more" in found.pop(
        f"{BAD}_CAM_FRONT"
    )
    assert set(found.values()) == {"13 frames"}


def test_a_scene_without_pictures_of_a_camera_is_told(tree):
    lost = {row["token"] for row in tree.pictures(BAD, "CAM_FRONT")}
    tree.tables["sample_data"] = [row for row in tree.tables["sample_data"] if row["token"] not in lost]
    found = outcome(tree)
    assert found[f"{BAD}_CAM_FRONT"] == "sample_data has no picture of CAM_FRONT in this scene"
    assert found[f"{BAD}_CAM_BACK"] == "13 frames"


@pytest.mark.parametrize(("step", "words"), [(0, "repeats"), (-100_000, "goes back from")])
def test_times_that_do_not_rise_drop_the_camera(tree, step, words):
    rows = tree.pictures(BAD, "CAM_FRONT")
    rows[4]["timestamp"] = rows[3]["timestamp"] + step
    found = outcome(tree)
    assert f"sample_data {rows[4]['token']}: the time stamp" in found[f"{BAD}_CAM_FRONT"]
    assert words in found[f"{BAD}_CAM_FRONT"]
    assert found[f"{BAD}_CAM_BACK"] == "13 frames"


def test_key_frames_at_the_same_time_drop_the_scene(tree):
    key(tree, "sample", 2)["timestamp"] = key(tree, "sample", 1)["timestamp"]
    found = outcome(tree)
    assert f"sample {key(tree, 'sample', 2)['token']}: the time stamp" in found[f"{BAD}_CAM_BACK"]
    assert found[f"{GOOD}_CAM_BACK"] == "13 frames"


def test_links_in_a_circle_are_told(tree):
    rows = tree.pictures(BAD, "CAM_FRONT")
    rows[-1]["next"] = rows[3]["token"]
    assert "do not join the 13 rows of the scene" in outcome(tree)[f"{BAD}_CAM_FRONT"]


def test_what_belongs_to_no_scene_is_told_once(tree):
    row = key(tree, "sample_annotation") | {"token": "alone", "sample_token": "lost", "instance_token": "gone"}
    tree.tables["sample_annotation"].append(row)
    found = outcome(tree)
    assert found.pop("v1.0-mini") == "sample_annotation alone: sample_token 'lost' is not in sample"
    assert set(found.values()) == {"13 frames"}


def test_a_missing_picture_is_named_and_the_others_are_used(tree):
    row = tree.pictures(BAD, "CAM_FRONT")[6]
    (tree.root / row["filename"]).unlink()
    assert re.search(rf"{row['filename']}: the file is missing", outcome(tree)[f"{BAD}_CAM_FRONT_0000"])


def test_a_picture_with_an_impossible_name_is_named_and_the_others_are_used(tree):
    tree.find("sample_data", token=tree.pictures(BAD, "CAM_FRONT")[6]["token"])[0]["filename"] = "x" * 300
    assert "x" * 300 in outcome(tree)[f"{BAD}_CAM_FRONT_0000"]


def test_a_picture_that_is_cut_off_is_named(tree):
    file = tree.root / tree.pictures(BAD, "CAM_FRONT")[6]["filename"]
    file.write_bytes(file.read_bytes()[:200])
    assert file.name in outcome(tree)[f"{BAD}_CAM_FRONT_0000"]


def test_where_most_pictures_are_missing_the_archive_was_not_unpacked(tree):
    for row in tree.pictures(BAD, "CAM_FRONT"):
        if not row["is_key_frame"]:
            (tree.root / row["filename"]).unlink()
    reason = outcome(tree)[f"{BAD}_CAM_FRONT"]
    assert re.match(r"10 of 13 pictures are missing, sweeps/.* first; unpack .* or add nuscenes.sweeps=false", reason)


def test_a_picture_of_another_size_than_its_row_says_is_refused(tree):
    row = key(tree, "sample_data")
    row["width"] = 320
    config = NuscenesConfig(height=80, width=160, min_seconds=0.1)
    source = NuscenesSource(config, tree.save())
    clip = next(source.clips(source.units()[0]))
    with pytest.raises(Refused, match=rf"{row['filename']} is 160x90, but sample_data {row['token']} says 320x90"):
        list(clip.frames)


def test_links_within_the_root_are_followed(tree, tmp_path):
    (tree.root / "samples").rename(tmp_path / "disk")
    (tree.root / "samples").symlink_to(tmp_path / "disk")
    assert set(outcome(tree).values()) == {"13 frames"}


@pytest.mark.parametrize("table", ["sample_data", "scene", "map", "attribute"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is missing; .*v1.0-mini must hold the 13 tables"),
        ("", "is not readable .*begin with"),
        ('[{"token": "a"', "is not readable .*begin with"),
    ],
)
def test_a_table_that_is_missing_or_cut_off_ends_the_run_before_it_begins(tree, tmp_path, table, text, words):
    file = tree.root / "v1.0-mini" / f"{table}.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(UserError, match=f"{table}.json {words}"):
        main(["source=nuscenes", f"root={tree.root}", f"out={tmp_path / 'store'}"])
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("text", ['[{"token": ]', "[3]", '[{"name": "no token"}]', "[" * 5000 + "]", '["\\ud800]'])
def test_a_table_that_is_no_list_of_rows_is_named(tree, text):
    (tree.root / "v1.0-mini" / "ego_pose.json").write_text(text)
    source = NuscenesSource(NuscenesConfig(), tree.root)
    with pytest.raises(UserError, match=r"ego_pose.json is not readable .*; expected a JSON list of rows"):
        list(source.clips(source.units()[0]))


def test_tables_need_not_be_indented_nor_small(tree):
    for name, rows in tree.tables.items():
        text = json.dumps([row | {"padding": "x" * 300_000 if name == "sample" else ""} for row in rows])
        (tree.root / "v1.0-mini" / f"{name}.json").write_text(text)
    source = NuscenesSource(NuscenesConfig(height=80, width=160, min_seconds=0.1), tree.root)
    clip = next(source.clips(source.units()[0]))
    assert len(list(clip.frames)) == 13


def test_the_tables_of_other_tasks_are_not_needed(tree):
    for name in ("lidarseg", "panoptic", "image_annotations"):
        (tree.root / "v1.0-mini" / f"{name}.json").write_text("[{]")
    (tree.root / "maps" / "town.png").unlink()
    assert set(outcome(tree).values()) == {"13 frames"}


def test_damaged_extras_are_told_and_the_drive_is_prepared(tree, tmp_path):
    (tree.root / "can_bus").mkdir()
    (tree.root / "can_bus" / f"{BAD}_pose.json").write_text("{")
    (tree.root / "maps" / "expansion").mkdir()
    (tree.root / "maps" / "expansion" / "singapore-onenorth.json").write_text("{")
    for row in tree.pictures(GOOD, "CAM_FRONT"):
        (tree.root / row["filename"]).unlink()
    options = ["nuscenes.height=80", "nuscenes.width=160", "nuscenes.min_seconds=0.5", "workers=1"]
    main(["source=nuscenes", f"root={tree.root}", f"out={tmp_path / 'store'}", *options])
    store = ClipStore(tmp_path / "store")
    assert list(store.index.index) == [f"{BAD}_CAM_FRONT_0000"]
    np.testing.assert_allclose(store.frames(f"{BAD}_CAM_FRONT_0000")["speed_mps"], 8.0, rtol=1e-3)
    reasons = [piece["reason"] for piece in json.loads((tmp_path / "store" / "dropped.json").read_text())]
    assert len(reasons) == 3
    assert any("scene-0061_pose.json is not readable" in reason for reason in reasons)
    assert any("no road map: singapore-onenorth.json" in reason for reason in reasons)
    assert any("13 of 13 pictures are missing" in reason for reason in reasons)
