"""`drivesim data verify`: a whole store passes, every kind of damage is named, and the remedy it tells works."""

import os

import pandas as pd
import pytest

from data_prep.prepare import main as prepare
from drivesim.data.store import ClipStore


def change(store, name, edit):
    path = store.root / f"{name}.parquet"
    edit(pd.read_parquet(path)).to_parquet(path)


def at(clip, **values):
    """An edit that sets columns in the first row of a clip."""

    def edit(table):
        for column, value in values.items():
            table.loc[table.index[table["clip"] == clip][0], column] = value
        return table

    return edit


def without_first(clip):
    return lambda table: table.drop(table.index[table["clip"] == clip][0])


def first_twice(clip):
    return lambda table: pd.concat([table, table[table["clip"] == clip].head(1)])


def overwrite(store, clip, content, at=0.5):
    """Put other bytes into the shard, from that share of a clip on."""
    video = store.video(clip)
    with open(video.shard, "r+b") as file:
        file.seek(video.offset + int(at * video.bytes))
        file.write(content)


def flip(store, clip):
    with store.video(clip).open() as file:
        middle = file.read()[int(0.5 * store.video(clip).bytes)]
    overwrite(store, clip, bytes([middle ^ 255]))


def cut(store, clip):
    video = store.video(clip)
    os.truncate(video.shard, video.offset + video.bytes // 2)


def test_a_whole_store_passes(data, store):
    code, out, _ = data("verify", f"store={store.root}")
    assert code == 0
    assert out == f"{store.root} is whole: 5 clips, 126 frames\n"


FILES = {
    "a flipped byte": (lambda store: flip(store, "c1"), ["c1.mp4 in", "train-00000.tar has sha256"]),
    "a clip of zeros": (
        lambda store: overwrite(store, "c1", bytes(store.video("c1").bytes), at=0),
        ["train-00000.tar has sha256", "train-00000.tar is not a readable video"],
    ),
    "a cut shard": (
        lambda store: cut(store, "c1"),
        ["c1.mp4 ends at", "c2.mp4 ends at"],
    ),
    "no shard": (lambda store: store.video("c1").shard.unlink(), ["train-00000.tar is missing, with 3 clips"]),
    "no folder": (
        lambda store: (store.root / "shards").rename(store.root / "x"),
        ["train-00000.tar is missing, with 3 clips", "val-00000.tar is missing, with 2 clips"],
    ),
    "a stray shard": (lambda store: (store.root / "shards/x.tar").touch(), ["x.tar belongs to no clip"]),
    "no table": (lambda store: (store.root / "frames.parquet").unlink(), ["frames.parquet is not readable"]),
    "a cut table": (
        lambda store: (store.root / "boxes.parquet").write_bytes((store.root / "boxes.parquet").read_bytes()[:-9]),
        ["boxes.parquet is not readable"],
    ),
}
TABLES = {
    "a column less": ("boxes", lambda table: table.drop(columns="x1"), ["boxes.parquet lacks x1"]),
    "wrong frames": ("index", at("c0", frames=35), [
        "frames.parquet: clip c0 has 0 frames missing, 1 rows too many, the index says 35",
        "clip c0 has 1 boxes of frames that the clip does not have, the first in frame 35, track 1",
        "holds 36 frames, the index says 35"]),
    "wrong place": ("index", at("c1", frames_at=3), ["clip c1 has frames_at 3, its rows begin at 36"]),
    "wrong hash": ("index", at("c0", sha256="0" * 64), ["c0.mp4 in", "says 000000000000..."]),
    "clip twice": ("index", first_twice("c2"), ["clip c2 is there more than once"]),
    "clip unknown": ("index", without_first("c2"), [
        "frames.parquet: 6 rows of clip c2, which is not in index.parquet",
        "boxes.parquet: 6 rows of clip c2, which is not in index.parquet",
        "train-00000.tar belongs to no clip"]),
    "route in two": ("index", at("c3", route="r0"), ["route r0 lies in train and val"]),
    "split unknown": ("index", at("c3", split="dev"), ["clip c3 has split 'dev', expected one of train, val, test"]),
    "frame missing": ("frames", without_first("c4"), ["clip c4 has 1 frames missing, 0 rows too many"]),
    "frame twice": ("frames", first_twice("c4"), ["clip c4 has 0 frames missing, 1 rows too many"]),
    "frame far": ("frames", at("c4", frame=9), ["clip c4 has 1 frames missing, 1 rows too many"]),
    "no frames": ("frames", lambda table: table[table["clip"] != "c4"], ["clip c4 has 4 frames missing"]),
    "box before": ("boxes", at("c4", frame=-1), ["clip c4 has 1 boxes of frames that the clip does not have"]),
    "box outside": ("boxes", at("c4", x2=1.5), [
        "clip c4 has 1 boxes with corners outside [0, 1], the first in frame 0, track 1"]),
    "box nan": ("boxes", at("c4", y1=float("nan")), ["clip c4 has 1 boxes with corners outside [0, 1]"]),
    "box reversed": ("boxes", at("c4", x1=0.875, x2=0.125), ["clip c4 has 1 boxes without x1 < x2 and y1 < y2"]),
    "box class": ("boxes", at("c4", **{"class": "tram"}), ["clip c4 has 1 boxes of a class that is none of car"]),
}  # fmt: skip
DAMAGE = FILES | {
    name: (lambda store, table=table, edit=edit: change(store, table, edit), told)
    for name, (table, edit, told) in TABLES.items()
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_a_line_each_with_exit_code_2_and_a_remedy(data, store, kind):
    damage, told = DAMAGE[kind]
    damage(store)
    code, out, error = data("verify", f"store={store.root}")
    assert code == 2
    lines = out.splitlines()
    assert all(sum(part in line for line in lines) == 1 for part in told), out
    assert all(any(part in line for part in told) for line in lines), out
    assert "named above; delete store.json" in error


def test_the_remedy_makes_the_damaged_clip_again_and_leaves_the_others(data, tmp_path, make_video, make_scene):
    make_video(tmp_path / "films/day_1.mp4", make_scene(1, 40) + make_scene(2, 20))
    make_video(tmp_path / "films/rain.mp4", make_scene(3, 30))
    words = ["source=videos", f"root={tmp_path / 'films'}", f"out={tmp_path / 'store'}", "workers=1"]
    words += ["videos.height=32", "videos.width=64", "videos.fps=15", "videos.clip_seconds=2", "videos.min_seconds=0.5"]
    prepare(words)
    store = ClipStore(tmp_path / "store")
    before = {path: path.read_bytes() for path in store.root.glob("shards/*")}
    flip(store, "day_1_0000")
    assert data("verify", f"store={store.root}")[0] == 2

    for told in ("store.json", "parts/day_1_0000.*"):
        for path in store.root.glob(told):
            path.unlink()
    prepare(words)
    assert data("verify", f"store={store.root}")[0] == 0
    cut(store, "day_1_0001")
    (store.root / "boxes.parquet").unlink()
    (store.root / "store.json").unlink()
    prepare(words)  # a table comes back from the parts, and the clips that a shard lost are made again
    assert data("verify", f"store={store.root}")[0] == 0
    assert {path: path.read_bytes() for path in store.root.glob("shards/*")} == before
    assert not (store.root / "clips").exists()
