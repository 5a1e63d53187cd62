"""Several stores as one: names, tables, shards, and what cannot be merged."""

import hashlib
import json
import os
import shutil
import tarfile
from importlib.metadata import EntryPoint
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest

from data_prep import merge as merging
from data_prep.merge import main
from data_prep.source import Box, Frame, MapLayer, RawClip
from data_prep.writer import merge, write_clip
from drivesim import cli
from drivesim.data.store import ClipStore
from drivesim.data.video import read_window
from drivesim.errors import UserError


def make(root: Path, clips: dict[str, tuple[str, str]], seed: int, shard_mb: float = 1.0) -> ClipStore:
    """clip -> (route, split); each of 5 frames with a box in every second one."""
    rng = np.random.default_rng(seed)
    for name, (route, split) in clips.items():
        pictures = np.repeat(rng.integers(0, 256, (5, 4, 8, 3), np.uint8), 8, 1).repeat(8, 2)
        box = [Box(seed, "car", (0.1, 0.2, 0.3, 0.4), 0.9)]
        frames = [Frame(picture, box if i % 2 else [], speed_mps=float(seed)) for i, picture in enumerate(pictures)]
        maps = [MapLayer("walkway", np.ones((2, 2), bool), 0, 0, 1.0)]
        write_clip(root, RawClip(name, route, 10.0, f"source {seed}", "CC0-1.0", True, iter(frames), maps=maps), split)
    merge(root, {"source": f"source {seed}"}, shard_mb)
    return ClipStore(root)


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[ClipStore]:
    """`one`, with a clip a shard, and `two`; clip b of route r is in both, to train and held out."""
    folder = tmp_path_factory.mktemp("stores")
    one = make(folder / "one", {"a": ("q", "train"), "b": ("r", "train"), "c": ("s", "val")}, seed=1, shard_mb=0.001)
    two = make(folder / "two", {"b": ("r", "val"), "d": ("t", "train")}, seed=2)
    return [one, two]


@pytest.fixture
def merged(stores, tmp_path) -> ClipStore:
    main([f"stores=[{stores[0].root},{stores[1].root}]", f"out={tmp_path / 'out'}"])
    return ClipStore(tmp_path / "out")


NAMES = {"a": (0, "a"), "c": (0, "c"), "d": (1, "d"), "one_b": (0, "b"), "two_b": (1, "b")}


def test_names_are_kept_but_for_those_that_two_stores_have(merged):
    found = merged.index[["route", "split"]].agg(tuple, axis=1).to_dict()
    assert found == {
        "a": ("q", "train"),
        "c": ("s", "val"),
        "d": ("t", "train"),
        "one_b": ("one_r", "train"),
        "two_b": ("two_r", "val"),
    }
    assert merged.index.groupby("route")["split"].nunique().max() == 1


def test_every_clip_has_its_own_pictures_and_rows(merged, stores):
    for name, (number, old) in NAMES.items():
        store = stores[number]
        np.testing.assert_array_equal(read_window(merged.video(name), 0, 5), read_window(store.video(old), 0, 5))
        for table in ("frames", "boxes"):
            ours, theirs = getattr(merged, table)(name), getattr(store, table)(old)
            pd.testing.assert_frame_equal(
                ours.drop(columns="clip").reset_index(drop=True), theirs.drop(columns="clip").reset_index(drop=True)
            )
    assert merged.table("maps")["clip"].tolist() == sorted(NAMES)


def test_the_index_says_where_the_rows_of_a_clip_begin(merged):
    frames, boxes = merged.table("frames"), merged.table("boxes")
    for clip, row in merged.index.iterrows():
        assert set(frames["clip"][row.frames_at : row.frames_at + row.frames]) == {clip}
        assert set(boxes["clip"][row.boxes_at : row.boxes_at + row.boxes]) == {clip}
        assert (row.frames, row.boxes) == (5, 2)


def test_shards_in_which_nothing_changes_its_name_are_linked_and_others_say_the_new_names(merged, stores):
    same = {
        clip: os.path.samefile(merged.video(clip).shard, stores[n].video(old).shard) for clip, (n, old) in NAMES.items()
    }
    assert same == {"a": True, "c": True, "d": True, "one_b": False, "two_b": False}
    with tarfile.open(merged.video("two_b").shard) as tar:
        assert tar.getnames() == ["two_b.mp4", "two_b.json"]
        row = json.load(tar.extractfile("two_b.json"))
    assert (row["clip"], row["route"], row["split"]) == ("two_b", "two_r", "val")


def test_the_result_is_whole(merged, monkeypatch, capsys):
    entry = EntryPoint("data", "data_prep.inspect.command:main", "drivesim.commands")
    monkeypatch.setattr(cli, "entry_points", lambda group: [entry])
    cli.main(["data", "verify", f"store={merged.root}"])
    assert "is whole: 5 clips, 25 frames" in capsys.readouterr().out
    assert merged.info["source"] == "source 1, source 2"
    assert set(merged.info["stores"]) == {"one", "two"}


def test_the_same_stores_give_the_same_bytes_linked_or_copied(merged, stores, tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError("another file system")

    monkeypatch.setattr(merging.os, "link", no_links)
    main([f"stores=[{stores[0].root},{stores[1].root}]", f"out={tmp_path / 'again'}"])
    assert digest(tmp_path / "again") == digest(merged.root)


def digest(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_the_stores_stay_when_the_merged_one_goes(merged, stores):
    shutil.rmtree(merged.root)
    assert len(read_window(stores[0].video("a"), 0, 5)) == 5


def test_stores_in_folders_of_one_name_are_told_apart_by_number(stores, tmp_path):
    twin = ClipStore(shutil.copytree(stores[1].root, tmp_path / "two"))
    main([f"stores=[{stores[1].root},{twin.root}]", f"out={tmp_path / 'out'}"])
    index = ClipStore(tmp_path / "out").index
    assert list(index.index) == ["two1_b", "two1_d", "two2_b", "two2_d"]
    assert index["split"].tolist() == ["val", "train", "val", "train"]


def test_a_store_under_a_url_is_copied(stores, tmp_path):
    system = fsspec.filesystem("memory")
    system.put(str(stores[1].root), "/far/two", recursive=True)
    try:
        main([f"stores=[{stores[0].root},'memory://far/two']", f"out={tmp_path / 'out'}"])
    finally:
        system.rm("/far", recursive=True)
    merged = ClipStore(tmp_path / "out")
    np.testing.assert_array_equal(read_window(merged.video("d"), 0, 5), read_window(stores[1].video("d"), 0, 5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[{one}]", "stores has 1; expected two or more"),
        ("[{one},{one}/../one]", "one twice; name each store once"),
        ("[{one},{one}/nothing]", "holds no clip store"),
        ("[{one},{two}] overwrite=true out={two}", "two is one of the stores; choose another folder"),
        ("[{one},{two}] out={two}", "exists; choose another name or add overwrite=true"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(stores, tmp_path, monkeypatch, capsys, given, message):
    words = given.format(one=stores[0].root, two=stores[1].root).split()
    out = [] if "out=" in given else [f"out={tmp_path / 'out'}"]
    monkeypatch.setattr(
        cli, "entry_points", lambda group: [EntryPoint("data", "data_prep.inspect.command:main", "drivesim.commands")]
    )
    with pytest.raises(SystemExit) as stopped:
        cli.main(["data", "merge", f"stores={words[0]}", *words[1:], *out])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("clip", ["a", "b"])
def test_a_shard_that_is_cut_off_is_told_and_nothing_is_left(stores, tmp_path, clip):
    damaged = ClipStore(shutil.copytree(stores[0].root, tmp_path / "damaged"))
    shard = damaged.video(clip).shard
    shard.write_bytes(shard.read_bytes()[:1500])
    with pytest.raises(UserError, match=rf"{shard.name} is cut off"):
        main([f"stores=[{damaged.root},{stores[1].root}]", f"out={tmp_path / 'out'}"])
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]
