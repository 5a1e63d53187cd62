"""`drivesim data export` as a command: mistakes, what is left out, all or nothing, the same bytes each time."""

import hashlib
import json
import shutil

import pytest

from drivesim.data.store import ClipStore


@pytest.fixture
def store(town_store, tmp_path) -> ClipStore:
    """A town that a test may damage."""
    return ClipStore(shutil.copytree(town_store.root, tmp_path / "store"))


def digest(folder) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=kitti"], "format=kitti is unknown; expected one of nuscenes, coco"),
        (["format=coco", "quality=0"], "quality is 0; expected 1..100"),
        (["format=coco", "splits=[training]"], "splits has training; expected some of train, val, test"),
        (["format=coco", "splits=[test]"], "ask for others"),
        (["format=coco", "clips=missing.txt"], "clips=missing.txt cannot be read"),
        (["format=coco", "coco.every=0"], "coco.every is 0; expected 1 or more"),
        (["format=coco", "coco.min_visibility=2"], "coco.min_visibility is 2.0; expected 0..1"),
        (["format=nuscenes", "nuscenes.version=../up"], "nuscenes.version is '../up'; expected the name of a folder"),
        (["format=nuscenes", "nuscenes.version=samples"], "expected the name of a folder"),
        ([], "missing format=..."),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_written(data, town_store, tmp_path, words, message):
    code, _, error = data("export", f"store={town_store.root}", f"out={tmp_path / 'out'}", *words)
    assert code == 2
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_clip_has_is_told(data, town_store, tmp_path):
    (tmp_path / "names.txt").write_text("town_0000_CAM_FRONT\ntown_9999\n")
    names = f"clips={tmp_path / 'names.txt'}"
    code, _, error = data("export", f"store={town_store.root}", f"out={tmp_path / 'out'}", "format=coco", names)
    assert (code, "names 'town_9999', which is not in" in error) == (2, True)


def test_the_names_that_query_writes_can_be_exported(data, town_store, tmp_path):
    names, out = tmp_path / "night.txt", tmp_path / "out"
    assert (
        data("query", f"store={town_store.root}", "where=night > 0.5 and camera == 'CAM_BACK'", f"out={names}")[0] == 0
    )
    code, told, _ = data("export", f"store={town_store.root}", f"out={out}", "format=nuscenes", f"clips={names}")
    assert (code, f"{out}: 1 of 1 clips as nuscenes" in told) == (0, True)
    scenes = json.loads((out / "drivesim.json").read_text())["scenes"]
    assert {name: scene["clips"] for name, scene in scenes.items()} == {"town_0001": {"CAM_BACK": "town_0001_CAM_BACK"}}


@pytest.mark.parametrize("format", ["nuscenes", "coco"])
def test_the_same_store_gives_the_same_bytes(data, town_store, tmp_path, format):
    for out in ("a", "b"):
        words = [
            f"store={town_store.root}",
            f"out={tmp_path / out}",
            f"format={format}",
            "splits=[val]",
            "coco.every=9",
        ]
        assert data("export", *words)[0] == 0
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert len(digest(tmp_path / "a")) > 9


@pytest.mark.parametrize("format", ["nuscenes", "coco"])
def test_a_damaged_video_is_left_out_with_its_reason_and_the_rest_is_exported(data, store, tmp_path, format):
    spoil(store, "town_0000_CAM_BACK")
    out = tmp_path / "out"
    words = [f"store={store.root}", f"out={out}", f"format={format}", "splits=[train]", "coco.every=9"]
    code, told, _ = data("export", *words)
    assert code == 0
    assert "2 of 3 clips" in told
    assert "town_0000_CAM_BACK" in told
    assert set(json.loads((out / "drivesim.json").read_text())["left_out"]) == {"town_0000_CAM_BACK"}
    assert not any("CAM_BACK" in path.name for path in out.rglob("*.jpg"))
    if format == "nuscenes":
        tables = {
            name: json.loads((out / "v1.0-drivesim" / f"{name}.json").read_text()) for name in ("sensor", "sample_data")
        }
        assert [row["channel"] for row in tables["sensor"]] == ["CAM_FRONT", "CAM_FRONT_LEFT"]
        assert not any("CAM_BACK" in row["filename"] for row in tables["sample_data"])


def spoil(store: ClipStore, clip: str) -> None:
    """Overwrite the pictures of a clip; what is around them stays."""
    video = store.video(clip)
    with open(video.shard, "r+b") as file:
        file.seek(video.offset + 200)
        file.write(bytes(video.bytes - 200))


@pytest.mark.parametrize("format", ["nuscenes", "coco"])
def test_clips_whose_boxes_are_unknown_are_no_clips_without_boxes(data, make_store, tmp_path, format):
    store = make_store(tmp_path / "store", [("train", 12, 10)], boxes=False)
    code, _, error = data("export", f"store={store.root}", f"out={tmp_path / 'out'}", f"format={format}")
    assert code == 2
    assert "none of 1 clips can be exported (c0: its boxes are unknown)" in error
    assert not (tmp_path / "out").exists()


def test_boxes_on_the_picture_alone_are_enough_for_coco_and_not_for_nuscenes(data, small_store, tmp_path):
    words = [f"store={small_store.root}", f"out={tmp_path / 'out'}", "splits=[val]"]
    code, _, error = data("export", *words, "format=nuscenes")
    assert (code, "the pose or the intrinsics of its camera are unknown" in error) == (2, True)
    assert data("export", *words, "format=coco")[0] == 0


def test_an_export_is_replaced_only_when_told_and_other_folders_never(data, town_store, tmp_path):
    out, words = tmp_path / "out", [f"store={town_store.root}", "format=coco", "splits=[val]", "coco.every=20"]
    assert data("export", *words, f"out={out}")[0] == 0
    before = digest(out)
    code, _, error = data("export", *words, f"out={out}", "quality=50")
    assert (code, "add overwrite=true" in error, digest(out)) == (2, True, before)
    assert data("export", *words, f"out={out}", "quality=50", "overwrite=true")[0] == 0
    assert digest(out) != before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    code, _, error = data("export", *words, f"out={other}", "overwrite=true")
    assert (code, "holds other files (no drivesim.json)" in error) == (2, True)
    assert (other / "thesis.tex").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]
