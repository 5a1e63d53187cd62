"""`drivesim data view`: what is drawn onto a clip, and what cannot be shown."""

import av
import cv2
import numpy as np
import pandas as pd
import pytest

from drivesim.data.video import iterate
from drivesim.generation.draw import COLOURS


def change(store, name, edit):
    path = store.root / f"{name}.parquet"
    edit(pd.read_parquet(path)).to_parquet(path)


def test_a_sheet_shows_frames_of_the_whole_clip_with_the_car_outlined(data, store, tmp_path):
    out = tmp_path / "x.png"
    assert data("view", f"store={store.root}", "clip=c0", f"out={out}", "frames=5", "columns=2")[0] == 0
    sheet = cv2.imread(str(out))[..., ::-1]
    assert sheet.shape == (3 * (64 + 12 + 4) + 4, 2 * (128 + 4) + 4, 3)
    first = sheet[4:68, 4:132].astype(int)
    car = np.abs(first - COLOURS[0]).sum(-1) == 0
    assert car[41, 20:32].mean() > 0.8  # the lower edge of the car's box: x 20..32, y 30..42
    assert not car[44:].any()


def test_a_video_has_every_frame_and_its_boxes_follow_the_car(data, store, tmp_path):
    out = tmp_path / "x.mp4"
    assert data("view", f"store={store.root}", "clip=c1", f"out={out}")[0] == 0
    with av.open(str(out)) as video:
        assert video.streams.video[0].average_rate == 30
    drawn, plain = list(iterate(out)), list(iterate(store.video("c1")))
    assert len(drawn) == len(plain) == 44
    for number in (0, 40):
        changed = np.abs(drawn[number].astype(int) - plain[number]).sum(-1) > 120
        x = 20 + number
        assert changed[32:40, x - 1 : x + 2].any(axis=1).mean() > 0.8  # the box's left edge
        assert changed[46:].mean() < 0.02


def test_the_speed_is_written_where_it_is_known(data, store, tmp_path):
    assert data("view", f"store={store.root}", "clip=c0", f"out={tmp_path / 'a.png'}")[0] == 0
    change(store, "frames", lambda table: table.assign(speed_mps=7.5))
    assert data("view", f"store={store.root}", "clip=c0", f"out={tmp_path / 'b.png'}")[0] == 0
    without, with_speed = (cv2.imread(str(tmp_path / name)).astype(int) for name in ("a.png", "b.png"))
    changed = np.argwhere(np.abs(without - with_speed).sum(-1) > 0)
    assert len(changed)
    assert (changed[:, 0] % (64 + 12 + 4) < 16).all()  # in the line of labels alone


def test_hidden_boxes_are_shown_on_demand(data, store, tmp_path):
    change(store, "boxes", lambda table: table.assign(visibility=0.1))
    for name, more in (("a.png", []), ("b.png", ["min_visibility=0"])):
        assert data("view", f"store={store.root}", "clip=c0", f"out={tmp_path / name}", *more)[0] == 0
    hidden, shown = (cv2.imread(str(tmp_path / name))[..., ::-1] for name in ("a.png", "b.png"))
    assert not (hidden == COLOURS[0]).all(-1).any()
    assert (shown == COLOURS[0]).all(-1).any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clip=c9", "out=x.png"], "has no clip 'c9'; try c0, c1, c2"),
        (["clip=c0", "out=x.gif"], "expected a name that ends in .png or .mp4"),
        (["clip=c0", "out=there.png"], "there.png exists; choose another name or add overwrite=true"),
        (["clip=c0", "out=store.png"], "store.png is a folder"),
        (["clip=c0", "out=there.png/x.png"], "there.png is no folder"),
        (["clip=c0", "out=x.png", "frames=0"], "frames=0, columns=3, width=512; expected at least 1, 1 and 16"),
        (["clip=c0"], "missing out=..."),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(data, store, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").write_bytes(b"mine")
    (tmp_path / "store.png").mkdir()
    code, _, error = data("view", f"store={store.root}", *words)
    assert code == 2
    assert message in error
    assert {path.name for path in tmp_path.iterdir()} == {"store", "store.png", "there.png"}


@pytest.mark.parametrize("out", ["x.png", "x.mp4"])
def test_a_clip_that_does_not_fit_its_tables_is_told_and_nothing_is_written(data, store, tmp_path, out):
    video = store.video("c0")
    with open(video.shard, "r+b") as file:
        file.seek(video.offset)
        file.write(bytes(video.bytes))
    code, _, error = data("view", f"store={store.root}", "clip=c0", f"out={tmp_path / out}")
    assert (code, "c0.mp4 in" in error, "train-00000.tar is not a readable video" in error) == (2, True, True), error
    change(store, "frames", lambda table: table[table["frame"] > 0])
    code, _, error = data("view", f"store={store.root}", "clip=c1", f"out={tmp_path / out}")
    assert (code, "are not the 44 of clip c1; see `drivesim data verify`" in error) == (2, True), error
    assert {path.name for path in tmp_path.iterdir()} == {"store"}
