import errno
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from drivesim.errors import UserError
from drivesim.generation.writer import VideoWriter, partial_path

COLOURS = [
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
    (120, 30, 200),
    (255, 255, 0),
    (90, 90, 90),
]


def grey(value: int) -> np.ndarray:
    return np.full((64, 128, 3), value, np.uint8)


def decode(path) -> list[np.ndarray]:
    with av.open(str(path)) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def bt709_luma(rgb) -> float:
    """ITU-R BT.709, item 3.2 and 3.4: the 8-bit luma of limited range."""
    r, g, b = np.array(rgb) / 255
    return 16 + 219 * (0.2126 * r + 0.7152 * g + 0.0722 * b)


def test_colours_survive_the_round_trip_and_are_tagged_bt709(tmp_path):
    bars = np.repeat(np.array(COLOURS, np.uint8)[None], 16, 1).reshape(1, 128, 3).repeat(64, 0)
    with VideoWriter(tmp_path / "a.mp4", 30, 64, 128) as writer:
        writer.write(bars)
    with av.open(str(tmp_path / "a.mp4")) as video:
        frame = next(video.decode(video=0))
    assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)
    luma, rgb = frame.reformat(format="yuv420p").to_ndarray()[:64], frame.to_ndarray(format="rgb24")
    for i, colour in enumerate(COLOURS):
        assert abs(float(luma[32, 16 * i + 8]) - bt709_luma(colour)) <= 1
        assert np.abs(rgb[32, 16 * i + 8].astype(int) - colour).max() <= 3


def test_a_tensor_and_an_array_give_the_same_bytes(tmp_path):
    pictures = [np.random.default_rng(i).integers(0, 255, (64, 128, 3), dtype=np.uint8) for i in range(5)]
    with VideoWriter(tmp_path / "array.mp4", 30, 64, 128) as writer:
        [writer.write(picture) for picture in pictures]
    with VideoWriter(tmp_path / "tensor.mp4", 30, 64, 128) as writer:
        [writer.write(torch.from_numpy(picture).permute(2, 0, 1)) for picture in pictures]
    assert (tmp_path / "array.mp4").read_bytes() == (tmp_path / "tensor.mp4").read_bytes()


@pytest.mark.parametrize(("fps", "rate"), [(30, 30), (29.97002997, Fraction(30000, 1001)), (7.5, Fraction(15, 2))])
def test_every_frame_is_there_at_its_time(tmp_path, fps, rate):
    with VideoWriter(tmp_path / "a.mp4", fps, 64, 128) as writer:
        for i in range(40):
            writer.write(grey(20 + 5 * i))
    with av.open(str(tmp_path / "a.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.average_rate, stream.frames) == (rate, 40)
        for i, frame in enumerate(video.decode(stream)):
            assert abs(frame.time - float(i / rate)) < 1e-3
            assert abs(frame.to_ndarray(format="rgb24").mean() - (20 + 5 * i)) < 2


def test_the_finished_file_has_its_index_first_and_leaves_nothing_beside_it(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 30, 64, 128) as writer:
        writer.write(grey(9))
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_what_is_there_plays_while_frames_still_go_in(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 10, 64, 128) as writer:
        for i in range(120):
            writer.write(grey(i))
        frames = decode(partial_path(writer.path))
        assert not writer.path.exists()
    assert 40 <= len(frames) < 120
    assert abs(frames[30].mean() - 30) < 3


def write(
    path, frames: int, error: type[BaseException] | None = None, before=lambda i, writer: None, **options
) -> None:
    """Write grey frames at 10 fps, calling `before` ahead of each and once after the last; then raise `error`."""
    with VideoWriter(path, 10, 64, 128, **options) as writer:
        for i in range(frames):
            before(i, writer)
            writer.write(grey(i))
        before(frames, writer)
        if error:
            raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_video_is_kept_whole_and_says_how_long_it_is(tmp_path, capsys, error):
    with pytest.raises(error):
        write(tmp_path / "a.mp4", 25, error)
    assert len(decode(tmp_path / "a.mp4")) == 25
    assert "2.50 s (25 frames)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_an_interrupted_video_is_dropped_when_it_is_not_to_be_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.mp4", 25, KeyboardInterrupt, keep_partial=False)
    assert not list(tmp_path.iterdir())


def test_without_a_frame_there_is_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.mp4", 0, KeyboardInterrupt)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_and_leaves_no_file_under_the_final_name(tmp_path):
    def fill(i, writer):
        if i == 3:
            writer._container = FullDisk(writer._container)

    with pytest.raises(UserError, match=r"disk full while writing .*a\.mp4 after 0\.3 s"):
        write(tmp_path / "a.mp4", 9, before=fill)
    assert not (tmp_path / "a.mp4").exists()


def test_a_disk_that_fills_up_at_the_very_end_is_noticed(tmp_path):
    """FFmpeg does not report a failed write of the last fragment; here it is cut off after it was written."""

    def cut(i, writer):
        if i == 9:
            writer._container = CutShort(writer._container, writer.partial)

    with pytest.raises(UserError, match="disk full"):
        write(tmp_path / "a.mp4", 9, before=cut)
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.parametrize("size", [(63, 128), (64, 127)])
def test_odd_sizes_are_refused(tmp_path, size):
    with pytest.raises(UserError, match="even height and width"):
        VideoWriter(tmp_path / "a.mp4", 30, *size)


def test_an_existing_file_is_kept_unless_overwrite_is_given(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match="overwrite=true"):
        VideoWriter(path, 30, 64, 128)
    assert path.read_bytes() == b"mine"
    with VideoWriter(path, 30, 64, 128, overwrite=True) as writer:
        writer.write(grey(5))
        assert path.read_bytes() == b"mine"  # replaced only by a whole video
    assert len(decode(path)) == 1


def test_a_frame_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected uint8 of 64x128"), VideoWriter(tmp_path / "a.mp4", 30, 64, 128) as w:
        w.write(grey(1)[:32])


class FullDisk:
    """A container whose disk is full."""

    def __init__(self, container):
        self.close = container.close

    def mux(self, packets):
        raise OSError(errno.ENOSPC, "No space left on device")


class CutShort:
    """A container that loses the end of its file on closing."""

    def __init__(self, container, path):
        self.container, self.path, self.mux = container, path, container.mux

    def close(self):
        self.container.close()
        content = self.path.read_bytes()
        self.path.write_bytes(content[: content.index(b"mdat") + 20])
