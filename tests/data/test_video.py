"""Reading videos, against plain PyAV decoding and colour matrices written out here."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from drivesim.data.clip_file import ClipFile
from drivesim.data.video import count_frames, fit, iterate, probe, read_window
from drivesim.errors import UserError

TICKS = 600  # a second, in the videos made here


def pan(count, height=64, width=96):
    """A grey texture that slides by 3 pixels a frame, so that every frame differs from every other."""
    noise = np.random.default_rng(0).integers(40, 216, (8, 40, 1), np.uint8).repeat(3, 2)
    texture = cv2.resize(noise, (width + 3 * 60, height), interpolation=cv2.INTER_CUBIC)
    return [np.ascontiguousarray(texture[:, 3 * i : 3 * i + width]) for i in range(count)]


def grey(levels, height=64, width=96):
    return [np.full((height, width, 3), level, np.uint8) for level in levels]


def encode(path, pictures, times=None, codec="libx264", **options):
    """Write pictures, shown at `times` (seconds; 30 a second by default)."""
    times = [i / 30 for i in range(len(pictures))] if times is None else times
    flags = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=flags) as container:
        stream = container.add_stream(codec, rate=30, options={"crf": "10", **options} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS) if codec == "libx264" else Fraction(1, 30)
        for picture, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = round(time / frame.time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def alike(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean() < 4


@pytest.fixture(scope="module")
def panned(tmp_path_factory):
    """60 frames with B-frames and open GOPs: the hard case for seeking."""
    path = tmp_path_factory.mktemp("video") / "pan.mp4"
    return encode(path, pan(60), **{"x264-params": "keyint=12:bframes=3:open-gop=1:scenecut=0"})


def test_probe_tells_size_rate_frames_and_duration(panned):
    info = probe(panned)
    assert (info.height, info.width, info.frames) == (64, 96, 60)
    assert (info.fps, info.duration_s) == pytest.approx((30, 2))


def test_every_stored_frame_comes_once_and_in_order(panned):
    frames = list(iterate(panned))
    assert len(frames) == 60
    assert all(alike(found, made) for found, made in zip(frames, pan(60), strict=True))


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_resampling_to_its_own_rate_changes_nothing(tmp_path, name, codec):
    path = encode(tmp_path / name, pan(40), codec=codec)
    np.testing.assert_array_equal(list(iterate(path, fps=30)), list(iterate(path)))


def test_half_the_rate_takes_every_other_frame_and_double_shows_each_twice(panned):
    frames = np.stack(list(iterate(panned)))
    np.testing.assert_array_equal(list(iterate(panned, fps=15)), frames[::2])
    np.testing.assert_array_equal(list(iterate(panned, fps=60)), frames.repeat(2, axis=0))


def test_a_variable_rate_shows_at_each_instant_the_last_frame_that_began(tmp_path):
    times = np.array([0, 0.02, 0.3, 0.35, 0.4, 0.9, 1.5, 1.6])
    levels = np.array([20, 50, 80, 110, 140, 170, 200, 230])
    path = encode(tmp_path / "phone.mp4", grey(levels), times)
    shown = np.array([frame.mean() for frame in iterate(path, fps=24)])
    instants = np.arange(len(shown)) / 24
    expected = levels[np.searchsorted(times, instants + 1e-3, side="right") - 1]
    np.testing.assert_allclose(shown, expected, atol=3)
    assert len(shown) >= 1.6 * 24


def test_start_and_stop_are_seconds(panned):
    whole = list(iterate(panned, fps=30))
    np.testing.assert_array_equal(list(iterate(panned, fps=30, start=0.5, stop=1.5)), whole[15:45])
    np.testing.assert_array_equal(list(iterate(panned, start=0.5, stop=1.5)), whole[15:45])


@pytest.mark.parametrize("stride", [1, 4])
def test_a_window_equals_the_same_frames_of_a_full_decode(panned, stride):
    frames = np.stack(list(iterate(panned)))
    for start in range(0, 60 - 4 * stride):
        window = read_window(panned, start, 5, stride)
        np.testing.assert_array_equal(window, frames[start : start + 4 * stride + 1 : stride])


@pytest.mark.parametrize("bframes", [0, 3])
def test_a_video_within_a_larger_file_reads_as_by_itself(tmp_path, bframes):
    path = encode(tmp_path / "pan.mp4", pan(30), **{"x264-params": f"keyint=8:bframes={bframes}:scenecut=0"})
    larger = tmp_path / "a, b:c.tar"
    larger.write_bytes(bytes(1000) + path.read_bytes() + b"more" * 500)
    part = ClipFile("pan.mp4", larger, 1000, path.stat().st_size)
    frames = np.stack(list(iterate(path)))
    np.testing.assert_array_equal(list(iterate(part)), frames)
    assert (probe(part), count_frames(part)) == (probe(path), 30)
    for start in range(26):
        np.testing.assert_array_equal(read_window(part, start, 3, 2), frames[start : start + 5 : 2])
    with pytest.raises(UserError, match=r"pan.mp4 in .*a, b:c.tar has 30 frames, frame 30 was asked for"):
        read_window(part, 29, 2)


def test_frames_are_counted_without_decoding_also_of_a_cut_off_file(panned, tmp_path):
    assert count_frames(panned) == len(list(iterate(panned)))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(panned.read_bytes()[: panned.stat().st_size * 2 // 3])
    assert 0 < count_frames(cut) < count_frames(panned)
    with pytest.raises(UserError, match="is not a file"):
        count_frames(tmp_path / "none.mp4")


def test_a_window_beyond_the_end_is_refused(panned):
    with pytest.raises(UserError, match="has 60 frames, frame 62 was asked for"):
        read_window(panned, 50, 5, 3)


def test_a_cut_off_file_gives_its_readable_frames_and_tells_the_loss(panned, tmp_path):
    data = panned.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: int(len(data) * 0.6)])
    frames, whole = iterate(cut), iterate(panned)
    kept = list(frames)
    assert 20 <= len(kept) == frames.decoded < frames.promised == 60
    assert frames.lost == 60 - len(kept)
    np.testing.assert_array_equal(kept, list(whole)[: len(kept)])
    assert whole.lost == 0


def test_frames_hidden_by_an_edit_list_are_neither_shown_nor_lost(panned, tmp_path):
    path = tmp_path / "trimmed.mp4"
    with av.open(str(encode(tmp_path / "p.mp4", pan(60), bf="0", g="12"))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                early = round(Fraction(5, 30) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - early, packet.dts - early, stream
                target.mux(packet)
    frames = iterate(path)
    shown = list(frames)
    assert (len(shown), frames.lost) == (55, 0)
    assert alike(shown[0], pan(60)[5])
    np.testing.assert_array_equal(read_window(path, 10, 3), shown[10:13])


def test_broken_files_are_named_with_the_reason(tmp_path):
    text, empty, sound = tmp_path / "text.mp4", tmp_path / "empty.mp4", tmp_path / "sound.mp4"
    text.write_text("not a video")
    empty.touch()
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for path, reason in (
        (text, "Invalid data"),
        (empty, "is empty"),
        (sound, "no video"),
        (tmp_path / "x.mp4", "not a f"),
    ):
        for read in (probe, iterate, lambda path: read_window(path, 0, 1)):
            with pytest.raises(UserError, match=f"{path.name}.*{reason}"):
                read(path)


def test_a_phone_video_held_upright_is_turned(panned, tmp_path):
    data = bytearray(encode(tmp_path / "lying.mp4", pan(4)).read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # version, times, id, duration, layer, volume come before it
    clockwise = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4")
    data[matrix : matrix + 36] = clockwise.tobytes()
    path = tmp_path / "upright.mp4"
    path.write_bytes(data)
    assert (probe(path).height, probe(path).width) == (96, 64)
    assert alike(next(iterate(path)), np.rot90(pan(4)[0], -1))


@pytest.mark.parametrize(("space", "red", "blue"), [(1, 0.2126, 0.0722), (6, 0.299, 0.114), (2, 0.299, 0.114)])
def test_colours_follow_the_tagged_matrix_and_untagged_small_video_is_bt601(tmp_path, space, red, blue):
    y, cb, cr = 120, 90, 170
    path = tmp_path / "colour.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.colorspace = space
        frame = av.VideoFrame(64, 64, "yuv420p")
        for plane, value in zip(frame.planes, (y, cb, cr), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        frame.colorspace, frame.pts = space, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    luma, u, v = (y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    r, b = luma + 2 * (1 - red) * v, luma + 2 * (1 - blue) * u
    g = (luma - red * r - blue * b) / (1 - red - blue)
    np.testing.assert_allclose(next(iterate(path)).mean((0, 1)), 255 * np.array([r, g, b]), atol=1)


def test_fit_keeps_the_asked_part_and_averages_when_shrinking():
    rows = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[:, None, None], 3, 2).repeat(40, 1)  # 60 x 40
    for crop, first in (("top", 0), ("center", 20), ("bottom", 40)):
        small = fit(rows, (10, 20), crop)
        expected = rows[first : first + 20, :, :].reshape(10, 2, 20, 2, 3).mean((1, 3))
        np.testing.assert_allclose(small, expected, atol=0.51)


def test_fit_grows_to_the_asked_size():
    assert fit(pan(1)[0], (128, 256)).shape == (128, 256, 3)
