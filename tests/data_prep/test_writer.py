"""Writing a store: what comes back out, what is left after a failure, and that bytes depend on the clips alone."""

import errno
import hashlib
import os
import weakref
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.spatial.transform import Rotation

from data_prep import writer
from data_prep.source import Box, Frame, MapLayer, RawClip, Refused
from data_prep.writer import frame_rate, group_rows, merge, write_clip
from drivesim.data.store import TABLES, ClipStore
from drivesim.data.video import iterate, read_window
from drivesim.errors import UserError


def pictures(count=20, seed=0):
    """Smooth saturated colours that drift."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 8, 3), np.uint8)
    large = cv2.resize(noise, (96 + 2 * count, 64), interpolation=cv2.INTER_LINEAR)
    return [np.ascontiguousarray(large[:, 2 * i : 2 * i + 96]) for i in range(count)]


def raw(name="a", frames=None, fps=30.0, route="r"):
    frames = [Frame(picture) for picture in pictures()] if frames is None else frames
    return RawClip(name, route, fps, "film.mp4", "CC0-1.0", True, iter(frames))


def files(root):
    return sorted(path.relative_to(root).as_posix() for path in Path(root).rglob("*") if path.is_file())


def test_pictures_come_back_with_their_colours(tmp_path):
    write_clip(tmp_path, raw(), "train")
    shown = np.stack(list(iterate(tmp_path / "clips" / "a.mp4"))).astype(float)
    error = shown - np.stack(pictures())
    assert np.abs(error).mean() < 2
    assert np.abs(error.mean((0, 1, 2))).max() < 0.5  # no tint and no darkening


def test_the_file_says_bt709_and_starts_a_group_every_8_frames(tmp_path):
    write_clip(tmp_path, raw(), "train")
    with av.open(str(tmp_path / "clips" / "a.mp4")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        assert context.pix_fmt == "yuv420p"
        keys = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
    assert [i for i, key in enumerate(keys) if key] == [0, 8, 16]


@pytest.mark.parametrize(
    ("fps", "exact"),
    [(1.875, Fraction(15, 8)), (29.97002997, Fraction(30000, 1001)), (30.0, Fraction(30)), (12.5, Fraction(25, 2))],
)
def test_odd_frame_rates_are_exact(tmp_path, fps, exact):
    assert frame_rate(fps) == exact
    row = write_clip(tmp_path, raw(fps=fps), "train")
    with av.open(str(tmp_path / "clips" / "a.mp4")) as container:
        stream = container.streams.video[0]
        times = [frame.pts * stream.time_base for frame in container.decode(stream)]
        assert stream.average_rate == exact
    assert all(abs(time - number / exact) < Fraction(1, 10000) for number, time in enumerate(times))
    assert row["fps"] == pytest.approx(fps)


def test_the_row_says_what_is_in_the_file(tmp_path):
    frames = [Frame(p, speed_mps=i, night=0.5, vehicles=i % 2) for i, p in enumerate(pictures(10))]
    row = write_clip(tmp_path, raw(frames=frames), "val")
    assert row["sha256"] == hashlib.sha256((tmp_path / "clips" / "a.mp4").read_bytes()).hexdigest()
    found = {key: row[key] for key in ("clip", "route", "split", "frames", "height", "width", "has_boxes", "licence")}
    assert found == {
        "clip": "a", "route": "r", "split": "val", "frames": 10, "height": 64, "width": 96, "has_boxes": True,
        "licence": "CC0-1.0",
    }  # fmt: skip
    assert (row["speed_mps"], row["night"], row["crowdedness"]) == pytest.approx((4.5, 0.5, 0.5))


def test_a_pose_comes_back_as_the_same_rotation(tmp_path):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("zyx", [200, 10, -5], degrees=True).as_matrix()
    pose[:3, 3] = 1, 2, 3
    intrinsics = np.array([[500.0, 0, 48], [0, 510, 32], [0, 0, 1]])
    write_clip(tmp_path, raw(frames=[Frame(pictures()[0], pose=pose, intrinsics=intrinsics)]), "train")
    row = pq.read_table(tmp_path / "parts" / "a.frames.parquet").to_pylist()[0]
    w, x, y, z = (row[name] for name in ("qw", "qx", "qy", "qz"))
    matrix = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    np.testing.assert_allclose(matrix, pose[:3, :3], atol=1e-12)
    assert [row[name] for name in ("x_m", "y_m", "z_m", "fx", "fy", "cx", "cy")] == [1, 2, 3, 500, 510, 48, 32]


def test_the_order_of_writing_does_not_change_a_byte(tmp_path):
    boxes = [Box(7, "car", (0.1, 0.2, 0.3, 0.4)), Box(3, "bus", (0.5, 0.2, 0.9, 0.8))]
    for store, names in (("one", "abc"), ("two", "cab")):
        for name in names:
            frames = [Frame(picture, boxes) for picture in pictures(5, seed=ord(name))]
            write_clip(tmp_path / store, raw(name, frames), "train")
        merge(tmp_path / store, {"source": "test"})
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for name in files(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_merged_tables_are_sorted_and_typed(tmp_path):
    for name in "ba":
        write_clip(tmp_path, raw(name), "train")
    merge(tmp_path, {})
    for table, schema in TABLES.items():
        assert pq.read_schema(tmp_path / f"{table}.parquet").names == schema.names
    assert ClipStore(tmp_path).clips() == ["a", "b"]
    assert list(ClipStore(tmp_path).frames("b")["frame"]) == list(range(20))


def test_the_index_tells_where_the_rows_of_a_clip_lie_in_the_other_tables(tmp_path):
    box = Box(7, "car", (0.1, 0.2, 0.3, 0.4))
    for name, count in (("b", 5), ("a", 3)):
        write_clip(tmp_path, raw(name, [Frame(picture, [box] * 2) for picture in pictures(count)]), "train")
    merge(tmp_path, {})
    store = ClipStore(tmp_path)
    for table, at, count in (("frames", "frames_at", "frames"), ("boxes", "boxes_at", "boxes")):
        rows = store.table(table)
        for clip, row in store.index.iterrows():
            part = rows.iloc[row[at] : row[at] + row[count]]
            assert len(part) == (rows["clip"] == clip).sum() > 0
            assert set(part["clip"]) == {clip}


@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (8192, 1), (8193, 2), (20_000_000, 2442), (10**9, 4096)])
def test_row_groups_are_small_as_long_as_they_are_not_too_many(rows, groups):
    assert -(-rows // group_rows(rows)) == groups


def test_lossless_clips_keep_every_pixel_and_can_be_read_from_anywhere(tmp_path):
    shown = pictures(20)
    write_clip(tmp_path, raw(frames=[Frame(picture) for picture in shown]), "train", lossless=True)
    merge(tmp_path, {})
    store = ClipStore(tmp_path)
    video = store.video(store.clips()[0])
    np.testing.assert_array_equal(list(iterate(video)), shown)
    np.testing.assert_array_equal(read_window(video, 9, 3, 2), shown[9:15:2])


def test_the_layers_of_a_map_are_stored_as_pictures(tmp_path):
    mask = np.arange(12).reshape(3, 4) % 2 == 0
    layer = MapLayer("drivable_area", mask, 10.0, 20.0, 0.5)
    write_clip(tmp_path, replace(raw("a"), maps=[layer]), "train")
    merge(tmp_path, {})
    row = ClipStore(tmp_path).table("maps").iloc[0]
    assert (row.layer, row.x_m, row.y_m, row.metres_per_pixel) == ("drivable_area", 10, 20, 0.5)
    decoded = cv2.imdecode(np.frombuffer(row.png, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, mask * np.uint8(255))


def test_a_finished_clip_is_not_made_again(tmp_path):
    first = write_clip(tmp_path, raw(), "train")

    def untouchable():
        raise AssertionError("frames were read")
        yield

    again = write_clip(tmp_path, raw(frames=untouchable()), "train")
    assert again["sha256"] == first["sha256"]


def test_frames_are_let_go_as_they_pass(tmp_path):
    alive = set()

    def frames():
        for number in range(60):
            image = pictures(1)[0].copy()
            alive.add(number)
            weakref.finalize(image, alive.discard, number)
            assert len(alive) <= 3
            yield Frame(image)
            del image

    assert write_clip(tmp_path, raw(frames=frames()), "train")["frames"] == 60


def test_a_refused_piece_leaves_nothing(tmp_path):
    def frames():
        yield Frame(pictures()[0])
        raise Refused("too short")

    with pytest.raises(Refused, match="too short"):
        write_clip(tmp_path, raw(frames=frames()), "train")
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("sizes", "message"), [([(63, 96)], "63x96.*even"), ([(64, 96), (32, 96)], "frame 1 is 32x96, the first is 64x96")]
)
def test_sizes_that_do_not_fit_are_refused(tmp_path, sizes, message):
    frames = [Frame(np.zeros((*size, 3), np.uint8)) for size in sizes]
    with pytest.raises(UserError, match=message):
        write_clip(tmp_path, raw(frames=frames), "train")
    assert files(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here, so no disk that is really full")
def test_a_full_disk_is_one_line_and_leaves_no_half_video(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / f".a.{os.getpid()}.partial.mp4").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"disk full while writing .*a.mp4"):
        write_clip(tmp_path, raw(), "train")
    assert files(tmp_path) == []


@pytest.mark.parametrize("calls_that_fit", [0, 1, 2])
def test_a_disk_that_fills_up_at_a_table_leaves_the_clip_unfinished(tmp_path, monkeypatch, calls_that_fit):
    real, calls = pq.write_table, iter(range(10))

    def write_table(*args, **kwargs):
        if next(calls) == calls_that_fit:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr(writer.pq, "write_table", write_table)
    with pytest.raises(UserError, match="disk full"):
        write_clip(tmp_path, raw(), "train")
    assert not [name for name in files(tmp_path) if "partial" in name or "index" in name]
    monkeypatch.undo()
    assert write_clip(tmp_path, raw(), "train")["frames"] == 20  # the same call goes on


def test_windows_of_a_stored_clip_are_exact(tmp_path):
    write_clip(tmp_path, raw(fps=1.875), "train")
    path = tmp_path / "clips" / "a.mp4"
    frames = np.stack(list(iterate(path)))
    for start in range(17):
        np.testing.assert_array_equal(read_window(path, start, 2, 2), frames[start : start + 3 : 2])
