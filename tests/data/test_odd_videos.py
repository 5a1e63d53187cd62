"""Videos as cameras and phones really write them: interlaced, 10 bit, HDR, oblong pixels, covers, absurd sizes."""

import struct
from fractions import Fraction

import av
import av.filter
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, ColorTrc

from drivesim.data.video import iterate, probe
from drivesim.errors import UserError

BT2020_MATRIX = 9  # AVCOL_SPC_BT2020_NCL
RED, BLUE = 0.2627, 0.0593  # luma weights of BT.2020


def pan(count, step, height=64, width=96):
    """A grey texture that slides by `step` pixels a picture."""
    noise = np.random.default_rng(0).integers(40, 216, (8, 60, 1), np.uint8).repeat(3, 2)
    texture = cv2.resize(noise, (width + step * count, height), interpolation=cv2.INTER_CUBIC)
    return [np.ascontiguousarray(texture[:, step * i : step * i + width]) for i in range(count)]


def encode(path, frames, codec="libx264", pix_fmt="yuv420p", options=None, aspect=None, tags=None):
    """Write av.VideoFrames at 25 a second; tags: primaries, transfer, matrix."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {"crf": "6"})
        stream.height, stream.width, stream.pix_fmt = frames[0].height, frames[0].width, pix_fmt
        context = stream.codec_context
        if aspect:
            context.sample_aspect_ratio = aspect
        if tags:
            context.color_primaries, context.color_trc, context.colorspace = tags
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            if tags:
                frame.color_primaries, frame.color_trc, frame.colorspace = tags
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rgb_frames(pictures):
    return [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures]


def interlace(first, second, top_first):
    """Frames whose earlier field is of `first` and whose later one is of `second`, flagged as a camera does."""
    graph = av.filter.Graph()
    height, width = first[0].shape[:2]
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=Fraction(1, 25))
    fields = graph.add("setfield", f"mode={'tff' if top_first else 'bff'}")
    graph.link_nodes(source, fields, graph.add("buffersink")).configure()
    frames = []
    for early, late in zip(first, second, strict=True):
        woven = late.copy()
        woven[0 if top_first else 1 :: 2] = early[0 if top_first else 1 :: 2]
        graph.push(av.VideoFrame.from_ndarray(woven, format="rgb24"))
        frames.append(graph.vpull())
    return frames


@pytest.mark.parametrize("top_first", [True, False])
def test_interlaced_video_comes_out_as_whole_pictures_at_the_time_of_the_first_field(tmp_path, top_first):
    fields = pan(40, step=4)
    frames = interlace(fields[::2], fields[1::2], top_first)
    path = encode(
        tmp_path / "camera.mp4", frames, options={"crf": "6", "x264-params": f"{'tff' if top_first else 'bff'}=1"}
    )
    shown = list(iterate(path))
    assert len(shown) == 20
    errors = [np.abs(picture.astype(int) - field).mean() for picture, field in zip(shown, fields[::2], strict=True)]
    later = [np.abs(picture.astype(int) - field).mean() for picture, field in zip(shown, fields[1::2], strict=True)]
    assert max(errors) < min(later) / 5
    np.testing.assert_array_equal(list(iterate(path, fps=25)), shown)
    info = probe(path)
    assert (info.frames, info.fps) == (20, 25)


def yuv10(height, width, y, cb, cr):
    frame = av.VideoFrame(width, height, "yuv420p10le")
    for plane, value in zip(frame.planes, (y, cb, cr), strict=True):
        plane.update(np.full(plane.buffer_size // 2, value, "<u2").tobytes())
    return frame


def test_ten_bits_a_channel_are_read_as_the_same_picture_in_eight(tmp_path):
    picture = pan(1, step=0)[0]
    deep = rgb_frames([picture])[0].reformat(format="yuv420p10le")
    path = encode(tmp_path / "deep.mp4", [deep], pix_fmt="yuv420p10le")
    assert np.abs(next(iterate(path)).astype(int) - picture).mean() < 1.5


def pq(cd_m2):
    """SMPTE ST 2084: light in cd/m2 to the signal, 0..1."""
    y = (np.asarray(cd_m2) / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)


def test_hdr_keeps_the_order_of_light_and_does_not_cut_off_the_sky(tmp_path):
    light = np.array([0, 1, 5, 20, 50, 100, 203, 400, 1000, 4000])
    frames = [yuv10(64, 96, round(64 + 876 * value), 512, 512) for value in pq(light)]
    tags = (ColorPrimaries.BT2020, ColorTrc.SMPTE2084, BT2020_MATRIX)
    options = {"x265-params": "lossless=1:log-level=none"}
    path = encode(tmp_path / "hdr.mp4", frames, "libx265", "yuv420p10le", options, tags=tags)
    shown = np.array([picture.reshape(-1, 3).mean(0) for picture in iterate(path)])
    assert shown.shape == (10, 3)
    assert np.ptp(shown, axis=1).max() < 2  # grey stays grey
    levels = shown.mean(1)
    assert (np.diff(levels) > 8).all()
    assert levels[0] < 3
    assert 110 < levels[light == 203][0] < 220  # a white sheet in the sun
    assert levels[light == 1000][0] < 245


def test_wide_gamut_is_brought_to_the_primaries_that_the_store_has(tmp_path):
    y, cb, cr = 500, 470, 560
    tags = (ColorPrimaries.BT2020, ColorTrc.BT2020_10, BT2020_MATRIX)
    path = encode(tmp_path / "wide.mp4", [yuv10(64, 96, y, cb, cr)], pix_fmt="yuv420p10le", tags=tags)
    luma, u, v = (y - 64) / 876, (cb - 512) / 896, (cr - 512) / 896
    r, b = luma + 2 * (1 - RED) * v, luma + 2 * (1 - BLUE) * u
    signal = np.array([r, (luma - RED * r - BLUE * b) / (1 - RED - BLUE), b])
    to_709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])  # BT.2087
    expected = 255 * (to_709 @ signal**2.4) ** (1 / 2.4)
    assert np.abs(expected - 255 * signal).max() > 8  # the matrix alone would be wrong by this much
    np.testing.assert_allclose(next(iterate(path)).mean((0, 1)), expected, atol=3)


def test_oblong_pixels_are_made_square_before_the_crop(tmp_path):
    path = encode(tmp_path / "dv.mp4", rgb_frames(pan(3, step=2)), aspect=Fraction(4, 3))
    assert (probe(path).height, probe(path).width) == (64, 128)
    frames = iterate(path, size=(32, 64))
    assert next(frames).shape == (32, 64, 3)
    assert (frames.shown.recorded, frames.shown.displayed) == ((64, 96), (64, 128))


def test_it_is_known_which_recorded_frame_is_shown(tmp_path):
    frames = iterate(encode(tmp_path / "a.mp4", rgb_frames(pan(10, step=2))), fps=10)
    times = [frames.shown.time_s for _ in frames]
    np.testing.assert_allclose(times, [0, 0.08, 0.2, 0.28], atol=1e-6)  # of 25 a second, the last that began by then


def test_a_size_that_no_camera_has_is_refused_before_decoding(tmp_path):
    path = encode(tmp_path / "small.avi", rgb_frames(pan(3, step=2)), "ffv1", options={})
    data = bytearray(path.read_bytes())
    size = data.index(b"strf") + 12
    data[size : size + 8] = struct.pack("<ii", 20000, 10000)
    path.write_bytes(data)
    for read in (iterate, probe):
        with pytest.raises(UserError, match=r"small.avi claims .*50,000,000"):
            read(path)
    wide = encode(tmp_path / "wide.mkv", [av.VideoFrame(12000, 9000, "yuv420p")], options={"preset": "ultrafast"})
    with pytest.raises(UserError, match="claims 12000x9000 pixels"):
        iterate(wide)


def test_the_cover_of_a_song_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=44100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 64, 96, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        container.mux(cover.encode(rgb_frames(pan(1, step=0))[0].reformat(format="yuvj420p")))
        container.mux(cover.encode())
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
    with pytest.raises(UserError, match="no video stream"):
        iterate(path)
