"""Shards: what they hold, and that no interruption, loss or late clip changes a byte of them."""

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from data_prep import shards
from data_prep.shards import forget_lost, members, plan
from data_prep.source import Frame, RawClip
from data_prep.writer import merge, write_clip
from drivesim.data.store import ClipStore
from drivesim.data.video import iterate
from drivesim.errors import UserError

CLIPS = {"a": "train", "b.2": "train", "c": "val", "d": "train", "e": "train"}
TWO_CLIPS_MB = 0.012  # the clips made here have 4.5 to 5.5 kB


def frames(name: str) -> list[Frame]:
    rng = np.random.default_rng(list(name.encode()))
    noise = rng.integers(0, 256, (4, 6, 3), np.uint8)
    texture = cv2.resize(noise, (96 + 24, 64), interpolation=cv2.INTER_CUBIC)
    return [Frame(np.ascontiguousarray(texture[:, t : t + 96]), night=0.5) for t in range(4)]


def add(root: Path, *names: str) -> Path:
    for name in names:
        write_clip(root, RawClip(name, f"route {name}", 10.0, "test", "", False, iter(frames(name))), CLIPS[name])
    return root


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A preparation with all clips done and not merged yet."""
    return add(tmp_path_factory.mktemp("parts") / "store", *CLIPS)


@pytest.fixture
def begun(parts, tmp_path) -> Path:
    return shutil.copytree(parts, tmp_path / "begun")


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory) -> Path:
    """A finished store: a and b.2 in the first shard of train, d and e in the second, c in the one of val."""
    root = shutil.copytree(parts, tmp_path_factory.mktemp("whole") / "store")
    merge(root, {}, TWO_CLIPS_MB)
    return root


def contents(root: Path) -> dict[str, bytes]:
    """What a reader of the store may see."""
    kept = [path for path in sorted(root.rglob("*")) if path.is_file() and path.parent.name != "parts"]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in kept}


def test_shards_are_plain_tars_of_videos_and_index_rows(whole):
    held = {}
    for path in sorted((whole / "shards").iterdir()):
        with tarfile.open(path, "r:") as tar:
            held[path.name] = tar.getnames()
            assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}
    assert held == {
        "train-00000.tar": ["a.mp4", "a.json", "b%2E2.mp4", "b%2E2.json"],
        "train-00001.tar": ["d.mp4", "d.json", "e.mp4", "e.json"],
        "val-00000.tar": ["c.mp4", "c.json"],
    }
    assert not (whole / "clips").exists()


def test_the_index_says_where_in_its_shard_a_clip_lies(whole, parts):
    for clip, row in ClipStore(whole).index.iterrows():
        video = (whole / row["shard"]).read_bytes()[row["shard_at"] : row["shard_at"] + row["bytes"]]
        assert video == (parts / "clips" / f"{clip}.mp4").read_bytes()
        assert hashlib.sha256(video).hexdigest() == row["sha256"]


def test_a_clip_reads_alike_from_its_shard_and_from_a_file(whole, parts):
    for clip in CLIPS:
        loose = list(iterate(parts / "clips" / f"{clip}.mp4"))
        np.testing.assert_array_equal(list(iterate(ClipStore(whole).video(clip))), loose)


def test_the_row_beside_a_video_is_strict_json_with_null_for_unknown(whole):
    with tarfile.open(whole / "shards/train-00000.tar") as tar:
        text = tar.extractfile("b%2E2.json").read().decode()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (row["clip"], row["route"], row["frames"], row["night"]) == ("b.2", "route b.2", 4, 0.5)
    assert row["speed_mps"] is None


def test_webdataset_reads_the_shards_as_samples(whole, parts):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed, so its reading is not tried")
    urls = [str(path) for path in sorted((whole / "shards").glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["json"]["clip"] for sample in samples] == ["a", "b.2", "d", "e"]
    for sample in samples:
        assert sample["mp4"] == (parts / "clips" / f"{sample['json']['clip']}.mp4").read_bytes()


def index(sizes: list[int], splits: list[str]) -> pa.Table:
    return pa.table({"split": splits, "bytes": sizes})


def test_shards_are_filled_up_to_the_size_in_the_order_of_the_index():
    splits = ["train", "val", "train", "train", "train", "val"]
    planned = list(plan(index([40, 10, 60, 30, 200, 10], splits), 100))
    assert planned == [
        ("shards/train-00000.tar", [0, 2]),
        ("shards/train-00001.tar", [3]),
        ("shards/train-00002.tar", [4]),  # larger than a shard: by itself
        ("shards/val-00000.tar", [1, 5]),
    ]


class Killed(BaseException):
    """The process ends here."""


def test_stopped_at_any_step_and_run_again_the_bytes_are_the_same(whole, parts, tmp_path, monkeypatch):
    room = sum(path.stat().st_size for path in (parts / "clips").iterdir())
    largest = max(path.stat().st_size for path in (whole / "shards").iterdir())
    unlink, replace = Path.unlink, os.replace
    stops = 0
    while True:  # once for each change on the disk that packing makes
        root, steps = shutil.copytree(parts, tmp_path / str(stops)), iter(range(stops))

        def step(change, *args, root=root, steps=steps, **kwargs):
            used = sum(path.stat().st_size for name in ("clips", "shards") for path in root.glob(f"{name}/*"))
            assert used <= room + largest + 4096 * len(CLIPS)
            if next(steps, None) is None:
                raise Killed
            return change(*args, **kwargs)

        monkeypatch.setattr(Path, "unlink", lambda *args, **kwargs: step(unlink, *args, **kwargs))
        monkeypatch.setattr(os, "replace", lambda *args, **kwargs: step(replace, *args, **kwargs))
        try:
            merge(root, {}, TWO_CLIPS_MB)
            break
        except Killed:
            monkeypatch.undo()
            if (root / "store.json").exists():  # then nothing may be left to do
                assert contents(root) == contents(whole)
        merge(root, {}, TWO_CLIPS_MB)
        assert contents(root) == contents(whole)
        stops += 1
    monkeypatch.undo()
    assert stops > 10
    assert contents(root) == contents(whole)


def test_a_clip_that_comes_late_moves_the_others_without_losing_any(whole, tmp_path):
    root = add(tmp_path / "late", "a", "d", "e", "c")
    merge(root, {}, TWO_CLIPS_MB)
    assert [file.stem for file in members(root / "shards/train-00000.tar")] == ["a", "d"]
    (root / "store.json").unlink()
    add(root, "b.2")
    merge(root, {}, TWO_CLIPS_MB)
    assert contents(root) == contents(whole)


def test_shards_that_stand_are_not_written_again(whole, tmp_path):
    root = shutil.copytree(whole, tmp_path / "store")
    before = {path: path.stat().st_mtime_ns for path in (root / "shards").iterdir()}
    merge(root, {}, TWO_CLIPS_MB)
    assert {path: path.stat().st_mtime_ns for path in (root / "shards").iterdir()} == before


def test_what_a_lost_or_cut_shard_held_is_made_again_and_the_rest_is_kept(whole, tmp_path):
    root = shutil.copytree(whole, tmp_path / "store")
    for clip in CLIPS:
        (root / "parts" / f"{clip}.unit.json").write_text(json.dumps({"clips": [clip], "dropped": []}))
    (root / "shards/val-00000.tar").unlink()
    os.truncate(root / "shards/train-00000.tar", ClipStore(root).video("b.2").offset + 100)
    forget_lost(root)
    for suffix in ("index.parquet", "unit.json"):
        known = {path.name.removesuffix(f".{suffix}") for path in (root / "parts").glob(f"*.{suffix}")}
        assert known == {"a", "d", "e"}
    add(root, "b.2", "c")
    merge(root, {}, TWO_CLIPS_MB)
    assert contents(root) == contents(whole)


def test_a_unit_whose_clip_was_deleted_is_done_again(begun):
    for unit, clips in {"one": ["a", "d"], "two": ["c"], "none": []}.items():
        (begun / "parts" / f"{unit}.unit.json").write_text(json.dumps({"clips": clips, "dropped": []}))
    (begun / "parts/d.index.parquet").unlink()
    forget_lost(begun)
    assert {path.name for path in (begun / "parts").glob("*.unit.json")} == {"two.unit.json", "none.unit.json"}
    assert (begun / "parts/a.index.parquet").exists()


def test_a_damaged_shard_gives_no_clip_a_wrong_name(whole, tmp_path):
    path = tmp_path / "train-00000.tar"
    content = bytearray((whole / "shards" / path.name).read_bytes())
    for at in range(0, len(content), 512):
        damaged = content.copy()
        damaged[at] ^= 1
        path.write_bytes(damaged)
        assert {file.stem for file in members(path)} <= {"a", "b.2"}
    path.write_bytes(b"no tar at all")
    assert list(members(path)) == []


def test_names_in_a_shard_never_lead_out_of_the_store(begun):
    (begun / "shards").mkdir()
    with tarfile.open(begun / "shards/train-00009.tar", "w") as tar:
        for name in ("../../evil.mp4", "/evil.mp4", "%2E%2E/evil.mp4", "a/../../evil.mp4"):
            entry = tarfile.TarInfo(name)
            entry.size = 0
            tar.addfile(entry)
    before = {path for path in begun.parent.rglob("*") if "evil" in path.name}
    merge(begun, {}, TWO_CLIPS_MB)
    assert {path for path in begun.parent.rglob("*") if "evil" in path.name} == before == set()
    assert not (begun / "shards/train-00009.tar").exists()


def test_nothing_prepared_gives_an_index_without_rows(tmp_path):
    merge(tmp_path, {})
    assert ClipStore(tmp_path).clips() == []


def test_a_full_disk_keeps_every_clip(begun, whole, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.tarfile.TarFile, "addfile", full)
    with pytest.raises(UserError, match=r"disk full while writing .*train-00000.tar"):
        merge(begun, {}, TWO_CLIPS_MB)
    monkeypatch.undo()
    assert len(list((begun / "clips").iterdir())) == len(CLIPS)
    merge(begun, {}, TWO_CLIPS_MB)
    assert contents(begun) == contents(whole)
